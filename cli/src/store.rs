//! What the verbs of the store share: where it is, and how they answer.

use std::{path::PathBuf, process::ExitCode};

use preface_bundle::Id;
use preface_runtime::{
    explained,
    store::{DEFAULT_FOLDER, Store, StoreError, Switched},
};
use serde_json::json;

use crate::output::Output;

/// Where the store is.
#[derive(clap::Args)]
pub struct Place {
    /// The store's folder.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    store: PathBuf,
}

impl Place {
    /// The store.
    pub fn store(&self) -> Store {
        Store::at(&self.store)
    }
}

/// A task of the store, and what is thought to be its active bundle.
#[derive(clap::Args)]
pub struct Known {
    #[command(flatten)]
    pub place: Place,
    /// Change nothing unless this bundle is active.
    #[arg(long, value_name = "ID", value_parser = super::verbs::verify::id)]
    pub expect: Option<Id>,
}

/// Says that the answer is no, and why; the exit code says it too.
///
/// # Errors
/// When the report cannot be written.
pub fn refuse(error: &StoreError, output: &Output) -> anyhow::Result<ExitCode> {
    let (code, message) = (error.exit_code(), explained(error));
    output.note(format_args!("preface: {message}"));
    output.json(&json!({
        "done": false, "exit_code": code, "reason": error.reason(), "message": message,
    }))?;
    Ok(ExitCode::from(code))
}

/// Says what became of a task.
///
/// # Errors
/// When the report cannot be written.
pub fn report(
    switched: Result<Switched, StoreError>,
    done: &str,
    unchanged: &str,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let switched = match switched {
        Ok(switched) => switched,
        Err(error) => return refuse(&error, output),
    };
    let Switched {
        task,
        active,
        before,
        trial,
        changed,
    } = switched;
    let what = if changed { done } else { unchanged };
    let waits = match trial {
        true => "; it was never confirmed here and is on trial: preface confirm keeps it",
        false => "",
    };
    let message = format!("task {task}: bundle {active} {what}{waits}");
    output.say(&message);
    output.json(&json!({
        "done": true, "exit_code": 0, "reason": "done", "message": message, "task": task,
        "active": active.to_string(), "before": before.map(|id| id.to_string()),
        "trial": trial, "changed": changed,
    }))?;
    Ok(ExitCode::SUCCESS)
}
