//! The bytes of a base image, read with nothing trusted.

use std::{ops::Range, path::Path};

use preface_bundle::Id;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Description, FLOAT_BYTES, Kind};
use crate::{
    Error, Weights,
    engine::executor::program::{Program, Sizes},
};

/// The start of every base image of this format.
pub(crate) const MAGIC: [u8; 32] = *b"\x89PRB\r\n\x1a\npreface-base-image-v006\n";
/// What comes before the version in [`MAGIC`].
pub(crate) const FAMILY: &[u8] = b"\x89PRB\r\n\x1a\npreface-base-image-";
/// The name of this format, for messages.
const FORMAT: &str = "v006";
/// Where sections and packed weights begin: a page.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Bytes of the preamble, its own digest included.
pub(crate) const PREAMBLE_BYTES: usize = 168;
const PREAMBLE_DIGEST_AT: usize = 136;
/// An index longer than this is refused before it is parsed.
const INDEX_LIMIT_BYTES: u64 = 64 << 20;

/// Numbers of a token's keys in a layer; more are refused.
const MOST_WIDTH: usize = 1 << 20;

/// A run of bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Span {
    pub offset: u64,
    pub bytes: u64,
}

impl Span {
    pub fn range(&self) -> Option<Range<usize>> {
        let start = usize::try_from(self.offset).ok()?;
        Some(start..start.checked_add(usize::try_from(self.bytes).ok()?)?)
    }

    fn within<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.range()?)
    }

    fn inside(&self, outer: &Self) -> bool {
        let end = |span: &Self| span.offset.checked_add(span.bytes);
        self.offset >= outer.offset
            && end(self).is_some_and(|own| end(outer).is_some_and(|outer| own <= outer))
    }
}

/// The fixed start of the file: magic, length, index, weights, and the digest of all that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub file_bytes: u64,
    pub index: Span,
    pub index_sha256: [u8; 32],
    pub weights: Span,
    pub weights_sha256: [u8; 32],
}

impl Preamble {
    #[cfg(feature = "compile")]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.file_bytes, self.index.offset, self.index.bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.index_sha256);
        for number in [self.weights.offset, self.weights.bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.weights_sha256);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    pub fn read(path: &Path, file: &[u8]) -> Result<Self, Error> {
        check_magic(path, file)?;
        let found = file.len() as u64;
        let Some(bytes) = file.first_chunk::<PREAMBLE_BYTES>() else {
            let expected = PREAMBLE_BYTES as u64;
            return Err(Error::Length {
                path: path.to_owned(),
                expected,
                found,
            });
        };
        let (content, digest) = bytes.split_at(PREAMBLE_DIGEST_AT);
        if Sha256::digest(content)[..] != *digest {
            return Err(Error::Damaged {
                path: path.to_owned(),
                part: "preamble",
            });
        }
        let preamble = Self::decode(content).expect("the content has the length of all its fields");
        if preamble.file_bytes != found {
            let expected = preamble.file_bytes;
            return Err(Error::Length {
                path: path.to_owned(),
                expected,
                found,
            });
        }
        Ok(preamble)
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let mut rest = content.get(MAGIC.len()..)?;
        Some(Self {
            file_bytes: number(&mut rest)?,
            index: span(&mut rest)?,
            index_sha256: take(&mut rest)?,
            weights: span(&mut rest)?,
            weights_sha256: take(&mut rest)?,
        })
    }
}

