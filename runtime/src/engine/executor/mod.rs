//! Fused steps on tract-linalg's kernels: weights in the map, everything else in one arena that is reserved at open.

mod attend;
// Computes with vectors: see the SAFETY comments there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
// Calls kernels: see the SAFETY comments there.
#[allow(unsafe_code)]
pub(crate) mod kernels;
pub(crate) mod program;
mod rows;

use tract_data::internal::{Tensor, format_err, tensor0, tensor1};

use super::{Input, failed, panels::MappedPanels};
use crate::{Error, Image, task::KeyValues};
use attend::{Attention, QUERIES, Scene};
use kernels::{Arena, Block, Kernel, Panels, Sums};
use program::{Columns, Product, Step};
use rows::{Curves, Memory};

/// A program ready to run.
#[derive(Debug)]
pub(crate) struct Executor {
    image: Image,
    arena: Arena,
    /// Where each slot begins in the arena, and the numbers of one of its rows.
    slots: Vec<(usize, usize)>,
    scratch: usize,
    most_rows: usize,
    most_prefix: usize,
    weights: Vec<Weight>,
    steps: Vec<Ready>,
    /// Rows as the right operand of each kernel.
    rows: Vec<Panels>,
    /// What the panels of which kernel hold: neighbouring products often read the same rows.
    packed: Option<(usize, Columns, usize)>,
    kernels: Vec<Kernel>,
    attention: Option<Attention>,
    curves: Curves,
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

/// Whether this processor and this build run the kernel of that name.
pub(crate) fn has_kernel(name: &str) -> bool {
    Kernel::named(name).is_some()
}

fn no_kernel() -> Error {
    failed("choosing kernels")(format_err!("none of this machine's fits the image"))
}

/// A prefix by layer.
#[derive(Debug)]
pub(crate) struct Prefix {
    /// Positions that it takes where the base counts them: none unless it is of all layers.
    before: usize,
    layers: Vec<Option<LayerPrefix>>,
}

/// Keys and values of one layer, each `[kv_heads, tokens, head_dim]`.
#[derive(Debug)]
pub(super) struct LayerPrefix {
    tokens: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    gate: f32,
}

impl Executor {
    /// Reserves everything that running `program` of `image` takes for texts of `most_rows` rows, prompt rows among
    /// them, and prefixes of `most_prefix`.
    pub fn open(image: &Image, most_rows: usize, most_prefix: usize) -> Result<Self, Error> {
        let program = image.steps().ok_or_else(no_kernel)?;
        let most_rows = most_rows.min(program.max_rows);
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
        let weights = weights.collect::<Result<Vec<_>, Error>>()?;
        let mut slots = Vec::new();
        let mut end = 0;
        for &width in &program.slots {
            slots.push((end, width));
            end += most_rows * width;
        }
        let scratch = end;
        let scores = scratch + program.scratch;
        let attends = || {
            program.steps.iter().filter_map(|step| match step {
                Step::Attend(attend) => Some(attend),
                _ => None,
            })
        };
        let most_keys = most_rows + most_prefix;
        let room = match attends().next() {
            None => 0,
            Some(_) => QUERIES.min(most_rows) * most_keys,
        };
        let head_dim = attends().map(|attend| attend.head_dim).max();
        let attention = head_dim.map(|length| Attention::new(length, most_keys, scores));
        let deepest = weights
            .iter()
            .map(|weight| weight.inputs)
            .max()
            .unwrap_or(1);
        let rows = kernels
            .iter()
            .map(|kernel| Panels::new(&kernel.right, deepest, most_rows));
        let rows = rows.collect::<Result<_, _>>()?;
        let steps = program.steps.iter().map(|step| match step {
            Step::Product(Product { bias, weight, .. }) => Ready::Bias(bias.map(|bias| {
                let outputs = weights[*weight].outputs;
                tensor1(&image.constants()[bias..bias + outputs])
            })),
            Step::Attend(attend) => Ready::Scale(tensor0(attend.scale)),
            Step::Rows(_) => Ready::Nothing,
        });
        Ok(Self {
            arena: Arena::new(scores + room)?,
            slots,
            scratch,
            most_rows,
            most_prefix,
            steps: steps.collect(),
            weights,
            rows,
            packed: None,
            kernels,
            attention: attention.transpose()?,
            curves: Curves::new()?,
            image: image.clone(),
        })
    }

