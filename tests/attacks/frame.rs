//! Attacks 1 to 20 and 54: frame and manifest.

use std::{fs, os::unix::fs::symlink, process::Command, time::Instant};

use crate::{
    ENTRY_BYTES, HEADER_BYTES,
    device::{Device, field, manifest, with},
    testing::Sample,
    tlv,
};

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn attacks_1_to_6_other_files_cuts_and_translations_are_no_bundles() {
    let device = Device::new();
    let good = Sample::default().file();
    let crlf = |file: &[u8]| {
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
        lines.collect::<Vec<_>>().join(&b"\r\n"[..])
    };
    let lf: Vec<u8> = good.iter().copied().filter(|byte| *byte != b'\r').collect();
    let mut newer = good.clone();
    newer[30] = b'2';
    let mut cases = vec![
        ("1: empty", vec![], 10),
        ("3: a byte more", [&good[..], b"\0"].concat(), 10),
        ("5: LF to CRLF", crlf(&good), 10),
        ("5: CRLF to LF", lf, 10),
        ("6: version 002", newer.clone(), 10),
    ];
    for cut in (0..good.len()).step_by(97) {
        cases.push(("2: cut short", good[..cut].to_vec(), 10));
    }
    device.try_all(cases);
    device.code(&newer, "6");
    let said = device.verify("a.preface", false).stderr;
    let said = String::from_utf8(said).unwrap();
    device.code(
        b"\x89PRF\r\n\x1a\nsomething else entirely, and",
        "no bundle",
    );
    let other = String::from_utf8(device.verify("a.preface", false).stderr).unwrap();
    assert!(said.contains("another format version") && !other.contains("another format version"));
}

#[test]
fn attacks_7_to_12_lengths_and_reserved_bytes_are_held_to_the_rules_though_they_are_signed() {
    let device = Device::new();
    let header = |at: usize, value: u32| {
        let mut file = Sample::default().file();
        put(&mut file, at, value);
        // Whoever signs a header signs what is in it: the same entry, made of this prefix.
        let prefix = HEADER_BYTES + Sample::default().manifest().len();
        let message = file[..prefix].to_vec();
        let whole = Sample::default().file_signing(&message);
        [
            &file[..file.len() - ENTRY_BYTES],
            &whole[whole.len() - ENTRY_BYTES..],
        ]
        .concat()
    };
    let mut cases = Vec::new();
    for value in [0, 255, 257, 4033, 4096, u32::MAX] {
        cases.push(("7: length of the manifest", header(36, value), 10));
    }
    for value in [0, (1 << 20) + 1, u32::MAX - 319, u32::MAX] {
        cases.push(("8: length of the payload", header(40, value), 10));
    }
    cases.extend([
        (
            "9: two lengths of the payload",
            manifest(|bytes| put(bytes, 144, 53)),
            10,
        ),
        (
            "9: the decoded one",
            manifest(|bytes| put(bytes, 148, 53)),
            10,
        ),
        ("10: reserved byte", header(44, 1), 10),
        ("10: last reserved byte", header(60, 1 << 31), 10),
        ("11: header flag", header(32, 1 << 16), 10),
        ("11: last header flag", header(32, 1 << 31), 10),
        (
            "12: minor version 65535",
            with(|sample| sample.minor = u16::MAX),
            0,
        ),
        ("54: critical flag", manifest(|bytes| bytes[200] = 1), 10),
        (
            "54: last critical flag",
            manifest(|bytes| bytes[201] = 0x80),
            10,
        ),
        (
            "54: ignorable flags",
            manifest(|bytes| bytes[202..204].fill(0xff)),
            0,
        ),
    ]);
    device.try_all(cases);
}

#[test]
fn attack_13_a_manifest_full_of_fields_to_pass_over_is_read_in_no_time() {
    let device = Device::new();
    let full = with(|sample| {
        for number in 0x1000.. {
            if sample.manifest().len() == 4032 {
                break;
            }
            sample.set(number, b"");
        }
    });
    let begun = Instant::now();
    assert_eq!(device.code(&full, "13"), 0);
    // Both runs of the program together; a reader whose time grows with the square of the fields takes longer.
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn attacks_14_to_17_fields_that_break_the_rules_are_refused_though_they_are_signed() {
    let device = Device::new();
    let length = |tlv, value: u16| {
        field(tlv, |bytes| {
            bytes[2..4].copy_from_slice(&value.to_le_bytes())
        })
    };
    device.try_all([
        ("14: past the end", length(tlv::POSITIONS, 4096), 10),
        ("14: 65535 bytes", length(tlv::POSITIONS, u16::MAX), 10),
        ("14: into the next", length(tlv::TEMPLATE, 40), 10),
        (
            "15: out of order",
            with(|sample| sample.fields.swap(0, 1)),
            10,
        ),
        (
            "15: twice",
            with(|sample| sample.fields.insert(1, sample.fields[0].clone())),
            10,
        ),
        (
            "16: unknown and critical",
            with(|sample| sample.set(0x8fff, b"x")),
            10,
        ),
        (
            "16: unknown and not critical",
            with(|sample| sample.set(0x0fff, b"x")),
            0,
        ),
        (
            "17: behind the last field",
            manifest(|bytes| {
                let end = Sample::default().manifest().len();
                bytes[end - 1] = 1;
            }),
            10,
        ),
        (
            "17: in a field's padding",
            field(tlv::TEMPLATE, |bytes| bytes[4 + 11] = 1),
            10,
        ),
    ]);
}

#[test]
fn attack_16_what_is_passed_over_is_listed() {
    let device = Device::new();
    let file = with(|sample| {
        sample.set(0x0fff, b"x");
        sample.set(0x7fff, b"");
    });
    fs::write(device.at("a.preface"), file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .args(["inspect", "--json"])
        .arg(device.at("a.preface"))
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["ignored_fields"],
        serde_json::json!(["0x0fff", "0x7fff"])
    );
}

#[test]
fn attack_18_what_is_no_regular_file_of_a_bundles_size_is_not_read() {
    let device = Device::new();
    let sparse = fs::File::create(device.at("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    fs::create_dir(device.at("folder")).unwrap();
    fs::write(device.at("real"), Sample::default().file()).unwrap();
    symlink("real", device.at("link")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(device.at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(device.code_of("real", "18"), 0);
    let begun = Instant::now();
    for (name, expected) in [
        ("sparse", 10),
        ("folder", 20),
        ("link", 20),
        ("pipe", 20),
        ("/dev/zero", 20),
    ] {
        assert_eq!(device.code_of(name, name), expected, "{name}");
    }
    assert!(begun.elapsed().as_secs() < 30, "nothing is waited for");
}

#[test]
fn attacks_19_and_20_two_bundles_and_files_of_two_kinds_are_refused() {
    let device = Device::new();
    let good = Sample::default().file();
    device.try_all([
        ("19: two bundles", [&good[..], &good].concat(), 10),
        (
            "20: a ZIP before it",
            [b"PK\x03\x04\x14\0\0\0", &good[..]].concat(),
            10,
        ),
        (
            "20: a ZIP behind it",
            [&good[..], b"PK\x05\x06", &[0; 18]].concat(),
            10,
        ),
        (
            "20: a pickle before it",
            [b"\x80\x04\x95.", &good[..]].concat(),
            10,
        ),
    ]);
}
