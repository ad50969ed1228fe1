//! A product kernel for x86-64 with AVX-512.
//!
//! A tile is up to 48 rows by 8 runs, its sums in 24 of the 32 registers: each number of the left panel is loaded once for
//! eight runs, so that the panel may come from the second-level cache as fast as it is multiplied. Tiles at the edges
//! use fewer registers instead of padding. Left panels may be of weights in fewer bits, which become floats on their way
//! to the registers.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256,
    _mm512_add_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_permutexvar_ps, _mm512_set1_ps, _mm512_setr_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_srli_epi32,
};
use std::array;

use crate::{Weights, weights::GROUP};

/// The kernel's name in images.
pub(super) const NAME: &str = "preface_avx512_48x8";
/// Rows of a left panel.
pub(super) const ROWS: usize = LANES * VECTORS;
/// Runs of a tile.
pub(super) const RUNS: usize = 8;

/// Numbers of a vector, which is a cache line.
pub(super) const LANES: usize = 16;
/// Vectors of rows in a tile.
pub(super) const VECTORS: usize = 3;
/// How far ahead of its use the left panel is fetched.
const AHEAD_BYTES: usize = 8 * ROWS * size_of::<f32>();
/// Runs that are read from one pointer, whose addresses reach once and twice the step from one run to the next.
const REACH: usize = 3;
/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = LANES * size_of::<f32>();

/// One tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub depth: usize,
    /// Rows that are there, at most [`ROWS`].
    pub rows: usize,
    /// Runs that are there, at most [`RUNS`].
    pub runs: usize,
    /// How the left panel is stored.
    pub weights: Weights,
    /// `[depth, ROWS]`.
    pub left: *const u8,
    /// What is read soon: a cache line of it is fetched with each record.
    pub next: *const u8,
    /// Runs of `depth` numbers, one every `right_step`.
    pub right: *const f32,
    pub right_step: usize,
    /// Added to each row, `[rows]`; null where nothing is.
    pub bias: *const f32,
    /// Multiplies every sum.
    pub scale: f32,
    /// Added number by number; null where nothing is.
    pub residual: *const f32,
    pub residual_step: usize,
    pub output: *mut f32,
    pub output_step: usize,
}

/// Whether this processor runs the kernel.
pub(super) fn runs() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// Computes `tile`.
///
/// # Safety
/// The processor has AVX-512, the panel and the runs are whole, and `rows` numbers of each of `runs` runs may be read and
/// written at the tile's other places.
pub(super) unsafe fn multiply(tile: Tile) {
    type Kernel = unsafe fn(Tile);
    macro_rules! kernels {
        ($weights:ident) => {
            [
                kernels!($weights, 1),
                kernels!($weights, 2),
                kernels!($weights, 3),
            ]
        };
        ($weights:ident, $vectors:literal) => {
            [
                compute::<$weights, $vectors, 1>,
                compute::<$weights, $vectors, 2>,
                compute::<$weights, $vectors, 3>,
                compute::<$weights, $vectors, 4>,
                compute::<$weights, $vectors, 5>,
                compute::<$weights, $vectors, 6>,
                compute::<$weights, $vectors, 7>,
                compute::<$weights, $vectors, 8>,
            ]
        };
    }
    const F32_KERNELS: [[Kernel; RUNS]; VECTORS] = kernels!(F32);
    const F16_KERNELS: [[Kernel; RUNS]; VECTORS] = kernels!(F16);
    const I8_KERNELS: [[Kernel; RUNS]; VECTORS] = kernels!(I8);
    const I4_KERNELS: [[Kernel; RUNS]; VECTORS] = kernels!(I4);
    let kernels = match tile.weights {
        Weights::F32 => &F32_KERNELS,
        Weights::F16 => &F16_KERNELS,
        Weights::I8 => &I8_KERNELS,
        Weights::I8A8 => unreachable!("a product of these bytes is none of floats"),
        Weights::I4 => &I4_KERNELS,
    };
    let kernel = kernels[tile.rows.div_ceil(LANES) - 1][tile.runs - 1];
    // SAFETY: the caller's promise.
    unsafe { kernel(tile) }
}

