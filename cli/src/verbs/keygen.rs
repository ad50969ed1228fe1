//! `preface keygen`: make a key that signs bundles.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use preface_packager::SecretKey;
use serde_json::json;

use crate::output::Output;

/// Make a key that signs bundles
#[derive(Args)]
#[command(after_help = "\
Writes NAME.key, which signs and must stay secret, and NAME.pub, a line for trust stores. \
A key that exists is never replaced.

Example:
  preface keygen -o keys --name release")]
pub struct Arguments {
    /// The folder to write to; made where it does not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The key's name
    #[arg(long, default_value = "preface")]
    name: String,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let folder = &arguments.output;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let key = SecretKey::generate()?;
    let files = key.save(folder, &arguments.name)?;
    output.note(format_args!(
        "{} is not encrypted: keep it private, and off the devices that verify",
        files.secret.display()
    ));
    output.say(format_args!(
        "wrote {} and {}",
        files.secret.display(),
        files.public.display()
    ));
    output.json(&json!({
        "secret": files.secret,
        "public": files.public,
        "key": key.public().to_string(),
        "key_id": key.public().id().to_string(),
    }))?;
    Ok(ExitCode::SUCCESS)
}
