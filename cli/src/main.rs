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
#[cfg(feature = "host")]
mod keys;
#[cfg(feature = "host")]
mod leak;
mod memory;
#[cfg(feature = "host")]
mod onnxruntime;
mod output;
mod refused;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "host")]
mod report;
mod store;
mod tasks;
mod verbs;
#[cfg(feature = "host")]
mod verified;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use preface_runtime::LoadError;
use serde_json::json;

use crate::{output::Output, refused::Refused};

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
    Statement(verbs::statement::Arguments),
    #[cfg(feature = "host")]
    Sign(verbs::sign::Arguments),
    #[cfg(feature = "host")]
    Attach(verbs::attach::Arguments),
    #[cfg(feature = "host")]
    Minisig(verbs::minisig::Arguments),
    #[cfg(feature = "host")]
    Import(verbs::import::Arguments),
    #[cfg(feature = "host")]
    Export(verbs::export::Arguments),
    Verify(verbs::verify::Arguments),
    Inspect(verbs::inspect::Arguments),
    #[cfg(feature = "registry")]
    Push(verbs::push::Arguments),
    #[cfg(feature = "registry")]
    Pull(verbs::pull::Arguments),
    Index(verbs::index::Arguments),
    #[cfg(feature = "compile")]
    Compile(verbs::compile::Arguments),
    Run(verbs::run::Arguments),
    Install(verbs::install::Arguments),
    List(verbs::list::Arguments),
    Activate(verbs::activate::Arguments),
    Rollback(verbs::rollback::Arguments),
    Confirm(verbs::confirm::Arguments),
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
            Self::Statement(arguments) => verbs::statement::run(&arguments, output),
            #[cfg(feature = "host")]
            Self::Sign(arguments) => verbs::sign::run(&arguments, output),
            #[cfg(feature = "host")]
            Self::Attach(arguments) => verbs::attach::run(&arguments, output),
            #[cfg(feature = "host")]
            Self::Minisig(arguments) => verbs::minisig::run(&arguments, output),
            #[cfg(feature = "host")]
            Self::Import(arguments) => verbs::import::run(arguments, output),
            #[cfg(feature = "host")]
            Self::Export(arguments) => verbs::export::run(arguments, output),
            Self::Verify(arguments) => verbs::verify::run(arguments, output),
            Self::Inspect(arguments) => verbs::inspect::run(arguments, output),
            #[cfg(feature = "registry")]
            Self::Push(arguments) => verbs::push::run(&arguments, output),
            #[cfg(feature = "registry")]
            Self::Pull(arguments) => verbs::pull::run(&arguments, output),
            Self::Index(arguments) => verbs::index::run(arguments, output),
            #[cfg(feature = "compile")]
            Self::Compile(arguments) => verbs::compile::run(arguments, output),
            Self::Run(arguments) => verbs::run::run(arguments, output),
            Self::Install(arguments) => verbs::install::run(&arguments, output),
            Self::List(arguments) => verbs::list::run(&arguments, output),
            Self::Activate(arguments) => verbs::activate::run(&arguments, output),
            Self::Rollback(arguments) => verbs::rollback::run(&arguments, output),
            Self::Confirm(arguments) => verbs::confirm::run(&arguments, output),
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

/// Reports an error with its exit code.
fn failed(error: &anyhow::Error, output: &Output) -> ExitCode {
    let exit_code = exit_code(error);
    output.note(format_args!("preface: {error:#}"));
    let report = json!({"error": format!("{error:#}"), "exit_code": exit_code});
    // A string and a number can always be serialised.
    let _ = output.json(&report);
    ExitCode::from(exit_code)
}

/// A bundle that is refused is an answer, 1; keys, signatures and trust stores have the codes of `verify`;
/// everything else is 2.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Refused { exit_code, .. }) = error.downcast_ref() {
        return *exit_code;
    }
    #[cfg(feature = "host")]
    if let Some(error) = error.downcast_ref::<preface_packager::Error>() {
        return error.exit_code();
    }
    let loading = error.downcast_ref::<LoadError>();
    match loading.is_some_and(LoadError::is_refusal) {
        true => 1,
        false => 2,
    }
}