const F32: u8 = Weights::F32 as u8;
const F16: u8 = Weights::F16 as u8;
const I8: u8 = Weights::I8 as u8;
const I4: u8 = Weights::I4 as u8;

/// A left panel that is read record by record.
struct Records<const W: u8, const V: usize> {
    left: *const u8,
    /// Of the panel, or of its group.
    scales: [__m512; V],
    /// Two records of `i4`.
    pair: [__m512i; V],
}

impl<const W: u8, const V: usize> Records<W, V> {
    /// Cache lines of a record, about.
    const LINES: usize = match W {
        F32 => V,
        F16 => V.div_ceil(2),
        _ => 1,
    };

    /// The records of the panel at `left`.
    ///
    /// # Safety
    /// The panel is whole.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn of(mut left: *const u8) -> Self {
        let mut scales = [_mm512_setzero_ps(); V];
        if W == I8 {
            for (line, scales) in scales.iter_mut().enumerate() {
                // SAFETY: the panel begins with `ROWS` scales.
                *scales = unsafe { _mm512_loadu_ps(left.cast::<f32>().add(line * LANES)) };
            }
            left = left.wrapping_add(ROWS * size_of::<f32>());
        }
        Self {
            left,
            scales,
            pair: [_mm512_setzero_si512(); V],
        }
    }

    /// Record `index`, behind the one before it.
    ///
    /// # Safety
    /// There is such a record.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn next(&mut self, index: usize) -> [__m512; V] {
        let mut column = [_mm512_setzero_ps(); V];
        // SAFETY: the caller's promise: what is read is the record, or the scales before its group.
        unsafe {
            if W == I4 && index.is_multiple_of(GROUP) {
                for (line, scales) in self.scales.iter_mut().enumerate() {
                    let halves = _mm256_loadu_si256(self.left.add(line * LANES * 2).cast());
                    *scales = _mm512_cvtph_ps(halves);
                }
                self.left = self.left.add(ROWS * 2);
            }
            for (line, numbers) in column.iter_mut().enumerate() {
                let first = line * LANES;
                *numbers = match W {
                    F32 => _mm512_loadu_ps(self.left.cast::<f32>().add(first)),
                    F16 => _mm512_cvtph_ps(_mm256_loadu_si256(self.left.add(first * 2).cast())),
                    I8 => {
                        let bytes = _mm_loadu_si128(self.left.add(first).cast());
                        let integers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                        _mm512_mul_ps(integers, self.scales[line])
                    }
                    _ => {
                        let pair = &mut self.pair[line];
                        *pair = match index % 2 {
                            0 => {
                                let bytes = _mm_loadu_si128(self.left.add(first).cast());
                                _mm512_cvtepu8_epi32(bytes)
                            }
                            _ => _mm512_srli_epi32::<4>(*pair),
                        };
                        let integers = _mm512_permutexvar_ps(*pair, nibble_values());
                        _mm512_mul_ps(integers, self.scales[line])
                    }
                };
            }
            self.left = self.left.add(match W {
                F32 => ROWS * 4,
                F16 => ROWS * 2,
                I8 => ROWS,
                _ => ROWS * (index % 2),
            });
        }
        column
    }
}

/// What each nibble of `i4` stands for; of an index, a permutation reads the lower four bits alone.
#[inline]
#[target_feature(enable = "avx512f")]
fn nibble_values() -> __m512 {
    _mm512_setr_ps(
        -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
    )
}

