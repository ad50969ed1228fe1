//! A search for the best design under a byte budget: which trials there are, which go on, which is chosen.
//!
//! Successive halving (Jamieson and Talwalkar 2016; Li et al. 2018, Hyperband, section 3): every design is trained
//! for a part of the epochs and the better half goes on with a larger part. Designs have two aims, few bytes and a good
//! figure, so the better ones are those that nothing smaller equals, and among these the best. Every rung trains from
//! the start, for learning rates fall to nothing within a training: what is compared was trained to its end.

mod grid;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    data::Dataset,
    options::{Candidate, Layers, Options},
};

pub use grid::{Bytes, Contender, Given, Problem, spread};

/// Designs that are trained at most.
pub const DESIGNS: usize = 8;
/// Learning rates of a design, as multiples of its method's own.
pub const RATES: [f32; 3] = [1.0 / 3.0, 1.0, 3.0];
/// The rungs before the last: the part of the epochs, the most rows, and the most learning rates of a design.
const EARLY: [(usize, usize, usize); 2] = [(9, 512, 3), (3, 2048, 2)];
/// Epochs that tell anything.
const LEAST_EPOCHS: usize = 2;

/// A method and the sizes that make up its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Design {
    /// Name of the method.
    pub method: String,
    /// Virtual tokens.
    pub tokens: usize,
    /// Layers that get a prefix; absent where the method has none.
    pub layers: Option<Layers>,
    /// Name of the head.
    pub head: String,
    /// Rank of a factored head.
    pub head_rank: Option<usize>,
}

impl Design {
    /// The options that train it.
    pub fn options(&self, options: &Options) -> Options {
        Options {
            method: self.method.clone(),
            tokens: self.tokens,
            layers: self.layers.unwrap_or_default(),
            head: Some(self.head.clone()),
            head_rank: self.head_rank.unwrap_or(options.head_rank),
            ..options.clone()
        }
    }

    /// Its name as a folder.
    pub fn folder(&self) -> String {
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        };
        self.to_string().chars().map(plain).collect()
    }
}

impl std::fmt::Display for Design {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.method, self.tokens)?;
        if let Some(layers) = self.layers {
            match layers {
                Layers::All => write!(out, " all")?,
                Layers::Top(top) => write!(out, " top:{top}")?,
                Layers::Range(from, to) => write!(out, " {from}..{to}")?,
            }
        }
        write!(out, " {}", self.head)?;
        self.head_rank.map_or(Ok(()), |rank| write!(out, ":{rank}"))
    }
}

/// One round of trainings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rung {
    /// Designs that are trained.
    pub designs: usize,
    /// Learning rates of each, at most.
    pub rates: usize,
    /// Epochs of each.
    pub epochs: usize,
    /// Training rows at most, and dev rows; all where `None`.
    pub rows: Option<usize>,
}

impl Rung {
    /// Times that a training row is learned from, where there are `rows` and the last rung has `seeds`.
    pub fn row_passes(&self, rows: usize, seeds: usize) -> usize {
        let repeats = if self.rows.is_none() { seeds } else { 1 };
        let rows = self.rows.map_or(rows, |most| most.min(rows));
        self.designs * self.rates * repeats * self.epochs * rows
    }
}

/// The rungs for so many designs and learning rates of each; the last has all epochs and rows, and one rate a design.
pub fn rungs(designs: usize, rates: usize, epochs: usize) -> Vec<Rung> {
    let mut rungs: Vec<Rung> = Vec::new();
    let mut left = designs;
    for (at, (part, rows, most)) in EARLY.into_iter().enumerate() {
        let rung = Rung {
            designs: left,
            rates: rates.min(most),
            epochs: epochs.div_ceil(part).max(LEAST_EPOCHS),
            rows: Some(rows),
        };
        let next_designs = left.div_ceil(2).max(left.min(2));
        let next_rates = EARLY.get(at + 1).map_or(1, |next| next.2).min(rates);
        let longer = rungs
            .last()
            .is_none_or(|before| before.epochs < rung.epochs);
        let settles = (next_designs, next_rates) != (left, rung.rates);
        if settles && longer && rung.epochs < epochs {
            rungs.push(rung);
            left = next_designs;
        }
    }
    rungs.push(Rung {
        designs: left,
        rates: 1,
        epochs,
        rows: None,
    });
    rungs
}

