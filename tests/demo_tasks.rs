//! The two built-in tasks of the demo: their shape, that nothing leaks between splits, and how far counting words gets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const SPLITS: [&str; 3] = ["train", "dev", "test"];

/// What a task promises, and the accuracy that counting words must stay below.
struct Expected {
    task: &'static str,
    labels: usize,
    sentences: usize,
    test: usize,
    bag_of_words_below: f64,
}

const TASKS: [Expected; 2] = [
    Expected {
        task: "home_command",
        labels: 10,
        sentences: 600,
        test: 150,
        bag_of_words_below: 0.85,
    },
    Expected {
        task: "message_urgency",
        labels: 3,
        sentences: 400,
        test: 96,
        bag_of_words_below: 0.80,
    },
];

struct Example {
    text: String,
    label: String,
}

/// Lower case, apostrophes dropped, every other run of non-alphanumerics one space.
fn normalise(text: &str) -> String {
    let text = text.to_lowercase().replace('\'', "");
    let words = text.split(|c: char| !c.is_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn read(task: &str, split: &str) -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../demo/tasks")
        .join(task)
        .join(format!("{split}.jsonl"));
    let content = std::fs::read_to_string(&path).expect("the split's file is there");
    let mut examples = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let place = format!("{}:{}", path.display(), index + 1);
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{place}: {error}"));
        let object = value.as_object().unwrap_or_else(|| panic!("{place}"));
        assert_eq!(object.len(), 2, "{place}: text and label, nothing else");
        let field = |name: &str| {
            let value = object.get(name).and_then(|value| value.as_str());
            value.unwrap_or_else(|| panic!("{place}: no {name}")).into()
        };
        examples.push(Example {
            text: field("text"),
            label: field("label"),
        });
    }
    examples
}

fn labels(examples: &[Example]) -> BTreeSet<&str> {
    examples.iter().map(|e| e.label.as_str()).collect()
}

#[test]
fn counts_labels_and_splits_hold() {
    for expected in &TASKS {
        let task = expected.task;
        let splits = SPLITS.map(|split| read(task, split));
        let total: usize = splits.iter().map(Vec::len).sum();
        assert!(total >= expected.sentences, "{task}: {total} sentences");
        assert!(splits[2].len() >= expected.test, "{task}: test too small");
        for (examples, share) in splits.iter().zip([0.65, 0.15, 0.20]) {
            let actual = examples.len() as f64 / total as f64;
            assert!((actual - share).abs() < 0.02, "{task}: share {actual:.3}");
        }
        let known = labels(&splits[0]);
        assert!(known.len() >= expected.labels, "{task}: {known:?}");
        for (examples, split) in splits.iter().zip(SPLITS) {
            assert_eq!(labels(examples), known, "{task}/{split}");
        }
    }
}

#[test]
fn labels_and_sentences_are_plain() {
    for expected in &TASKS {
        for split in SPLITS {
            for Example { text, label } in read(expected.task, split) {
                let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
                assert!(label.chars().all(kebab), "{label}");
                assert!(text.is_ascii() && text.trim() == text, "{text}");
                let words = text.split_whitespace().count();
                assert!((2..=32).contains(&words), "{words} words: {text}");
            }
        }
    }
}

#[test]
fn no_sentence_is_in_two_places() {
    for expected in &TASKS {
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        for split in SPLITS {
            for (index, example) in read(expected.task, split).iter().enumerate() {
                let place = format!("{}/{split}.jsonl:{}", expected.task, index + 1);
                let key = normalise(&example.text);
                if let Some(first) = places.insert(key, place.clone()) {
                    panic!("{place} repeats {first}: {}", example.text);
                }
            }
        }
    }
}

/// Multinomial naive Bayes with add-one smoothing on unigrams.
struct NaiveBayes {
    classes: BTreeMap<String, Class>,
    vocabulary: BTreeSet<String>,
    examples: usize,
}

#[derive(Default)]
struct Class {
    examples: usize,
    tokens: usize,
    counts: BTreeMap<String, usize>,
}

impl NaiveBayes {
    fn train(examples: &[Example]) -> Self {
        let mut classes: BTreeMap<String, Class> = BTreeMap::new();
        let mut vocabulary = BTreeSet::new();
        for example in examples {
            let class = classes.entry(example.label.clone()).or_default();
            class.examples += 1;
            for word in normalise(&example.text).split(' ') {
                class.tokens += 1;
                *class.counts.entry(word.into()).or_default() += 1;
                vocabulary.insert(word.to_string());
            }
        }
        Self {
            classes,
            vocabulary,
            examples: examples.len(),
        }
    }

    fn score(&self, class: &Class, words: &str) -> f64 {
        let seen = words.split(' ').filter(|w| self.vocabulary.contains(*w));
        let denominator = (class.tokens + self.vocabulary.len()) as f64;
        let likelihood: f64 = seen
            .map(|word| class.counts.get(word).copied().unwrap_or(0))
            .map(|count| ((count + 1) as f64 / denominator).ln())
            .sum();
        likelihood + (class.examples as f64 / self.examples as f64).ln()
    }

    fn predict(&self, text: &str) -> &str {
        let words = normalise(text);
        let scored = self
            .classes
            .iter()
            .map(|(label, class)| (label, self.score(class, &words)));
        let best = scored.max_by(|a, b| a.1.total_cmp(&b.1));
        best.expect("training saw at least one label").0
    }
}

/// The share of `test` that always giving the most frequent label of `train` gets right.
fn majority(train: &[Example], test: &[Example]) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for example in train {
        *counts.entry(&example.label).or_default() += 1;
    }
    let most = counts.iter().max_by_key(|(_, count)| **count);
    let answer = *most.expect("train is not empty").0;
    let right = test.iter().filter(|e| e.label == answer).count();
    right as f64 / test.len() as f64
}

#[test]
fn counting_words_is_not_enough() {
    for expected in &TASKS {
        let (train, test) = (read(expected.task, "train"), read(expected.task, "test"));
        let model = NaiveBayes::train(&train);
        let right = test.iter().filter(|e| model.predict(&e.text) == e.label);
        let accuracy = right.count() as f64 / test.len() as f64;
        let majority = majority(&train, &test);
        let task = expected.task;
        eprintln!("{task}: test accuracy of naive Bayes {accuracy:.3}, of majority {majority:.3}");
        assert!(accuracy < expected.bag_of_words_below, "{task}: {accuracy}");
        assert!(accuracy > majority, "{task}: the baseline itself is broken");
    }
}
