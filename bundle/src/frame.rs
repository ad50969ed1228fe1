//! The frame: header, manifest, payload, signature block, and not a byte more.

use crate::{
    MAX_PREFIX_BYTES, MAX_SIGNATURES, MAX_STORED_BYTES,
    cursor::Cursor,
    error::{Error, FRAME},
    id::{Id, KeyId},
    manifest::{CORE_BYTES, Manifest},
};

/// What every file of ours begins with; a transfer in text mode breaks it.
pub const MAGIC: [u8; 8] = [0x89, b'P', b'R', b'F', 0x0D, 0x0A, 0x1A, 0x0A];
/// The first 32 bytes of a bundle: magic, purpose and major version. Because it is signed, a
/// signature on a bundle is a signature on nothing else.
pub const CONTEXT: [u8; 32] = *b"\x89PRF\r\n\x1a\nsoft-prompt-bundle-v001\n";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// What a signature block begins with.
pub const SIGNATURE_MAGIC: [u8; 4] = *b"SIG1";
/// Bytes of one signature entry.
pub const ENTRY_BYTES: usize = 88;
/// The only signature algorithm.
pub const ALGORITHM_ED25519: u16 = 1;

const BLOCK_HEADER_BYTES: usize = 8;
const VERSION_AT: usize = 28;

/// One signature.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry<'a> {
    /// The key that the entry names; a claim until the signature holds.
    pub key_id: KeyId,
    /// The Ed25519 signature of the signed prefix.
    pub signature: &'a [u8; 64],
}

/// A file that has the layout of a bundle. Nothing in it is believed yet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    prefix: &'a [u8],
    manifest: &'a [u8],
    payload: &'a [u8],
    entries: &'a [[u8; ENTRY_BYTES]],
}

impl<'a> Frame<'a> {
    /// Takes a file apart.
    ///
    /// # Errors
    /// [`Error::NotABundle`], [`Error::OtherVersion`], [`Error::Truncated`],
    /// [`Error::TrailingBytes`], or [`Error::Malformed`] with the rule that is broken.
    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        check_context(file)?;
        let (manifest_bytes, payload_bytes) = header(file)?;
        let truncated = |expected| Error::Truncated {
            expected,
            found: file.len(),
        };
        let prefix_bytes = HEADER_BYTES + manifest_bytes;
        let block_at = prefix_bytes + payload_bytes;
        let least = block_at + BLOCK_HEADER_BYTES + ENTRY_BYTES;
        let mut cursor = Cursor::new(file);
        let prefix = cursor.bytes(prefix_bytes).ok_or(truncated(least))?;
        let payload = cursor.bytes(payload_bytes).ok_or(truncated(least))?;
        let block = cursor.array().ok_or(truncated(least))?;
        let count = signature_count(block)?;
        let expected = block_at + BLOCK_HEADER_BYTES + count * ENTRY_BYTES;
        let entries = cursor
            .bytes(count * ENTRY_BYTES)
            .ok_or(truncated(expected))?;
        if !cursor.is_empty() {
            return Err(Error::TrailingBytes {
                expected,
                found: file.len(),
            });
        }
        let (entries, _) = entries.as_chunks();
        check_entries(entries)?;
        let manifest = prefix.get(HEADER_BYTES..).unwrap_or_default();
        Ok(Self {
            prefix,
            manifest,
            payload,
            entries,
        })
    }

    /// The bytes that signatures are made of: header and manifest.
    pub fn signed_prefix(&self) -> &'a [u8] {
        self.prefix
    }

    /// The bundle's identity: SHA-256 of the signed prefix, which holds the payload's digest.
    pub fn bundle_id(&self) -> Id {
        Id::of(self.prefix)
    }

    /// The payload as stored.
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The signatures, in ascending order of key id.
    pub fn signatures(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        self.entries.iter().filter_map(read_entry)
    }

    /// The manifest, which nobody vouches for: to show it, never to act on it.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::UnknownCritical`].
    pub fn unverified_manifest(&self) -> Result<Manifest<'a>, Error> {
        Manifest::read(self.manifest, self.payload.len())
    }
}