fn check_magic(path: &Path, file: &[u8]) -> Result<(), Error> {
    let path = path.to_owned();
    match file.first_chunk() {
        Some(&MAGIC) => Ok(()),
        Some(start) if start.starts_with(FAMILY) => {
            let version = String::from_utf8_lossy(&start[FAMILY.len()..]);
            let found = version.trim_end().escape_default().to_string();
            Err(Error::Version {
                path,
                found,
                expected: FORMAT,
            })
        }
        _ => Err(Error::NotAnImage { path }),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

fn span(rest: &mut &[u8]) -> Option<Span> {
    Some(Span {
        offset: number(rest)?,
        bytes: number(rest)?,
    })
}

/// One weight, packed: panels of `r` rows or columns, `k` numbers deep, as tract-linalg's `PackedFormat` lays them, or as
/// [`crate::weights`] does in fewer bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packed {
    /// The program's node that would pack it.
    pub name: String,
    /// The kernels that read it: for many rows, and for one where it is another.
    pub kernels: Vec<String>,
    pub dtype: Weights,
    pub r: usize,
    /// In bytes, of the panels that kernels read.
    pub alignment: usize,
    /// Records of `r` elements that a kernel may read past the last.
    pub end_padding: usize,
    pub k: usize,
    pub mn: usize,
    pub panel_bytes: usize,
    pub span: Span,
}

impl Packed {
    /// The numbers of its panels.
    pub fn panels(&self) -> Range<usize> {
        0..self.mn.div_ceil(self.r)
    }

    /// Bytes of all panels; `None` where the numbers cannot belong together.
    fn expected_bytes(&self) -> Option<u64> {
        if [self.r, self.k, self.mn, self.alignment].contains(&0) {
            return None;
        }
        let records = self.k.checked_add(self.end_padding)?;
        let fits = match self.dtype {
            // Kernels read every panel from a boundary on.
            Weights::F32 => {
                self.panel_bytes >= records.checked_mul(self.r)?.checked_mul(FLOAT_BYTES)?
                    && self.panel_bytes.is_multiple_of(self.alignment)
            }
            narrow => Some(self.panel_bytes) == narrow.panel_bytes(self.k, self.r),
        };
        if !fits {
            return None;
        }
        let panels = self.mn.div_ceil(self.r);
        panels.checked_mul(self.panel_bytes)?.try_into().ok()
    }
}

/// A part with its own digest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Section {
    #[serde(flatten)]
    pub span: Span,
    #[serde(with = "super::hex")]
    pub sha256: Id,
}

/// The embedding table, `[rows, columns]`: each row a panel of one output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    #[serde(flatten)]
    pub span: Span,
    pub dtype: Weights,
    pub rows: usize,
    pub columns: usize,
}

/// Everything but the bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    pub tract: String,
    pub architecture: String,
    pub description: Description,
    pub tokenizer: Section,
    /// The plan's graph, or the constants that the steps read.
    pub program: Section,
    /// What the executor runs; without it the image is the plan's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Program>,
    /// Why there are no steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlowered: Option<String>,
    pub embeddings: Table,
    pub packed: Vec<Packed>,
}

impl Index {
    pub fn read(path: &Path, file: &[u8], preamble: &Preamble) -> Result<Self, Error> {
        let inconsistent = |reason: String| Error::Inconsistent {
            path: path.to_owned(),
            reason,
        };
        let damaged = |part| Error::Damaged {
            path: path.to_owned(),
            part,
        };
        let whole = Span {
            offset: 0,
            bytes: file.len() as u64,
        };
        if !preamble.weights.inside(&whole) || preamble.index.bytes > INDEX_LIMIT_BYTES {
            return Err(inconsistent("a section lies outside the file".into()));
        }
        let bytes = preamble.index.within(file);
        let bytes = bytes.ok_or_else(|| inconsistent("the index lies outside the file".into()))?;
        if Sha256::digest(bytes)[..] != preamble.index_sha256 {
            return Err(damaged("index"));
        }
        let index: Self = serde_json::from_slice(bytes)
            .map_err(|error| inconsistent(format!("index: {error}")))?;
        for (section, part) in [(&index.tokenizer, "tokenizer"), (&index.program, "program")] {
            let bytes = section.span.within(file);
            let bytes =
                bytes.ok_or_else(|| inconsistent(format!("the {part} lies outside the file")))?;
            if Sha256::digest(bytes)[..] != section.sha256.0 {
                return Err(damaged(part));
            }
        }
        index.check(&preamble.weights).map_err(inconsistent)?;
        let sections = [
            preamble.weights,
            index.tokenizer.span,
            index.program.span,
            preamble.index,
        ];
        if !fills(file, &sections) {
            return Err(damaged("padding between the sections"));
        }
        Ok(index)
    }

