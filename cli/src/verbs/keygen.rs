//! `preface keygen`: make a key that signs bundles.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use preface_packager::{Protection, SecretKey};
use serde_json::json;

use crate::{
    keys::PassphraseFrom,
    output::{Output, lossy},
};

/// Make a key that signs bundles
#[derive(Args)]
#[command(after_help = "\
Writes NAME.key, which signs and must stay secret, and NAME.pub, a line for trust stores. \
A key that exists is never replaced. The secret key is under a passphrase (Argon2id, \
XChaCha20-Poly1305): from the terminal, --passphrase-file or --passphrase-fd.

Exit: 0 written; 2 not written; 21 others can read the passphrase's file.

Example:
  preface keygen -o keys --name release
  preface keygen -o keys --name ci --no-passphrase")]
pub struct Arguments {
    /// The folder to write to; made where it does not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The key's name
    #[arg(long, default_value = "preface")]
    name: String,
    /// Protect the secret key by its file's mode alone, for machines that sign by themselves
    #[arg(long, conflicts_with_all = ["passphrase_fd", "passphrase_file"])]
    no_passphrase: bool,
    #[command(flatten)]
    passphrase: PassphraseFrom,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let folder = &arguments.output;
    let secret = folder.join(format!("{}.key", arguments.name));
    let passphrase = match arguments.no_passphrase {
        true => None,
        false => Some(arguments.passphrase.new_passphrase(&secret)?),
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let key = SecretKey::generate()?;
    let protection = passphrase
        .as_ref()
        .map_or(Protection::ModeOnly, Protection::Passphrase);
    let files = key.save(folder, &arguments.name, protection)?;
    if passphrase.is_none() {
        output.note(format_args!(
            "{} is not encrypted: keep it private, and off the devices that verify",
            files.secret.display()
        ));
    }
    output.say(format_args!(
        "wrote {} and {}",
        files.secret.display(),
        files.public.display()
    ));
    output.json(&json!({
        "secret": lossy(&files.secret),
        "public": lossy(&files.public),
        "encrypted": passphrase.is_some(),
        "key": key.public().to_string(),
        "key_id": key.public().id().to_string(),
    }))?;
    Ok(ExitCode::SUCCESS)
}