    /// Rows that a text and the rows of its prompt may have.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Bytes that are reserved.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len() * size_of::<f32>()
    }

    /// Lays out a prefix by layer.
    ///
    /// # Errors
    /// When it has more rows than room was reserved for.
    pub fn prepare(&self, prefix: &KeyValues) -> Result<Prefix, Error> {
        if prefix.tokens > self.most_prefix {
            return Err(Error::Room {
                rows: prefix.tokens,
                limit: self.most_prefix,
            });
        }
        let layers = self.image.description().layers.len();
        let layer = |index: usize| {
            let layer = prefix.layers.get(&index)?;
            (prefix.tokens > 0).then(|| LayerPrefix {
                tokens: prefix.tokens,
                keys: layer.keys.clone(),
                values: layer.values.clone(),
                gate: layer.gate,
            })
        };
        Ok(Prefix {
            before: match prefix.layers.len() == layers {
                true => prefix.tokens,
                false => 0,
            },
            layers: (0..layers).map(layer).collect(),
        })
    }

    /// Runs the program and returns its hidden rows, `[sequence, hidden]`.
    pub fn run(&mut self, input: Input<'_>, prefix: &Prefix) -> Result<&[f32], Error> {
        let rows = input.ids.len();
        if rows == 0 || rows > self.most_rows {
            return Err(Error::Room {
                rows,
                limit: self.most_rows,
            });
        }
        let image = self.image.clone();
        let program = image.steps().ok_or_else(no_kernel)?;
        let position = if program.counted { prefix.before } else { 0 };
        if position + rows > program.max_rows {
            return Err(Error::Room {
                rows: position + rows,
                limit: program.max_rows,
            });
        }
        if let Some(id) = program.padding
            && input.ids.contains(&id.into())
        {
            return Err(Error::Padding { id });
        }
        self.arena.numbers()[..input.rows.len()].copy_from_slice(input.rows);
        self.packed = None;
        for (index, step) in program.steps.iter().enumerate() {
            // A product writes no slot that it reads; other steps may write the one that was packed.
            if !matches!(step, Step::Product(_)) {
                self.packed = None;
            }
            match step {
                Step::Product(product) => self.product(product, index, rows)?,
                Step::Attend(attend) => {
                    let Ready::Scale(scale) = &self.steps[index] else {
                        unreachable!("attentions have a scale")
                    };
                    let attention = self.attention.as_mut().ok_or_else(no_kernel)?;
                    let scene = Scene {
                        arena: &mut self.arena,
                        slots: &self.slots,
                        rows,
                        prefix: prefix.layers.get(attend.layer).and_then(Option::as_ref),
                        scale,
                    };
                    attention.run(attend, scene)?;
                }
                Step::Rows(steps) => {
                    let mut memory = Memory {
                        arena: self.arena.numbers(),
                        constants: image.constants(),
                        slots: &self.slots,
                        scratch: self.scratch,
                    };
                    self.curves.run(steps, &mut memory, input.types, position)?;
                }
            }
        }
        let Columns { slot, first } = program.output;
        let (begin, width) = self.slots[slot];
        let hidden = image.description().hidden;
        debug_assert_eq!((first, width), (0, hidden), "the program was checked");
        Ok(&self.arena.numbers()[begin..begin + rows * hidden])
    }

    fn product(&mut self, product: &Product, index: usize, rows: usize) -> Result<(), Error> {
        let weight = &self.weights[product.weight];
        let which = weight.kernels[usize::from(rows > 1)];
        let (kernel, panels) = (&mut self.kernels[which], &mut self.rows[which]);
        let wanted = Some((which, product.input, weight.inputs));
        if self.packed != wanted {
            let (begin, width) = self.slots[product.input.slot];
            let from = &self.arena.numbers()[begin + product.input.first..];
            panels.pack(from, (weight.inputs, rows), (1, width))?;
            self.packed = wanted;
        }
        let block = |columns: Columns| {
            let (begin, width) = self.slots[columns.slot];
            Block {
                first: begin + columns.first,
                step: width,
            }
        };
        let Ready::Bias(bias) = &self.steps[index] else {
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
}
