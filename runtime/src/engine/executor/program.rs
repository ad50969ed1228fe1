//! What the executor runs: a list of fused steps over rows of numbers, one row a token.
//!
//! A step is a product with a packed weight, an attention, or a chain of operations that each row can do by itself.
//! Rows live in slots; what only one chain needs lives in scratch space of one row.

mod check;
mod written;

use serde::{Deserialize, Serialize};

use super::past::Half;
pub(crate) use check::Sizes;

/// The steps that turn a text's embedding rows into its hidden rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Numbers of one row of each slot; the first holds the embedding rows.
    pub slots: Vec<usize>,
    /// Numbers of the scratch space of one row.
    pub scratch: usize,
    /// Rows that the tables of positions have.
    pub max_rows: usize,
    /// Whether the positions of the text follow those of a prefix of all layers.
    pub counted: bool,
    /// Whether a prefix of all layers is a cache of the base's, from which masks and distances go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub caches: bool,
    /// The token that the base's positions leave out: it pads, and is in no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<u32>,
    pub steps: Vec<Step>,
    /// Where the hidden rows are in the end.
    pub output: Columns,
    /// What makes a score for each token of the vocabulary of a hidden row; `None` where the base has no such head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<Logits>,
    /// What reads a text before the program goes on token by token; `None` where the program reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Encoder>,
}

/// The steps that turn a text's embedding rows into the keys and values that a decoder's tokens look at. They have slots
/// and scratch space of their own, which the program's take again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Encoder {
    /// As of [`Program`].
    pub slots: Vec<usize>,
    pub scratch: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<u32>,
    pub steps: Vec<Step>,
}

/// The steps that turn one hidden row into scores of the vocabulary. They have slots and scratch space of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Logits {
    /// As of [`Program`], for one row; the first holds the hidden row.
    pub slots: Vec<usize>,
    pub scratch: usize,
    pub steps: Vec<Step>,
    pub output: Columns,
    /// How many scores.
    pub vocabulary: usize,
}

/// Columns of a slot, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Columns {
    pub slot: usize,
    pub first: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    Product(Product),
    Tied(Tied),
    Attend(Attend),
    Keep(Keep),
    Rows(Vec<RowStep>),
}

/// `output = input weight + bias + residual`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Product {
    /// Which packed weight, `[inputs, outputs]`.
    pub weight: usize,
    /// Where the bias begins among the constants.
    pub bias: Option<usize>,
    pub input: Columns,
    pub residual: Option<Columns>,
    pub output: Columns,
}

/// `output = table input + bias` with the embedding table `[vocabulary, hidden]`, of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tied {
    /// Where the bias begins among the constants.
    pub bias: Option<usize>,
    pub input: Columns,
    pub output: Columns,
}

/// `softmax(scale queries keys^T + bias) values`, head by head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attend {
    /// The layer whose prefix stands before the text's keys and values.
    pub layer: usize,
    pub heads: usize,
    /// Heads of the keys and values; each serves as many neighbouring heads of the queries.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Numbers of one head's value.
    pub value_dim: usize,
    pub query: Heads,
    /// Keys and values of the text itself; `None` where its tokens look at those that an encoder kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<KeyHeads>,
    /// Heads side by side.
    pub output: Columns,
    pub scale: f32,
    /// Scores `s` become `cap tanh(s / cap)`.
    pub cap: Option<f32>,
    /// What is added to scores by how far a key is from its query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distances: Option<Distances>,
    pub mask: Mask,
}

/// Keeps a text's keys and values for attentions of a layer that have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keep {
    pub layer: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub from: KeyHeads,
}

/// Keys and values by head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyHeads {
    pub key: Heads,
    pub value: Heads,
}

/// A table among the constants, `[heads, before + 1 + after]`: a number for each distance from `before` tokens back to
/// `after` ahead. Tokens that are farther are as the farthest; those of a prefix have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Distances {
    /// Where it begins.
    pub first: usize,
    pub before: usize,
    pub after: usize,
}

/// Where the heads of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heads {
    pub slot: usize,
    pub first: usize,
    /// Numbers from one head to the next; the numbers of one head are neighbours.
    pub step: usize,
}

/// Which tokens of the text a token sees: the `before` last ones, itself, and the `after` next ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mask {
    /// All where left out.
    pub before: Option<usize>,
    /// All where left out.
    pub after: Option<usize>,
}

/// One operation on one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowStep {
    pub function: Function,
    pub inputs: Vec<Operand>,
    pub output: Operand,
    /// How often along each dimension, the last one innermost.
    pub dims: [usize; 3],
}

/// Numbers of a row, or that a row reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operand {
    pub source: Source,
    /// Of the first row.
    pub first: usize,
    /// From one to the next along each dimension; 0 repeats.
    pub strides: [usize; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// The row in a slot.
    Slot(usize),
    /// The scratch space.
    Scratch,
    /// The constants, the same for every row.
    Constant,
    /// A table among the constants whose rows are so many numbers long: the row of the position.
    Position(usize),
    /// The same for the token type.
    Type(usize),
}

/// What an operation computes. Names and formulas are those of the ONNX operators.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Function {
    Copy,
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Neg,
    Sqrt,
    Reciprocal,
    Exp,
    Erf,
    Tanh,
    Sigmoid,
    Relu,
    Abs,
    /// `x^exponent`.
    Power(f32),
    /// Over the last dimension, as are the other reductions.
    Mean,
    Sum,
    Largest,
    /// `(x - mean) / sqrt(variance + epsilon) scale + shift` over the last dimension.
    Normalise {
        epsilon: f32,
    },
    /// `x / sqrt(mean of x^2 + epsilon) scale` over the last dimension.
    RmsNormalise {
        epsilon: f32,
    },
}

impl Function {
    /// Operands that it reads.
    pub fn arity(self) -> usize {
        match self {
            Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Max | Self::Min => 2,
            Self::RmsNormalise { .. } => 2,
            Self::Normalise { .. } => 3,
            _ => 1,
        }
    }

    /// Whether it makes one number of each innermost run.
    pub fn reduces(self) -> bool {
        matches!(self, Self::Mean | Self::Sum | Self::Largest)
    }
}

impl KeyHeads {
    pub fn half(&self, half: Half) -> Heads {
        match half {
            Half::Keys => self.key,
            Half::Values => self.value,
        }
    }
}

impl Distances {
    /// Numbers of one head.
    pub fn width(&self) -> usize {
        self.before.saturating_add(self.after).saturating_add(1)
    }
}

impl Step {
    pub fn as_attend(&self) -> Option<&Attend> {
        match self {
            Self::Attend(attend) => Some(attend),
            _ => None,
        }
    }
}
