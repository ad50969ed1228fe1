//! What to train, and how.

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    encode::{Overlength, TEXT},
    form::Place,
    heads::Pooling,
    optimizer::{Decay, Rule},
    seedbed::Init,
};

/// What to train, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the method.
    pub method: String,
    /// Virtual tokens.
    pub tokens: usize,
    /// Layers that get a prefix.
    pub layers: Layers,
    /// Where the rows of a prompt stand.
    pub place: Place,
    /// Width of the narrow layer of a reparameterisation.
    pub bottleneck: usize,
    /// Rank of a factored prompt.
    pub rank: usize,
    /// Name of the head; the usual one for the answers where `None`.
    pub head: Option<String>,
    /// Rank of a factored head.
    pub head_rank: usize,
    /// Which rows the head reads; what suits the base where `None`.
    pub pooling: Option<Pooling>,
    /// What surrounds a text; `{text}` stands for it.
    pub template: String,
    /// Worked examples that stand before every text.
    pub examples: String,
    /// Words that speak for the labels, in the order of the sorted labels; the labels themselves where empty.
    pub words: Vec<String>,
    /// What the prompt starts from.
    pub init: Init,
    /// Passes over the training data.
    pub epochs: usize,
    /// Epochs without a better one after which training stops; never where `None`.
    pub patience: Option<usize>,
    /// Rows a step, of each candidate.
    pub batch: usize,
    /// Prompts that are trained at once.
    pub candidates: Vec<Candidate>,
    /// The optimizer.
    pub optimizer: Rule,
    /// How learning rates fall.
    pub decay: Decay,
    /// Part of the steps over which they rise.
    pub warm_up: f64,
    /// Largest Euclidean norm of a candidate's gradient.
    pub clip: f32,
    /// Weight decay of the head.
    pub weight_decay: f32,
    /// Part of the numbers that dropout takes, from 0 up to but not including 1; what suits the base where `None`.
    pub dropout: Option<f32>,
    /// What the answers of two draws of dropout count by how far they are apart, for which every row is taken twice (R-Drop,
    /// Wu et al. 2021); 0 where each is drawn for once.
    pub consistency: f32,
    /// What products of a step read.
    pub precision: Precision,
    /// How classes count in the loss.
    pub class_weights: ClassWeights,
    /// The label of dev and test texts that have none of the labels.
    pub out_of_scope: Option<String>,
    /// Threads of ONNX Runtime. Results depend on their number in the last bits.
    pub threads: usize,
    /// What happens to texts that are too long.
    pub overlength: Overlength,
    /// Bytes that cached rows of layers below the prompt may take.
    pub cache_bytes: usize,
}

/// One of the prompts that are trained at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Seed of every random choice.
    pub seed: u64,
    /// Peak learning rate of the prompt; the method's own where `None`.
    pub learning_rate: Option<f32>,
    /// Peak learning rate of the head.
    pub head_learning_rate: f32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: "prompt-tuning".into(),
            tokens: 8,
            layers: Layers::All,
            place: Place::Before,
            bottleneck: 128,
            rank: 4,
            head: None,
            head_rank: 16,
            pooling: None,
            template: TEXT.into(),
            examples: String::new(),
            words: Vec::new(),
            init: Init::Labels,
            epochs: 30,
            patience: Some(10),
            batch: 16,
            candidates: vec![Candidate::default()],
            optimizer: Rule::AdamW,
            decay: Decay::Linear,
            warm_up: 0.1,
            clip: 1.0,
            weight_decay: 0.01,
            dropout: None,
            consistency: 0.0,
            precision: Precision::F32,
            class_weights: ClassWeights::Equal,
            out_of_scope: None,
            threads: 1,
            overlength: Overlength::Refuse,
            cache_bytes: 2 << 30,
        }
    }
}

impl Default for Candidate {
    fn default() -> Self {
        Self {
            seed: 0,
            learning_rate: None,
            head_learning_rate: 1e-2,
        }
    }
}

/// Layers that get a prefix, counted over the attention sites that take one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layers {
    /// Every layer.
    #[default]
    All,
    /// The last so many.
    Top(usize),
    /// From one up to but not including another, counted from 0.
    Range(usize, usize),
}

impl Layers {
    /// Reads `all`, `top:K` or `A..B`.
    ///
    /// # Errors
    /// When it is none of those.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().ok();
        let top = text
            .strip_prefix("top:")
            .and_then(number)
            .filter(|&top| top > 0);
        let range = text
            .split_once("..")
            .and_then(|(from, to)| Some((number(from)?, number(to)?)));
        match (text, top, range) {
            ("all", ..) => Ok(Self::All),
            (_, Some(top), _) => Ok(Self::Top(top)),
            (.., Some((from, to))) if from < to => Ok(Self::Range(from, to)),
            _ => Err(format!("{text:?} is not all, top:K or A..B with A below B")),
        }
    }

    /// The first layer and the one behind the last, of `count`.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn bounds(self, count: usize) -> Result<(usize, usize), Error> {
        let (from, to) = match self {
            Self::All => (0, count),
            Self::Top(top) => (count.checked_sub(top).unwrap_or(usize::MAX), count),
            Self::Range(from, to) => (from, to),
        };
        match from < to && to <= count {
            true => Ok((from, to)),
            false => Err(Error::Options(format!(
                "the base has {count} layers that take a prefix; --layers asks for others"
            ))),
        }
    }
}

/// What matrix products of training steps read. Dev and test data are measured in 32 bits either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats; all other arithmetic stays in 32 bits.
    F16,
}

impl Precision {
    /// The precision of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            other => Err(Error::Options(format!(
                "there is no precision {other}; choose f32 or f16"
            ))),
        }
    }
}

/// How classes count in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// Every example counts the same.
    #[default]
    Equal,
    /// Every class counts the same, however few examples it has.
    Balanced,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_and_counted() {
        let table = [
            ("all", Some((0, 6))),
            ("top:2", Some((4, 6))),
            ("1..3", Some((1, 3))),
            ("top:7", None),
            ("2..9", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                Layers::parse(text).unwrap().bounds(6).ok(),
                expected,
                "{text}"
            );
        }
        for text in ["", "top:0", "top:x", "3..3", "some"] {
            assert!(Layers::parse(text).is_err(), "{text}");
        }
    }
}
