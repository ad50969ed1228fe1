//! `preface eval`: how often is an adapter or a bundle right?

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use preface_graph::Base;
use preface_runtime::{Session, TaskHandle};
use preface_trainer::{
    adapter::Adapter,
    batch::{Encoded, Overlength, encode, room},
    data::Dataset,
    engine::Library,
    evaluation::{Evaluation, Prediction, evaluate},
    tokens::Tokens,
};

use crate::{
    onnxruntime::OnnxRuntime,
    output::Output,
    tasks::{Files, Tasks},
};

/// Measure an adapter through ONNX Runtime, or a signed bundle on a base image.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  preface eval --base out/base --adapter out/intent --data test.jsonl
  preface eval --base minilm.base --bundle intent.preface --trust release.trust --data test.jsonl")]
pub struct Arguments {
    /// Base folder (with --adapter) or base image (with --bundle).
    #[arg(long, value_name = "BASE|IMAGE")]
    base: PathBuf,
    /// Adapter folder, run in f32 through ONNX Runtime.
    #[arg(
        long,
        value_name = "ADAPTER",
        conflicts_with = "bundle",
        required_unless_present = "bundle"
    )]
    adapter: Option<PathBuf>,
    /// Bundle, run on the base image.
    #[arg(long, value_name = "FILE", requires = "trust")]
    bundle: Option<PathBuf>,
    /// Trust store with the keys that may sign the bundle.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Labelled texts.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Cut texts that are too long instead of refusing them.
    #[arg(long)]
    truncate: bool,
    #[command(flatten)]
    onnxruntime: OnnxRuntime,
}

/// Runs every text and counts.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let data = Dataset::read(&arguments.data)?;
    let evaluation = match (&arguments.adapter, arguments.bundle, arguments.trust) {
        (Some(folder), _, _) => {
            let adapter = Adapter::read(folder)?;
            let base = Base::open(&arguments.base)?;
            adapter.fits(&base.description, folder)?;
            let library = arguments.onnxruntime.load()?;
            let overlength = if arguments.truncate {
                Overlength::Truncate
            } else {
                Overlength::Refuse
            };
            on_onnxruntime(
                &adapter,
                &base,
                &library,
                &data,
                overlength,
                arguments.onnxruntime.threads(),
                output,
            )?
        }
        (None, Some(bundle), Some(trust)) => {
            let files = Files {
                base: arguments.base,
                bundles: vec![bundle],
                trust,
                max_tokens: None,
                truncate: arguments.truncate,
            };
            let Tasks {
                mut session,
                handles,
                ..
            } = files.open()?;
            on_runtime(&mut session, handles[0], &data, output)?
        }
        _ => bail!("pass --adapter, or --bundle with --trust"),
    };
    output.say(format_args!("accuracy {:.4}", evaluation.accuracy));
    output.say(format_args!("macro F1 {:.4}", evaluation.macro_f1));
    output.say(format_args!("examples {}", evaluation.examples));
    output.json(&evaluation)?;
    Ok(ExitCode::SUCCESS)
}

/// Evaluates an adapter in f32 through ONNX Runtime.
pub fn on_onnxruntime(
    adapter: &Adapter,
    base: &Base,
    library: &Library,
    data: &Dataset,
    overlength: Overlength,
    threads: usize,
    output: &Output,
) -> anyhow::Result<Evaluation> {
    let tokens = Tokens::read(&base.tokenizer)?;
    let room = room(&base.description, &adapter.prompt.form);
    let card = &adapter.card;
    let rows = encode(
        data,
        &card.labels,
        &card.template,
        &tokens,
        room,
        overlength,
    )?;
    let bar = output.progress(rows.len() as u64, "evaluating");
    let predictions = evaluate(adapter, base, library, &rows, threads, |done| {
        bar.set_position(done as u64)
    })?;
    bar.finish_and_clear();
    Ok(Evaluation::of(
        &predictions,
        &rows,
        adapter.card.labels.len(),
    ))
}

/// Evaluates a loaded task on the runtime.
pub fn on_runtime(
    session: &mut Session,
    task: TaskHandle,
    data: &Dataset,
    output: &Output,
) -> anyhow::Result<Evaluation> {
    session.activate(task)?;
    let bar = output.progress(data.examples.len() as u64, "evaluating");
    let labels = session.labels(task).to_vec();
    let (mut predictions, mut truth) = (Vec::new(), Vec::new());
    for (example, label) in data.examples.iter().zip(data.indices(&labels)?) {
        let answer = session.classify(&example.text);
        let answer =
            answer.with_context(|| format!("{}, line {}", data.path.display(), example.line))?;
        predictions.push(Prediction {
            label: answer.class,
            score: answer.score,
            loss: 0.0,
        });
        truth.push(Encoded {
            ids: Vec::new(),
            label,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Evaluation::of(&predictions, &truth, labels.len()))
}
