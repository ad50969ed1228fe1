//! Steps, each done in pieces by the threads of the pool.
//!
//! What a piece computes does not depend on how many there are: products are parted between panels of the weight,
//! attention between heads of the keys, the product with the embedding table between tokens, everything else between rows.

use std::{mem, ops::Range};

use super::{
    super::{Input, vectors::wide},
    Executor, Operand, Part, Past, Ready, Worker,
    arena::{Arena, Block, Shared},
    attend::{Keys, Scene},
    kernels::Sums,
    no_kernel,
    operands::Right,
    past::Layer,
    pool::Pool,
    program::{Attend, Columns, Keep, KeyHeads, Product, RowStep, Step, Tied},
    rows::{Memory, inner},
};
use crate::{Error, Image, Weights, engine, map::floats};

/// What stands before the texts of a run.
pub(super) enum Before<'a, 'p> {
    Nothing,
    /// Before each text something of its own.
    Each(&'a (dyn Fn(usize) -> &'p Past + Sync)),
    /// Before each text what its own keys and values are added to.
    Growing(&'a mut [engine::Past]),
    /// The same before the only text, for what it is told to keep alone.
    Keeping(&'a mut Past),
}

/// A text of a run: where its rows begin, and how many there are.
#[derive(Clone, Copy)]
pub(super) struct Text {
    pub index: usize,
    pub first: usize,
    pub rows: usize,
}

/// Weights in fewer bits that a kernel reads as they are stored are expanded once for more rows than these, since it makes
/// numbers of them anew for every few.
const FEW_ROWS: usize = 48;

/// A step of so few multiplications is done before other threads have heard of it.
const FEW: usize = 1 << 16;

impl Executor {
    /// Does the steps of part `part`.
    pub(super) fn steps(
        &mut self,
        part: usize,
        steps: &[Step],
        input: Input<'_>,
        before: &mut Before<'_, '_>,
    ) -> Result<(), Error> {
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
                Step::Tied(tied) => self.tied(tied, part, input.ids.len())?,
                Step::Attend(attend) => self.attend(attend, (part, index), input, before)?,
                Step::Keep(keep) => self.keep(keep, part, input.ids.len(), before)?,
                Step::Rows(steps) => self.rows(steps, part, input, before)?,
            }
        }
        Ok(())
    }

    fn product(
        &mut self,
        product: &Product,
        (part, index): (usize, usize),
        rows: usize,
    ) -> Result<(), Error> {
        let weight = &self.weights[product.weight];
        let Some(kernels) = weight.kernels else {
            return self.product_of_bytes(product, (part, index), rows);
        };
        let Part { slots, ready, .. } = &self.parts[part];
        let which = kernels[usize::from(rows > 1)];
        let Ready::Bias(biases) = &ready[index] else {
            unreachable!("products have a place for a bias")
        };
        let work = rows * weight.inputs * weight.outputs;
        // SAFETY: pieces write columns of their own, of a slot that none reads but for a residual in the same columns.
        let arena = unsafe { self.arena.share() };
        let block = |columns: Columns| {
            let (begin, width) = slots[columns.slot];
            Block {
                first: begin + columns.first,
                step: width,
            }
        };
        let wanted = Some((Some(which), product.input, weight.inputs));
        let right = match &mut self.rows[which] {
            Some(panels) if self.packed == wanted => Right::Panels(panels),
            panels => {
                let size = (weight.inputs, rows);
                Right::new(panels.as_mut(), arena, block(product.input), size)?
            }
        };
        self.packed = wanted;
        each(&mut self.pool, &mut self.workers, work, |at, worker| {
            let Some(piece) = weight.pieces.get(at) else {
                return Ok(());
            };
            let block = |columns: Columns| block(columns).behind(piece.first);
            let sums = Sums {
                left: piece.panels.left(),
                right,
                bias: biases.get(at).map(|bias| (bias, 0)),
                scale: None,
                residual: product.residual.map(block),
                output: block(product.output),
                soon: &[],
            };
            let kernel = &mut worker.kernels[which];
            match (&piece.panels, &mut worker.expanded[which]) {
                (Operand::Narrow(narrow), Some(expanded))
                    if rows > FEW_ROWS || !kernel.reads_stored() =>
                {
                    narrow.multiply(kernel, expanded, (arena, rows), &sums)
                }
                _ => kernel.multiply(arena, (piece.outputs, rows), &sums),
            }
        })
    }

    /// The product of the first `rows` rows with every row of the embedding table.
    fn tied(&mut self, tied: &Tied, part: usize, rows: usize) -> Result<(), Error> {
        let slots = &self.parts[part].slots;
        let (image, vocabulary) = (&self.image, self.image.description().vocabulary);
        let length = image.description().embedding_width();
        let (begin, width) = slots[tied.input.slot];
        let from = self.arena.view()[begin..].chunks_exact(width);
        for (row, from) in self.row.chunks_exact_mut(length).zip(from).take(rows) {
            row.copy_from_slice(&from[tied.input.first..][..length]);
        }
        let own = &self.row[..rows * length];
        let (begin, width) = slots[tied.output.slot];
        let to = begin + tied.output.first;
        let pieces = self.pool.count();
        // SAFETY: pieces write scores of their own.
        let arena = unsafe { self.arena.share() };
        let work = rows * vocabulary * length;
        each(&mut self.pool, &mut self.workers, work, |piece, worker| {
            let tokens = share(vocabulary, piece, pieces);
            let (tokens, other) = (&tokens, &mut worker.row);
            let output = (arena, to, width);
            wide!(|image: &Image,
                   tokens: &Range<usize>,
                   own: &[f32],
                   other: &mut [f32],
                   output: (Shared<'_>, usize, usize)|
             -> () {
                let (weights, stored) = image.table();
                let (arena, to, width) = output;
                for (token, stored) in tokens.clone().zip(stored.skip(tokens.start)) {
                    let other = match weights {
                        Weights::F32 => floats(stored),
                        _ => {
                            weights.expand(stored, 1, 0, other);
                            &*other
                        }
                    };
                    for (index, row) in own.chunks_exact(other.len()).enumerate() {
                        let score = to + index * width + token;
                        arena.write(score..score + 1)[0] = inner(row, other);
                    }
                }
            });
            if let Some(bias) = tied.bias {
                let bias = &image.constants()[bias + tokens.start..bias + tokens.end];
                for index in 0..rows {
                    let first = to + index * width;
                    let scores = arena.write(first + tokens.start..first + tokens.end);
                    let pairs = scores.iter_mut().zip(bias);
                    pairs.for_each(|(score, bias)| *score += bias);
                }
            }
            Ok(())
        })
    }

    fn attend(
        &mut self,
        attend: &Attend,
        (part, index): (usize, usize),
        input: Input<'_>,
        before: &mut Before<'_, '_>,
    ) -> Result<(), Error> {
        let Part { slots, ready, .. } = &self.parts[part];
        let Ready::Scale(scale) = &ready[index] else {
            unreachable!("attentions have a scale")
        };
        if let (Before::Growing(pasts), Some(own)) = (&mut *before, &attend.own) {
            for (past, text) in pasts.iter_mut().zip(texts(input.lengths)) {
                let past = past.of_executor_mut();
                let layer = past.layer_mut(attend.layer).ok_or_else(no_kernel)?;
                push(layer, &self.arena, slots, own, text)?;
            }
        }
        let before = &*before;
        if attend.own.is_none() && !matches!(before, Before::Growing(_)) {
            return Err(Error::NoPast);
        }
        let layer = |text: Text| before.past(text.index)?.layer(attend.layer);
        let keys = |text: Text| match (attend.own, before, layer(text)) {
            (_, Before::Growing(_), Some(layer)) | (None, _, Some(layer)) => Keys::Stored(layer),
            (Some(own), _, layer) => Keys::Joined(own, layer),
            (None, _, None) => unreachable!("what is kept has a layer"),
        };
        let image = &self.image;
        let distances = attend.distances.map_or(&[][..], |distances| {
            &image.constants()[distances.first..][..attend.heads * distances.width()]
        });
        let sums = texts(input.lengths).map(|text| text.rows * keys(text).count(text.rows));
        let work = 2 * attend.heads * attend.head_dim * sums.sum::<usize>();
        let pieces = self.pool.count();
        // SAFETY: pieces write columns of their own heads, and scores in regions of their own; a program that was
        // checked writes no slot that the step reads.
        let arena = unsafe { self.arena.share() };
        each(&mut self.pool, &mut self.workers, work, |piece, worker| {
            let attention = worker.attention.as_mut().ok_or_else(no_kernel)?;
            let all = texts(input.lengths)
                .flat_map(|text| (0..attend.kv_heads).map(move |head| (text, head)));
            for (text, head) in all.skip(piece).step_by(pieces) {
                let scene = Scene {
                    arena,
                    slots,
                    first: text.first,
                    rows: text.rows,
                    keys: keys(text),
                    scale,
                    distances,
                };
                attention.run(attend, scene, head)?;
            }
            Ok(())
        })
    }

    /// Adds keys and values of the only text to what stands before another.
    fn keep(
        &mut self,
        keep: &Keep,
        part: usize,
        rows: usize,
        before: &mut Before<'_, '_>,
    ) -> Result<(), Error> {
        let Before::Keeping(past) = before else {
            return Err(Error::NoPast);
        };
        let layer = past.layer_mut(keep.layer).ok_or_else(no_kernel)?;
        let only = Text {
            index: 0,
            first: 0,
            rows,
        };
        push(
            layer,
            &self.arena,
            &self.parts[part].slots,
            &keep.from,
            only,
        )
    }

    fn rows(
        &mut self,
        steps: &[RowStep],
        part: usize,
        input: Input<'_>,
        before: &Before<'_, '_>,
    ) -> Result<(), Error> {
        let Part { slots, scratch, .. } = &self.parts[part];
        let (image, curves) = (&self.image, &self.curves);
        let pieces = self.pool.count();
        let rows = input.ids.len();
        let numbers = steps.iter().map(|step| step.dims.iter().product::<usize>());
        let work = 8 * rows * numbers.sum::<usize>();
        // SAFETY: pieces read and write rows and scratch space of their own.
        let arena = unsafe { self.arena.share() };
        each(&mut self.pool, &mut self.workers, work, |piece, _| {
            let memory = Memory {
                arena,
                constants: image.constants(),
                slots,
                scratch: scratch[piece],
            };
            let own = share(rows, piece, pieces);
            for text in texts(input.lengths) {
                let first = own.start.max(text.first);
                let end = own.end.min(text.first + text.rows);
                if first < end {
                    let position = before.position(text.index) + first - text.first;
                    let types = &input.types[first..end];
                    curves.run(steps, &memory, types, (first, position))?;
                }
            }
            Ok(())
        })
    }
}

