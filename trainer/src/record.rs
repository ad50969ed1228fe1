//! What one training was, for a person to read.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{budget::Cost, progress::EpochFigures};

/// Mistakes that a record keeps.
pub const MISTAKES: usize = 50;

/// One training: what went in, how it went, what came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The task, or the folder where it has no name.
    pub title: String,
    /// The base model.
    pub base: BaseRecord,
    /// The method that learned the prompt.
    pub method: String,
    /// Where the prompt began.
    pub init: String,
    /// How the prompt enters the base, with its shape.
    pub form: String,
    /// Virtual tokens.
    pub tokens: usize,
    /// The layers that are prompted, such as `top 2 of 6`.
    pub layers: String,
    /// The head.
    pub head: String,
    /// Trained numbers, the head's included.
    pub trained_parameters: usize,
    /// Size of the bundle in 8-bit numbers; absent where the adapter cannot be packed.
    pub bundle_bytes: Option<usize>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Further options, in the order in which they are shown.
    pub options: Vec<Setting>,
    /// The data files.
    pub data: Vec<DataFile>,
    /// Figures of every epoch of the candidate that was kept.
    pub epochs: Vec<EpochFigures>,
    /// The epoch that was kept, counted from 1.
    pub best_epoch: usize,
    /// Metrics on the dev data at the best epoch.
    pub dev: BTreeMap<String, f64>,
    /// Metrics on the test data; empty where there are none.
    pub test: BTreeMap<String, f64>,
    /// The data that `confusion` and `mistakes` speak of, such as `test`.
    pub measured_on: String,
    /// Labels, in the order of the rows of `confusion`.
    pub labels: Vec<String>,
    /// Number of texts by true label (row) and answer (column); empty where answers are not one label each.
    pub confusion: Vec<Vec<usize>>,
    /// How each label fared where a text may have several; empty elsewhere.
    pub counts: Vec<Counts>,
    /// The worst mistakes, the worst first.
    pub mistakes: Vec<Mistake>,
    /// Advice and warnings.
    pub notes: Vec<String>,
    /// Where the positions and the compute go.
    pub token_budget: Vec<Cost>,
    /// Positions of the base; absent where nothing bounds them.
    pub positions: Option<usize>,
    /// Wall time.
    pub seconds: f64,
}

/// The base model of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseRecord {
    /// Its name, such as the folder's.
    pub name: String,
    /// Its numbers, all frozen.
    pub parameters: u64,
    /// The beginning of its id, in hexadecimal digits.
    pub id: String,
}

/// One option and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The option's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// What it is for: `train`, `dev` or `test`.
    pub role: String,
    /// Where it is.
    pub path: String,
    /// Examples in it.
    pub examples: usize,
}

/// One text with a wrong answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// The text.
    pub text: String,
    /// The right answer.
    pub truth: String,
    /// The answer that was given.
    pub found: String,
    /// The probability of the answer that was given.
    pub score: f64,
    /// The loss of the right answer, in nats.
    pub loss: f64,
}

/// How often one label was given and was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Texts that have the label and were given it.
    pub hits: usize,
    /// Texts that were given it.
    pub found: usize,
    /// Texts that have it.
    pub support: usize,
}

/// How one label fared. A figure whose denominator is zero is absent.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelFigures {
    /// The label.
    pub label: String,
    /// Right answers among those that name the label.
    pub precision: Option<f64>,
    /// Right answers among the label's texts.
    pub recall: Option<f64>,
    /// Harmonic mean of precision and recall.
    pub f1: Option<f64>,
    /// Texts of the label.
    pub support: usize,
}

/// One label taken for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusedPair {
    /// The right label.
    pub truth: String,
    /// The answer that was given.
    pub found: String,
    /// How often.
    pub count: usize,
    /// Texts of the right label.
    pub support: usize,
}

impl Record {
    /// Figures of each label, in their order, from `confusion` or `counts`; empty where neither has one row a label.
    pub fn label_figures(&self) -> Vec<LabelFigures> {
        let counts = match self.has_confusion() {
            true => self.of_confusion(),
            false if self.counts.len() == self.labels.len() => self.counts.clone(),
            false => Vec::new(),
        };
        let labels = self.labels.iter().zip(counts);
        labels
            .map(|(label, counts)| {
                let Counts {
                    hits,
                    found,
                    support,
                } = counts;
                LabelFigures {
                    label: label.clone(),
                    precision: share(hits, found),
                    recall: share(hits, support),
                    f1: share(2 * hits, found + support),
                    support,
                }
            })
            .collect()
    }

