//! Tiles on 64-bit ARM.

use std::arch::{
    aarch64::{
        int8x16_t, int16x8_t, int32x4_t, vdupq_n_s32, vget_low_s8, vld1q_s8, vmull_high_s8,
        vmull_s8, vpadalq_s16, vpaddq_s32, vreinterpretq_s8_s32, vst1q_s32,
    },
    asm,
};

use super::tile::{OUTPUTS, RECORD, Sums};

/// Outputs of a vector.
const FOUR: usize = 4;

macro_rules! of_each_width {
    ($kernel:ident) => {
        [
            $kernel::<1>,
            $kernel::<2>,
            $kernel::<3>,
            $kernel::<4>,
            $kernel::<5>,
            $kernel::<6>,
            $kernel::<7>,
            $kernel::<8>,
        ]
    };
}

type Kernel = unsafe fn(&[[u8; RECORD]], &[i32], &mut Sums);

/// A tile, each product of a quad by one instruction.
///
/// # Safety
/// The processor has the dot product instructions; `quads` holds those of 1 to 8 `runs` for each record.
pub(super) unsafe fn dotprod(
    records: &[[u8; RECORD]],
    quads: &[i32],
    runs: usize,
    sums: &mut Sums,
) {
    const KERNELS: [Kernel; 8] = of_each_width!(dotprod_of);
    // SAFETY: the caller's promise.
    unsafe { KERNELS[runs - 1](records, quads, sums) }
}

/// The same with what every 64-bit ARM has.
///
/// # Safety
/// `quads` holds those of 1 to 8 `runs` for each record.
pub(super) unsafe fn neon(records: &[[u8; RECORD]], quads: &[i32], runs: usize, sums: &mut Sums) {
    const KERNELS: [Kernel; 8] = of_each_width!(neon_of);
    // SAFETY: the caller's promise.
    unsafe { KERNELS[runs - 1](records, quads, sums) }
}

/// Vector `index` of a record: the quads of four outputs.
#[inline]
#[target_feature(enable = "neon")]
fn weights(record: &[u8; RECORD], index: usize) -> int8x16_t {
    let at = &raw const record[index * size_of::<int8x16_t>()];
    // SAFETY: a record has so many vectors.
    unsafe { vld1q_s8(at.cast()) }
}

#[target_feature(enable = "neon,dotprod")]
fn dotprod_of<const N: usize>(records: &[[u8; RECORD]], quads: &[i32], sums: &mut Sums) {
    /// Vectors of outputs that are added up at once.
    const VECTORS: usize = 2;
    let (quads, _) = quads.as_chunks::<N>();
    for first in (0..OUTPUTS / FOUR).step_by(VECTORS) {
        let mut all = [[vdupq_n_s32(0); VECTORS]; N];
        for (record, quads) in records.iter().zip(quads) {
            let weights = [weights(record, first), weights(record, first + 1)];
            for (sums, &quad) in all.iter_mut().zip(quads) {
                let quad = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                for (sum, &weights) in sums.iter_mut().zip(&weights) {
                    *sum = sdot(*sum, weights, quad);
                }
            }
        }
        for (sums, all) in sums.iter_mut().zip(all) {
            store(sums, first, all);
        }
    }
}

/// Adds the products of quads to `sum`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, one: int8x16_t, other: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers alone, and the processor has it.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {one:v}.16b, {other:v}.16b",
            sum = inout(vreg) sum,
            one = in(vreg) one,
            other = in(vreg) other,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[target_feature(enable = "neon")]
fn neon_of<const N: usize>(records: &[[u8; RECORD]], quads: &[i32], sums: &mut Sums) {
    let (quads, _) = quads.as_chunks::<N>();
    for four in 0..OUTPUTS / FOUR {
        // For each run the sums of halves of quads: of the first two outputs, and of the others.
        let mut all = [[vdupq_n_s32(0); 2]; N];
        for (record, quads) in records.iter().zip(quads) {
            let weights = weights(record, four);
            for ([low, high], &quad) in all.iter_mut().zip(quads) {
                let quad = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                let products: int16x8_t = vmull_s8(vget_low_s8(weights), vget_low_s8(quad));
                *low = vpadalq_s16(*low, products);
                *high = vpadalq_s16(*high, vmull_high_s8(weights, quad));
            }
        }
        for (sums, [low, high]) in sums.iter_mut().zip(all) {
            store(sums, four, [vpaddq_s32(low, high)]);
        }
    }
}

/// Writes vectors of sums, the first of them number `first`.
#[inline]
#[target_feature(enable = "neon")]
fn store<const V: usize>(sums: &mut [i32; OUTPUTS], first: usize, vectors: [int32x4_t; V]) {
    let places = sums[first * FOUR..].chunks_exact_mut(FOUR);
    for (place, vector) in places.zip(vectors) {
        // SAFETY: there is room for a vector.
        unsafe { vst1q_s32(place.as_mut_ptr(), vector) };
    }
}