/// Appends the keys and values of a text's rows to `layer`.
fn push(
    layer: &mut Layer,
    arena: &Arena,
    slots: &[(usize, usize)],
    from: &KeyHeads,
    text: Text,
) -> Result<(), Error> {
    let numbers = arena.view();
    layer.push(text.rows, |half, head| {
        let at = from.half(half);
        let (begin, width) = slots[at.slot];
        let first = begin + text.first * width;
        (&numbers[first + at.first + head * at.step..], width)
    })
}

/// Does all pieces of a step of so many multiplications, where there are enough of them at the same time.
pub(super) fn each(
    pool: &mut Pool,
    workers: &mut [Worker],
    work: usize,
    piece: impl Fn(usize, &mut Worker) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    if work < FEW {
        let mut all = workers.iter_mut().enumerate();
        return all.try_for_each(|(at, worker)| piece(at, worker));
    }
    pool.each(workers, |at, worker| worker.done = piece(at, worker));
    finished(workers)
}

/// How the last pieces went: the first error where there are some.
pub(super) fn finished(workers: &mut [Worker]) -> Result<(), Error> {
    let mut all = workers.iter_mut();
    all.try_for_each(|worker| mem::replace(&mut worker.done, Ok(())))
}

/// The numbers below `count` that are piece `piece` of `pieces`.
fn share(count: usize, piece: usize, pieces: usize) -> Range<usize> {
    count * piece / pieces..count * (piece + 1) / pieces
}

impl Before<'_, '_> {
    fn past(&self, index: usize) -> Option<&Past> {
        match self {
            Self::Nothing => None,
            Self::Each(past) => Some(past(index)),
            Self::Growing(pasts) => pasts.get(index).map(engine::Past::of_executor),
            Self::Keeping(past) => Some(past),
        }
    }

    /// Position of the first token of text `index`.
    pub fn position(&self, index: usize) -> usize {
        match self {
            Self::Keeping(_) => 0,
            before => before.past(index).map_or(0, Past::position),
        }
    }
}

/// Where texts of so many rows lie, one behind the other.
pub(super) fn texts(lengths: &[usize]) -> impl Iterator<Item = Text> {
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