    fn of_confusion(&self) -> Vec<Counts> {
        let rows = self.confusion.iter().enumerate();
        rows.map(|(index, row)| Counts {
            hits: row[index],
            found: self.confusion.iter().map(|row| row[index]).sum(),
            support: row.iter().sum(),
        })
        .collect()
    }

    /// Labels taken for another, the most frequent pairs first.
    pub fn confused_pairs(&self) -> Vec<ConfusedPair> {
        if !self.has_confusion() {
            return Vec::new();
        }
        let mut cells: Vec<(usize, usize, usize)> = self
            .confusion
            .iter()
            .enumerate()
            .flat_map(|(truth, row)| {
                let cells = row.iter().enumerate();
                cells.map(move |(found, &count)| (truth, found, count))
            })
            .filter(|&(truth, found, count)| truth != found && count > 0)
            .collect();
        cells.sort_by_key(|&(truth, found, count)| (Reverse(count), truth, found));
        let pair = |(truth, found, count): (usize, usize, usize)| ConfusedPair {
            truth: self.labels[truth].clone(),
            found: self.labels[found].clone(),
            count,
            support: self.confusion[truth].iter().sum(),
        };
        cells.into_iter().map(pair).collect()
    }

    /// Whether `confusion` has one row and one column for each label.
    pub fn has_confusion(&self) -> bool {
        let classes = self.labels.len();
        let is_square = self.confusion.iter().all(|row| row.len() == classes);
        classes > 0 && self.confusion.len() == classes && is_square
    }
}

/// Counts pairs of true label and answer into `classes` rows of `classes` columns. Pairs beyond them are left out.
pub fn confusion(
    pairs: impl IntoIterator<Item = (usize, usize)>,
    classes: usize,
) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; classes]; classes];
    for (truth, found) in pairs {
        if let Some(count) = counts.get_mut(truth).and_then(|row| row.get_mut(found)) {
            *count += 1;
        }
    }
    counts
}

/// The [`MISTAKES`] worst of `mistakes`, by loss, the worst first.
pub fn worst(mistakes: impl IntoIterator<Item = Mistake>) -> Vec<Mistake> {
    let mut mistakes: Vec<Mistake> = mistakes.into_iter().collect();
    mistakes.sort_by(|one, other| other.loss.total_cmp(&one.loss));
    mistakes.truncate(MISTAKES);
    mistakes
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            labels: ["a", "b", "c"].map(String::from).into(),
            confusion: confusion([(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (1, 0), (7, 0)], 3),
            ..Record::default()
        }
    }

    #[test]
    fn label_figures_as_by_hand() {
        let figures = record().label_figures();
        let all: Vec<_> = figures
            .iter()
            .map(|label| (label.precision, label.recall, label.f1, label.support))
            .collect();
        let expected = [
            (Some(2.0 / 4.0), Some(2.0 / 3.0), Some(4.0 / 7.0), 3),
            (Some(1.0 / 2.0), Some(1.0 / 3.0), Some(2.0 / 5.0), 3),
            (None, None, None, 0),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn labels_of_texts_that_have_several_are_counted_without_a_matrix() {
        let counts = Counts {
            hits: 1,
            found: 2,
            support: 3,
        };
        let record = Record {
            labels: vec!["a".into()],
            counts: vec![counts],
            ..Record::default()
        };
        let figures = &record.label_figures()[0];
        assert_eq!(
            (figures.precision, figures.recall, figures.f1),
            (Some(0.5), Some(1.0 / 3.0), Some(0.4))
        );
        assert!(!record.has_confusion());
    }

    #[test]
    fn pairs_by_count() {
        let pairs = record().confused_pairs();
        let all: Vec<_> = pairs
            .iter()
            .map(|pair| (pair.truth.as_str(), pair.found.as_str(), pair.count))
            .collect();
        assert_eq!(all, [("b", "a", 2), ("a", "b", 1)]);
        assert_eq!(pairs[0].support, 3);
    }

    #[test]
    fn a_matrix_of_another_size_is_none() {
        let mut record = record();
        record.confusion[1].pop();
        assert!(record.label_figures().is_empty() && record.confused_pairs().is_empty());
        assert!(!Record::default().has_confusion());
    }

    #[test]
    fn the_worst_mistakes_are_kept() {
        let mistake = |loss: f64| Mistake {
            text: String::new(),
            truth: "a".into(),
            found: "b".into(),
            score: 0.5,
            loss,
        };
        let kept = worst((0..80).map(|index| mistake(f64::from(index * 37 % 80))));
        let losses: Vec<f64> = kept.iter().map(|mistake| mistake.loss).collect();
        assert_eq!(losses.len(), MISTAKES);
        assert_eq!(losses[..2], [79.0, 78.0]);
    }
}
