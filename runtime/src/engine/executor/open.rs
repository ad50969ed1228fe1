//! Opening an executor: everything that a run takes is reserved here.

use tract_data::internal::{tensor0, tensor1};

use super::{
    Executor, Operand, Part, Piece, Ready, Weight, Worker,
    arena::Arena,
    attend::{Attention, QUERIES},
    dots::{self, Rounded},
    finished,
    kernels::Kernel,
    narrow::{Expanded, Narrow},
    no_kernel,
    operands::Panels,
    pool::Pool,
    program::{Product, Program, Step},
    rows::Curves,
};
use crate::{Error, Image, Threads, Weights, engine::panels::MappedPanels};

/// Numbers that every thread's own space is a multiple of: kernels that add numbers up do so from one boundary to the next,
/// so that the sum depends on where the first lies between two.
const ALIGNMENT: usize = 64;

/// What is laid out: for whom, and how much at most.
struct Layout<'a> {
    image: &'a Image,
    program: &'a Program,
    weights: &'a [Weight],
    /// Threads.
    pieces: usize,
    most_rows: usize,
    most_prefix: usize,
    most_scored: usize,
}

impl Executor {
    /// Reserves everything that running the program of `image` takes for texts of `most_rows` rows, prompt rows among
    /// them, prefixes of `most_prefix` and scores for `most_scored` texts at once, and starts the threads.
    ///
    /// # Errors
    /// When the image has no program or kernels of another machine, or there is no memory.
    pub fn open(
        image: &Image,
        (most_rows, most_prefix, most_scored): (usize, usize, usize),
        threads: Threads,
    ) -> Result<Self, Error> {
        let program = image.steps().ok_or_else(no_kernel)?;
        let mut pool = Pool::new(threads)?;
        let (weights, names) = weights(image, pool.count());
        let layout = Layout {
            image,
            program,
            weights: &weights,
            pieces: pool.count(),
            most_rows: most_rows.min(program.max_rows),
            most_prefix,
            most_scored,
        };
        let most_rows = layout.most_rows;
        let (parts, end) = layout.parts();
        let scores = layout.scores();
        let workers = (0..layout.pieces).map(|piece| layout.worker(&names, end + piece * scores));
        let mut workers: Vec<Worker> = workers.collect::<Result<_, _>>()?;
        let curves = Curves::new()?;
        pool.each(&mut workers, |_, worker| {
            worker.done = worker.warm_up(&curves);
        });
        finished(&mut workers)?;
        layout.check(&workers[0].kernels)?;
        let rows = layout.rows(&workers[0].kernels)?;
        let rounded = layout.rounded()?;
        Ok(Self {
            arena: Arena::new(end + layout.pieces * scores)?,
            parts,
            most_rows,
            most_prefix,
            rows,
            rounded,
            packed: None,
            pool,
            workers,
            curves,
            row: vec![0.0; image.description().embedding_width() * most_scored],
            nothing: vec![0; most_scored],
            made: 0..0,
            image: image.clone(),
            weights,
        })
    }
}

