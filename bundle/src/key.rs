//! Public keys: which are admitted, and how they are written.

use core::{fmt, str};

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::{
    error::Error,
    id::{KeyId, truncated},
};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const PREFIX: &str = "ed25519:";

/// An Ed25519 public key under which one signature can stand for one message only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Admits a key that is canonical, not of small order, and in the prime-order subgroup.
    ///
    /// # Errors
    /// [`Error::PublicKey`] with the rule that is broken.
    pub fn admit(bytes: [u8; 32]) -> Result<Self, Error> {
        let refuse = |rule| Err(Error::PublicKey { rule });
        let Ok(key) = VerifyingKey::from_bytes(&bytes) else {
            return refuse("not a point of the curve");
        };
        let point = key.to_edwards();
        if point.compress().to_bytes() != bytes {
            return refuse("not in canonical form");
        }
        if key.is_weak() {
            return refuse("a weak key of small order");
        }
        if !point.is_torsion_free() {
            return refuse("not in the prime-order subgroup");
        }
        Ok(Self(bytes))
    }

    /// Reads `ed25519:` and the base64 of 32 bytes, and admits the key.
    ///
    /// # Errors
    /// [`Error::PublicKey`] with the rule that is broken.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        Self::from_text_among(text, &[])
    }

    /// [`PublicKey::from_text`]; a key that is among the `admitted` is not examined again.
    pub(crate) fn from_text_among(text: &str, admitted: &[Self]) -> Result<Self, Error> {
        let bytes = text.strip_prefix(PREFIX);
        let bytes = bytes.and_then(|text| decode_base64(text.bytes()));
        let bytes = bytes.ok_or(Error::PublicKey {
            rule: "not ed25519: followed by the base64 of 32 bytes",
        })?;
        let known = admitted.iter().find(|key| key.0 == bytes);
        known.map_or_else(|| Self::admit(bytes), |key| Ok(*key))
    }

    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's id, always computed and never read from anywhere.
    pub fn id(&self) -> KeyId {
        truncated(
            Sha256::new()
                .chain_update(b"preface-key-v1\0ed25519\0")
                .chain_update(self.0),
        )
    }

    /// Whether `signature` is this key's signature of `message` (RFC 8032 Ed25519, checked with
    /// `verify_strict`).
    pub fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(PREFIX)?;
        let (triples, rest) = self.0.as_chunks::<3>();
        for [a, b, c] in triples {
            let bits = u32::from_be_bytes([0, *a, *b, *c]);
            [18, 12, 6, 0]
                .iter()
                .try_for_each(|shift| write_digit(formatter, bits >> shift))?;
        }
        if let [a, b] = rest {
            let bits = u32::from_be_bytes([0, *a, *b, 0]);
            [18, 12, 6]
                .iter()
                .try_for_each(|shift| write_digit(formatter, bits >> shift))?;
            formatter.write_str("=")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

fn write_digit(formatter: &mut fmt::Formatter<'_>, bits: u32) -> fmt::Result {
    let digit = usize::try_from(bits & 63)
        .ok()
        .and_then(|at| ALPHABET.get(at));
    let digit = [*digit.unwrap_or(&b'A')];
    formatter.write_str(str::from_utf8(&digit).unwrap_or_default())
}

/// Reads a signature made elsewhere: its 64 bytes, or the base64 of them, white space passed over.
pub fn read_signature(bytes: &[u8]) -> Option<[u8; 64]> {
    let digits = bytes.iter().filter(|byte| !byte.is_ascii_whitespace());
    <[u8; 64]>::try_from(bytes)
        .ok()
        .or_else(|| decode_base64(digits.copied()))
}

/// Exactly `N` bytes of base64, padded to a multiple of four digits; spare bits must be zero.
fn decode_base64<const N: usize>(digits: impl Iterator<Item = u8>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (mut bits, mut held, mut count, mut padding) = (0u32, 0u32, 0u32, 0u32);
    let mut out = bytes.iter_mut();
    for digit in digits {
        count = count.checked_add(1)?;
        if digit == b'=' {
            padding = padding.checked_add(1)?;
            continue;
        }
        let value = ALPHABET.iter().position(|one| *one == digit)?;
        bits = ((bits << 6) | u32::try_from(value).ok()?) & 0xffff;
        held = held.checked_add(6)?;
        if padding > 0 {
            return None;
        }
        if held >= 8 {
            held = held.checked_sub(8)?;
            *out.next()? = u8::try_from((bits >> held) & 0xff).ok()?;
        }
    }
    let spare = bits & 1u32.checked_shl(held)?.checked_sub(1)?;
    let padded = count.is_multiple_of(4) && padding < 3;
    (spare == 0 && held < 6 && padded && out.next().is_none()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;
    use crate::testing::public_key;

    /// RFC 8032, section 7.1, test 1.
    const RFC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    const RFC_SIGNATURE: &str = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
        5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        crate::Id::from_hex(text)
            .expect("hex of the right length")
            .0
    }

    #[test]
    fn rfc_8032_signature_holds_and_its_variants_do_not() {
        let key = PublicKey::admit(hex(RFC_KEY)).expect("a good key");
        let good: [u8; 64] = hex(RFC_SIGNATURE);
        assert!(key.has_signed(b"", &good));
        assert!(!key.has_signed(b"x", &good));
        for bit in 0..512 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.has_signed(b"", &bad), "bit {bit}");
        }
        assert!(!key.has_signed(b"", &[0; 64]));
        assert!(!key.has_signed(b"", &[0xff; 64]));
    }

    #[test]
    fn signatures_are_read_in_both_ways() {
        let signature: [u8; 64] = hex(RFC_SIGNATURE);
        let text = "5VZDAMNgrHKQhuLMgG6CioSHfx645dl02HPgZSJJAVVfuIIVkKM7rMYeOXAc+bRr\n0lv18FlbviRlUUFDjnoQCw==\n";
        let plain = text.replace('\n', "");
        for good in [&signature[..], text.as_bytes(), plain.as_bytes()] {
            assert_eq!(read_signature(good), Some(signature));
        }
        let (unpadded, spare) = (&plain[..86], plain.replace("w==", "x=="));
        let longer = std::format!("{plain}A");
        let padded = std::format!("={}", &plain[..87]);
        for bad in ["", unpadded, &spare, &longer, &padded, &plain[1..], "===="] {
            assert_eq!(read_signature(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(read_signature(&signature[1..]), None);
    }

    #[test]
    fn s_plus_group_order_is_refused() {
        let order: [u8; 32] =
            hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let mut signature: [u8; 64] = hex(RFC_SIGNATURE);
        let mut carry = 0u16;
        for (s, l) in signature[32..].iter_mut().zip(order) {
            carry += u16::from(*s) + u16::from(l);
            *s = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        let key = PublicKey::admit(hex(RFC_KEY)).expect("a good key");
        assert!(!key.has_signed(b"", &signature));
    }

    /// The eight points of small order, and other encodings of them
    /// (C2SP CCTV `ed25519`; y = 0, 1, -1 and the points of order 8).
    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        let cases = [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000080",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        ];
        for case in cases {
            assert!(PublicKey::admit(hex(case)).is_err(), "{case}");
        }
    }

    #[test]
    fn mixed_order_keys_are_refused() {
        let good = VerifyingKey::from_bytes(public_key([1; 32]).as_bytes()).expect("a key");
        let order_8 = hex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05");
        let small = VerifyingKey::from_bytes(&order_8).expect("a point");
        let mixed = (good.to_edwards() + small.to_edwards())
            .compress()
            .to_bytes();
        let rule = "not in the prime-order subgroup";
        assert_eq!(PublicKey::admit(mixed), Err(Error::PublicKey { rule }));
    }

    #[test]
    fn text_goes_both_ways_and_only_one_spelling_is_read() {
        let key = PublicKey::admit(hex(RFC_KEY)).expect("a good key");
        let text = key.to_string();
        assert_eq!(text, "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        assert_eq!(PublicKey::from_text(&text), Ok(key));
        let spare_bit_set = text.replace("Ro=", "Rp=");
        let cases = [
            &text[8..],
            &text[..text.len() - 1],
            &spare_bit_set,
            "ed25519:",
            "rsa:AAAA",
            "",
        ];
        for bad in cases {
            assert!(PublicKey::from_text(bad).is_err(), "{bad}");
        }
    }
}
