//! Identifiers made by hashing, and the text forms they have.

use core::fmt;

use sha2::{Digest, Sha256};

use crate::text;

/// `N` bytes that identify something; shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<const N: usize = 32>(pub [u8; N]);

/// Names a public key: the first 16 bytes of `SHA-256("preface-key-v1\0ed25519\0" || key)`.
pub type KeyId = Id<16>;

/// Names a fleet: the first 16 bytes of `SHA-256("preface-namespace-v1\0" || name)`.
pub type Namespace = Id<16>;

impl<const N: usize> Id<N> {
    /// Reads exactly `2 * N` lower-case hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != N || !rest.is_empty() {
            return None;
        }
        let mut bytes = [0; N];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = hex_digit(*high)?
                .checked_mul(16)?
                .checked_add(hex_digit(*low)?)?;
        }
        Some(Self(bytes))
    }

    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl Id {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl Namespace {
    /// The namespace called `name`.
    pub fn of_name(name: &str) -> Self {
        truncated(
            Sha256::new()
                .chain_update(b"preface-namespace-v1\0")
                .chain_update(name),
        )
    }
}

/// The first 16 bytes of a finished hash.
pub(crate) fn truncated(hash: Sha256) -> Id<16> {
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0; 16];
    for (to, from) in first.iter_mut().zip(digest) {
        *to = from;
    }
    Id(first)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        b'a'..=b'f' => digit.checked_sub(b'a')?.checked_add(10),
        _ => None,
    }
}

impl<const N: usize> fmt::Display for Id<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Id<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Whether `text` may name a task, a key, a namespace or a metric:
/// `[a-z0-9][a-z0-9._-]{0,46}` without `..`, so it is safe as part of a file name.
pub fn is_name(text: &str) -> bool {
    let first = text.as_bytes().first();
    let good = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    first.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && text.len() <= 47
        && text.bytes().all(|byte| good(&byte))
        && text::count(text, "..") == 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn hex_goes_both_ways_and_only_one_spelling_is_read() {
        let id = Id([0x00, 0x7f, 0xff, 0xa5]);
        assert_eq!(id.to_string(), "007fffa5");
        assert_eq!(Id::<4>::from_hex("007fffa5"), Some(id));
        for bad in [
            "007FFFA5",
            "007fffa",
            "007fffa50",
            "007fffg5",
            " 07fffa5",
            "",
        ] {
            assert_eq!(Id::<4>::from_hex(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_are_safe_in_paths() {
        for good in ["a", "0", "intent.light-on_2", &"a".repeat(47)] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "a/b",
            "A",
            "-a",
            "a b",
            "ä",
            "a\0",
            &"a".repeat(48),
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_differ_by_name() {
        assert_ne!(Namespace::of_name("default"), Namespace::of_name("acme"));
    }
}
