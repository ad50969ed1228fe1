//! Chance that is the same on every machine.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, figure 17): the draw of
/// number `n` depends on the seed and on `n` alone.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    state: u64,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 random bits.
    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 on, below 1, of 53 random bits.
    pub fn unit(&mut self) -> f64 {
        const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
        (self.bits() >> 11) as f64 * UNIT
    }
}

/// The exponential of `x`, which is not above 0, by sums and products alone: every machine rounds those alike, while the
/// exponentials of their mathematics libraries differ in the last bit. 0 below -700.
pub(crate) fn exp(x: f64) -> f64 {
    /// The two parts of the logarithm of 2; products of the first with the exponents used here are exact.
    const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    const TERMS: u32 = 13;
    if x < -700.0 {
        return 0.0;
    }
    let exponent = (x * std::f64::consts::LOG2_E).round();
    let rest = x - exponent * LN2[0] - exponent * LN2[1];
    let series = (1..=TERMS).rev();
    let mantissa = series.fold(1.0, |sum, term| 1.0 + rest / f64::from(term) * sum);
    let power = f64::from_bits(((1023 + exponent as i64) as u64) << 52);
    mantissa * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draws_are_those_published() {
        // The first outputs of the reference implementation, https://prng.di.unimi.it/splitmix64.c, for this seed.
        let mut draws = Draws::new(1_234_567);
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        for bits in published {
            assert_eq!(draws.bits(), bits);
        }
    }

    #[test]
    fn the_exponential_is_near_that_of_the_library() {
        for step in 0..70_000 {
            let x = -f64::from(step) / 100.0 - f64::from(step % 7) / 1e4;
            let expected = x.exp();
            let error = (exp(x) - expected).abs() / expected;
            assert!(x < -699.9 || error < 4e-16, "{x}: {error}");
        }
        assert_eq!(
            [exp(0.0), exp(-701.0), exp(f64::NEG_INFINITY)],
            [1.0, 0.0, 0.0]
        );
    }

    /// Fixed bits: a machine that rounds otherwise would draw other tokens.
    #[test]
    fn the_exponential_has_these_bits() {
        let table = [
            (-0.5, 0.606_530_659_712_633_4),
            (-1.0, 0.367_879_441_171_442_33),
            (-20.25, 1.605_228_055_185_611_6e-9),
        ];
        for (x, expected) in table {
            assert_eq!(
                exp(x).to_bits(),
                f64::to_bits(expected),
                "{x}: {:?}",
                exp(x)
            );
        }
    }
}
