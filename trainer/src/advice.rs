//! Whether a small prompt can hold its task, found by training others beside it.
//!
//! A prompt is too small where its training loss stays high while a longer or a deeper one, or the same one on a part
//! of the task, brings it down within the same steps.

use std::collections::BTreeMap;

use preface_graph::Base;
use serde::Serialize;

use crate::{
    Error,
    data::{AnswerKind, Dataset, Example},
    engine::Library,
    form::Place,
    options::{Layers, Options},
    progress::Silent,
    search::sample,
    seedbed::spoken,
    training::{Outcome, train},
};

/// Training loss, as a part of that of guessing by frequency, from which on a prompt may be too small.
const STUCK: f64 = 0.25;
/// How far another training must bring the loss down to be proof.
const BETTER: f64 = 0.5;
/// Rows and epochs of the trainings beside it.
const ROWS: usize = 480;
const EPOCHS: usize = 12;
/// How much longer the longer prompt is.
const LONGER: usize = 4;
/// Virtual tokens of the deeper one, at least.
const DEEP_TOKENS: usize = 8;

/// A prompt that is too small, with the training losses that show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Underfit {
    /// Rows that all of these learned from.
    pub rows: usize,
    /// Epochs of each.
    pub epochs: usize,
    /// Training loss of the prompt as it is, in nats.
    pub own: f64,
    /// Of other prompts: longer, deeper; those that can be trained.
    pub others: Vec<Trial>,
    /// Of the prompt as it is on the labels of each part of the task; empty where it does not help.
    pub parts: Vec<Part>,
}

/// Another prompt's training loss.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// What it was.
    pub prompt: String,
    /// Its training loss, in nats.
    pub loss: f64,
}

/// A part of the task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Its labels.
    pub labels: Vec<String>,
    /// The training loss on it alone, in nats.
    pub loss: f64,
}

impl Underfit {
    /// The numbers, and what to do.
    pub fn text(&self, tokens: usize) -> String {
        let Self {
            rows,
            epochs,
            own,
            others,
            parts,
        } = self;
        let others_lost = others
            .iter()
            .map(|other| format!(", {:.2} with {}", other.loss, other.prompt));
        let mut ways = Vec::new();
        if let [first, second] = parts.as_slice() {
            ways.push(format!(
                "split the file into two tasks, with a prompt each: {} alone reaches {:.2}, {} reaches {:.2}",
                listed(&first.labels), first.loss, listed(&second.labels), second.loss
            ));
        }
        let better = others.iter().filter(|other| other.loss < BETTER * own);
        ways.extend(better.map(|other| format!("take {}", other.prompt)));
        ways.push("where none of that is enough, LoRA is the better tool".into());
        format!(
            "the prompt is too small for this task: on {rows} rows the training loss after {epochs} epochs is {own:.2} with {tokens} virtual tokens{}. What to do: {}",
            others_lost.collect::<String>(),
            ways.join("; ")
        )
    }
}

fn listed(labels: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = labels
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match labels.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Looks whether the prompt of `outcome` is too small; `None` where its training loss is low, or where nothing that
/// was tried brings it down.
///
/// # Errors
/// When a training beside it fails.
pub fn underfit(
    base: &Base,
    library: &Library,
    data: &Dataset,
    options: &Options,
    outcome: &Outcome,
) -> Result<Option<Underfit>, Error> {
    if !is_stuck(data, outcome) {
        return Ok(None);
    }
    let beside = Beside {
        base,
        library,
        options,
        rows: sample(data, ROWS),
    };
    // What dropout alone kept high is not stuck.
    let own = beside.loss(&beside.rows, options.clone())?;
    let Some(own) = own.filter(|own| *own >= STUCK * guessing(data)) else {
        return Ok(None);
    };
    let mut others = Vec::new();
    for (prompt, options) in [beside.longer(), beside.deeper()] {
        let loss = beside.loss(&beside.rows, options)?;
        others.extend(loss.map(|loss| Trial { prompt, loss }));
    }
    let parts = beside.parts(own)?;
    let helped = others.iter().any(|other| other.loss < BETTER * own);
    Ok((helped || !parts.is_empty()).then_some(Underfit {
        rows: beside.rows.examples.len(),
        epochs: EPOCHS.min(options.epochs),
        own,
        others,
        parts,
    }))
}

/// Whether the training loss stayed so high that the prompt may be too small; never of texts, where nothing says how
/// high that is.
pub fn is_stuck(data: &Dataset, outcome: &Outcome) -> bool {
    let last = outcome
        .history
        .last()
        .map_or(0.0, |figures| figures.train_loss);
    let guessing = guessing(data);
    guessing > 0.0 && last >= STUCK * guessing
}

/// The loss of answering by frequency: the entropy of the labels, in nats.
fn guessing(data: &Dataset) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in data
        .examples
        .iter()
        .flat_map(|example| example.target.names())
    {
        *counts.entry(name).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    counts
        .values()
        .map(|&count| count as f64 / all as f64)
        .map(|share| -share * share.ln())
        .sum()
}

struct Beside<'a> {
    base: &'a Base,
    library: &'a Library,
    options: &'a Options,
    rows: Dataset,
}

