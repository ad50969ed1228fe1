//! Products of bytes: weights in `i8a8` with rows that are rounded to 8 bits.
//!
//! A row becomes integers from -127 to 127 and a scale; what products with it add up to are 32-bit integers, exact in any
//! order, and everything that is done with them afterwards is the same for all instructions. A row's numbers thus depend
//! neither on the processor nor on the rows beside it.

// Computes with vectors: see the SAFETY comments there.
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod aarch64;
// Calls what computes with vectors: see the SAFETY comments there.
#[allow(unsafe_code)]
mod finish;
mod rounded;
// Calls what computes with vectors: see the SAFETY comments there.
#[allow(unsafe_code)]
mod tile;
// Computes with vectors: see the SAFETY comments there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

use tract_data::internal::Tensor;

use super::{
    super::failed,
    Executor, Operand, Ready,
    arena::{Block, Shared},
    kernels::floats,
    narrow::Narrow,
    no_kernel,
    program::Product,
    steps::each,
};
use crate::{Error, Weights, image::Packed};
use finish::Run;
pub(super) use rounded::Rounded;
pub(crate) use tile::OUTPUTS;
use tile::{Instructions, RUNS, Sums};

/// The name of the layout in images: panels of so many outputs by quads.
pub(crate) const NAME: &str = if cfg!(target_arch = "x86_64") {
    "preface_dots_48x4"
} else {
    "preface_dots_16x4"
};

/// The name of the instructions that multiply bytes here.
pub(crate) fn instructions() -> &'static str {
    Instructions::here().name()
}

/// Whether the panels of `packed` are laid out as these products read them.
pub(super) fn reads(packed: &Packed) -> bool {
    packed.dtype == Weights::I8A8 && packed.r == OUTPUTS && packed.kernels == [NAME]
}

/// What is done with sums, and where they go.
pub(super) struct Finish<'a> {
    /// Added to each run, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Added number by number.
    pub residual: Option<Block>,
    pub output: Block,
}

impl Executor {
    /// Does the product of step `index` of part `part` with a weight in bytes.
    pub(super) fn product_of_bytes(
        &mut self,
        product: &Product,
        (part, index): (usize, usize),
        rows: usize,
    ) -> Result<(), Error> {
        let slots = &self.parts[part].slots;
        let weight = &self.weights[product.weight];
        let rounded = self.rounded.as_mut().ok_or_else(no_kernel)?;
        let wanted = Some((None, product.input, weight.inputs));
        if self.packed != wanted {
            let (begin, width) = slots[product.input.slot];
            let from = &self.arena.view()[begin + product.input.first..];
            rounded.round(from, (weight.inputs, rows), width)?;
            self.packed = wanted;
        }
        let biases: &[Tensor] = match &self.parts[part].ready[index] {
            Ready::Bias(biases) => biases,
            _ => &[],
        };
        let rounded = &*rounded;
        let work = rows * weight.inputs * weight.outputs;
        // SAFETY: pieces write columns of their own, of a slot that none reads but for a residual in the same columns.
        #[allow(unsafe_code)]
        let arena = unsafe { self.arena.share() };
        each(&mut self.pool, &mut self.workers, work, |at, _| {
            let Some(piece) = weight.pieces.get(at) else {
                return Ok(());
            };
            let Operand::Bytes(panels) = &piece.panels else {
                return Err(no_kernel());
            };
            let block = |columns: super::Columns| {
                let (begin, width) = slots[columns.slot];
                Block {
                    first: begin + columns.first + piece.first,
                    step: width,
                }
            };
            let bias = biases.get(at).map(floats).transpose();
            let finish = Finish {
                bias: bias.map_err(failed("adding a bias"))?,
                residual: product.residual.map(block),
                output: block(product.output),
            };
            multiply(Instructions::here(), panels, rounded, arena, &finish);
            Ok(())
        })
    }
}

/// Writes the products of all rows that `rounded` holds with the outputs of `panels`, whose inputs are as many.
fn multiply(
    instructions: Instructions,
    panels: &Narrow,
    rounded: &Rounded,
    arena: Shared<'_>,
    finish: &Finish<'_>,
) {
    let mut sums: Sums = [[0; OUTPUTS]; RUNS];
    for (index, first) in (0..panels.mn()).step_by(OUTPUTS).enumerate() {
        let (scales, records) = panels.panel(index).split_at(OUTPUTS * size_of::<f32>());
        let mut own = [0.0f32; OUTPUTS];
        let pairs = own.iter_mut().zip(scales.as_chunks().0);
        pairs.for_each(|(own, scale)| *own = f32::from_le_bytes(*scale));
        let outputs = first..panels.mn().min(first + OUTPUTS);
        for tile in rounded.tiles() {
            let runs = tile.scales.len();
            instructions.multiply(records, tile.quads, runs, &mut sums);
            for (run, sums) in sums.iter().take(runs).enumerate() {
                let at = |block: Block| {
                    let start = block.first + (tile.first + run) * block.step;
                    start + outputs.start..start + outputs.end
                };
                let run = Run {
                    sums,
                    excess: tile.excess[run],
                    scale: tile.scales[run],
                    scales: &own,
                    bias: finish.bias.map(|bias| &bias[outputs.clone()]),
                    residual: finish.residual.map(at),
                    output: at(finish.output),
                };
                run.finish(instructions, arena);
            }
        }
    }
}
