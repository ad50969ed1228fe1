//! Which numbers dropout takes in each step.

use std::iter;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{engine::Array, options::Candidate};

/// Where the factors of a step may begin among those that were drawn.
const BEGINNINGS: u64 = 1 << 20;

/// Factors for the numbers of a step: 0 for a part of them, and for the others what keeps their mean.
pub(super) struct Dropout {
    rate: f32,
    random: ChaCha8Rng,
    /// Drawn once and read from another beginning in every step.
    drawn: Vec<f32>,
}

impl Dropout {
    /// Takes `rate` of all numbers, from 0 up to but not including 1.
    pub fn new(rate: f32) -> Self {
        Self {
            rate,
            random: ChaCha8Rng::seed_from_u64(0),
            drawn: Vec::new(),
        }
    }

    /// The factors of step `step` for each candidate, `[candidates, count]`: the same for one seed whoever is trained
    /// beside it.
    pub fn factors(&mut self, candidates: &[Candidate], step: usize, count: usize) -> Array {
        let missing = (BEGINNINGS as usize + count).saturating_sub(self.drawn.len());
        let (taken, kept) = (
            f64::from(self.rate) * f64::from(u32::MAX),
            1.0 / (1.0 - self.rate),
        );
        let mut draw = || match f64::from(self.random.next_u32()) < taken {
            true => 0.0,
            false => kept,
        };
        self.drawn
            .extend(iter::repeat_with(&mut draw).take(missing));
        let of_candidate = |candidate: &Candidate| {
            let mut random = ChaCha8Rng::seed_from_u64(candidate.seed);
            // Epochs have the streams from 1 on.
            random.set_stream(u64::MAX - step as u64);
            let first = (random.next_u64() % BEGINNINGS) as usize;
            &self.drawn[first..first + count]
        };
        let factors = candidates.iter().flat_map(of_candidate).copied();
        Array::floats(&[candidates.len(), count], factors.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_taken_and_the_mean_stays() {
        let candidates = [3, 4].map(|seed| Candidate {
            seed,
            ..Candidate::default()
        });
        let mut dropout = Dropout::new(0.25);
        let mut factors = |candidates: &[Candidate], step, count| {
            dropout
                .factors(candidates, step, count)
                .into_floats()
                .unwrap()
        };
        let both = factors(&candidates, 7, 100_000);
        let (one, other) = both.split_at(100_000);
        let zeros = one.iter().filter(|factor| **factor == 0.0).count();
        assert!((24_500..25_500).contains(&zeros), "{zeros}");
        assert!(
            one.iter()
                .all(|factor| *factor == 0.0 || (*factor * 0.75 - 1.0).abs() < 1e-6)
        );
        assert_ne!(one, other);
        assert_ne!(one, factors(&candidates[..1], 8, 100_000));
        // Neither the other candidate nor a longer step before changes anything.
        factors(&candidates, 1, 2_000_000);
        assert_eq!(other, factors(&candidates[1..], 7, 100_000));
    }
}
