//! Attention over a prefix and a text, a head and a block of queries at a time.

use tract_data::internal::Tensor;
use tract_linalg::{Func, reduce::MapReduce};

use super::{
    super::failed,
    LayerPrefix,
    kernels::{Arena, Block, Kernel, Panels, Sums},
    no_kernel,
    program::{Attend, Mask},
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
    right: Panels,
    /// One head's keys or values with those of the prefix before them.
    joined: Vec<f32>,
    /// Where scores go in the arena: [`QUERIES`] runs of as many numbers as there are keys.
    scores: usize,
    most_keys: usize,
    exponents: Box<dyn MapReduce<f32, f32>>,
}

/// Where a step's numbers lie in the arena, and how many rows there are.
pub(super) struct Scene<'a> {
    pub arena: &'a mut Arena,
    pub slots: &'a [(usize, usize)],
    pub rows: usize,
    pub prefix: Option<&'a LayerPrefix>,
    /// The step's scale as the kernels take it.
    pub scale: &'a Tensor,
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
            right: Panels::new(&kernel.right, depth, QUERIES)?,
            joined: vec![0.0; head_dim * most_keys],
            kernel,
            scores,
            most_keys,
            exponents: exponents.map_err(failed("choosing a kernel"))?,
        })
    }

    pub fn run(&mut self, step: &Attend, mut scene: Scene<'_>) -> Result<(), Error> {
        let before = scene.prefix.map_or(0, |prefix| prefix.tokens);
        let keys = before + scene.rows;
        if keys > self.most_keys {
            let limit = self.most_keys;
            return Err(Error::Room { rows: keys, limit });
        }
        let shared = step.heads / step.kv_heads;
        for head in 0..step.heads {
            if head % shared == 0 {
                self.pack_head(step, &mut scene, head / shared)?;
            }
            for first in (0..scene.rows).step_by(QUERIES) {
                let queries = QUERIES.min(scene.rows - first);
                self.queries(step, &mut scene, head, first, queries)?;
            }
        }
        Ok(())
    }

    /// Packs one head's keys and values, those of the prefix first.
    fn pack_head(
        &mut self,
        step: &Attend,
        scene: &mut Scene<'_>,
        head: usize,
    ) -> Result<(), Error> {
        let length = step.head_dim;
        let before = scene.prefix.map_or(0, |prefix| prefix.tokens);
        let keys = before + scene.rows;
        for (at, is_key) in [(step.key, true), (step.value, false)] {
            let (begin, width) = scene.slots[at.slot];
            let start = begin + at.first + head * at.step;
            let text = &scene.arena.numbers()[start..];
            let (from, width) = match scene.prefix {
                None => (text, width),
                Some(prefix) => {
                    let stored = if is_key { &prefix.keys } else { &prefix.values };
                    let (prefix_rows, text_rows) = self.joined.split_at_mut(before * length);
                    let stored = stored.chunks_exact(before * length).nth(head);
                    prefix_rows.copy_from_slice(stored.unwrap_or_default());
                    let rows = text_rows.chunks_exact_mut(length).take(scene.rows);
                    for (row, text) in rows.zip(text.chunks(width)) {
                        row.copy_from_slice(&text[..length]);
                    }
                    (&self.joined[..], length)
                }
            };
            match is_key {
                true => self.keys.pack(from, (length, keys), (1, width))?,
                false => self.values.pack(from, (keys, length), (width, 1))?,
            }
        }
        Ok(())
    }

    /// Answers `queries` rows from `first` on for one head.
    fn queries(
        &mut self,
        step: &Attend,
        scene: &mut Scene<'_>,
        head: usize,
        first: usize,
        queries: usize,
    ) -> Result<(), Error> {
        let before = scene.prefix.map_or(0, |prefix| prefix.tokens);
        let gate = scene.prefix.map_or(0.0, |prefix| prefix.gate);
        let keys = before + scene.rows;
        let (begin, width) = scene.slots[step.query.slot];
        let start = begin + first * width + step.query.first + head * step.query.step;
        let from = &scene.arena.numbers()[start..];
        self.right
            .pack(from, (step.head_dim, queries), (1, width))?;
        let scores = Block {
            first: self.scores,
            step: keys,
        };
        let sums = Sums {
            left: &self.keys,
            right: &self.right,
            bias: None,
            scale: Some(scene.scale),
            residual: None,
            output: scores,
        };
        self.kernel.multiply(scene.arena, (keys, queries), &sums)?;
        let region = self.scores..self.scores + queries * keys;
        let numbers = &mut scene.arena.numbers()[region];
        for (row, scores) in (first..).zip(numbers.chunks_exact_mut(keys)) {
            if let Some(cap) = step.cap {
                scores
                    .iter_mut()
                    .for_each(|score| *score = cap * (*score / cap).tanh());
            }
            scores[..before].iter_mut().for_each(|score| *score += gate);
            hide(&mut scores[before..], step.mask, row);
            self.softmax(scores)?;
        }
        let numbers = &scene.arena.numbers()[self.scores..];
        self.right.pack(numbers, (keys, queries), (1, keys))?;
        let (begin, width) = scene.slots[step.output.slot];
        let output = Block {
            first: begin + first * width + step.output.first + head * step.value_dim,
            step: width,
        };
        let sums = Sums {
            left: &self.values,
            right: &self.right,
            bias: None,
            scale: None,
            residual: None,
            output,
        };
        self.kernel
            .multiply(scene.arena, (step.value_dim, queries), &sums)
    }

    fn softmax(&self, scores: &mut [f32]) -> Result<(), Error> {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = self.exponents.run_with_params(scores, largest);
        let scale = sum.map_err(failed("computing a softmax"))?.recip();
        scores.iter_mut().for_each(|score| *score *= scale);
        Ok(())
    }
}

/// So far below every score that its exponential is zero beside theirs.
const HIDDEN: f32 = -1e30;

/// Takes the tokens out that `row` does not see.
fn hide(scores: &mut [f32], mask: Mask, row: usize) {
    if let Some(before) = mask.before {
        let hidden = row.saturating_sub(before).min(scores.len());
        scores[..hidden].fill(HIDDEN);
    }
    if let Some(after) = mask.after {
        let visible = (row + after + 1).min(scores.len());
        scores[visible..].fill(HIDDEN);
    }
}
