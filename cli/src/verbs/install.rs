//! `preface install`: a bundle becomes the active one of its task on this device.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use preface_bundle::Check;
use preface_runtime::{
    LoadError, Trust, explained,
    store::{Confirm, Install, Installed, MAX_STARTS, Provision, StoreError},
    unix_now,
};
use serde_json::{Value, json};

use crate::{output::Output, store::Place};

/// Verify a bundle, try it on this device, and make it the active one of its task
#[derive(Args)]
#[command(after_help = "\
The bundle's probes must give their answers on this device. Whatever happens, the bundle that was \
active before or the new one is active afterwards; the same bundle again changes nothing.

Exit: 0 installed; 10 malformed; 11 not signed by enough trusted keys; 12 bad signature; 13 payload \
changed; 14 made for another base, tokenizer, namespace or runtime, or another answer to a probe; \
15 older than installed or allowed, not the one that the index names, or trust store or index \
are older than one used before; 16 the bundle or the index is expired; \
17 revoked; 18 trust store missing or invalid, or the store's state lost, put back or another \
device's; 20 something cannot be read or written; 21 others can write the trust store or the store; \
2 wrong usage.

Example:
  preface install intent.preface --base minilm.base --trust release.trust
  preface install intent.preface --base minilm.base --trust release.trust --no-confirm
  preface confirm intent")]
pub struct Arguments {
    /// The bundle
    file: PathBuf,
    /// The base image that the device runs
    #[arg(long, value_name = "IMAGE")]
    base: PathBuf,
    /// The trust store: whose signatures count
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The fleet's index: the bundle must be the one that it names; see preface index
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Leave it on trial until `preface confirm`; after three starts the one before is active again
    #[arg(long)]
    no_confirm: bool,
    /// Begin anew where the store's state was lost: forgets every task, and which bundles are too old
    #[arg(long)]
    reprovision: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let report = match installed(arguments) {
        Ok(installed) => done(&installed),
        Err(refusal) => refusal,
    };
    let code = report["exit_code"]
        .as_u64()
        .and_then(|code| u8::try_from(code).ok());
    let message = report["message"].as_str().unwrap_or_default();
    match code {
        Some(0) => output.say(message),
        _ => output.note(format_args!("preface: {message}")),
    }
    output.json(&report)?;
    Ok(ExitCode::from(code.unwrap_or(2)))
}

fn installed(arguments: &Arguments) -> Result<Installed, Value> {
    let image = crate::image::open(&arguments.base)
        .map_err(|error| refused(20, "base-unreadable", None, explained(&error)))?;
    let of_store = |error: &StoreError| {
        let check = match error {
            StoreError::Bundle(LoadError::NotVerified { source, .. }) => source.check(),
            StoreError::Rival { .. }
            | StoreError::NotNewest { .. }
            | StoreError::NotInIndex { .. } => Some(Check::Rollback),
            _ => None,
        };
        refused(error.exit_code(), error.reason(), check, explained(error))
    };
    let trust = Trust::read(&arguments.trust).map_err(|error| of_store(&error.into()))?;
    let request = Install {
        index: arguments.index.as_deref(),
        confirm: match arguments.no_confirm {
            true => Confirm::ByHand,
            false => Confirm::AfterProbes,
        },
        provision: match arguments.reprovision {
            true => Provision::Anew,
            false => Provision::Keep,
        },
        ..Install::new(&arguments.file, &trust, unix_now())
    };
    let store = arguments.place.store();
    store
        .install(&image, &request)
        .map_err(|error| of_store(&error))
}

fn refused(code: u8, reason: &str, check: Option<Check>, message: String) -> Value {
    json!({
        "verified": false, "exit_code": code, "reason": reason, "message": message,
        "checks": checks(Some(check)),
    })
}

/// The checks of a verification with their results, of one that failed with the check that did, where one did.
fn checks(failed: Option<Option<Check>>) -> Vec<Value> {
    let result = |check: Check| match failed {
        None => "passed",
        Some(None) => "not-reached",
        Some(Some(failed)) if failed == check => "failed",
        Some(Some(failed)) if failed < check => "not-reached",
        Some(Some(_)) => "passed",
    };
    let all = Check::ALL.into_iter();
    all.map(|check| json!({"name": check.name(), "result": result(check)}))
        .collect()
}

fn done(installed: &Installed) -> Value {
    let Installed {
        task,
        release,
        before,
        trial,
        probes,
        changed,
    } = installed;
    let is_new = *before != Some(release.id);
    let verb = match (is_new, *changed) {
        (true, _) => "installed",
        (false, true) => "was active already, and the store is up to date again",
        (false, false) => "was active already",
    };
    let tried = match (*probes, is_new) {
        (0, false) => String::new(),
        (0, true) => "; it has no probes that could be tried here".to_owned(),
        (1, _) => "; its probe is answered as its maker says".to_owned(),
        (count, _) => format!("; its {count} probes are answered as its maker says"),
    };
    let waits = match trial {
        true => format!("; on trial for {MAX_STARTS} starts: preface confirm {task} keeps it"),
        false => String::new(),
    };
    let sequence = release.sequence;
    json!({
        "verified": true, "exit_code": 0, "reason": "installed",
        "message": format!("task {task}: bundle {}, sequence {sequence}, {verb}{tried}{waits}", release.id),
        "task": task, "bundle_id": release.id.to_string(), "trust_version": release.trust_version,
        "sequence": sequence, "before": before.map(|id| id.to_string()), "trial": trial,
        "probes": probes, "changed": changed, "checks": checks(None),
    })
}
