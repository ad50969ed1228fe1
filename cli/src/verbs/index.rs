//! `preface index`: what is the newest, and is this device held back from it?

#[cfg(feature = "host")]
mod host;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use preface_bundle::{Index, IndexFloor, MAX_INDEX_BYTES, TrustStore, UtcTime, VerifiedIndex};
use preface_runtime::{
    Trust,
    bundle::read_text,
    store::{Checked, Standing, StoreError, TaskStanding},
    unix_now,
};
use serde_json::{Value, json};

use crate::{
    output::Output,
    refused::{Refused, valid_trust},
    store::{Place, refuse},
};

/// Say what is the newest bundle of each task, signed anew from time to time, so that devices notice when they are held back
#[derive(Args)]
#[command(after_help = "\
The index is signed by a key that the trust store names in a line `timestamp`, and that can sign nothing else: \
preface trust add --timestamp PUB.

Example:
  preface index new intent.preface mood.preface --trust release.trust --days 14 -o fleet.index
  preface index sign fleet.index --key keys/clock.key
  preface index check fleet.index --trust release.trust")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    #[cfg(feature = "host")]
    New(host::New),
    #[cfg(feature = "host")]
    Sign(host::Sign),
    Show(Show),
    Check(Check),
}

/// Show an index
#[derive(Args)]
#[command(after_help = "\
Exit: 0 shown, and verified where a trust store is given; 10 not an index; 11 not signed by a timestamp key; 12 bad \
signature; 14 of another fleet; 16 expired; 17 its key is revoked; 18 or 21 not a trust store to go by; 20 it cannot \
be read.

Example:
  preface index show fleet.index --trust release.trust")]
struct Show {
    /// The index
    file: PathBuf,
    /// The trust store whose timestamp keys count; without, nothing is verified
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
}

/// On a device: take in an index, and compare what is installed with it
#[derive(Args)]
#[command(after_help = "\
The device remembers the index and accepts no older one. Without FILE it says whether the last one has expired: a \
device that gets no newer one is held back, whoever does it. Run it from time to time.

Exit: 0 everything is the newest; 15 a task has a newer bundle than the active one, or the index is older than one \
seen before; 16 the index is expired; 2 no index was seen yet; 10 not an index; 11 not signed by a timestamp key; 12 \
bad signature; 14 of another fleet; 17 its key is revoked; 18 trust store or state not to go by; 20 something cannot \
be read or written; 21 others can write the trust store or the store.

Example:
  preface index check fleet.index --trust release.trust
  preface index check")]
struct Check {
    /// The index
    #[arg(requires = "trust")]
    file: Option<PathBuf>,
    /// The trust store whose timestamp keys count
    #[arg(long, value_name = "FILE", requires = "file")]
    trust: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    match arguments.action {
        #[cfg(feature = "host")]
        Action::New(new) => host::new(&new, output),
        #[cfg(feature = "host")]
        Action::Sign(sign) => host::sign(&sign, output),
        Action::Show(show) => show_index(&show, output),
        Action::Check(check) => check_index(&check, output),
    }
}

/// Reads an index file.
pub(crate) fn read_index(path: &Path) -> Result<String, Refused> {
    read_text(path, MAX_INDEX_BYTES).map_err(Refused::unread)
}