    fn check(&self, weights: &Span) -> Result<(), String> {
        let Table {
            span,
            dtype,
            rows,
            columns,
        } = &self.embeddings;
        let row_bytes = dtype.panel_bytes(*columns, 1);
        let bytes = row_bytes.and_then(|row_bytes| rows.checked_mul(row_bytes));
        if bytes.and_then(|bytes| u64::try_from(bytes).ok()) != Some(span.bytes)
            || !span.inside(weights)
            || span.offset % PAGE_BYTES != 0
        {
            return Err("the embedding table has not the size of its rows".into());
        }
        if (*rows, *columns)
            != (
                self.description.vocabulary,
                self.description.embedding_width(),
            )
        {
            return Err("the embedding table is not the one described".into());
        }
        if self.tokenizer.sha256 != self.description.tokenizer_id {
            return Err("the tokenizer is not the one described".into());
        }
        if self.description.hidden == 0 || self.description.embedding_width() == 0 {
            return Err("the rows have no numbers".into());
        }
        let mut layers = self.description.layers.iter();
        if layers.any(|layer| layer.kv_heads.saturating_mul(layer.head_dim) > MOST_WIDTH) {
            return Err("a layer has more keys than any model".into());
        }
        let encodes = self.description.kind == Kind::EncoderDecoder;
        let encoder = self.steps.as_ref().and_then(|steps| steps.encoder.as_ref());
        if encodes != encoder.is_some() {
            return Err("the program is not of the kind described".into());
        }
        let prefixes = self.description.inputs.prefixes.len();
        if !encodes && prefixes != self.description.layers.len() {
            return Err("a layer has no prefix inputs".into());
        }
        let vocabulary = self.description.vocabulary;
        let known = |token: u32| usize::try_from(token).is_ok_and(|token| token < vocabulary);
        if !self.description.start.is_none_or(known) {
            return Err("the decoder begins with no token".into());
        }
        for packed in &self.packed {
            let Span { offset, bytes } = packed.span;
            if packed.expected_bytes() != Some(bytes)
                || !packed.span.inside(weights)
                || offset % PAGE_BYTES != 0
            {
                return Err(format!(
                    "the packed weight {} has not the size of its panels",
                    packed.name
                ));
            }
        }
        match &self.steps {
            None => match self
                .packed
                .iter()
                .find(|packed| packed.dtype != Weights::F32)
            {
                None => Ok(()),
                Some(packed) => Err(format!("the plan does not read the weight {}", packed.name)),
            },
            Some(steps) => self.check_steps(steps),
        }
    }

    /// How the packed weights are stored; those of fewest bits where they differ.
    pub fn weights(&self) -> Weights {
        let packed = self.packed.iter().map(|packed| packed.dtype);
        packed.max().unwrap_or(self.embeddings.dtype)
    }

    fn check_steps(&self, steps: &Program) -> Result<(), String> {
        let section = &self.program.span;
        let constants = usize::try_from(section.bytes).unwrap_or(0) / FLOAT_BYTES;
        if !section.offset.is_multiple_of(PAGE_BYTES) {
            return Err("the constants begin on no page".into());
        }
        if let Some(packed) = self.packed.iter().find(|packed| packed.kernels.is_empty()) {
            return Err(format!("no kernel reads the weight {}", packed.name));
        }
        let weights = self.packed.iter().map(|packed| (packed.k, packed.mn));
        let layers = self.description.layers.iter();
        let layers = layers.map(|layer| (layer.kv_heads, layer.head_dim));
        steps.check(&Sizes {
            weights: &weights.collect::<Vec<_>>(),
            constants,
            layers: &layers.collect::<Vec<_>>(),
            hidden: self.description.hidden,
            embedding_width: self.description.embedding_width(),
            vocabulary: self.description.vocabulary,
        })
    }
}

