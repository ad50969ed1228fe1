//! `preface minisig`: a signature that `minisign -V` accepts.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use preface_bundle::Frame;
use preface_packager::{Access, minisign, minisign_key, write_file};
use preface_runtime::bundle::read;
use serde_json::json;

use crate::{
    keys::PassphraseFrom,
    output::{Output, lossy, shell_word},
    refused::Refused,
};

/// Write a detached signature of a bundle that minisign accepts
#[derive(Args)]
#[command(after_help = "\
For people who have minisign and nothing else. It vouches for the file alone: devices use the signatures in the \
bundle.

Exit: 0 written; 2 not written; 10 not a signed bundle; 21 others can read the secret key or the passphrase.

Example:
  preface minisig intent.preface --key keys/release.key --public release.minisign
  minisign -V -p release.minisign -m intent.preface")]
pub struct Arguments {
    /// The bundle
    file: PathBuf,
    /// The secret key that signs
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// The signature to write; without, the bundle's name and .minisig
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where to write the public key as minisign reads it
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    let file = read(path).map_err(Refused::unread)?;
    let manifest = Frame::parse(&file).and_then(|frame| frame.unverified_manifest());
    let manifest = manifest.map_err(|error| Refused::at(path, error.exit_code(), &error))?;
    let key = arguments.passphrase.key(&arguments.key)?;
    let signature = minisign(&file, &manifest, &key)?;
    let public = minisign_key(&key.public());
    let beside = || {
        let mut name = path.file_name()?.to_owned();
        name.push(".minisig");
        Some(path.with_file_name(name))
    };
    let written = arguments.output.clone().or_else(beside);
    let written = written.context("the bundle has no name; give -o")?;
    write_file(&written, signature.as_bytes(), Access::Everyone)?;
    if let Some(path) = &arguments.public {
        write_file(path, public.as_bytes(), Access::Everyone)?;
    }
    let base64 = public.lines().nth(1).unwrap_or_default();
    output.say(format_args!(
        "wrote {}; verify it with: minisign -V -P {base64} -m {}",
        written.display(),
        shell_word(path)
    ));
    output.json(&json!({"file": lossy(&written), "public": base64}))?;
    Ok(ExitCode::SUCCESS)
}
