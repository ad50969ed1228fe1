//! What the executor asks of tract-linalg: products of panels.

use std::fmt;

use tract_data::internal::*;
use tract_linalg::{
    BinOp, MmmDispatch,
    mmm::{AsInputValue, FusedSpec, MMMInputValue, MatMatMul, Query, ScratchSpace},
    pack::PackedFormat,
};

use crate::{Error, Weights, image::Packed};

use super::narrow::Narrow;
use super::{
    super::{failed, panels::format},
    arena::{Arena, Block, Shared},
    operands::{Panels, Right},
};
#[cfg(target_arch = "x86_64")]
use super::{arena, avx512};

/// A product kernel with what it works in.
pub(super) struct Kernel {
    inner: Inner,
    /// How the left operand is packed.
    pub left: PackedFormat,
    /// How the right operand is packed; none where it is read where it lies.
    pub right: Option<PackedFormat>,
}

enum Inner {
    /// One of tract-linalg's, with the space that it works in.
    Tract(Box<dyn MatMatMul>, Box<dyn ScratchSpace>),
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A left operand.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    Floats(&'a dyn MMMInputValue),
    /// As it is stored, for a kernel that [reads](Kernel::reads_stored) it so.
    Stored(&'a Narrow),
}

/// Which numbers a product adds up and what it does with the sums.
pub(super) struct Sums<'a> {
    /// `[rows, depth]` in panels.
    pub left: Left<'a>,
    pub right: Right<'a>,
    /// Added to each row: the numbers of a tensor from that place on.
    pub bias: Option<(&'a Tensor, usize)>,
    /// Multiplies every sum.
    pub scale: Option<&'a Tensor>,
    /// Added number by number.
    pub residual: Option<Block>,
    /// Where the runs of `rows` numbers go.
    pub output: Block,
    /// What is read soon after: fetched meanwhile, where the kernel does that.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub soon: &'a [f32],
}

impl Kernel {
    /// The kernel of that name, where this machine runs it on panels of 32-bit floats.
    pub fn named(name: &str) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if name == avx512::NAME {
            return Self::avx512();
        }
        let kernels = MmmDispatch::native().runnable();
        let kernel = kernels.iter().find(|kernel| kernel.name() == name)?;
        Self::of(kernel.clone())
    }

    /// The kernel that suits products of that many rows best.
    pub fn for_rows(rows: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = Self::avx512() {
            return Some(kernel);
        }
        let query = Query {
            weight: DatumType::F32.into(),
            activation: DatumType::F32,
            accumulators: tvec!(DatumType::F32),
            store: Some(DatumType::F32),
            allow_extractor: false,
            m: Some(rows),
            k: Some(USUAL),
            n: Some(USUAL),
        };
        Self::of(MmmDispatch::native().pick(&query)?.0)
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Option<Self> {
        avx512::runs().then(|| Self {
            inner: Inner::Avx512,
            left: PackedFormat::new(f32::datum_type(), avx512::ROWS, arena::ALIGNMENT_BYTES),
            right: None,
        })
    }

    fn of(kernel: Box<dyn MatMatMul>) -> Option<Self> {
        let (left, right) = kernel.packings().first()?;
        let (left, right) = (
            left.downcast_ref::<PackedFormat>()?.clone(),
            right.downcast_ref::<PackedFormat>()?.clone(),
        );
        if [&left, &right]
            .iter()
            .any(|format| format.dt != f32::datum_type())
        {
            return None;
        }
        // SAFETY: `can_use_scratch_space` is the only condition on scratch space, and it is the kernel's own.
        let scratch = unsafe { kernel.allocate_scratch_space() };
        Some(Self {
            inner: Inner::Tract(kernel, scratch),
            left,
            right: Some(right),
        })
    }

    pub fn name(&self) -> &str {
        match &self.inner {
            Inner::Tract(kernel, _) => kernel.name(),
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512 => avx512::NAME,
        }
    }

    /// Whether it reads weights in fewer bits as they are stored, and single rows as well as many.
    pub fn reads_stored(&self) -> bool {
        match &self.inner {
            Inner::Tract(..) => false,
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512 => true,
        }
    }

    /// Whether the panels of `packed` are laid out as it reads them.
    pub fn reads(&self, packed: &Packed) -> bool {
        match packed.dtype {
            Weights::F32 => serves(&format(packed), &self.left),
            Weights::I8A8 => false,
            _ => packed.r == self.left.r,
        }
    }

    /// Multiplies once on this thread, so that its own memory, which kernels ask for with their first product, is there.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        let mut arena = Arena::new(1)?;
        arena.numbers().fill(1.0);
        // SAFETY: no other thread knows it.
        let arena = unsafe { arena.share() };
        let output = Block { first: 0, step: 1 };
        let mut left = Panels::new(&self.left, 1, 1)?;
        left.pack(&[1.0], (1, 1), (1, 1))?;
        let mut right = self.right_panels(1, 1)?;
        let sums = Sums {
            left: Left::Floats(&left),
            right: Right::new(right.as_mut(), arena, output, (1, 1))?,
            bias: Some((&tensor1(&[1.0f32]), 0)),
            scale: Some(&tensor0(1.0f32)),
            residual: Some(output),
            output,
            soon: &[],
        };
        self.multiply(arena, (1, 1), &sums)
    }

    /// Room for the right operand of products of that depth and so many runs, where it is packed.
    pub fn right_panels(&self, depth: usize, runs: usize) -> Result<Option<Panels>, Error> {
        let format = self.right.as_ref();
        format
            .map(|format| Panels::new(format, depth, runs))
            .transpose()
    }

    /// Writes `rows` numbers of each of `runs` runs.
    ///
    /// # Errors
    /// When an operand is packed otherwise or a block reaches out of the arena.
    pub fn multiply(
        &mut self,
        arena: Shared<'_>,
        (rows, runs): (usize, usize),
        sums: &Sums<'_>,
    ) -> Result<(), Error> {
        let room = arena.len();
        let blocks = sums.residual.iter().chain([&sums.output]);
        let inside = blocks.into_iter().all(|block| block.fits(rows, runs, room));
        let (left_fits, mn, k) = match sums.left {
            Left::Floats(left) => {
                let format = left.format().downcast_ref::<PackedFormat>();
                let serves = format.is_some_and(|format| serves(format, &self.left));
                (serves, left.mn(), left.k())
            }
            Left::Stored(left) => {
                let packed = left.packed();
                (self.reads(packed), left.mn(), packed.k)
            }
        };
        let right_fits = match (sums.right, &self.right) {
            (Right::Panels(right), Some(format)) => {
                serves(right.layout(), format) && (right.k(), right.mn()) == (k, runs)
            }
            (Right::Arena(right, depth), None) => depth == k && right.fits(depth, runs, room),
            _ => false,
        };
        let fit = left_fits
            && right_fits
            && mn == rows
            && sums
                .bias
                .is_none_or(|(bias, first)| bias.len().checked_sub(first) >= Some(rows));
        if !inside || !fit {
            let error = format_err!("{rows} rows and {runs} runs do not fit their operands");
            return Err(failed("multiplying")(error));
        }
        let multiplied = match (&mut self.inner, sums.left, sums.right) {
            (Inner::Tract(kernel, scratch), Left::Floats(left), Right::Panels(right)) => {
                // SAFETY: the blocks lie inside the arena and are this thread's meanwhile; operands are packed as the
                // kernel reads them and have the sizes that it is told, both compared above.
                unsafe {
                    let operands = (left, right, sums);
                    fused(&**kernel, &mut **scratch, arena, (rows, runs), operands)
                }
            }
            #[cfg(target_arch = "x86_64")]
            (Inner::Avx512, _, Right::Arena(right, _)) => {
                // SAFETY: the same; and the kernel was chosen where the processor has AVX-512.
                unsafe { tiles(arena, (rows, runs), (k, right), sums) }
            }
            _ => Err(format_err!(
                "the kernel reads panels of 32-bit floats alone"
            )),
        };
        multiplied.map_err(failed("multiplying"))
    }
}

/// Multiplies with one of tract-linalg's kernels.
///
/// # Safety
/// Blocks and operands fit as [`Kernel::multiply`] compares them.
unsafe fn fused(
    kernel: &dyn MatMatMul,
    scratch: &mut dyn ScratchSpace,
    arena: Shared<'_>,
    (rows, runs): (usize, usize),
    (left, right, sums): (&dyn MMMInputValue, &Panels, &Sums<'_>),
) -> TractResult<()> {
    let shape = [rows];
    let mut specs: TVec<FusedSpec<'_>> = TVec::new();
    specs.push(FusedSpec::AddMatMul {
        a: AsInputValue::Borrowed(left),
        b: AsInputValue::Borrowed(right),
        packing: 0,
    });
    specs.extend(sums.bias.map(|(bias, first)| {
        let offset = (first * size_of::<f32>()) as isize;
        // SAFETY: the caller's promise.
        let view = unsafe { TensorView::from_bytes(bias, offset, &shape, &[1]) };
        FusedSpec::BinPerRow(view, BinOp::Add)
    }));
    let scale = sums
        .scale
        .map(|scale| FusedSpec::BinScalar(scale, BinOp::Mul));
    specs.extend(scale);
    // SAFETY: the caller's promise.
    unsafe {
        let store = |block: Block| {
            let step = block.step as isize;
            // At the edges kernels read as many numbers as the shape has: those between the runs count.
            let shape = [runs, rows.max(block.step)];
            let strides = [step, 1];
            let view = arena.view(block.first, &shape, &strides);
            kernel
                .c_from_data_and_strides(size_of::<f32>(), 1, step)
                .wrap(&view)
        };
        specs.extend(
            sums.residual
                .map(|block| FusedSpec::AddUnicast(store(block))),
        );
        specs.push(FusedSpec::Store(store(sums.output)));
        kernel.run_with_scratch_space(rows, runs, scratch, &specs)
    }
}

/// Multiplies tile by tile, each left panel with all runs.
///
/// # Safety
/// As for [`fused`], on a processor with AVX-512.
#[cfg(target_arch = "x86_64")]
unsafe fn tiles(
    arena: Shared<'_>,
    (rows, runs): (usize, usize),
    (depth, right): (usize, Block),
    sums: &Sums<'_>,
) -> TractResult<()> {
    let bias = sums
        .bias
        .map(|(bias, first)| Ok::<_, TractError>(&floats(bias)?[first..]));
    let bias = bias.transpose()?;
    let scale = sums.scale.map(floats).transpose()?;
    let numbers = arena.as_mut_ptr();
    let mut soon = sums.soon.chunks(depth * avx512::LANES);
    for (panel, first) in (0..rows).step_by(avx512::ROWS).enumerate() {
        let panel_at = |index: usize| match sums.left {
            Left::Floats(left) => left.panel_bytes(index, None),
            Left::Stored(left) => Ok(left.panel(index).as_ptr()),
        };
        let left = panel_at(panel)?;
        let next = match first + avx512::ROWS < rows {
            true => panel_at(panel + 1)?,
            false => left,
        };
        for run in (0..runs).step_by(avx512::RUNS) {
            let at = |block: Block| block.first + run * block.step + first;
            let residual = sums.residual.unwrap_or(sums.output);
            // SAFETY: the caller's promise; the offsets lie within the blocks.
            unsafe {
                avx512::multiply(avx512::Tile {
                    depth,
                    rows: avx512::ROWS.min(rows - first),
                    runs: avx512::RUNS.min(runs - run),
                    weights: match sums.left {
                        Left::Floats(_) => Weights::F32,
                        Left::Stored(left) => left.packed().dtype,
                    },
                    left,
                    next: match soon.next() {
                        Some(soon) => soon.as_ptr().cast(),
                        None if run < avx512::RUNS * avx512::VECTORS => {
                            next.wrapping_add(run / avx512::RUNS * depth * avx512::LINE_BYTES)
                        }
                        None => left,
                    },
                    right: numbers.add(right.first + run * right.step),
                    right_step: right.step,
                    bias: bias.map_or(std::ptr::null(), |bias| bias[first..].as_ptr()),
                    scale: scale.map_or(1.0, |scale| scale[0]),
                    residual: match sums.residual {
                        None => std::ptr::null(),
                        Some(block) => numbers.add(at(block)),
                    },
                    residual_step: residual.step,
                    output: numbers.add(at(sums.output)),
                    output_step: sums.output.step,
                });
            }
        }
    }
    Ok(())
}

/// The numbers of a tensor of 32-bit floats.
pub(super) fn floats(tensor: &Tensor) -> TractResult<&[f32]> {
    tensor.try_as_plain_ram()?.as_slice()
}

/// Whether a kernel that asks for panels as `wanted` can read those packed as `packed`.
fn serves(packed: &PackedFormat, wanted: &PackedFormat) -> bool {
    (packed.dt, packed.r) == (wanted.dt, wanted.r)
        && packed.alignment() >= wanted.alignment()
        && packed.end_padding_record >= wanted.end_padding_record
}

/// The kernels that weights are packed for on this machine, that for many rows first, and the panels that both read:
/// a decoder, which often asks for one row, is given a pair; an encoder what suits many rows best.
pub(crate) fn kernels_for_weights(decodes: bool) -> Option<(Vec<String>, PackedFormat)> {
    let many = Kernel::for_rows(WIDE)?;
    if many.reads_stored() {
        return Some((vec![many.name().to_owned()], many.left));
    }
    let runnable = MmmDispatch::native().runnable();
    let alone = |of: &Kernel| {
        let kernels = runnable
            .iter()
            .filter(|kernel| kernel.nr() == 1 && !kernel.emulated());
        let kernels = kernels.filter_map(|kernel| Kernel::of(kernel.clone()));
        kernels
            .into_iter()
            .find(|kernel| kernel.left.r == of.left.r)
    };
    let (many, one) = match (alone(&many), decodes) {
        (None, true) => {
            let pairs = runnable
                .iter()
                .filter(|kernel| kernel.nr() > 1 && !kernel.emulated());
            let pairs = pairs.filter_map(|kernel| Kernel::of(kernel.clone()));
            let mut pairs = pairs.filter_map(|many| Some((alone(&many)?, many)));
            pairs
                .next()
                .map_or((many, None), |(one, many)| (many, Some(one)))
        }
        (one, _) => (many, one),
    };
    let padding = one
        .iter()
        .chain([&many])
        .map(|kernel| kernel.left.end_padding_record);
    let alignment = one
        .iter()
        .chain([&many])
        .map(|kernel| kernel.left.alignment_bytes);
    let format = PackedFormat::new(f32::datum_type(), many.left.r, alignment.max()?)
        .with_end_padding_record(padding.max()?);
    let names = [Some(&many), one.as_ref()].into_iter().flatten();
    Some((
        names.map(|kernel| kernel.name().to_owned()).collect(),
        format,
    ))
}

/// Rows of a weight that kernels are chosen for.
const WIDE: usize = 768;

/// A size that kernels are chosen for where the true one varies.
const USUAL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that the executor may choose here: one of each layout of panels, and its own.
    fn kernels() -> Vec<Kernel> {
        let runnable = MmmDispatch::native().runnable();
        let all = runnable.iter().filter(|kernel| !kernel.emulated());
        let mut kernels: Vec<Kernel> = all
            .filter_map(|kernel| Kernel::of(kernel.clone()))
            .collect();
        kernels.extend(Kernel::for_rows(7));
        kernels
    }

    #[test]
    fn every_kernel_adds_up_products_with_all_that_is_fused() {
        let (depth, rows, runs) = (13, 50, 9);
        // Numbers of the arena before the right operand.
        let around = 1200;
        let number = |seed: usize, index: usize| ((index * 31 + seed) as f32).sin();
        let numbers = |seed: usize, count: usize| -> Vec<f32> {
            (0..count).map(|index| number(seed, index)).collect()
        };
        let (left, right) = (numbers(1, rows * depth), numbers(2, runs * depth));
        let (bias, scale) = (tensor1(&numbers(3, rows)), tensor0(0.5f32));
        let (output, residual) = (
            Block { first: 5, step: 60 },
            Block {
                first: 600,
                step: 55,
            },
        );
        assert!(!kernels().is_empty());
        for mut kernel in kernels() {
            let one = kernel.right.as_ref().is_some_and(|format| format.r == 1);
            let runs = if one { 1 } else { runs };
            let mut packed = Panels::new(&kernel.left, depth, rows).unwrap();
            packed.pack(&left, (depth, rows), (1, depth)).unwrap();
            let mut panels = kernel.right_panels(depth, runs).unwrap();
            let mut arena = Arena::new(around + right.len()).unwrap();
            arena.numbers()[..around].copy_from_slice(&numbers(4, around));
            arena.numbers()[around..].copy_from_slice(&right);
            // SAFETY: one thread uses it.
            let shared = unsafe { arena.share() };
            let input = Block {
                first: around,
                step: depth,
            };
            let sums = Sums {
                left: Left::Floats(&packed),
                right: Right::new(panels.as_mut(), shared, input, (depth, runs)).unwrap(),
                bias: Some((&bias, 0)),
                scale: None,
                residual: Some(residual),
                output,
                soon: &[],
            };
            kernel.multiply(shared, (rows, runs), &sums).unwrap();
            let name = kernel.name().to_owned();
            let check = |scale: f32, added: bool| {
                for (at, &found) in shared.read(0..around).iter().enumerate() {
                    let place = at.checked_sub(output.first);
                    let place = place.map(|at| (at / output.step, at % output.step));
                    let expected = match place {
                        Some((run, row)) if run < runs && row < rows => {
                            let products =
                                (0..depth).map(|k| left[row * depth + k] * right[run * depth + k]);
                            let other = residual.first + run * residual.step + row;
                            let more = number(3, row) + number(4, other);
                            scale * products.sum::<f32>() + if added { more } else { 0.0 }
                        }
                        _ => number(4, at),
                    };
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{name} at {at}: {found} {expected}"
                    );
                }
            };
            check(1.0, true);
            let sums = Sums {
                bias: None,
                scale: Some(&scale),
                residual: None,
                ..sums
            };
            kernel.multiply(shared, (rows, runs), &sums).unwrap();
            check(0.5, false);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut kernel = Kernel::for_rows(8).unwrap();
        let mut left = Panels::new(&kernel.left, 4, 8).unwrap();
        let mut right = kernel.right_panels(4, 2).unwrap();
        let numbers = [1.0; 64];
        left.pack(&numbers, (4, 8), (1, 4)).unwrap();
        assert!(left.pack(&numbers, (4, 17), (1, 4)).is_err());
        assert!(left.pack(&numbers, (5, 1000), (1, 5)).is_err());
        let mut arena = Arena::new(32).unwrap();
        // SAFETY: one thread uses it.
        let arena = unsafe { arena.share() };
        let input = Block { first: 24, step: 4 };
        let right = Right::new(right.as_mut(), arena, input, (4, 2)).unwrap();
        let mut multiplies = |right, output| {
            let sums = Sums {
                left: Left::Floats(&left),
                right,
                bias: None,
                scale: None,
                residual: None,
                output,
                soon: &[],
            };
            kernel.multiply(arena, (8, 2), &sums).is_ok()
        };
        for (first, step, fits) in [
            (0, 8, true),
            (17, 8, false),
            (0, 25, false),
            (usize::MAX, 8, false),
        ] {
            let found = multiplies(right, Block { first, step });
            assert_eq!(found, fits, "{first} {step}");
        }
        let (outside, other_depth) = (Block { first: 25, step: 4 }, Right::Arena(input, 3));
        for right in [Right::Arena(outside, 4), other_depth] {
            assert!(!multiplies(right, Block { first: 0, step: 8 }));
        }
    }
}
