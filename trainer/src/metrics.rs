//! Figures over answers whose truth is known.

use std::collections::{BTreeMap, BTreeSet};

use preface_bundle::Tag;
use serde::Serialize;

use crate::{
    data::AnswerKind,
    encode::Truth,
    record::{self, Counts},
};

/// The probability from which on a label of several counts as given, unless a task says otherwise.
pub const THRESHOLD: f32 = 0.5;

/// What was found for one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// One class.
    Class(usize),
    /// The probability of every class.
    Probabilities(Vec<f32>),
    /// A class for each place of the truth.
    Places(Vec<usize>),
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The answer.
    pub found: Found,
    /// Its probability; the least of several.
    pub score: f32,
    /// Mean cross-entropy of the truth, in nats.
    pub loss: f32,
}

impl Prediction {
    /// Whether it is all that the truth says; `threshold` is that of the task.
    pub fn is_right(&self, truth: &Truth, threshold: Option<f32>) -> bool {
        match (&self.found, truth) {
            (Found::Class(found), Truth::Class(class)) => {
                found == class && self.is_accepted(threshold)
            }
            (Found::Class(_), Truth::Outside) => !self.is_accepted(threshold),
            (Found::Probabilities(found), Truth::Classes(classes)) => {
                given(found, threshold) == *classes
            }
            (Found::Places(found), Truth::Places(places)) => found
                .iter()
                .zip(places)
                .all(|(found, (_, class))| found == class),
            _ => false,
        }
    }

    /// Whether its score reaches the threshold of a task that has one.
    pub fn is_accepted(&self, threshold: Option<f32>) -> bool {
        threshold.is_none_or(|threshold| self.score >= threshold)
    }
}

/// The classes whose probability reaches the threshold.
pub fn given(probabilities: &[f32], threshold: Option<f32>) -> Vec<usize> {
    let least = threshold.unwrap_or(THRESHOLD);
    let all = probabilities.iter().enumerate();
    all.filter(|&(_, &probability)| probability >= least)
        .map(|(class, _)| class)
        .collect()
}

/// Figures over examples with known answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Figures by name.
    #[serde(flatten)]
    pub figures: BTreeMap<String, f64>,
    /// The number of examples.
    pub examples: usize,
    /// Mean cross-entropy, in nats.
    #[serde(skip)]
    pub loss: f64,
    /// The figure that counts.
    #[serde(skip)]
    pub main: &'static str,
}

impl Evaluation {
    /// The figures of `predictions` against `truths` in a task with `labels` and, where it has one, a threshold.
    pub fn of<'a>(
        kind: AnswerKind,
        labels: &[String],
        threshold: Option<f32>,
        predictions: &[Prediction],
        truths: impl IntoIterator<Item = &'a Truth>,
    ) -> Self {
        let pairs: Vec<(&Prediction, &Truth)> = predictions.iter().zip(truths).collect();
        let figures = match kind {
            AnswerKind::Label => single(&pairs, labels.len(), threshold),
            AnswerKind::Labels => several(&pairs, labels.len(), threshold),
            AnswerKind::Tags => entities(&pairs, labels),
            AnswerKind::Text => texts(&pairs),
        };
        let inside = pairs.iter().filter(|(_, truth)| **truth != Truth::Outside);
        let losses: Vec<f64> = inside
            .map(|(prediction, _)| f64::from(prediction.loss))
            .collect();
        Self {
            figures: figures
                .into_iter()
                .map(|(name, figure)| (name.to_owned(), figure))
                .collect(),
            examples: pairs.len(),
            loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
            main: main_figure(kind),
        }
    }

    /// The figure that chooses epochs and candidates.
    pub fn score(&self) -> f64 {
        self.figures.get(self.main).copied().unwrap_or(0.0)
    }
}

/// The name of the figure that counts for answers of a kind.
pub fn main_figure(kind: AnswerKind) -> &'static str {
    match kind {
        AnswerKind::Label => "accuracy",
        AnswerKind::Labels => "micro_f1",
        AnswerKind::Tags => "entity_f1",
        AnswerKind::Text => "exact_match",
    }
}

