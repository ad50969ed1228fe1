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
            let panels = (panels.mn(), |index| panels.panel(index));
            multiply(Instructions::here(), panels, rounded, arena, &finish);
            Ok(())
        })
    }
}

/// Writes the products of all rows that `rounded` holds with so many outputs, whose inputs are as many, in panels that are
/// asked for by number.
fn multiply<'a>(
    instructions: Instructions,
    (all, panel): (usize, impl Fn(usize) -> &'a [u8]),
    rounded: &Rounded,
    arena: Shared<'_>,
    finish: &Finish<'_>,
) {
    let mut sums: Sums = [[0; OUTPUTS]; RUNS];
    for (index, first) in (0..all).step_by(OUTPUTS).enumerate() {
        let (scales, records) = panel(index).split_at(OUTPUTS * size_of::<f32>());
        let mut own = [0.0f32; OUTPUTS];
        let pairs = own.iter_mut().zip(scales.as_chunks().0);
        pairs.for_each(|(own, scale)| *own = f32::from_le_bytes(*scale));
        let outputs = first..all.min(first + OUTPUTS);
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

#[cfg(test)]
mod tests {
    use super::{super::arena::Arena, *};
    use crate::weights::{EXCESS, QUAD};

    const INPUTS: usize = 39;
    const ALL: usize = 3 * OUTPUTS - 5;
    const ROWS: usize = 19;
    /// From one row of numbers to the next, of which each is as long as the outputs.
    const STEP: usize = ALL + 7;

    fn number(seed: usize, index: usize) -> f32 {
        ((index * 31 + seed * 7 + 3) as f32 * 0.37).sin()
    }

    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|index| number(seed, index)).collect()
    }

    /// The integer of an input of an output.
    fn weight(output: usize, input: usize) -> i32 {
        (number(1, output * INPUTS + input) * 127.0) as i32
    }

    /// Panels of all outputs, and the scales of each.
    fn panels() -> (Vec<Vec<u8>>, Vec<f32>) {
        let scales = numbers(2, 3 * OUTPUTS);
        let panels = scales.chunks(OUTPUTS).enumerate().map(|(panel, scales)| {
            let quads = (0..INPUTS.div_ceil(QUAD)).flat_map(|quad| {
                let places =
                    (0..OUTPUTS * QUAD).map(move |at| (at / QUAD, quad * QUAD + at % QUAD));
                places.map(|(output, input)| match input < INPUTS {
                    true => weight(panel * OUTPUTS + output, input) as u8,
                    false => 0,
                })
            });
            let quads = quads.map(|byte| byte.wrapping_add(EXCESS));
            let scales = scales.iter().flat_map(|scale| scale.to_le_bytes());
            scales.chain(quads).collect()
        });
        (panels.collect(), scales)
    }

    /// What `multiply` writes for rows from `first` on, where residuals lie there already or elsewhere.
    fn written(
        instructions: Instructions,
        (first, rows): (usize, usize),
        in_place: bool,
        input: &[f32],
    ) -> Vec<f32> {
        let (panels, _) = panels();
        let mut rounded = Rounded::new(INPUTS, ROWS).unwrap();
        let from = &input[first * INPUTS..];
        rounded.round(from, (INPUTS, rows), INPUTS).unwrap();
        let mut arena = Arena::new(2 * ROWS * STEP).unwrap();
        let residuals = numbers(4, ROWS * STEP);
        arena.numbers()[..ROWS * STEP].copy_from_slice(&residuals);
        arena.numbers()[ROWS * STEP..].fill(9.0);
        let block = |first: usize| Block { first, step: STEP };
        let output = if in_place {
            first * STEP
        } else {
            (ROWS + first) * STEP
        };
        let bias = numbers(5, ALL);
        let finish = Finish {
            bias: Some(&bias),
            residual: Some(block(first * STEP)),
            output: block(output),
        };
        // SAFETY: one thread uses it.
        #[allow(unsafe_code)]
        let shared = unsafe { arena.share() };
        let panels = (ALL, |index: usize| &panels[index][..]);
        multiply(instructions, panels, &rounded, shared, &finish);
        arena.view()[output..output + rows * STEP].to_vec()
    }

    #[test]
    fn all_instructions_give_the_same_numbers_to_the_last_bit_for_one_row_and_for_many() {
        let input = numbers(3, ROWS * INPUTS);
        let (_, scales) = panels();
        let mut expected = vec![9.0f32; ROWS * STEP];
        for (row, expected) in expected.chunks_mut(STEP).enumerate() {
            let input = &input[row * INPUTS..][..INPUTS];
            let most = input
                .iter()
                .fold(0.0f32, |most, number| most.max(number.abs()));
            for (output, expected) in expected[..ALL].iter_mut().enumerate() {
                let products = input.iter().enumerate().map(|(at, number)| {
                    weight(output, at) * (number * (127.0 / most)).round_ties_even() as i32
                });
                let sum = products.sum::<i32>() as f32 * (most / 127.0 * scales[output]);
                *expected = sum + number(5, output) + number(4, row * STEP + output);
                let exact = input
                    .iter()
                    .enumerate()
                    .map(|(at, number)| number * weight(output, at) as f32 * scales[output]);
                let exact = exact.sum::<f32>() + number(5, output) + number(4, row * STEP + output);
                let near = 60.0 * INPUTS as f32 * (most / 127.0) * scales[output].abs();
                assert!((*expected - exact).abs() < near + 1e-3, "{row} {output}");
            }
        }
        for instructions in Instructions::all_here() {
            let many = written(instructions, (0, ROWS), false, &input);
            assert_eq!(many, expected, "{instructions:?}");
            let in_place = written(instructions, (0, ROWS), true, &input);
            for row in 0..ROWS {
                let at = row * STEP..row * STEP + ALL;
                assert_eq!(
                    in_place[at.clone()],
                    expected[at.clone()],
                    "{instructions:?}"
                );
                let alone = written(instructions, (row, 1), false, &input);
                assert_eq!(alone[..ALL], expected[at], "{instructions:?} {row}");
            }
        }
    }
}