fn show_index(show: &Show, output: &Output) -> anyhow::Result<ExitCode> {
    let path = &show.file;
    let text = read_index(path)?;
    let refuse = |error: preface_bundle::Error| Refused::at(path, error.exit_code(), &error);
    let index = Index::parse(&text).map_err(refuse)?;
    if let Some(trust) = &show.trust {
        let text = valid_trust(trust)?;
        let store = TrustStore::parse(&text)?;
        index.verify(&store, None, unix_now()).map_err(refuse)?;
    }
    let verified = show.trust.is_some();
    let said = match verified {
        true => "verified",
        false => "NOT VERIFIED: anybody can have written what follows",
    };
    let content = index.unverified();
    output.say(format_args!("{}: {said}", path.display()));
    output.say(format_args!(
        "namespace {}, version {}, made {}, valid until {}",
        content.namespace_name(),
        content.version(),
        UtcTime(content.dated()),
        UtcTime(content.expires())
    ));
    for entry in content.tasks() {
        let (trust_version, sequence) = entry.order();
        output.say(format_args!(
            "{}  {trust_version}.{sequence}  {}",
            entry.task, entry.bundle_id
        ));
    }
    let mut report = described(&content);
    report["verified"] = verified.into();
    report["signature_keys"] = index.signatures().map(|(key, _)| key.to_string()).collect();
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// An index, for scripts.
pub(crate) fn described(index: &VerifiedIndex<'_>) -> Value {
    let tasks = index.tasks().map(|entry| {
        json!({
            "task": entry.task, "trust_version": entry.trust_version, "sequence": entry.sequence,
            "bundle_id": entry.bundle_id.to_string(),
        })
    });
    let mut report = of_floor(&index.floor());
    report["namespace"] = index.namespace_name().into();
    report["tasks"] = tasks.collect();
    report
}

/// What a device remembers of an index, for scripts.
pub(crate) fn of_floor(index: &IndexFloor) -> Value {
    json!({
        "index_id": index.id.to_string(), "trust_version": index.version.trust_version,
        "version": index.version.version, "dated": UtcTime(index.dated).to_string(),
        "expires": UtcTime(index.expires).to_string(),
    })
}

fn check_index(check: &Check, output: &Output) -> anyhow::Result<ExitCode> {
    let store = check.place.store();
    let Some(file) = &check.file else {
        return match store.last_index(unix_now()) {
            Ok(index) => last(&index, output),
            Err(error) => refuse(&error, output),
        };
    };
    let trust = check
        .trust
        .as_ref()
        .context("give the trust store with --trust FILE")?;
    let checked = Trust::read(trust)
        .map_err(StoreError::from)
        .and_then(|trust| store.check_index(file, &trust, unix_now()));
    match checked {
        Ok(checked) => compared(&checked, output),
        Err(error) => refuse(&error, output),
    }
}

fn last(index: &IndexFloor, output: &Output) -> anyhow::Result<ExitCode> {
    let message = format!(
        "index {} was accepted here and is valid until {}",
        index.version,
        UtcTime(index.expires)
    );
    output.say(&message);
    output.json(&json!({
        "done": true, "exit_code": 0, "reason": "valid", "message": message, "index": of_floor(index),
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Says how the tasks stand to an index that was accepted.
fn compared(checked: &Checked, output: &Output) -> anyhow::Result<ExitCode> {
    for task in &checked.tasks {
        let line = sentence(task);
        match task.standing {
            Standing::Newest => output.say(line),
            _ => output.note(line),
        }
    }
    let behind: Vec<_> = checked.behind().map(|task| task.task.as_str()).collect();
    let (code, reason) = match behind.is_empty() {
        true => (0, "newest"),
        false => (15, "held-back"),
    };
    let message = match behind.is_empty() {
        true => format!("index {}: nothing newer is out", checked.index.version),
        false => format!(
            "this device is behind index {} in {}: install the newest bundles",
            checked.index.version,
            behind.join(", ")
        ),
    };
    match code {
        0 => output.say(&message),
        _ => output.note(format_args!("preface: {message}")),
    }
    let tasks = checked.tasks.iter().map(|task| {
        json!({
            "task": task.task, "active": task.active.id.to_string(), "standing": word(task.standing),
            "newest": task.newest.map(|(id, _, _)| id.to_string()),
        })
    });
    output.json(&json!({
        "done": code == 0, "exit_code": code, "reason": reason, "message": message,
        "index": of_floor(&checked.index), "changed": checked.changed, "tasks": tasks.collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::from(code))
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Newest => "newest",
        Standing::Behind => "behind",
        Standing::Ahead => "ahead",
        Standing::Rival => "rival",
        Standing::Unlisted => "unlisted",
    }
}

fn sentence(task: &TaskStanding) -> String {
    let (trust_version, sequence) = task.active.order();
    let active = format!("task {}: {trust_version}.{sequence}", task.task);
    let newest = task
        .newest
        .map(|(id, trust_version, sequence)| format!("{trust_version}.{sequence}, bundle {id}"));
    let newest = newest.unwrap_or_default();
    match task.standing {
        Standing::Newest => format!("{active} is the newest"),
        Standing::Behind => format!("{active} is old: the newest is {newest}"),
        Standing::Rival => format!("{active} is not the newest of these numbers: that is {newest}"),
        Standing::Ahead => format!("note: {active} is newer than the index says: {newest}"),
        Standing::Unlisted => format!("note: {active} is not in the index"),
    }
}
