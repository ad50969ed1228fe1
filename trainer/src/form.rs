//! The two forms in which a soft prompt enters a base.

use preface_graph::{Description, FormKind, Kind, LayerGeometry};
use serde::{Deserialize, Serialize};

/// A form and its sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Form {
    /// Rows `[tokens, embedding width]` among the text's embeddings.
    Embeddings {
        /// Virtual tokens.
        tokens: usize,
        /// Width of the embeddings.
        hidden: usize,
        /// Where they stand; the position plan of an adapter says it.
        #[serde(skip)]
        place: Place,
    },
    /// Keys and values `[2, kv_heads, tokens, head_dim]` before the text's at some layers.
    KeyValues {
        /// Virtual tokens.
        tokens: usize,
        /// The first layer that has a prefix, counted from 0.
        #[serde(default)]
        first_layer: usize,
        /// Keys and values of each layer that has a prefix: those from the first on.
        layers: Vec<LayerGeometry>,
        /// Whether a number is added to the attention scores of each layer's prefix.
        #[serde(default)]
        gated: bool,
        /// What begins behind the prefix on a base that does not count it. The position plan of an adapter says it.
        #[serde(skip)]
        moves: Moves,
    },
}

/// Where the rows of a prompt stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Before the text.
    #[default]
    Before,
    /// Behind the text and before what is generated.
    After,
}

/// What stands behind as many places as a prefix has tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moves {
    /// Nothing.
    #[default]
    Nothing,
    /// The text, behind places that nobody attends to.
    Text,
    /// The tokens of a decoder behind an encoder, behind places whose keys and values are the prefix's.
    Decoder,
}

impl Form {
    /// The form of that kind at every layer of a base, without gates.
    pub fn of(kind: FormKind, tokens: usize, base: &Description) -> Self {
        match kind {
            FormKind::Embeddings => Self::Embeddings {
                tokens,
                hidden: base.embedding_width,
                place: Place::Before,
            },
            FormKind::KeyValues => Self::KeyValues {
                tokens,
                first_layer: 0,
                layers: base.layers.clone(),
                gated: false,
                moves: Moves::Nothing,
            },
        }
    }

    /// Virtual tokens.
    pub fn tokens(&self) -> usize {
        let (Self::Embeddings { tokens, .. } | Self::KeyValues { tokens, .. }) = self;
        *tokens
    }

    /// Places that the prompt takes in the sequence: key-values take none, unless they move the text.
    pub fn slots(&self) -> usize {
        match self {
            Self::Embeddings { .. } => self.tokens(),
            Self::KeyValues { .. } if self.moves() == Moves::Text => self.tokens(),
            Self::KeyValues { .. } => 0,
        }
    }

    /// Places that the prompt takes before the tokens of a decoder behind an encoder.
    pub fn decoder_slots(&self) -> usize {
        match self.moves() {
            Moves::Decoder => self.tokens(),
            Moves::Nothing | Moves::Text => 0,
        }
    }

    /// What a prefix moves.
    pub fn moves(&self) -> Moves {
        match self {
            Self::KeyValues { moves, .. } => *moves,
            Self::Embeddings { .. } => Moves::Nothing,
        }
    }

    /// Where those places are.
    pub fn place(&self) -> Place {
        match self {
            Self::Embeddings { place, .. } => *place,
            Self::KeyValues { .. } => Place::Before,
        }
    }

    /// Whether the prefix has a gate at each layer.
    pub fn gated(&self) -> bool {
        matches!(self, Self::KeyValues { gated: true, .. })
    }

    /// The shape of each tensor of a prompt of this form: one, or one a layer and the gates `[layers]` last.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        match self {
            Self::Embeddings { tokens, hidden, .. } => vec![vec![*tokens, *hidden]],
            Self::KeyValues {
                tokens,
                layers,
                gated,
                ..
            } => {
                let shape =
                    |layer: &LayerGeometry| vec![2, layer.kv_heads, *tokens, layer.head_dim];
                let gates = gated.then(|| vec![layers.len()]);
                layers.iter().map(shape).chain(gates).collect()
            }
        }
    }

    /// Where the text's positions begin.
    pub fn positions(&self, base: &Description) -> PositionPlan {
        let counted = base.kind == Kind::Decoder
            && !base.inputs.past.is_empty()
            && base.inputs.positions.is_none();
        match self {
            Self::Embeddings { place, .. } => match place {
                Place::Before => PositionPlan::AfterPrompt,
                Place::After => PositionPlan::TextFromZero,
            },
            Self::KeyValues {
                moves: Moves::Text, ..
            } => PositionPlan::AfterPrompt,
            Self::KeyValues {
                moves: Moves::Decoder,
                ..
            } => PositionPlan::DecoderAfterPrompt,
            Self::KeyValues { layers, .. } if counted && layers.len() == base.layers.len() => {
                PositionPlan::AfterPrompt
            }
            Self::KeyValues { .. } => PositionPlan::TextFromZero,
        }
    }

    /// Positions that the prompt takes from the text.
    pub fn taken(&self, base: &Description) -> usize {
        let counted = self.positions(base) == PositionPlan::AfterPrompt;
        match self {
            Self::KeyValues { .. } if !counted => 0,
            _ => self.tokens(),
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
    /// The prefix stands for tokens before the first of a decoder behind an encoder, at the decoder's own attentions
    /// alone.
    DecoderAfterPrompt,
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

/// Keys and values as PEFT lays them out: for each token the rows of every layer, keys of all heads before values.
pub fn rows_by_token(form: &Form, tensors: &[Vec<f32>]) -> Vec<f32> {
    let Form::KeyValues { tokens, layers, .. } = form else {
        return tensors.concat();
    };
    let mut rows = Vec::new();
    for token in 0..*tokens {
        for (layer, tensor) in layers.iter().zip(tensors) {
            for head in 0..2 * layer.kv_heads {
                let start = (head * tokens + token) * layer.head_dim;
                rows.extend_from_slice(&tensor[start..start + layer.head_dim]);
            }
        }
    }
    rows
}

/// The tensors of a form from rows as [`rows_by_token`] gives them.
pub fn from_rows_by_token(form: &Form, rows: Vec<f32>) -> Tensors {
    let Form::KeyValues { tokens, layers, .. } = form else {
        return vec![rows];
    };
    let mut rest = rows.as_slice();
    let size = |layer: &LayerGeometry| 2 * layer.kv_heads * tokens * layer.head_dim;
    let mut tensors: Tensors = layers.iter().map(|layer| vec![0.0; size(layer)]).collect();
    for token in 0..*tokens {
        for (layer, tensor) in layers.iter().zip(&mut tensors) {
            for head in 0..2 * layer.kv_heads {
                let (row, behind) = rest.split_at(layer.head_dim);
                let start = (head * tokens + token) * layer.head_dim;
                tensor[start..start + layer.head_dim].copy_from_slice(row);
                rest = behind;
            }
        }
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_before_values_as_in_peft() {
        let layers = vec![LayerGeometry {
            kv_heads: 2,
            head_dim: 1,
        }];
        let form = Form::KeyValues {
            tokens: 2,
            first_layer: 0,
            layers,
            gated: false,
            moves: Moves::Nothing,
        };
        let tensors = vec![vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]];
        let rows = rows_by_token(&form, &tensors);
        assert_eq!(rows, [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        assert_eq!(from_rows_by_token(&form, rows), tensors);
    }
}
