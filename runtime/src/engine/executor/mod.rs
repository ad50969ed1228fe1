//! Fused steps on tract-linalg's kernels: weights in the map, everything else in one arena that is reserved at open.

// Shares the memory of steps between threads: see the SAFETY comments there.
#[allow(unsafe_code)]
mod arena;
mod attend;
// Computes with vectors: see the SAFETY comments there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
pub(crate) mod dots;
// Calls kernels: see the SAFETY comments there.
#[allow(unsafe_code)]
pub(crate) mod kernels;
mod narrow;
mod open;
// Packs panels: see the SAFETY comments there.
#[allow(unsafe_code)]
mod operands;
mod past;
// Hands work to threads: see the SAFETY comments there.
#[allow(unsafe_code)]
mod pool;
pub(crate) mod program;
mod rows;
// Shares the arena between threads: see the SAFETY comments there.
#[allow(unsafe_code)]
mod steps;

use std::{mem, ops::Range};

use tract_data::internal::{Tensor, format_err};

use super::{Input, failed, panels::MappedPanels};
use crate::{Error, Image, engine, image::Kind, task::KeyValues};
use arena::Arena;
use attend::Attention;
use dots::Rounded;
use kernels::{Kernel, Left};
use narrow::{Expanded, Narrow};
use operands::Panels;
pub(crate) use past::Past;
use pool::Pool;
use program::{Attend, Columns, Step};
use rows::Curves;
use steps::{Before, finished, texts};

/// A program ready to run.
#[derive(Debug)]
pub(crate) struct Executor {
    image: Image,
    arena: Arena,
    /// [`BODY`], [`LOGITS`] and [`ENCODER`]; empty where the base has none.
    parts: [Part; 3],
    most_rows: usize,
    most_prefix: usize,
    weights: Vec<Weight>,
    /// Rows as the right operand of each kernel that packs them.
    rows: Vec<Option<Panels>>,
    /// Rows in 8 bits; none where no product is one of bytes.
    rounded: Option<Rounded>,
    /// What the panels of which kernel hold, or of none the rows in 8 bits: neighbouring products often read the same rows.
    packed: Option<(Option<usize>, Columns, usize)>,
    pool: Pool,
    /// One for each thread.
    workers: Vec<Worker>,
    curves: Curves,
    /// Rows beside the arena, one for each text that is scored at once.
    row: Vec<f32>,
    /// As many zeros, for ids and types of rows that have none.
    nothing: Vec<i64>,
    /// Where the hidden rows of the last run are in the arena.
    made: Range<usize>,
}

/// A list of steps, and where its numbers lie.
#[derive(Debug, Default)]
struct Part {
    /// Where each slot begins in the arena, and the numbers of one of its rows.
    slots: Vec<(usize, usize)>,
    /// Where each thread's scratch space begins.
    scratch: Vec<usize>,
    /// For each step.
    ready: Vec<Ready>,
}

/// What one thread works with.
#[derive(Debug)]
struct Worker {
    kernels: Vec<Kernel>,
    /// For each kernel, where weights in fewer bits are expanded; none where there are no such weights.
    expanded: Vec<Option<Expanded>>,
    /// A row of the embedding table.
    row: Vec<f32>,
    attention: Option<Attention>,
    /// How its piece of the last step went.
    done: Result<(), Error>,
}

/// A packed weight in the map with the kernels that read it.
#[derive(Debug)]
struct Weight {
    /// Neighbouring panels for each thread; none for some where there are few.
    pieces: Vec<Piece>,
    inputs: usize,
    outputs: usize,
    /// Of [`Worker::kernels`]: for one row, and for more; none where bytes are multiplied.
    kernels: Option<[usize; 2]>,
}

/// Neighbouring outputs of a weight.
#[derive(Debug)]
struct Piece {
    panels: Operand,
    first: usize,
    outputs: usize,
}