/// The learning rates of a design: the given one, or multiples of its method's own; rising.
pub fn rates(given: Option<f32>, own: f32) -> Vec<f32> {
    match given {
        Some(rate) => vec![rate],
        None => RATES.map(|factor| factor * own).into(),
    }
}

/// A candidate for each learning rate.
pub fn candidates(rates: &[f32], like: Candidate) -> Vec<Candidate> {
    let candidate = |&rate: &f32| Candidate {
        learning_rate: Some(rate),
        ..like
    };
    rates.iter().map(candidate).collect()
}

/// At most `rows` examples: one of every label first, then evenly over the file, in its order.
pub fn sample(dataset: &Dataset, rows: usize) -> Dataset {
    let count = dataset.examples.len();
    if count <= rows {
        return dataset.clone();
    }
    let mut chosen = vec![false; count];
    let mut seen = std::collections::BTreeSet::new();
    for (chosen, example) in chosen.iter_mut().zip(&dataset.examples) {
        let names = example.target.names().iter();
        *chosen = names.filter(|name| seen.insert(*name)).count() > 0;
    }
    let wanted = rows.saturating_sub(chosen.iter().filter(|chosen| **chosen).count());
    let rest: Vec<usize> = (0..count).filter(|&at| !chosen[at]).collect();
    for index in 0..wanted {
        chosen[rest[index * rest.len() / wanted]] = true;
    }
    let pairs = dataset.examples.iter().zip(&chosen);
    let digest = Sha256::digest(format!("{} {rows}", dataset.sha256).as_bytes());
    Dataset {
        path: dataset.path.clone(),
        examples: pairs
            .filter(|(_, chosen)| **chosen)
            .map(|(example, _)| example.clone())
            .collect(),
        sha256: preface_graph::hex(&digest),
        begun: dataset.begun,
    }
}

/// One training of a design.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Peak learning rate of the prompt.
    pub learning_rate: f32,
    /// Seed of every random choice.
    pub seed: u64,
    /// The dev figure that counts, at the best epoch.
    pub dev: f64,
    /// Mean loss on dev then.
    pub loss: f64,
    /// Bytes of the bundle.
    pub bytes: usize,
}

impl Trial {
    fn score(&self) -> (f64, f64) {
        (self.dev, -self.loss)
    }
}

/// What became of a design in a rung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Digest of everything that decides what its training gives.
    pub training: String,
    /// The rung, counted from 1.
    pub rung: usize,
    /// The design.
    pub design: Design,
    /// Epochs of the rung.
    pub epochs: usize,
    /// Training rows of the rung.
    pub rows: usize,
    /// Wall time of all its trials together.
    pub seconds: f64,
    /// Its trials; none where it failed.
    pub trials: Vec<Trial>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Finished {
    /// The trials that fit the budget, the best first.
    fn ranked(&self, budget: usize) -> Vec<&Trial> {
        let mut trials: Vec<&Trial> = self
            .trials
            .iter()
            .filter(|trial| trial.bytes <= budget)
            .collect();
        trials.sort_by(|one, other| descending(one.score(), other.score()));
        trials
    }

    /// Its best learning rates, rising.
    pub fn rates(&self, most: usize, budget: usize) -> Vec<f32> {
        let ranked = self.ranked(budget).into_iter();
        let mut rates: Vec<f32> = ranked.map(|trial| trial.learning_rate).take(most).collect();
        rates.sort_by(f32::total_cmp);
        rates
    }

    /// How it stands: its best trial, or for trials that differ by their seed alone their mean, with the bytes of the
    /// best. `None` where nothing fits the budget.
    pub fn standing(&self, budget: usize) -> Option<Standing> {
        let ranked = self.ranked(budget);
        let best = **ranked.first()?;
        let alike = ranked
            .iter()
            .all(|trial| trial.learning_rate == best.learning_rate);
        let count = ranked.len() as f64;
        let mean = |figure: fn(&Trial) -> f64| {
            ranked.iter().map(|trial| figure(trial)).sum::<f64>() / count
        };
        let (dev, loss) = match alike {
            true => (mean(|trial| trial.dev), mean(|trial| trial.loss)),
            false => (best.dev, best.loss),
        };
        Some(Standing {
            bytes: best.bytes,
            learning_rate: best.learning_rate,
            dev,
            loss,
        })
    }
}

/// How a design stands among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Bytes of its bundle.
    pub bytes: usize,
    /// Its best learning rate.
    pub learning_rate: f32,
    /// Its dev figure.
    pub dev: f64,
    /// Its loss on dev.
    pub loss: f64,
}