#[cfg(all(test, feature = "compile"))]
mod image_tests {
    use super::{super::narrow::tests::image, *};
    use crate::{Image, Threads, image::Span, testing};

    /// An image of a weight in panels of `r` outputs, said to be laid out as `name` does.
    fn weight(r: usize, name: &str) -> Image {
        let inputs = 40;
        let numbers = testing::numbers(3, 2 * inputs * r);
        let bytes = Weights::I8A8.encode(&numbers, inputs * r, r).unwrap();
        let mut packed = Packed {
            name: "w".into(),
            kernels: vec![name.to_owned()],
            dtype: Weights::I8A8,
            r,
            alignment: 1,
            end_padding: 0,
            k: inputs,
            mn: 2 * r - 1,
            panel_bytes: bytes.len() / 2,
            span: Span {
                offset: 0,
                bytes: 0,
            },
        };
        image(&bytes, &mut packed)
    }

    #[test]
    fn a_layout_that_does_not_fit_is_refused_with_the_command_that_rebuilds_it() {
        let open = |image: &Image| {
            image.fits()?;
            Executor::open(image, (1, 1, 1), Threads::default()).map(|_| ())
        };
        open(&weight(OUTPUTS, NAME)).unwrap();
        let of_floats = super::super::kernels::Kernel::for_rows(8).unwrap();
        let others = [
            (
                OUTPUTS,
                "preface_dots_12x4",
                "it needs the kernel preface_dots_12x4",
            ),
            (2 * OUTPUTS, NAME, "w is not laid out for"),
            (OUTPUTS, of_floats.name(), "w is not laid out for"),
        ];
        for (r, name, reason) in others {
            let error = open(&weight(r, name)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(error.contains("preface compile BASE -o"), "{error}");
        }
    }
}