/// Panels in the map.
#[derive(Debug)]
enum Operand {
    Floats(MappedPanels),
    Narrow(Narrow),
    /// Those that are multiplied as they are.
    Bytes(Narrow),
}

/// What a step needs beside the program.
#[derive(Debug)]
enum Ready {
    /// A bias by piece of the weight; none where nothing is added.
    Bias(Vec<Tensor>),
    Scale(Tensor),
    Nothing,
}

/// The steps from embedding rows to hidden rows.
const BODY: usize = 0;
/// Those from a hidden row to scores of the vocabulary.
const LOGITS: usize = 1;
/// Those that read a text before the body goes on token by token.
const ENCODER: usize = 2;

/// Whether this processor and this build run the kernel of that name.
pub(crate) fn has_kernel(name: &str) -> bool {
    name == dots::NAME || Kernel::named(name).is_some()
}

fn no_kernel() -> Error {
    failed("choosing kernels")(format_err!("none of this machine's fits the image"))
}

impl Operand {
    fn left(&self) -> Left<'_> {
        match self {
            Self::Floats(panels) => Left::Floats(panels),
            Self::Narrow(narrow) | Self::Bytes(narrow) => Left::Stored(narrow),
        }
    }
}

impl Executor {
    /// Rows that the texts of a run and the rows of their prompts may have.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Rows of a text that positions are left for behind the prompt of `past`; an encoder's begin anew.
    pub fn rows_behind(&self, past: &Past) -> usize {
        let taken = match self.image.description().kind {
            Kind::EncoderDecoder => 0,
            _ => past.position(),
        };
        self.positions().saturating_sub(taken)
    }

    /// Rows that the tables of positions have.
    fn positions(&self) -> usize {
        self.image.steps().map_or(0, |program| program.max_rows)
    }

