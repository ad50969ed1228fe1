//! Answers of no that have an exit code of their own.

use std::{error, fmt, path::Path};

use preface_bundle::TrustStore;
use preface_runtime::{
    bundle::{ReadError, read_trust},
    explained,
};

/// Why the answer is no, and the exit code that says so.
#[derive(Debug)]
pub(crate) struct Refused {
    /// One of the table of `verify`.
    pub(crate) exit_code: u8,
    sentence: String,
}

impl Refused {
    /// A refusal for the reason that `sentence` gives.
    #[cfg(feature = "registry")]
    pub(crate) fn because(exit_code: u8, sentence: String) -> Self {
        Self {
            exit_code,
            sentence,
        }
    }

    /// A refusal of what is at `path`.
    pub(crate) fn at(path: &Path, exit_code: u8, error: &dyn error::Error) -> Self {
        Self {
            exit_code,
            sentence: format!("{}: {}", path.display(), explained(error)),
        }
    }

    /// A refusal of a bundle or an index that cannot be read.
    pub(crate) fn unread(error: ReadError) -> Self {
        Self {
            exit_code: error.bundle_exit_code(),
            sentence: explained(&error),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.sentence)
    }
}

impl error::Error for Refused {}

/// The text of a trust store that is valid: 18 or 21 for one that is not.
pub(crate) fn valid_trust(path: &Path) -> Result<String, Refused> {
    let text = read_trust(path).map_err(|error| Refused {
        exit_code: error.trust_exit_code(),
        sentence: explained(&error),
    })?;
    match TrustStore::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Refused::at(path, error.exit_code(), &error)),
    }
}
