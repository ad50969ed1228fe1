//! What can go wrong between a base image, a bundle and an answer.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

#[cfg(feature = "compile")]
use crate::Weights;

/// Why an image, a task or a text cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}{}", remedy(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not begin as a base image does.
    #[error("{path} is not a base image; make one with `preface compile BASE -o IMAGE`")]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// The image has a format that this build does not read.
    #[error(
        "{path} has image format {found}, this build reads {expected}; rebuild it with `preface compile BASE -o {path}`"
    )]
    Version {
        /// The image.
        path: PathBuf,
        /// The format that it names.
        found: String,
        /// The format that this build reads.
        expected: &'static str,
    },
    /// The file is shorter or longer than its preamble says.
    #[error(
        "{path} is {found} bytes long and should be {expected}; copy it again or rebuild it with `preface compile BASE -o {path}`"
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// The length in the preamble.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// The system gives no thread, or not the processor that it is to stay on.
    #[error("cannot start {count} threads; ask for fewer, or do not pin them")]
    Threads {
        /// How many were to answer.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// A part of the image was changed after it was written.
    #[error(
        "{path}: the {part} does not match its digest; copy the image again or rebuild it with `preface compile BASE -o {path}`"
    )]
    Damaged {
        /// The image.
        path: PathBuf,
        /// Which part.
        part: &'static str,
    },
    /// The image's tables contradict themselves.
    #[error("{path}: {reason}; rebuild it with `preface compile BASE -o {path}`")]
    Inconsistent {
        /// The image.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
    /// The image was laid out for another machine.
    #[error(
        "{path} does not fit this machine: {reason}; rebuild it here with `preface compile BASE -o {path}`"
    )]
    Unfit {
        /// The image.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The image needs an engine that this build leaves out.
    #[error("this build has no engine for {path}; use a build with the feature `plan`")]
    NoEngine {
        /// The image.
        path: PathBuf,
    },
    /// The engine failed.
    #[error("the engine failed while {action}")]
    Engine {
        /// What it was doing.
        action: &'static str,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer cannot be read or fails on a text.
    #[error("the tokenizer failed while {action}")]
    Tokenizer {
        /// What it was doing.
        action: &'static str,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A bundle does not fit the base image.
    #[error("task {task} does not fit this base image: {reason}")]
    Task {
        /// The task's name.
        task: String,
        /// What does not fit.
        reason: String,
    },
    /// A text given as token ids has no mask token, which the head of the task reads.
    #[error(
        "the text has no mask token, which the task reads; give it as text, or with that token"
    )]
    NoMask,
    /// No task is active.
    #[error("no task is active; load a bundle and activate it")]
    NoTask,
    /// The store has no bundle any more that the task may answer by.
    #[error("task {task} is withdrawn: its bundles may not be used any more; install one for it")]
    Withdrawn {
        /// The task.
        task: String,
    },
    /// A text has more tokens than the base or the session takes.
    #[error(
        "the text has {tokens} tokens, at most {limit} fit; shorten it{}",
        if *can_be_cut { " or cut it with --truncate" } else { "" }
    )]
    TooLong {
        /// Tokens of the text, special tokens included.
        tokens: usize,
        /// How many fit beside the prompt.
        limit: usize,
        /// Whether [`Overlength::Truncate`](crate::Overlength::Truncate) would cut it.
        can_be_cut: bool,
    },
    /// The text has no tokens at all.
    #[error("the text has no tokens")]
    Empty,
    /// A task that reads pairs is given one text.
    #[error(
        "task {task} reads pairs of texts; give two, parted by a tab, or \"text\" and \"text2\" in JSON"
    )]
    OneText {
        /// The task's name.
        task: String,
    },
    /// A task that reads one text is given two.
    #[error("task {task} reads one text, not two")]
    TwoTexts {
        /// The task's name.
        task: String,
    },
    /// The scores of an answer are infinite or no numbers.
    #[error(
        "the answer is not a number: the base image or the bundle is damaged; run `preface verify` on the image"
    )]
    NotANumber,
    /// A token type that the base has no row for.
    #[error("token type {kind} is none of the base's")]
    TokenType {
        /// The type.
        kind: usize,
    },
    /// The system hands out no more memory.
    #[error(
        "no memory for {bytes} bytes more; allow the process more, or open the image for shorter texts (--max-tokens)"
    )]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// More rows of prompt and text than room was reserved for.
    #[error(
        "{rows} rows of prompt and text, room was reserved for {limit}; shorten the text, or let the session have more tokens"
    )]
    Room {
        /// Rows, or keys with those of a prefix.
        rows: usize,
        /// How many fit.
        limit: usize,
    },
    /// Tokens that are to be run one behind the other, on an engine or a base that cannot.
    #[error(
        "this image runs a text only as a whole; generating takes a decoder that the executor runs"
    )]
    NoPast,
    /// A task that gives labels where text is to be generated.
    #[error("task {task} answers with labels; it generates no text")]
    NoText {
        /// The task.
        task: String,
    },
    /// A task that generates text among texts that are answered together.
    #[error("task {task} generates text, one text at a time; it does not answer several together")]
    Generates {
        /// The task.
        task: String,
    },
    /// An image without scores of the vocabulary.
    #[error(
        "this image makes no scores of the vocabulary: its base has no language-modelling head, or runs on tract's plan, of which `inspect` gives the reason; export the base with its head, or another way, and compile it again"
    )]
    NoLogits,
    /// A text with the token that pads.
    #[error("the text holds token {id}, which pads in this base and has no position; take it out")]
    Padding {
        /// The token's id.
        id: u32,
    },
    /// A token that the embedding table does not hold.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token's id.
        id: u32,
        /// How many tokens there are.
        vocabulary: usize,
    },
    /// A sampling setting outside its range.
    #[error("{field} {value} is outside its range; give a number {range}")]
    Sampling {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// No token is left to choose from.
    #[error("every token of the vocabulary is hidden or not allowed here; loosen what may be said")]
    NothingAllowed,
    /// A tokenizer whose tokens are spelled by those behind them.
    #[error(
        "the tokenizer's decoder {decoder} spells no token by itself; give the base one that decodes bytes or words"
    )]
    Spelling {
        /// The decoder's type.
        decoder: &'static str,
    },
    /// A text that is to end before an empty string.
    #[error("an empty string ends no text; leave it out")]
    EmptyStop,
    /// A constraint that no text of a task can keep.
    #[error("the text cannot be constrained so: {reason}")]
    Constraint {
        /// What stands in the way.
        reason: String,
    },
    /// The base model cannot be read or understood.
    #[cfg(feature = "compile")]
    #[error("cannot understand the base model")]
    Graph(#[from] preface_graph::Error),
    /// Neither the executor nor tract's own plan runs the base model.
    #[error("the executor does not run this base: {reason}; nor does tract's plan")]
    NoEngineRuns {
        /// What stopped the lowering.
        reason: String,
        /// What stopped the plan.
        source: Box<Error>,
    },
    /// Weights in fewer bits for a base that the executor does not run.
    #[cfg(feature = "compile")]
    #[error(
        "weights in {weights} are for the executor, which does not run this image: {reason}; leave --weights {weights} away"
    )]
    PlanWeights {
        /// What was asked for.
        weights: Weights,
        /// What stopped the lowering.
        reason: String,
    },
    /// The base model cannot be laid out as an image.
    #[error("cannot lay the base model out: {reason}")]
    Compile {
        /// What stands in the way.
        reason: String,
    },
}

/// What to do about a file that cannot be written.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "; free some space or choose another place with -o"
        }
        ErrorKind::NotFound => "; its folder is not there: make it first",
        _ => "",
    }
}
