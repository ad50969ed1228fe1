//! From the logits of the next token to a token.

use std::cmp::Ordering;

use super::{
    allowed::Allowed,
    draw::{Draws, exp},
};
use crate::Error;

/// Tokens that are sorted at first where a probability mass is sought; every further step doubles them.
const SORTED_FIRST: usize = 64;

/// How the next token is chosen.
///
/// What is set is applied in this order: repetition penalty, temperature, top-k, top-p; then a token is drawn from what is
/// left. The same logits, seed and settings give the same tokens on every machine: the draw uses sums, products and
/// quotients of 64-bit floats alone, in a fixed order. The logits themselves may differ in their last bits where the
/// kernels of two machines add in different orders, and a token then differs only where a draw falls between the two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What the logits are divided by. At 0 the token with the greatest logit is taken, the lowest id among equals.
    pub temperature: f32,
    /// Only so many of the most probable tokens are kept, the lowest ids among equals.
    pub top_k: Option<usize>,
    /// Only the smallest set of most probable tokens is kept whose probabilities add up to this or more: nucleus sampling
    /// (Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1).
    pub top_p: Option<f32>,
    /// Tokens that were seen have their logit divided by this where it is positive and multiplied where it is not
    /// (Keskar et al. 2019, "CTRL", section 4.1). 1 changes nothing.
    pub repetition_penalty: f32,
    /// Where the draws begin.
    pub seed: u64,
}

impl Default for Sampling {
    /// The most probable token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// # Errors
    /// When a value is outside its range; the message names it.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |field, value: String, range| {
            Err(Error::Sampling {
                field,
                value,
                range,
            })
        };
        let Self {
            temperature,
            repetition_penalty,
            ..
        } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return refused("temperature", temperature.to_string(), "0 or more");
        }
        if self.top_k == Some(0) {
            return refused("top_k", "0".into(), "1 or more");
        }
        if let Some(top_p) = self.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
            return refused("top_p", top_p.to_string(), "above 0 and at most 1");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return refused(
                "repetition_penalty",
                repetition_penalty.to_string(),
                "above 0",
            );
        }
        Ok(())
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    id: u32,
    /// Its probability, up to a factor that all share.
    weight: f64,
}

impl Candidate {
    /// The more probable first, then the lower id.
    fn order(&self, other: &Self) -> Ordering {
        other
            .logit
            .total_cmp(&self.logit)
            .then(self.id.cmp(&other.id))
    }
}

/// Chooses tokens, one after the other; takes no memory once made.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    vocabulary: usize,
    draws: Draws,
    /// Tokens whose logit was penalised.
    penalised: Allowed,
    candidates: Vec<Candidate>,
}

impl Sampler {
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Self, Error> {
        sampling.check()?;
        let drawn = if sampling.temperature > 0.0 {
            vocabulary
        } else {
            0
        };
        Ok(Self {
            sampling,
            vocabulary,
            draws: Draws::new(sampling.seed),
            penalised: Allowed::none(vocabulary),
            candidates: Vec::with_capacity(drawn),
        })
    }

