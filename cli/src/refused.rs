//! Answers of no that have an exit code of their own.

use std::{error, fmt, path::Path};

#[cfg(feature = "host")]
use preface_bundle::TrustStore;
#[cfg(feature = "host")]
use preface_runtime::bundle::read_trust;

/// Why the answer is no, and the exit code that says so.
#[derive(Debug)]
pub(crate) struct Refused {
    /// One of the table of `verify`.
    pub(crate) exit_code: u8,
    sentence: String,
}

impl Refused {
    /// A refusal of what is at `path`.
    pub(crate) fn at(path: &Path, exit_code: u8, error: &dyn error::Error) -> Self {
        let mut sentence = format!("{}: {error}", path.display());
        let mut source = error.source();
        while let Some(error) = source {
            sentence += &format!(": {error}");
            source = error.source();
        }
        Self {
            exit_code,
            sentence,
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
#[cfg(feature = "host")]
pub(crate) fn valid_trust(path: &Path) -> Result<String, Refused> {
    let text = read_trust(path).map_err(|error| Refused {
        exit_code: error.trust_exit_code(),
        sentence: format!("{:#}", anyhow::Error::from(error)),
    })?;
    match TrustStore::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Refused::at(path, error.exit_code(), &error)),
    }
}
