//! Compressing a payload when it pays, and decoding it again.

use preface_bundle::{
    Admitted, Codec, MAX_DECODED_BYTES, MAX_STORED_BYTES, TensorTable, ZSTD_WINDOW_BYTES, shuffle,
};
use zstd::{bulk::Compressor, zstd_safe::CParameter};

use crate::Error;

/// Compression pays from this saving on, in bytes and in twentieths of the payload.
const LEAST_SAVING_BYTES: usize = 256;
const LEAST_SAVING_TWENTIETHS: usize = 1;
const LEVEL: i32 = 19;

/// The payload as it is stored, and how.
pub(crate) fn encode(decoded: &[u8], tensors: TensorTable<'_>) -> Result<(Codec, Vec<u8>), Error> {
    check_size(decoded.len(), MAX_DECODED_BYTES, "before compression")?;
    let mut shuffled = vec![0; decoded.len()];
    shuffle(tensors, decoded, &mut shuffled).map_err(|source| Error::SelfCheck { source })?;
    let mut best = (Codec::Zstd, compress(decoded)?);
    if shuffled != decoded {
        let other = compress(&shuffled)?;
        if other.len() < best.1.len() {
            best = (Codec::ShuffledZstd, other);
        }
    }
    let saved = decoded.len().saturating_sub(best.1.len());
    let pays = saved >= LEAST_SAVING_BYTES && 20 * saved >= LEAST_SAVING_TWENTIETHS * decoded.len();
    if !pays && decoded.len() <= MAX_STORED_BYTES {
        best = (Codec::Stored, decoded.to_vec());
    }
    check_size(best.1.len(), MAX_STORED_BYTES, "after compression")?;
    Ok(best)
}

fn check_size(found_bytes: usize, limit_bytes: usize, state: &'static str) -> Result<(), Error> {
    match found_bytes <= limit_bytes {
        true => Ok(()),
        false => Err(Error::PayloadTooLarge {
            found_bytes,
            limit_bytes,
            state,
        }),
    }
}

/// One frame with content size and a bounded window, without checksum or dictionary.
fn compress(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let compressed = Compressor::new(LEVEL).and_then(|mut compressor| {
        compressor.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_BYTES.ilog2()))?;
        compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
        compressor.set_parameter(CParameter::ChecksumFlag(false))?;
        compressor.compress(bytes)
    });
    compressed.map_err(|source| Error::Compress { source })
}

/// Decodes the payload of an admitted bundle.
pub(crate) fn decode(admitted: &Admitted<'_>) -> Result<Vec<u8>, preface_bundle::Error> {
    admitted.check_compressed()?;
    if admitted.codec() == Codec::Stored {
        return Ok(admitted.stored_payload().to_vec());
    }
    let failed = preface_bundle::Error::Compressed {
        rule: "the zstd frame does not decode",
    };
    let decoded = zstd::bulk::decompress(admitted.stored_payload(), admitted.decoded_bytes());
    let decoded = decoded.map_err(|_| failed)?;
    if admitted.codec() == Codec::Zstd {
        return Ok(decoded);
    }
    let mut plain = vec![0; decoded.len()];
    admitted.unshuffle(&decoded, &mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use preface_bundle::{Dtype, Role, TensorSpec, check_zstd_frame};

    use super::*;

    fn encoded(
        dtype: Dtype,
        dims: &[u16],
        bytes: impl Fn(usize) -> u8,
    ) -> Result<(Codec, usize), Error> {
        let spec = TensorSpec::new(Role::Embeddings, dtype, 0, dims, 0, 0).expect("a valid spec");
        let table = spec.to_bytes();
        let table = TensorTable::read(&table, spec.bytes).expect("a valid table");
        let decoded: Vec<u8> = (0..spec.bytes).map(bytes).collect();
        let (codec, stored) = encode(&decoded, table)?;
        if codec != Codec::Stored {
            check_zstd_frame(&stored, decoded.len()).expect("a frame under the rules");
        }
        Ok((codec, stored.len()))
    }

    /// Bytes without a pattern (splitmix64).
    fn noise(at: usize) -> u8 {
        let mut state = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)).to_le_bytes()[3]
    }

    #[test]
    fn compression_is_used_where_it_pays() {
        type Bytes = fn(usize) -> u8;
        let cases: [(&str, u16, Bytes, Codec); 4] = [
            ("noise", 1024, noise, Codec::Stored),
            ("zeros", 1024, |_| 0, Codec::Zstd),
            ("zeros, too few to save 256 bytes", 64, |_| 0, Codec::Stored),
            (
                "one quiet plane of four",
                1024,
                |at| if at % 4 == 3 { 0x3c } else { noise(at) },
                Codec::ShuffledZstd,
            ),
        ];
        for (name, width, bytes, codec) in cases {
            let (found, _) = encoded(Dtype::F32, &[1, width], bytes).expect("fits");
            assert_eq!(found, codec, "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let (codec, stored) = encoded(Dtype::F32, &[32, 65535], |_| 0).expect("compresses");
        assert!(codec == Codec::Zstd && stored < MAX_STORED_BYTES);
        let error = encoded(Dtype::F32, &[8, 65535], noise).expect_err("does not compress");
        assert!(error.to_string().contains("--dtype"), "{error}");
    }
}
