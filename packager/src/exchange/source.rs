//! Tensors of a foreign safetensors file.

use std::path::Path;

use preface_bundle::MAX_VALUE;
use safetensors::SafeTensors;

use super::foreign;
use crate::{Error, adapter::floats};

/// A safetensors file that another program wrote.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl<'a> Source<'a> {
    /// Reads the header of `bytes`, the content of `path`.
    pub fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self, Error> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|source| {
            let problem = format!(
                "no whole safetensors file ({source}); copy it again, or save it again with PEFT"
            );
            foreign(path, problem)
        })?;
        Ok(Self { path, tensors })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        names
    }

    /// The shape of a tensor that must be there.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, Error> {
        let tensor = self.tensors.tensor(name);
        tensor.map(|tensor| tensor.shape().to_vec()).map_err(|_| {
            let problem = format!("the tensor {name} is missing; it has {:?}", self.names());
            foreign(self.path, problem)
        })
    }

    /// The values of a tensor that must have this shape, because of what `because` says.
    pub fn values(&self, name: &str, shape: &[usize], because: &str) -> Result<Vec<f32>, Error> {
        let found = self.shape(name)?;
        if found != shape {
            let problem = format!("{name} is {found:?}, expected {shape:?}: {because}");
            return Err(foreign(self.path, problem));
        }
        let view = self
            .tensors
            .tensor(name)
            .map_err(|source| Error::Safetensors {
                path: self.path.into(),
                source,
            })?;
        let values = floats(&view).ok_or_else(|| {
            let problem = format!(
                "{name} has numbers of type {:?}; save it as F32, F16 or BF16",
                view.dtype()
            );
            foreign(self.path, problem)
        })?;
        check_values(self.path, name, &values)?;
        Ok(values)
    }
}

/// Refuses what no trained prompt has.
pub(super) fn check_values(path: &Path, name: &str, values: &[f32]) -> Result<(), Error> {
    let bad = |value: &&f32| !value.is_finite() || value.abs() > MAX_VALUE;
    match values.iter().find(bad) {
        Some(value) => {
            let problem = format!(
                "{name} holds {value}, not a finite number of at most {MAX_VALUE}: the training diverged or the file is \
                 damaged; train it again with a smaller learning rate, or copy it again"
            );
            Err(foreign(path, problem))
        }
        None => Ok(()),
    }
}