type Figures = Vec<(&'static str, f64)>;

fn share(count: usize, of: usize) -> f64 {
    count as f64 / of.max(1) as f64
}

/// F1 from hits and the two counts that a hit is in.
fn f1(hits: usize, found: usize, true_ones: usize) -> f64 {
    2.0 * share(hits, found + true_ones)
}

fn single(pairs: &[(&Prediction, &Truth)], classes: usize, threshold: Option<f32>) -> Figures {
    let (inside, outside): (Vec<_>, Vec<_>) = pairs
        .iter()
        .partition(|(_, truth)| **truth != Truth::Outside);
    let right =
        |(prediction, truth): &&(&Prediction, &Truth)| prediction.is_right(truth, threshold);
    let chosen = inside
        .iter()
        .filter_map(|(prediction, truth)| match (&prediction.found, truth) {
            (Found::Class(found), Truth::Class(class)) => {
                let found = prediction.is_accepted(threshold).then_some(*found);
                Some((found.into_iter().collect(), vec![*class]))
            }
            _ => None,
        });
    let mut figures = vec![
        (
            "accuracy",
            share(inside.iter().filter(right).count(), inside.len()),
        ),
        ("macro_f1", macro_f1(&chosen.collect::<Vec<_>>(), classes)),
    ];
    if !outside.is_empty() {
        figures.push((
            "out_of_scope_recall",
            share(outside.iter().filter(right).count(), outside.len()),
        ));
    }
    figures
}

/// The classes that were found and the true ones, of each text that may have several.
fn sets<'a>(
    pairs: impl IntoIterator<Item = (&'a Prediction, &'a Truth)>,
    threshold: Option<f32>,
) -> Vec<(Vec<usize>, Vec<usize>)> {
    let sets = pairs.into_iter();
    sets.filter_map(|(prediction, truth)| match (&prediction.found, truth) {
        (Found::Probabilities(found), Truth::Classes(classes)) => {
            Some((given(found, threshold), classes.clone()))
        }
        _ => None,
    })
    .collect()
}

fn several(pairs: &[(&Prediction, &Truth)], classes: usize, threshold: Option<f32>) -> Figures {
    let sets = sets(pairs.iter().copied(), threshold);
    let counts = counts(&sets, classes);
    let sum = |count: fn(&Counts) -> usize| counts.iter().map(count).sum();
    let (hits, found, support) = (
        sum(|label| label.hits),
        sum(|label| label.found),
        sum(|label| label.support),
    );
    vec![
        (
            "accuracy",
            share(
                sets.iter().filter(|(found, truth)| found == truth).count(),
                sets.len(),
            ),
        ),
        ("micro_f1", f1(hits, found, support)),
        ("macro_f1", macro_f1(&sets, classes)),
    ]
}

/// F1 of each class that occurs among answers or truths, averaged.
fn macro_f1(sets: &[(Vec<usize>, Vec<usize>)], classes: usize) -> f64 {
    let scores: Vec<f64> = counts(sets, classes)
        .into_iter()
        .filter(|label| label.found + label.support > 0)
        .map(|label| f1(label.hits, label.found, label.support))
        .collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

fn counts(sets: &[(Vec<usize>, Vec<usize>)], classes: usize) -> Vec<Counts> {
    let mut counts = vec![Counts::default(); classes];
    for (found, truth) in sets {
        found.iter().for_each(|&class| counts[class].found += 1);
        truth.iter().for_each(|&class| counts[class].support += 1);
        found
            .iter()
            .filter(|class| truth.contains(class))
            .for_each(|&class| counts[class].hits += 1);
    }
    counts
}

/// How each label fared where a text may have several; `threshold` is that of the task.
pub fn label_counts<'a>(
    predictions: &'a [Prediction],
    truths: impl IntoIterator<Item = &'a Truth>,
    classes: usize,
    threshold: Option<f32>,
) -> Vec<Counts> {
    counts(&sets(predictions.iter().zip(truths), threshold), classes)
}

