//! What turns the base's output into an answer: each head is a subgraph from its parameters to logits.

mod factored_linear;
mod generation;
mod label_text;
mod linear;
mod tanh_linear;
mod verbaliser;

use preface_graph::{Description, builder::Builder};
use serde::{Deserialize, Serialize};

use crate::{Error, data::AnswerKind, methods::Parameter};

pub use label_text::SCALE as LABEL_TEXT_SCALE;

/// The sizes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSize {
    /// Labels, or the vocabulary.
    pub classes: usize,
    /// Width of the rows that it reads.
    pub width: usize,
    /// Rank of its factors.
    pub rank: usize,
}

/// Which of the base's values a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Hidden rows.
    Hidden,
    /// The rows before the base's own last product, or its logits where they are more than a product with a weight of
    /// floats: scaled, capped or of a quantised weight.
    Projection,
    /// The base's own logits over its vocabulary.
    Logits,
}

impl Reads {
    /// The value's name.
    ///
    /// # Errors
    /// When the base has no logits over its vocabulary.
    pub fn value(self, base: &Description) -> Result<String, Error> {
        if self == Self::Hidden {
            return Ok(base.hidden_rows.clone());
        }
        let logits = base.logits.as_ref().ok_or_else(no_logits)?;
        let projection = logits.projection.as_ref();
        let rows = projection.filter(|_| self == Self::Projection);
        Ok(rows.map_or(&logits.value, |rows| &rows.input).clone())
    }
}

/// What a base without the logits that a head reads is refused with.
pub(crate) fn no_logits() -> Error {
    Error::Options("the base gives no logits over its vocabulary; take a model exported with its language-model head, or another --head".into())
}

/// Shapes of what a head is given and does not learn, by name.
pub type Given = Vec<(&'static str, Vec<usize>)>;

/// A head.
pub struct Head {
    /// The name by which `--head` knows it.
    pub name: &'static str,
    /// What it reads.
    pub reads: Reads,
    /// The kinds of answers that it gives.
    pub answers: &'static [AnswerKind],
    /// What it trains.
    pub parameters: fn(HeadSize) -> Vec<Parameter>,
    /// What it is given: tensors made of the label names before training.
    pub given: fn(HeadSize) -> Given,
    /// Writes the subgraph from rows `[readings, width]` to logits `[readings, classes]`; the names are those of the
    /// parameters, then of what it is given.
    pub subgraph: fn(&mut Builder, HeadSize, &str, &[String]) -> String,
    /// Parameters that start from random numbers, by their index; all others start from zeros.
    pub random: &'static [usize],
    /// The tensors' names in an adapter folder, in the order of the parameters.
    pub stored: &'static [&'static str],
}

impl Head {
    /// Whether it has a rank to choose.
    pub fn is_factored(&self) -> bool {
        let parameters = |rank| {
            (self.parameters)(HeadSize {
                classes: 2,
                width: 2,
                rank,
            })
        };
        parameters(1) != parameters(2)
    }

    /// Its sizes over a base, for `classes` labels.
    pub fn size(&self, classes: usize, rank: usize, base: &Description) -> HeadSize {
        let logits = base.logits.as_ref();
        let projection = logits.and_then(|logits| logits.projection.as_ref());
        let vocabulary = logits.map_or(0, |logits| logits.vocabulary);
        let width = match self.reads {
            Reads::Hidden => base.hidden,
            Reads::Projection => projection.map_or(vocabulary, |projection| projection.width),
            Reads::Logits => vocabulary,
        };
        let classes = match self.reads {
            Reads::Logits => width,
            Reads::Hidden | Reads::Projection => classes,
        };
        HeadSize {
            classes,
            width,
            rank,
        }
    }
}

const NOTHING: fn(HeadSize) -> Given = |_| Vec::new();
const ONE_OR_MORE_LABELS: &[AnswerKind] = &[AnswerKind::Label, AnswerKind::Labels];
const WEIGHT: &str = "base_model.classifier.weight";
const BIAS: &str = "base_model.classifier.bias";
const FACTORS: [&str; 2] = ["preface.head.factor.0", "preface.head.factor.1"];

/// Every head, sorted by name.
pub const HEADS: &[Head] = &[
    factored_linear::HEAD,
    generation::HEAD,
    label_text::HEAD,
    linear::HEAD,
    tanh_linear::HEAD,
    linear::TOKEN_HEAD,
    verbaliser::HEAD,
];

/// The head of that name.
///
/// # Errors
/// When there is none; the error lists those that there are.
pub fn head(name: &str) -> Result<&'static Head, Error> {
    HEADS.iter().find(|head| head.name == name).ok_or_else(|| {
        let known: Vec<&str> = HEADS.iter().map(|head| head.name).collect();
        Error::Options(format!(
            "there is no head {name}; choose one of {}",
            known.join(", ")
        ))
    })
}

/// The head that answers of a kind get where none is named.
pub fn usual(kind: AnswerKind) -> &'static Head {
    match kind {
        AnswerKind::Label | AnswerKind::Labels => &linear::HEAD,
        AnswerKind::Tags => &linear::TOKEN_HEAD,
        AnswerKind::Text => &generation::HEAD,
    }
}

/// Which rows of the base's output a head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean over the text's tokens.
    #[default]
    Mean,
    /// The text's first token.
    First,
    /// The last token: of the text, or of a prompt behind it.
    Last,
    /// The mask token that the template puts beside the text.
    Mask,
    /// The first row of a prompt before the text, on an encoder.
    Prompt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_unique() {
        assert!(HEADS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_kind_of_answer_has_a_usual_head_that_gives_it() {
        use AnswerKind::{Label, Labels, Tags, Text};
        for kind in [Label, Labels, Tags, Text] {
            assert!(usual(kind).answers.contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn every_parameter_has_a_name_in_the_folder() {
        let size = HeadSize {
            classes: 3,
            width: 4,
            rank: 2,
        };
        for head in HEADS {
            assert_eq!(
                (head.parameters)(size).len(),
                head.stored.len(),
                "{}",
                head.name
            );
        }
    }
}
