//! What a training needs to go on after it was killed: one file, replaced after every epoch.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error,
    adapter::{read, rename, write_beside},
    progress::EpochFigures,
};

const STATE: &str = "preface";

/// Where checkpoints are kept, and what to do with one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// The file.
    pub path: PathBuf,
    /// Whether training goes on from it.
    pub start: Start,
}

/// Where training starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the beginning.
    #[default]
    Anew,
    /// Where the checkpoint was written, or at the beginning where there is none.
    Resume,
}

/// A training between two epochs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Small things.
    pub state: State,
    /// Values of every parameter of every candidate.
    pub values: Vec<Vec<f32>>,
    /// The optimizer's moments of each.
    pub moments: Vec<[Vec<f32>; 2]>,
    /// Values at the best epoch, for each candidate that had one.
    pub best: Vec<Vec<Vec<f32>>>,
}

/// The small things of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Digest of options, data and base: another training does not go on from this one.
    pub training: String,
    /// Epochs done.
    pub epoch: usize,
    /// Steps done by the optimizer.
    pub step: u32,
    /// Wall time so far.
    pub seconds: f64,
    /// Figures of every epoch of every candidate.
    pub history: Vec<EpochFigures>,
    /// The best epoch of each candidate.
    pub best_epochs: Vec<usize>,
    /// Its score on dev and its loss there, negative.
    pub best_scores: Vec<(f64, f64)>,
}

impl State {
    fn of(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_value(from_bits(serde_json::from_str(text)?))
    }
}

/// What stands before the bits of a number.
const BITS: &str = "f64:";

/// Every number with a fraction as its bits, since decimal digits may come back with another last bit.
fn in_bits(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let bits = number.as_f64().unwrap_or_default().to_bits();
            Value::String(format!("{BITS}{bits:016x}"))
        }
        Value::Array(values) => values.into_iter().map(in_bits).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            fields.map(|(name, value)| (name, in_bits(value))).collect()
        }
        other => other,
    }
}

/// The numbers that [`in_bits`] wrote.
fn from_bits(value: Value) -> Value {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix(BITS)?, 16).ok();
    match value {
        Value::String(text) => match number(&text) {
            Some(bits) => f64::from_bits(bits).into(),
            None => Value::String(text),
        },
        Value::Array(values) => values.into_iter().map(from_bits).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            fields
                .map(|(name, value)| (name, from_bits(value)))
                .collect()
        }
        other => other,
    }
}

impl Checkpoint {
    /// Writes the file beside its place and renames it.
    ///
    /// # Errors
    /// When it cannot be written; the one before stays.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let unfit = |reason: String| Error::Adapter {
            path: path.into(),
            reason,
        };
        let named = self.named();
        let bytes: Vec<(String, Vec<u8>)> = named
            .into_iter()
            .map(|(name, values)| {
                (
                    name,
                    values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect(),
                )
            })
            .collect();
        let mut views = Vec::new();
        for (name, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / size_of::<f32>()], bytes);
            views.push((
                name.as_str(),
                view.map_err(|error| unfit(error.to_string()))?,
            ));
        }
        let state = serde_json::to_value(&self.state).map_err(|error| unfit(error.to_string()))?;
        let metadata = HashMap::from([(STATE.to_owned(), in_bits(state).to_string())]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|error| unfit(error.to_string()))?;
        write_beside(path, &bytes)?;
        rename(path)
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// When it is no checkpoint of this training.
    pub fn read(path: &Path, training: &str) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let wrong = |reason: String| Error::Adapter {
            path: path.into(),
            reason,
        };
        let bytes = read(path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
        let state = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(STATE));
        let state = state.ok_or_else(|| wrong("is no checkpoint".into()))?;
        let state = State::of(state).map_err(|error| wrong(error.to_string()))?;
        if state.training != training {
            return Err(wrong(
                "is of a training with other options, data or base; go on with those, or leave --resume out".into(),
            ));
        }
        let floats = |name: String| {
            let tensor = tensors.tensor(&name).ok()?;
            Some(
                tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&chunk| f32::from_le_bytes(chunk))
                    .collect::<Vec<f32>>(),
            )
        };
        let all = |prefix: &str| {
            (0..)
                .map_while(|index| floats(format!("{prefix}.{index}")))
                .collect::<Vec<_>>()
        };
        let pairs = all("moment.0").into_iter().zip(all("moment.1"));
        Ok(Some(Self {
            values: all("value"),
            moments: pairs.map(|(first, second)| [first, second]).collect(),
            best: (0..state.best_epochs.len())
                .map(|candidate| all(&format!("best.{candidate}")))
                .collect(),
            state,
        }))
    }

    /// Epochs that the checkpoint at `path` has behind it, of whatever training; `None` where there is none.
    pub fn epoch(path: &Path) -> Option<usize> {
        let bytes = read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let state = header.metadata().as_ref()?.get(STATE)?;
        State::of(state).ok().map(|state| state.epoch)
    }

    fn named(&self) -> Vec<(String, &Vec<f32>)> {
        let values = self
            .values
            .iter()
            .enumerate()
            .map(|(index, values)| (format!("value.{index}"), values));
        let moments = self
            .moments
            .iter()
            .enumerate()
            .flat_map(|(index, moments)| {
                moments
                    .iter()
                    .enumerate()
                    .map(move |(which, values)| (format!("moment.{which}.{index}"), values))
            });
        let best = self.best.iter().enumerate().flat_map(|(candidate, best)| {
            best.iter()
                .enumerate()
                .map(move |(index, values)| (format!("best.{candidate}.{index}"), values))
        });
        values.chain(moments).chain(best).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn figures_keep_their_last_bit() {
        let numbers: Vec<f64> = (1..2000)
            .map(|at| (f64::from(at) * 0.37).sin() / 3.0)
            .collect();
        let state = State {
            training: "f64:no bits".into(),
            best_scores: numbers.iter().map(|&number| (number, 2.0)).collect(),
            ..State::default()
        };
        let text = in_bits(serde_json::to_value(&state).unwrap()).to_string();
        assert_eq!(State::of(&text).unwrap(), state);
    }

    #[test]
    fn what_is_written_is_read_by_the_same_training_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.checkpoint");
        assert_eq!(Checkpoint::read(&path, "a").unwrap(), None);
        let checkpoint = Checkpoint {
            state: State {
                training: "a".into(),
                epoch: 3,
                best_epochs: vec![2, 3],
                best_scores: vec![(0.5, -1.0), (0.25, -0.1)],
                ..State::default()
            },
            values: vec![vec![1.0, 2.0], vec![0.1]],
            moments: vec![
                [vec![0.5, 0.25], vec![1e-30, f32::MIN_POSITIVE]],
                [vec![3.0], vec![]],
            ],
            best: vec![vec![vec![1.0]], vec![vec![2.0], vec![3.0]]],
        };
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path, "a").unwrap().unwrap(), checkpoint);
        let error = Checkpoint::read(&path, "b").unwrap_err().to_string();
        assert!(error.contains("other options, data or base"), "{error}");
        fs::write(&path, "x").unwrap();
        assert!(Checkpoint::read(&path, "a").is_err());
    }
}
