//! Attention over what stands before a text and over the text, a head and a block of queries at a time.

use tract_data::internal::Tensor;
use tract_linalg::{Func, reduce::MapReduce};

use super::{
    super::{failed, vectors::wide},
    arena::{Block, Shared},
    kernels::{Kernel, Left, Sums},
    no_kernel,
    operands::{Panels, Right, Rows},
    past::{Half, Layer},
    program::{Attend, Heads, KeyHeads, Mask},
    rows::inner,
};
use crate::Error;

/// Queries that are scored at once.
pub(super) const QUERIES: usize = 64;

/// What attention works with.
#[derive(Debug)]
pub(super) struct Attention {
    kernel: Kernel,
    keys: Panels,
    values: Panels,
    /// Queries, then scores, where the kernel packs them.
    right: Option<Panels>,
    /// One query, and the mixture of values that answers it.
    single: [Vec<f32>; 2],
    /// Where scores go in the arena: [`QUERIES`] runs of as many numbers as there are keys.
    scores: usize,
    most_keys: usize,
    exponents: Box<dyn MapReduce<f32, f32>>,
}

/// A text, and what its tokens see.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub arena: Shared<'a>,
    /// Where each slot begins in the arena, and the numbers of one of its rows.
    pub slots: &'a [(usize, usize)],
    /// The text's first row.
    pub first: usize,
    /// How many it has.
    pub rows: usize,
    pub keys: Keys<'a>,
    /// The step's scale as the kernels take it.
    pub scale: &'a Tensor,
    /// The numbers of [`Attend::distances`]; none where it has none.
    pub distances: &'a [f32],
}

/// Where a text's keys and values are.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    /// In the slots, behind those of a past.
    Joined(KeyHeads, Option<&'a Layer>),
    /// All in one past, the text's own the last where it has any.
    Stored(&'a Layer),
}

impl<'a> Keys<'a> {
    fn layer(self) -> Option<&'a Layer> {
        match self {
            Self::Joined(_, layer) => layer,
            Self::Stored(layer) => Some(layer),
        }
    }

    /// All of them, for a text of `rows` rows.
    pub fn count(self, rows: usize) -> usize {
        let before = self.layer().map_or(0, Layer::tokens);
        match self {
            Self::Joined(..) => before + rows,
            Self::Stored(_) => before,
        }
    }

    fn prefix(self) -> usize {
        self.layer().map_or(0, Layer::prefix)
    }
}

impl<'a> Scene<'a> {
    /// From a head's first number of row `first` of the text to its last of the `count`-th row on, `length` numbers a row,
    /// and the numbers from one row to the next.
    fn rows(
        self,
        at: Heads,
        head: usize,
        length: usize,
        (first, count): (usize, usize),
    ) -> (&'a [f32], usize) {
        let (begin, width) = self.slots[at.slot];
        let start = begin + (self.first + first) * width + at.first + head * at.step;
        let end = start + (count - 1) * width + length;
        (self.arena.read(start..end), width)
    }
}

impl Attention {
    /// Room for heads of `head_dim` numbers and `most_keys` keys, with scores at `scores` in the arena.
    pub fn new(head_dim: usize, most_keys: usize, scores: usize) -> Result<Self, Error> {
        let kernel = Kernel::for_rows(head_dim).ok_or_else(no_kernel)?;
        let exponents = Func::Softmax2.map_reduce_f32();
        let depth = head_dim.max(most_keys);
        Ok(Self {
            keys: Panels::new(&kernel.left, head_dim, most_keys)?,
            values: Panels::new(&kernel.left, most_keys, head_dim)?,
            right: kernel.right_panels(depth, QUERIES)?,
            single: [vec![0.0; head_dim], vec![0.0; head_dim]],
            kernel,
            scores,
            most_keys,
            exponents: exponents.map_err(failed("choosing a kernel"))?,
        })
    }

    /// Bytes that are reserved, those of the scores not among them.
    pub fn bytes(&self) -> usize {
        let panels = [&self.keys, &self.values].into_iter().chain(&self.right);
        panels.map(Panels::bytes).sum()
    }

    /// Computes once on this thread: see [`Kernel::warm_up`].
    pub fn warm_up(&mut self) -> Result<(), Error> {
        self.kernel.warm_up()?;
        self.softmax(&mut [0.0; 3])
    }

