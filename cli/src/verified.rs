//! Bundles that are verified for whatever base they were made for.

use std::path::Path;

use preface_bundle::{Frame, Id, Policy, TrustStore};
use preface_runtime::{bundle::decode, unix_now};

use crate::refused::Refused;

/// What is known of a bundle that was verified.
pub(crate) struct Release {
    /// Its task.
    pub task: String,
    /// Its trust version.
    pub trust_version: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub bundle_id: Id,
}

/// Verifies the bundle at `path`, every byte of it, but for base and tokenizer.
///
/// # Errors
/// [`Refused`] with the exit code of `verify`.
pub(crate) fn verified(
    path: &Path,
    file: &[u8],
    store: &TrustStore<'_>,
) -> Result<Release, Refused> {
    let refuse = |error: preface_bundle::Error| Refused::at(path, error.exit_code(), &error);
    let policy = Policy {
        now: unix_now(),
        ..Policy::unbound()
    };
    let admitted = Frame::parse(file)
        .and_then(|frame| frame.authenticate(store))
        .and_then(|one| one.admit(&policy))
        .map_err(refuse)?;
    let decoded = decode(&admitted).map_err(refuse)?;
    let bundle = admitted.open(&decoded).map_err(refuse)?;
    let manifest = bundle.manifest();
    Ok(Release {
        task: manifest.task.to_owned(),
        trust_version: manifest.trust_version,
        sequence: manifest.sequence,
        bundle_id: bundle.bundle_id(),
    })
}
