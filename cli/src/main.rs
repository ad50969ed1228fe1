//! `preface`: teach one frozen language model many narrow tasks, a few kilobytes each.

// Implements the global allocator: see the SAFETY comments there.
#[allow(unsafe_code)]
mod allocations;
// Calls the C library: see the SAFETY comments there.
#[allow(unsafe_code)]
mod heap;
// Maps base images: see the SAFETY comment there.
#[allow(unsafe_code)]
mod image;
#[cfg(feature = "host")]
mod journal;
#[cfg(feature = "host")]
mod json_lines;
mod memory;
#[cfg(feature = "host")]
mod onnxruntime;
mod output;
#[cfg(feature = "host")]
mod report;
mod tasks;
mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use preface_runtime::LoadError;
use serde_json::json;

use crate::output::Output;

/// Teach one frozen language model many narrow tasks, a few kilobytes each.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Program {
    /// Print one JSON object on stdout; text for people goes to stderr.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "host")]
    Check(verbs::check::Arguments),
    #[cfg(feature = "host")]
    Train(Box<verbs::train::Arguments>),
    #[cfg(feature = "host")]
    Eval(verbs::eval::Arguments),
    #[cfg(feature = "host")]
    Keygen(verbs::keygen::Arguments),
    Trust(verbs::trust::Arguments),
    #[cfg(feature = "host")]
    Pack(verbs::pack::Arguments),
    #[cfg(feature = "host")]
    Import(verbs::import::Arguments),
    #[cfg(feature = "host")]
    Export(verbs::export::Arguments),
    Verify(verbs::verify::Arguments),
    Inspect(verbs::inspect::Arguments),
    #[cfg(feature = "compile")]
    Compile(verbs::compile::Arguments),
    Run(verbs::run::Arguments),
    Bench(verbs::bench::Arguments),
    Doctor(verbs::doctor::Arguments),
    #[cfg(feature = "host")]
    Demo(verbs::demo::Arguments),
}

impl Command {
    fn run(self, output: &Output) -> anyhow::Result<ExitCode> {
        match self {
            #[cfg(feature = "host")]
            Self::Check(arguments) => verbs::check::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Train(arguments) => verbs::train::run(*arguments, output),
            #[cfg(feature = "host")]
            Self::Eval(arguments) => verbs::eval::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Keygen(arguments) => verbs::keygen::run(arguments, output),
            Self::Trust(arguments) => verbs::trust::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Pack(arguments) => verbs::pack::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Import(arguments) => verbs::import::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Export(arguments) => verbs::export::run(arguments, output),
            Self::Verify(arguments) => verbs::verify::run(arguments, output),
            Self::Inspect(arguments) => verbs::inspect::run(arguments, output),
            #[cfg(feature = "compile")]
            Self::Compile(arguments) => verbs::compile::run(arguments, output),
            Self::Run(arguments) => verbs::run::run(arguments, output),
            Self::Bench(arguments) => verbs::bench::run(arguments, output),
            Self::Doctor(arguments) => verbs::doctor::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Demo(arguments) => verbs::demo::run(arguments, output),
        }
    }
}

fn main() -> ExitCode {
    let program = Program::parse();
    let output = Output::new(program.json);
    let code = program
        .command
        .run(&output)
        .unwrap_or_else(|error| failed(&error, &output));
    output.end(code)
}

/// Reports an error; a bundle that is refused is an answer, 1, and everything else 2.
fn failed(error: &anyhow::Error, output: &Output) -> ExitCode {
    let loading = error.downcast_ref::<LoadError>();
    let exit_code = match loading.is_some_and(LoadError::is_refusal) {
        true => 1,
        false => 2,
    };
    output.note(format_args!("preface: {error:#}"));
    let report = json!({"error": format!("{error:#}"), "exit_code": exit_code});
    // A string and a number can always be serialised.
    let _ = output.json(&report);
    ExitCode::from(exit_code)
}
