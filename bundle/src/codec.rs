//! How the payload is stored: as it is, or compressed.

use crate::{
    MAX_DECODED_BYTES,
    cursor::Cursor,
    error::Error,
    tensor::{TensorSpec, TensorTable},
};

/// How the payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// The decoded bytes themselves.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One zstd frame of the decoded bytes after [`shuffle`].
    ShuffledZstd = 2,
}

impl Codec {
    /// The codec with this number in the manifest.
    pub(crate) fn from_u16(value: u16) -> Option<Self> {
        match value {
            0 => Some(Self::Stored),
            1 => Some(Self::Zstd),
            2 => Some(Self::ShuffledZstd),
            _ => None,
        }
    }

    /// The codec's number in the manifest.
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::ShuffledZstd => 2,
        }
    }

    /// The codec's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Zstd => "zstd",
            Self::ShuffledZstd => "shuffle+zstd",
        }
    }
}

/// Splits the values of each float tensor into byte planes, which compress better: of a tensor of
/// `n` values of `w` bytes, byte `p` of value `i` goes to place `p * n + i`. Tensors of scales and
/// small integers are copied.
///
/// # Errors
/// [`Error::BufferLength`] unless both buffers have the table's length.
pub fn shuffle(tensors: TensorTable<'_>, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
    by_tensor(tensors, from, to, |spec, from, to| {
        let width = spec.dtype.plane_bytes();
        let planes = to.chunks_exact_mut(spec.elements().max(1)).take(width);
        for (plane, bytes) in planes.enumerate() {
            let values = from.iter().skip(plane).step_by(width);
            bytes
                .iter_mut()
                .zip(values)
                .for_each(|(to, from)| *to = *from);
        }
    })
}

/// Undoes [`shuffle`].
///
/// # Errors
/// [`Error::BufferLength`] unless both buffers have the table's length.
pub fn unshuffle(tensors: TensorTable<'_>, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
    by_tensor(tensors, from, to, |spec, from, to| {
        let width = spec.dtype.plane_bytes();
        let planes = from.chunks_exact(spec.elements().max(1)).take(width);
        for (plane, bytes) in planes.enumerate() {
            let values = to.iter_mut().skip(plane).step_by(width);
            values.zip(bytes).for_each(|(to, from)| *to = *from);
        }
    })
}

fn by_tensor(
    tensors: TensorTable<'_>,
    mut from: &[u8],
    mut to: &mut [u8],
    rearrange: impl Fn(&TensorSpec, &[u8], &mut [u8]),
) -> Result<(), Error> {
    let expected = tensors.bytes();
    for found in [from.len(), to.len()] {
        if found != expected {
            return Err(Error::BufferLength { expected, found });
        }
    }
    for spec in tensors.iter() {
        let (Some((source, from_rest)), Some((target, to_rest))) = (
            from.split_at_checked(spec.bytes),
            to.split_at_mut_checked(spec.bytes),
        ) else {
            return Err(Error::BufferLength {
                expected,
                found: from.len(),
            });
        };
        if spec.dtype.plane_bytes() > 1 {
            rearrange(&spec, source, target);
        } else {
            target.copy_from_slice(source);
        }
        (from, to) = (from_rest, to_rest);
    }
    Ok(())
}

/// Largest window that a zstd frame of a payload may ask for.
pub const ZSTD_WINDOW_BYTES: u64 = 1 << 20;

const ZSTD_MAGIC: u32 = 0xFD2F_B528;
const ZSTD_BLOCK_BYTES: usize = 128 << 10;

/// Checks, before any decoder runs, that `stored` is exactly one zstd frame (RFC 8878, section
/// 3.1.1) that says it holds `decoded` bytes: content size present and equal, window of at most
/// [`ZSTD_WINDOW_BYTES`], no dictionary, no checksum, no byte after the last block.
///
/// # Errors
/// [`Error::Compressed`] with the rule that is broken.
pub fn check_zstd_frame(stored: &[u8], decoded: usize) -> Result<(), Error> {
    let mut cursor = Cursor::new(stored);
    let header = frame_header(&mut cursor).ok_or(Error::Compressed {
        rule: "not a zstd frame of the allowed kind",
    })?;
    if decoded > MAX_DECODED_BYTES || usize::try_from(header.content) != Ok(decoded) {
        return Err(Error::Compressed {
            rule: "the zstd frame declares another size than the manifest",
        });
    }
    if header.window > ZSTD_WINDOW_BYTES {
        return Err(Error::Compressed {
            rule: "the zstd frame asks for a window above 1 MiB",
        });
    }
    walk_blocks(&mut cursor).ok_or(Error::Compressed {
        rule: "a zstd block is malformed",
    })?;
    if !cursor.is_empty() {
        return Err(Error::Compressed {
            rule: "bytes follow the zstd frame",
        });
    }
    Ok(())
}

struct FrameHeader {
    content: u64,
    window: u64,
}

