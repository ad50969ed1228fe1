//! What the graph of a step is for: what it computes, for how many candidates, and how it is read.

use preface_bundle::Before;

use super::Loss;
use crate::{
    heads::{Head, HeadSize, Reads},
    options::Precision,
};

/// Readings of a row at the two sizes at which shapes are found, where a row has several.
const READINGS: [i64; 2] = [4, 5];

/// How a base's output becomes answers.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// The head.
    pub head: &'a Head,
    /// Its sizes.
    pub size: HeadSize,
    /// What compares answers with the truth.
    pub loss: Loss,
    /// How much of the output it reads.
    pub reading: Reading,
    /// What may stand before each class, where they are tags of a sequence.
    pub before: &'a [Before],
}

/// How rows of the base's output are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A weighted mean of a row's places.
    Mean,
    /// One place of each row.
    One,
    /// Several places of each row.
    Several,
}

impl Reading {
    /// Readings of a row at the two sizes at which shapes are found.
    pub(super) fn counts(self) -> [i64; 2] {
        match self {
            Self::Mean | Self::One => [1, 1],
            Self::Several => READINGS,
        }
    }
}

/// What a graph computes.
#[derive(Clone, Copy)]
pub enum Purpose<'a> {
    /// Hidden rows `[batch, sequence, hidden]`.
    Hidden,
    /// Hidden rows, and the gradient of every parameter for a given gradient of the hidden rows.
    HiddenGradient,
    /// The rows that a head reads, `[batch * readings, width]`.
    Features(Reads, Reading),
    /// What [`Loss::answers`] lists.
    Answers(Reader<'a>),
    /// The loss of each candidate `[candidates]`, and the gradient of every parameter.
    Training(Reader<'a>, Manner),
}

/// How a step trains.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Manner {
    /// Whether it has dropout.
    pub drops: bool,
    /// What the two answers that each row has under two draws of dropout count by how far they are apart (R-Drop, Wu et al.
    /// 2021, section 2.1): a candidate's rows are there twice, first all of them, then all again. 0 where they are there
    /// once.
    pub consistency: f32,
    /// What products read.
    pub precision: Precision,
    /// Whether the processor runs it, whose products are of 32 bits.
    pub emulated: bool,
}

impl Manner {
    /// How often each row is there.
    pub fn copies(self) -> usize {
        match self.consistency > 0.0 {
            true => 2,
            false => 1,
        }
    }
}

/// How many candidates a graph holds, and what it may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Prompts, each with its head.
    pub candidates: usize,
    /// Numbers a token that may be taken as they were computed before, where no prompt reaches them: below a prefix
    /// [`Step::cuts`], of the text before a prompt behind it the graph's caches. 0 where everything is computed.
    pub cached: usize,
}

impl Extent {
    /// The same for a single candidate.
    pub fn of_one(self) -> Self {
        Self {
            candidates: 1,
            ..self
        }
    }

    /// One candidate, all layers.
    pub const ONE: Self = Self {
        candidates: 1,
        cached: 0,
    };
}
