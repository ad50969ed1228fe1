//! `preface compile`: lays a base model out for mapping.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::ProgressBar;
use preface_graph::Base;
use preface_runtime::compile::{Progress, Source, Summary};
use serde_json::json;

use crate::output::Output;

/// Lay a base model out as a base image for this machine.
#[derive(clap::Args)]
#[command(after_help = "\
The image is for the processor that this command runs on: on a board, run it there. For another 64-bit ARM
processor, run the ARM build under qemu and name the processor:
  TRACT_CPU_AARCH64_KIND=a53 qemu-aarch64 preface compile minilm -o minilm.base

Example:
  preface compile minilm -o minilm.base")]
pub struct Arguments {
    /// Base folder: model.onnx and tokenizer.json.
    base: PathBuf,
    /// Where the image goes.
    #[arg(short, long, value_name = "IMAGE")]
    output: PathBuf,
    /// What runs the image: the executor where the base lowers to its steps, or tract's own plan.
    #[arg(long, default_value = "auto")]
    engine: Choice,
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
    let summary = compile(&base, &arguments.output, arguments.engine, output)?;
    report(&summary, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles `base` to an image at `path`, drawing how far it is.
///
/// # Errors
/// When the base cannot be compiled, the image not be written, or what is written does not run.
pub fn compile(
    base: &Base,
    path: &Path,
    engine: Choice,
    output: &Output,
) -> anyhow::Result<Summary> {
    let mut source = Source::of_base(base)?;
    if matches!(engine, Choice::Plan) {
        source = source.for_plan();
    }
    let mut bar = Bar { output, bar: None };
    let summary = source.write(path, &mut bar)?;
    if let Some(bar) = bar.bar {
        bar.finish_and_clear();
    }
    Ok(summary)
}

fn report(summary: &Summary, output: &Output) -> anyhow::Result<()> {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    output.say(format_args!(
        "{}: {:.1} MiB: embeddings {:.1}, {} packed weights {:.1}, program {:.1}",
        summary.path.display(),
        mebibytes(summary.bytes),
        mebibytes(summary.embedding_bytes),
        summary.packed,
        mebibytes(summary.packed_bytes),
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
    output.json(&json!({
        "path": summary.path,
        "bytes": summary.bytes,
        "embedding_bytes": summary.embedding_bytes,
        "packed_bytes": summary.packed_bytes,
        "program_bytes": summary.program_bytes,
        "packed": summary.packed,
        "kernels": summary.kernels,
        "engine": summary.engine.to_string(),
        "reason": summary.reason,
    }))
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
