//! What a task says about a text.

use preface_bundle::{AnswerKind, AnswerPlan, Before, likeliest};

use crate::{Error, task::RowHead};

/// A label and how probable it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice<'a> {
    /// The label.
    pub label: &'a str,
    /// Its place among the task's labels.
    pub class: usize,
    /// Its probability: its share of all labels, or where several may be given, by itself.
    pub score: f32,
}

/// What a task says about a text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Answer<'a> {
    /// The most probable label.
    Label {
        /// The label.
        best: Choice<'a>,
        /// Whether the text is outside the task's scope: the label is then less probable than the task demands.
        out_of_scope: bool,
    },
    /// Every label that is probable enough, in the order of labels.
    Labels(Choices<'a>),
    /// A label for each word; `None` for one that the tokenizer drops.
    Tags(Choices<'a>),
    /// What the base goes on with.
    Text(&'a str),
}

/// Several choices, kept in the session's room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choices<'a> {
    labels: &'a [String],
    found: &'a [Scored],
}

/// The class of a choice with its score; `None` for a word that the tokenizer drops.
pub type Scored = Option<(usize, f32)>;

impl<'a> Choices<'a> {
    /// The choices whose classes are places among `labels`.
    pub fn new(labels: &'a [String], found: &'a [Scored]) -> Self {
        Self { labels, found }
    }

    /// One choice after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Choice<'a>>> + use<'a> {
        let labels = self.labels;
        self.found.iter().map(|found| {
            let (class, score) = (*found)?;
            let label = labels.get(class)?;
            Some(Choice {
                label,
                class,
                score,
            })
        })
    }
}

/// Reads answers off hidden rows.
pub(crate) struct Reader<'a> {
    pub plan: AnswerPlan,
    pub labels: &'a [String],
    /// What may stand before each label, where they are tags.
    pub before: &'a [Before],
    /// Room for the logits.
    pub logits: &'a mut Vec<f32>,
    /// Room for those of all words.
    pub sums: &'a mut Vec<f32>,
    /// Room for several choices.
    pub found: &'a mut Vec<Scored>,
}

impl<'a> Reader<'a> {
    /// The answer that the logits give.
    pub fn pooled(self) -> Result<Answer<'a>, Error> {
        let threshold = self.plan.threshold.unwrap_or(0.0);
        if self.plan.kind == AnswerKind::Labels {
            let scores = self.logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp()));
            let probable = scores.enumerate().filter(|(_, score)| *score >= threshold);
            self.found.clear();
            self.found.extend(probable.map(Some));
            return Ok(Answer::Labels(Choices::new(self.labels, self.found)));
        }
        let (class, score) = best(self.logits);
        let best = Choice {
            label: &self.labels[class],
            class,
            score,
        };
        Ok(Answer::Label {
            best,
            out_of_scope: score < threshold,
        })
    }

    /// The answer to the rows of a text, `[tokens, hidden]`, whose words begin at `words`: the likeliest sequence of tags.
    pub fn tagged(
        self,
        head: &RowHead,
        rows: &[f32],
        hidden: usize,
        words: &[Option<usize>],
    ) -> Result<Answer<'a>, Error> {
        let row =
            |word: &Option<usize>| word.and_then(|place| rows.chunks_exact(hidden).nth(place));
        self.found.clear();
        self.sums.clear();
        for word in words {
            let tag = row(word).map(|row| {
                head.logits(row, self.logits)?;
                self.sums.extend_from_slice(self.logits);
                Ok::<_, Error>(best(self.logits))
            });
            self.found.push(tag.transpose()?);
        }
        let tagged = self.found.iter_mut().zip(words).rev();
        let tagged = tagged.filter_map(|(found, word)| Some((found.as_mut()?, row(word)?)));
        for ((found, row), tag) in tagged.zip(likeliest(self.sums, self.before)) {
            if found.0 != tag {
                head.logits(row, self.logits)?;
                *found = (tag, share(self.logits, self.logits[tag]));
            }
        }
        Ok(Answer::Tags(Choices::new(self.labels, self.found)))
    }
}

