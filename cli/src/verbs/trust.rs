//! `preface trust`: whose signatures count.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};
use preface_bundle::TrustStore;
use preface_runtime::bundle::read_trust;
use serde_json::json;

use crate::output::Output;

/// Make, change and show the trust store: whose signatures count
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust new -o release.trust --key keys/release.pub
  preface trust show release.trust")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    #[cfg(feature = "host")]
    New(host::New),
    #[cfg(feature = "host")]
    Add(host::Add),
    #[cfg(feature = "host")]
    Revoke(host::Revoke),
    Show(Show),
}

/// Show a trust store, if it is valid
#[derive(Args)]
#[command(after_help = "\
Example:
  preface trust show release.trust")]
struct Show {
    /// The trust store
    file: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    match arguments.action {
        #[cfg(feature = "host")]
        Action::New(new) => host::new(&new, output),
        #[cfg(feature = "host")]
        Action::Add(add) => host::add(&add, output),
        #[cfg(feature = "host")]
        Action::Revoke(revoke) => host::revoke(&revoke, output),
        Action::Show(show) => show_store(&show, output),
    }
}

fn show_store(show: &Show, output: &Output) -> anyhow::Result<ExitCode> {
    let text = read_trust(&show.file)?;
    let store = TrustStore::parse(&text).with_context(|| show.file.display().to_string())?;
    output.say(format_args!(
        "namespace {}, version {}, {} of {} keys must sign",
        store.namespace_name(),
        store.version(),
        store.threshold(),
        store.keys().count()
    ));
    for key in store.keys() {
        let name = key.name.unwrap_or("-");
        output.say(format_args!(
            "key {} {name} tasks {} {}",
            key.id, key.tasks, key.key
        ));
    }
    store
        .revoked_keys()
        .for_each(|key| output.say(format_args!("revoked key {key}")));
    store
        .revoked_bundles()
        .for_each(|bundle| output.say(format_args!("revoked bundle {bundle}")));
    let keys: Vec<_> = store
        .keys()
        .map(|key| json!({"id": key.id.to_string(), "name": key.name, "tasks": key.tasks, "key": key.key.to_string()}))
        .collect();
    output.json(&json!({
        "namespace": store.namespace_name(),
        "version": store.version(),
        "threshold": store.threshold(),
        "min_security": store.min_security(),
        "dated": store.dated(),
        "keys": keys,
        "revoked_keys": store.revoked_keys().map(|key| key.to_string()).collect::<Vec<_>>(),
        "revoked_bundles": store.revoked_bundles().map(|bundle| bundle.to_string()).collect::<Vec<_>>(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// What changes trust stores: not part of a device.
#[cfg(feature = "host")]
mod host {
    use std::{
        fs,
        path::{Path, PathBuf},
        process::ExitCode,
    };

    use anyhow::Context;
    use clap::Args;
    use preface_bundle::{Id, KeyId, TrustStore};
    use preface_packager::{TrustDraft, add_keys, write_trust};
    use preface_runtime::bundle::read_trust;
    use serde_json::json;

    use crate::{output::Output, verbs::verify::id};

    /// Make a trust store
    #[derive(Args)]
    #[command(after_help = "\
Example:
  preface trust new -o release.trust --key keys/release.pub --task 'intent.*'")]
    pub struct New {
        /// The trust store to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// A public key, as keygen writes it; give it once for every key
        #[arg(long, value_name = "PUB", required = true)]
        key: Vec<PathBuf>,
        /// The fleet that bundles must be made for
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
        /// Tasks that the keys may sign for: *, a task, or PREFIX.*; several with commas
        #[arg(long, value_name = "PATTERN")]
        task: Option<String>,
        /// Keys that must have signed a bundle
        #[arg(long, value_name = "N", default_value_t = 1)]
        threshold: u32,
    }

    /// Add keys to a trust store; its version grows by one
    #[derive(Args)]
    #[command(after_help = "\
Example:
  preface trust add release.trust --key keys/second.pub")]
    pub struct Add {
        /// The trust store to change
        file: PathBuf,
        /// A public key, as keygen writes it; give it once for every key
        #[arg(long, value_name = "PUB", required = true)]
        key: Vec<PathBuf>,
        /// Tasks that the keys may sign for: *, a task, or PREFIX.*; several with commas
        #[arg(long, value_name = "PATTERN")]
        task: Option<String>,
    }

    /// Revoke keys or bundles in a trust store; its version grows by one
    #[derive(Args)]
    #[command(after_help = "\
Example:
  preface trust revoke release.trust --key 0123456789abcdef0123456789abcdef")]
    pub struct Revoke {
        /// The trust store to change
        file: PathBuf,
        /// Id of a key to revoke
        #[arg(long, value_name = "ID", value_parser = key_id, required_unless_present = "bundle")]
        key: Vec<KeyId>,
        /// Id of a bundle to revoke
        #[arg(long, value_name = "ID", value_parser = id)]
        bundle: Vec<Id>,
    }

    fn key_id(text: &str) -> Result<KeyId, String> {
        Id::from_hex(text).ok_or_else(|| "a key id is 32 lower-case hex digits".to_owned())
    }

    pub fn new(new: &New, output: &Output) -> anyhow::Result<ExitCode> {
        if new.output.exists() {
            anyhow::bail!(
                "{} exists already; change it with preface trust add",
                new.output.display()
            );
        }
        let draft = TrustDraft {
            namespace: new.namespace.clone(),
            threshold: new.threshold,
            keys: lines(&new.key)?,
            tasks: new.task.clone(),
        };
        write(&new.output, &draft.to_text()?, output)
    }

    pub fn add(add: &Add, output: &Output) -> anyhow::Result<ExitCode> {
        let text = add_keys(
            &read_trust(&add.file)?,
            &lines(&add.key)?,
            add.task.as_deref(),
        );
        write(&add.file, &text?, output)
    }

    pub fn revoke(revoke: &Revoke, output: &Output) -> anyhow::Result<ExitCode> {
        let text = read_trust(&revoke.file)?;
        let text = preface_packager::revoke(&text, &revoke.key, &revoke.bundle)?;
        write(&revoke.file, &text, output)
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
        output.json(&json!({"file": path, "version": version, "keys": keys}))?;
        Ok(ExitCode::SUCCESS)
    }
}
