//! `preface pull`: a bundle comes from a registry.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use preface_bundle::{Index, TrustStore};
use preface_packager::write_file;
use preface_runtime::unix_now;
use serde_json::json;

use crate::{
    output::{Output, lossy},
    refused::{Refused, valid_trust},
    registry::{Access, Kind, Registry, chosen},
    verified::verified,
};

/// Get a bundle, or the fleet's index, from an OCI registry
#[derive(Args)]
#[command(after_help = "\
What comes is compared with its digest, and the digest with the one that is pinned after @. Whether it can be trusted \
says preface verify or install, or --trust at once; then nothing is written that does not verify.

Exit: 0 written; 1 the registry answers something else than asked: another digest, size or media type, or it sends on \
to another place; 2 it cannot be reached, or does not have it; with --trust also those of preface verify.

Example:
  preface pull registry.example/fleet/intent:7 -o intent.preface --trust release.trust
  preface pull localhost:5000/fleet:1 --plain-http --task mood -o mood.preface
  preface pull localhost:5000/fleet:1 --plain-http --index -o fleet.index")]
pub struct Arguments {
    /// The place: REGISTRY/REPOSITORY, then :TAG or @sha256:DIGEST
    place: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The bundle of this task, where the place has several
    #[arg(long, value_name = "ID", conflicts_with = "index")]
    task: Option<String>,
    /// The index in place of a bundle
    #[arg(long)]
    index: bool,
    /// Verify with this trust store, and write nothing that does not verify
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let trust = arguments.trust.as_deref().map(valid_trust).transpose()?;
    let registry = Registry::at(&arguments.place, &arguments.access)?;
    let manifest = registry.manifest()?;
    let kind = match arguments.index {
        true => Kind::Index,
        false => Kind::Bundle,
    };
    let listed = chosen(&manifest.content, kind, arguments.task.as_deref())
        .map_err(|error| error.context(registry.place()))?;
    let bytes = registry.blob(listed)?;
    let path = arguments.output.as_path();
    if let Some(trust) = &trust {
        check(
            path,
            &bytes,
            kind,
            arguments.task.as_deref(),
            &TrustStore::parse(trust)?,
        )?;
    }
    write_file(path, &bytes, preface_packager::Access::Everyone)?;
    let pinned = registry.pinned(&manifest.digest);
    let verified = trust.is_some();
    output.say(format_args!(
        "wrote {}: {} bytes, from {pinned}",
        path.display(),
        bytes.len()
    ));
    if !verified {
        output.note(
            "note: it is NOT VERIFIED; preface verify or install says whether it can be trusted",
        );
    }
    output.json(&json!({
        "done": true, "exit_code": 0, "verified": verified, "file": lossy(path),
        "bytes": bytes.len(), "blob": listed.digest, "digest": manifest.digest, "pinned": pinned,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Verifies what came; a bundle must be of the task that was asked for, whatever the registry says.
fn check(
    path: &Path,
    bytes: &[u8],
    kind: Kind,
    task: Option<&str>,
    store: &TrustStore<'_>,
) -> anyhow::Result<()> {
    if kind == Kind::Index {
        let refuse = |error: preface_bundle::Error| Refused::at(path, error.exit_code(), &error);
        let text = String::from_utf8_lossy(bytes);
        let index = Index::parse(&text).map_err(refuse)?;
        index.verify(store, None, unix_now()).map_err(refuse)?;
        return Ok(());
    }
    let release = verified(path, bytes, store)?;
    match task.filter(|task| *task != release.task) {
        Some(task) => {
            let found = release.task;
            let sentence = format!("the registry's bundle of task {task} is one of task {found}");
            Err(Refused::because(1, sentence).into())
        }
        None => Ok(()),
    }
}
