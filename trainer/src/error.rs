//! What can go wrong while a prompt is trained.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    path::PathBuf,
};

use crate::options::Precision;

/// Why training, evaluating or checking failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The base model.
    #[error(transparent)]
    Graph(#[from] preface_graph::Error),
    /// An operator between the prompt and the loss has no gradient rule.
    #[error("node {node}: operator {operator} has no gradient rule")]
    NoRule {
        /// The operator.
        operator: String,
        /// The node.
        node: String,
    },
    /// Nothing connects a trainable value with the loss.
    #[error("no gradient reaches {value}")]
    NoGradient {
        /// The value.
        value: String,
    },
    /// `libonnxruntime` cannot be used.
    #[error(
        "cannot load {library}: {reason}; install the PyPI package onnxruntime (1.17 or newer) and set ORT_DYLIB_PATH to its capi/libonnxruntime.so.*, or pass --onnxruntime"
    )]
    Library {
        /// What was tried.
        library: String,
        /// Why it failed.
        reason: String,
    },
    /// A device cannot be used.
    #[error("cannot run on {device}: {reason}; {way_out}")]
    Device {
        /// The device.
        device: String,
        /// Why.
        reason: String,
        /// What to do about it.
        way_out: String,
    },
    /// ONNX Runtime refused a graph or failed to run it.
    #[error("onnxruntime: {0}")]
    Engine(String),
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}{}", way_out(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The loss or a gradient is no number any more.
    #[error(
        "the loss is no number in epoch {epoch}, step {step} (lines {}); pass {}a smaller --learning-rate, --head-learning-rate or --clip, or look at those lines",
        listed(lines),
        if *precision == Precision::F16 { "--precision f32, " } else { "" }
    )]
    Diverged {
        /// The epoch, counted from 1.
        epoch: usize,
        /// The step, counted from 1 over the whole run.
        step: usize,
        /// Lines of the training file in the step's batch.
        lines: BTreeSet<usize>,
        /// What the step's products read.
        precision: Precision,
    },
    /// A number of the prompt or the head is larger than any that a bundle holds.
    #[error(
        "the prompt or the head runs away: in epoch {epoch}, step {step}, a number of it is above 10000, which no bundle holds; pass a smaller --learning-rate or --head-learning-rate"
    )]
    RanAway {
        /// The epoch, counted from 1.
        epoch: usize,
        /// The step, counted from 1 over the whole run.
        step: usize,
    },
    /// A line of a data file is not an example.
    #[error("{path}, line {line}: {reason}")]
    Data {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A text leaves no room for the prompt.
    #[error(
        "{path}, line {line}: {tokens} tokens, but the base's positions leave room for {room}; shorten the text or pass --truncate"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that there is room for.
        room: usize,
    },
    /// The tokenizer cannot be used.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// A file of an adapter folder does not fit.
    #[error("{path}: {reason}")]
    Adapter {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The options contradict the base or each other.
    #[error("{0}")]
    Options(String),
}

/// Lines of a file in one text.
fn listed(lines: &BTreeSet<usize>) -> String {
    let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
    lines.join(", ")
}

/// What helps against a failed write, where that is known.
fn way_out(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "; free some space or choose another place with -o"
        }
        _ => "; choose another place with -o",
    }
}
