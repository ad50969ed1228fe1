//! Bundles and trust stores on disk: read whole into memory, and decoded under the format's rules.
//!
//! What is read is never mapped: a file that changes afterwards changes nothing that was verified.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use preface_bundle::{Admitted, Codec, MAX_FILE_BYTES, MAX_TRUST_BYTES};
use rustix::{fs::OFlags, io::Errno};

/// Why a bundle or a trust store could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system refused.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path leads to a directory, a device, a pipe or a link.
    #[error("cannot read {path}: it is not a regular file; name the file itself, not a link to it")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than any file of its kind.
    #[error("{path} is too large: {found_bytes} bytes, at most {limit_bytes}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The largest allowed size.
        limit_bytes: u64,
    },
    /// The file changed while it was read.
    #[error("{path} changed while it was read; try again")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("{path} is not UTF-8 text")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner can change the file.
    #[error("unsafe permissions: others can write {path} (mode {mode:03o}); run chmod go-w {path}")]
    WritableByOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error("unsafe permissions: {path} belongs to user {owner}, not to root or to you")]
    OtherOwner {
        /// The file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
}

impl ReadError {
    /// The exit code of `verify` and `install` for a bundle that could not be read: 10 for a file
    /// that no bundle can be, 20 for the rest.
    pub fn bundle_exit_code(&self) -> u8 {
        match self {
            Self::TooLarge { .. } => 10,
            _ => 20,
        }
    }

    /// The exit code of `verify` and `install` for a trust store that could not be read: 21 for
    /// unsafe permissions, 18 for the rest.
    pub fn trust_exit_code(&self) -> u8 {
        match self {
            Self::WritableByOthers { .. } | Self::OtherOwner { .. } => 21,
            _ => 18,
        }
    }
}

/// Reads a bundle file: a regular file, not a link, of at most [`MAX_FILE_BYTES`].
///
/// # Errors
/// [`ReadError`] with the path.
pub fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    read_capped(&open(path)?, path, MAX_FILE_BYTES)
}

/// Reads a regular file, not a link, of at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
    read_capped(&open(path)?, path, limit)
}

/// Reads a text: a regular file, not a link, of at most `limit` bytes.
///
/// # Errors
/// [`ReadError`] with the path.
pub fn read_text(path: &Path, limit: usize) -> Result<String, ReadError> {
    let bytes = read_file(path, limit)?;
    String::from_utf8(bytes).map_err(|_| ReadError::NotText { path: path.into() })
}

/// Reads a trust store: a regular file of at most [`MAX_TRUST_BYTES`] that belongs to root or to
/// the user of this process, that nobody else can write, and that not everybody can replace.
///
/// # Errors
/// [`ReadError`] with the path.
pub fn read_trust(path: &Path) -> Result<String, ReadError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|source| io_error(path, source))?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o022 != 0 {
        return Err(ReadError::WritableByOthers {
            path: path.into(),
            mode,
        });
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(ReadError::OtherOwner {
            path: path.into(),
            owner,
        });
    }
    let open = open_folder(path).map_err(|source| io_error(path, source))?;
    if let Some((path, mode)) = open {
        return Err(ReadError::WritableByOthers { path, mode });
    }
    let bytes = read_capped(&file, path, MAX_TRUST_BYTES)?;
    String::from_utf8(bytes).map_err(|_| ReadError::NotText { path: path.into() })
}

/// The folder on the way to a file or folder that everybody can write, with its mode. Whoever can do that can put
/// another in the place of what is in it, but for folders like `/tmp`, where everybody removes only what is his own.
pub(crate) fn open_folder(path: &Path) -> io::Result<Option<(PathBuf, u32)>> {
    let real = path.canonicalize()?;
    for folder in real.ancestors().skip(1) {
        let mode = folder.metadata()?.mode() & 0o7777;
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Ok(Some((folder.into(), mode)));
        }
    }
    Ok(None)
}

/// Decodes the payload of an admitted bundle, for [`Admitted::open`]; one that is stored as it is is not copied.
///
/// # Errors
/// [`preface_bundle::Error::Compressed`] with the rule that the payload breaks.
pub fn decode<'a>(admitted: &Admitted<'a>) -> Result<Cow<'a, [u8]>, preface_bundle::Error> {
    admitted.check_compressed()?;
    match admitted.codec() {
        Codec::Stored => Ok(Cow::Borrowed(admitted.stored_payload())),
        Codec::Zstd => decompress(admitted).map(Cow::Owned),
        Codec::ShuffledZstd => {
            let shuffled = decompress(admitted)?;
            let mut decoded = vec![0; shuffled.len()];
            admitted.unshuffle(&shuffled, &mut decoded)?;
            Ok(Cow::Owned(decoded))
        }
        _ => Err(preface_bundle::Error::Compressed {
            rule: "the codec is unknown",
        }),
    }
}

fn decompress(admitted: &Admitted<'_>) -> Result<Vec<u8>, preface_bundle::Error> {
    zstd::bulk::decompress(admitted.stored_payload(), admitted.decoded_bytes())
        .ok()
        .filter(|decoded| decoded.len() == admitted.decoded_bytes())
        .ok_or(preface_bundle::Error::Compressed {
            rule: "the zstd frame does not decode",
        })
}

/// Opens a regular file for reading; never follows a link at the end of the path and never waits
/// for the other end of a pipe.
fn open(path: &Path) -> Result<File, ReadError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            ReadError::NotAFile { path: path.into() }
        }
        _ => io_error(path, source),
    })?;
    let metadata = file.metadata().map_err(|source| io_error(path, source))?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile { path: path.into() });
    }
    Ok(file)
}

fn read_capped(file: &File, path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
    let found_bytes = file
        .metadata()
        .map_err(|source| io_error(path, source))?
        .len();
    let limit_bytes = u64::try_from(limit).unwrap_or(u64::MAX);
    if found_bytes > limit_bytes {
        return Err(ReadError::TooLarge {
            path: path.into(),
            found_bytes,
            limit_bytes,
        });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found_bytes).unwrap_or(limit));
    let read = file
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes);
    read.map_err(|source| io_error(path, source))?;
    if u64::try_from(bytes.len()) != Ok(found_bytes) {
        return Err(ReadError::Changed { path: path.into() });
    }
    Ok(bytes)
}

fn io_error(path: &Path, source: io::Error) -> ReadError {
    ReadError::Io {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn only_regular_files_of_sane_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("good"), b"bytes").expect("written");
        assert_eq!(read(&at("good")).expect("readable"), b"bytes");
        symlink(at("good"), at("link")).expect("linked");
        fs::create_dir(at("folder")).expect("made");
        File::create(at("huge"))
            .and_then(|f| f.set_len(1 << 30))
            .expect("sparse");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), 0o600.into()).expect("made");
        for name in ["link", "folder", "pipe"] {
            assert!(
                matches!(read(&at(name)), Err(ReadError::NotAFile { .. })),
                "{name}"
            );
        }
        assert!(matches!(read(&at("huge")), Err(ReadError::TooLarge { .. })));
        assert!(matches!(read(&at("none")), Err(ReadError::Io { .. })));
        assert!(matches!(
            read(Path::new("/dev/zero")),
            Err(ReadError::NotAFile { .. })
        ));
    }

    #[test]
    fn trust_stores_that_others_can_write_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("trust");
        fs::write(&path, "preface-trust v1\n").expect("written");
        for (mode, good) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            let read = read_trust(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            assert!(
                read.map_err(|error| error.trust_exit_code())
                    .map_or_else(|code| code == 21, |_| true)
            );
        }
    }
}
