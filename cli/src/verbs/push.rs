//! `preface push`: bundles go to a registry.

use std::{ffi::OsString, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use preface_runtime::bundle::read;
use serde_json::json;

use crate::{
    output::Output,
    refused::Refused,
    registry::{Access, Blob, Registry, check_together, has_tag_alone},
};

/// Send bundles, and the fleet's index, to an OCI registry
#[derive(Args)]
#[command(after_help = "\
The files are sent as they are, and listed under one tag. The digest that is printed names exactly these files: \
preface pull REGISTRY/REPOSITORY@DIGEST gets them and nothing else. Who to trust stays a matter of signatures.

Exit: 0 sent; 2 not sent, with the registry's answer; 10 a file is neither a bundle nor an index; 20 a file cannot be \
read; 21 others can read the password.

Example:
  preface push intent.preface registry.example/fleet/intent:7
  preface push intent.preface mood.preface fleet.index localhost:5000/fleet:1 --plain-http")]
pub struct Arguments {
    /// The bundles, and an index; then the place: REGISTRY/REPOSITORY:TAG
    #[arg(required = true, num_args = 2.., value_name = "FILE... PLACE")]
    files: Vec<OsString>,
    #[command(flatten)]
    access: Access,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let (place, files) = arguments
        .files
        .split_last()
        .context("give files, then the place")?;
    let place = place
        .to_str()
        .context("the place, which comes last, is not UTF-8 text")?;
    if !has_tag_alone(place) {
        bail!(
            "{place} has no tag to put the files under; give one, like registry.example/fleet/intent:7"
        );
    }
    let blobs: Vec<Blob> = files
        .iter()
        .map(|file| blob(Path::new(file)))
        .collect::<anyhow::Result<_>>()?;
    check_together(&blobs)?;
    let registry = Registry::at(place, &arguments.access)?;
    let digest = registry.push(&blobs)?;
    let pinned = registry.pinned(&digest);
    for blob in &blobs {
        output.note(format_args!(
            "sent {}: {} bytes",
            blob.title(),
            blob.bytes.len()
        ));
    }
    output.say(&pinned);
    output.json(&json!({
        "done": true, "exit_code": 0, "place": registry.place(), "digest": digest, "pinned": pinned,
        "files": blobs.iter().map(Blob::title).collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn blob(path: &Path) -> anyhow::Result<Blob> {
    let bytes = read(path).map_err(Refused::unread)?;
    Blob::of(bytes).map_err(|error| {
        let file = path.display();
        Refused::because(
            10,
            format!("{file}: {error:#}; only signed bundles and indexes are sent"),
        )
        .into()
    })
}
