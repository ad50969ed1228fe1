//! What training gave: for people, for scripts, and as a report.

use std::fmt;

use preface_packager::{
    Access, Adapter as Packable, Options as PackOptions, packed_len, write_file,
};
use preface_trainer::{
    adapter::Adapter,
    budget::{Cost, Rates},
    data::{AnswerKind, Dataset, Target},
    encode::Truth,
    form::Form,
    metrics::{Found, Prediction, confusion, given, label_counts},
    options::Options,
    record::{BaseRecord, DataFile, Mistake, Record, Setting, worst},
    training::Outcome,
};
use serde::Serialize;
use serde_json::json;

use super::{Arguments, Inputs, arguments::spelled, note_test, search::Search};
use crate::{output::Output, report, verbs::eval::Figures};

/// The report's name in the adapter's folder.
const REPORT: &str = "report.html";

/// Every candidate's outcome and its figures on test, and which is kept.
pub struct Measured {
    outcomes: Vec<Outcome>,
    tests: Vec<Figures>,
    kept: usize,
    about_data: Vec<String>,
    notes: Vec<String>,
    search: Option<Search>,
}

/// A figure over several seeds.
#[derive(Serialize)]
struct Spread {
    mean: f64,
    deviation: f64,
    seeds: usize,
}

impl Spread {
    /// Mean and sample deviation.
    fn of(figures: &[f64]) -> Self {
        let seeds = figures.len();
        let mean = figures.iter().sum::<f64>() / seeds.max(1) as f64;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (squares / seeds.saturating_sub(1).max(1) as f64).sqrt(),
            seeds,
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.4} +- {:.4}", self.mean, self.deviation)
    }
}

impl Measured {
    /// Keeps what was measured on test with the adapter that is kept.
    pub fn new(mut outcomes: Vec<Outcome>, kept: usize, tests: Vec<Figures>) -> Self {
        if let Some(test) = tests.get(kept) {
            note_test(&mut outcomes[kept].adapter, &test.evaluation);
        }
        Self {
            outcomes,
            tests,
            kept,
            about_data: Vec::new(),
            notes: Vec::new(),
            search: None,
        }
    }

    /// Says which search chose the design.
    pub fn chosen_by(&mut self, search: Option<Search>) {
        self.search = search;
    }

    /// Keeps what was said of the data before training.
    pub fn about_data(&mut self, notes: Vec<String>) {
        self.about_data = notes;
    }

    /// Everything that was said of data and prompt.
    fn said(&self) -> Vec<String> {
        [self.about_data.as_slice(), &self.notes].concat()
    }

    /// The adapter that is kept.
    pub fn adapter(&self) -> &Adapter {
        &self.outcome().adapter
    }

    /// The outcome that is kept.
    pub fn outcome(&self) -> &Outcome {
        &self.outcomes[self.kept]
    }

