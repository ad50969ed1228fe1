//! Signing keys and their files.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signer, SigningKey};
use preface_bundle::{Id, PublicKey, is_name};
use rustix::{fs::OFlags, io::Errno};
use zeroize::Zeroizing;

use crate::{
    Error,
    file::{Access, write_file},
    sealed::{Passphrase, SEALED_WORD, seal, unseal},
};

const FIRST_LINE: &str = "preface-secret-key v1";
const SEED_WORD: &str = "ed25519-seed ";
const MAX_BYTES: u64 = 4096;
const NO_KEY: &str = "not a secret key of this program; make one with preface keygen";

/// An Ed25519 key that signs bundles. Wiped from memory when dropped; never shown.
pub struct SecretKey(SigningKey);

/// The files of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The secret key, mode 600.
    pub secret: PathBuf,
    /// The public key: one line of a trust store.
    pub public: PathBuf,
}

impl SecretKey {
    /// Makes a key from the system's random bytes.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn generate() -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|source| Error::Random { source })?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a seed: for tests, and for keys that are kept elsewhere.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        PublicKey::admit(self.0.verifying_key().to_bytes())
            .expect("a derived key is a canonical multiple of the base point")
    }

    /// Signs a message, and checks the signature before handing it out.
    ///
    /// # Errors
    /// [`Error::Signature`] when the signature does not hold: a fault of the machine, which would
    /// give the key away.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], Error> {
        checked(&self.public(), message, self.0.sign(message).to_bytes())
    }

    /// Writes `NAME.key` and `NAME.pub` into a folder.
    ///
    /// # Errors
    /// [`Error::Exists`] rather than replacing a key, [`Error::Option`] for a name that is no
    /// name, [`Error::Write`], [`Error::NoSpace`], [`Error::Random`].
    pub fn save(
        &self,
        folder: &Path,
        name: &str,
        protection: Protection<'_>,
    ) -> Result<KeyFiles, Error> {
        if !is_name(name) {
            let problem = "lower-case letters, digits, and . _ - between them, at most 47".into();
            return Err(Error::Option {
                option: "--name",
                problem,
            });
        }
        let files = KeyFiles {
            secret: folder.join(format!("{name}.key")),
            public: folder.join(format!("{name}.pub")),
        };
        if files.public.exists() {
            return Err(Error::Exists { path: files.public });
        }
        let seed = Zeroizing::new(self.0.to_bytes());
        let line = match protection {
            Protection::Passphrase(passphrase) => seal(&seed, passphrase)?,
            Protection::ModeOnly => {
                format!("{SEED_WORD}{}", *Zeroizing::new(Id(*seed).to_string()))
            }
        };
        let line = Zeroizing::new(line);
        let text = Zeroizing::new(format!("{FIRST_LINE}\n{}\n", *line));
        write_file(&files.secret, text.as_bytes(), Access::OwnerOnly)?;
        let line = format!("key {} name={name}\n", self.public());
        let written = write_file(&files.public, line.as_bytes(), Access::Everyone);
        if written.is_err() {
            // A key whose public half nobody has signs nothing, and keeps its name from the next try.
            let _ = fs::remove_file(&files.secret);
        }
        written.map(|()| files)
    }

    /// Reads a key file that has no passphrase; see [`KeyFile::read`].
    ///
    /// # Errors
    /// As [`KeyFile::read`], and [`Error::Locked`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        KeyFile::read(path)?.unlock(None)
    }
}

/// What guards a key file besides its mode of 600.
#[derive(Clone, Copy)]
pub enum Protection<'a> {
    /// A passphrase.
    Passphrase(&'a Passphrase),
    /// Nothing: for machines that sign by themselves.
    ModeOnly,
}

/// A key file that has been read, and is still locked where it has a passphrase.
pub struct KeyFile {
    path: PathBuf,
    line: Zeroizing<String>,
}