fn check_context(file: &[u8]) -> Result<(), Error> {
    let Some(context) = file.first_chunk::<32>() else {
        return Err(if CONTEXT.starts_with(file) {
            Error::Truncated {
                expected: HEADER_BYTES + CORE_BYTES,
                found: file.len(),
            }
        } else {
            Error::NotABundle
        });
    };
    if *context == CONTEXT {
        return Ok(());
    }
    let same_purpose = context.get(..VERSION_AT) == CONTEXT.get(..VERSION_AT);
    Err(if same_purpose {
        Error::OtherVersion
    } else {
        Error::NotABundle
    })
}

/// Lengths of manifest and payload.
fn header(file: &[u8]) -> Result<(usize, usize), Error> {
    let mut cursor = Cursor::new(file.get(CONTEXT.len()..).unwrap_or_default());
    let short = Error::Truncated {
        expected: HEADER_BYTES + CORE_BYTES,
        found: file.len(),
    };
    let _minor = cursor.u16().ok_or(short)?;
    let flags = cursor.u16().ok_or(short)?;
    let manifest_bytes = cursor.u32().ok_or(short)?;
    let payload_bytes = cursor.u32().ok_or(short)?;
    let reserved = cursor.bytes(20).ok_or(short)?;
    if flags != 0 || reserved.iter().any(|byte| *byte != 0) {
        return Err(Error::malformed(
            FRAME,
            "header flags and reserved bytes are zero",
        ));
    }
    let manifest_bytes = usize::try_from(manifest_bytes)
        .ok()
        .filter(|bytes| (CORE_BYTES..=MAX_PREFIX_BYTES - HEADER_BYTES).contains(bytes))
        .filter(|bytes| bytes.is_multiple_of(64))
        .ok_or(Error::malformed(
            FRAME,
            "the manifest has 256 to 4032 bytes, a multiple of 64",
        ))?;
    let payload_bytes = usize::try_from(payload_bytes)
        .ok()
        .filter(|bytes| (1..=MAX_STORED_BYTES).contains(bytes))
        .ok_or(Error::malformed(
            FRAME,
            "the stored payload has 1 byte to 1 MiB",
        ))?;
    Ok((manifest_bytes, payload_bytes))
}

fn signature_count(block: [u8; BLOCK_HEADER_BYTES]) -> Result<usize, Error> {
    let mut cursor = Cursor::new(&block);
    if cursor.array() != Some(SIGNATURE_MAGIC) {
        return Err(Error::malformed(
            FRAME,
            "no signature block follows the payload",
        ));
    }
    let count = cursor.u16().map_or(0, usize::from);
    if !(1..=MAX_SIGNATURES).contains(&count) {
        return Err(Error::malformed(FRAME, "a bundle has 1 to 8 signatures"));
    }
    if cursor.u16().map(usize::from) != Some(ENTRY_BYTES) {
        return Err(Error::malformed(FRAME, "a signature entry has 88 bytes"));
    }
    Ok(count)
}

fn check_entries(entries: &[[u8; ENTRY_BYTES]]) -> Result<(), Error> {
    let mut previous = None;
    for entry in entries {
        let entry = read_entry(entry).ok_or(Error::malformed(
            FRAME,
            "a signature entry is of an unknown algorithm or has a reserved byte set",
        ))?;
        if previous.is_some_and(|previous| previous >= entry.key_id) {
            let rule = "signature entries are in ascending order of key, none twice";
            return Err(Error::malformed(FRAME, rule));
        }
        previous = Some(entry.key_id);
    }
    Ok(())
}