    /// Answers all queries of the heads that share head `shared` of the keys and values.
    ///
    /// # Errors
    /// When there are more keys than room was made for.
    pub fn run(&mut self, step: &Attend, scene: Scene<'_>, shared: usize) -> Result<(), Error> {
        let keys = scene.keys.count(scene.rows);
        if keys > self.most_keys {
            let limit = self.most_keys;
            return Err(Error::Room { rows: keys, limit });
        }
        let alone = match scene.keys {
            Keys::Stored(layer) if scene.rows == 1 => Some(layer),
            _ => None,
        };
        if alone.is_none() {
            self.pack_head(step, scene, shared)?;
        }
        let heads = step.heads / step.kv_heads;
        for head in shared * heads..(shared + 1) * heads {
            if let Some(layer) = alone {
                self.query(step, scene, head, layer)?;
                continue;
            }
            for first in (0..scene.rows).step_by(QUERIES) {
                let queries = QUERIES.min(scene.rows - first);
                self.queries(step, scene, head, (first, queries))?;
            }
        }
        Ok(())
    }

    /// Packs one head's keys and values, those of the past first.
    fn pack_head(&mut self, step: &Attend, scene: Scene<'_>, head: usize) -> Result<(), Error> {
        let length = step.head_dim;
        for half in [Half::Keys, Half::Values] {
            let before = scene.keys.layer().map_or(Rows::NONE, |layer| Rows {
                numbers: layer.head(half, head),
                count: layer.tokens(),
                step: length,
            });
            let own = match scene.keys {
                Keys::Stored(_) => Rows::NONE,
                Keys::Joined(own, _) => {
                    let (numbers, step) = scene.rows(own.half(half), head, length, (0, scene.rows));
                    Rows {
                        numbers,
                        count: scene.rows,
                        step,
                    }
                }
            };
            match half {
                Half::Keys => self.keys.pack_rows([before, own], length)?,
                Half::Values => self.values.pack_columns([before, own], length)?,
            }
        }
        Ok(())
    }

    /// Answers `queries` of the text's rows from `first` on for one head.
    fn queries(
        &mut self,
        step: &Attend,
        scene: Scene<'_>,
        head: usize,
        (first, queries): (usize, usize),
    ) -> Result<(), Error> {
        let keys = scene.keys.count(scene.rows);
        let row = scene.first + first;
        let (begin, width) = scene.slots[step.query.slot];
        let asked = Block {
            first: begin + row * width + step.query.first + head * step.query.step,
            step: width,
        };
        let size = (step.head_dim, queries);
        let next = head / (step.heads / step.kv_heads) + 1;
        let soon = |half| match scene.keys.layer() {
            Some(layer) if next < step.kv_heads => layer.head(half, next),
            _ => &[],
        };
        let scores = Block {
            first: self.scores,
            step: keys,
        };
        let sums = Sums {
            left: Left::Floats(&self.keys),
            right: Right::new(self.right.as_mut(), scene.arena, asked, size)?,
            bias: None,
            scale: Some(scene.scale),
            residual: None,
            output: scores,
            soon: soon(Half::Keys),
        };
        self.kernel.multiply(scene.arena, (keys, queries), &sums)?;
        let region = self.scores..self.scores + queries * keys;
        let numbers = scene.arena.write(region);
        for (row, scores) in (first..).zip(numbers.chunks_exact_mut(keys)) {
            self.weigh(step, scene, (row, head), scores)?;
        }
        let (begin, width) = scene.slots[step.output.slot];
        let output = Block {
            first: begin + row * width + step.output.first + head * step.value_dim,
            step: width,
        };
        let sums = Sums {
            left: Left::Floats(&self.values),
            right: Right::new(self.right.as_mut(), scene.arena, scores, (keys, queries))?,
            bias: None,
            scale: None,
            residual: None,
            output,
            soon: soon(Half::Values),
        };
        self.kernel
            .multiply(scene.arena, (step.value_dim, queries), &sums)
    }

