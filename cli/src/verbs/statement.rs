//! `preface statement`: what exactly is signed?

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;
use preface_bundle::{
    Id, Index, KeyRole, Manifest, Stores, TrustStatement, TrustStore, TrustedKey, UtcTime,
};
use preface_packager::{Access, Signing, write_file};
use preface_runtime::bundle::read;
use serde_json::{Value, json};

use super::{
    index::{described, read_index},
    inspect::describe,
};
use crate::{
    output::Output,
    refused::{Refused, valid_trust},
};

/// Show what a signature of a bundle, an index or a trust store vouches for, and write the exact bytes to sign
#[derive(Args)]
#[command(after_help = "\
The bytes are at most 4096 and are signed as they are, with plain Ed25519 (RFC 8032): by OpenSSL, ssh-agent, a key \
service or a PKCS#11 token. preface attach takes the signature of a bundle or an index, \
preface trust update that of a trust store.

Exit: 0 written; 2 not written; 10 neither a bundle nor an index; 11 a trust store without roots; 18 or 21 \
not a trust store to go by.

Example:
  preface pack out/intent --task intent --sequence 1 --unsigned -o intent.unsigned
  preface statement intent.unsigned -o intent.statement
  openssl pkeyutl -sign -rawin -inkey key.pem -in intent.statement -out intent.sig
  pkcs11-tool --module TOKEN.so --login --sign --mechanism EDDSA --id 01 -i intent.statement -o intent.sig
  preface attach intent.unsigned --signature intent.sig --trust release.trust -o intent.preface")]
pub struct Arguments {
    /// The bundle or the index, signed or not, or the trust store
    file: PathBuf,
    /// Where to write the bytes
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    if path.is_dir() {
        bail!(
            "{} is a folder; of an adapter, make the bundle first and sign that: preface pack --unsigned",
            path.display()
        );
    }
    if begins(path, b"preface-trust ")? {
        return of_trust(arguments, output);
    }
    match is_index(path)? {
        true => of_index(arguments, output),
        false => of_bundle(arguments, output),
    }
}

/// Whether a file is one of those that begin with `word`.
fn begins(path: &Path, word: &[u8]) -> Result<bool, Refused> {
    let file = read(path).map_err(Refused::unread)?;
    Ok(file.starts_with(word))
}

/// Whether a file is to be a fleet's index.
pub(crate) fn is_index(path: &Path) -> Result<bool, Refused> {
    begins(path, b"preface-index ")
}