impl Standing {
    /// Whether it is at most as large as another and at least as good, and not both equal.
    fn dominates(&self, other: &Self) -> bool {
        self.bytes <= other.bytes
            && self.dev >= other.dev
            && (self.bytes, self.dev) != (other.bytes, other.dev)
    }
}

fn descending(one: (f64, f64), other: (f64, f64)) -> std::cmp::Ordering {
    other.0.total_cmp(&one.0).then(other.1.total_cmp(&one.1))
}

/// Which of the standings no other dominates: no smaller one is as good, and no equally large one better.
pub fn pareto(standings: &[Standing]) -> Vec<bool> {
    let free = |standing: &Standing| !standings.iter().any(|other| other.dominates(standing));
    standings.iter().map(free).collect()
}

/// The `most` that go on: front by front, as in non-dominated sorting (Deb et al. 2002, section III), and within a
/// front the better ones. The best figure is always among them.
pub fn survivors(standings: &[Standing], most: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..standings.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let of_left: Vec<Standing> = left.iter().map(|&at| standings[at]).collect();
        let free = pareto(&of_left);
        let mut front: Vec<usize> = left
            .iter()
            .zip(&free)
            .filter(|(_, free)| **free)
            .map(|(at, _)| *at)
            .collect();
        left.retain(|at| !front.contains(at));
        let score = |at: usize| (standings[at].dev, -standings[at].loss);
        front.sort_by(|&one, &other| descending(score(one), score(other)));
        order.extend(front);
    }
    order.truncate(most);
    order
}

/// The standard error of a share of `examples`, to which one that counts and one that does not are added: a share of none or
/// all has one too (Laplace's rule of succession).
pub fn standard_error(share: f64, examples: usize) -> f64 {
    let examples = examples as f64;
    let share = (share.clamp(0.0, 1.0) * examples + 1.0) / (examples + 2.0);
    (share * (1.0 - share) / (examples + 2.0)).sqrt()
}

/// The smallest of those whose figure is within a standard error of the best; of equally large ones the better.
/// `None` where there are none.
pub fn choice(standings: &[Standing], examples: usize) -> Option<usize> {
    let best = standings
        .iter()
        .map(|standing| standing.dev)
        .max_by(f64::total_cmp)?;
    let least = best - standard_error(best, examples);
    let close = (0..standings.len()).filter(|&at| standings[at].dev >= least);
    close.min_by(|&one, &other| {
        let (one, other) = (&standings[one], &standings[other]);
        let score = |standing: &Standing| (standing.dev, -standing.loss);
        one.bytes
            .cmp(&other.bytes)
            .then(descending(score(one), score(other)))
    })
}

/// A line of the table: how a design stood in the last rung that it was in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The design.
    #[serde(flatten)]
    pub design: Design,
    /// Its name.
    pub name: String,
    /// The last rung that it was in, counted from 1.
    pub rung: usize,
    /// Its best learning rate.
    pub learning_rate: Option<f32>,
    /// Bytes of its bundle.
    pub bytes: Option<usize>,
    /// Its dev figure.
    pub dev: Option<f64>,
    /// Epochs at most.
    pub epochs: usize,
    /// Training rows.
    pub rows: usize,
    /// Wall time of all its trials, over all rungs.
    pub seconds: f64,
    /// Whether no smaller design is as good.
    pub pareto: bool,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why it has no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The table of everything that was tried, by bytes; `chosen` is the design that was taken.