/// `u16` algorithm, 6 zero bytes, key id, signature.
fn read_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<Entry<'_>> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u16()? != ALGORITHM_ED25519 {
        return None;
    }
    cursor.zeros(6)?;
    let key_id = Id(cursor.array()?);
    let signature = cursor.rest().first_chunk()?;
    Some(Entry { key_id, signature })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::testing::Sample;

    #[test]
    fn context_is_magic_purpose_and_version() {
        assert!(CONTEXT.starts_with(&MAGIC));
        assert_eq!(&CONTEXT[8..], b"soft-prompt-bundle-v001\n");
        assert_eq!(&CONTEXT[VERSION_AT..], b"001\n");
    }

    #[test]
    fn every_cut_is_called_truncated() {
        let file = Sample::default().file();
        for cut in 0..file.len() {
            let error = Frame::parse(&file[..cut]).map(|_| ());
            assert!(
                matches!(error, Err(Error::Truncated { found, expected }) if found == cut && expected > cut),
                "{error:?} at {cut}"
            );
        }
    }

    #[test]
    fn what_follows_is_called_trailing() {
        let file = Sample::default().file();
        let expected = file.len();
        for more in [&b"\0"[..], b"SIG1", &file] {
            let longer = [&file, more].concat();
            let error = Frame::parse(&longer).map(|_| ());
            assert_eq!(
                error,
                Err(Error::TrailingBytes {
                    expected,
                    found: longer.len()
                })
            );
        }
    }

    #[test]
    fn other_files_and_other_versions_are_told_apart() {
        let mut newer = Sample::default().file();
        newer[30] = b'2';
        assert_eq!(Frame::parse(&newer).map(|_| ()), Err(Error::OtherVersion));
        let file = Sample::default().file();
        let text_mode: Vec<u8> = file.iter().copied().filter(|byte| *byte != 0x0D).collect();
        let polyglot = [b"PK\x03\x04", file.as_slice()].concat();
        for other in [
            &text_mode,
            &polyglot,
            b"{\"json\": true}".as_slice(),
            &[0; 4096],
        ] {
            assert_eq!(Frame::parse(other).map(|_| ()), Err(Error::NotABundle));
        }
    }

    #[test]
    fn header_and_block_outside_the_rules_are_refused() {
        type Change = fn(&mut Vec<u8>, usize);
        let cases: [(&str, Change); 14] = [
            ("header flag", |f, _| f[34] = 1),
            ("reserved byte", |f, _| f[50] = 1),
            ("manifest of no bytes", |f, _| f[36..40].fill(0)),
            ("manifest of 255 bytes", |f, _| {
                f[36..40].copy_from_slice(&255u32.to_le_bytes())
            }),
            ("manifest of 4096 bytes", |f, _| {
                f[36..40].copy_from_slice(&4096u32.to_le_bytes())
            }),
            ("manifest of 4 GiB", |f, _| f[36..40].fill(0xff)),
            ("payload of no bytes", |f, _| f[40..44].fill(0)),
            ("payload above the cap", |f, _| {
                f[40..44].copy_from_slice(&1_048_577u32.to_le_bytes())
            }),
            ("payload of 4 GiB", |f, _| f[40..44].fill(0xff)),
            ("no signature magic", |f, block| f[block] ^= 1),
            ("no signature", |f, block| f[block + 4] = 0),
            ("nine signatures", |f, block| f[block + 4] = 9),
            ("entry of 87 bytes", |f, block| f[block + 6] = 87),
            ("other algorithm", |f, block| f[block + 8] = 2),
        ];
        let sample = Sample::default();
        let block = sample.file().len() - 96;
        for (name, change) in cases {
            let mut file = sample.file();
            change(&mut file, block);
            assert!(
                matches!(
                    Frame::parse(&file),
                    Err(Error::Malformed { part: FRAME, .. })
                ),
                "{name}"
            );
        }
    }

    #[test]
    fn signatures_are_ascending_and_distinct() {
        let sample = Sample {
            seeds: [[1; 32], [2; 32]].to_vec(),
            ..Sample::default()
        };
        let good = sample.file();
        assert_eq!(
            Frame::parse(&good).map(|frame| frame.signatures().count()),
            Ok(2)
        );
        let at = good.len() - 2 * ENTRY_BYTES;
        let (first, second) = good[at..].split_at(ENTRY_BYTES);
        for entries in [[second, first], [first, first]] {
            let file = [&good[..at], &entries.concat()].concat();
            assert!(matches!(Frame::parse(&file), Err(Error::Malformed { .. })));
        }
    }

    #[test]
    fn a_newer_minor_version_is_read() {
        let sample = Sample {
            minor: u16::MAX,
            ..Sample::default()
        };
        assert!(Frame::parse(&sample.file()).is_ok());
    }
}
