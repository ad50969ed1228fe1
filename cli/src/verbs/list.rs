//! `preface list`: what is in the store?

use std::process::ExitCode;

use clap::Args;
use preface_bundle::UtcTime;
use preface_runtime::store::{Release, State, TaskState};
use serde_json::{Value, json};

use crate::{
    output::Output,
    store::{Place, refuse},
    verbs::index::of_floor,
};

/// Show the tasks of the store and the bundles that it keeps for them
#[derive(Args)]
#[command(after_help = "\
A star marks the active bundle; `trial` is said of one that waits to be confirmed, `unproven` of one \
that never was. The floor is the latest confirmed bundle: older ones cannot be installed.

Exit: 0; 18 the store's state is lost or another device's; 20 there is no store, or it cannot be \
read; 21 others can write it.

Example:
  preface list
  preface list --store /var/lib/preface --json")]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let store = arguments.place.store();
    let state = match store.state() {
        Ok(state) => state,
        Err(error) => return refuse(&error, output),
    };
    for task in &state.tasks {
        show(task, output);
    }
    if state.tasks.is_empty() {
        output.say(format_args!("{} has no task", store.folder().display()));
    }
    if let Some(index) = &state.index {
        output.say(format_args!(
            "the last index is {}, valid until {}",
            index.version,
            UtcTime(index.expires)
        ));
    }
    output.json(&described(&state))?;
    Ok(ExitCode::SUCCESS)
}

fn show(task: &TaskState, output: &Output) {
    let floor = task.confirmed.map_or("none".to_owned(), |floor| {
        format!("{}.{}", floor.trust_version, floor.sequence)
    });
    output.say(format_args!("{}  floor {floor}", task.task));
    for release in &task.kept {
        let star = if Some(release.id) == task.active {
            '*'
        } else {
            ' '
        };
        let Release {
            id,
            trust_version,
            sequence,
            ..
        } = release;
        let status = status(task, release);
        output.say(format_args!(
            " {star} {id}  {trust_version}.{sequence}  {status}"
        ));
    }
}

fn status(task: &TaskState, release: &Release) -> &'static str {
    match (Some(release.id) == task.active, release.proven) {
        (true, _) if task.trial => "trial",
        (_, true) if task.previous == Some(release.id) => "previous",
        (_, true) => "confirmed",
        (_, false) => "unproven",
    }
}

fn described(state: &State) -> Value {
    let release = |task: &TaskState, release: &Release| {
        json!({
            "bundle_id": release.id.to_string(), "trust_version": release.trust_version,
            "sequence": release.sequence, "active": Some(release.id) == task.active,
            "status": status(task, release),
        })
    };
    let tasks: Vec<Value> = state
        .tasks
        .iter()
        .map(|task| {
            let floor = task.confirmed.map(
                |floor| json!({"trust_version": floor.trust_version, "sequence": floor.sequence}),
            );
            json!({
                "task": task.task, "active": task.active.map(|id| id.to_string()),
                "previous": task.previous.map(|id| id.to_string()), "trial": task.trial,
                "starts": task.starts, "floor": floor,
                "bundles": task.kept.iter().map(|kept| release(task, kept)).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "done": true, "exit_code": 0, "generation": state.generation,
        "namespace": state.namespace.to_string(), "trust_version": state.trust_version,
        "min_security": state.min_security, "time_floor": state.time_floor,
        "index": state.index.as_ref().map(of_floor), "tasks": tasks,
    })
}
