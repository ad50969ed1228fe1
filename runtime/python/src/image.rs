//! Base images.

use std::path::PathBuf;

use preface_runtime::image::Kind;
use pyo3::prelude::*;

use crate::failure::Failure;

/// A base image, mapped.
#[pyclass(frozen, module = "preface")]
pub struct Image(pub preface_runtime::Image);

#[pymethods]
impl Image {
    #[new]
    fn new(path: PathBuf) -> Result<Self, Failure> {
        // SAFETY: the declaration asks of the caller that the file does not change while it is open.
        let image = unsafe { preface_runtime::Image::open(&path) }?;
        Ok(Self(image))
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.description().kind {
            Kind::Encoder => "encoder",
            Kind::Decoder => "decoder",
            Kind::EncoderDecoder => "encoder-decoder",
            _ => "other",
        }
    }

    #[getter]
    fn engine(&self) -> String {
        self.0.engine().to_string()
    }

    #[getter]
    fn hidden(&self) -> usize {
        self.0.description().hidden
    }

    #[getter]
    fn layers(&self) -> usize {
        self.0.description().layers.len()
    }

    #[getter]
    fn vocabulary(&self) -> usize {
        self.0.description().vocabulary
    }

    #[getter]
    fn max_positions(&self) -> Option<usize> {
        self.0.description().max_positions
    }
}