impl KeyFile {
    /// Reads a key file: a regular file, not a link, that belongs to the user of this process and
    /// that nobody else can read.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::KeyPermissions`], [`Error::KeyOwner`], [`Error::KeyFile`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = read_private(path).map_err(|error| match error {
            Error::KeyPermissions { path, .. } if path.extension() == Some("pub".as_ref()) => {
                Error::KeyFile {
                    path,
                    problem: "it is named as a public key; the one that signs is NAME.key",
                }
            }
            error => error,
        })?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(Error::KeyFile {
                path: path.into(),
                problem: NO_KEY,
            });
        }
        match (lines.next(), lines.next()) {
            (Some(line), None) => Ok(Self {
                path: path.into(),
                line: Zeroizing::new(line.to_owned()),
            }),
            _ => Err(damaged(path)),
        }
    }

    /// Whether it takes a passphrase to use the key.
    pub fn is_locked(&self) -> bool {
        self.line.starts_with(SEALED_WORD)
    }

    /// The key.
    ///
    /// # Errors
    /// [`Error::Locked`] without a passphrase where there must be one, [`Error::Passphrase`] for a wrong one,
    /// [`Error::KeyFile`] for a damaged file.
    pub fn unlock(&self, passphrase: Option<&Passphrase>) -> Result<SecretKey, Error> {
        let path = || self.path.clone();
        let seed = if self.is_locked() {
            let passphrase = passphrase.ok_or_else(|| Error::Locked { path: path() })?;
            let opened = unseal(&self.line, passphrase).ok_or_else(|| damaged(&self.path))?;
            opened.ok_or_else(|| Error::Passphrase { path: path() })?
        } else {
            let seed = self
                .line
                .strip_prefix(SEED_WORD)
                .and_then(Id::<32>::from_hex);
            Zeroizing::new(seed.ok_or_else(|| damaged(&self.path))?.0)
        };
        Ok(SecretKey::from_seed(&seed))
    }
}

/// Whether the file at `path` begins as a secret key does.
pub(crate) fn is_secret_key(path: &Path) -> bool {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut found = [0; FIRST_LINE.len()];
    file.and_then(|mut file| file.read_exact(&mut found))
        .is_ok()
        && found == *FIRST_LINE.as_bytes()
}

/// A signature that holds.
fn checked(key: &PublicKey, message: &[u8], signature: [u8; 64]) -> Result<[u8; 64], Error> {
    key.has_signed(message, &signature)
        .then_some(signature)
        .ok_or_else(|| Error::Signature { key: key.id() })
}

fn damaged(path: &Path) -> Error {
    Error::KeyFile {
        path: path.into(),
        problem: "the key is damaged: line 2 is not the one line that keygen wrote",
    }
}

fn not_a_file(path: &Path) -> Error {
    Error::KeyFile {
        path: path.into(),
        problem: "a secret is read from a regular file of at most 4096 bytes; name the file itself, not a link to it",
    }
}

