//! Fused steps on tract-linalg's kernels: weights in the map, everything else in one arena that is reserved at open.

mod attend;
// Computes with vectors: see the SAFETY comments there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
// Calls kernels: see the SAFETY comments there.
#[allow(unsafe_code)]
pub(crate) mod kernels;
mod past;
pub(crate) mod program;
mod rows;

use std::ops::Range;

use tract_data::internal::{Tensor, format_err, tensor0, tensor1};

use super::{Input, failed, panels::MappedPanels};
use crate::{Error, Image, task::KeyValues};
use attend::{Attention, Keys, QUERIES, Scene};
use kernels::{Arena, Block, Kernel, Panels, Sums};
pub(crate) use past::Past;
use program::{Attend, Columns, Product, Step, Tied};
pub(crate) use rows::wide;
use rows::{Curves, Memory, inner};

/// A program ready to run.
#[derive(Debug)]
pub(crate) struct Executor {
    image: Image,
    arena: Arena,
    /// [`BODY`], and [`LOGITS`] where the base has them.
    parts: Vec<Part>,
    most_rows: usize,
    most_prefix: usize,
    weights: Vec<Weight>,
    /// Rows as the right operand of each kernel.
    rows: Vec<Panels>,
    /// What the panels of which kernel hold: neighbouring products often read the same rows.
    packed: Option<(usize, Columns, usize)>,
    kernels: Vec<Kernel>,
    attention: Option<Attention>,
    curves: Curves,
    /// A row beside the arena.
    row: Vec<f32>,
    /// Where the hidden rows of the last run are in the arena.
    made: Range<usize>,
}

/// A list of steps, and where its numbers lie.
#[derive(Debug)]
struct Part {
    /// Where each slot begins in the arena, and the numbers of one of its rows.
    slots: Vec<(usize, usize)>,
    /// Where the scratch space begins.
    scratch: usize,
    /// For each step.
    ready: Vec<Ready>,
}

/// A packed weight in the map with the kernels that read it.
#[derive(Debug)]
struct Weight {
    panels: MappedPanels,
    inputs: usize,
    outputs: usize,
    /// Of [`Executor::kernels`]: for one row, and for more.
    kernels: [usize; 2],
}

/// What a step needs beside the program.
#[derive(Debug)]
enum Ready {
    Bias(Option<Tensor>),
    Scale(Tensor),
    Nothing,
}

/// The steps from embedding rows to hidden rows.
const BODY: usize = 0;
/// Those from a hidden row to scores of the vocabulary.
const LOGITS: usize = 1;

/// What stands before the texts of a run.
enum Before<'a, 'p> {
    Nothing,
    /// Before each text something of its own.
    Each(&'a dyn Fn(usize) -> &'p Past),
    /// Before the only text what its own keys and values are added to.
    Growing(&'a mut Past),
}

/// A text of a run: where its rows begin, and how many there are.
#[derive(Clone, Copy)]
struct Text {
    index: usize,
    first: usize,
    rows: usize,
}

/// Whether this processor and this build run the kernel of that name.
pub(crate) fn has_kernel(name: &str) -> bool {
    Kernel::named(name).is_some()
}

fn no_kernel() -> Error {
    failed("choosing kernels")(format_err!("none of this machine's fits the image"))
}

impl Executor {
    /// Reserves everything that running the program of `image` takes for texts of `most_rows` rows, prompt rows among
    /// them, and prefixes of `most_prefix`.
    pub fn open(image: &Image, most_rows: usize, most_prefix: usize) -> Result<Self, Error> {
        let program = image.steps().ok_or_else(no_kernel)?;
        let most_rows = most_rows.min(program.max_rows);
        let (weights, kernels) = weights(image)?;
        let mut end = 0;
        let mut part = |slots: &[usize], scratch: usize, steps: &[Step], rows: usize| {
            let slots = slots.iter().map(|&width| {
                end += rows * width;
                (end - rows * width, width)
            });
            let slots = slots.collect();
            end += scratch;
            Part {
                slots,
                scratch: end - scratch,
                ready: ready(image, &weights, steps),
            }
        };
        let body = part(&program.slots, program.scratch, &program.steps, most_rows);
        let logits = program.logits.as_ref();
        let logits = logits.map(|logits| part(&logits.slots, logits.scratch, &logits.steps, 1));
        let parts = [body].into_iter().chain(logits).collect();
        let scores = end;
        let attends = program.steps.iter().filter_map(|step| match step {
            Step::Attend(attend) => Some(attend.head_dim),
            _ => None,
        });
        let most_keys = most_rows + most_prefix;
        let attention = attends
            .max()
            .map(|length| Attention::new(length, most_keys, scores));
        let room = match &attention {
            None => 0,
            Some(_) => QUERIES.min(most_rows) * most_keys,
        };
        let inputs = weights.iter().map(|weight| weight.inputs);
        let deepest = inputs.max().unwrap_or(1);
        let rows = kernels
            .iter()
            .map(|kernel| Panels::new(&kernel.right, deepest, most_rows));
        Ok(Self {
            arena: Arena::new(scores + room)?,
            parts,
            most_rows,
            most_prefix,
            weights,
            rows: rows.collect::<Result<_, _>>()?,
            packed: None,
            kernels,
            attention: attention.transpose()?,
            curves: Curves::new()?,
            row: vec![0.0; image.description().hidden],
            made: 0..0,
            image: image.clone(),
        })
    }