impl Beside<'_> {
    /// The training loss in the last of a few epochs; `None` of a prompt that cannot be trained here.
    fn loss(&self, rows: &Dataset, options: Options) -> Result<Option<f64>, Error> {
        let options = Options {
            epochs: EPOCHS.min(options.epochs),
            patience: None,
            candidates: options.candidates.iter().take(1).copied().collect(),
            // Without what keeps a prompt from learning its rows by heart.
            dropout: Some(0.0),
            ..options
        };
        let trained = train(
            self.base,
            self.library,
            rows,
            rows,
            &options,
            None,
            &mut Silent,
        );
        match trained {
            Ok(outcomes) => {
                let last = outcomes.first().and_then(|outcome| outcome.history.last());
                Ok(last.map(|figures| figures.train_loss))
            }
            Err(
                Error::Options(_)
                | Error::TooLong { .. }
                | Error::Diverged { .. }
                | Error::RanAway { .. }
                | Error::Graph(_),
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn longer(&self) -> (String, Options) {
        let tokens = self.options.tokens * LONGER;
        let options = Options {
            tokens,
            ..self.options.clone()
        };
        (format!("{tokens} tokens"), options)
    }

    fn deeper(&self) -> (String, Options) {
        let tokens = self.options.tokens.max(DEEP_TOKENS);
        let mut options = Options {
            method: "prefix-tuning".into(),
            layers: Layers::All,
            place: Place::Before,
            tokens,
            ..self.options.clone()
        };
        let candidates = options.candidates.iter_mut();
        candidates.for_each(|candidate| candidate.learning_rate = None);
        (
            format!("prefix-tuning with {tokens} tokens at every layer"),
            options,
        )
    }

    /// The prompt as it is on each of two groups of labels, where both learn much better alone.
    fn parts(&self, own: f64) -> Result<Vec<Part>, Error> {
        let labels = self.rows.labels();
        if self.rows.kind() != AnswerKind::Label || labels.len() < 4 {
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        for labels in two_groups(&self.rows, &labels) {
            let mut alone = self.rows.clone();
            alone
                .examples
                .retain(|example| labels.contains(&example.target.names()[0]));
            let loss = match labels.len() {
                0 | 1 => None,
                _ => self.loss(&alone, self.options.clone())?,
            };
            let Some(loss) = loss.filter(|loss| *loss < BETTER * own) else {
                return Ok(Vec::new());
            };
            parts.push(Part { labels, loss });
        }
        Ok(parts)
    }
}

/// Labels in two groups by the words of their texts: the two labels whose texts share the fewest words, and each other
/// one with the nearer of them.
fn two_groups(rows: &Dataset, labels: &[String]) -> [Vec<String>; 2] {
    let counts: Vec<BTreeMap<String, f64>> =
        labels.iter().map(|label| words(rows, label)).collect();
    let likeness = |one: usize, other: usize| cosine(&counts[one], &counts[other]);
    let pairs = (0..labels.len()).flat_map(|one| (0..one).map(move |other| (one, other)));
    let furthest = pairs.min_by(|&a, &b| likeness(a.0, a.1).total_cmp(&likeness(b.0, b.1)));
    let (first, second) = furthest.unwrap_or((0, 0));
    let mut groups = [Vec::new(), Vec::new()];
    for (index, label) in labels.iter().enumerate() {
        let nearer = usize::from(likeness(index, second) > likeness(index, first));
        groups[nearer].push(label.clone());
    }
    groups
}

/// How often each word stands in a label's texts and its name, dampened.
fn words(rows: &Dataset, label: &str) -> BTreeMap<String, f64> {
    let own = |example: &&Example| example.target.names() == [label];
    let texts = rows
        .examples
        .iter()
        .filter(own)
        .map(|example| example.text.clone());
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for text in texts.chain([spoken(label)]) {
        for word in text.split_whitespace() {
            *counts.entry(word.to_lowercase()).or_default() += 1.0;
        }
    }
    counts.values_mut().for_each(|count| *count = count.ln_1p());
    counts
}

fn cosine(one: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>) -> f64 {
    let product: f64 = one
        .iter()
        .filter_map(|(word, count)| Some(count * other.get(word)?))
        .sum();
    let norm = |counts: &BTreeMap<String, f64>| {
        counts
            .values()
            .map(|count| count * count)
            .sum::<f64>()
            .sqrt()
    };
    product / (norm(one) * norm(other)).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_group_by_the_words_of_their_texts() {
        let rows = Dataset::of_labels(&[
            ("turn the light on", "on"),
            ("turn the light off", "off"),
            ("winner call now to claim cash", "spam"),
            ("call me now my dear", "ham"),
        ]);
        let mut groups = two_groups(&rows, &rows.labels());
        groups.sort();
        assert_eq!(groups, [vec!["ham", "spam"], vec!["off", "on"]]);
    }

    #[test]
    fn guessing_costs_the_entropy() {
        let even = Dataset::of_labels(&[("a", "x"), ("b", "y")]);
        assert!((guessing(&even) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(guessing(&Dataset::of_labels(&[("a", "x")])), 0.0);
    }

    #[test]
    fn advice_has_the_numbers_and_the_ways_out() {
        let found = Underfit {
            rows: 480,
            epochs: 12,
            own: 1.5,
            others: vec![
                Trial {
                    prompt: "8 tokens".into(),
                    loss: 1.4,
                },
                Trial {
                    prompt: "prefix-tuning".into(),
                    loss: 0.2,
                },
            ],
            parts: vec![
                Part {
                    labels: vec!["a".into(), "b".into()],
                    loss: 0.3,
                },
                Part {
                    labels: vec!["c".into(), "d".into()],
                    loss: 0.4,
                },
            ],
        };
        let text = found.text(2);
        for part in [
            "1.50 with 2 virtual tokens",
            "1.40 with 8 tokens",
            "split the file",
            "a, b alone reaches 0.30",
            "take prefix-tuning",
            "LoRA",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("take 8 tokens"), "{text}");
    }
}