/// Reads a short text that nobody but the user of this process may know.
///
/// # Errors
/// [`Error::Read`], [`Error::KeyPermissions`], [`Error::KeyOwner`], [`Error::KeyFile`].
pub fn read_private(path: &Path) -> Result<Zeroizing<String>, Error> {
    let read = |source| Error::Read {
        path: path.into(),
        source,
    };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => not_a_file(path),
        _ => read(source),
    })?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(not_a_file(path));
    }
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(Error::KeyPermissions {
            path: path.into(),
            mode,
        });
    }
    if owner != rustix::process::geteuid().as_raw() {
        return Err(Error::KeyOwner {
            path: path.into(),
            owner,
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(4096));
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(read)?;
    Ok(text)
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretKey({})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use preface_bundle::TrustedKey;

    use super::*;

    #[test]
    fn a_public_key_does_not_pass_for_one_with_lax_permissions() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SecretKey::generate().expect("random bytes");
        let files = key.save(folder.path(), "release", Protection::ModeOnly);
        let error = SecretKey::open(&files.expect("written").public).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("NAME.key"), "{message}");
    }

    #[test]
    fn a_saved_key_is_the_same_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SecretKey::generate().expect("random bytes");
        let files = key
            .save(folder.path(), "release", Protection::ModeOnly)
            .expect("written");
        let again = SecretKey::open(&files.secret).expect("readable");
        assert_eq!(again.public(), key.public());
        let line = fs::read_to_string(&files.public).expect("readable");
        let trusted = TrustedKey::from_text(line.trim().strip_prefix("key ").expect("a key line"));
        assert_eq!(
            trusted.map(|key| (key.key, key.name)),
            Ok((key.public(), Some("release")))
        );
        assert!(
            !line.contains(&Id(key.0.to_bytes()).to_string()),
            "the seed stays secret"
        );
        assert!(!format!("{key:?}").contains(&Id(key.0.to_bytes()).to_string()));
    }

    #[test]
    fn keys_are_never_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = SecretKey::from_seed(&[1; 32]);
        let files = first
            .save(folder.path(), "k", Protection::ModeOnly)
            .expect("written");
        let second = SecretKey::from_seed(&[2; 32]);
        assert!(matches!(
            second.save(folder.path(), "k", Protection::ModeOnly),
            Err(Error::Exists { .. })
        ));
        fs::remove_file(&files.public).expect("removed");
        assert!(matches!(
            second.save(folder.path(), "k", Protection::ModeOnly),
            Err(Error::Exists { .. })
        ));
        assert_eq!(
            SecretKey::open(&files.secret).expect("readable").public(),
            first.public()
        );
        for bad in ["../k", "", "A", "a/b"] {
            assert!(
                matches!(
                    first.save(folder.path(), bad, Protection::ModeOnly),
                    Err(Error::Option { .. })
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_key_under_a_passphrase_takes_that_passphrase() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SecretKey::from_seed(&[1; 32]);
        let right = Passphrase::new("right").expect("a passphrase");
        let wrong = Passphrase::new("wrong").expect("a passphrase");
        let files = key
            .save(folder.path(), "k", Protection::Passphrase(&right))
            .expect("written");
        let text = fs::read_to_string(&files.secret).expect("readable");
        assert!(!text.contains(&Id([1; 32]).to_string()));
        let file = KeyFile::read(&files.secret).expect("a key");
        assert!(file.is_locked());
        let opened = file.unlock(Some(&right)).expect("the right passphrase");
        assert_eq!(opened.public(), key.public());
        assert!(matches!(
            file.unlock(Some(&wrong)),
            Err(Error::Passphrase { .. })
        ));
        assert!(matches!(
            SecretKey::open(&files.secret),
            Err(Error::Locked { .. })
        ));
    }

    /// Attack 44: a fault while signing would give the key away.
    #[test]
    fn a_signature_with_a_flipped_bit_is_not_handed_out() {
        let key = SecretKey::from_seed(&[1; 32]);
        let good = key.sign(b"a statement").expect("a signature");
        for bit in 0..512 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = checked(&key.public(), b"a statement", bad);
            assert!(matches!(error, Err(Error::Signature { .. })), "bit {bit}");
        }
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = SecretKey::from_seed(&[1; 32])
            .save(folder.path(), "k", Protection::ModeOnly)
            .expect("written");
        for mode in [0o640, 0o604, 0o620, 0o644] {
            fs::set_permissions(&files.secret, Permissions::from_mode(mode)).expect("changed");
            let error = SecretKey::open(&files.secret).expect_err("must fail");
            assert_eq!(error.exit_code(), 21, "{mode:o}: {error}");
        }
    }

    #[test]
    fn files_that_are_no_keys_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k");
        let seed = "ab".repeat(32);
        let cases = [
            String::new(),
            format!("preface-secret-key v2\ned25519-seed {seed}\n"),
            format!("{FIRST_LINE}\ned25519-seed {}\n", &seed[1..]),
            format!("{FIRST_LINE}\n{seed}\n"),
            format!("{FIRST_LINE}\ned25519-seed {seed}\nmore\n"),
        ];
        for text in cases {
            fs::write(&path, &text).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("changed");
            assert!(
                matches!(SecretKey::open(&path), Err(Error::KeyFile { .. })),
                "{text:?}"
            );
        }
        let link = folder.path().join("link");
        symlink(&path, &link).expect("linked");
        assert!(SecretKey::open(&folder.path().join("none")).is_err());
        for no_file in [&*link, folder.path()] {
            let error = SecretKey::open(no_file).expect_err("must fail").to_string();
            assert!(error.contains("regular file"), "{error}");
        }
    }
}
