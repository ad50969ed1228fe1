//! A product kernel for x86-64 with AVX-512.
//!
//! A tile is up to 48 rows by 8 runs, its sums in 24 of the 32 registers: each number of the left panel is loaded once for
//! eight runs, so that the panel may come from the second-level cache as fast as it is multiplied. Tiles at the edges
//! use fewer registers instead of padding.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps,
};

/// The kernel's name in images.
pub(super) const NAME: &str = "preface_avx512_48x8";
/// Rows of a left panel.
pub(super) const ROWS: usize = LANES * VECTORS;
/// Runs of a right panel.
pub(super) const RUNS: usize = 8;

/// Numbers of a vector, which is a cache line.
pub(super) const LANES: usize = 16;
/// Vectors of rows in a tile.
pub(super) const VECTORS: usize = 3;
/// How far ahead of its use the left panel is fetched, in records of [`ROWS`] numbers.
const AHEAD: usize = 8;

/// One tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub depth: usize,
    /// Rows that are there, at most [`ROWS`].
    pub rows: usize,
    /// Runs that are there, at most [`RUNS`].
    pub runs: usize,
    /// `[depth, ROWS]`.
    pub left: *const f32,
    /// What is read soon: a cache line of it is fetched with each record.
    pub next: *const f32,
    /// `[depth, RUNS]`.
    pub right: *const f32,
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

/// Does `work` with vectors as wide as the processor has, where the compiler puts it in place.
#[inline]
pub(crate) fn wide<T>(work: impl FnOnce() -> T) -> T {
    #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
    fn with_vectors<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let all = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma");
    match all {
        // SAFETY: the processor has what the function is compiled for.
        true => unsafe { with_vectors(work) },
        false => work(),
    }
}

/// Computes `tile`.
///
/// # Safety
/// The processor has AVX-512, the panels are whole, and `rows` numbers of each of `runs` runs may be read and written at the
/// tile's other places.
pub(super) unsafe fn multiply(tile: Tile) {
    type Kernel = unsafe fn(Tile);
    macro_rules! kernels {
        ($($vectors:literal)*) => { [$([
            compute::<$vectors, 1>, compute::<$vectors, 2>, compute::<$vectors, 3>, compute::<$vectors, 4>,
            compute::<$vectors, 5>, compute::<$vectors, 6>, compute::<$vectors, 7>, compute::<$vectors, 8>,
        ]),*] };
    }
    const KERNELS: [[Kernel; RUNS]; VECTORS] = kernels!(1 2 3);
    let kernel = KERNELS[tile.rows.div_ceil(LANES) - 1][tile.runs - 1];
    // SAFETY: the caller's promise.
    unsafe { kernel(tile) }
}

/// A tile of `V` vectors of rows by `N` runs.
#[target_feature(enable = "avx512f")]
unsafe fn compute<const V: usize, const N: usize>(tile: Tile) {
    let mut sums = [[_mm512_setzero_ps(); V]; N];
    // SAFETY: all reads lie within `depth` records of the panels; a prefetch may lie anywhere.
    unsafe {
        let (mut left, mut right) = (tile.left, tile.right);
        for record in 0..tile.depth {
            let next = tile.next.wrapping_add(record * LANES);
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            for line in 0..V {
                let ahead = left.wrapping_add(AHEAD * ROWS + line * LANES);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            let mut column = [_mm512_setzero_ps(); V];
            for (line, numbers) in column.iter_mut().enumerate() {
                *numbers = _mm512_loadu_ps(left.add(line * LANES));
            }
            for (run, sums) in sums.iter_mut().enumerate() {
                let number = _mm512_set1_ps(*right.add(run));
                for (sum, &numbers) in sums.iter_mut().zip(&column) {
                    *sum = _mm512_fmadd_ps(numbers, number, *sum);
                }
            }
            left = left.add(ROWS);
            right = right.add(RUNS);
        }
    }
    // SAFETY: masks keep reads and writes within `rows` numbers.
    unsafe { finish(&tile, &sums) }
}

/// Adds what is to be added and writes the sums.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const V: usize, const N: usize>(tile: &Tile, sums: &[[__m512; V]; N]) {
    let scale = _mm512_set1_ps(tile.scale);
    for (run, sums) in sums.iter().enumerate() {
        for (line, &sum) in sums.iter().enumerate() {
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

#[cfg(test)]
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
        let depth = 19;
        let (left, right) = (numbers(1, depth * ROWS), numbers(2, depth * RUNS));
        let (bias, residual) = (numbers(3, ROWS), numbers(4, RUNS * 50));
        for rows in 1..=ROWS {
            for runs in 1..=RUNS {
                let mut output = vec![9.0; RUNS * 60];
                let tile = Tile {
                    depth,
                    rows,
                    runs,
                    left: left.as_ptr(),
                    next: left.as_ptr(),
                    right: right.as_ptr(),
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
                            let products =
                                (0..depth).map(|k| left[k * ROWS + row] * right[k * RUNS + run]);
                            products.sum::<f32>() * 0.5 + bias[row] + residual[run * 50 + row]
                        }
                    };
                    assert!(
                        (number - expected).abs() < 1e-4,
                        "{rows} {runs} {run} {row}"
                    );
                }
            }
        }
    }
}