/// Whether `sections` follow the preamble in this order, with less than a page of zeros before each, and end the file.
fn fills(file: &[u8], sections: &[Span]) -> bool {
    let mut end = PREAMBLE_BYTES;
    for range in sections.iter().map(Span::range) {
        let Some(range) = range else { return false };
        let zeros = file.get(end..range.start);
        if !zeros.is_some_and(|zeros| {
            zeros.len() < PAGE_BYTES as usize && zeros.iter().all(|&byte| byte == 0)
        }) {
            return false;
        }
        end = range.end;
    }
    end == file.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(dtype: Weights, r: usize, k: usize, mn: usize, panel_bytes: usize) -> Packed {
        Packed {
            name: "w".into(),
            kernels: Vec::new(),
            dtype,
            r,
            alignment: 1,
            end_padding: 1,
            k,
            mn,
            panel_bytes,
            span: Span {
                offset: 0,
                bytes: 0,
            },
        }
    }

    #[test]
    fn panels_add_up_or_are_refused() {
        use Weights::{F16, F32, I4, I8};
        let table = [
            (packed(F32, 4, 3, 8, 64), Some(128)),
            (packed(F32, 4, 3, 9, 64), Some(192)),
            (packed(F32, 4, 3, 8, 63), None),
            (packed(F32, 0, 3, 8, 64), None),
            (packed(F32, 4, usize::MAX, 8, 64), None),
            (packed(F32, 4, 3, usize::MAX, usize::MAX), None),
            (packed(F16, 4, 3, 9, 24), Some(72)),
            (packed(F16, 4, 3, 9, 32), None),
            (packed(I8, 4, 3, 9, 28), Some(84)),
            (packed(I4, 4, 3, 9, 16), Some(48)),
            (packed(I4, 0, 3, 9, 16), None),
            (packed(I4, 4, usize::MAX, 9, 16), None),
        ];
        for (packed, bytes) in table {
            assert_eq!(packed.expected_bytes(), bytes, "{packed:?}");
        }
    }

    #[test]
    fn a_span_stays_inside() {
        let outer = Span {
            offset: 8,
            bytes: 8,
        };
        let table = [
            (8, 8, true),
            (7, 2, false),
            (16, 0, true),
            (15, 2, false),
            (9, u64::MAX, false),
        ];
        for (offset, bytes, inside) in table {
            assert_eq!(
                Span { offset, bytes }.inside(&outer),
                inside,
                "{offset} {bytes}"
            );
        }
    }

    #[cfg(feature = "compile")]
    #[test]
    fn the_preamble_comes_back() {
        let preamble = Preamble {
            file_bytes: PREAMBLE_BYTES as u64,
            index: Span {
                offset: 3,
                bytes: 4,
            },
            index_sha256: [5; 32],
            weights: Span {
                offset: 6,
                bytes: 7,
            },
            weights_sha256: [8; 32],
        };
        let bytes = preamble.encode();
        assert_eq!(bytes.len(), PREAMBLE_BYTES);
        assert_eq!(Preamble::read(Path::new("x"), &bytes).unwrap(), preamble);
    }

    #[test]
    fn what_is_not_an_image_is_named() {
        let table: [(&[u8], &str); 4] = [
            (b"", "not a base image"),
            (
                b"\x08\x07\x12\x07pytorch and more and more bytes",
                "not a base image",
            ),
            (
                b"\x89PRB\r\n\x1a\npreface-base-image-v009\n",
                "image format v009",
            ),
            (&MAGIC, "32 bytes long"),
        ];
        for (bytes, text) in table {
            let error = Preamble::read(Path::new("x.base"), bytes)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(text) && error.contains("preface compile BASE -o"),
                "{error}"
            );
        }
    }
}