/// Entity F1 over whole spans, as CoNLL-2003 counts it (Tjong Kim Sang and De Meulder 2003, section 3).
fn entities(pairs: &[(&Prediction, &Truth)], labels: &[String]) -> Figures {
    let (mut hits, mut found, mut true_ones) = (0, 0, 0);
    let (mut right, mut words) = (0, 0);
    for (prediction, truth) in pairs {
        let (Found::Places(classes), Truth::Places(places)) = (&prediction.found, truth) else {
            continue;
        };
        let name = |class: usize| labels.get(class).map_or("O", String::as_str);
        let ours = spans(&classes.iter().map(|&class| name(class)).collect::<Vec<_>>());
        let theirs = spans(
            &places
                .iter()
                .map(|&(_, class)| name(class))
                .collect::<Vec<_>>(),
        );
        hits += ours.intersection(&theirs).count();
        found += ours.len();
        true_ones += theirs.len();
        right += classes
            .iter()
            .zip(places)
            .filter(|(found, (_, class))| *found == class)
            .count();
        words += places.len();
    }
    vec![
        ("entity_f1", f1(hits, found, true_ones)),
        ("entity_precision", share(hits, found)),
        ("entity_recall", share(hits, true_ones)),
        ("word_accuracy", share(right, words)),
    ]
}

/// First word, last word and type of every span. A type that goes on without a beginning begins one; a plain tag is a
/// span of its own word.
fn spans<'a>(tags: &[&'a str]) -> BTreeSet<(usize, usize, &'a str)> {
    let mut spans = BTreeSet::new();
    let mut open: Option<(usize, &str)> = None;
    for (at, tag) in tags.iter().copied().chain(["O"]).enumerate() {
        let tag = Tag::of(tag);
        if let (Tag::GoesOn(kind), Some((_, open))) = (tag, open)
            && kind == open
        {
            continue;
        }
        if let Some((first, kind)) = open.take() {
            spans.insert((first, at - 1, kind));
        }
        open = match tag {
            Tag::Outside => None,
            Tag::Begins(kind) | Tag::GoesOn(kind) | Tag::Plain(kind) => Some((at, kind)),
        };
    }
    spans
}

/// A text is right where every token is: what greedy decoding then gives is the target.
fn texts(pairs: &[(&Prediction, &Truth)]) -> Figures {
    let right = pairs
        .iter()
        .filter(|(prediction, truth)| prediction.is_right(truth, None))
        .count();
    let tokens = pairs
        .iter()
        .filter_map(|(prediction, truth)| match (&prediction.found, truth) {
            (Found::Places(found), Truth::Places(places)) => Some((
                found
                    .iter()
                    .zip(places)
                    .filter(|(found, (_, class))| *found == class)
                    .count(),
                places.len(),
            )),
            _ => None,
        });
    let (hits, all) = tokens.fold((0, 0), |(hits, all), (right, count)| {
        (hits + right, all + count)
    });
    let exact = ("exact_match", share(right, pairs.len()));
    let tokens = (all > 0).then(|| ("token_accuracy", share(hits, all)));
    [exact].into_iter().chain(tokens).collect()
}

/// The threshold that best tells texts of a task from others: the mean of the share of right answers inside and of
/// rejections outside is greatest. `None` where there is nothing outside.
pub fn rejection_threshold<'a>(
    predictions: &[Prediction],
    truths: impl IntoIterator<Item = &'a Truth>,
) -> Option<f32> {
    let truths: Vec<&Truth> = truths.into_iter().collect();
    let outside = truths
        .iter()
        .filter(|truth| **truth == &Truth::Outside)
        .count();
    let inside = truths.len() - outside;
    if outside == 0 || inside == 0 {
        return None;
    }
    let mut scored: Vec<(f32, f64)> = predictions
        .iter()
        .zip(&truths)
        .map(|(prediction, &truth)| match truth {
            Truth::Outside => (prediction.score, 1.0 / outside as f64),
            _ if prediction.is_right(truth, None) => (prediction.score, -1.0 / inside as f64),
            _ => (prediction.score, 0.0),
        })
        .collect();
    scored.sort_by(|left, right| left.0.total_cmp(&right.0));
    let (mut gain, mut best) = (0.0, (0.0, 0.0));
    for (at, &(score, change)) in scored.iter().enumerate() {
        gain += change;
        let next = scored.get(at + 1).map_or(1.0, |&(next, _)| next);
        if gain > best.0 && next > score {
            best = (gain, f32::midpoint(score, next));
        }
    }
    Some(best.1)
}

