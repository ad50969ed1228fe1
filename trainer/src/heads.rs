//! What turns the base's pooled rows into an answer: each head is a subgraph from its parameters to logits.

mod linear;

use preface_graph::builder::Builder;
use serde::{Deserialize, Serialize};

use crate::{Error, methods::Parameter};

/// The sizes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSize {
    /// Labels.
    pub classes: usize,
    /// Width of the pooled rows.
    pub hidden: usize,
}

/// A head.
pub struct Head {
    /// The name by which `--head` knows it.
    pub name: &'static str,
    /// What it trains.
    pub parameters: fn(HeadSize) -> Vec<Parameter>,
    /// Writes the subgraph from pooled rows `[batch, hidden]` to logits `[batch, classes]`.
    pub subgraph: fn(&mut Builder, &str, &[String]) -> String,
}

/// Every head, sorted by name.
pub const HEADS: &[Head] = &[linear::HEAD];

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

/// Which rows of the base's output a head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean over the text's tokens.
    #[default]
    Mean,
    /// The text's first token.
    First,
    /// The text's last token.
    Last,
}

impl Pooling {
    /// The weight of each of `tokens` rows.
    pub fn weights(self, tokens: usize) -> Vec<f32> {
        let only = |chosen: usize| {
            (0..tokens)
                .map(|index| f32::from(u8::from(index == chosen)))
                .collect()
        };
        match self {
            Self::Mean => vec![1.0 / tokens as f32; tokens],
            Self::First => only(0),
            Self::Last => only(tokens.saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_unique() {
        assert!(HEADS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn pooling_weights_sum_to_one() {
        let table = [
            (Pooling::Mean, vec![0.25; 4]),
            (Pooling::First, vec![1.0, 0.0, 0.0, 0.0]),
            (Pooling::Last, vec![0.0, 0.0, 0.0, 1.0]),
        ];
        for (pooling, expected) in table {
            assert_eq!(pooling.weights(4), expected);
        }
    }
}
