//! ONNX Runtime, loaded at run time: the only folder that names it.

mod array;
mod cuda;
mod device;
mod kernels;

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session as Inner, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynTensorValueType, ValueRef},
};
use preface_graph::onnx::ModelProto;
use prost::Message;

pub use self::{
    array::Array,
    cuda::{CudaLibrary, cuda_libraries},
    device::{Device, Place},
};
use crate::Error;

fn engine<T>(error: ort::Error<T>) -> Error {
    Error::Engine(error.to_string().trim().replace('\n', " "))
}

/// Elements of a model's weights up to which they are laid out anew for products, forward and backward.
const MOST_PACKED: usize = 128 << 20;

/// A loaded `libonnxruntime`, and where it runs graphs.
pub struct Library {
    environment: Environment,
    place: Place,
    fallback: Option<Error>,
}

impl Library {
    /// Loads the shared library at `path`, to run graphs on the processor.
    ///
    /// # Errors
    /// When the file is not there, is no ONNX Runtime, or is too old.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let failed = |reason: String| Error::Library {
            library: path.display().to_string(),
            reason: reason.trim().replace('\n', " "),
        };
        if path.components().count() > 1 && !path.exists() {
            return Err(failed("no such file".into()));
        }
        let builder = ort::init_from(path).map_err(|error| failed(error.to_string()))?;
        let builder = builder.with_name("preface").with_telemetry(false);
        let environment = builder.build().map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            environment,
            place: Place::Cpu,
            fallback: None,
        })
    }

    /// The same library with its graphs on `device`, tried with a small one. Libraries of CUDA are looked for in
    /// `packages`, folders named `site-packages`, before the system's loader is asked.
    ///
    /// # Errors
    /// When CUDA is asked for and cannot start: the error names what is missing.
    pub fn on(self, device: Device, packages: &[PathBuf]) -> Result<Self, Error> {
        let number = match device {
            Device::Cpu => return Ok(self),
            Device::Cuda(number) => number,
            Device::Auto => 0,
        };
        let cuda = Self {
            place: Place::Cuda(number),
            ..self
        };
        match (cuda.start(packages), device) {
            (Ok(()), _) => Ok(cuda),
            (Err(error), Device::Auto) => Ok(Self {
                place: Place::Cpu,
                fallback: Some(error),
                ..cuda
            }),
            (Err(error), _) => Err(error),
        }
    }

    fn start(&self, packages: &[PathBuf]) -> Result<(), Error> {
        if !cuda::is_built_in() {
            return Err(cuda::not_built_in(self.place));
        }
        cuda::preload(&cuda_libraries(packages));
        cuda::trial(self).map_err(|error| cuda::explained(self.place, &error.to_string()))
    }

    /// Where graphs run.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Why graphs run on the processor although a CUDA device would have been taken.
    pub fn fallback(&self) -> Option<&Error> {
        self.fallback.as_ref()
    }

    /// The devices that the library was built for.
    pub fn providers(&self) -> Vec<&'static str> {
        let cuda = cuda::is_built_in().then_some("cuda");
        ["cpu"].into_iter().chain(cuda).collect()
    }

    /// The version and build of the loaded library.
    pub fn info(&self) -> String {
        ort::info().to_owned()
    }

    /// Prepares `model` to run on `threads` threads; external data is looked for in `folder`.
    ///
    /// Weights that lie in files are mapped, not read. Those of small models are laid out anew, which products gain
    /// from; larger ones are used where they are. Memory is not planned by the shape of a batch, which would double it,
    /// and threads that wait sleep. What rounds activations is computed as it is written, not by integers in between,
    /// which change answers by several percent. The processor has kernels for the passes of
    /// [`autodiff::passes`](crate::autodiff::passes); other devices run their definitions.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model, or the folder's path is not UTF-8.
    pub fn session(
        &self,
        model: &ModelProto,
        folder: &Path,
        threads: usize,
    ) -> Result<Session, Error> {
        let folder = name_of(folder)?;
        self.open(model, folder, threads).map_err(engine)
    }

    fn open(&self, model: &ModelProto, folder: &str, threads: usize) -> ort::Result<Session> {
        let builder = Inner::builder(&self.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_log_level(LogLevel::Fatal)?
            .with_deterministic_compute(true)?
            .with_prepacking(packs(model))?
            .with_memory_pattern(false)?
            .with_intra_op_spinning(false)?
            .with_intra_threads(threads)?
            .with_config_entry("session.disable_quant_qdq", "1")?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                folder,
            )?;
        let mut builder = match self.place {
            Place::Cpu => builder.with_operators(kernels::domain()?)?,
            Place::Cuda(number) => builder.with_execution_providers([cuda::provider(number)])?,
        };
        let inner = builder.commit_from_memory(&model.encode_to_vec())?;
        Ok(Session { inner })
    }
}

