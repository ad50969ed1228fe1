//! `preface trust`: whose signatures count.

#[cfg(feature = "host")]
mod host;
mod update;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use preface_bundle::{KeyRole, TrustStore, TrustedKey};
use serde_json::{Value, json};

use crate::{output::Output, refused::valid_trust};

/// Make, change, sign, update and show the trust store: whose signatures count
#[derive(Args)]
#[command(after_help = "\
A store with roots is replaced on devices by `trust update`, if enough roots of the old and of the new one signed \
that; a store without roots changes by hand alone.

Exit: 0 done; 2 not done; 18 a trust store is missing or invalid; 21 others can write it.

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
    Set(host::Set),
    #[cfg(feature = "host")]
    Remove(host::Remove),
    #[cfg(feature = "host")]
    Revoke(host::Revoke),
    #[cfg(feature = "host")]
    Sign(host::Sign),
    Update(update::Update),
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
        Action::New(new) => host::new(new, output),
        #[cfg(feature = "host")]
        Action::Add(add) => host::add(add, output),
        #[cfg(feature = "host")]
        Action::Set(set) => host::set(set, output),
        #[cfg(feature = "host")]
        Action::Remove(remove) => host::remove(remove, output),
        #[cfg(feature = "host")]
        Action::Revoke(revoke) => host::revoke(revoke, output),
        #[cfg(feature = "host")]
        Action::Sign(sign) => host::sign(&sign, output),
        Action::Update(update) => update::run(&update, output),
        Action::Show(show) => show_store(&show, output),
    }
}

fn show_store(show: &Show, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&show.file)?;
    let store = TrustStore::parse(&text)?;
    output.say(format_args!(
        "namespace {}, version {}, {} of {} keys must sign",
        store.namespace_name(),
        store.version(),
        store.threshold(),
        store.keys().count()
    ));
    for key in store.every_key() {
        let name = key.name.unwrap_or("-");
        let may = match key.role {
            KeyRole::Release => format!("tasks {}", key.tasks),
            KeyRole::Root => format!("root, {} must sign the next store", store.root_threshold()),
            _ => "signs the fleet's index".to_owned(),
        };
        output.say(format_args!("key {} {name} {may} {}", key.id, key.key));
    }
    store
        .revoked_keys()
        .for_each(|key| output.say(format_args!("revoked key {key}")));
    store
        .revoked_bundles()
        .for_each(|bundle| output.say(format_args!("revoked bundle {bundle}")));
    output.json(&described(&store))?;
    Ok(ExitCode::SUCCESS)
}

/// What a store says, for scripts.
fn described(store: &TrustStore<'_>) -> Value {
    let keys = |role, describe: fn(&TrustedKey<'_>) -> Value| -> Value {
        store.keys_for(role).map(describe).collect()
    };
    let named = |key: &TrustedKey<'_>| json!({"id": key.id.to_string(), "name": key.name, "key": key.key.to_string()});
    let scoped = |key: &TrustedKey<'_>| json!({"id": key.id.to_string(), "name": key.name, "tasks": key.tasks, "key": key.key.to_string()});
    json!({
        "namespace": store.namespace_name(),
        "version": store.version(),
        "threshold": store.threshold(),
        "root_threshold": store.root_threshold(),
        "min_security": store.min_security(),
        "dated": store.dated(),
        "keys": keys(KeyRole::Release, scoped),
        "roots": keys(KeyRole::Root, named),
        "timestamp_keys": keys(KeyRole::Timestamp, named),
        "revoked_keys": store.revoked_keys().map(|key| key.to_string()).collect::<Vec<_>>(),
        "revoked_bundles": store.revoked_bundles().map(|bundle| bundle.to_string()).collect::<Vec<_>>(),
    })
}
