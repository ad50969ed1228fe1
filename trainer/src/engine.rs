//! ONNX Runtime, loaded at run time: the only file that names it.

use std::{borrow::Cow, ffi::OsStr, path::Path};

use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session as Inner, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynTensorValueType, Tensor, TensorElementType, TensorRef, ValueRef, ValueType},
};
use preface_graph::onnx::ModelProto;
use prost::Message;

use crate::Error;

/// An array on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// 32-bit floats.
    Floats(Vec<i64>, Vec<f32>),
    /// 64-bit integers.
    Ints(Vec<i64>, Vec<i64>),
    /// Truth values.
    Truths(Vec<i64>, Vec<bool>),
}

impl Array {
    /// Floats of a shape.
    pub fn floats(shape: &[usize], values: Vec<f32>) -> Self {
        Self::Floats(dims(shape), values)
    }

    /// Integers of a shape.
    pub fn ints(shape: &[usize], values: Vec<i64>) -> Self {
        Self::Ints(dims(shape), values)
    }

    /// The shape.
    pub fn shape(&self) -> &[i64] {
        let (Self::Floats(shape, _) | Self::Ints(shape, _) | Self::Truths(shape, _)) = self;
        shape
    }

    /// The floats.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn into_floats(self) -> Result<Vec<f32>, Error> {
        match self {
            Self::Floats(_, values) => Ok(values),
            other => Err(Error::Engine(format!(
                "expected floats of shape {:?}",
                other.shape()
            ))),
        }
    }

    fn feed(&self) -> Result<SessionInputValue<'_>, Error> {
        let value = match self {
            Self::Floats(shape, values) => {
                TensorRef::from_array_view((shape.clone(), values.as_slice())).map(Into::into)
            }
            Self::Ints(shape, values) => {
                TensorRef::from_array_view((shape.clone(), values.as_slice())).map(Into::into)
            }
            Self::Truths(shape, values) => Tensor::from_array((shape.clone(), values.clone()))
                .map(|tensor| tensor.into_dyn().into()),
        };
        value.map_err(engine)
    }

    fn fetch(value: &ValueRef<'_, DynTensorValueType>) -> Result<Self, Error> {
        let ValueType::Tensor { ty, .. } = value.dtype() else {
            return Err(Error::Engine("an output is no tensor".into()));
        };
        match ty {
            TensorElementType::Float32 => {
                let (shape, values) = value.try_extract_tensor::<f32>().map_err(engine)?;
                Ok(Self::Floats(shape.to_vec(), values.to_vec()))
            }
            TensorElementType::Int64 => {
                let (shape, values) = value.try_extract_tensor::<i64>().map_err(engine)?;
                Ok(Self::Ints(shape.to_vec(), values.to_vec()))
            }
            TensorElementType::Bool => {
                let (shape, values) = value.try_extract_tensor::<bool>().map_err(engine)?;
                Ok(Self::Truths(shape.to_vec(), values.to_vec()))
            }
            other => Err(Error::Engine(format!(
                "an output has element type {other:?}"
            ))),
        }
    }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| dim as i64).collect()
}

fn engine<T>(error: ort::Error<T>) -> Error {
    Error::Engine(error.to_string().trim().replace('\n', " "))
}

/// A loaded `libonnxruntime`.
pub struct Library {
    environment: Environment,
}

impl Library {
    /// Loads the shared library at `path`.
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
        Ok(Self { environment })
    }

    /// The version and build of the loaded library.
    pub fn info(&self) -> String {
        ort::info().to_owned()
    }

    /// Prepares `model` to run on `threads` threads; external data is looked for in `folder`.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model.
    pub fn session(
        &self,
        model: &ModelProto,
        folder: &Path,
        threads: usize,
    ) -> Result<Session, Error> {
        self.open(model, folder, threads).map_err(engine)
    }

    fn open(&self, model: &ModelProto, folder: &Path, threads: usize) -> ort::Result<Session> {
        let mut builder = Inner::builder(&self.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_log_level(LogLevel::Fatal)?
            .with_deterministic_compute(true)?
            .with_prepacking(false)?
            .with_intra_threads(threads)?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                text(folder.as_os_str()),
            )?;
        let inner = builder.commit_from_memory(&model.encode_to_vec())?;
        Ok(Session { inner })
    }
}

fn text(path: &OsStr) -> Cow<'_, str> {
    match path.is_empty() {
        true => Cow::Borrowed("."),
        false => path.to_string_lossy(),
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
    use super::*;

    /// The library that `make test` names in `ORT_DYLIB_PATH`.
    pub(crate) fn library() -> Library {
        let path = std::env::var_os("ORT_DYLIB_PATH")
            .expect("set ORT_DYLIB_PATH to libonnxruntime.so, or run make test");
        Library::load(Path::new(&path)).unwrap()
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
}
