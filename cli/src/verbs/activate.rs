//! `preface activate`: which of the kept bundles answers.

use std::process::ExitCode;

use clap::Args;
use preface_bundle::Id;

use crate::{
    output::Output,
    store::{Known, report},
    verbs::verify::id,
};

/// Make a bundle that the store keeps the active one of its task
#[derive(Args)]
#[command(after_help = "\
The rollback floor stays where it is: what is older than the latest confirmed bundle can be \
activated while it is kept, and never be installed again. Programs that run go on with what they \
have loaded until they look at the store again.

Exit: 0 done; 2 no such task or bundle, or another is active than --expect says; 18 the store's \
state is lost or another device's; 20 it cannot be read or written; 21 others can write it.

Example:
  preface list
  preface activate intent 3f0c...e1 --expect 9a41...07")]
pub struct Arguments {
    /// The task
    task: String,
    /// The bundle's id, as `preface list` shows it
    #[arg(value_name = "ID", value_parser = id)]
    id: Id,
    #[command(flatten)]
    known: Known,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Arguments { task, id, known } = arguments;
    let switched = known.place.store().activate(task, *id, known.expect);
    report(switched, "is active", "was active already", output)
}