impl Layout<'_> {
    /// The parts, and where their numbers end in the arena.
    fn parts(&self) -> ([Part; 3], usize) {
        let program = self.program;
        let body = (&*program.slots, program.scratch, &*program.steps);
        let (body, end) = self.part(0, body, self.most_rows);
        // The encoder is done before the body begins, so that they share their room.
        let encoder = program.encoder.as_ref().map(|encoder| {
            let encoder = (&*encoder.slots, encoder.scratch, &*encoder.steps);
            self.part(0, encoder, self.most_rows)
        });
        let (encoder, encoded) = encoder.unwrap_or_default();
        let end = end.max(encoded);
        let logits = program.logits.as_ref().map(|logits| {
            let logits = (&*logits.slots, logits.scratch, &*logits.steps);
            self.part(end, logits, self.most_scored)
        });
        let (logits, end) = logits.unwrap_or_else(|| (Part::default(), end));
        ([body, logits, encoder], end.next_multiple_of(ALIGNMENT))
    }

    /// A part of `rows` rows from `begin` on, and where it ends.
    fn part(
        &self,
        begin: usize,
        (slots, scratch, steps): (&[usize], usize, &[Step]),
        rows: usize,
    ) -> (Part, usize) {
        let mut end = begin;
        let slots = slots.iter().map(|&width| {
            end += rows * width;
            (end - rows * width, width)
        });
        let slots = slots.collect();
        let scratch = scratch.next_multiple_of(ALIGNMENT);
        let spaces = (0..self.pieces).map(|piece| end + piece * scratch);
        let part = Part {
            slots,
            scratch: spaces.collect(),
            ready: self.ready(steps),
        };
        (part, end + self.pieces * scratch)
    }

    /// What each of `steps` needs beside the program.
    fn ready(&self, steps: &[Step]) -> Vec<Ready> {
        let steps = steps.iter().map(|step| match step {
            Step::Product(Product { bias, weight, .. }) => {
                let biases = bias.iter().flat_map(|bias| {
                    let pieces = self.weights[*weight].pieces.iter();
                    pieces.map(move |piece| {
                        let first = bias + piece.first;
                        tensor1(&self.image.constants()[first..first + piece.outputs])
                    })
                });
                Ready::Bias(biases.collect())
            }
            Step::Attend(attend) => Ready::Scale(tensor0(attend.scale)),
            Step::Tied(_) | Step::Keep(_) | Step::Rows(_) => Ready::Nothing,
        });
        steps.collect()
    }

    fn most_keys(&self) -> usize {
        self.most_rows + self.most_prefix
    }

    /// Numbers of the longest head; `None` where there is no attention.
    fn longest_head(&self) -> Option<usize> {
        let encoder = self.program.encoder.iter();
        let encoding = encoder.flat_map(|encoder| &encoder.steps);
        let steps = self.program.steps.iter().chain(encoding);
        let attends = steps.filter_map(Step::as_attend);
        attends.map(|attend| attend.head_dim).max()
    }

    /// Numbers of one thread's scores of attention.
    fn scores(&self) -> usize {
        let queries = QUERIES.min(self.most_rows);
        let scores = self
            .longest_head()
            .map_or(0, |_| queries * self.most_keys());
        scores.next_multiple_of(ALIGNMENT)
    }

    /// The most that `of` gives for a weight.
    fn most(&self, of: fn(&Weight) -> usize) -> usize {
        self.weights.iter().map(of).max().unwrap_or(1)
    }

    /// What one thread works with, its scores of attention at `scores` in the arena.
    fn worker(&self, names: &[&str], scores: usize) -> Result<Worker, Error> {
        let kernels = names.iter().map(|name| Kernel::named(name));
        let kernels: Option<Vec<Kernel>> = kernels.collect();
        let kernels = kernels.ok_or_else(no_kernel)?;
        let narrow = self.image.weights() != Weights::F32;
        let deepest = self.most(|weight| weight.inputs);
        let widest = self.most(|weight| weight.outputs);
        let expanded = kernels.iter().map(|kernel| {
            let expanded = narrow.then(|| Expanded::new(kernel, deepest, widest));
            expanded.transpose()
        });
        let attention = self.longest_head();
        let attention = attention.map(|length| Attention::new(length, self.most_keys(), scores));
        Ok(Worker {
            expanded: expanded.collect::<Result<_, _>>()?,
            row: vec![0.0; self.image.description().embedding_width()],
            kernels,
            attention: attention.transpose()?,
            done: Ok(()),
        })
    }

    /// Whether the weights are laid out for this build and their kernels.
    fn check(&self, kernels: &[Kernel]) -> Result<(), Error> {
        for (packed, weight) in self.image.packed().iter().zip(self.weights) {
            if weight.kernels.is_none() && !dots::reads(packed) {
                let reason = format!("the weight {} is not laid out for this build", packed.name);
                return Err(self.image.unfit(reason));
            }
            let mut kernels = weight
                .kernels
                .iter()
                .flatten()
                .map(|&which| &kernels[which]);
            if let Some(kernel) = kernels.find(|kernel| !kernel.reads(packed)) {
                let (weight, kernel) = (&packed.name, kernel.name());
                let reason = format!("the weight {weight} is not laid out for its kernel {kernel}");
                return Err(self.image.unfit(reason));
            }
        }
        Ok(())
    }

    /// Room for rows as the right operand of each kernel.
    fn rows(&self, kernels: &[Kernel]) -> Result<Vec<Option<Panels>>, Error> {
        let deepest = self.most(|weight| weight.inputs);
        let rows = kernels.iter().enumerate().map(|(which, kernel)| {
            let mut weights = self.weights.iter();
            let several = weights.any(|weight| weight.kernels.is_some_and(|all| all[1] == which));
            let most_rows = self.most_rows.max(self.most_scored);
            kernel.right_panels(deepest, if several { most_rows } else { 1 })
        });
        rows.collect()
    }

    /// Room for rows in 8 bits, where a product is one of bytes.
    fn rounded(&self) -> Result<Option<Rounded>, Error> {
        let bytes = self
            .weights
            .iter()
            .filter(|weight| weight.kernels.is_none());
        let deepest = bytes.map(|weight| weight.inputs).max();
        let most_rows = self.most_rows.max(self.most_scored);
        let rounded = deepest.map(|inputs| Rounded::new(inputs, most_rows));
        rounded.transpose()
    }
}

impl Worker {
    fn warm_up(&mut self, curves: &Curves) -> Result<(), Error> {
        self.kernels.iter_mut().try_for_each(Kernel::warm_up)?;
        curves.warm_up()?;
        let attention = self.attention.as_mut();
        attention.map_or(Ok(()), Attention::warm_up)
    }
}

/// The weights of `image` in `pieces`, and the kernels that read them.
fn weights(image: &Image, pieces: usize) -> (Vec<Weight>, Vec<&str>) {
    let mut kernels: Vec<&str> = Vec::new();
    let weights = image.packed().iter().map(|packed| {
        let mut place = |name| {
            let known = kernels.iter().position(|&kernel| kernel == name);
            known.unwrap_or_else(|| {
                kernels.push(name);
                kernels.len() - 1
            })
        };
        let kernels = (packed.dtype != Weights::I8A8).then(|| {
            let many = place(&packed.kernels[0]);
            let one = match packed.dtype {
                Weights::F32 => packed.kernels.get(1).map(|name| place(name)),
                _ => None,
            };
            [one.unwrap_or(many), many]
        });
        let panels = packed.panels().len();
        let bounds =
            (0..pieces).map(|piece| panels * piece / pieces..panels * (piece + 1) / pieces);
        let pieces = bounds.filter(|panels| !panels.is_empty()).map(|panels| {
            let first = panels.start * packed.r;
            Piece {
                first,
                outputs: packed.mn.min(panels.end * packed.r) - first,
                panels: match packed.dtype {
                    Weights::F32 => Operand::Floats(MappedPanels::new(image, packed, panels)),
                    Weights::I8A8 => Operand::Bytes(Narrow::new(image, packed, panels)),
                    _ => Operand::Narrow(Narrow::new(image, packed, panels)),
                },
            }
        });
        Weight {
            pieces: pieces.collect(),
            inputs: packed.k,
            outputs: packed.mn,
            kernels,
        }
    });
    (weights.collect(), kernels)
}