    /// Rows that the texts of a run and the rows of their prompts may have.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Bytes that are reserved.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len() * size_of::<f32>()
    }

    /// Bytes that everything kept between runs takes.
    pub fn reserved_bytes(&self) -> usize {
        let rows: usize = self.rows.iter().map(Panels::bytes).sum();
        let ready = self.parts.iter().flat_map(|part| &part.ready);
        let biases = ready.map(|ready| match ready {
            Ready::Bias(Some(bias)) => bias.as_bytes().len(),
            _ => 0,
        });
        let attention = self.attention.as_ref().map_or(0, Attention::bytes);
        self.arena_bytes() + rows + biases.sum::<usize>() + attention
    }

    /// Bytes that [`Executor::room`] takes for as many tokens as a run may see.
    pub fn room_bytes(&self) -> usize {
        let layers = &self.image.description().layers;
        let numbers = layers.iter().map(|layer| layer.kv_heads * layer.head_dim);
        2 * (self.most_rows + self.most_prefix) * numbers.sum::<usize>() * size_of::<f32>()
    }

    /// Whether tokens see only those before them, so that keys and values may be kept.
    fn goes_on(&self) -> bool {
        let steps = self.image.steps().map_or(&[][..], |program| &program.steps);
        steps.iter().all(|step| match step {
            Step::Attend(attend) => attend.mask.after == Some(0),
            _ => true,
        })
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
        let counts = self.image.steps().is_some_and(|program| program.counted);
        Ok(Past::of_prefix(
            prefix,
            &self.image.description().layers,
            counts,
        ))
    }

    /// Room for the keys and values of `tokens` tokens, or of as many as a run may see; `None` where tokens see later
    /// ones.
    pub fn room(&self, tokens: Option<usize>) -> Option<Past> {
        let most = self.most_rows + self.most_prefix;
        let tokens = tokens.map_or(most, |tokens| tokens.min(most));
        let layers = &self.image.description().layers;
        self.goes_on().then(|| Past::with_room(layers, tokens))
    }