    /// Answers the only row of a text for one head, where all keys and values are in a past: nothing is packed.
    fn query(
        &mut self,
        step: &Attend,
        scene: Scene<'_>,
        head: usize,
        layer: &Layer,
    ) -> Result<(), Error> {
        let length = step.head_dim;
        let shared = head / (step.heads / step.kv_heads);
        let [keys, values] = [Half::Keys, Half::Values].map(|half| layer.head(half, shared));
        let (numbers, _) = scene.rows(step.query, head, length, (0, 1));
        let [query, _] = &mut self.single;
        for (into, number) in query[..length].iter_mut().zip(numbers) {
            *into = number * step.scale;
        }
        let region = self.scores..self.scores + layer.tokens();
        let scores = scene.arena.write(region);
        let query = &query[..length];
        wide!(|query: &[f32], keys: &[f32], scores: &mut [f32]| -> () {
            let keys = keys.chunks_exact(query.len()).zip(scores);
            keys.for_each(|(key, score)| *score = inner(query, key));
        });
        self.weigh(step, scene, (0, head), scores)?;
        let mixed = &mut self.single[1][..length];
        mixed.fill(0.0);
        wide!(|mixed: &mut [f32], values: &[f32], scores: &[f32]| -> () {
            for (value, weight) in values.chunks_exact(mixed.len()).zip(scores) {
                let pairs = mixed.iter_mut().zip(value);
                pairs.for_each(|(sum, number)| *sum += weight * number);
            }
        });
        let (begin, width) = scene.slots[step.output.slot];
        let start = begin + scene.first * width + step.output.first + head * step.value_dim;
        let output = scene.arena.write(start..start + length);
        output.copy_from_slice(mixed);
        Ok(())
    }

    /// Makes weights of the scores of one row for one head.
    fn weigh(
        &self,
        step: &Attend,
        scene: Scene<'_>,
        (row, head): (usize, usize),
        scores: &mut [f32],
    ) -> Result<(), Error> {
        let Scene { keys, rows, .. } = scene;
        if let Some(cap) = step.cap {
            scores
                .iter_mut()
                .for_each(|score| *score = cap * (*score / cap).tanh());
        }
        let before = &mut scores[..keys.prefix()];
        let gate = keys.layer().map_or(0.0, Layer::gate);
        before.iter_mut().for_each(|score| *score += gate);
        let own = &mut scores[keys.layer().map_or(0, Layer::always_seen)..];
        // Of another text's tokens there may be fewer; none of them is hidden.
        let place = own.len().saturating_sub(rows) + row;
        if let Some(distances) = step.distances {
            let width = distances.width();
            let table = &scene.distances[head * width..(head + 1) * width];
            add_by_distance(own, table, distances.before, place);
        }
        hide(own, step.mask, place);
        self.softmax(scores)
    }

    fn softmax(&self, scores: &mut [f32]) -> Result<(), Error> {
        let largest = wide!(|scores: &[f32]| -> f32 { largest(scores) });
        let sum = self.exponents.run_with_params(scores, largest);
        let scale = sum.map_err(failed("computing a softmax"))?.recip();
        wide!(|scores: &mut [f32], scale: f32| -> () {
            scores.iter_mut().for_each(|score| *score *= scale);
        });
        Ok(())
    }
}

/// The largest of the numbers, lane by lane.
#[inline(always)]
fn largest(numbers: &[f32]) -> f32 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let larger = |one: f32, other: f32| if other > one { other } else { one };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        let pairs = lanes.iter_mut().zip(chunk);
        pairs.for_each(|(lane, &number)| *lane = larger(*lane, number));
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |one, &other| larger(one, other))
}

/// Numbers that are compared at once.
const LANES: usize = 16;

/// So far below every score that its exponential is zero beside theirs.
const HIDDEN: f32 = -1e30;

/// Adds the number of `table` for its distance to each score of token `place`: the first is that of tokens `before` back,
/// and of all that are farther; the last that of the farthest ahead.
fn add_by_distance(scores: &mut [f32], table: &[f32], before: usize, place: usize) {
    let near = place.saturating_sub(before).min(scores.len());
    let (back, scores) = scores.split_at_mut(near);
    let near = &table[near + before - place..];
    let (beside, ahead) = scores.split_at_mut(near.len().min(scores.len()));
    let add =
        |scores: &mut [f32], number: f32| scores.iter_mut().for_each(|score| *score += number);
    add(back, table[0]);
    beside
        .iter_mut()
        .zip(near)
        .for_each(|(score, number)| *score += number);
    add(ahead, table[table.len() - 1]);
}

/// Takes the tokens out that token `place` does not see.
fn hide(scores: &mut [f32], mask: Mask, place: usize) {
    if let Some(before) = mask.before {
        let hidden = place.saturating_sub(before).min(scores.len());
        scores[..hidden].fill(HIDDEN);
    }
    if let Some(after) = mask.after {
        let visible = place
            .saturating_add(after)
            .saturating_add(1)
            .min(scores.len());
        scores[visible..].fill(HIDDEN);
    }
}
