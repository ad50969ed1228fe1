//! Sums of products of bytes, a tile at a time, by whatever instructions the processor has: all of them give the same
//! integers.
//!
//! A tile is a panel of `i8a8` by up to [`RUNS`] runs. The runs lie as the panel does: for every [`QUAD`] inputs, the quad of
//! each run in turn, its bytes in one integer, the first input's lowest.

use crate::weights::{EXCESS, QUAD};

#[cfg(target_arch = "aarch64")]
use super::aarch64 as vectors;
#[cfg(target_arch = "x86_64")]
use super::x86_64 as vectors;

/// Outputs of a panel.
pub const OUTPUTS: usize = if cfg!(target_arch = "x86_64") { 48 } else { 16 };
/// Runs of the widest tile.
pub(super) const RUNS: usize = 8;
/// Bytes of a panel for each quad.
pub(super) const RECORD: usize = OUTPUTS * QUAD;

/// For each run, the sums of each output: with stored bytes, each [`EXCESS`] too many.
pub(super) type Sums = [[i32; OUTPUTS]; RUNS];

/// What multiplies bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What every processor has.
    Portable,
}

impl Instructions {
    /// Every one that this build has, the fastest first.
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Vnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "aarch64")]
        Self::Dotprod,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Portable,
    ];

    /// The fastest that this processor runs.
    pub fn here() -> Self {
        Self::all_here().next().unwrap_or(Self::Portable)
    }

    /// Those that this processor runs, the fastest first.
    pub fn all_here() -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().copied();
        all.filter(|one| one.run_here())
    }

    /// Whether this processor runs them.
    fn run_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
        }
    }

    /// The name of the instructions.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512_vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Adds up the products of `records`, a panel behind its scales, and of `quads`, those of `runs` runs, and writes the sums
    /// of the first `runs`.
    ///
    /// It is one of those that [run here](Self::here), there are 1 to [`RUNS`] runs, and both have as many quads.
    pub fn multiply(self, records: &[u8], quads: &[i32], runs: usize, sums: &mut Sums) {
        let (records, _) = records.as_chunks::<RECORD>();
        assert_eq!(records.len() * runs, quads.len(), "both have as many quads");
        match self {
            // SAFETY: the processor was asked when these were chosen.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { vectors::vnni(records, quads, runs, sums) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { vectors::avx2(records, quads, runs, sums) },
            // SAFETY: the same.
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => unsafe { vectors::dotprod(records, quads, runs, sums) },
            // SAFETY: the same.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { vectors::neon(records, quads, runs, sums) },
            Self::Portable => portable(records, quads, runs, sums),
        }
    }
}

fn portable(records: &[[u8; RECORD]], quads: &[i32], runs: usize, sums: &mut Sums) {
    let sums = &mut sums[..runs];
    sums.fill([0; OUTPUTS]);
    for (record, quads) in records.iter().zip(quads.chunks_exact(runs)) {
        for (sums, quad) in sums.iter_mut().zip(quads) {
            let quad = quad.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
            let (outputs, _) = record.as_chunks::<QUAD>();
            for (sum, bytes) in sums.iter_mut().zip(outputs) {
                let products = bytes.iter().zip(quad);
                *sum += products
                    .map(|(&byte, input)| stored(byte) * input)
                    .sum::<i32>();
            }
        }
    }
}

/// The integer that instructions take a stored byte for.
fn stored(byte: u8) -> i32 {
    i32::from(byte.wrapping_sub(EXCESS).cast_signed()) + i32::from(EXCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random, the extremes among them.
    fn bytes(seed: u32, count: usize) -> Vec<i8> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            match state % 5 {
                0 => -127,
                1 => 127,
                _ => ((state >> 8) % 255) as i8,
            }
        };
        let bytes = (0..count).map(next);
        bytes.map(|byte: i8| byte.max(-127)).collect()
    }

    #[test]
    fn all_instructions_give_the_sums_of_the_products_to_the_last_bit() {
        let mut compared = 0;
        for count in [1, 2, 3, 7, 96, 385] {
            let weights = bytes(1, count * RECORD);
            let inputs = bytes(2, count * QUAD * RUNS);
            let records: Vec<u8> = weights
                .iter()
                .map(|byte| byte.cast_unsigned().wrapping_add(EXCESS))
                .collect();
            for runs in 1..=RUNS {
                let quads: Vec<i32> = inputs
                    .as_chunks::<QUAD>()
                    .0
                    .iter()
                    .take(count * runs)
                    .map(|quad| i32::from_le_bytes(quad.map(i8::cast_unsigned)))
                    .collect();
                let expected = |run: usize, output: usize| {
                    let products = (0..count * QUAD).map(|input| {
                        let (quad, byte) = (input / QUAD, input % QUAD);
                        let weight = i32::from(weights[quad * RECORD + output * QUAD + byte]);
                        let input = i32::from(inputs[(quad * runs + run) * QUAD + byte]);
                        (weight + i32::from(EXCESS)) * input
                    });
                    products.sum::<i32>()
                };
                for one in Instructions::all_here() {
                    compared += 1;
                    let mut sums = [[i32::MIN; OUTPUTS]; RUNS];
                    one.multiply(&records, &quads, runs, &mut sums);
                    for (run, sums) in sums.iter().enumerate() {
                        for (output, &sum) in sums.iter().enumerate() {
                            let expected = match run < runs {
                                true => expected(run, output),
                                false => i32::MIN,
                            };
                            assert_eq!(sum, expected, "{one:?}: {count} {runs} {run} {output}");
                        }
                    }
                }
            }
        }
        let names: Vec<&str> = Instructions::all_here().map(Instructions::name).collect();
        assert_eq!(
            (compared, names[0]),
            (48 * names.len(), Instructions::here().name())
        );
        eprintln!("compared {}", names.join(", "));
    }
}
