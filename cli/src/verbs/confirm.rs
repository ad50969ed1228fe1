//! `preface confirm`: the bundle on trial stays.

use std::process::ExitCode;

use clap::Args;

use crate::{
    output::Output,
    store::{Known, report},
};

/// Confirm the bundle that `install --no-confirm` left on trial
#[derive(Args)]
#[command(after_help = "\
The rollback floor rises to the bundle. Without this, the bundle before it is active again once the \
new one was started three times.

Exit: 0 done, also where it was confirmed before; 2 no such task, or another bundle is active than \
--expect says; 18 the store's state is lost or another device's; 20 it cannot be read or written; \
21 others can write it.

Example:
  preface confirm intent")]
pub struct Arguments {
    /// The task
    task: String,
    #[command(flatten)]
    known: Known,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Arguments { task, known } = arguments;
    let switched = known.place.store().confirm(task, known.expect);
    report(switched, "is confirmed", "was confirmed already", output)
}
