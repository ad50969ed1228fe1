//! What runs a base image's program: hidden rows from input rows.
//!
//! Everything that names tract lies in this folder. An engine is a variant of [`Engine`]; sessions know no more of it
//! than the functions here.

pub(crate) mod executor;
#[cfg(feature = "compile")]
mod lower;
#[cfg(feature = "compile")]
pub(crate) mod lowering;
mod panels;
#[cfg(feature = "plan")]
mod plan;
#[cfg(feature = "plan")]
mod program;
pub(crate) mod vectors;

use std::fmt;

#[cfg(feature = "compile")]
pub(crate) use lower::{Lowered, sum_in_floats};

use crate::{Error, Image, Threads, task::KeyValues};

/// The version of tract that this build packs with and runs on.
pub(crate) const TRACT: &str = "0.23.9";

/// Whether this processor and this build run the kernel of that name.
pub(crate) fn has_kernel(name: &str) -> bool {
    executor::has_kernel(name)
}

/// The kernels that this build chooses for this processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// Those that the weights of encoders are packed for.
    pub encoders: Vec<String>,
    /// Those of decoders: for many rows, and for one where it is another.
    pub decoders: Vec<String>,
    /// How weights in `i8a8` are laid out, and the instructions that multiply their bytes.
    pub bytes: [&'static str; 2],
}

impl Kernels {
    /// Looks at the processor.
    pub fn here() -> Self {
        let [encoders, decoders] = [false, true].map(|decodes| {
            let chosen = executor::kernels::kernels_for_weights(decodes);
            chosen.map_or(Vec::new(), |(names, _)| names)
        });
        let bytes = [executor::dots::NAME, executor::dots::instructions()];
        Self {
            encoders,
            decoders,
            bytes,
        }
    }
}

/// Wraps what tract says.
fn failed(action: &'static str) -> impl FnOnce(tract_data::TractError) -> Error {
    move |error| Error::Engine {
        action,
        source: error.into(),
    }
}

/// Which engine runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// Fused steps on tract's kernels: nothing is allocated while they run.
    Executor,
    /// tract's own plan on mapped weights: any graph that tract runs, with its allocations.
    Plan,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Executor => "executor",
            Self::Plan => "plan",
        })
    }
}

/// A program made ready to run.
#[derive(Debug)]
pub(crate) enum Engine {
    Executor(Box<executor::Executor>),
    #[cfg(feature = "plan")]
    Plan(Box<plan::Plan>),
}

/// What stands before a text, as the engine that prepared it consumes it: a prefix, or keys and values of tokens that
/// were run before.
#[derive(Debug)]
pub(crate) enum Past {
    Executor(executor::Past),
    #[cfg(feature = "plan")]
    Plan(plan::Prefix),
}

/// Texts as rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// Prompt rows and embedding rows, `[sequence, hidden]`.
    pub rows: &'a [f32],
    /// Token ids of the same rows, `[sequence]`, the placeholder in a prompt's slots.
    pub ids: &'a [i64],
    /// Token types of the same rows, `[sequence]`, 0 in a prompt's slots.
    pub types: &'a [i64],
    /// Rows of each text, one text behind the other; they add up to all.
    pub lengths: &'a [usize],
}

impl Engine {
    /// Makes the program of `image` ready for texts of at most `most_tokens` tokens, `texts` of which are gone on with at
    /// once; the plan runs on one thread.
    pub fn open(
        image: &Image,
        most_tokens: Option<usize>,
        texts: usize,
        threads: Threads,
    ) -> Result<Self, Error> {
        image.fits()?;
        if let Some(program) = image.steps() {
            let rows = most_tokens.map(|tokens| tokens.saturating_add(PROMPT_ROWS));
            let rows = rows.unwrap_or(program.max_rows);
            let executor = executor::Executor::open(image, (rows, PROMPT_ROWS, texts), threads)?;
            return Ok(Self::Executor(Box::new(executor)));
        }
        #[cfg(feature = "plan")]
        return plan::Plan::open(image).map(|plan| Self::Plan(Box::new(plan)));
        #[cfg(not(feature = "plan"))]
        Err(Error::NoEngine {
            path: image.path().to_owned(),
        })
    }

    pub fn kind(&self) -> EngineKind {
        match *self {
            Self::Executor(_) => EngineKind::Executor,
            #[cfg(feature = "plan")]
            Self::Plan(_) => EngineKind::Plan,
        }
    }