pub fn table(finished: &[Finished], budget: usize, chosen: &Design) -> Vec<Row> {
    let last = |at: usize| {
        let design = &finished[at].design;
        finished[at + 1..]
            .iter()
            .all(|later| later.design != *design)
    };
    let lasts: Vec<&Finished> = (0..finished.len())
        .filter(|&at| last(at))
        .map(|at| &finished[at])
        .collect();
    let standings: Vec<Option<Standing>> = lasts.iter().map(|last| last.standing(budget)).collect();
    let placed: Vec<Standing> = standings.iter().flatten().copied().collect();
    let row = |(last, standing): (&&Finished, &Option<Standing>)| {
        let all = finished.iter().filter(|other| other.design == last.design);
        let over = last.trials.iter().map(|trial| trial.bytes).min();
        Row {
            design: last.design.clone(),
            name: last.design.to_string(),
            rung: last.rung,
            learning_rate: standing.map(|standing| standing.learning_rate),
            bytes: standing.map(|standing| standing.bytes).or(over),
            dev: standing.map(|standing| standing.dev),
            epochs: last.epochs,
            rows: last.rows,
            seconds: all.map(|finished| finished.seconds).sum(),
            pareto: standing
                .is_some_and(|standing| !placed.iter().any(|other| other.dominates(&standing))),
            chosen: last.design == *chosen,
            failure: match (&last.failure, over) {
                (None, Some(_)) if standing.is_none() => Some("over the budget".into()),
                (failure, _) => failure.clone(),
            },
        }
    };
    let mut rows: Vec<Row> = lasts.iter().zip(&standings).map(row).collect();
    rows.sort_by_key(|row| row.bytes.unwrap_or(usize::MAX));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, Target};

    fn standing(bytes: usize, dev: f64) -> Standing {
        Standing {
            bytes,
            learning_rate: 0.1,
            dev,
            loss: 1.0 - dev,
        }
    }

    fn standings(pairs: &[(usize, f64)]) -> Vec<Standing> {
        pairs
            .iter()
            .map(|&(bytes, dev)| standing(bytes, dev))
            .collect()
    }

    #[test]
    fn designs_and_rates_are_halved_while_epochs_grow() {
        type Line = (usize, usize, usize, Option<usize>);
        let table: [(usize, usize, usize, &[Line]); 7] = [
            (
                8,
                3,
                30,
                &[
                    (8, 3, 4, Some(512)),
                    (4, 2, 10, Some(2048)),
                    (2, 1, 30, None),
                ],
            ),
            (
                5,
                3,
                30,
                &[
                    (5, 3, 4, Some(512)),
                    (3, 2, 10, Some(2048)),
                    (2, 1, 30, None),
                ],
            ),
            (
                8,
                1,
                90,
                &[
                    (8, 1, 10, Some(512)),
                    (4, 1, 30, Some(2048)),
                    (2, 1, 90, None),
                ],
            ),
            (
                1,
                3,
                30,
                &[
                    (1, 3, 4, Some(512)),
                    (1, 2, 10, Some(2048)),
                    (1, 1, 30, None),
                ],
            ),
            (8, 3, 3, &[(8, 3, 2, Some(512)), (4, 1, 3, None)]),
            (8, 3, 1, &[(8, 1, 1, None)]),
            (1, 1, 30, &[(1, 1, 30, None)]),
        ];
        for (designs, rates, epochs, expected) in table {
            let found: Vec<Line> = rungs(designs, rates, epochs)
                .iter()
                .map(|rung| (rung.designs, rung.rates, rung.epochs, rung.rows))
                .collect();
            assert_eq!(found, expected, "{designs} {rates} {epochs}");
        }
    }

    #[test]
    fn costs_are_epochs_rows_and_candidates() {
        let plan = rungs(8, 3, 30);
        let passes: Vec<usize> = plan.iter().map(|rung| rung.row_passes(1000, 5)).collect();
        assert_eq!(passes, [24 * 4 * 512, 8 * 10 * 1000, 2 * 5 * 30 * 1000]);
    }

    #[test]
    fn the_front_goes_on_first_and_the_best_always() {
        type Case = (&'static [(usize, f64)], usize, &'static [usize]);
        let table: [Case; 4] = [
            (
                &[(100, 0.5), (200, 0.4), (300, 0.9), (400, 0.89)],
                2,
                &[2, 0],
            ),
            (&[(100, 0.5), (200, 0.7), (300, 0.9)], 2, &[2, 1]),
            (&[(100, 0.9), (200, 0.8), (300, 0.7)], 2, &[0, 1]),
            (&[(100, 0.9)], 2, &[0]),
        ];
        for (pairs, most, expected) in table {
            assert_eq!(survivors(&standings(pairs), most), expected, "{pairs:?}");
        }
        assert_eq!(
            pareto(&standings(&[
                (100, 0.5),
                (100, 0.6),
                (200, 0.6),
                (300, 0.7),
                (300, 0.7)
            ])),
            [false, true, false, true, true]
        );
    }

    #[test]
    fn the_smallest_within_a_standard_error_is_chosen() {
        type Case = (&'static [(usize, f64)], usize, Option<usize>);
        let table: [Case; 5] = [
            (&[(300, 0.9), (200, 0.88), (100, 0.8)], 100, Some(1)),
            (&[(300, 0.9), (200, 0.88), (100, 0.8)], 10_000, Some(0)),
            (&[(100, 0.9), (100, 0.91)], 100, Some(1)),
            (&[(200, 1.0), (100, 0.99)], 100, Some(0)),
            (&[], 100, None),
        ];
        for (pairs, examples, expected) in table {
            assert_eq!(
                choice(&standings(pairs), examples),
                expected,
                "{pairs:?} {examples}"
            );
        }
        assert!((standard_error(0.9, 10_000) - 0.003).abs() < 1e-5);
        assert!((0.009..0.011).contains(&standard_error(1.0, 100)));
    }

    fn finished(rung: usize, design: &Design, trials: &[(f32, f64, usize)]) -> Finished {
        let trial = |&(learning_rate, dev, bytes): &(f32, f64, usize)| Trial {
            learning_rate,
            seed: 0,
            dev,
            loss: 1.0 - dev,
            bytes,
        };
        Finished {
            training: String::new(),
            rung,
            design: design.clone(),
            epochs: 4 * rung,
            rows: 512,
            seconds: 2.0,
            trials: trials.iter().map(trial).collect(),
            failure: trials.is_empty().then(|| "diverged".into()),
        }
    }

    fn design(tokens: usize) -> Design {
        Design {
            method: "prefix-tuning".into(),
            tokens,
            layers: Some(Layers::Top(2)),
            head: "factored-linear".into(),
            head_rank: Some(4),
        }
    }

    #[test]
    fn trials_of_rates_stand_by_the_best_and_of_seeds_by_their_mean() {
        let of_rates = finished(
            1,
            &design(1),
            &[(0.1, 0.7, 90), (0.3, 0.9, 99), (1.0, 0.95, 101)],
        );
        let found = of_rates.standing(100).unwrap();
        assert_eq!(
            (found.bytes, found.learning_rate, found.dev),
            (99, 0.3, 0.9)
        );
        assert_eq!(of_rates.rates(2, 100), [0.1, 0.3]);
        assert_eq!(of_rates.rates(1, 1000), [1.0]);
        let of_seeds = finished(3, &design(1), &[(0.1, 0.5, 90), (0.1, 1.0, 91)]);
        let found = of_seeds.standing(100).unwrap();
        assert_eq!((found.bytes, found.dev), (91, 0.75));
        assert_eq!(of_seeds.standing(80), None);
        assert_eq!(rates(None, 3.0), [1.0, 3.0, 9.0]);
        assert_eq!(rates(Some(0.5), 0.3), [0.5]);
    }

    #[test]
    fn the_table_has_each_design_once_with_its_last_rung() {
        let all = [
            finished(1, &design(1), &[(0.1, 0.7, 90)]),
            finished(1, &design(2), &[(0.1, 0.6, 95)]),
            finished(1, &design(4), &[(0.1, 0.9, 200)]),
            finished(1, &design(8), &[]),
            finished(2, &design(1), &[(0.1, 0.8, 90)]),
        ];
        let rows = table(&all, 100, &design(1));
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row.design.tokens,
                    row.rung,
                    row.bytes,
                    row.pareto,
                    row.chosen,
                    row.failure.as_deref(),
                )
            })
            .collect();
        let expected = [
            (1, 2, Some(90), true, true, None),
            (2, 1, Some(95), false, false, None),
            (4, 1, Some(200), false, false, Some("over the budget")),
            (8, 1, None, false, false, Some("diverged")),
        ];
        assert_eq!(found, expected);
        assert_eq!((rows[0].seconds, rows[0].epochs), (4.0, 8));
        assert_eq!(
            design(4).to_string(),
            "prefix-tuning 4 top:2 factored-linear:4"
        );
        assert_eq!(
            design(4).folder(),
            "prefix-tuning-4-top-2-factored-linear-4"
        );
    }

    #[test]
    fn a_sample_has_every_label_and_is_another_file() {
        let example = |line: usize| Example {
            text: line.to_string(),
            text2: None,
            target: Target::Label(if line == 97 { "rare" } else { "usual" }.into()),
            line,
        };
        let dataset = Dataset {
            path: "train.jsonl".into(),
            examples: (1..=100).map(example).collect(),
            sha256: "whole".into(),
            begun: None,
        };
        let part = sample(&dataset, 10);
        assert_eq!((part.examples.len(), part.labels().len()), (10, 2));
        assert!(
            part.examples
                .windows(2)
                .all(|pair| pair[0].line < pair[1].line)
        );
        assert_eq!(part.sha256.len(), 64);
        assert_eq!(sample(&dataset, 1).labels().len(), 2);
        assert_eq!(sample(&dataset, 100), dataset);
    }
}
