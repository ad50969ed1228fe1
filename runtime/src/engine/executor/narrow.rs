//! Products with weights in fewer bits than kernels multiply: what is read from the map is expanded where it stays in a
//! cache.

use std::ops::Range;

use super::{
    super::{failed, vectors::wide},
    arena::Shared,
    kernels::{Kernel, Left, Sums, floats},
    no_kernel,
    operands::Panels,
};
use crate::{Error, Image, Weights, image::Packed, weights::GROUP};

/// Bytes of panels that are expanded at once: they are to stay in the second-level cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Neighbouring panels of a weight in the map.
#[derive(Debug)]
pub(super) struct Narrow {
    image: Image,
    packed: Packed,
    panels: Range<usize>,
}

/// Where weights are expanded.
#[derive(Debug)]
pub(super) struct Expanded {
    /// A block of panels as a kernel's left operand.
    panels: Panels,
    /// A group of records.
    group: Vec<f32>,
    /// The only run of a product.
    run: Vec<f32>,
    /// What its products add up to.
    sums: Vec<f32>,
}

impl Expanded {
    /// Room for weights of at most so many inputs and outputs in the panels of `kernel`.
    pub fn new(kernel: &Kernel, most_inputs: usize, most_outputs: usize) -> Result<Self, Error> {
        let panel_bytes = kernel.left.single_panel_len(most_inputs) * size_of::<f32>();
        let panels = (BLOCK_BYTES / panel_bytes.max(1)).max(1);
        Ok(Self {
            panels: Panels::new(&kernel.left, most_inputs, panels * kernel.left.r)?,
            group: vec![0.0; GROUP * kernel.left.r],
            run: vec![0.0; most_inputs],
            sums: vec![0.0; most_outputs.next_multiple_of(kernel.left.r)],
        })
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        let rest = [&self.group, &self.run, &self.sums].map(|numbers| size_of_val(&numbers[..]));
        self.panels.bytes() + rest.iter().sum::<usize>()
    }
}

impl Narrow {
    /// Some of the panels of `packed`.
    pub fn new(image: &Image, packed: &Packed, panels: Range<usize>) -> Self {
        Self {
            image: image.clone(),
            packed: packed.clone(),
            panels,
        }
    }

    /// How they are stored.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// Outputs that they hold.
    pub fn mn(&self) -> usize {
        let Packed { r, mn, .. } = self.packed;
        mn.min(self.panels.end * r) - self.panels.start * r
    }

    /// The bytes of a panel.
    pub fn panel(&self, index: usize) -> &[u8] {
        let panel_bytes = self.packed.panel_bytes;
        let start = (self.panels.start + index) * panel_bytes;
        &self.image.panels(&self.packed)[start..start + panel_bytes]
    }