    /// Bytes of buffers that the engine keeps between runs.
    pub fn arena_bytes(&self) -> usize {
        match self {
            Self::Executor(executor) => executor.arena_bytes(),
            #[cfg(feature = "plan")]
            Self::Plan(_) => 0,
        }
    }

    /// Bytes of everything that is kept between runs; `None` where runs take more.
    pub fn reserved_bytes(&self) -> Option<usize> {
        match self {
            Self::Executor(executor) => Some(executor.reserved_bytes()),
            #[cfg(feature = "plan")]
            Self::Plan(_) => None,
        }
    }

    /// Bytes that [`Engine::room`] takes for as many tokens as a run may see.
    pub fn room_bytes(&self) -> usize {
        match self {
            Self::Executor(executor) => executor.room_bytes(),
            #[cfg(feature = "plan")]
            Self::Plan(_) => 0,
        }
    }

    /// Rows of texts and of their prompts that fit a run; `None` where the engine sets no bound.
    pub fn most_rows(&self) -> Option<usize> {
        match self {
            Self::Executor(executor) => Some(executor.most_rows()),
            #[cfg(feature = "plan")]
            Self::Plan(_) => None,
        }
    }

    /// Rows of a text that positions are left for behind the prompt of `past`; `None` where the engine sets no bound.
    pub fn rows_behind(&self, past: &Past) -> Option<usize> {
        match (self, past) {
            (Self::Executor(executor), Past::Executor(past)) => Some(executor.rows_behind(past)),
            #[cfg(feature = "plan")]
            _ => None,
        }
    }

    /// The layers in which the tokens of a decoder behind an encoder look at each other, in their order; none where the base
    /// has no such decoder, or this engine does not run it.
    pub fn decoder_layers(&self) -> Vec<usize> {
        match self {
            Self::Executor(executor) => executor.decoder_layers(),
            #[cfg(feature = "plan")]
            Self::Plan(_) => Vec::new(),
        }
    }

    /// Lays a prefix out as this engine consumes it; that of a task without one has no layers.
    pub fn prepare(&self, prefix: KeyValues) -> Result<Past, Error> {
        match self {
            Self::Executor(executor) => executor.prepare(prefix).map(Past::Executor),
            #[cfg(feature = "plan")]
            Self::Plan(plan) => plan.prepare(&prefix).map(Past::Plan),
        }
    }

    /// Runs texts, each behind `past` of its number. [`Engine::hidden_rows`] are then theirs.
    pub fn run<'p>(
        &mut self,
        input: Input<'_>,
        past: &(dyn Fn(usize) -> &'p Past + Sync),
    ) -> Result<(), Error> {
        match self {
            Self::Executor(executor) => executor.run(input, &|text| past(text).of_executor()),
            #[cfg(feature = "plan")]
            Self::Plan(plan) => plan.run(input, &|text| past(text).of_plan()),
        }
    }

    /// Lets the encoder read the only text of `input`, behind the prefixes of `past`, for the tokens that go on from there.
    ///
    /// # Errors
    /// [`Error::NoPast`] where the base has no encoder beside its decoder; else as [`Engine::go_on`].
    pub fn encode(&mut self, input: Input<'_>, past: &mut Past) -> Result<(), Error> {
        match (self, past) {
            (Self::Executor(executor), Past::Executor(past)) => executor.encode(input, past),
            #[cfg(feature = "plan")]
            _ => Err(Error::NoPast),
        }
    }

    /// Runs each text of `input` behind one of `pasts`, which becomes what stands before the next.
    ///
    /// # Errors
    /// [`Error::NoPast`] where [`Engine::room`] has none; else as [`Engine::run`], and `pasts` are as they were.
    pub fn go_on(&mut self, input: Input<'_>, pasts: &mut [Past]) -> Result<(), Error> {
        match self {
            Self::Executor(executor) => executor.go_on(input, pasts),
            #[cfg(feature = "plan")]
            Self::Plan(_) => Err(Error::NoPast),
        }
    }

    /// Room for `tokens` tokens that are run one behind the other, or for as many as a run may see; `None` where this
    /// engine or this base runs a text only as a whole.
    pub fn room(&self, tokens: Option<usize>) -> Option<Past> {
        match self {
            Self::Executor(executor) => executor.room(tokens).map(Past::Executor),
            #[cfg(feature = "plan")]
            Self::Plan(_) => None,
        }
    }

