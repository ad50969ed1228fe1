//! Arrays as a graph takes and gives them.

use ort::{
    session::SessionInputValue,
    value::{DynTensorValueType, Tensor, TensorElementType, TensorRef, ValueRef, ValueType},
};

use super::engine;
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

    /// The integers.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn into_ints(self) -> Result<Vec<i64>, Error> {
        match self {
            Self::Ints(_, values) => Ok(values),
            other => Err(Error::Engine(format!(
                "expected integers of shape {:?}",
                other.shape()
            ))),
        }
    }

    pub(super) fn feed(&self) -> Result<SessionInputValue<'_>, Error> {
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

    pub(super) fn fetch(value: &ValueRef<'_, DynTensorValueType>) -> Result<Self, Error> {
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