    /// Does what [`Kernel::multiply`] does for `runs` runs, with these as the left operand, for a kernel that reads floats.
    ///
    /// # Errors
    /// As that has, or when the kernel reads panels of another width.
    pub fn multiply(
        &self,
        kernel: &mut Kernel,
        expanded: &mut Expanded,
        (arena, runs): (Shared<'_>, usize),
        sums: &Sums<'_>,
    ) -> Result<(), Error> {
        let Packed { dtype, r, k, .. } = self.packed;
        if r != kernel.left.r {
            return Err(no_kernel());
        }
        if runs == 1 {
            return self.multiply_one(expanded, arena, sums);
        }
        let at_once = expanded.panels.room(k).max(1);
        for first in (0..self.panels.len()).step_by(at_once) {
            let outputs = first * r..self.mn().min((first + at_once) * r);
            expanded.panels.fill((k, outputs.len()), |index, numbers| {
                let panel = self.panel(first + index);
                let numbers = &mut numbers[..k * r];
                wide!(
                    |dtype: Weights, panel: &[u8], r: usize, numbers: &mut [f32]| -> () {
                        dtype.expand(panel, r, 0, numbers);
                    }
                );
            })?;
            let block = Sums {
                left: Left::Floats(&expanded.panels),
                bias: sums.bias.map(|(bias, from)| (bias, from + outputs.start)),
                residual: sums.residual.map(|block| block.behind(outputs.start)),
                output: sums.output.behind(outputs.start),
                ..*sums
            };
            kernel.multiply(arena, (outputs.len(), runs), &block)?;
        }
        Ok(())
    }

    /// The same for one run, a group of records at a time.
    fn multiply_one(
        &self,
        expanded: &mut Expanded,
        arena: Shared<'_>,
        of: &Sums<'_>,
    ) -> Result<(), Error> {
        let Packed { dtype, r, k, .. } = self.packed;
        let Expanded {
            group, run, sums, ..
        } = expanded;
        let run = &mut run[..k];
        of.right.copy_first(arena, run);
        for (index, sums) in sums.chunks_exact_mut(r).take(self.panels.len()).enumerate() {
            let panel = self.panel(index);
            sums.fill(0.0);
            wide!(|dtype: Weights,
                   panel: &[u8],
                   run: &[f32],
                   group: &mut [f32],
                   sums: &mut [f32]|
             -> () {
                let r = sums.len();
                for (index, inputs) in run.chunks(GROUP).enumerate() {
                    let records = &mut group[..inputs.len() * r];
                    dtype.expand(panel, r, index * GROUP, records);
                    add_up(sums, records, inputs);
                }
            });
        }
        let sums = &mut sums[..self.mn()];
        if let Some(scale) = of.scale {
            let scale = floats(scale).map_err(failed("scaling a product"))?[0];
            sums.iter_mut().for_each(|sum| *sum *= scale);
        }
        let bias = of.bias.map(|(bias, from)| Ok(&floats(bias)?[from..]));
        let bias = bias.transpose().map_err(failed("adding a bias"))?;
        let at = |first: usize| first..first + sums.len();
        let residual = of.residual.map(|block| arena.read(at(block.first)));
        let output = at(of.output.first);
        for more in [bias, residual].into_iter().flatten() {
            let pairs = sums.iter_mut().zip(more);
            pairs.for_each(|(sum, number)| *sum += number);
        }
        arena.write(output).copy_from_slice(sums);
        Ok(())
    }
}

/// Records that are added at once.
const AT_ONCE: usize = 4;

/// Adds each record, times its input, to `sums`.
#[inline(always)]
fn add_up(sums: &mut [f32], records: &[f32], inputs: &[f32]) {
    let r = sums.len();
    let (fours, rest) = inputs.as_chunks::<AT_ONCE>();
    let (blocks, last) = records.split_at(fours.len() * AT_ONCE * r);
    for (block, [a, b, c, d]) in blocks.chunks_exact(AT_ONCE * r).zip(fours) {
        let (first, second) = block.split_at(2 * r);
        let ((one, two), (three, four)) = (first.split_at(r), second.split_at(r));
        let records = one.iter().zip(two).zip(three.iter().zip(four));
        for (sum, ((one, two), (three, four))) in sums.iter_mut().zip(records) {
            *sum += (a * one + b * two) + (c * three + d * four);
        }
    }
    for (record, input) in last.chunks_exact(r).zip(rest) {
        let pairs = sums.iter_mut().zip(record);
        pairs.for_each(|(sum, number)| *sum += input * number);
    }
}

#[cfg(all(test, feature = "compile"))]
pub(super) mod tests {
    use tract_data::internal::tensor1;
    use tract_linalg::MmmDispatch;

    use super::{
        super::{
            arena::{Arena, Block},
            operands::Right,
            program::{Columns, Program},
        },
        *,
    };
    use crate::{
        Weights,
        image::{Parts, Span, Writer},
        testing,
    };

    /// The kernels of this machine whose panels may be narrow.
    fn kernels() -> Vec<Kernel> {
        let runnable = MmmDispatch::native().runnable();
        let all = runnable.iter().filter(|kernel| !kernel.emulated());
        let kernels = all.filter_map(|kernel| Kernel::named(kernel.name()));
        let mut kernels: Vec<Kernel> = kernels.collect();
        kernels.extend(Kernel::for_rows(64));
        kernels.retain(|kernel| Weights::I4.panel_bytes(1, kernel.left.r).is_some());
        kernels
    }

    /// An image of one weight, `bytes` as `packed` describes them.
    pub fn image(bytes: &[u8], packed: &mut Packed) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.base");
        let source = testing::source();
        let mut writer = Writer::create(&path).unwrap();
        packed.span = writer.weight(bytes).unwrap();
        let table = vec![0; testing::WORDS.len() * testing::HIDDEN * size_of::<f32>()];
        let parts = Parts {
            tract: crate::engine::TRACT,
            tokenizer: &source.tokenizer,
            program: b"",
            steps: Some(Program {
                slots: vec![testing::HIDDEN],
                scratch: 0,
                max_rows: 1,
                counted: false,
                caches: false,
                padding: None,
                steps: Vec::new(),
                output: Columns { slot: 0, first: 0 },
                logits: None,
                encoder: None,
            }),
            unlowered: None,
            embeddings: (Weights::F32, writer.weight(&table).unwrap()),
            packed: vec![packed.clone()],
            description: source.description,
        };
        writer.finish(parts, |_| Ok(true)).unwrap();
        crate::map::open_own(&path).unwrap()
    }

