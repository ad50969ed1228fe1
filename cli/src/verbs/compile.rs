//! `preface compile`: lays a base model out for mapping.

#[cfg(feature = "host")]
pub mod evaluate;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::ProgressBar;
use preface_graph::Base;
use preface_runtime::{
    Image, Weights,
    compile::{Progress, Source, Summary},
};
use serde_json::{Value, json};

use crate::output::{Output, lossy};

/// Lay a base model out as a base image for this machine.
#[derive(clap::Args)]
#[command(after_help = "\
The image is for the processor that this command runs on: on a board, run it there. For another \
64-bit ARM processor, run the ARM build under qemu and name the processor:
  TRACT_CPU_AARCH64_KIND=a53 qemu-aarch64 preface compile minilm -o minilm.base

Weights in fewer bits make the image smaller, not the memory that a process has of its own, and cost some accuracy:
  f16   half the image; answers hardly change
  i8    about a quarter, with a scale for each output
  i8a8  the same numbers, multiplied as integers with rows that are rounded to 8 bits: fastest
        where doctor names avx512_vnni or dotprod for it
  i4    about a fifth, with a scale for 32 inputs of each output; embeddings in 8 bits

Example:
  preface compile minilm -o minilm.base
  preface compile minilm -o minilm-i8.base --weights i8
  preface compile minilm -o minilm-i4.base --weights i4 --evaluate intents.preface=test.jsonl \\
                  --trust trust.txt --max-loss 1")]
pub struct Arguments {
    /// Base folder: model.onnx and tokenizer.json.
    base: PathBuf,
    /// Where the image goes.
    #[arg(short, long, value_name = "IMAGE")]
    output: PathBuf,
    /// What runs the image: the executor where the base lowers to its steps, or tract's own plan.
    #[arg(long, default_value = "auto")]
    engine: Choice,
    /// How weights are stored; they are multiplied as 32-bit floats, but for i8a8.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = weights())]
    weights: Weights,
    #[cfg(feature = "host")]
    #[command(flatten)]
    evaluation: evaluate::Arguments,
}

/// Reads the name of a way to store weights.
fn weights() -> impl TypedValueParser<Value = Weights> {
    let named = |name: String| {
        Weights::ALL
            .into_iter()
            .find(|weights| weights.name() == name)
    };
    PossibleValuesParser::new(Weights::ALL.map(Weights::name))
        .map(move |name| named(name).expect("the parser passes these names alone"))
}

/// Which engine an image is for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Choice {
    /// The executor where it can.
    Auto,
    /// tract's own plan.
    Plan,
}

/// Reads the base, packs its weights, writes the image and tries it out.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let base = Base::open(&arguments.base)?;
    let (engine, weights) = (arguments.engine, arguments.weights);
    #[cfg(feature = "host")]
    if arguments.evaluation.is_asked() {
        let path = &arguments.output;
        return arguments
            .evaluation
            .run(&base, path, (engine, weights), output);
    }
    let summary = compile(&base, &arguments.output, (engine, weights), output)?;
    say(&summary, output);
    output.json(&described(&summary))?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles `base` to an image at `path`, drawing how far it is.
///
/// # Errors
/// When the base cannot be compiled, the image not be written, or what is written does not run.
pub fn compile(
    base: &Base,
    path: &Path,
    choice: (Choice, Weights),
    output: &Output,
) -> anyhow::Result<Summary> {
    let summary = compile_if(base, path, choice, output, |_| true)?;
    summary.context("the image is kept")
}

/// The same where `keep` says so once the image is there: else an older one stays.
///
/// # Errors
/// As [`compile()`].
pub fn compile_if(
    base: &Base,
    path: &Path,
    (engine, weights): (Choice, Weights),
    output: &Output,
    keep: impl FnOnce(&Image) -> bool,
) -> anyhow::Result<Option<Summary>> {
    let mut source = Source::of_base(base)?.with_weights(weights);
    if matches!(engine, Choice::Plan) {
        source = source.for_plan();
    }
    let mut bar = Bar { output, bar: None };
    let summary = source.write_if(path, &mut bar, keep)?;
    if let Some(bar) = bar.bar {
        bar.finish_and_clear();
    }
    Ok(summary)
}

fn say(summary: &Summary, output: &Output) {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    output.say(format_args!(
        "{}: {:.1} MiB: embeddings {:.1}, {} packed weights {:.1} in {}, program {:.1}",
        summary.path.display(),
        mebibytes(summary.bytes),
        mebibytes(summary.embedding_bytes),
        summary.packed,
        mebibytes(summary.packed_bytes),
        summary.weights,
        mebibytes(summary.program_bytes),
    ));
    output.say(format_args!(
        "engine {}, kernels {}",
        summary.engine,
        summary.kernels.join(", ")
    ));
    if let Some(reason) = &summary.reason {
        output.say(format_args!("not the executor: {reason}"));
    }
}

fn described(summary: &Summary) -> Value {
    json!({
        "path": lossy(&summary.path),
        "bytes": summary.bytes,
        "embedding_bytes": summary.embedding_bytes,
        "packed_bytes": summary.packed_bytes,
        "program_bytes": summary.program_bytes,
        "packed": summary.packed,
        "kernels": summary.kernels,
        "engine": summary.engine.to_string(),
        "weights": summary.weights,
        "reason": summary.reason,
    })
}

/// Draws how many weights are packed.
struct Bar<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
}

impl Progress for Bar<'_> {
    fn packed(&mut self, done: usize, total: usize) {
        let start = || self.output.progress(total as u64, "packing weights");
        self.bar.get_or_insert_with(start).set_position(done as u64);
    }
}
