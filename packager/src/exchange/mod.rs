//! Prompts of other programs: read into an adapter folder, and written for them.
//!
//! What is read is small, foreign and not trusted: nothing in it is run, no name in it becomes a path, and what has no
//! equal here is refused by name. The base model says which shapes are right.

mod bundle;
mod card;
mod gguf;
mod npy;
mod numpy;
mod ort_adapter;
mod peft;
mod peft_config;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
};

use preface_bundle::Id;
use serde_json::Value;

use crate::{Adapter, Error, Layer};

pub use bundle::adapter_of;
pub use gguf::refuse_gguf;
pub use numpy::{Layout, export_numpy, import_numpy};
pub use ort_adapter::{export_ort_adapter, import_ort_adapter};
pub use peft::import_peft;
pub use peft_config::{Exported, export_peft};

/// What kind of language model a base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseKind {
    /// Every token sees every token.
    Encoder,
    /// A token sees those before it.
    Decoder,
    /// A decoder that reads an encoder's output.
    EncoderDecoder,
}

impl BaseKind {
    fn name(self) -> &'static str {
        match self {
            Self::Encoder => "an encoder",
            Self::Decoder => "a decoder",
            Self::EncoderDecoder => "an encoder-decoder",
        }
    }
}

/// What a foreign prompt is compared with.
#[derive(Clone, Debug)]
pub struct Target {
    /// What kind of model it is.
    pub kind: BaseKind,
    /// Width of its hidden rows.
    pub hidden: u16,
    /// Width of its token embeddings.
    pub embedding_width: u16,
    /// Keys and values of each layer.
    pub layers: Vec<Layer>,
    /// Those of them in which a decoder's tokens look at each other.
    pub decoder_layers: Vec<Layer>,
    /// Whether it gives scores over its vocabulary.
    pub writes: bool,
    /// The token that ends a text.
    pub end_token: Option<u32>,
    /// Its id.
    pub base_id: Id,
    /// Its tokenizer's id.
    pub tokenizer_id: Id,
}

/// What a foreign file does not say.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Names of the labels, in the order of the head's rows.
    pub labels: Vec<String>,
    /// Which hidden rows the head reads: `mean`, `first` or `last`.
    pub pooling: Option<String>,
    /// Which of several tasks in one file.
    pub task_index: Option<usize>,
    /// Tokens of a generated text at most.
    pub most_tokens: u16,
    /// Text around an input.
    pub template: String,
    /// A safetensors file with the model's pooler, where a classifier reads it.
    pub pooler: Option<PathBuf>,
    /// Whether a text may have several labels.
    pub several_labels: bool,
    /// Files that may hold `id2label`, the first that does counts.
    pub model_configs: Vec<PathBuf>,
}

/// A foreign prompt as an adapter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The adapter.
    pub adapter: Adapter,
    /// Its `preface.json`.
    card: Value,
    /// What a reader should know of how it was read.
    pub notes: Vec<String>,
}

impl Imported {
    /// Writes the adapter folder.
    ///
    /// # Errors
    /// [`Error::Write`] and its neighbours, naming the file.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        card::write(folder, &self.adapter, &self.card)
    }
}

fn foreign(path: &Path, problem: impl Into<String>) -> Error {
    Error::Foreign {
        path: path.into(),
        problem: problem.into(),
    }
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.into(),
        source,
    })
}

/// `what` as a number of a bundle.
fn small(path: &Path, what: &str, number: usize) -> Result<u16, Error> {
    u16::try_from(number)
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| {
            let problem =
                format!("{what} is {number}; a bundle holds 1 to 65535: train a shorter one");
            foreign(path, problem)
        })
}
