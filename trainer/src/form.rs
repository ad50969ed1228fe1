//! The two forms in which a soft prompt enters a base.

use preface_graph::{Description, FormKind, Kind, LayerGeometry};
use serde::{Deserialize, Serialize};

/// A form and its sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Form {
    /// Rows `[tokens, hidden]` before the text's embeddings.
    Embeddings {
        /// Virtual tokens.
        tokens: usize,
        /// Width of the model.
        hidden: usize,
    },
    /// Keys and values `[2, kv_heads, tokens, head_dim]` before the text's at every layer.
    KeyValues {
        /// Virtual tokens.
        tokens: usize,
        /// Keys and values of each layer.
        layers: Vec<LayerGeometry>,
    },
}

impl Form {
    /// The form of that kind for a base.
    pub fn of(kind: FormKind, tokens: usize, base: &Description) -> Self {
        match kind {
            FormKind::Embeddings => Self::Embeddings {
                tokens,
                hidden: base.hidden,
            },
            FormKind::KeyValues => Self::KeyValues {
                tokens,
                layers: base.layers.clone(),
            },
        }
    }

    /// Virtual tokens.
    pub fn tokens(&self) -> usize {
        let (Self::Embeddings { tokens, .. } | Self::KeyValues { tokens, .. }) = self;
        *tokens
    }

    /// Places that the prompt takes in the sequence: key-values take none.
    pub fn slots(&self) -> usize {
        match self {
            Self::Embeddings { tokens, .. } => *tokens,
            Self::KeyValues { .. } => 0,
        }
    }

    /// The shape of each tensor of a prompt of this form: one, or one a layer.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        match self {
            Self::Embeddings { tokens, hidden } => vec![vec![*tokens, *hidden]],
            Self::KeyValues { tokens, layers } => {
                let shape =
                    |layer: &LayerGeometry| vec![2, layer.kv_heads, *tokens, layer.head_dim];
                layers.iter().map(shape).collect()
            }
        }
    }

    /// Where the text's positions begin.
    pub fn positions(&self, base: &Description) -> PositionPlan {
        let counted = base.kind == Kind::Decoder
            && !base.inputs.past.is_empty()
            && base.inputs.positions.is_none();
        match self {
            Self::Embeddings { .. } => PositionPlan::AfterPrompt,
            Self::KeyValues { .. } if counted => PositionPlan::AfterPrompt,
            Self::KeyValues { .. } => PositionPlan::TextFromZero,
        }
    }
}

/// Which positions the text has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionPlan {
    /// The text's first token has position 0.
    TextFromZero,
    /// The prompt has the first positions and the text those after it.
    AfterPrompt,
}

/// The elements of several tensors, each row-major.
pub type Tensors = Vec<Vec<f32>>;

/// The learned numbers of a prompt: the tensors of its form, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The form.
    pub form: Form,
    /// One tensor for each of [`Form::shapes`].
    pub tensors: Tensors,
}
