//! Signing a changed bundle again: what lies behind the signature is reached only by those who can sign.

use std::sync::OnceLock;

use crate::{
    CONTEXT, Codec, HEADER_BYTES, Id, KeyId, SIGNATURE_MAGIC,
    testing::{public_key, trust_text},
};
use ed25519_dalek::{Signer, SigningKey};

/// Seed of the test key that signs again: that of the golden bundles' `release`.
pub const SEED: [u8; 32] = [1; 32];

/// A trust store of that key, and of another.
pub fn trust(namespace: &str) -> String {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| trust_text(&[1, 2], 1, ""));
    text.replace(
        "namespace default\nversion 2",
        &format!("namespace {namespace}\nversion 3"),
    )
}

/// How much of a changed bundle is put right before it is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Lengths and digests follow the payload: what is behind them is reached.
    All,
    /// The signature alone: lengths and digests are whatever they became.
    Signature,
}

/// Takes anything for a bundle and gives back one that is signed: context, prefix, payload and one signature.
pub fn resigned(file: &[u8], repair: Repair) -> Vec<u8> {
    let (prefix_bytes, block_at) = places(file);
    let mut prefix = file[..prefix_bytes].to_vec();
    let payload = &file[prefix_bytes..block_at];
    prefix[..32].copy_from_slice(&CONTEXT);
    if repair == Repair::All {
        put(&mut prefix, 36, length(prefix_bytes - HEADER_BYTES));
        put(&mut prefix, 40, length(payload.len()));
        prefix[34..36].fill(0);
        prefix[44..64].fill(0);
        let manifest = &mut prefix[HEADER_BYTES..];
        put(manifest, 144, length(payload.len()));
        let codec = u16::from_le_bytes([manifest[188], manifest[189]]);
        let decoded =
            u32::from_le_bytes([manifest[148], manifest[149], manifest[150], manifest[151]]);
        manifest[80..112].copy_from_slice(&Id::of(payload).0);
        if let Some(decoded) = decode(payload, codec, decoded) {
            put(manifest, 148, length(decoded.len()));
            manifest[112..144].copy_from_slice(&Id::of(&decoded).0);
        }
    }
    let mut out = prefix;
    let signature = SigningKey::from_bytes(&SEED).sign(&out).to_bytes();
    out.extend(payload);
    out.extend(SIGNATURE_MAGIC);
    out.extend([1, 0, 88, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    static KEY: OnceLock<KeyId> = OnceLock::new();
    out.extend(KEY.get_or_init(|| public_key(SEED).id()).0);
    out.extend(signature);
    out
}

/// Where prefix and payload end, as far as the header can be believed.
fn places(file: &[u8]) -> (usize, usize) {
    let at = |at: usize| {
        u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]) as usize
    };
    let prefix = HEADER_BYTES + (at(36).clamp(256, 4032) / 64) * 64;
    let prefix = prefix.min(file.len());
    let payload = at(40).min(file.len() - prefix);
    (prefix, prefix + payload)
}

/// Of a shuffled payload the digest is not known without the tensor table; it is left as it is.
fn decode(payload: &[u8], codec: u16, decoded: u32) -> Option<Vec<u8>> {
    match codec {
        0 => Some(payload.to_vec()),
        code if code == Codec::Zstd.to_u16() && decoded <= 1 << 20 => {
            zstd::bulk::decompress(payload, decoded as usize).ok()
        }
        _ => None,
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn put(bytes: &mut [u8], at: usize, value: [u8; 4]) {
    bytes[at..at + 4].copy_from_slice(&value);
}

/// Least bytes that can be signed again.
pub const LEAST_BYTES: usize = HEADER_BYTES + 256 + 1;
