//! `preface attach`: a signature that was made elsewhere.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use preface_bundle::{Index, PublicKey, TrustStore, read_signature};
use preface_packager::{Access, attach_to_index, write_file};
use preface_runtime::bundle::read;
use serde_json::{Value, json};

use super::{
    index::read_index,
    statement::{is_index, key_ids, open},
};
use crate::{
    output::{Output, lossy},
    refused::{Refused, valid_trust},
};

/// Attach a signature that OpenSSL, ssh-agent, a key service or a token made of a bundle's or an index's statement
#[derive(Args)]
#[command(after_help = "\
The signature, 64 bytes or the base64 of them, is verified before anything is written.

Exit: 0 written; 2 not written; 10 to 18, 20, 21 as verify: 12 when no key of the trust store made the signature of \
this bundle's statement, and of an index no timestamp key.

Example:
  preface attach intent.unsigned --signature intent.sig --trust release.trust -o intent.preface
  preface attach fleet.index --signature clock.sig --trust release.trust")]
pub struct Arguments {
    /// The bundle or the index, signed or not
    file: PathBuf,
    /// A signature; give it once for every signature
    #[arg(long, value_name = "FILE", required = true)]
    signature: Vec<PathBuf>,
    /// The trust store with the keys that may sign
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The file to write; without, the file itself is replaced
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&arguments.trust)?;
    let store = TrustStore::parse(&text)?;
    match is_index(&arguments.file)? {
        true => to_index(arguments, &store, output),
        false => to_bundle(arguments, &store, output),
    }
}

fn to_bundle(
    arguments: &Arguments,
    store: &TrustStore<'_>,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mut signing = open(&arguments.file)?;
    let mut keys = each_signature(arguments, |signature| signing.attach(signature, store))?;
    keys.sort_by_key(PublicKey::id);
    keys.dedup();
    signing.verify(store.namespace_name(), &keys)?;
    let bytes = signing.to_bytes();
    let mut report = write(arguments, &bytes, signing.key_ids().count(), &keys, output)?;
    report["bundle_id"] = signing.bundle_id().to_string().into();
    report["signature_keys"] = key_ids(&signing);
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn to_index(
    arguments: &Arguments,
    store: &TrustStore<'_>,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    let mut text = read_index(path)?;
    let mut keys = each_signature(arguments, |signature| {
        let (signed, key) = attach_to_index(&text, signature, store)?;
        text = signed;
        Ok(key)
    })?;
    keys.sort_by_key(PublicKey::id);
    keys.dedup();
    let refuse = |error: preface_bundle::Error| Refused::at(path, error.exit_code(), &error);
    let index = Index::parse(&text).map_err(refuse)?;
    // As a device would that has seen no other one and knows no time.
    index.verify(store, None, None).map_err(refuse)?;
    let count = index.signatures().count();
    let mut report = write(arguments, text.as_bytes(), count, &keys, output)?;
    report["index_id"] = index.id().to_string().into();
    report["signature_keys"] = index.signatures().map(|(key, _)| key.to_string()).collect();
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads every signature, and attaches it; the keys that made them.
fn each_signature(
    arguments: &Arguments,
    mut attach: impl FnMut(&[u8; 64]) -> Result<PublicKey, preface_packager::Error>,
) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for path in &arguments.signature {
        let file = read(path)?;
        let signature = read_signature(&file).with_context(|| {
            format!(
                "{}: neither 64 bytes nor the base64 of them",
                path.display()
            )
        })?;
        let key = attach(&signature);
        keys.push(key.map_err(|error| Refused::at(path, error.exit_code(), &error))?);
    }
    Ok(keys)
}

/// Writes the signed file; what scripts are told of it.
fn write(
    arguments: &Arguments,
    bytes: &[u8],
    signatures: usize,
    attached: &[PublicKey],
    output: &Output,
) -> anyhow::Result<Value> {
    let path = arguments.output.as_ref().unwrap_or(&arguments.file);
    write_file(path, bytes, Access::Everyone)?;
    output.say(format_args!(
        "wrote {}: signatures: {signatures}",
        path.display()
    ));
    let attached: Vec<_> = attached.iter().map(|key| key.id().to_string()).collect();
    Ok(json!({"file": lossy(path), "bytes": bytes.len(), "attached": attached}))
}