    /// Runs texts, each behind `past` of its number.
    ///
    /// # Errors
    /// When there is no room for the rows or their positions, or a token has none.
    pub fn run<'p>(
        &mut self,
        input: Input<'_>,
        past: &dyn Fn(usize) -> &'p Past,
    ) -> Result<(), Error> {
        self.run_body(input, &mut Before::Each(past))
    }

    /// Runs the only text of `input` behind `past`, which becomes what stands before the next.
    ///
    /// # Errors
    /// As [`Executor::run`], or when `past` has no room; it is then as it was.
    pub fn go_on(&mut self, input: Input<'_>, past: &mut Past) -> Result<(), Error> {
        debug_assert!(input.lengths.len() == 1 && self.goes_on());
        let ran = self.run_body(input, &mut Before::Growing(past));
        match ran {
            Ok(()) => past.advance(input.ids.len()),
            Err(_) => past.forget(),
        }
        ran
    }

    /// The hidden rows of the last run, `[rows, hidden]`.
    pub fn hidden_rows(&self) -> &[f32] {
        &self.arena.view()[self.made.clone()]
    }

    fn run_body(&mut self, input: Input<'_>, before: &mut Before<'_, '_>) -> Result<(), Error> {
        let image = self.image.clone();
        let program = image.steps().ok_or_else(no_kernel)?;
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
            fits(before.position(text.index) + text.rows, program.max_rows)?;
        }
        if let Some(id) = program.padding
            && input.ids.contains(&id.into())
        {
            return Err(Error::Padding { id });
        }
        self.arena.numbers()[..input.rows.len()].copy_from_slice(input.rows);
        self.made = 0..0;
        self.steps(BODY, &program.steps, input, before)?;
        let (begin, hidden) = self.parts[BODY].slots[program.output.slot];
        self.made = begin..begin + rows * hidden;
        Ok(())
    }

    /// Scores of the vocabulary, `[vocabulary]`, for row `row` of the last run's hidden rows.
    ///
    /// # Errors
    /// [`Error::NoLogits`] where the image has none or there is no such row.
    pub fn logits(&mut self, row: usize) -> Result<&mut [f32], Error> {
        let image = self.image.clone();
        let program = image.steps().ok_or_else(no_kernel)?;
        let (Some(logits), Some(part)) = (&program.logits, self.parts.get(LOGITS)) else {
            return Err(Error::NoLogits);
        };
        let hidden = image.description().hidden;
        let start = self.made.start + row * hidden;
        if start + hidden > self.made.end {
            return Err(Error::NoLogits);
        }
        let (into, _) = part.slots[0];
        let (begin, _) = part.slots[logits.output.slot];
        self.arena
            .numbers()
            .copy_within(start..start + hidden, into);
        let one = Input {
            rows: &[],
            ids: &[0],
            types: &[0],
            lengths: &[1],
        };
        self.steps(LOGITS, &logits.steps, one, &mut Before::Nothing)?;
        let start = begin + logits.output.first;
        let scores = start..start + logits.vocabulary;
        Ok(&mut self.arena.numbers()[scores])
    }

    /// Scores that [`Executor::logits`] gives; `None` where it gives none.
    pub fn vocabulary(&self) -> Option<usize> {
        let logits = self.image.steps()?.logits.as_ref();
        logits.map(|logits| logits.vocabulary)
    }

    /// Does the steps of part `part`.
    fn steps(
        &mut self,
        part: usize,
        steps: &[Step],
        input: Input<'_>,
        before: &mut Before<'_, '_>,
    ) -> Result<(), Error> {
        let image = self.image.clone();
        self.packed = None;
        for (index, step) in steps.iter().enumerate() {
            // A product writes no slot that it reads; other steps may write the one that was packed.
            if !matches!(step, Step::Product(_)) {
                self.packed = None;
            }
            match step {
                Step::Product(product) => {
                    self.product(product, (part, index), input.ids.len())?;
                }
                Step::Tied(tied) => self.tied(tied, part)?,
                Step::Attend(attend) => {
                    for text in texts(input.lengths) {
                        self.attend(attend, (part, index), text, before)?;
                    }
                }
                Step::Rows(steps) => {
                    let part = &self.parts[part];
                    let mut memory = Memory {
                        arena: self.arena.numbers(),
                        constants: image.constants(),
                        slots: &part.slots,
                        scratch: part.scratch,
                    };
                    for text in texts(input.lengths) {
                        let position = before.position(text.index);
                        let types = &input.types[text.first..text.first + text.rows];
                        let at = (text.first, position);
                        self.curves.run(steps, &mut memory, types, at)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn attend(
        &mut self,
        attend: &Attend,
        (part, index): (usize, usize),
        text: Text,
        before: &mut Before<'_, '_>,
    ) -> Result<(), Error> {
        let Part { slots, ready, .. } = &self.parts[part];
        let Ready::Scale(scale) = &ready[index] else {
            unreachable!("attentions have a scale")
        };
        let attention = self.attention.as_mut().ok_or_else(no_kernel)?;
        let keys = match before {
            Before::Nothing => Keys::Joined(None),
            Before::Each(past) => Keys::Joined(past(text.index).layer(attend.layer)),
            Before::Growing(past) => {
                let layer = past.layer_mut(attend.layer).ok_or_else(no_kernel)?;
                let numbers = self.arena.view();
                layer.push(text.rows, |half, head| {
                    let at = attend.half(half);
                    let (begin, width) = slots[at.slot];
                    let start = begin + text.first * width + at.first + head * at.step;
                    (&numbers[start..], width)
                })?;
                Keys::Stored(layer)
            }
        };
        let scene = Scene {
            arena: &mut self.arena,
            slots,
            first: text.first,
            rows: text.rows,
            keys,
            scale,
        };
        attention.run(attend, scene)
    }

    fn product(
        &mut self,
        product: &Product,
        (part, index): (usize, usize),
        rows: usize,
    ) -> Result<(), Error> {
        let Part { slots, ready, .. } = &self.parts[part];
        let weight = &self.weights[product.weight];
        let which = weight.kernels[usize::from(rows > 1)];
        let (kernel, panels) = (&mut self.kernels[which], &mut self.rows[which]);
        let wanted = Some((which, product.input, weight.inputs));
        if self.packed != wanted {
            let (begin, width) = slots[product.input.slot];
            let from = &self.arena.numbers()[begin + product.input.first..];
            panels.pack(from, (weight.inputs, rows), (1, width))?;
            self.packed = wanted;
        }
        let block = |columns: Columns| {
            let (begin, width) = slots[columns.slot];
            Block {
                first: begin + columns.first,
                step: width,
            }
        };
        let Ready::Bias(bias) = &ready[index] else {
            unreachable!("products have a place for a bias")
        };
        let sums = Sums {
            left: &weight.panels,
            right: panels,
            bias: bias.as_ref(),
            scale: None,
            residual: product.residual.map(block),
            output: block(product.output),
        };
        kernel.multiply(&mut self.arena, (weight.outputs, rows), &sums)
    }

    /// The product of one row with every row of the embedding table.
    fn tied(&mut self, tied: &Tied, part: usize) -> Result<(), Error> {
        let slots = &self.parts[part].slots;
        let start = |columns: Columns| slots[columns.slot].0 + columns.first;
        let (from, to) = (start(tied.input), start(tied.output));
        let numbers = self.arena.numbers();
        let hidden = self.row.len();
        self.row.copy_from_slice(&numbers[from..from + hidden]);
        let scores = &mut numbers[to..to + self.image.description().vocabulary];
        wide(|| {
            let rows = self.image.table().chunks_exact(self.row.len());
            let pairs = scores.iter_mut().zip(rows);
            pairs.for_each(|(score, row)| *score = inner(&self.row, row));
        });
        if let Some(bias) = tied.bias {
            let bias = &self.image.constants()[bias..];
            let pairs = scores.iter_mut().zip(bias);
            pairs.for_each(|(score, bias)| *score += bias);
        }
        Ok(())
    }
}

impl Before<'_, '_> {
    /// Position of the first token of text `index`.
    fn position(&self, index: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Each(past) => past(index).position(),
            Self::Growing(past) => past.position(),
        }
    }
}

/// Where texts of so many rows lie, one behind the other.
fn texts(lengths: &[usize]) -> impl Iterator<Item = Text> {
    let ends = lengths.iter().scan(0, |end, &rows| {
        *end += rows;
        Some(*end)
    });
    let texts = lengths.iter().zip(ends).enumerate();
    texts.map(|(index, (&rows, end))| Text {
        index,
        first: end - rows,
        rows,
    })
}

/// The weights of `image` with the kernels that read them.
fn weights(image: &Image) -> Result<(Vec<Weight>, Vec<Kernel>), Error> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let weights = image.packed().iter().map(|packed| {
        let mut place = |name: &str| -> Result<usize, Error> {
            let known = kernels.iter().position(|kernel| kernel.name() == name);
            if known.is_none() {
                kernels.push(Kernel::named(name).ok_or_else(no_kernel)?);
            }
            Ok(known.unwrap_or(kernels.len() - 1))
        };
        let many = place(&packed.kernels[0])?;
        let one = packed.kernels.get(1).map(|name| place(name));
        Ok(Weight {
            panels: MappedPanels::new(image, packed),
            inputs: packed.k,
            outputs: packed.mn,
            kernels: [one.unwrap_or(Ok(many))?, many],
        })
    });
    let weights = weights.collect::<Result<_, Error>>()?;
    Ok((weights, kernels))
}

/// What each of `steps` needs beside the program.
fn ready(image: &Image, weights: &[Weight], steps: &[Step]) -> Vec<Ready> {
    let steps = steps.iter().map(|step| match step {
        Step::Product(Product { bias, weight, .. }) => Ready::Bias(bias.map(|bias| {
            let outputs = weights[*weight].outputs;
            tensor1(&image.constants()[bias..bias + outputs])
        })),
        Step::Attend(attend) => Ready::Scale(tensor0(attend.scale)),
        Step::Tied(_) | Step::Rows(_) => Ready::Nothing,
    });
    steps.collect()
}
