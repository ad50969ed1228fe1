//! `preface train`: learns a prompt for one task.

use std::{path::PathBuf, process::ExitCode};

use indicatif::ProgressBar;
use preface_graph::Base;
use preface_trainer::{
    adapter::Adapter,
    batch::Overlength,
    data::Dataset,
    evaluation::Evaluation,
    heads::Pooling,
    training::{self, Options, Outcome, Progress},
};
use serde_json::json;

use super::eval::on_onnxruntime;
use crate::{onnxruntime::OnnxRuntime, output::Output};

/// Learn a prompt and a head for one task; the base stays as it is.
#[derive(clap::Args)]
#[command(after_help = "\
Data files hold one example a line: JSON lines {\"text\": ..., \"label\": ...}, or CSV or TSV with a header. The epoch that
is best on the dev file is kept; the test file is only measured. The same seed on the same machine gives the same
adapter, bit for bit.

Example:
  preface train --base out/base --train train.jsonl --dev dev.jsonl --method prompt-tuning --tokens 8 -o out/intent")]
pub struct Arguments {
    /// Base folder.
    #[arg(long, value_name = "BASE")]
    base: PathBuf,
    /// Examples to learn from.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Examples that choose the epoch.
    #[arg(long, value_name = "FILE")]
    dev: PathBuf,
    /// Examples that are only measured.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// How the prompt is learned: prompt-tuning or prefix-tuning.
    #[arg(long, default_value = "prompt-tuning")]
    method: String,
    /// Virtual tokens.
    #[arg(long, value_name = "N", default_value_t = 8)]
    tokens: usize,
    /// What turns the base's output into an answer.
    #[arg(long, default_value = "linear")]
    head: String,
    /// Passes over the training data.
    #[arg(long, value_name = "N", default_value_t = 30)]
    epochs: usize,
    /// Examples a step.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Peak learning rate of the prompt; without it, the method's own.
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f32>,
    /// Peak learning rate of the head.
    #[arg(long, value_name = "RATE", default_value_t = 1e-2)]
    head_learning_rate: f32,
    /// Seed of every random choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Cut texts that are too long instead of refusing them.
    #[arg(long)]
    truncate: bool,
    /// Folder for the adapter.
    #[arg(short, long, value_name = "ADAPTER")]
    output: PathBuf,
    #[command(flatten)]
    onnxruntime: OnnxRuntime,
}

/// Trains and writes the adapter.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let train = Dataset::read(&arguments.train)?;
    let dev = Dataset::read(&arguments.dev)?;
    let test = arguments.test.as_deref().map(Dataset::read).transpose()?;
    if let Some(test) = &test {
        test.indices(&train.labels())?;
    }
    let base = Base::open(&arguments.base)?;
    let library = arguments.onnxruntime.load()?;
    let overlength = if arguments.truncate {
        Overlength::Truncate
    } else {
        Overlength::Refuse
    };
    let options = Options {
        method: arguments.method,
        tokens: arguments.tokens,
        head: arguments.head,
        pooling: Pooling::Mean,
        epochs: arguments.epochs,
        batch: arguments.batch,
        learning_rate: arguments.learning_rate,
        head_learning_rate: arguments.head_learning_rate,
        weight_decay: 0.01,
        seed: arguments.seed,
        threads: arguments.onnxruntime.threads(),
        overlength,
    };
    let mut outcome = training::train(
        &base,
        &library,
        &train,
        &dev,
        &options,
        &mut Bar::new(output, "training"),
    )?;
    let test = match test {
        Some(test) => Some(on_onnxruntime(
            &outcome.adapter,
            &base,
            &library,
            &test,
            overlength,
            options.threads,
            output,
        )?),
        None => None,
    };
    if let Some(test) = test {
        note_test(&mut outcome.adapter, test);
    }
    outcome.adapter.write(&arguments.output)?;
    report(
        &outcome,
        test,
        &arguments.output.display().to_string(),
        output,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the figures on test data with the adapter.
pub fn note_test(adapter: &mut Adapter, test: Evaluation) {
    let figures = [
        ("test_accuracy", test.accuracy),
        ("test_macro_f1", test.macro_f1),
    ];
    let named = figures.map(|(name, figure)| (name.to_owned(), figure));
    adapter.card.metrics.extend(named);
}

fn report(
    outcome: &Outcome,
    test: Option<Evaluation>,
    folder: &str,
    output: &Output,
) -> anyhow::Result<()> {
    let card = &outcome.adapter.card;
    let best = card.receipt.best_epoch;
    output.say(format_args!(
        "wrote {folder}: {} trained numbers, best epoch {best} of {}, {:.0} s",
        outcome.parameters, card.receipt.epochs, outcome.seconds
    ));
    output.say(format_args!(
        "dev accuracy  {:.4} ({} examples)",
        outcome.dev.accuracy, outcome.dev.examples
    ));
    if let Some(test) = test {
        output.say(format_args!(
            "test accuracy {:.4} ({} examples)",
            test.accuracy, test.examples
        ));
    }
    output.json(&json!({
        "method": card.method,
        "parameters": outcome.parameters,
        "best_epoch": best,
        "dev": outcome.dev,
        "test": test,
        "seconds": outcome.seconds,
    }))
}

/// Draws training.
pub struct Bar<'a> {
    output: &'a Output,
    label: String,
    bar: Option<ProgressBar>,
}

impl<'a> Bar<'a> {
    /// A bar with `label` before it.
    pub fn new(output: &'a Output, label: &str) -> Self {
        Self {
            output,
            label: label.to_owned(),
            bar: None,
        }
    }
}

impl Progress for Bar<'_> {
    fn begin(&mut self, epochs: usize, steps: usize) {
        self.bar = Some(self.output.progress((epochs * steps) as u64, &self.label));
    }

    fn step(&mut self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn epoch(&mut self, epoch: usize, train_loss: f64, dev: &Evaluation) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "epoch {epoch}: loss {train_loss:.3}, dev {:.3}",
                dev.accuracy
            ));
        }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