/// `None` for other magic numbers, dictionaries, checksums, reserved bits or no content size.
fn frame_header(cursor: &mut Cursor<'_>) -> Option<FrameHeader> {
    if cursor.u32()? != ZSTD_MAGIC {
        return None;
    }
    let descriptor = cursor.u8()?;
    let single_segment = descriptor & 0b0010_0000 != 0;
    if descriptor & 0b0001_1111 != 0 {
        return None;
    }
    let window = match single_segment {
        true => None,
        false => Some(window_bytes(cursor.u8()?)?),
    };
    let content = match (descriptor >> 6, single_segment) {
        (0, true) => u64::from(cursor.u8()?),
        (1, _) => u64::from(cursor.u16()?).checked_add(256)?,
        (2, _) => u64::from(cursor.u32()?),
        (3, _) => cursor.u64()?,
        _ => return None,
    };
    Some(FrameHeader {
        content,
        window: window.unwrap_or(content),
    })
}

fn window_bytes(descriptor: u8) -> Option<u64> {
    let exponent = u32::from(descriptor >> 3).checked_add(10)?;
    let base = 1u64.checked_shl(exponent)?;
    base.checked_add((base / 8).checked_mul(u64::from(descriptor & 7))?)
}

/// Steps over the blocks, up to and with the last one.
fn walk_blocks(cursor: &mut Cursor<'_>) -> Option<()> {
    loop {
        let [low, middle, high] = cursor.array()?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let size = usize::try_from(header >> 3).ok()?;
        if size > ZSTD_BLOCK_BYTES {
            return None;
        }
        match (header >> 1) & 3 {
            0 | 2 => cursor.bytes(size)?,
            1 => cursor.bytes(1)?,
            _ => return None,
        };
        if header & 1 == 1 {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::testing::{Sample, zstd_raw_frame};

    #[test]
    fn a_frame_of_raw_blocks_is_accepted_and_every_cut_is_not() {
        let frame = zstd_raw_frame(&[7; 300]);
        assert_eq!(check_zstd_frame(&frame, 300), Ok(()));
        for cut in 0..frame.len() {
            assert!(
                check_zstd_frame(&frame[..cut], 300).is_err(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn frames_outside_the_rules_are_refused() {
        let good = zstd_raw_frame(&[7; 300]);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            check_zstd_frame(&frame, 300)
        };
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let cases: [(&str, Change<'_>); 9] = [
            ("other magic", &|f| f[0] ^= 1),
            ("legacy magic v0.5", &|f| f[0] = 0x25),
            ("dictionary", &|f| f[4] |= 1),
            ("checksum", &|f| f[4] |= 4),
            ("reserved bit", &|f| f[4] |= 8),
            ("other content size", &|f| f[5] ^= 1),
            ("trailing byte", &|f| f.push(0)),
            ("trailing skippable frame", &|f| {
                f.extend([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0])
            }),
            ("second frame", &|f| f.extend(good.clone())),
        ];
        for (name, change) in cases {
            assert!(
                matches!(with(change), Err(Error::Compressed { .. })),
                "{name}"
            );
        }
        let skippable_first = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], good.as_slice()].concat();
        assert!(check_zstd_frame(&skippable_first, 300).is_err());
    }

    #[test]
    fn window_bombs_and_frames_without_size_are_refused() {
        let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0x80, 0xa8, 0x2c, 1, 0, 0, 1, 0, 0];
        let rule = "the zstd frame asks for a window above 1 MiB";
        assert_eq!(
            check_zstd_frame(&bomb, 300),
            Err(Error::Compressed { rule })
        );
        let sizeless = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 1, 0, 0];
        assert!(check_zstd_frame(&sizeless, 0).is_err());
        let too_long = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 1, 1, 0, 0];
        assert!(check_zstd_frame(&too_long, 1 << 24).is_err());
    }

    #[test]
    fn unshuffle_undoes_shuffle_and_planes_are_where_they_are_said_to_be() {
        let sample = Sample::default();
        let table = sample.tensor_table();
        let table = TensorTable::read(&table, sample.decoded.len()).expect("the sample is valid");
        let from: Vec<u8> = (0..=255).cycle().take(sample.decoded.len()).collect();
        let (mut shuffled, mut back) = (vec![0; from.len()], vec![0; from.len()]);
        shuffle(table, &from, &mut shuffled).expect("lengths agree");
        unshuffle(table, &shuffled, &mut back).expect("lengths agree");
        assert_eq!(back, from);
        assert_ne!(shuffled, from);
        for spec in table.iter().filter(|spec| spec.dtype.plane_bytes() == 4) {
            let (n, at) = (spec.elements(), spec.offset);
            assert_eq!(
                shuffled[at + 2 * n + 1],
                from[at + 4 + 2],
                "byte 2 of value 1"
            );
        }
        let short = shuffle(table, &from[1..], &mut shuffled);
        assert!(matches!(short, Err(Error::BufferLength { .. })));
    }
}
