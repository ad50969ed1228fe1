//! The base image: a frozen base model laid out for mapping.
//!
//! A file is a preamble of fixed length, the weights section (the embedding table row by row, then the packed weights,
//! each on a page of its own), the tokenizer, the program, and an index in JSON. The preamble gives the file's length
//! and digests of itself, the index and the weights; the index gives the digests of the tokenizer and the program.
//! All but the weights are checked whenever an image is opened.

mod description;
mod format;
mod hex;
#[cfg(feature = "compile")]
mod write;

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    slice::ChunksExact,
    sync::Arc,
};

use sha2::{Digest, Sha256};

pub use description::{Description, Inputs, Kind, Layer, PrefixInputs};
pub(crate) use format::Packed;
use format::{Index, Preamble};
#[cfg(feature = "compile")]
pub(crate) use {
    format::Span,
    write::{Parts, Writer},
};

use crate::{
    Error, Weights,
    engine::{EngineKind, executor::program::Program},
    map::{Map, floats},
};

/// Bytes of one number in the embedding table.
const FLOAT_BYTES: usize = size_of::<f32>();

/// A mapped base image; clones share the map.
#[derive(Clone, Debug)]
pub struct Image {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    map: Map,
    preamble: Preamble,
    index: Index,
}

impl Image {
    pub(crate) fn check(path: &Path, map: Map) -> Result<Self, Error> {
        let preamble = Preamble::read(path, &map)?;
        let index = Index::read(path, &map, &preamble)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                map,
                preamble,
                index,
            }),
        })
    }

    /// Whether the file at `path` begins as a base image of any version does; `false` where it cannot be read.
    pub fn is_at(path: &Path) -> bool {
        let mut start = [0; format::FAMILY.len()];
        let mut read = || File::open(path)?.read_exact(&mut start);
        fs::metadata(path).is_ok_and(|found| found.is_file())
            && read().is_ok()
            && start == format::FAMILY
    }

    /// The file that is mapped.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The length of the file.
    pub fn len_bytes(&self) -> usize {
        self.inner.map.len()
    }

    /// What the base is.
    pub fn description(&self) -> &Description {
        &self.inner.index.description
    }

    /// The processor architecture that the weights are packed for.
    pub fn architecture(&self) -> &str {
        &self.inner.index.architecture
    }

    /// The version of tract that packed the weights.
    pub fn packer(&self) -> &str {
        &self.inner.index.tract
    }

    /// The kernels that the packed weights are laid out for, sorted.
    pub fn kernels(&self) -> Vec<&str> {
        let names = self.packed().iter().flat_map(|packed| &packed.kernels);
        let mut names: Vec<&str> = names.map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The engine that the image was made for.
    pub fn engine(&self) -> EngineKind {
        match self.steps() {
            Some(_) => EngineKind::Executor,
            None => EngineKind::Plan,
        }
    }

    /// How its packed weights are stored.
    pub fn weights(&self) -> Weights {
        self.inner.index.weights()
    }

    /// Why it was not made for the executor: the node that stopped the lowering.
    pub fn unlowered(&self) -> Option<&str> {
        self.inner.index.unlowered.as_deref()
    }

    /// The exact bytes of `tokenizer.json`.
    pub fn tokenizer(&self) -> &[u8] {
        self.bytes(&self.inner.index.tokenizer.span)
    }

    /// Reads the whole weights section, compares it with its digest, and looks for what is no number.
    ///
    /// # Errors
    /// When the weights were changed after the image was written, or one of them is not finite.
    pub fn verify_weights(&self) -> Result<(), Error> {
        let preamble = &self.inner.preamble;
        let path = || self.inner.path.clone();
        if Sha256::digest(self.bytes(&preamble.weights))[..] != preamble.weights_sha256 {
            return Err(Error::Damaged {
                path: path(),
                part: "weights section",
            });
        }
        let infinite = |name: &str| Error::Inconsistent {
            path: path(),
            reason: format!("the weight {name} has numbers that are not finite"),
        };
        let (weights, mut rows) = self.table();
        if !rows.all(|row| weights.is_finite(row, 1)) {
            return Err(infinite("of the embedding table"));
        }
        for packed in self.packed() {
            let mut panels = self.panels(packed).chunks_exact(packed.panel_bytes.max(1));
            if !panels.all(|panel| packed.dtype.is_finite(panel, packed.r)) {
                return Err(infinite(&packed.name));
            }
        }
        Ok(())
    }

    /// Whether the image was made for this build and this architecture.
    ///
    /// # Errors
    /// When the architecture, the version of tract or a kernel differs; the message says how to rebuild.
    pub fn fits(&self) -> Result<(), Error> {
        let index = &self.inner.index;
        let here = std::env::consts::ARCH;
        if index.architecture != here {
            return Err(self.unfit(format!("it is for {}, this is {here}", index.architecture)));
        }
        if index.tract != crate::engine::TRACT {
            let ours = crate::engine::TRACT;
            return Err(self.unfit(format!(
                "tract {} packed it, this build has {ours}",
                index.tract
            )));
        }
        let mut missing = self.kernels();
        missing.retain(|name| !crate::engine::has_kernel(name));
        if let Some(name) = missing.first() {
            return Err(self.unfit(format!("it needs the kernel {name}")));
        }
        Ok(())
    }

    /// The embeddings of all tokens as the base reads them, `[vocabulary, embedding width]`, copied into f32.
    pub fn embeddings(&self) -> Vec<f32> {
        let ((weights, rows), width) = (self.table(), self.description().embedding_width());
        let mut table = vec![0.0; rows.len() * width];
        for (stored, row) in rows.zip(table.chunks_mut(width.max(1))) {
            weights.expand(stored, 1, 0, row);
        }
        table
    }

    /// Copies the embedding row of token `id` into `row` (`[hidden]`).
    pub(crate) fn embedding(&self, id: u32, row: &mut [f32]) -> Result<(), Error> {
        let (weights, mut rows) = self.table();
        let vocabulary = rows.len();
        let found = usize::try_from(id).ok().and_then(|id| rows.nth(id));
        let stored = found.ok_or(Error::Token { id, vocabulary })?;
        weights.expand(stored, 1, 0, row);
        Ok(())
    }

    /// The embedding rows as they are stored, each a panel of one output, `[hidden, 1]`.
    pub(crate) fn table(&self) -> (Weights, ChunksExact<'_, u8>) {
        let table = &self.inner.index.embeddings;
        let row_bytes = table.dtype.panel_bytes(table.columns, 1);
        let row_bytes = row_bytes.expect("the table was checked when the image was opened");
        (
            table.dtype,
            self.bytes(&table.span).chunks_exact(row_bytes.max(1)),
        )
    }

    /// What the executor runs; `None` where the image is the plan's.
    pub(crate) fn steps(&self) -> Option<&Program> {
        self.inner.index.steps.as_ref()
    }

    /// The constants that the steps read.
    pub(crate) fn constants(&self) -> &[f32] {
        floats(self.program())
    }

    pub(crate) fn program(&self) -> &[u8] {
        self.bytes(&self.inner.index.program.span)
    }

    pub(crate) fn packed(&self) -> &[Packed] {
        &self.inner.index.packed
    }

    pub(crate) fn panels(&self, packed: &Packed) -> &[u8] {
        self.bytes(&packed.span)
    }

    pub(crate) fn unfit(&self, reason: String) -> Error {
        Error::Unfit {
            path: self.inner.path.clone(),
            reason,
        }
    }

    /// Whether both are one mapping.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn bytes(&self, span: &format::Span) -> &[u8] {
        &self.inner.map[span
            .range()
            .expect("every span was checked when the image was opened")]
    }
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use std::fs;

    use super::{format::PREAMBLE_BYTES, *};
    use crate::{Session, testing};

    #[allow(unsafe_code)]
    fn open(path: &Path) -> Result<Image, Error> {
        // SAFETY: a test writes its file before it opens it, and no other test knows the file.
        unsafe { Image::open(path) }
    }

    /// A compiled image, its path and its bytes.
    fn compiled() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.base");
        testing::image(&path);
        let bytes = fs::read(&path).unwrap();
        (folder, path, bytes)
    }

    /// The same image with another index, its digests right.
    fn with_index(bytes: &[u8], change: impl FnOnce(&mut Index)) -> Vec<u8> {
        let path = Path::new("x.base");
        let mut preamble = Preamble::read(path, bytes).unwrap();
        let mut index = Index::read(path, bytes, &preamble).unwrap();
        change(&mut index);
        let index = serde_json::to_vec(&index).unwrap();
        let start = preamble.index.range().unwrap().start;
        preamble.index.bytes = index.len() as u64;
        preamble.index_sha256 = Sha256::digest(&index).into();
        preamble.file_bytes = preamble.index.offset + preamble.index.bytes;
        let mut changed = [&bytes[..start], &index].concat();
        changed[..PREAMBLE_BYTES].copy_from_slice(&preamble.encode());
        changed
    }

    #[test]
    fn what_is_no_file_is_no_image_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), 0o600.into()).unwrap();
        fs::write(at("empty"), "").unwrap();
        for path in [folder.path().to_owned(), at("pipe"), at("empty")] {
            let opened = open(&path);
            assert!(
                matches!(opened, Err(Error::NotAnImage { .. })),
                "{opened:?}"
            );
        }
    }

    #[test]
    fn an_image_says_what_it_holds() {
        let (_folder, path, bytes) = compiled();
        let image = open(&path).unwrap();
        assert_eq!(image.description(), &testing::source().description);
        assert_eq!(image.tokenizer(), testing::source().tokenizer);
        assert_eq!(
            (image.len_bytes(), image.architecture()),
            (bytes.len(), std::env::consts::ARCH)
        );
        assert!(!image.kernels().is_empty());
        image.fits().unwrap();
        image.verify_weights().unwrap();
        let mut row = [0.0; testing::HIDDEN];
        image.embedding(2, &mut row).unwrap();
        let table = testing::numbers(1, testing::WORDS.len() * testing::HIDDEN);
        assert_eq!(row, table[2 * testing::HIDDEN..3 * testing::HIDDEN]);
    }

    #[test]
    fn compiling_twice_gives_the_same_bytes() {
        assert_eq!(compiled().2, compiled().2);
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let (_folder, path, bytes) = compiled();
        for length in [
            0,
            1,
            31,
            32,
            PREAMBLE_BYTES - 1,
            PREAMBLE_BYTES,
            bytes.len() / 2,
            bytes.len() - 1,
        ] {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(
                error.contains("preface compile BASE -o"),
                "{length}: {error}"
            );
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert!(matches!(open(&path), Err(Error::Length { .. })));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let (_folder, path, bytes) = compiled();
        let weights = Preamble::read(&path, &bytes)
            .unwrap()
            .weights
            .range()
            .unwrap();
        for place in (0..PREAMBLE_BYTES).chain((0..bytes.len()).step_by(997)) {
            let mut changed = bytes.clone();
            changed[place] ^= 0x10;
            fs::write(&path, &changed).unwrap();
            match open(&path) {
                Ok(image) => {
                    assert!(weights.contains(&place), "byte {place}");
                    assert!(
                        matches!(image.verify_weights(), Err(Error::Damaged { .. })),
                        "byte {place}"
                    );
                }
                Err(_) => assert!(!weights.contains(&place), "byte {place}"),
            }
        }
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        type Change = fn(&mut Index);
        let table: [(&str, Change); 3] = [
            ("it is for pdp11", |index| {
                index.architecture = "pdp11".into()
            }),
            ("tract 0.0.1 packed it", |index| {
                index.tract = "0.0.1".into()
            }),
            ("it needs the kernel warp", |index| {
                index.packed[0].kernels.push("warp".into())
            }),
        ];
        let (_folder, path, bytes) = compiled();
        for (text, change) in table {
            fs::write(&path, with_index(&bytes, change)).unwrap();
            let image = open(&path).unwrap();
            let error = Session::open(&image, crate::Options::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(text) && error.contains("preface compile BASE -o"),
                "{error}"
            );
        }
    }

    #[test]
    fn tables_that_contradict_themselves_are_refused() {
        type Change = fn(&mut Index);
        let table: [(&str, Change); 10] = [
            ("size of its rows", |index| index.embeddings.rows += 1),
            ("size of its rows", |index| {
                index.embeddings.dtype = Weights::F16
            }),
            ("size of its panels", |index| {
                index.packed[0].dtype = Weights::I4
            }),
            ("plan does not read", |index| {
                let packed = &mut index.packed[0];
                let panels = packed.mn.div_ceil(packed.r);
                packed.dtype = Weights::I8;
                packed.panel_bytes = packed.dtype.panel_bytes(packed.k, packed.r).unwrap();
                packed.span.bytes = (panels * packed.panel_bytes) as u64;
            }),
            ("not the one described", |index| {
                index.description.vocabulary += 1
            }),
            ("size of its panels", |index| index.packed[0].k += 1 << 20),
            ("size of its panels", |index| {
                index.packed[0].span.offset += 8
            }),
            ("tokenizer lies outside", |index| {
                index.tokenizer.span.bytes = u64::MAX
            }),
            ("program does not match", |index| {
                index.program.span.bytes -= 1
            }),
            ("no prefix inputs", |index| {
                index.description.inputs.prefixes.truncate(1)
            }),
        ];
        let (_folder, path, bytes) = compiled();
        for (text, change) in table {
            fs::write(&path, with_index(&bytes, change)).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_weights_stay_in_the_file() {
        let (_folder, path, _) = compiled();
        let image = open(&path).unwrap();
        let _session = Session::open(&image, crate::Options::default()).unwrap();
        image.verify_weights().unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = smaps
            .find(path.to_str().unwrap())
            .expect("the image is mapped");
        let of_image = smaps[start..]
            .lines()
            .skip(1)
            .take_while(|line| line.split(' ').next().unwrap().ends_with(':'));
        let bytes = |name: &str| -> u64 {
            let mut line = of_image.clone().filter(|line| line.starts_with(name));
            line.next()
                .unwrap()
                .split_ascii_whitespace()
                .nth(1)
                .unwrap()
                .parse()
                .unwrap()
        };
        assert_eq!(bytes("Rss:"), image.len_bytes().div_ceil(4096) as u64 * 4);
        assert_eq!(bytes("Anonymous:"), 0);
    }
}
