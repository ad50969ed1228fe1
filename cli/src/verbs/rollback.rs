//! `preface rollback`: the bundle before.

use std::process::ExitCode;

use clap::Args;

use crate::{
    output::Output,
    store::{Known, report},
};

/// Go back to the bundle of a task that was active before
#[derive(Args)]
#[command(after_help = "\
Without one that was active before, the latest confirmed bundle before the active one. The rollback \
floor stays where it is.

Exit: 0 done; 2 no such task, nothing to go back to, or another bundle is active than --expect says; \
18 the store's state is lost or another device's; 20 it cannot be read or written; 21 others can \
write it.

Example:
  preface rollback intent")]
pub struct Arguments {
    /// The task
    task: String,
    #[command(flatten)]
    known: Known,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Arguments { task, known } = arguments;
    let switched = known.place.store().roll_back(task, known.expect);
    report(switched, "is active again", "was active already", output)
}
