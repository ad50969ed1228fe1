//! What makes, changes and signs trust stores: not part of a device.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use preface_bundle::{Id, KeyId, TrustStatement, TrustStore, unix_seconds};
use preface_packager::{
    Access, TrustChange, VersionStep, change_trust, is_root, new_trust, signature_text, write_file,
    write_trust,
};
use serde_json::json;

use crate::{
    keys::PassphraseFrom,
    output::{Output, lossy},
    refused::valid_trust,
    verbs::statement::say_trust,
    verbs::verify::id,
};

/// Make a trust store
#[derive(Args)]
#[command(after_help = "\
Public keys are as keygen, OpenSSL (pkey -pubout), OpenSSH or minisign write them.

Example:
  preface trust new -o release.trust --key keys/release.pub --task 'intent.*'
  preface trust new -o release.trust --key keys/release.pub --root a.pub --root b.pub --root-threshold 2")]
pub struct New {
    /// The trust store to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    keys: Keys,
    /// The fleet that bundles must be made for
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    values: Values,
}

/// Public keys that are put into a store.
#[derive(Args)]
struct Keys {
    /// A public key that may sign bundles; give it once for every key
    #[arg(long, value_name = "PUB")]
    key: Vec<PathBuf>,
    /// A public key that signs the next trust store, and nothing else
    #[arg(long, value_name = "PUB")]
    root: Vec<PathBuf>,
    /// A public key that signs the fleet's index, and nothing else
    #[arg(long, value_name = "PUB")]
    timestamp: Vec<PathBuf>,
    /// Tasks that the keys may sign for: *, a task, or PREFIX.*; several with commas
    #[arg(long, value_name = "PATTERN")]
    task: Option<String>,
}

/// Values that a store has once.
#[derive(Args)]
struct Values {
    /// Keys that must have signed a bundle; a new store's is 1
    #[arg(long, value_name = "N")]
    threshold: Option<u32>,
    /// Roots that must sign the next trust store
    #[arg(long, value_name = "N")]
    root_threshold: Option<u32>,
    /// Least security version of a bundle
    #[arg(long, value_name = "N")]
    min_security: Option<u32>,
    /// It is not earlier than this, whatever a device's clock says, like 2030-01-31T00:00:00Z
    #[arg(long, value_name = "DATE", value_parser = date)]
    dated: Option<String>,
}

/// The store that is changed.
#[derive(Args)]
struct Place {
    /// The trust store to change
    file: PathBuf,
    /// Where to write it instead
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave its version as it is: for a further change of a store that is not in force yet
    #[arg(long)]
    same_version: bool,
}

/// Add keys to a trust store; its version grows by one
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust add release.trust --key keys/second.pub
  preface trust add release.trust --root a.pub --root-threshold 1 -o next.trust")]
pub struct Add {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    values: Values,
}

/// Change what a trust store demands; its version grows by one
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust set release.trust --min-security 7 --dated 2026-11-23T00:00:00Z")]
pub struct Set {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    values: Values,
}

/// Take keys of any role out of a trust store; its version grows by one
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust remove release.trust --key 0123456789abcdef0123456789abcdef")]
pub struct Remove {
    #[command(flatten)]
    place: Place,
    /// Id of a key
    #[arg(long, value_name = "ID", value_parser = key_id, required = true)]
    key: Vec<KeyId>,
    #[command(flatten)]
    values: Values,
}

/// Revoke keys or bundles in a trust store; its version grows by one
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust revoke release.trust --key 0123456789abcdef0123456789abcdef")]
pub struct Revoke {
    #[command(flatten)]
    place: Place,
    /// Id of a key to revoke
    #[arg(long, value_name = "ID", value_parser = key_id, required_unless_present = "bundle")]
    key: Vec<KeyId>,
    /// Id of a bundle to revoke
    #[arg(long, value_name = "ID", value_parser = id)]
    bundle: Vec<Id>,
}

/// Sign a trust store with a root, for trust update
#[derive(Args)]
#[command(after_help = "\
Roots that are kept elsewhere sign what preface statement STORE -o writes.

Exit: 0 written; 2 not written; 11 the store has no roots; 18 it is missing or invalid; 21 others can write the store, or read the secret \
key or the passphrase.

Example:
  preface trust sign next.trust --key a.key -o a.sig")]
