//! `preface attach`: a signature that was made elsewhere.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use preface_bundle::{TrustStore, read_signature};
use preface_packager::{Access, write_file};
use preface_runtime::bundle::read;
use serde_json::json;

use super::statement::{key_ids, open};
use crate::{
    output::Output,
    refused::{Refused, valid_trust},
};

/// Attach a signature that OpenSSL, ssh-agent, a key service or a token made of a bundle's statement
#[derive(Args)]
#[command(after_help = "\
The signature, 64 bytes or the base64 of them, is verified before anything is written.

Exit: 0 written; 2 not written; 10 to 18, 20, 21 as verify: 12 when no key of the trust store made the signature of \
this bundle's statement.

Example:
  preface attach intent.unsigned --signature intent.sig --trust release.trust -o intent.preface")]
pub struct Arguments {
    /// The bundle, signed or not
    file: PathBuf,
    /// A signature; give it once for every signature
    #[arg(long, value_name = "FILE", required = true)]
    signature: Vec<PathBuf>,
    /// The trust store with the keys that may sign
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The bundle to write; without, the bundle itself is replaced
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&arguments.trust)?;
    let store = TrustStore::parse(&text)?;
    let mut signing = open(&arguments.file)?;
    let mut keys = Vec::new();
    for path in &arguments.signature {
        let file = read(path)?;
        let signature = read_signature(&file).with_context(|| {
            format!(
                "{}: neither 64 bytes nor the base64 of them",
                path.display()
            )
        })?;
        let key = signing.attach(&signature, &store);
        keys.push(key.map_err(|error| Refused::at(path, error.exit_code(), &error))?);
    }
    keys.sort_by_key(|key| key.id());
    keys.dedup();
    signing.verify(store.namespace_name(), &keys)?;
    let (bytes, path) = (signing.to_bytes(), &arguments.file);
    let path = arguments.output.as_ref().unwrap_or(path);
    write_file(path, &bytes, Access::Everyone)?;
    let count = signing.key_ids().count();
    output.say(format_args!(
        "wrote {}: signatures: {count}",
        path.display()
    ));
    output.json(&json!({
        "file": path, "bytes": bytes.len(), "bundle_id": signing.bundle_id().to_string(),
        "attached": keys.iter().map(|key| key.id().to_string()).collect::<Vec<_>>(),
        "signature_keys": key_ids(&signing),
    }))?;
    Ok(ExitCode::SUCCESS)
}
