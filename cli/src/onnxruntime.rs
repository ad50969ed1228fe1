//! Where `libonnxruntime` is.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

use preface_trainer::engine::Library;

/// Variable that names the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's loader is asked for when nothing names the library.
const SYSTEM: &str = "libonnxruntime.so";

/// How ONNX Runtime is loaded and run.
#[derive(clap::Args)]
pub struct OnnxRuntime {
    /// libonnxruntime.so; without it, ORT_DYLIB_PATH, the active Python environment and the system are asked.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Threads of ONNX Runtime; without it, one for each processor.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl OnnxRuntime {
    /// Loads the library.
    ///
    /// # Errors
    /// When it cannot be loaded; the error says what to install.
    pub fn load(&self) -> anyhow::Result<Library> {
        Ok(Library::load(&self.path())?)
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(processors)
    }

    fn path(&self) -> PathBuf {
        let named = self
            .onnxruntime
            .clone()
            .or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        let environment = || in_python(&PathBuf::from(env::var_os("VIRTUAL_ENV")?));
        named.or_else(environment).unwrap_or_else(|| SYSTEM.into())
    }
}

/// The library that the PyPI package onnxruntime put into a Python environment.
fn in_python(environment: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| {
        fs::read_dir(folder)
            .ok()
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let packages = entries(environment.join("lib"))
        .map(|python| python.join("site-packages/onnxruntime/capi"));
    let files = packages.flat_map(entries);
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(SYSTEM))
    };
    files.filter(is_library).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_a_python_environment_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(in_python(folder.path()), None);
        let capi = folder
            .path()
            .join("lib/python3.11/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        fs::write(capi.join("libonnxruntime.so.1.32.0"), "").unwrap();
        fs::write(capi.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(
            in_python(folder.path()),
            Some(capi.join("libonnxruntime.so.1.32.0"))
        );
    }
}