/// How often each true class (row) got each answer (column).
pub fn confusion<'a>(
    predictions: &[Prediction],
    truths: impl IntoIterator<Item = &'a Truth>,
    classes: usize,
) -> Vec<Vec<usize>> {
    let pairs = predictions
        .iter()
        .zip(truths)
        .flat_map(|(prediction, truth)| match (&prediction.found, truth) {
            (Found::Class(found), Truth::Class(class)) => vec![(*class, *found)],
            (Found::Places(found), Truth::Places(places)) => {
                let classes = places.iter().map(|&(_, class)| class);
                classes.zip(found.iter().copied()).collect()
            }
            _ => Vec::new(),
        });
    record::confusion(pairs, classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(found: Found, score: f32) -> Prediction {
        Prediction {
            found,
            score,
            loss: 0.5,
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| class.to_string()).collect()
    }

    #[test]
    fn figures_of_single_labels_as_by_hand() {
        let truths = [0, 0, 1, 1].map(Truth::Class);
        let predictions = [0, 1, 1, 1].map(|class| answer(Found::Class(class), 1.0));
        let found = Evaluation::of(AnswerKind::Label, &names(3), None, &predictions, &truths);
        assert_eq!(found.score(), 0.75);
        assert!((found.figures["macro_f1"] - (2.0 / 3.0 + 4.0 / 5.0) / 2.0).abs() < 1e-12);
        assert_eq!((found.loss, found.examples), (0.5, 4));
    }

    #[test]
    fn figures_of_several_labels_as_by_hand() {
        let truths = [vec![0], vec![0, 1], vec![]].map(Truth::Classes);
        let predictions = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]
            .map(|probabilities| answer(Found::Probabilities(probabilities.into()), 1.0));
        let of_labels = label_counts(&predictions, &truths, 2, None);
        let of_labels: Vec<_> = of_labels
            .iter()
            .map(|label| (label.hits, label.found, label.support))
            .collect();
        assert_eq!(of_labels, [(2, 2, 2), (0, 1, 1)]);
        let found =
            Evaluation::of(AnswerKind::Labels, &names(2), None, &predictions, &truths).figures;
        assert!((found["accuracy"] - 1.0 / 3.0).abs() < 1e-12);
        assert!((found["micro_f1"] - 2.0 * 2.0 / (3.0 + 3.0)).abs() < 1e-12);
        assert!((found["macro_f1"] - 0.5).abs() < 1e-12);
    }

    #[test]
    fn spans_are_those_of_conll() {
        type Spans = &'static [(usize, usize, &'static str)];
        let table: [(&[&str], Spans); 6] = [
            (&["B-a", "I-a", "O", "B-b"], &[(0, 1, "a"), (3, 3, "b")]),
            (&["I-a", "I-a"], &[(0, 1, "a")]),
            (&["B-a", "B-a"], &[(0, 0, "a"), (1, 1, "a")]),
            (&["B-a", "I-b"], &[(0, 0, "a"), (1, 1, "b")]),
            (&["O", "O"], &[]),
            (
                &["NOUN", "VERB", "VERB"],
                &[(0, 0, "NOUN"), (1, 1, "VERB"), (2, 2, "VERB")],
            ),
        ];
        for (tags, expected) in table {
            assert_eq!(spans(tags), expected.iter().copied().collect(), "{tags:?}");
        }
    }

    #[test]
    fn a_threshold_parts_inside_from_outside() {
        let truths = [
            Truth::Class(0),
            Truth::Class(1),
            Truth::Outside,
            Truth::Outside,
        ];
        let predictions = [(0, 0.9), (1, 0.8), (0, 0.5), (1, 0.3)]
            .map(|(class, score)| answer(Found::Class(class), score));
        let threshold = rejection_threshold(&predictions, &truths);
        assert!((threshold.unwrap() - 0.65).abs() < 1e-6);
        let found = Evaluation::of(
            AnswerKind::Label,
            &names(2),
            threshold,
            &predictions,
            &truths,
        )
        .figures;
        assert_eq!(
            (found["accuracy"], found["out_of_scope_recall"]),
            (1.0, 1.0)
        );
        assert_eq!(rejection_threshold(&predictions[..2], &truths[..2]), None);
    }
}
