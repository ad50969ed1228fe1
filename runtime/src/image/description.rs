//! What an image says about the base model in it.

use std::collections::HashSet;

use preface_bundle::Id;
use serde::{Deserialize, Serialize};

/// How a base model reads and writes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// Every token sees every token.
    Encoder,
    /// A token sees itself and those before it.
    Decoder,
    /// An encoder that a decoder reads.
    EncoderDecoder,
}

/// The shape of one layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Heads that share one key and value.
    pub kv_heads: usize,
    /// Numbers in one key.
    pub head_dim: usize,
}

/// What a base model is, as far as running prompts on it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// How it reads text.
    pub kind: Kind,
    /// Numbers in one row between layers.
    pub hidden: usize,
    /// Numbers in an embedding row, where they are others: see [`Description::embedding_width`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_width: Option<usize>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Tokens that the base has positions for; `None` where nothing bounds them.
    pub max_positions: Option<usize>,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// The token that stands in a prompt's slots where a graph still reads ids.
    pub placeholder: u32,
    /// The token that hides another, where the tokenizer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<u32>,
    /// The token that a decoder behind an encoder begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
    /// Names the frozen weights.
    #[serde(with = "super::hex")]
    pub base_id: Id,
    /// Names the tokenizer: SHA-256 of `tokenizer.json`.
    #[serde(with = "super::hex")]
    pub tokenizer_id: Id,
    /// The program's inputs.
    pub inputs: Inputs,
}

impl Description {
    /// Numbers in an embedding row, a prompt's among them.
    pub fn embedding_width(&self) -> usize {
        self.embedding_width.unwrap_or(self.hidden)
    }
}

/// Names of the program's inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// `f32 [1, sequence, embedding width]`: prompt rows and embedding rows.
    pub embeddings: String,
    /// `i64 [1, sequence]`: token ids, where a program still reads them.
    pub ids: Option<String>,
    /// `i64 [1, sequence]`: one for every row.
    pub mask: Option<String>,
    /// `i64 [1, sequence]`: zero for every row of a prompt or a single text.
    pub token_types: Option<String>,
    /// `i64 [1, sequence]`: 0, 1, 2 and so on.
    pub positions: Option<String>,
    /// The prefix of every layer, in layer order.
    pub prefixes: Vec<PrefixInputs>,
    /// Whether a layer may be without a prefix that others have.
    #[serde(default)]
    pub partial: bool,
}

impl Inputs {
    /// All the names.
    pub fn names(&self) -> HashSet<&str> {
        let optional = [&self.ids, &self.mask, &self.token_types, &self.positions];
        let prefixes = self
            .prefixes
            .iter()
            .flat_map(|layer| [Some(&layer.key), Some(&layer.value), layer.gate.as_ref()])
            .flatten();
        let names = optional.into_iter().flatten().chain(prefixes);
        names
            .chain([&self.embeddings])
            .map(String::as_str)
            .collect()
    }
}

/// Names of one layer's prefix inputs: keys and values, each `f32 [1, kv_heads, prefix, head_dim]`, and the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixInputs {
    /// The keys.
    pub key: String,
    /// The values.
    pub value: String,
    /// `f32 [1]`: added to the attention scores of the prefix; images of old have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
}
