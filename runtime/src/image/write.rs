//! Writing a base image: beside its place first, then renamed into it.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use preface_bundle::Id;
use sha2::{Digest, Sha256};

use super::{
    Description, Packed,
    format::{FAMILY, Index, PAGE_BYTES, Preamble, Section, Span, Table},
};
use crate::{Error, Weights, engine::executor::program::Program};

/// Writes an image part by part; nobody sees the file before [`Writer::finish`].
pub(crate) struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    offset: u64,
    weights: Sha256,
    written: HashMap<[u8; 32], Span>,
}

/// What comes after the weights.
pub(crate) struct Parts<'a> {
    pub description: Description,
    pub tract: &'a str,
    pub tokenizer: &'a [u8],
    /// The plan's graph, or the constants that the steps read.
    pub program: &'a [u8],
    pub steps: Option<Program>,
    /// Why there are no steps.
    pub unlowered: Option<String>,
    /// The embedding table, and how it is stored.
    pub embeddings: (Weights, Span),
    pub packed: Vec<Packed>,
}

impl Writer {
    /// Begins a file beside `path`.
    ///
    /// # Errors
    /// When it cannot be written, or something else than an image is in its place.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if !is_replaceable(path) {
            let reason = "another file than a base image is there; move it away, or choose another place with -o";
            return Err(Error::Write {
                path: path.to_owned(),
                source: io::Error::new(ErrorKind::AlreadyExists, reason),
            });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&partial);
        let file = file.map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        let mut writer = Self {
            path: path.to_owned(),
            partial,
            file: BufWriter::new(file),
            offset: 0,
            weights: Sha256::new(),
            written: HashMap::new(),
        };
        writer.checked(|writer| writer.put(&[0; PAGE_BYTES as usize]))?;
        Ok(writer)
    }

    /// Appends to the weights section, on a page of its own; equal bytes are stored once.
    pub fn weight(&mut self, bytes: &[u8]) -> Result<Span, Error> {
        let digest = Sha256::digest(bytes).into();
        if let Some(&span) = self.written.get(&digest) {
            return Ok(span);
        }
        let span = self.checked(|writer| {
            writer.pad(Coverage::Weights)?;
            let offset = writer.offset;
            writer.weights.update(bytes);
            writer.put(bytes)?;
            Ok(Span {
                offset,
                bytes: bytes.len() as u64,
            })
        })?;
        self.written.insert(digest, span);
        Ok(span)
    }

    /// Writes the rest, makes it durable, and puts the file in its place once `try_out` says that it is to be kept: else
    /// an older file of that name stays. Returns the length of what was kept.
    pub fn finish(
        mut self,
        parts: Parts<'_>,
        try_out: impl FnOnce(&Path) -> Result<bool, Error>,
    ) -> Result<Option<u64>, Error> {
        self.checked(|writer| writer.finish_file(parts))?;
        if !try_out(&self.partial)? {
            return Ok(None);
        }
        self.checked(Self::put_in_place)?;
        Ok(Some(self.offset))
    }

    fn finish_file(&mut self, parts: Parts<'_>) -> io::Result<()> {
        let weights = Span {
            offset: PAGE_BYTES,
            bytes: self.offset - PAGE_BYTES,
        };
        let embeddings = Table {
            span: parts.embeddings.1,
            dtype: parts.embeddings.0,
            rows: parts.description.vocabulary,
            columns: parts.description.embedding_width(),
        };
        let index = Index {
            tract: parts.tract.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            tokenizer: self.section(parts.tokenizer)?,
            program: self.section(parts.program)?,
            description: parts.description,
            embeddings,
            packed: parts.packed,
            steps: parts.steps,
            unlowered: parts.unlowered,
        };
        let index = self.section(&serde_json::to_vec(&index)?)?;
        let preamble = Preamble {
            file_bytes: self.offset,
            index: index.span,
            index_sha256: index.sha256.0,
            weights,
            weights_sha256: self.weights.finalize_reset().into(),
        };
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&preamble.encode())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn put_in_place(&mut self) -> io::Result<()> {
        fs::rename(&self.partial, &self.path)?;
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn section(&mut self, bytes: &[u8]) -> io::Result<Section> {
        self.pad(Coverage::None)?;
        let offset = self.offset;
        self.put(bytes)?;
        Ok(Section {
            span: Span {
                offset,
                bytes: bytes.len() as u64,
            },
            sha256: Id(Sha256::digest(bytes).into()),
        })
    }

    fn pad(&mut self, coverage: Coverage) -> io::Result<()> {
        let zeros = [0; PAGE_BYTES as usize];
        let missing = (self.offset.next_multiple_of(PAGE_BYTES) - self.offset) as usize;
        if matches!(coverage, Coverage::Weights) {
            self.weights.update(&zeros[..missing]);
        }
        self.put(&zeros[..missing])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn checked<T>(&mut self, write: impl FnOnce(&mut Self) -> io::Result<T>) -> Result<T, Error> {
        write(self).map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }
}

/// Which digest padding belongs to.
#[derive(Clone, Copy)]
enum Coverage {
    Weights,
    None,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` the name is free already.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Whether an image may take the place of what is at `path`: nothing, an empty file, or an image of any version.
fn is_replaceable(path: &Path) -> bool {
    let is_empty_or_image = || {
        let mut start = Vec::new();
        let file = File::open(path)?;
        file.take(FAMILY.len() as u64).read_to_end(&mut start)?;
        io::Result::Ok(start.is_empty() || start == FAMILY)
    };
    match fs::metadata(path) {
        // Opening a pipe waits for whoever writes to it.
        Ok(found) => found.is_file() && is_empty_or_image().unwrap_or(false),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing;

    /// An image of nothing but an embedding table.
    fn parts(writer: &mut Writer, weights: Weights, table: &[u8]) -> Parts<'static> {
        let mut description = testing::source().description;
        description.tokenizer_id = Id::of(b"{}");
        Parts {
            description,
            tract: "0",
            tokenizer: b"{}",
            program: b"",
            steps: None,
            unlowered: None,
            embeddings: (weights, writer.weight(table).unwrap()),
            packed: Vec::new(),
        }
    }

    #[test]
    fn a_scale_that_is_no_number_is_noticed_at_verify() {
        let folder = tempfile::tempdir().unwrap();
        let rows = testing::WORDS.len();
        for (weights, whole) in [
            (Weights::I8, true),
            (Weights::F16, true),
            (Weights::I8, false),
        ] {
            let numbers = testing::numbers(1, rows * testing::HIDDEN);
            let mut table = weights.encode(&numbers, testing::HIDDEN, 1).unwrap();
            if !whole {
                let last = table.len() - testing::HIDDEN;
                table[last - 4..last].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            let mut writer = Writer::create(&folder.path().join("x.base")).unwrap();
            let parts = parts(&mut writer, weights, &table);
            let verify = |path: &Path| crate::map::open_own(path)?.verify_weights().map(|()| true);
            match writer.finish(parts, verify) {
                Ok(_) => assert!(whole),
                Err(error) => assert!(
                    !whole && error.to_string().contains("not finite"),
                    "{error}"
                ),
            }
        }
    }

    #[test]
    fn what_does_not_run_or_is_not_kept_leaves_the_older_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.base");
        let older = [FAMILY, b"v005"].concat();
        fs::write(&path, &older).unwrap();
        for said in [Err(Error::NoTask), Ok(false)] {
            let mut writer = Writer::create(&path).unwrap();
            let parts = parts(&mut writer, Weights::F32, &[0; 64]);
            let runs = said.is_ok();
            let tried = writer.finish(parts, |written| {
                assert!(written.is_file() && written != path);
                said
            });
            assert!(matches!(
                (tried, runs),
                (Ok(None), true) | (Err(Error::NoTask), false)
            ));
            assert_eq!(fs::read(&path).unwrap(), older);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        }
    }

    #[test]
    fn nothing_else_than_an_image_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release.key");
        for (bytes, replaced) in [
            (&b"a secret key"[..], false),
            (&FAMILY[..9], false),
            (FAMILY, true),
            (b"", true),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = Writer::create(&path).err();
            assert_eq!(error.is_none(), replaced, "{bytes:?}: {error:?}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::remove_file(&path).unwrap();
        Writer::create(&path).unwrap();
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for path in [folder.path(), &pipe, Path::new("/dev/null")] {
            let created = Writer::create(path);
            assert!(matches!(created, Err(Error::Write { .. })), "{path:?}");
        }
    }
}
