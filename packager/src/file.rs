//! Writing files: whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, key::is_secret_key};

/// What the name of a file that is being written ends with.
const TEMPORARY: &str = ".tmp";
/// Hex digits before it, of a random number.
const RANDOM_DIGITS: usize = 16;

/// Who may read a new file, and whether it may replace an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 600; never replaces a file. For secrets.
    OwnerOnly,
    /// Mode 644; replaces a file of the same name in one step, but never a secret key.
    Everyone,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::OwnerOnly => 0o600,
            Self::Everyone => 0o644,
        }
    }
}

/// Writes a file beside `path`, flushes it to disk and moves it there in one step, so that nobody
/// ever sees half of it; when something fails, nothing is left behind.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::NoFolder`], [`Error::Exists`] or [`Error::Write`], naming `path`.
pub fn write_file(path: &Path, bytes: &[u8], access: Access) -> Result<(), Error> {
    if is_secret_key(path) {
        return Err(Error::Exists { path: path.into() });
    }
    let temporary = beside(path).and_then(|temporary| {
        let written =
            write_new(&temporary, bytes, access).and_then(|()| place(&temporary, path, access));
        if written.is_err() || access == Access::OwnerOnly {
            let _ = fs::remove_file(&temporary);
        }
        written
    });
    temporary.map_err(|source| failure(path, source))
}

/// A name that nothing else has, in the same folder.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or(ErrorKind::InvalidInput)?
        .to_string_lossy();
    let random = getrandom::u64().map_err(io::Error::other)?;
    let digits = format!("{random:0RANDOM_DIGITS$x}");
    Ok(path.with_file_name(format!(".{name}.{digits}{TEMPORARY}")))
}

/// Removes what [`write_file`] left half written in `folder` when its process was killed. Nobody else may be writing there.
///
/// # Errors
/// What the system says.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| {
            let (_, digits) = name
                .strip_prefix('.')?
                .strip_suffix(TEMPORARY)?
                .rsplit_once('.')?;
            Some(digits)
        });
        let is_random = |digits: &str| {
            digits.len() == RANDOM_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        if digits.is_some_and(is_random) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(access.mode()))?;
    file.sync_all()
}

fn place(temporary: &Path, path: &Path, access: Access) -> io::Result<()> {
    match access {
        Access::OwnerOnly => fs::hard_link(temporary, path)?,
        Access::Everyone => fs::rename(temporary, path)?,
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn failure(path: &Path, source: io::Error) -> Error {
    let path = path.into();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::NoSpace { path }
        }
        ErrorKind::NotFound => Error::NoFolder { path },
        ErrorKind::AlreadyExists => Error::Exists { path },
        _ => Error::Write { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Protection, SecretKey};

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("readable");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_whole_and_nothing_is_left_beside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x");
        for bytes in [&b"one"[..], b"two and more"] {
            write_file(&path, bytes, Access::Everyone).expect("written");
            assert_eq!(fs::read(&path).expect("readable"), bytes);
        }
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn secrets_are_private_and_never_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.key");
        write_file(&path, b"one", Access::OwnerOnly).expect("written");
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o600
        );
        let again = write_file(&path, b"two", Access::OwnerOnly);
        assert!(matches!(again, Err(Error::Exists { .. })));
        assert_eq!(fs::read(&path).expect("readable"), b"one");
        assert_eq!(names(folder.path()), ["x.key"]);
    }

    #[test]
    fn nothing_is_written_over_a_secret_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SecretKey::from_seed(&[1; 32]);
        let files = key.save(folder.path(), "k", Protection::ModeOnly);
        let path = files.expect("written").secret;
        let before = fs::read(&path).expect("readable");
        let written = write_file(&path, b"a bundle", Access::Everyone);
        assert!(matches!(written, Err(Error::Exists { .. })));
        assert_eq!(fs::read(&path).expect("readable"), before);
        assert_eq!(names(folder.path()), ["k.key", "k.pub"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = beside(&folder.path().join("metrics.jsonl")).expect("a name");
        let kept = [
            ".metrics.jsonl.tmp",
            ".x.0123456789abcdeg.tmp",
            "a.0123456789abcdef.tmp",
        ];
        for name in kept {
            fs::write(folder.path().join(name), b"x").expect("written");
        }
        fs::write(&left, b"half").expect("written");
        remove_unfinished(folder.path()).expect("removed");
        assert_eq!(names(folder.path()), kept);
    }

    #[test]
    fn what_fails_leaves_nothing_and_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).expect("made");
        for path in [taken, folder.path().join("none/x"), PathBuf::from("/")] {
            let error = write_file(&path, b"x", Access::Everyone).expect_err("must fail");
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
        }
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        for kind in [
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::FileTooLarge,
        ] {
            let error = failure(Path::new("out/x.preface"), kind.into());
            assert_eq!(
                error.to_string(),
                "cannot write out/x.preface: no space left on device; free some space or choose another folder with -o"
            );
        }
    }
}
