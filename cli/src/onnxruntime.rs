//! Where `libonnxruntime` is, and where it runs graphs.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

use preface_trainer::engine::{Device, Library};

use crate::tasks::count;

/// Variable that names the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's loader is asked for when nothing names the library.
const SYSTEM: &str = "libonnxruntime.so";
/// The folder of a Python environment in which packages lie.
const PACKAGES: &str = "site-packages";

/// How ONNX Runtime is loaded and run.
#[derive(clap::Args)]
pub struct OnnxRuntime {
    /// libonnxruntime.so; without it, ORT_DYLIB_PATH, the active Python environment and the system are asked.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Threads of ONNX Runtime; without it, one for each processor.
    #[arg(long, value_name = "N", value_parser = count(1024))]
    threads: Option<usize>,
    /// Where graphs run: cpu, cuda, cuda:N, or auto, which takes the CPU where CUDA cannot start. CUDA wants the PyPI
    /// package onnxruntime-gpu; how fast it is was not measured.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
}

impl OnnxRuntime {
    /// Loads the library on its device; where `auto` takes the CPU, it says so on stderr, and why.
    ///
    /// # Errors
    /// When it cannot be loaded or the device cannot be used; the error says what to install.
    pub fn load(&self) -> anyhow::Result<Library> {
        let library = self.load_on_cpu()?.on(self.device, &self.packages())?;
        if let Some(reason) = library.fallback() {
            // Where stderr is gone, nobody is left to tell.
            let _ = writeln!(io::stderr().lock(), "running on the CPU: {reason}");
        }
        Ok(library)
    }

    /// Loads the library to run graphs on the CPU, whatever device is asked for.
    ///
    /// # Errors
    /// As [`OnnxRuntime::load`].
    pub fn load_on_cpu(&self) -> anyhow::Result<Library> {
        Ok(Library::load(&self.path())?)
    }

    /// The device that is asked for.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Folders with Python packages: where the library lies in one, and the active environment's.
    pub fn packages(&self) -> Vec<PathBuf> {
        let own = self.path().ancestors().nth(3).map(Path::to_owned);
        let own = own.filter(|folder| folder.ends_with(PACKAGES));
        let active = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
        let active = active
            .iter()
            .flat_map(|environment| packages_of(environment));
        let mut found: Vec<PathBuf> = own.into_iter().chain(active).collect();
        found.dedup();
        found
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
    let packages = packages_of(environment).into_iter();
    let files = packages.flat_map(|packages| entries(&packages.join("onnxruntime/capi")));
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(SYSTEM))
    };
    files.filter(is_library).min()
}

/// The folders of a Python environment in which packages lie.
fn packages_of(environment: &Path) -> Vec<PathBuf> {
    let pythons = entries(&environment.join("lib")).into_iter();
    let packages = pythons.map(|python| python.join(PACKAGES));
    packages.filter(|folder| folder.is_dir()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
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
        let library = capi.join("libonnxruntime.so.1.32.0");
        assert_eq!(in_python(folder.path()), Some(library.clone()));
        let options = OnnxRuntime {
            onnxruntime: Some(library),
            threads: None,
            device: Device::Cpu,
        };
        let packages = folder.path().join("lib/python3.11/site-packages");
        assert!(options.packages().contains(&packages));
    }
}
