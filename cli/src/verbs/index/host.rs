//! What makes and signs indexes: not part of a device.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use preface_bundle::{Index, IndexVersion, TrustStore, UtcTime, unix_seconds};
use preface_packager::{Access, IndexDraft, Newest, sign_index, write_file};
use preface_runtime::{bundle::read, unix_now};

use super::{described, read_index};
use crate::{
    keys::PassphraseFrom,
    output::Output,
    refused::{Refused, valid_trust},
    verified::verified,
};

const DAY: u64 = 86_400;

/// Make an index of these bundles; no device accepts it before preface index sign
#[derive(Args)]
#[command(after_help = "\
Namespace and trust version are the trust store's, and every bundle must verify against it. With --from the tasks of \
an index before are taken over, and the version is the next one: without bundles it is the same index, made anew. The \
date is now, or SOURCE_DATE_EPOCH.

Exit: 0 written; 2 not written; 10 to 17 a bundle or the index before is refused, as by verify; 18 or 21 not a trust \
store to go by; 20 something cannot be read.

Example:
  preface index new intent.preface mood.preface --trust release.trust --days 14 -o fleet.index
  preface index new --from fleet.index --trust release.trust --days 14 -o fleet.index")]
pub struct New {
    /// The newest bundles
    bundles: Vec<PathBuf>,
    /// The trust store of the fleet
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The index before
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Its version, where there was none before; after a theft of the key a new trust version makes 1 good again
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "from")]
    version: u64,
    /// Days that it is valid
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..36_500), required_unless_present = "expires")]
    days: Option<u64>,
    /// Last second of its validity, like 2030-01-31T00:00:00Z
    #[arg(long, value_name = "DATE", conflicts_with = "days", value_parser = date)]
    expires: Option<u64>,
    /// The index to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Sign an index with a timestamp key
#[derive(Args)]
#[command(after_help = "\
Exit: 0 written; 2 not written; 10 not an index; 20 it cannot be read; 21 others can read the secret key or the \
passphrase.

Example:
  preface index sign fleet.index --key keys/clock.key")]
pub struct Sign {
    /// The index
    file: PathBuf,
    /// The secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// Where to write it instead
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn date(text: &str) -> Result<u64, String> {
    unix_seconds(text).ok_or_else(|| "not a date like 2030-01-31T00:00:00Z".to_owned())
}

pub fn new(new: &New, output: &Output) -> anyhow::Result<ExitCode> {
    let text = valid_trust(&new.trust)?;
    let store = TrustStore::parse(&text)?;
    let dated = now()?;
    let expires = match (new.expires, new.days) {
        (Some(expires), _) => expires,
        (None, days) => dated.saturating_add(days.unwrap_or(1).saturating_mul(DAY)),
    };
    let mut draft = IndexDraft {
        namespace: store.namespace_name().to_owned(),
        version: IndexVersion {
            trust_version: store.version(),
            version: new.version,
        },
        dated,
        expires,
        tasks: BTreeMap::new(),
    };
    if let Some(from) = &new.from {
        follow(&mut draft, from, &store)?;
    } else if new.bundles.is_empty() {
        bail!("there is nothing to name: give bundles, or --from the index before");
    }
    for path in &new.bundles {
        let file = read(path).map_err(Refused::unread)?;
        let release = verified(path, &file, &store)?;
        let newest = Newest {
            trust_version: release.trust_version,
            sequence: release.sequence,
            bundle_id: release.bundle_id,
        };
        draft.name(&release.task, newest)?;
    }
    let text = draft.to_text()?;
    write_file(&new.output, text.as_bytes(), Access::Everyone)?;
    said(
        &new.output,
        &text,
        "no device accepts it before preface index sign",
        output,
    )
}

/// Takes over the tasks of the index before, and makes this one the next.
fn follow(draft: &mut IndexDraft, from: &Path, store: &TrustStore<'_>) -> anyhow::Result<()> {
    let text = read_index(from)?;
    let before = Index::parse(&text)
        .and_then(|index| index.verify(store, None, None))
        .map_err(|error| Refused::at(from, error.exit_code(), &error))?;
    draft.take_over(&before);
    let version = before.version().version.checked_add(1);
    draft.version.version = version.with_context(|| {
        format!(
            "{} has the greatest version that there is; raise the trust store's version, and make a new index without --from",
            from.display()
        )
    })?;
    if draft.dated < before.dated() {
        bail!(
            "{} was made {}, which is later than now, {}: set the clock right",
            from.display(),
            UtcTime(before.dated()),
            UtcTime(draft.dated)
        );
    }
    Ok(())
}

pub fn sign(sign: &Sign, output: &Output) -> anyhow::Result<ExitCode> {
    let text = read_index(&sign.file)?;
    Index::parse(&text).map_err(|error| Refused::at(&sign.file, error.exit_code(), &error))?;
    let key = sign.passphrase.key(&sign.key)?;
    let signed = sign_index(&text, &key)?;
    let path = sign.output.as_ref().unwrap_or(&sign.file);
    write_file(path, signed.as_bytes(), Access::Everyone)?;
    let said_by = format!("signed by key {}", key.public().id());
    said(path, &signed, &said_by, output)
}

fn said(path: &Path, text: &str, what: &str, output: &Output) -> anyhow::Result<ExitCode> {
    let index = Index::parse(text)?;
    let content = index.unverified();
    output.say(format_args!(
        "wrote {}: index {}, tasks: {}, valid until {}; {what}",
        path.display(),
        content.version(),
        content.tasks().count(),
        UtcTime(content.expires())
    ));
    let mut report = described(&content);
    report["file"] = path.display().to_string().into();
    report["signature_keys"] = index.signatures().map(|(key, _)| key.to_string()).collect();
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// The date of the index: SOURCE_DATE_EPOCH, or now.
fn now() -> anyhow::Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .context("SOURCE_DATE_EPOCH is not a number of seconds"),
        Err(_) => unix_now().context("the clock stands before 1970; set it right"),
    }
}