/// Whether the weights of `model` are small enough to be laid out anew for the processor's products.
fn packs(model: &ModelProto) -> bool {
    let tensors = model.graph.iter().flat_map(|graph| &graph.initializer);
    let elements = tensors.map(preface_graph::onnx::TensorProto::elements);
    elements.sum::<usize>() <= MOST_PACKED
}

/// A folder as ONNX Runtime is told it.
fn name_of(folder: &Path) -> Result<&str, Error> {
    match folder.to_str() {
        Some("") => Ok("."),
        Some(name) => Ok(name),
        None => Err(Error::Options(format!(
            "ONNX Runtime opens no folder whose path is not UTF-8: rename {}, or name a link to it",
            folder.display()
        ))),
    }
}

/// A model that is ready to run.
pub struct Session {
    inner: Inner,
}

impl Session {
    /// Runs the model and returns its outputs in the order of the graph.
    ///
    /// # Errors
    /// When an input is missing or has the wrong shape, or a node fails.
    pub fn run(&mut self, feeds: &[(&str, &Array)]) -> Result<Vec<Array>, Error> {
        let mut inputs: Vec<(Cow<str>, SessionInputValue)> = Vec::with_capacity(feeds.len());
        for (name, array) in feeds {
            inputs.push((Cow::Borrowed(name), array.feed()?));
        }
        let outputs = self.inner.run(inputs).map_err(engine)?;
        let values = outputs.values();
        let fetch = |value: ValueRef<'_, _>| {
            let tensor = value.downcast::<DynTensorValueType>().map_err(engine)?;
            Array::fetch(&tensor)
        };
        values.map(fetch).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{ffi::OsStr, io::Write, os::unix::ffi::OsStrExt, sync::OnceLock};

    use super::*;

    /// The library that `make test` names in `ORT_DYLIB_PATH`; a process has one environment, which tests share.
    pub(crate) fn library() -> Library {
        static SHARED: OnceLock<Library> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let path = std::env::var_os("ORT_DYLIB_PATH")
                .expect("set ORT_DYLIB_PATH to libonnxruntime.so, or run make test");
            Library::load(Path::new(&path)).unwrap()
        });
        Library {
            environment: shared.environment.clone(),
            place: Place::Cpu,
            fallback: None,
        }
    }

    #[test]
    fn a_folder_that_onnx_runtime_cannot_be_told_is_named() {
        let folder = Path::new(OsStr::from_bytes(b"a\xffb"));
        let opened = library().session(&ModelProto::default(), folder, 1);
        let error = opened.err().unwrap().to_string();
        assert!(error.contains("is not UTF-8: rename a\u{fffd}b"), "{error}");
    }

    #[test]
    fn a_missing_library_says_what_to_do() {
        let error = Library::load(Path::new("/nowhere/libonnxruntime.so"))
            .err()
            .unwrap()
            .to_string();
        for part in [
            "/nowhere/libonnxruntime.so",
            "no such file",
            "ORT_DYLIB_PATH",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    fn skip() {
        // Written past the capture of the test harness, which shows nothing of a test that passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: this is a library with CUDA");
    }

    #[test]
    fn auto_runs_on_the_processor_where_the_library_has_no_cuda() {
        let library = library();
        if library.providers().contains(&"cuda") {
            return skip();
        }
        let library = library.on(Device::Auto, &[]).unwrap();
        assert_eq!(library.place(), Place::Cpu);
        let reason = library.fallback().unwrap().to_string();
        assert!(reason.contains("onnxruntime-gpu"), "{reason}");
        cuda::trial(&library).unwrap();
    }

    #[test]
    fn cuda_that_cannot_start_is_an_error_with_a_way_out() {
        let library = library();
        if library.providers().contains(&"cuda") {
            return skip();
        }
        let error = library.on(Device::Cuda(1), &[]).err().unwrap().to_string();
        for part in [
            "cannot run on cuda:1",
            "built without CUDA",
            "onnxruntime-gpu",
            "nvidia-cublas",
            "--device cpu",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_processor_is_no_fallback() {
        let library = library().on(Device::Cpu, &[]).unwrap();
        assert!(library.place() == Place::Cpu && library.fallback().is_none());
    }
}
