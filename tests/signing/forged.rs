//! Signature blocks that nobody made who had the key.

use std::fs;

use base64ct::{Base64, Encoding};
use curve25519_dalek::{EdwardsPoint, Scalar, scalar::clamp_integer};
use preface_bundle::Frame;
use sha2::{Digest, Sha512};

use crate::{PACK, SEED, bundles::Scene, trust_two_keys, write_known_key};

/// Order of the base point, little-endian (RFC 8032, section 5.1).
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Ed25519 with a prefix to its hashes: none is plain Ed25519; RFC 8032's dom2 makes Ed25519ph and Ed25519ctx.
fn ed25519(dom: &[u8], message: &[u8]) -> [u8; 64] {
    let expanded = Sha512::digest(SEED);
    let secret = Scalar::from_bytes_mod_order(clamp_integer(expanded[..32].try_into().unwrap()));
    let public = EdwardsPoint::mul_base(&secret).compress();
    let hash = |parts: &[&[u8]]| {
        let digest: [u8; 64] = Sha512::digest(parts.concat()).into();
        Scalar::from_bytes_mod_order_wide(&digest)
    };
    let r = hash(&[dom, &expanded[32..], message]);
    let point = EdwardsPoint::mul_base(&r).compress();
    let k = hash(&[dom, point.as_bytes(), public.as_bytes(), message]);
    let s = r + k * secret;
    [point.to_bytes(), s.to_bytes()]
        .concat()
        .try_into()
        .unwrap()
}

fn dom2(prehashed: u8, context: &[u8]) -> Vec<u8> {
    let length = u8::try_from(context.len()).unwrap();
    [
        &b"SigEd25519 no Ed25519 collisions"[..],
        &[prehashed, length],
        context,
    ]
    .concat()
}

/// Attacks 21 to 24, 28 to 31, 41 and 43.
#[test]
fn forged_signature_blocks_are_refused() {
    let scene = Scene::new();
    write_known_key(&scene);
    scene.good(&[&PACK[..], &["--key", "known.key", "-o", "known"]].concat());
    let public = scene.good(&[
        "minisig",
        "known",
        "--key",
        "known.key",
        "--public",
        "known.pub",
        "-o",
        "known.minisig",
        "--json",
    ]);
    assert!(public.contains("public"));
    scene.good(&["trust", "new", "-o", "trust.known", "--key", "known.pub"]);
    fs::rename(scene.at("trust.known"), scene.at("trust")).unwrap();
    let good = fs::read(scene.at("known")).unwrap();
    let frame = Frame::parse(&good).unwrap();
    let prefix = frame.signed_prefix();
    let (block, at) = (good.len() - 96, good.len() - 64);
    let payload = &good[prefix.len()..block];
    let signed = |signature: [u8; 64]| [&good[..at], &signature].concat();
    let plain = ed25519(b"", prefix);
    assert_eq!(
        signed(plain),
        good,
        "these signatures are made as the program makes them"
    );
    let digest = Sha512::digest(prefix);
    let mut malleated = plain;
    let mut carry = 0u16;
    for (s, l) in malleated[32..].iter_mut().zip(ORDER) {
        carry += u16::from(*s) + u16::from(l);
        *s = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    let mut small = [0; 64];
    small[0] = 1;
    let minisig = fs::read_to_string(scene.at("known.minisig")).unwrap();
    let minisig = Base64::decode_vec(minisig.lines().nth(1).unwrap()).unwrap();
    let minisig = minisig[10..].try_into().unwrap();
    let changed = |offset: usize, value: u16| {
        let mut file = good.clone();
        file[block + offset..block + offset + 2].copy_from_slice(&value.to_le_bytes());
        file
    };
    let cases = [
        ("no signature", changed(4, 0), 10),
        ("nine signatures", changed(4, 9), 10),
        ("65535 signatures", changed(4, 65535), 10),
        ("entries of 87 bytes", changed(6, 87), 10),
        ("entries of 89 bytes", changed(6, 89), 10),
        ("algorithm 0", changed(8, 0), 10),
        ("algorithm 2", changed(8, 2), 10),
        ("algorithm 65535", changed(8, 65535), 10),
        ("S plus the group's order", signed(malleated), 12),
        ("R of small order and S of 0", signed(small), 12),
        ("all zeros", signed([0; 64]), 12),
        ("all ones", signed([0xff; 64]), 12),
        ("of the payload", signed(ed25519(b"", payload)), 12),
        ("of the whole file", signed(ed25519(b"", &good)), 12),
        ("Ed25519ph", signed(ed25519(&dom2(1, b""), &digest)), 12),
        (
            "Ed25519ctx",
            signed(ed25519(&dom2(0, b"preface"), prefix)),
            12,
        ),
        ("of the prefix's SHA-512", signed(ed25519(b"", &digest)), 12),
        ("minisign's", signed(minisig), 12),
    ];
    for (name, file, expected) in cases {
        let (code, report) = scene.verify_bytes(&file);
        assert_eq!(code, expected, "{name}: {report}");
    }
    assert_eq!(scene.verify_bytes(&good).0, 0);
}

/// Attacks 25 to 27, 32, 35 and 36.
#[test]
fn signatures_of_one_key_never_count_twice() {
    let scene = Scene::new();
    trust_two_keys(&scene);
    scene.good(&["sign", "a.preface", "--key", "keys/other.key", "-o", "both"]);
    let (one, both) = (scene.bundle(), fs::read(scene.at("both")).unwrap());
    let verify = |trust: &str, file: &[u8]| {
        fs::write(scene.at("forged"), file).unwrap();
        scene.verify_with(&["verify", "forged", "--trust", trust]).0
    };
    let head = &one[..one.len() - 96];
    let block = |entries: &[&[u8]]| {
        let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
        [head, b"SIG1", &count, &[88, 0], &entries.concat()].concat()
    };
    let entry = &one[one.len() - 88..];
    let [first, second] = [
        &both[both.len() - 176..both.len() - 88],
        &both[both.len() - 88..],
    ];
    let mut renamed = entry.to_vec();
    renamed[8..24].fill(0xff);
    assert_eq!(verify("two", &block(&[first, second])), 0);
    assert_eq!(
        verify("two", &block(&[entry, entry])),
        10,
        "the same entry twice"
    );
    assert_eq!(
        verify("two", &block(&[entry, &renamed])),
        11,
        "one key under two ids"
    );
    assert_eq!(verify("two", &block(&[second, first])), 10, "descending");
    assert_eq!(
        verify("trust", &block(&[entry, &renamed])),
        0,
        "an unknown key is passed over"
    );
    assert_eq!(
        verify("trust", &block(&[&renamed])),
        12,
        "a known key under another id"
    );
    let mut broken = both.clone();
    let at = both.len() - 88 - if first == entry { 0 } else { 88 } + 60;
    broken[at] ^= 1;
    assert_eq!(
        verify("trust", &broken),
        0,
        "other is not a key of this store"
    );
    assert_eq!(
        verify("two", &broken),
        12,
        "a known key's bad signature condemns the file"
    );
    scene.good(&[
        "trust",
        "new",
        "-o",
        "none-of-these",
        "--key",
        "keys/other.pub",
    ]);
    assert_eq!(
        verify("none-of-these", &one),
        11,
        "a key that is not in the store"
    );
}