    /// Begins another text, whose tokens are chosen by `sampling`; takes memory where it draws for the first time.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn begin(&mut self, sampling: Sampling) -> Result<(), Error> {
        sampling.check()?;
        if sampling.temperature > 0.0 {
            self.candidates.clear();
            self.candidates.reserve(self.vocabulary);
        }
        self.sampling = sampling;
        self.draws = Draws::new(sampling.seed);
        Ok(())
    }

    /// The next token by `logits` (`[vocabulary]`), which are changed on the way: one of `allowed`, where given.
    ///
    /// # Errors
    /// When a logit is no number or infinite, when every token is hidden (its logit is negative infinity, or it is not
    /// allowed), or when a token of `seen` is outside the vocabulary.
    pub fn next(
        &mut self,
        logits: &mut [f32],
        seen: &[u32],
        allowed: Option<&Allowed>,
    ) -> Result<u32, Error> {
        if logits
            .iter()
            .any(|&logit| logit.is_nan() || logit == f32::INFINITY)
        {
            return Err(Error::NotANumber);
        }
        self.penalise(logits, seen)?;
        match allowed {
            None => self.choose((0..).zip(&*logits).map(|(id, &logit)| (id, logit))),
            Some(allowed) => {
                let logit = |id| logits.get(usize::try_from(id).ok()?).copied();
                self.choose(allowed.iter().filter_map(|id| Some((id, logit(id)?))))
            }
        }
    }

    /// Each token counts once, however often it was seen. What would become infinite is the greatest number or the least.
    fn penalise(&mut self, logits: &mut [f32], seen: &[u32]) -> Result<(), Error> {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return Ok(());
        }
        self.penalised.clear();
        for &id in seen {
            let logit = usize::try_from(id).ok().and_then(|id| logits.get_mut(id));
            let logit = logit.ok_or(Error::Token {
                id,
                vocabulary: self.vocabulary,
            })?;
            // A hidden token stays hidden.
            if self.penalised.insert(id) && logit.is_finite() {
                let penalised = match *logit > 0.0 {
                    true => *logit / penalty,
                    false => *logit * penalty,
                };
                *logit = penalised.clamp(f32::MIN, f32::MAX);
            }
        }
        Ok(())
    }

    /// One of `tokens`, ids with their logits, ids ascending.
    fn choose(&mut self, tokens: impl Iterator<Item = (u32, f32)>) -> Result<u32, Error> {
        let visible = tokens.filter(|&(_, logit)| logit > f32::NEG_INFINITY);
        if self.sampling.temperature == 0.0 {
            let best = visible.reduce(|best, next| if next.1 > best.1 { next } else { best });
            return best.map(|(id, _)| id).ok_or(Error::NothingAllowed);
        }
        self.candidates.clear();
        self.candidates.extend(visible.map(|(id, logit)| Candidate {
            logit,
            id,
            weight: 0.0,
        }));
        self.keep_top_k();
        self.weigh()?;
        self.keep_top_p();
        Ok(self.draw())
    }

    fn keep_top_k(&mut self) {
        let Some(top_k) = self
            .sampling
            .top_k
            .filter(|&top_k| top_k < self.candidates.len())
        else {
            return;
        };
        self.candidates
            .select_nth_unstable_by(top_k - 1, Candidate::order);
        self.candidates.truncate(top_k);
        self.candidates.sort_unstable_by(Candidate::order);
    }

    fn weigh(&mut self) -> Result<(), Error> {
        let logits = self.candidates.iter().map(|candidate| candidate.logit);
        let most = f64::from(logits.reduce(f32::max).ok_or(Error::NothingAllowed)?);
        let temperature = f64::from(self.sampling.temperature);
        for candidate in &mut self.candidates {
            candidate.weight = exp((f64::from(candidate.logit) - most) / temperature);
        }
        Ok(())
    }

    /// Sorts no more than it must: the most probable tokens first, and more until their mass is enough.
    fn keep_top_p(&mut self) {
        let Some(top_p) = self.sampling.top_p.filter(|&top_p| top_p < 1.0) else {
            return;
        };
        let enough = f64::from(top_p) * self.mass();
        let (mut sorted, mut mass) = (0, 0.0);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let more = rest.len().min(SORTED_FIRST.max(sorted));
            if more < rest.len() {
                rest.select_nth_unstable_by(more - 1, Candidate::order);
            }
            rest[..more].sort_unstable_by(Candidate::order);
            for candidate in &rest[..more] {
                sorted += 1;
                mass += candidate.weight;
                if mass >= enough {
                    self.candidates.truncate(sorted);
                    return;
                }
            }
        }
    }

    fn draw(&mut self) -> u32 {
        let mut left = self.draws.unit() * self.mass();
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding may leave a little: the most probable token takes it.
        let first = self.candidates.iter().min_by(|one, other| one.order(other));
        first.expect("weighing refuses an empty choice").id
    }

    fn mass(&self) -> f64 {
        self.candidates
            .iter()
            .map(|candidate| candidate.weight)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::testing::{allocations_of, numbers};

    const HIDDEN: f32 = f32::NEG_INFINITY;

    fn greedy(logits: &[f32], seen: &[u32], penalty: f32) -> Result<u32, Error> {
        let sampling = Sampling {
            repetition_penalty: penalty,
            ..Sampling::default()
        };
        Sampler::new(sampling, logits.len())?.next(&mut logits.to_vec(), seen, None)
    }

    #[test]
    fn the_greatest_logit_wins() {
        let table: [(&[f32], &[u32], f32, u32); 10] = [
            (&[0.0, 2.0, 1.0], &[], 1.0, 1),
            (&[3.0, 5.0, 5.0], &[], 1.0, 1),
            (&[HIDDEN, HIDDEN, -1e30], &[], 1.0, 2),
            (&[1.0, 4.0, 3.0], &[1], 2.0, 2),
            (&[1.0, 4.0, 3.0], &[1, 1, 1], 1.25, 1),
            (&[-3.0, -2.0, -5.0], &[1], 2.0, 0),
            (&[0.0, -2.0, HIDDEN], &[0, 2], 9.0, 0),
            (&[1.0, 9.0, 4.0], &[2], 1e-38, 2),
            (&[HIDDEN, f32::MIN, f32::MIN], &[0, 2], 1e-38, 2),
            (&[HIDDEN, f32::MIN], &[0, 1], 1e38, 1),
        ];
        for (logits, seen, penalty, id) in table {
            assert_eq!(
                greedy(logits, seen, penalty).unwrap(),
                id,
                "{logits:?} {seen:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_chosen_from_is_refused() {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling {
                temperature,
                repetition_penalty: 1e-3,
                ..Sampling::default()
            };
            let mut sampler = Sampler::new(sampling, 2).unwrap();
            let mut next =
                |mut logits: [f32; 2], seen: &[u32]| sampler.next(&mut logits, seen, None);
            assert!(matches!(next([f32::NAN, 1.0], &[]), Err(Error::NotANumber)));
            assert!(matches!(
                next([f32::INFINITY, 1.0], &[]),
                Err(Error::NotANumber)
            ));
            assert!(matches!(
                next([f32::INFINITY, 1.0], &[0]),
                Err(Error::NotANumber)
            ));
            assert!(matches!(next([f32::MAX, 1.0], &[0]), Ok(0)));
            assert!(matches!(next([HIDDEN; 2], &[]), Err(Error::NothingAllowed)));
            assert!(matches!(
                next([1.0; 2], &[2]),
                Err(Error::Token { id: 2, .. })
            ));
            let none = Allowed::none(2);
            let chosen = sampler.next(&mut [1.0; 2], &[], Some(&none));
            assert!(matches!(chosen, Err(Error::NothingAllowed)));
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        let table = [
            (
                "temperature -1 ",
                Sampling {
                    temperature: -1.0,
                    ..Sampling::default()
                },
            ),
            (
                "temperature NaN ",
                Sampling {
                    temperature: f32::NAN,
                    ..Sampling::default()
                },
            ),
            (
                "top_k 0 ",
                Sampling {
                    top_k: Some(0),
                    ..Sampling::default()
                },
            ),
            (
                "top_p 0 ",
                Sampling {
                    top_p: Some(0.0),
                    ..Sampling::default()
                },
            ),
            (
                "top_p 1.5 ",
                Sampling {
                    top_p: Some(1.5),
                    ..Sampling::default()
                },
            ),
            (
                "top_p NaN ",
                Sampling {
                    top_p: Some(f32::NAN),
                    ..Sampling::default()
                },
            ),
            (
                "repetition_penalty 0 ",
                Sampling {
                    repetition_penalty: 0.0,
                    ..Sampling::default()
                },
            ),
            (
                "repetition_penalty inf ",
                Sampling {
                    repetition_penalty: f32::INFINITY,
                    ..Sampling::default()
                },
            ),
        ];
        for (text, sampling) in table {
            let error = Sampler::new(sampling, 4).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    /// How often each of five tokens is drawn in 20 000 draws.
    fn counts(sampling: Sampling, logits: [f32; 5], allowed: Option<&Allowed>) -> [u32; 5] {
        let mut sampler = Sampler::new(sampling, 5).unwrap();
        let mut counts = [0; 5];
        for _ in 0..20_000 {
            counts[sampler.next(&mut logits.clone(), &[], allowed).unwrap() as usize] += 1;
        }
        counts
    }

    /// The chi-square statistic of draws against probabilities stays below the 99.9th percentile of its distribution
    /// with one degree of freedom less than there are tokens.
    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let limits = [0.0, 10.83, 13.82, 16.27, 18.47];
        let logits = [0.5f32, -1.0, 2.0, 0.5, 1.25];
        let drawn = |temperature, top_k, top_p| Sampling {
            temperature,
            top_k,
            top_p,
            seed: 11,
            ..Sampling::default()
        };
        let mut some = Allowed::none(5);
        for id in [0, 1, 4] {
            some.insert(id);
        }
        let table: [(Sampling, Option<&Allowed>, &[usize]); 6] = [
            (drawn(1.0, None, None), None, &[0, 1, 2, 3, 4]),
            (drawn(0.7, None, None), None, &[0, 1, 2, 3, 4]),
            (drawn(1.5, Some(3), None), None, &[0, 2, 4]),
            (drawn(1.0, None, Some(0.6)), None, &[2, 4]),
            (drawn(2.0, Some(4), Some(0.6)), None, &[2, 4]),
            (drawn(1.0, None, None), Some(&some), &[0, 1, 4]),
        ];
        for (sampling, allowed, kept) in table {
            let counts = counts(sampling, logits, allowed);
            let weight = |id: &usize| f64::from(logits[*id] / sampling.temperature).exp();
            let mass: f64 = kept.iter().map(weight).sum();
            let statistic = kept.iter().map(|id| {
                let expected = 20_000.0 * weight(id) / mass;
                (f64::from(counts[*id]) - expected).powi(2) / expected
            });
            assert_eq!(
                kept.iter().map(|&id| counts[id]).sum::<u32>(),
                20_000,
                "{sampling:?}"
            );
            assert!(
                statistic.sum::<f64>() < limits[kept.len() - 1],
                "{sampling:?}: {counts:?}"
            );
        }
    }

    /// A second implementation, in Python, draws the same.
    #[test]
    fn a_seed_gives_these_tokens_everywhere() {
        let sampling = Sampling {
            temperature: 0.9,
            top_k: Some(300),
            top_p: Some(0.95),
            repetition_penalty: 1.1,
            seed: 3,
        };
        let mut sampler = Sampler::new(sampling, 1000).unwrap();
        let tokens = |sampler: &mut Sampler| {
            (0..8)
                .map(|step| {
                    let mut logits = numbers(step + 1, 1000);
                    logits.iter_mut().for_each(|logit| *logit *= 8.0);
                    sampler.next(&mut logits, &[5, 7], None).unwrap()
                })
                .collect::<Vec<_>>()
        };
        let first = tokens(&mut sampler);
        assert_eq!(first, [435, 381, 489, 481, 94, 812, 285, 849]);
        sampler.begin(sampling).unwrap();
        assert_eq!(tokens(&mut sampler), first);
    }

    /// All operations written the slow way, as ids with probabilities.
    fn reference(sampling: &Sampling, logits: &[f32], seen: &[u32]) -> Vec<(u32, f64)> {
        let penalised = logits.iter().enumerate().map(|(id, &logit)| {
            let penalty = sampling.repetition_penalty;
            match seen.contains(&(id as u32)) {
                true if logit > 0.0 => logit / penalty,
                true => logit * penalty,
                false => logit,
            }
        });
        let mut tokens: Vec<(u32, f32)> = (0..).zip(penalised).collect();
        tokens.sort_by(|one, other| other.1.partial_cmp(&one.1).unwrap());
        tokens.truncate(sampling.top_k.unwrap_or(usize::MAX));
        let weight = |logit: f32| {
            ((f64::from(logit) - f64::from(tokens[0].1)) / f64::from(sampling.temperature)).exp()
        };
        let mass: f64 = tokens.iter().map(|token| weight(token.1)).sum();
        let mut before = 0.0;
        let mut kept = Vec::new();
        for &(id, logit) in &tokens {
            if before >= f64::from(sampling.top_p.unwrap_or(f32::INFINITY)) {
                break;
            }
            before += weight(logit) / mass;
            kept.push((id, weight(logit)));
        }
        let mass: f64 = kept.iter().map(|token| token.1).sum();
        kept.iter()
            .map(|&(id, weight)| (id, weight / mass))
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_the_slow_way_keeps(
            // Few values, so that many are equal.
            logits in prop::collection::vec((-20i8..20).prop_map(|step| f32::from(step) / 4.0), 1..300),
            temperature in 0.1f32..3.0,
            top_k in prop::option::of(1usize..320),
            top_p in prop::option::of(0.01f32..1.0),
            repetition_penalty in 0.5f32..2.0,
            seen in prop::collection::vec(0u32..300, 0..6),
            seed: u64,
        ) {
            let seen: Vec<u32> = seen.into_iter().filter(|&id| (id as usize) < logits.len()).collect();
            let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed };
            let expected = reference(&sampling, &logits, &seen);
            let mut sampler = Sampler::new(sampling, logits.len()).unwrap();
            let token = sampler.next(&mut logits.clone(), &seen, None).unwrap();
            let mut kept = sampler.candidates.clone();
            kept.sort_by(Candidate::order);
            let ids = |kept: &[(u32, f64)]| kept.iter().map(|token| token.0).collect::<Vec<_>>();
            let mass: f64 = kept.iter().map(|candidate| candidate.weight).sum();
            let kept: Vec<(u32, f64)> = kept.iter().map(|kept| (kept.id, kept.weight / mass)).collect();
            prop_assert_eq!(ids(&kept), ids(&expected));
            for (kept, expected) in kept.iter().zip(&expected) {
                prop_assert!((kept.1 - expected.1).abs() < 1e-12);
            }
            prop_assert!(ids(&kept).contains(&token));
        }
    }

    #[test]
    fn choosing_takes_no_memory() {
        let sampling = Sampling {
            temperature: 1.0,
            top_k: Some(500),
            top_p: Some(0.999),
            repetition_penalty: 1.2,
            seed: 1,
        };
        let made = || (Sampler::new(sampling, 1000).unwrap(), numbers(1, 1000));
        let allocations = allocations_of(made, |(sampler, logits)| {
            for _ in 0..3 {
                sampler.next(logits, &[1, 2, 2], None).unwrap();
            }
        });
        assert_eq!(allocations, 0);
    }
}
