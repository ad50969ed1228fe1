//! Whether a small prompt can hold its task, found by training others beside it.
//!
//! A prompt is too small where its training loss stays high while a longer or a deeper one, or the same one on a part
//! of the task, brings it down within the same steps.

use std::collections::BTreeMap;

use preface_graph::{Base, FormKind};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::Serialize;

use crate::{
    Error,
    data::{AnswerKind, Dataset, Example},
    engine::Library,
    options::{Layers, Options},
    progress::Silent,
    seedbed::{shuffle, spoken},
    training::{Outcome, train},
};

/// Training loss, as a part of that of guessing by frequency, from which on a prompt may be too small.
const STUCK: f64 = 0.25;
/// How far another training must bring the loss down to be proof.
const BETTER: f64 = 0.7;
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
    /// Of one with more virtual tokens.
    pub longer: Trial,
    /// Of keys and values at every layer; absent where the base does not take them.
    pub deeper: Option<Trial>,
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
            longer,
            deeper,
            parts,
        } = self;
        let mut text = format!(
            "the prompt is too small for this task: on {rows} rows the training loss after {epochs} epochs is {own:.2} with {tokens} virtual tokens, {:.2} with {}",
            longer.loss, longer.prompt
        );
        if let Some(deeper) = deeper {
            text += &format!(", {:.2} with {}", deeper.loss, deeper.prompt);
        }
        text += ". What to do: ";
        let mut ways = Vec::new();
        if let [first, second] = parts.as_slice() {
            ways.push(format!(
                "split the file into two tasks, with a prompt each: {} alone reaches {:.2}, {} reaches {:.2}",
                listed(&first.labels), first.loss, listed(&second.labels), second.loss
            ));
        }
        if longer.loss < BETTER * own {
            ways.push(format!("take {}", longer.prompt));
        }
        if let Some(deeper) = deeper.as_ref().filter(|deeper| deeper.loss < BETTER * own) {
            ways.push(format!("take {}", deeper.prompt));
        }
        let least = deeper
            .iter()
            .map(|deeper| deeper.loss)
            .fold(longer.loss, f64::min);
        if least > STUCK.max(BETTER * own) {
            ways.push("use LoRA: no prompt of a few kilobytes holds it".into());
        } else {
            ways.push("where none of that is enough, LoRA is the better tool".into());
        }
        text + &ways.join("; ")
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
    let rows = sampled(
        data,
        options
            .candidates
            .first()
            .map_or(0, |candidate| candidate.seed),
    );
    let beside = Beside {
        base,
        library,
        options,
    };
    let own = beside.loss(&rows, options.clone())?;
    let longer = Options {
        tokens: options.tokens * LONGER,
        ..options.clone()
    };
    let longer = Trial {
        prompt: format!("{} tokens", longer.tokens),
        loss: beside.loss(&rows, longer)?,
    };
    let deeper = beside.deeper(&rows)?;
    let parts = beside.parts(&rows, own)?;
    let losses = [Some(longer.loss), deeper.as_ref().map(|deeper| deeper.loss)];
    let helped = losses.into_iter().flatten().any(|loss| loss < BETTER * own);
    Ok((helped || !parts.is_empty()).then_some(Underfit {
        rows: rows.examples.len(),
        epochs: EPOCHS.min(options.epochs),
        own,
        longer,
        deeper,
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

/// Some rows of the data, each as likely as another.
fn sampled(data: &Dataset, seed: u64) -> Dataset {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = data.clone();
    shuffle(&mut rows.examples, &mut random);
    rows.examples.truncate(ROWS);
    rows.examples.sort_by_key(|example| example.line);
    rows
}

struct Beside<'a> {
    base: &'a Base,
    library: &'a Library,
    options: &'a Options,
}

impl Beside<'_> {
    /// The training loss in the last of a few epochs.
    fn loss(&self, rows: &Dataset, options: Options) -> Result<f64, Error> {
        let options = Options {
            epochs: EPOCHS.min(options.epochs),
            patience: None,
            candidates: options.candidates.iter().take(1).copied().collect(),
            ..options
        };
        let outcomes = train(
            self.base,
            self.library,
            rows,
            rows,
            &options,
            None,
            &mut Silent,
        )?;
        let last = outcomes.first().and_then(|outcome| outcome.history.last());
        Ok(last.map_or(f64::INFINITY, |figures| figures.train_loss))
    }

    fn deeper(&self, rows: &Dataset) -> Result<Option<Trial>, Error> {
        if !self.base.description.forms.contains(&FormKind::KeyValues) {
            return Ok(None);
        }
        let tokens = self.options.tokens.max(DEEP_TOKENS);
        let mut options = Options {
            method: "prefix-tuning".into(),
            layers: Layers::All,
            place: crate::form::Place::Before,
            tokens,
            ..self.options.clone()
        };
        options
            .candidates
            .iter_mut()
            .for_each(|candidate| candidate.learning_rate = None);
        match self.loss(rows, options) {
            Ok(loss) => Ok(Some(Trial {
                prompt: format!("prefix-tuning with {tokens} tokens at every layer"),
                loss,
            })),
            Err(Error::Options(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The prompt as it is on each of two groups of labels, where both learn much better alone.
    fn parts(&self, rows: &Dataset, own: f64) -> Result<Vec<Part>, Error> {
        let labels = rows.labels();
        if rows.kind() != AnswerKind::Label || labels.len() < 4 {
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        for labels in two_groups(rows, &labels) {
            let mut alone = rows.clone();
            alone
                .examples
                .retain(|example| labels.contains(&example.target.names()[0]));
            if labels.len() < 2 {
                return Ok(Vec::new());
            }
            let loss = self.loss(&alone, self.options.clone())?;
            parts.push(Part { labels, loss });
        }
        let better = parts.iter().all(|part| part.loss < BETTER * own);
        Ok(if better { parts } else { Vec::new() })
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
    use crate::data::Target;

    fn rows(pairs: &[(&str, &str)]) -> Dataset {
        let example = |(line, (text, label)): (usize, &(&str, &str))| Example {
            text: (*text).into(),
            text2: None,
            target: Target::Label((*label).into()),
            line,
        };
        Dataset {
            path: "t".into(),
            examples: pairs.iter().enumerate().map(example).collect(),
            sha256: String::new(),
        }
    }

    #[test]
    fn labels_group_by_the_words_of_their_texts() {
        let rows = rows(&[
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
        let even = rows(&[("a", "x"), ("b", "y")]);
        assert!((guessing(&even) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(guessing(&rows(&[("a", "x")])), 0.0);
    }

    #[test]
    fn advice_has_the_numbers_and_the_ways_out() {
        let found = Underfit {
            rows: 480,
            epochs: 12,
            own: 1.5,
            longer: Trial {
                prompt: "8 tokens".into(),
                loss: 1.4,
            },
            deeper: Some(Trial {
                prompt: "prefix-tuning".into(),
                loss: 0.2,
            }),
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
