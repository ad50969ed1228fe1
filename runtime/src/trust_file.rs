//! The trust store's file: replaced by a signed update, whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use preface_bundle::TrustStore;
use rustix::fs::{FlockOperation, flock};

use crate::bundle::{ReadError, read_trust};

/// Why a trust store was not replaced: the one in force stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The trust store in force cannot be read, or others could have written it.
    #[error("the trust store in force cannot be used")]
    Read(#[source] ReadError),
    /// One of the two trust stores is not valid.
    #[error("{path}")]
    Store {
        /// The file; that of the store in force, or of the new one.
        path: PathBuf,
        /// The rule that it breaks.
        source: preface_bundle::Error,
    },
    /// The new trust store may not take the place of the one in force.
    #[error("the trust store in force stays")]
    Refused(#[source] preface_bundle::Error),
    /// The new trust store cannot be written.
    #[error("cannot write {path}; the trust store in force stays")]
    Write {
        /// The trust store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl UpdateError {
    /// The exit code of `trust update`, as of `install`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.trust_exit_code(),
            Self::Store { source, .. } | Self::Refused(source) => source.exit_code(),
            Self::Write { .. } => 20,
        }
    }
}

/// What an update came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The new trust store is in force.
    Done,
    /// It was in force already.
    InForceAlready,
}

/// Puts the trust store `next` into the place of the one at `path`, if enough roots of both signed it: written beside
/// it, flushed, renamed, and the folder flushed, so that a reader finds the one or the other. Updates of one folder
/// wait for each other.
///
/// `from` is where `next` was read, for errors.
///
/// # Errors
/// [`UpdateError`].
pub fn update_trust(
    path: &Path,
    from: &Path,
    next: &str,
    signatures: &[[u8; 64]],
) -> Result<Update, UpdateError> {
    let write = |source| UpdateError::Write {
        path: path.into(),
        source,
    };
    let store = |path: &Path| {
        let path = path.to_owned();
        move |source| UpdateError::Store { path, source }
    };
    let parent = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new("."))).map_err(write)?;
    flock(&folder, FlockOperation::LockExclusive).map_err(|error| write(error.into()))?;
    let text = read_trust(path).map_err(UpdateError::Read)?;
    let present = TrustStore::parse(&text).map_err(store(path))?;
    let new = TrustStore::parse(next).map_err(store(from))?;
    if text == next {
        return Ok(Update::InForceAlready);
    }
    present
        .admit_update(&new, signatures)
        .map_err(UpdateError::Refused)?;
    replace(path, next.as_bytes())
        .and_then(|()| folder.sync_all())
        .map_err(write)?;
    Ok(Update::Done)
}

/// Writes a file beside `path`, flushes it and renames it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let name = format!(".{}.new", name.to_string_lossy());
    let beside = path.with_file_name(name);
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One that is there was left by an update that ended halfway: the folder is locked.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()
}