    /// How many tokens can still be run one by one behind `past`.
    pub fn left(&self, past: &Past) -> usize {
        match (self, past) {
            (Self::Executor(executor), Past::Executor(past)) => executor.left(past),
            #[cfg(feature = "plan")]
            _ => 0,
        }
    }

    /// The hidden rows of the last run, `[rows, hidden]`.
    pub fn hidden_rows(&self) -> &[f32] {
        match self {
            Self::Executor(executor) => executor.hidden_rows(),
            #[cfg(feature = "plan")]
            Self::Plan(plan) => plan.hidden_rows(),
        }
    }

    /// Computes scores of the vocabulary for the last of the rows of each text of the last run, whose rows add up as
    /// `lengths` say.
    ///
    /// # Errors
    /// [`Error::NoLogits`] where the base or this engine has none, or there are more texts than it was opened for.
    pub fn score(&mut self, lengths: &[usize]) -> Result<(), Error> {
        match self {
            Self::Executor(executor) => executor.score(lengths),
            #[cfg(feature = "plan")]
            Self::Plan(_) => Err(Error::NoLogits),
        }
    }

    /// Scores of the vocabulary, `[vocabulary]`, for text `index` of those of the last [`Engine::score`].
    ///
    /// # Errors
    /// [`Error::NoLogits`] where the base or this engine has none.
    pub fn scores(&mut self, index: usize) -> Result<&mut [f32], Error> {
        match self {
            Self::Executor(executor) => executor.scores(index),
            #[cfg(feature = "plan")]
            Self::Plan(_) => Err(Error::NoLogits),
        }
    }

    /// Scores of the vocabulary, `[vocabulary]`, for row `row` of the last run.
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub fn logits(&mut self, row: usize) -> Result<&mut [f32], Error> {
        self.score(&[row + 1])?;
        self.scores(0)
    }

    /// Scores that [`Engine::scores`] gives; `None` where it gives none.
    pub fn vocabulary(&self) -> Option<usize> {
        match self {
            Self::Executor(executor) => executor.vocabulary(),
            #[cfg(feature = "plan")]
            Self::Plan(_) => None,
        }
    }
}

impl Past {
    fn of_executor(&self) -> &executor::Past {
        match self {
            Self::Executor(past) => past,
            #[cfg(feature = "plan")]
            Self::Plan(_) => {
                unreachable!("a session lays out pasts with the engine that runs them")
            }
        }
    }

    fn of_executor_mut(&mut self) -> &mut executor::Past {
        match self {
            Self::Executor(past) => past,
            #[cfg(feature = "plan")]
            Self::Plan(_) => {
                unreachable!("a session lays out pasts with the engine that runs them")
            }
        }
    }

    #[cfg(feature = "plan")]
    fn of_plan(&self) -> &plan::Prefix {
        match self {
            Self::Plan(prefix) => prefix,
            Self::Executor(_) => {
                unreachable!("a session lays out pasts with the engine that runs them")
            }
        }
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Executor(past) => past.bytes(),
            #[cfg(feature = "plan")]
            Self::Plan(_) => 0,
        }
    }

    /// Makes this what `other` is, and keeps its room.
    ///
    /// # Errors
    /// When there is too little.
    pub fn begin(&mut self, other: &Self) -> Result<(), Error> {
        match (self, other) {
            (Self::Executor(past), Self::Executor(other)) => past.begin(other),
            #[cfg(feature = "plan")]
            _ => Err(Error::NoPast),
        }
    }
}

/// Rows of a prompt, or of a prefix, that room is reserved for beside a text.
pub(crate) const PROMPT_ROWS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        for name in ["tract-core", "tract-linalg", "tract-onnx"] {
            assert!(
                manifest.contains(&format!("{name} = \"={TRACT}\"")),
                "{name}"
            );
        }
    }

    #[test]
    fn kernels_have_names() {
        assert!(!has_kernel("no such kernel"));
        assert!(has_kernel("generic_f32_4x4"));
        let Kernels {
            encoders,
            decoders,
            bytes: [layout, instructions],
        } = Kernels::here();
        assert!(!encoders.is_empty() && has_kernel(layout) && !instructions.is_empty());
        assert!(
            encoders
                .iter()
                .chain(&decoders)
                .all(|name| has_kernel(name))
        );
    }
}