    #[test]
    fn every_way_gives_the_sums_of_the_numbers_that_are_stored() {
        let k = 300;
        let rows = testing::numbers(4, 5 * k);
        for mut kernel in kernels() {
            let r = kernel.left.r;
            let panels = 2 * Expanded::new(&kernel, k, r).unwrap().panels.room(k) + 1;
            let all = panels * r - 2;
            let mut expanded = Expanded::new(&kernel, k, all).unwrap();
            let numbers = testing::numbers(3, panels * k * r);
            let bias = tensor1(&testing::numbers(5, all));
            for dtype in [Weights::F16, Weights::I8, Weights::I4] {
                let bytes = dtype.encode(&numbers, k * r, r).unwrap();
                let mut packed = Packed {
                    name: "w".into(),
                    kernels: vec![kernel.name().to_owned()],
                    dtype,
                    r,
                    alignment: 1,
                    end_padding: 0,
                    k,
                    mn: all,
                    panel_bytes: bytes.len() / panels,
                    span: Span {
                        offset: 0,
                        bytes: 0,
                    },
                };
                let image = image(&bytes, &mut packed);
                // Without the first panel.
                let narrow = Narrow::new(&image, &packed, 1..panels);
                let one = kernel.right.as_ref().is_some_and(|format| format.r == 1);
                let (mn, runs) = (all - r, if one { 1 } else { 5 });
                let mut stored = vec![0.0; (panels - 1) * k * r];
                for (index, stored) in stored.chunks_mut(k * r).enumerate() {
                    dtype.expand(narrow.panel(index), r, 0, stored);
                }
                let residual = testing::numbers(6, runs * mn);
                for (runs, as_stored) in [(1, false), (runs, false), (runs, true)] {
                    let mut right = kernel.right_panels(k, runs).unwrap();
                    let all = [&residual, &residual, &rows]
                        .map(|numbers| &numbers[..])
                        .concat();
                    let mut arena = Arena::new(all.len()).unwrap();
                    arena.numbers().copy_from_slice(&all);
                    // SAFETY: one thread uses it.
                    #[allow(unsafe_code)]
                    let shared = unsafe { arena.share() };
                    let input = Block {
                        first: 2 * residual.len(),
                        step: k,
                    };
                    let sums = Sums {
                        left: Left::Stored(&narrow),
                        right: Right::new(right.as_mut(), shared, input, (k, runs)).unwrap(),
                        bias: Some((&bias, r)),
                        scale: None,
                        residual: Some(Block {
                            first: residual.len(),
                            step: mn,
                        }),
                        output: Block { first: 0, step: mn },
                        soon: &[],
                    };
                    let multiplied = match as_stored {
                        true => kernel.multiply(shared, (mn, runs), &sums),
                        false => narrow.multiply(&mut kernel, &mut expanded, (shared, runs), &sums),
                    };
                    if as_stored && !kernel.reads_stored() {
                        assert!(multiplied.is_err());
                        continue;
                    }
                    multiplied.unwrap();
                    for (at, found) in shared.read(0..runs * mn).iter().enumerate() {
                        let (row, output) = (&rows[at / mn * k..], at % mn);
                        let panel = &stored[output / r * k * r..];
                        let products =
                            (0..k).map(|input| panel[input * r + output % r] * row[input]);
                        let added = floats(&bias).unwrap()[r + output] + residual[at];
                        let near = (found - products.sum::<f32>() - added).abs() < 1e-3;
                        assert!(near, "{dtype}, {runs} runs, {}: {at}", kernel.name());
                    }
                }
            }
        }
    }

    #[test]
    fn records_are_added_to_what_is_there_whatever_their_number() {
        let number = |seed: usize, index: usize| ((index * 31 + seed) as f32).sin();
        for (r, k) in [(4, 1), (12, 7), (16, 4), (48, 32), (64, 31)] {
            let records: Vec<f32> = (0..k * r).map(|index| number(1, index)).collect();
            let inputs: Vec<f32> = (0..k).map(|index| number(2, index)).collect();
            let mut sums: Vec<f32> = (0..r).map(|index| number(3, index)).collect();
            add_up(&mut sums, &records, &inputs);
            for (output, found) in sums.into_iter().enumerate() {
                let products = (0..k).map(|input| records[input * r + output] * inputs[input]);
                let expected = number(3, output) + products.sum::<f32>();
                assert!((found - expected).abs() < 1e-5, "{r} {k} {output}");
            }
        }
    }
}
