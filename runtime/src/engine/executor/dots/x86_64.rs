//! Tiles on x86-64.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_set1_epi32,
    _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_hadd_epi32,
    _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_setzero_si256, _mm256_storeu_si256,
    _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_storeu_si512, _mm512_sub_epi32,
};

use super::tile::{OUTPUTS, RECORD, Sums};

/// Outputs of a vector of AVX-512.
const WIDE: usize = 16;
/// Vectors of them in a panel.
const VECTORS: usize = OUTPUTS / WIDE;
/// How far ahead of its use a panel is fetched.
const AHEAD_BYTES: usize = 16 * RECORD;

type Kernel = unsafe fn(&[[u8; RECORD]], &[i32], &mut Sums);

/// A tile, each product of a quad by one instruction.
///
/// # Safety
/// The processor has AVX-512 with VNNI; `quads` holds those of 1 to 8 `runs` for each record.
pub(super) unsafe fn vnni(records: &[[u8; RECORD]], quads: &[i32], runs: usize, sums: &mut Sums) {
    const KERNELS: [Kernel; 8] = [
        vnni_of::<1>,
        vnni_of::<2>,
        vnni_of::<3>,
        vnni_of::<4>,
        vnni_of::<5>,
        vnni_of::<6>,
        vnni_of::<7>,
        vnni_of::<8>,
    ];
    // SAFETY: the caller's promise.
    unsafe { KERNELS[runs - 1](records, quads, sums) }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni_of<const N: usize>(records: &[[u8; RECORD]], quads: &[i32], sums: &mut Sums) {
    let mut all = [[_mm512_setzero_si512(); VECTORS]; N];
    let (quads, _) = quads.as_chunks::<N>();
    for (record, quads) in records.iter().zip(quads) {
        let mut weights = [_mm512_setzero_si512(); VECTORS];
        for (line, weights) in weights.iter_mut().enumerate() {
            let at = &raw const record[line * size_of::<__m512i>()];
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD_BYTES).cast());
            // SAFETY: a record has so many vectors.
            *weights = unsafe { _mm512_loadu_si512(at.cast()) };
        }
        for (sums, &quad) in all.iter_mut().zip(quads) {
            let quad = _mm512_set1_epi32(quad);
            for (sum, &weights) in sums.iter_mut().zip(&weights) {
                *sum = _mm512_dpbusd_epi32(*sum, weights, quad);
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        for (sums, all) in sums.chunks_exact_mut(WIDE).zip(all) {
            // SAFETY: there is room for a vector.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), all) };
        }
    }
}

/// Writes as many numbers of a run as are asked for: its sums without what they are too great by, times both scales, with
/// all that is added; null where nothing is.
///
/// # Safety
/// The processor has AVX-512; as many numbers may be read and written at the places, of which there are at most
/// [`OUTPUTS`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn finish(
    (sums, excess, scale, scales): (&[i32; OUTPUTS], i32, f32, &[f32; OUTPUTS]),
    (bias, residual): (*const f32, *const f32),
    (output, outputs): (*mut f32, usize),
) {
    let (excess, scale) = (_mm512_set1_epi32(excess), _mm512_set1_ps(scale));
    let (sums, _) = sums.as_chunks::<WIDE>();
    let (scales, _) = scales.as_chunks::<WIDE>();
    for ((sums, scales), first) in sums.iter().zip(scales).zip((0..outputs).step_by(WIDE)) {
        let mask = match outputs - first {
            WIDE.. => u16::MAX,
            rest => (1 << rest) - 1,
        };
        // SAFETY: the caller's promise, for the numbers that the mask leaves.
        unsafe {
            let sums = _mm512_sub_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), excess);
            let scales = _mm512_mul_ps(scale, _mm512_loadu_ps(scales.as_ptr()));
            let mut numbers = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales);
            if !bias.is_null() {
                numbers = _mm512_add_ps(numbers, _mm512_maskz_loadu_ps(mask, bias.add(first)));
            }
            if !residual.is_null() {
                let residual = _mm512_maskz_loadu_ps(mask, residual.add(first));
                numbers = _mm512_add_ps(numbers, residual);
            }
            _mm512_mask_storeu_ps(output.add(first), mask, numbers);
        }
    }
}

/// Outputs of a vector of AVX2.
const EIGHT: usize = 8;

/// A tile, its bytes widened to 16 bits, so that no sum is cut.
///
/// # Safety
/// The processor has AVX2; `quads` holds those of 1 to 8 `runs` for each record.
pub(super) unsafe fn avx2(records: &[[u8; RECORD]], quads: &[i32], runs: usize, sums: &mut Sums) {
    const MOST: usize = 4;
    for first in (0..runs).step_by(MOST) {
        let of = (first, runs);
        // SAFETY: the caller's promise.
        unsafe {
            match runs - first {
                1 => avx2_of::<1>(records, quads, of, sums),
                2 => avx2_of::<2>(records, quads, of, sums),
                3 => avx2_of::<3>(records, quads, of, sums),
                _ => avx2_of::<4>(records, quads, of, sums),
            }
        }
    }
}

/// `N` runs of a tile from run `first` on.
#[target_feature(enable = "avx2")]
fn avx2_of<const N: usize>(
    records: &[[u8; RECORD]],
    quads: &[i32],
    (first, runs): (usize, usize),
    sums: &mut Sums,
) {
    for eight in 0..OUTPUTS / EIGHT {
        // For each run the sums of halves of quads: of the first four outputs, and of the others.
        let mut all = [[_mm256_setzero_si256(); 2]; N];
        for (record, quads) in records.iter().zip(quads.chunks_exact(runs)) {
            let half = |half: usize| {
                let at = &raw const record[(2 * eight + half) * size_of::<__m128i>()];
                // SAFETY: a record has so many vectors.
                _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(at.cast()) })
            };
            let weights = [half(0), half(1)];
            for (sums, &quad) in all.iter_mut().zip(&quads[first..first + N]) {
                let quad = _mm256_cvtepi8_epi16(_mm_set1_epi32(quad));
                for (sum, &weights) in sums.iter_mut().zip(&weights) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, quad));
                }
            }
        }
        for (sums, [one, other]) in sums[first..].iter_mut().zip(all) {
            const IN_ORDER: i32 = 0b11_01_10_00;
            let all: __m256i = _mm256_permute4x64_epi64::<IN_ORDER>(_mm256_hadd_epi32(one, other));
            let sums = &mut sums[eight * EIGHT..][..EIGHT];
            // SAFETY: there is room for a vector.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), all) };
        }
    }
}