/// A tile of `V` vectors of rows by `N` runs, of a left panel that is stored as `W`.
#[target_feature(enable = "avx512f")]
unsafe fn compute<const W: u8, const V: usize, const N: usize>(tile: Tile) {
    let mut sums = [[_mm512_setzero_ps(); V]; N];
    // SAFETY: all reads lie within `depth` records of the panel and numbers of the runs; a prefetch may lie anywhere.
    unsafe {
        let mut left = Records::<W, V>::of(tile.left);
        let step = tile.right_step;
        let mut right: [_; RUNS.div_ceil(REACH)] =
            array::from_fn(|base| tile.right.wrapping_add(base * REACH * step));
        for record in 0..tile.depth {
            let next = tile.next.wrapping_add(record * LINE_BYTES);
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            for line in 0..Records::<W, V>::LINES {
                let ahead = left.left.wrapping_add(AHEAD_BYTES + line * LINE_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            let column = left.next(record);
            for (run, sums) in sums.iter_mut().enumerate() {
                let number = _mm512_set1_ps(*right[run / REACH].add(run % REACH * step));
                for (sum, &numbers) in sums.iter_mut().zip(&column) {
                    *sum = _mm512_fmadd_ps(numbers, number, *sum);
                }
            }
            for base in &mut right {
                *base = base.wrapping_add(1);
            }
        }
    }
    // SAFETY: masks keep reads and writes within `rows` numbers.
    unsafe { finish(&tile, sums) }
}

/// Adds what is to be added and writes the sums. They are given by value: where they are lent, the compiler keeps them in
/// memory all the time.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const V: usize, const N: usize>(tile: &Tile, sums: [[__m512; V]; N]) {
    let scale = _mm512_set1_ps(tile.scale);
    for (run, sums) in sums.into_iter().enumerate() {
        for (line, sum) in sums.into_iter().enumerate() {
            let first = line * LANES;
            let mask = match tile.rows - first {
                LANES.. => u16::MAX,
                rest => (1 << rest) - 1,
            };
            // SAFETY: the caller's promise, for the numbers that the mask leaves.
            unsafe {
                let mut sum = _mm512_mul_ps(sum, scale);
                if !tile.bias.is_null() {
                    let bias = _mm512_maskz_loadu_ps(mask, tile.bias.add(first));
                    sum = _mm512_add_ps(sum, bias);
                }
                if !tile.residual.is_null() {
                    let residual = tile.residual.add(run * tile.residual_step + first);
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, residual));
                }
                let output = tile.output.add(run * tile.output_step + first);
                _mm512_mask_storeu_ps(output, mask, sum);
            }
        }
    }
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_every_size_are_the_sums_of_their_products() {
        if !runs() {
            return eprintln!("SKIPPED: this processor has no AVX-512");
        }
        let numbers = |seed: usize, count: usize| -> Vec<f32> {
            (0..count)
                .map(|index| ((index * 37 + seed) as f32).sin())
                .collect()
        };
        let (bias, residual) = (numbers(3, ROWS), numbers(4, RUNS * 50));
        let mut cases = Vec::new();
        let as_floats = [Weights::F32, Weights::F16, Weights::I8, Weights::I4];
        for (weights, depth) in as_floats.into_iter().zip([19, 19, 19, 71]) {
            let numbers = numbers(1, depth * ROWS);
            let stored = weights.encode(&numbers, depth * ROWS, ROWS).unwrap();
            let mut left = vec![0.0; depth * ROWS];
            weights.expand(&stored, ROWS, 0, &mut left);
            let sizes = (1..=ROWS).flat_map(|rows| (1..=RUNS).map(move |runs| (rows, runs)));
            cases.push((weights, depth, stored, left, sizes));
        }
        for (weights, depth, stored, left, sizes) in cases {
            let right_step = depth + 3;
            let right = numbers(2, right_step * RUNS);
            for (rows, runs) in sizes {
                let mut output = vec![9.0; RUNS * 60];
                let tile = Tile {
                    depth,
                    rows,
                    runs,
                    weights,
                    left: stored.as_ptr(),
                    next: stored.as_ptr(),
                    right: right.as_ptr(),
                    right_step,
                    bias: bias.as_ptr(),
                    scale: 0.5,
                    residual: residual.as_ptr(),
                    residual_step: 50,
                    output: output.as_mut_ptr(),
                    output_step: 60,
                };
                // SAFETY: the panels have `depth` records, the others room for every run.
                unsafe { multiply(tile) };
                for (at, &number) in output.iter().enumerate() {
                    let (run, row) = (at / 60, at % 60);
                    let expected = match run < runs && row < rows {
                        false => 9.0,
                        true => {
                            let products = (0..depth)
                                .map(|k| left[k * ROWS + row] * right[run * right_step + k]);
                            products.sum::<f32>() * 0.5 + bias[row] + residual[run * 50 + row]
                        }
                    };
                    assert!(
                        (number - expected).abs() < 1e-4,
                        "{weights} {rows} {runs} {run} {row}"
                    );
                }
            }
        }
    }
}
