//! `preface sign`: one more signature on a bundle.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use preface_packager::{Access, SecretKey, write_file};
use serde_json::json;

use super::statement::{key_ids, open, say};
use crate::{
    keys::PassphraseFrom,
    output::{Output, lossy},
};

/// Add a signature to a bundle
#[derive(Args)]
#[command(after_help = "\
What the signature vouches for is said first, and the bundle is verified before it is written.

Exit: 0 written; 2 not written; 10, 12, 13 or 14 the bundle is refused, as by verify; 21 others can read the secret \
key or the passphrase.

Example:
  preface sign intent.preface --key keys/second.key -o intent.preface")]
pub struct Arguments {
    /// The bundle, signed or not
    file: PathBuf,
    /// A secret key that signs; give it once for every signature
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// The fleet that the bundle must be for
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The bundle to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let mut signing = open(&arguments.file)?;
    say(&signing, output)?;
    let keys = arguments.passphrase.keys(&arguments.key)?;
    signing.sign(&keys)?;
    let public: Vec<_> = keys.iter().map(SecretKey::public).collect();
    signing.verify(&arguments.namespace, &public)?;
    let bytes = signing.to_bytes();
    write_file(&arguments.output, &bytes, Access::Everyone)?;
    let count = signing.key_ids().count();
    output.say(format_args!(
        "wrote {}: signatures: {count}",
        arguments.output.display()
    ));
    output.json(&json!({
        "file": lossy(&arguments.output), "bytes": bytes.len(), "bundle_id": signing.bundle_id().to_string(),
        "signature_keys": key_ids(&signing),
    }))?;
    Ok(ExitCode::SUCCESS)
}