pub struct Sign {
    /// The trust store
    file: PathBuf,
    /// The secret key of a root, of this store or of the one that it replaces
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// The signature to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

fn key_id(text: &str) -> Result<KeyId, String> {
    Id::from_hex(text).ok_or_else(|| "a key id is 32 lower-case hex digits".to_owned())
}

fn date(text: &str) -> Result<String, String> {
    unix_seconds(text)
        .map(|_| text.to_owned())
        .ok_or_else(|| "not a date like 2030-01-31T00:00:00Z".to_owned())
}

impl Keys {
    fn change(self) -> anyhow::Result<TrustChange> {
        Ok(TrustChange {
            keys: lines(&self.key)?,
            tasks: self.task,
            roots: lines(&self.root)?,
            timestamps: lines(&self.timestamp)?,
            ..TrustChange::default()
        })
    }
}

impl Values {
    fn over(self, change: TrustChange) -> TrustChange {
        TrustChange {
            threshold: self.threshold,
            root_threshold: self.root_threshold,
            min_security: self.min_security,
            dated: self.dated,
            ..change
        }
    }
}

impl Place {
    fn change(&self, change: &TrustChange, output: &Output) -> anyhow::Result<ExitCode> {
        let step = match self.same_version {
            true => VersionStep::Stay,
            false => VersionStep::Next,
        };
        let text = change_trust(&valid_trust(&self.file)?, change, step)?;
        write(self.output.as_ref().unwrap_or(&self.file), &text, output)
    }
}

pub fn new(new: New, output: &Output) -> anyhow::Result<ExitCode> {
    if new.output.exists() {
        anyhow::bail!(
            "{} exists already; change it with preface trust add",
            new.output.display()
        );
    }
    let mut content = new.values.over(new.keys.change()?);
    content.threshold = content.threshold.or(Some(1));
    write(&new.output, &new_trust(&new.namespace, &content)?, output)
}

pub fn add(add: Add, output: &Output) -> anyhow::Result<ExitCode> {
    let change = add.keys.change()?;
    if [&change.keys, &change.roots, &change.timestamps]
        .iter()
        .all(|keys| keys.is_empty())
    {
        anyhow::bail!("there is nothing to add: give --key, --root or --timestamp");
    }
    add.place.change(&add.values.over(change), output)
}

pub fn set(set: Set, output: &Output) -> anyhow::Result<ExitCode> {
    let change = set.values.over(TrustChange::default());
    set.place.change(&change, output)
}

pub fn remove(remove: Remove, output: &Output) -> anyhow::Result<ExitCode> {
    let change = TrustChange {
        removed: remove.key,
        ..TrustChange::default()
    };
    remove.place.change(&remove.values.over(change), output)
}

pub fn revoke(revoke: Revoke, output: &Output) -> anyhow::Result<ExitCode> {
    let change = TrustChange {
        revoked_keys: revoke.key,
        revoked_bundles: revoke.bundle,
        ..TrustChange::default()
    };
    revoke.place.change(&change, output)
}

pub fn sign(sign: &Sign, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&sign.file)?;
    let store = TrustStore::parse(&text)?;
    say_trust(&sign.file, &store, output)?;
    let key = sign.passphrase.key(&sign.key)?;
    let (public, root) = (key.public(), is_root(&store, &key.public()));
    if !root {
        output.note(format_args!(
            "note: key {} is no root of this store: its signature counts where the store in force names it",
            public.id()
        ));
    }
    let signature = key.sign(TrustStatement::of(&store).as_bytes())?;
    write_file(
        &sign.output,
        signature_text(&signature).as_bytes(),
        Access::Everyone,
    )?;
    output.say(format_args!("wrote {}", sign.output.display()));
    output.json(&json!({
        "file": lossy(&sign.output), "version": store.version(), "key_id": public.id().to_string(), "root": root,
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn lines(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let read = |path: &PathBuf| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    paths.iter().map(read).collect()
}

fn write(path: &Path, text: &str, output: &Output) -> anyhow::Result<ExitCode> {
    write_trust(path, text)?;
    let store = TrustStore::parse(text)?;
    let (version, keys) = (store.version(), store.keys().count());
    output.say(format_args!(
        "wrote {}: version {version}, keys: {keys}",
        path.display()
    ));
    output.json(&json!({"file": lossy(path), "version": version, "keys": keys}))?;
    Ok(ExitCode::SUCCESS)
}
