//! A bundle file loaded against a trust store: read, verified, and put beside the session's other tasks.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use preface_bundle::{Frame, Policy, PublicKey, TrustStore, VerifiedBundle};

use crate::{
    Error, Session, TaskHandle,
    bundle::{self, ReadError},
};

/// Why a bundle file is not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bundle cannot be read.
    #[error(transparent)]
    ReadBundle(ReadError),
    /// The trust store cannot be read.
    #[error(transparent)]
    ReadTrust(ReadError),
    /// The trust store is not valid.
    #[error("cannot use {path}")]
    Trust {
        /// The trust store.
        path: PathBuf,
        /// The rule that it breaks.
        source: preface_bundle::Error,
    },
    /// The bundle is not verified.
    #[error("{path} is refused")]
    NotVerified {
        /// The bundle.
        path: PathBuf,
        /// What does not hold.
        source: preface_bundle::Error,
    },
    /// The bundle is verified and does not fit the base.
    #[error("{path} is refused")]
    DoesNotFit {
        /// The bundle.
        path: PathBuf,
        /// What does not fit.
        source: Error,
    },
}

impl LoadError {
    /// Whether the files could be read and the bundle may not be used here: an answer, where the rest are failures.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NotVerified { .. } | Self::DoesNotFit { .. })
    }

    /// The exit code of `verify` for the same fault; `None` for a bundle that `verify` lets pass.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::ReadBundle(error) => Some(error.bundle_exit_code()),
            Self::ReadTrust(error) => Some(error.trust_exit_code()),
            Self::Trust { source, .. } | Self::NotVerified { source, .. } => {
                Some(source.exit_code())
            }
            Self::DoesNotFit { .. } => None,
        }
    }

    /// One word for scripts, finer than the exit code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ReadBundle(ReadError::TooLarge { .. }) => "too-large",
            Self::ReadBundle(_) => "unreadable",
            Self::ReadTrust(error) if error.trust_exit_code() == 21 => "unsafe-permissions",
            Self::ReadTrust(_) => "trust-store-invalid",
            Self::Trust { source, .. } | Self::NotVerified { source, .. } => source.reason(),
            Self::DoesNotFit { .. } => "does-not-fit",
        }
    }
}

/// A trust store as it was read from its file: whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    path: PathBuf,
    text: String,
    /// Its keys.
    admitted: Vec<PublicKey>,
}

impl Trust {
    /// Reads a trust store as [`bundle::read_trust`] does.
    ///
    /// # Errors
    /// When it cannot be read, others could have written it, or it is not valid.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = bundle::read_trust(path).map_err(LoadError::ReadTrust)?;
        Self::of(path, text)
    }

    fn of(path: &Path, text: String) -> Result<Self, LoadError> {
        let mut trust = Self {
            path: path.to_owned(),
            text,
            admitted: Vec::new(),
        };
        let keys = trust
            .store()?
            .every_key()
            .map(|trusted| trusted.key)
            .collect();
        trust.admitted = keys;
        Ok(trust)
    }

    /// The trust store that its file holds now; `None` where that is the same.
    pub(crate) fn renewed(&self) -> Result<Option<Self>, LoadError> {
        let text = bundle::read_trust(&self.path).map_err(LoadError::ReadTrust)?;
        match text == self.text {
            true => Ok(None),
            false => Self::of(&self.path, text).map(Some),
        }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The trust store itself.
    ///
    /// # Errors
    /// When it is not valid; one that was read is.
    pub fn store(&self) -> Result<TrustStore<'_>, LoadError> {
        TrustStore::parse_among(&self.text, &self.admitted).map_err(|source| LoadError::Trust {
            path: self.path.clone(),
            source,
        })
    }
}

/// The system's clock, in seconds of unix time; `None` where it stands before 1970.
pub fn unix_now() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

impl Session {
    /// Verifies the bundle at `path` for this base, and loads it as [`Session::load`] does.
    ///
    /// `now` is the unix time that a last day of validity is compared with; `None`, where no clock can be believed,
    /// leaves that check out.
    ///
    /// # Errors
    /// When the bundle cannot be read, is not verified, or does not fit the base.
    pub fn load_file(
        &mut self,
        path: &Path,
        trust: &Trust,
        now: Option<u64>,
    ) -> Result<TaskHandle, LoadError> {
        let bytes = bundle::read(path).map_err(LoadError::ReadBundle)?;
        let base = self.description();
        let mut policy = Policy::for_base(base.base_id, base.tokenizer_id);
        policy.now = now;
        let file = Candidate {
            path,
            bytes: &bytes,
        };
        file.verified(
            trust,
            |_| policy,
            |bundle, taken| self.take(path, bundle, taken),
        )?
    }

    /// Loads a bundle whose verification took `taken` bytes beside it.
    pub(crate) fn take(
        &mut self,
        path: &Path,
        bundle: &VerifiedBundle<'_>,
        taken: usize,
    ) -> Result<TaskHandle, LoadError> {
        self.note_loading(taken);
        self.load(bundle).map_err(|source| LoadError::DoesNotFit {
            path: path.to_owned(),
            source,
        })
    }
}

/// The bytes of a bundle file, not yet verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

impl Candidate<'_> {
    /// Verifies the bundle under the policy for its task, and hands it to `take` with the bytes that this took.
    pub fn verified<T>(
        self,
        trust: &Trust,
        policy: impl FnOnce(&str) -> Policy,
        take: impl FnOnce(&VerifiedBundle<'_>, usize) -> T,
    ) -> Result<T, LoadError> {
        let store = trust.store()?;
        let refused = |source| LoadError::NotVerified {
            path: self.path.to_owned(),
            source,
        };
        let frame = Frame::parse(self.bytes).map_err(refused)?;
        let authentic = frame.authenticate(&store).map_err(refused)?;
        let policy = policy(authentic.task());
        let admitted = authentic.admit(&policy).map_err(refused)?;
        let decoded = bundle::decode(&admitted).map_err(refused)?;
        let verified = admitted.open(&decoded).map_err(refused)?;
        // What was decompressed may have been put in order, in as many bytes again.
        let taken = match &decoded {
            Cow::Borrowed(_) => self.bytes.len(),
            Cow::Owned(decoded) => self.bytes.len() + 2 * decoded.len(),
        };
        Ok(take(&verified, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_the_exit_code_that_verify_gives_it() {
        let path = || PathBuf::from("x");
        let digest = preface_bundle::Error::PayloadDigest;
        let large = || ReadError::TooLarge {
            path: path(),
            found_bytes: 2,
            limit_bytes: 1,
        };
        let other = || ReadError::OtherOwner {
            path: path(),
            owner: 7,
        };
        let table = [
            (LoadError::ReadBundle(large()), Some(10), false),
            (LoadError::ReadBundle(other()), Some(20), false),
            (LoadError::ReadTrust(large()), Some(18), false),
            (LoadError::ReadTrust(other()), Some(21), false),
            (
                LoadError::Trust {
                    path: path(),
                    source: preface_bundle::Error::TrustStore { line: 1, rule: "" },
                },
                Some(18),
                false,
            ),
            (
                LoadError::NotVerified {
                    path: path(),
                    source: digest,
                },
                Some(digest.exit_code()),
                true,
            ),
            (
                LoadError::DoesNotFit {
                    path: path(),
                    source: Error::NoTask,
                },
                None,
                true,
            ),
        ];
        for (error, code, refusal) in table {
            let found = (error.exit_code(), error.is_refusal());
            assert_eq!(found, (code, refusal), "{error:?}");
        }
    }
}