    /// Bytes that are reserved.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len() * size_of::<f32>()
    }

    /// Bytes that everything kept between runs takes.
    pub fn reserved_bytes(&self) -> usize {
        let rounded = self.rounded.as_ref().map_or(0, Rounded::bytes);
        let rows = rounded + self.rows.iter().flatten().map(Panels::bytes).sum::<usize>();
        let ready = self.parts.iter().flat_map(|part| &part.ready);
        let biases = ready.map(|ready| match ready {
            Ready::Bias(biases) => biases.iter().map(|bias| bias.as_bytes().len()).sum(),
            _ => 0,
        });
        let attentions = self
            .workers
            .iter()
            .filter_map(|worker| worker.attention.as_ref());
        let attentions: usize = attentions.map(Attention::bytes).sum();
        let expanded = self.workers.iter().flat_map(|worker| &worker.expanded);
        let expanded: usize = expanded.flatten().map(Expanded::bytes).sum();
        self.arena_bytes() + rows + biases.sum::<usize>() + attentions + expanded
    }

    /// Bytes that [`Executor::room`] takes for as many tokens as a run may see.
    pub fn room_bytes(&self) -> usize {
        let layers = self.image.description().layers.iter();
        let rooms = self.rooms(self.most_rows + self.most_prefix);
        let numbers = layers
            .zip(rooms)
            .map(|(layer, room)| layer.kv_heads * layer.head_dim * room);
        2 * numbers.sum::<usize>() * size_of::<f32>()
    }

    /// The room of each layer where `tokens` tokens are run one behind the other.
    fn rooms(&self, tokens: usize) -> Vec<usize> {
        let mut rooms = vec![tokens; self.image.description().layers.len()];
        let encoder = self
            .image
            .steps()
            .and_then(|program| program.encoder.as_ref());
        for step in encoder.iter().flat_map(|encoder| &encoder.steps) {
            match step {
                Step::Attend(attend) => rooms[attend.layer] = self.most_prefix,
                Step::Keep(keep) => rooms[keep.layer] = self.most_rows + self.most_prefix,
                _ => {}
            }
        }
        rooms
    }

    /// The attentions of the body whose keys and values grow with each token that is run.
    fn growing(&self) -> impl Iterator<Item = &Attend> {
        let steps = self.image.steps().map_or(&[][..], |program| &program.steps);
        let attends = steps.iter().filter_map(Step::as_attend);
        attends.filter(|attend| attend.own.is_some())
    }

    /// Whether tokens see only those before them, so that keys and values may be kept.
    fn goes_on(&self) -> bool {
        self.growing().all(|attend| attend.mask.after == Some(0))
    }

    /// See [`engine::Engine::decoder_layers`].
    pub fn decoder_layers(&self) -> Vec<usize> {
        let encodes = self.image.description().kind == Kind::EncoderDecoder;
        let growing = self.growing().filter(|_| encodes);
        growing.map(|attend| attend.layer).collect()
    }

    /// Lays out a prefix by layer.
    ///
    /// # Errors
    /// When it has more rows than room was reserved for.
    pub fn prepare(&self, prefix: KeyValues) -> Result<Past, Error> {
        if prefix.tokens > self.most_prefix {
            return Err(Error::Room {
                rows: prefix.tokens,
                limit: self.most_prefix,
            });
        }
        let steps = self.image.steps();
        let kind = steps.map(|program| (program.counted, program.caches));
        let layers = &self.image.description().layers;
        Ok(Past::of_prefix(prefix, layers, kind.unwrap_or_default()))
    }

    /// Room for the keys and values of `tokens` tokens, or of as many as a run may see; `None` where tokens see later
    /// ones.
    pub fn room(&self, tokens: Option<usize>) -> Option<Past> {
        let most = self.most_rows + self.most_prefix;
        let tokens = tokens.map_or(most, |tokens| tokens.min(most));
        let layers = &self.image.description().layers;
        self.goes_on()
            .then(|| Past::with_room(layers, &self.rooms(tokens)))
    }

    /// Runs texts, each behind `past` of its number.
    ///
    /// # Errors
    /// When there is no room for the rows or their positions, or a token has none.
    pub fn run<'p>(
        &mut self,
        input: Input<'_>,
        past: &(dyn Fn(usize) -> &'p Past + Sync),
    ) -> Result<(), Error> {
        self.run_body(input, &mut Before::Each(past))
    }

    /// Lets the encoder read the only text of `input`, behind the prefixes of `past`, for the tokens that go on from there.
    ///
    /// # Errors
    /// As [`Executor::run`], and where the base has no encoder beside its decoder.
    pub fn encode(&mut self, input: Input<'_>, past: &mut Past) -> Result<(), Error> {
        let image = self.image.clone();
        let encoder = image.steps().and_then(|program| program.encoder.as_ref());
        let encoder = encoder.ok_or(Error::NoPast)?;
        let before = &mut Before::Keeping(past);
        let ran = self
            .fill(input, before, encoder.padding)
            .and_then(|()| self.steps(ENCODER, &encoder.steps, input, before));
        match ran {
            Ok(()) => past.advance(0),
            Err(_) => past.forget(),
        }
        ran
    }

    /// Runs each text of `input` behind one of `pasts`, which becomes what stands before the next.
    ///
    /// # Errors
    /// As [`Executor::run`], or when a past has no room; they are then as they were.
    pub fn go_on(&mut self, input: Input<'_>, pasts: &mut [engine::Past]) -> Result<(), Error> {
        debug_assert!(input.lengths.len() == pasts.len() && self.goes_on());
        let ran = self.run_body(input, &mut Before::Growing(pasts));
        for (past, &rows) in pasts.iter_mut().zip(input.lengths) {
            let past = past.of_executor_mut();
            match ran {
                Ok(()) => past.advance(rows),
                Err(_) => past.forget(),
            }
        }
        ran
    }

    /// How many tokens can still be run one by one behind `past`.
    pub fn left(&self, past: &Past) -> usize {
        let layers = self.growing().map(|attend| attend.layer);
        past.left(layers)
            .min(self.positions().saturating_sub(past.position()))
    }

    /// The hidden rows of the last run, `[rows, hidden]`.
    pub fn hidden_rows(&self) -> &[f32] {
        &self.arena.view()[self.made.clone()]
    }

    fn run_body(&mut self, input: Input<'_>, before: &mut Before<'_, '_>) -> Result<(), Error> {
        let image = self.image.clone();
        let program = image.steps().ok_or_else(no_kernel)?;
        self.fill(input, before, program.padding)?;
        self.steps(BODY, &program.steps, input, before)?;
        let (begin, hidden) = self.parts[BODY].slots[program.output.slot];
        self.made = begin..begin + input.ids.len() * hidden;
        Ok(())
    }

    /// Lays the rows of `input` where a part begins.
    fn fill(
        &mut self,
        input: Input<'_>,
        before: &Before<'_, '_>,
        padding: Option<u32>,
    ) -> Result<(), Error> {
        let most = self.positions();
        let rows = input.ids.len();
        debug_assert_eq!(input.lengths.iter().sum::<usize>(), rows);
        let fits = |rows: usize, limit: usize| match rows <= limit {
            true => Ok(()),
            false => Err(Error::Room { rows, limit }),
        };
        if rows == 0 {
            return Err(Error::Empty);
        }
        fits(rows, self.most_rows)?;
        for text in texts(input.lengths) {
            fits(before.position(text.index) + text.rows, most)?;
        }
        if let Some(id) = padding
            && input.ids.contains(&id.into())
        {
            return Err(Error::Padding { id });
        }
        self.arena.numbers()[..input.rows.len()].copy_from_slice(input.rows);
        self.made = 0..0;
        Ok(())
    }

    /// Computes scores of the vocabulary for the last of the hidden rows of each text of the last run, whose rows add up
    /// as `lengths` say.
    ///
    /// # Errors
    /// [`Error::NoLogits`] where the image has none, or there are no such rows or more texts than room was reserved for.
    pub fn score(&mut self, lengths: &[usize]) -> Result<(), Error> {
        let image = self.image.clone();
        let program = image.steps().ok_or_else(no_kernel)?;
        let logits = program.logits.as_ref().ok_or(Error::NoLogits)?;
        let hidden = image.description().hidden;
        let (into, _) = self.parts[LOGITS].slots[0];
        let count = lengths.len();
        if count > self.nothing.len() {
            return Err(Error::NoLogits);
        }
        for text in texts(lengths) {
            let start = self.made.start + (text.first + text.rows - 1) * hidden;
            if start + hidden > self.made.end {
                return Err(Error::NoLogits);
            }
            let into = into + text.index * hidden;
            self.arena
                .numbers()
                .copy_within(start..start + hidden, into);
        }
        let nothing = mem::take(&mut self.nothing);
        let input = Input {
            rows: &[],
            ids: &nothing[..count],
            types: &nothing[..count],
            lengths: &[count],
        };
        let scored = self.steps(LOGITS, &logits.steps, input, &mut Before::Nothing);
        self.nothing = nothing;
        scored
    }

    /// Scores of the vocabulary, `[vocabulary]`, for text `index` of those of the last [`Executor::score`].
    ///
    /// # Errors
    /// [`Error::NoLogits`] where the image has none.
    pub fn scores(&mut self, index: usize) -> Result<&mut [f32], Error> {
        let program = self.image.steps().ok_or_else(no_kernel)?;
        let logits = program.logits.as_ref().ok_or(Error::NoLogits)?;
        let (begin, width) = self.parts[LOGITS].slots[logits.output.slot];
        let start = begin + index * width + logits.output.first;
        let scores = start..start + logits.vocabulary;
        self.arena.numbers().get_mut(scores).ok_or(Error::NoLogits)
    }

    /// Scores that [`Executor::scores`] gives; `None` where it gives none.
    pub fn vocabulary(&self) -> Option<usize> {
        let logits = self.image.steps()?.logits.as_ref();
        logits.map(|logits| logits.vocabulary)
    }
}
