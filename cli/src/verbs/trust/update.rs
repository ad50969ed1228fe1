//! `preface trust update`: the next trust store takes the place of the one in force.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use preface_bundle::{TrustStore, read_signature};
use preface_runtime::{Update as Outcome, bundle::read, update_trust};
use serde_json::json;

use crate::{
    output::{Output, lossy},
    refused::Refused,
};

/// Put the next trust store into the place of the one in force, if enough roots of both signed it
#[derive(Args)]
#[command(after_help = "\
The new store must be one version on. It is written beside the old one, flushed and renamed: a reader finds the one or \
the other.

Exit: 0 in force; 2 wrong usage; 11 too few roots of the old or the new store signed, or one has none; 12 a signature \
is by no root of the two, or of another store; 14 another namespace; 15 not the next version; 18 a store is missing or \
invalid; 20 it cannot be written; 21 others can write the store in force.

Example:
  preface trust update /etc/preface/trust next.trust --signature a.sig --signature b.sig")]
pub struct Update {
    /// The trust store in force
    file: PathBuf,
    /// The next one
    next: PathBuf,
    /// A root's signature of the next one: 64 bytes or the base64 of them; give it once for every signature
    #[arg(long, value_name = "FILE", required = true)]
    signature: Vec<PathBuf>,
}

/// Runs the verb.
pub fn run(update: &Update, output: &Output) -> anyhow::Result<ExitCode> {
    let (path, from) = (&update.file, &update.next);
    let next = next_store(from)?;
    let signatures: Vec<_> = update
        .signature
        .iter()
        .map(|path| signature(path))
        .collect::<Result<_, _>>()?;
    let outcome = update_trust(path, from, &next, &signatures)
        .map_err(|error| Refused::at(path, error.exit_code(), &error))?;
    let version = TrustStore::parse(&next)?.version();
    let state = match outcome {
        Outcome::Done => "is in force",
        Outcome::InForceAlready => "was in force already",
    };
    output.say(format_args!(
        "{}: version {version} {state}",
        path.display()
    ));
    let updated = outcome == Outcome::Done;
    output.json(
        &json!({"file": lossy(path), "version": version, "updated": updated, "exit_code": 0}),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The next store's text. Whoever can write it cannot sign it, so that its permissions say nothing.
fn next_store(path: &Path) -> Result<String, Refused> {
    let refused = |error: &dyn std::error::Error| Refused::at(path, 18, error);
    let bytes = read(path).map_err(|error| refused(&error))?;
    String::from_utf8(bytes).map_err(|error| refused(&error))
}

fn signature(path: &Path) -> anyhow::Result<[u8; 64]> {
    let bytes = read(path)?;
    read_signature(&bytes).with_context(|| {
        format!(
            "{}: neither 64 bytes nor the base64 of them",
            path.display()
        )
    })
}