fn of_index(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    let text = read_index(path)?;
    let index =
        Index::parse(&text).map_err(|error| Refused::at(path, error.exit_code(), &error))?;
    let (statement, content) = (index.statement(), index.unverified());
    if let Some(path) = &arguments.output {
        write_file(path, statement.as_bytes(), Access::Everyone)?;
    }
    let tasks: Vec<_> = content
        .tasks()
        .map(|entry| format!("{} {}.{}", entry.task, entry.trust_version, entry.sequence))
        .collect();
    output.note(format_args!(
        "Whoever signs this index says that from {} until {} devices of namespace {} find nothing newer than index {}:\n{}.",
        UtcTime(content.dated()),
        UtcTime(content.expires()),
        content.namespace_name(),
        content.version(),
        tasks.join(", "),
    ));
    let mut report = described(&content);
    report["sha256"] = Id::of(statement.as_bytes()).to_string().into();
    report["statement_bytes"] = statement.as_bytes().len().into();
    report["signature_keys"] = index.signatures().map(|(key, _)| key.to_string()).collect();
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn of_trust(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&arguments.file)?;
    let store = TrustStore::parse(&text)?;
    let statement = TrustStatement::of(&store);
    say_trust(&arguments.file, &store, output)?;
    if let Some(path) = &arguments.output {
        write_file(path, statement.as_bytes(), Access::Everyone)?;
    }
    output.json(&json!({
        "namespace": store.namespace_name(), "version": store.version(),
        "sha256": Id::of(statement.as_bytes()).to_string(), "statement_bytes": statement.as_bytes().len(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn of_bundle(arguments: &Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let signing = open(&arguments.file)?;
    let statement = signing.statement();
    if let Some(path) = &arguments.output {
        write_file(path, statement, Access::Everyone)?;
    }
    say(&signing, output)?;
    let mut report = describe(&signing.manifest()?);
    report["bundle_id"] = signing.bundle_id().to_string().into();
    report["sha256"] = Id::of(statement).to_string().into();
    report["statement_bytes"] = statement.len().into();
    report["signature_keys"] = key_ids(&signing);
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a bundle to sign: 10 for what is none.
pub(crate) fn open(path: &Path) -> Result<Signing, Refused> {
    let file = read(path).map_err(Refused::unread)?;
    Signing::read(&file).map_err(|error| Refused::at(path, error.exit_code(), &error))
}

/// Ids of the keys that signed.
pub(crate) fn key_ids(signing: &Signing) -> Value {
    let ids = signing.key_ids().map(|id| id.to_string());
    json!(ids.collect::<Vec<_>>())
}

/// Says in words what a root vouches for.
///
/// Refuses a store without roots, 11: its signature would be good for nothing.
pub(crate) fn say_trust(
    path: &Path,
    store: &TrustStore<'_>,
    output: &Output,
) -> Result<(), Refused> {
    if store.root_threshold() == 0 {
        let error = preface_bundle::Error::NoRoots {
            which: Stores::Next,
        };
        return Err(Refused::at(path, error.exit_code(), &error));
    }
    let names = |role| {
        let name = |key: &TrustedKey<'_>| {
            let name = key.name.map_or(key.id.to_string(), str::to_owned);
            match key.role {
                KeyRole::Release => format!("{name} (tasks {})", key.tasks),
                _ => name,
            }
        };
        listed(store.keys_for(role).map(name))
    };
    let dated = store.dated().map_or_else(String::new, |dated| {
        format!(", and it is not earlier than {}", UtcTime(dated))
    });
    output.note(format_args!(
        "Whoever signs this trust store says that version {} takes the place of version {} on devices of namespace {}.\n\
         From then on {} of these keys sign bundles: {}; {} of these roots sign the next store: {}; and these keys sign \
         indexes: {}.\n\
         Bundles have security version {} at least{dated}. Revoked keys: {}. Revoked bundles: {}.\n\
         Whatever the store before said beyond that, a revocation too, holds no longer.",
        store.version(),
        store.version() - 1,
        store.namespace_name(),
        store.threshold(),
        names(KeyRole::Release),
        store.root_threshold(),
        names(KeyRole::Root),
        names(KeyRole::Timestamp),
        store.min_security(),
        listed(store.revoked_keys()),
        listed(store.revoked_bundles()),
    ));
    Ok(())
}

fn listed(items: impl Iterator<Item: Display>) -> String {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(" and "),
    }
}

/// Says in words what a signer vouches for.
pub(crate) fn say(signing: &Signing, output: &Output) -> anyhow::Result<()> {
    let Manifest {
        namespace,
        base_id,
        tokenizer_id,
        trust_version,
        security_version,
        sequence,
        not_after,
        task,
        ..
    } = signing.manifest()?;
    let until = match not_after {
        0 => "for ever".to_owned(),
        seconds => format!("until {}", UtcTime(seconds)),
    };
    output.note(format_args!(
        "Whoever signs bundle {} says that devices of namespace {namespace} may use it {until} as task {task}, \
         sequence {sequence},\nwith base {base_id} and tokenizer {tokenizer_id}, from trust version {trust_version} \
         on, at security version {security_version}.\nThe statement has {} bytes.",
        signing.bundle_id(),
        signing.statement().len(),
    ));
    Ok(())
}