    /// Adds advice.
    pub fn advise(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Seed and figures of every candidate.
    fn candidates(&self) -> Vec<serde_json::Value> {
        let figures = |(index, outcome): (usize, &Outcome)| {
            let receipt = &outcome.adapter.card.receipt;
            json!({
                "seed": receipt.seed,
                "learning_rate": receipt.learning_rate,
                "best_epoch": receipt.best_epoch,
                "dev": outcome.dev,
                "test": self.tests.get(index).map(|test| &test.evaluation),
            })
        };
        self.outcomes.iter().enumerate().map(figures).collect()
    }

    fn test(&self) -> Option<&Figures> {
        self.tests.get(self.kept)
    }

    fn over_seeds(&self) -> Option<(Spread, Option<Spread>)> {
        let dev: Vec<f64> = self
            .outcomes
            .iter()
            .map(|outcome| outcome.dev.score())
            .collect();
        let test: Vec<f64> = self
            .tests
            .iter()
            .map(|test| test.evaluation.score())
            .collect();
        let test = (!test.is_empty()).then(|| Spread::of(&test));
        (dev.len() > 1).then(|| (Spread::of(&dev), test))
    }
}

/// Prints the result.
pub fn report(
    arguments: &Arguments,
    inputs: &Inputs,
    measured: &Measured,
    output: &Output,
) -> anyhow::Result<()> {
    let outcome = measured.outcome();
    let card = &outcome.adapter.card;
    let (best, epochs) = (card.receipt.best_epoch, card.receipt.epochs);
    output.say(format_args!(
        "wrote {}: {} trained numbers, best epoch {best} of {epochs}, {:.0} s",
        arguments.output.display(),
        outcome.parameters,
        outcome.seconds
    ));
    let main = outcome.dev.main;
    let spelled = main.replace('_', " ");
    output.say(format_args!(
        "dev {spelled}  {:.4} ({} examples)",
        outcome.dev.score(),
        outcome.dev.examples
    ));
    if let Some(test) = measured.test() {
        output.say(format_args!(
            "test {spelled} {:.4} ({} examples)",
            test.evaluation.score(),
            test.evaluation.examples
        ));
    }
    if let Some((dev, test)) = measured.over_seeds() {
        let test = test.map_or(String::new(), |test| format!(", test {test}"));
        output.say(format_args!("{} seeds: dev {dev}{test}", dev.seeds));
    }
    if let Some(threshold) = card.answer.threshold {
        output.say(format_args!(
            "out of scope below a probability of {threshold:.3}"
        ));
    }
    budget(inputs, outcome, output);
    for note in &measured.notes {
        output.note(note);
    }
    let over_seeds = measured.over_seeds();
    output.json(&json!({
        "method": card.method,
        "head": card.head.kind,
        "parameters": outcome.parameters,
        "best_epoch": best,
        "epochs": epochs,
        "dev": outcome.dev,
        "test": measured.test().map(|test| &test.evaluation),
        "candidates": measured.candidates(),
        "seeds": over_seeds.map(|(dev, test)| json!({"dev": dev, "test": test})),
        "threshold": card.answer.threshold,
        "truncated": outcome.truncated,
        "token_budget": {"tokens": card.token_budget, "costs": costs(inputs, outcome)},
        "warnings": measured.about_data,
        "advice": measured.notes,
        "seconds": outcome.seconds,
        "search": measured.search,
    }))
}

fn costs(inputs: &Inputs, outcome: &Outcome) -> Vec<Cost> {
    let card = &outcome.adapter.card;
    card.token_budget.costs(&card.form, Rates::of(&inputs.base))
}

/// Prints where positions and compute go.
fn budget(inputs: &Inputs, outcome: &Outcome, output: &Output) {
    let card = &outcome.adapter.card;
    let parts: Vec<String> = costs(inputs, outcome)
        .into_iter()
        .filter(|cost| cost.tokens > 0)
        .map(|cost| {
            format!(
                "{} {} ({:.0} %)",
                cost.part,
                cost.tokens,
                100.0 * cost.share
            )
        })
        .collect();
    output.say(format_args!(
        "tokens (and their part of the compute): {}",
        parts.join(", ")
    ));
    let longest = card.token_budget.longest;
    match card.token_budget.left(&card.form, &inputs.base.description) {
        Some(left) => output.say(format_args!(
            "longest text {longest} tokens; {left} of {} positions are left",
            card.token_budget.positions.unwrap_or(0)
        )),
        None => output.say(format_args!(
            "longest text {longest} tokens; nothing bounds the positions"
        )),
    }
    if outcome.truncated > 0 {
        output.note(format_args!(
            "{} texts were too long and were cut",
            outcome.truncated
        ));
    }
}

/// Writes the report of the training that is kept.
pub fn write_report(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    measured: &Measured,
) -> anyhow::Result<()> {
    let path = arguments.output.join(REPORT);
    let text = report::html(&record(arguments, inputs, options, measured));
    Ok(write_file(&path, text.as_bytes(), Access::Everyone)?)
}

fn record(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    measured: &Measured,
) -> Record {
    let outcome = measured.outcome();
    let card = &outcome.adapter.card;
    let (data, truths, answers, measured_on) = match (&inputs.test, measured.test()) {
        (Some(test), Some(figures)) => (test, &figures.truths, &figures.predictions, "test"),
        _ => (
            &inputs.dev,
            &outcome.dev_truths,
            &outcome.dev_answers,
            "dev",
        ),
    };
    Record {
        title: name_of(&arguments.output),
        base: BaseRecord {
            name: name_of(&arguments.base),
            parameters: inputs.base.description.parameters as u64,
            id: card.base_id.chars().take(16).collect(),
        },
        method: card.method.clone(),
        init: options.init.name().into(),
        form: form_text(&card.form),
        tokens: options.tokens,
        layers: layers_text(&card.form, inputs.base.description.layers.len()),
        head: card.head.kind.clone(),
        trained_parameters: outcome.parameters,
        bundle_bytes: bundle_bytes(arguments),
        seed: card.receipt.seed,
        options: settings(options, card.receipt.learning_rate, measured),
        data: files(inputs),
        epochs: outcome.history.clone(),
        best_epoch: card.receipt.best_epoch,
        dev: outcome.dev.figures.clone(),
        test: measured
            .test()
            .map(|test| test.evaluation.figures.clone())
            .unwrap_or_default(),
        measured_on: measured_on.into(),
        labels: card.labels.clone(),
        confusion: match card.answer.kind {
            AnswerKind::Text | AnswerKind::Labels => Vec::new(),
            AnswerKind::Label | AnswerKind::Tags => confusion(answers, truths, card.labels.len()),
        },
        counts: match card.answer.kind {
            AnswerKind::Labels => {
                let (classes, threshold) = (card.labels.len(), card.answer.threshold);
                label_counts(answers, truths, classes, threshold)
            }
            _ => Vec::new(),
        },
        mistakes: mistakes(data, truths, answers, &outcome.adapter),
        notes: measured.said(),
        token_budget: costs(inputs, outcome),
        positions: card.token_budget.positions,
        seconds: outcome.seconds,
    }
}

fn name_of(path: &std::path::Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn form_text(form: &Form) -> String {
    match form {
        Form::Embeddings { tokens, hidden, .. } => format!("embeddings [{tokens}, {hidden}]"),
        Form::KeyValues { tokens, layers, .. } => {
            let shape = layers
                .first()
                .map_or((0, 0), |layer| (layer.kv_heads, layer.head_dim));
            format!(
                "key-values [{}, 2, {}, {tokens}, {}]",
                layers.len(),
                shape.0,
                shape.1
            )
        }
    }
}

fn layers_text(form: &Form, count: usize) -> String {
    match form {
        Form::Embeddings { .. } => "input".into(),
        Form::KeyValues {
            first_layer,
            layers,
            ..
        } if layers.len() < count => {
            format!(
                "{first_layer} to {} of {count}",
                first_layer + layers.len() - 1
            )
        }
        Form::KeyValues { .. } => format!("all {count}"),
    }
}

/// The size of the bundle that `preface pack` makes of the adapter by default; `None` of one that it refuses.
fn bundle_bytes(arguments: &Arguments) -> Option<usize> {
    let adapter = Packable::open(&arguments.output).ok()?;
    packed_len(&adapter, &PackOptions::new("task", 1)).ok()
}

fn settings(options: &Options, learning_rate: f32, measured: &Measured) -> Vec<Setting> {
    let pairs = [
        ("epochs", options.epochs.to_string()),
        ("batch", options.batch.to_string()),
        ("optimizer", format!("{:?}", options.optimizer)),
        ("schedule", format!("{:?}", options.decay)),
        ("learning rate", format!("{learning_rate}")),
        ("clip", options.clip.to_string()),
        ("template", options.template.clone()),
        ("threads", options.threads.to_string()),
    ];
    let own = pairs.map(|(name, value)| (name.to_owned(), value));
    let searched = measured.search.as_ref().map(Search::settings);
    let seeds = measured.over_seeds().into_iter().flat_map(|(dev, test)| {
        let named = |on: &str, spread: Spread| {
            (format!("{on}, {} seeds", spread.seeds), spread.to_string())
        };
        let test = test.map(|test| named("test", test));
        [named("dev", dev)].into_iter().chain(test)
    });
    let setting = |(name, value): (String, String)| Setting { name, value };
    own.into_iter()
        .chain(seeds)
        .chain(searched.unwrap_or_default())
        .map(setting)
        .collect()
}

fn files(inputs: &Inputs) -> Vec<DataFile> {
    let file = |role: &str, data: &Dataset| DataFile {
        role: role.into(),
        path: data.path.display().to_string(),
        examples: data.examples.len(),
    };
    let mut files = vec![file("train", &inputs.train), file("dev", &inputs.dev)];
    files.extend(inputs.test.iter().map(|test| file("test", test)));
    files
}

fn mistakes(
    data: &Dataset,
    truths: &[Truth],
    answers: &[Prediction],
    adapter: &Adapter,
) -> Vec<Mistake> {
    let threshold = adapter.card.answer.threshold;
    let pairs = data.examples.iter().zip(truths).zip(answers);
    let wrong = pairs.filter(|((_, truth), answer)| !answer.is_right(truth, threshold));
    worst(wrong.map(|((example, _), answer)| Mistake {
        text: match &example.text2 {
            Some(text2) => format!("{} | {text2}", example.text),
            None => example.text.clone(),
        },
        truth: spelled(&example.target),
        found: found_text(
            &answer.found,
            &example.target,
            &adapter.card.labels,
            answer.is_accepted(threshold),
            threshold,
        ),
        score: f64::from(answer.score),
        loss: f64::from(answer.loss),
    }))
}

fn found_text(
    found: &Found,
    truth: &Target,
    labels: &[String],
    accepted: bool,
    threshold: Option<f32>,
) -> String {
    let name = |class: &usize| labels.get(*class).cloned().unwrap_or_default();
    match (found, truth) {
        (Found::Class(_), _) if !accepted => "out of scope".into(),
        (Found::Class(class), _) => name(class),
        (Found::Probabilities(probabilities), _) => given(probabilities, threshold)
            .iter()
            .map(name)
            .collect::<Vec<_>>()
            .join(" "),
        (Found::Places(_), Target::Text(_)) => "another text".into(),
        (Found::Places(classes), _) => classes.iter().map(name).collect::<Vec<_>>().join(" "),
    }
}