/// The class with the greatest logit, and its share of all.
fn best(logits: &[f32]) -> (usize, f32) {
    let first = (0, f32::NEG_INFINITY);
    let better = |best: (usize, f32), (class, &logit): (usize, &f32)| {
        if logit > best.1 { (class, logit) } else { best }
    };
    let (class, greatest) = logits.iter().enumerate().fold(first, better);
    (class, share(logits, greatest))
}

/// The share of one of the logits under softmax.
fn share(logits: &[f32], one: f32) -> f32 {
    let total: f32 = logits.iter().map(|logit| (logit - one).exp()).sum();
    1.0 / total
}

#[cfg(test)]
mod tests {
    use preface_bundle::Inputs;

    use super::*;

    fn with_reader<T>(
        kind: AnswerKind,
        threshold: Option<f32>,
        before: &[Before],
        read: impl FnOnce(&RowHead, Reader<'_>) -> T,
    ) -> T {
        let head = RowHead::linear(vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0], vec![0.0, 0.0, -3.0]);
        let labels = ["a", "b", "c"].map(str::to_owned);
        let plan = AnswerPlan::new(kind, Inputs::One, threshold);
        let mut logits = Vec::new();
        head.logits(&[1.0, 3.0], &mut logits).unwrap();
        let reader = Reader {
            plan,
            labels: &labels,
            before,
            logits: &mut logits,
            sums: &mut Vec::new(),
            found: &mut Vec::new(),
        };
        read(&head, reader)
    }

    #[test]
    fn the_greatest_logit_wins_with_its_share() {
        let expected = 3f32.exp() / (1f32.exp() + 3f32.exp() + 1f32.exp());
        for (threshold, outside) in [(None, false), (Some(0.5), false), (Some(0.95), true)] {
            with_reader(AnswerKind::Label, threshold, &[], |_, reader| {
                let Answer::Label { best, out_of_scope } = reader.pooled().unwrap() else {
                    panic!("another kind of answer");
                };
                assert_eq!((best.label, best.class, out_of_scope), ("b", 1, outside));
                assert!((best.score - expected).abs() < 1e-6, "{}", best.score);
            });
        }
    }

    #[test]
    fn every_probable_label_is_given() {
        for (threshold, expected) in [(0.0, "abc"), (0.5, "abc"), (0.74, "b"), (1.0, "")] {
            with_reader(AnswerKind::Labels, Some(threshold), &[], |_, reader| {
                let Answer::Labels(choices) = reader.pooled().unwrap() else {
                    panic!("another kind of answer");
                };
                let choices = || choices.iter().flatten();
                let labels: String = choices().map(|choice| choice.label).collect();
                assert_eq!(labels, expected, "{threshold}");
                let logistic =
                    |choice: &Choice<'_>| 1.0 / (1.0 + (-[1.0f32, 3.0, 1.0][choice.class]).exp());
                assert!(choices().all(|choice| (choice.score - logistic(&choice)).abs() < 1e-6));
            });
        }
    }

    #[test]
    fn words_are_tagged_where_they_begin() {
        // The second time `c` goes on with `b` alone, and it is likelier that the word before it does so too.
        let any = Before::Any;
        let behind_b = Before::Entity([1, 2]);
        for (before, expected) in [([any, any, any], "b-ac-"), ([any, any, behind_b], "b-cc-")] {
            with_reader(AnswerKind::Tags, None, &before, |head, reader| {
                let rows = [9.0, 0.0, 0.0, 9.0, 9.0, 8.0];
                let words = [Some(1), None, Some(0), Some(2), Some(7)];
                let Answer::Tags(tags) = reader.tagged(head, &rows, 2, &words).unwrap() else {
                    panic!("another kind of answer");
                };
                let tags = || tags.iter().map(|tag| tag.map_or("-", |tag| tag.label));
                assert_eq!(tags().collect::<String>(), expected);
            });
        }
    }
}
