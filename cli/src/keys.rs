//! Secret keys on the command line: where their passphrase comes from.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use preface_packager::{KeyFile, Passphrase, SecretKey, read_private};
use zeroize::Zeroizing;

const MAX_PASSPHRASE_BYTES: u64 = 4096;

/// Where passphrases come from: a file, a descriptor, or the terminal; never the command line itself,
/// which every user of the machine can read.
#[derive(Args)]
pub(crate) struct PassphraseFrom {
    /// Read the passphrase from this open file descriptor; without, and without --passphrase-file, the terminal asks
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
    /// Read the passphrase from the one line of this file, which nobody else may read
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl PassphraseFrom {
    /// Opens a key file; one under a passphrase takes the given one, or asks at the terminal.
    pub(crate) fn key(&self, path: &Path) -> anyhow::Result<SecretKey> {
        let file = KeyFile::read(path)?;
        if !file.is_locked() {
            return Ok(file.unlock(None)?);
        }
        let passphrase = match self.given()? {
            Some(passphrase) => passphrase,
            None => ask(&format!("Passphrase of {}: ", path.display()))?,
        };
        Ok(file.unlock(Some(&passphrase))?)
    }

    /// Opens several key files; a given passphrase is that of all.
    pub(crate) fn keys(&self, paths: &[PathBuf]) -> anyhow::Result<Vec<SecretKey>> {
        if paths.len() > 1 && self.passphrase_fd.is_some() {
            bail!("a descriptor is read once: give --passphrase-file for several keys");
        }
        paths.iter().map(|path| self.key(path)).collect()
    }

    /// The passphrase of a new key; the terminal asks twice.
    pub(crate) fn new_passphrase(&self, path: &Path) -> anyhow::Result<Passphrase> {
        if let Some(passphrase) = self.given()? {
            return Ok(passphrase);
        }
        let first = ask(&format!("Passphrase for {}: ", path.display()))?;
        match ask("The same again: ")? == first {
            true => Ok(first),
            false => bail!("the two passphrases differ; nothing was written"),
        }
    }

    fn given(&self) -> anyhow::Result<Option<Passphrase>> {
        if let Some(path) = &self.passphrase_file {
            return Ok(Some(Passphrase::new(&read_private(path)?)?));
        }
        let Some(descriptor) = self.passphrase_fd else {
            return Ok(None);
        };
        let mut text = Zeroizing::new(String::with_capacity(4096));
        File::open(format!("/dev/fd/{descriptor}"))
            .and_then(|file| file.take(MAX_PASSPHRASE_BYTES).read_to_string(&mut text))
            .with_context(|| format!("cannot read the passphrase from descriptor {descriptor}"))?;
        Ok(Some(Passphrase::new(&text)?))
    }
}

fn ask(prompt: &str) -> anyhow::Result<Passphrase> {
    let typed = rpassword::prompt_password(prompt).map(Zeroizing::new).context(
        "no terminal to ask for a passphrase; give --passphrase-file or --passphrase-fd (keygen: or --no-passphrase)",
    )?;
    Ok(Passphrase::new(&typed)?)
}
