//! Binary16 to binary32, many at a time.

/// Writes what `halves` are into `numbers`, as many as both have.
pub(super) fn widen(halves: &[[u8; 2]], numbers: &mut [f32]) {
    let count = halves.len().min(numbers.len());
    let (halves, numbers) = (&halves[..count], &mut numbers[..count]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") {
        // SAFETY: the processor converts halves.
        return unsafe { convert(halves, numbers) };
    }
    portably(halves, numbers);
}

/// The same with what every processor has.
fn portably(halves: &[[u8; 2]], numbers: &mut [f32]) {
    let pairs = numbers.iter_mut().zip(halves);
    pairs.for_each(|(number, half)| *number = single(u16::from_le_bytes(*half)));
}

/// The number that the bits of a half are.
#[inline(always)]
pub(super) fn single(half: u16) -> f32 {
    /// What the exponent of a half is less than that of a single.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    const SIGN: u32 = 1 << 15;
    const GREATEST: u32 = 0x7c00;
    let bits = u32::from(half);
    let magnitude = f32::from_bits((bits & !SIGN) << 13) * REBIAS;
    let special = if bits & GREATEST == GREATEST {
        0xff << 23
    } else {
        0
    };
    f32::from_bits(magnitude.to_bits() | special | (bits & SIGN) << 16)
}

/// The same with the processor's own conversion.
///
/// # Safety
/// The processor has F16C, and both have one length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn convert(halves: &[[u8; 2]], numbers: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (eights, rest) = halves.as_chunks::<8>();
    let (wide, last) = numbers.as_chunks_mut::<8>();
    for (halves, numbers) in eights.iter().zip(wide) {
        // SAFETY: both are eight numbers.
        unsafe {
            let halves = _mm_loadu_si128(halves.as_ptr().cast());
            _mm256_storeu_ps(numbers.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
    portably(rest, last);
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_half_is_what_it_is() {
        let halves: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        let [mut many, mut steps] = [vec![0.0; halves.len()], vec![0.0; halves.len()]];
        widen(&halves, &mut many);
        portably(&halves, &mut steps);
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            for found in [many[usize::from(bits)], steps[usize::from(bits)]] {
                let same = found.to_bits() == expected.to_bits();
                assert!(
                    same || found.is_nan() && expected.is_nan(),
                    "{bits:#06x}: {found}"
                );
            }
        }
    }

    #[test]
    fn the_shorter_ends_it() {
        let halves = vec![f16::ONE.to_le_bytes(); 21];
        for count in [0, 1, 8, 19, 21, 30] {
            let mut numbers = vec![0.0; count];
            widen(&halves, &mut numbers);
            let converted = numbers.iter().filter(|&&number| number == 1.0).count();
            assert_eq!(converted, count.min(21));
        }
    }
}
