//! Keys, trust stores and bundles through the built program: what it says, and with which exit code.

#![allow(clippy::unwrap_used)]

#[path = "support/bundles.rs"]
mod bundles;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use bundles::{BASE, PROGRAM, Scene, TOKENIZER, check, flipped, text};
use preface_bundle::{Error, Frame, Id};
use serde_json::{Value, json};

#[test]
fn an_intact_bundle_is_verified() {
    let scene = Scene::new();
    let (code, report) = scene.verify("a.preface", &[]);
    assert_eq!((code, report["reason"].as_str()), (0, Some("verified")));
    let checks = report["checks"].as_array().unwrap();
    assert!(
        checks.iter().all(|check| check["result"] == "passed"),
        "{report}"
    );
    assert_eq!(
        report["bundle_id"],
        Frame::parse(&scene.bundle())
            .unwrap()
            .bundle_id()
            .to_string()
    );
    let (base, tokenizer) = (BASE.to_string(), TOKENIZER.to_string());
    let said = scene.good(&[
        "verify",
        "a.preface",
        "--trust",
        "trust",
        "--base-id",
        &base,
        "--tokenizer-id",
        &tokenizer,
    ]);
    assert!(
        said.contains("verified: task intent, sequence 3, signed by release"),
        "{said}"
    );
}

#[test]
fn a_base_that_was_not_compared_is_said_aloud() {
    let scene = Scene::new();
    let (code, report) = scene.verify_with(&["verify", "a.preface", "--trust", "trust"]);
    assert_eq!(code, 0);
    assert_eq!(
        (check(&report, "base"), check(&report, "tokenizer")),
        ("skipped", "skipped")
    );
    let output = scene.run(&["verify", "a.preface", "--trust", "trust"]);
    assert!(text(&output.stderr).contains("the base model was not compared; give --base"));
}

#[test]
fn each_refusal_has_its_exit_code_and_its_sentence() {
    let scene = Scene::new();
    let good = scene.bundle();
    let payload_at = Frame::parse(&good).unwrap().signed_prefix().len();
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "3",
        "--key",
        "keys/other.key",
        "-o",
        "foreign.preface",
    ]);
    let foreign = fs::read(scene.at("foreign.preface")).unwrap();
    let cases = [
        (
            "manifest changed",
            flipped(&good, 8 * 200),
            12,
            "bad-signature",
            "changed after key",
            "signature",
        ),
        (
            "signature changed",
            flipped(&good, 8 * (good.len() - 1)),
            12,
            "bad-signature",
            "changed after key",
            "signature",
        ),
        (
            "key id changed",
            flipped(&good, 8 * (good.len() - 80)),
            12,
            "bad-signature",
            "names another",
            "signature",
        ),
        (
            "payload changed",
            flipped(&good, 8 * payload_at),
            13,
            "payload-changed",
            "payload changed",
            "payload-digest",
        ),
        (
            "first byte changed",
            flipped(&good, 0),
            10,
            "not-a-bundle",
            "not a preface bundle",
            "frame",
        ),
        (
            "cut short",
            good[..good.len() - 1].to_vec(),
            10,
            "truncated",
            "cut short",
            "frame",
        ),
        ("empty", vec![], 10, "truncated", "cut short", "frame"),
        (
            "a byte more",
            [&good[..], b"\n"].concat(),
            10,
            "trailing-bytes",
            "bytes follow the bundle",
            "frame",
        ),
        (
            "something else",
            b"{\"not\": \"a bundle\"}".to_vec(),
            10,
            "not-a-bundle",
            "not a preface bundle",
            "frame",
        ),
        (
            "another version",
            flipped(&good, 8 * 30 + 1),
            10,
            "other-version",
            "another format version",
            "frame",
        ),
        (
            "an unknown key",
            foreign,
            11,
            "unknown-key",
            "not trusted: 0 of 1",
            "threshold",
        ),
    ];
    for (name, file, exit_code, reason, sentence, failed) in cases {
        let (code, report) = scene.verify_bytes(&file);
        assert_eq!(
            (code, report["reason"].as_str()),
            (exit_code, Some(reason)),
            "{name}: {report}"
        );
        assert!(
            report["message"].as_str().unwrap().contains(sentence),
            "{name}: {report}"
        );
        assert_eq!(check(&report, failed), "failed", "{name}: {report}");
        assert_eq!(check(&report, "values"), "not-reached", "{name}: {report}");
    }
}

#[test]
fn a_bundle_for_something_else_is_refused() {
    let scene = Scene::new();
    scene.pack("fleet.preface", &["--namespace", "acme"]);
    scene.pack("old.preface", &["--not-after", "2020-01-01T00:00:00Z"]);
    scene.pack("newer.preface", &["--trust-version", "9"]);
    let (base, tokenizer, other) = (
        BASE.to_string(),
        TOKENIZER.to_string(),
        Id([1; 32]).to_string(),
    );
    let ids = |base: &str, tokenizer: &str| {
        ["--base-id", base, "--tokenizer-id", tokenizer]
            .map(String::from)
            .to_vec()
    };
    let cases = [
        (
            "other base",
            "a.preface",
            ids(&other, &tokenizer),
            14,
            "other-base",
            "wrong base model",
        ),
        (
            "other tokenizer",
            "a.preface",
            ids(&base, &other),
            14,
            "other-tokenizer",
            "wrong tokenizer",
        ),
        (
            "other namespace",
            "fleet.preface",
            ids(&base, &tokenizer),
            14,
            "other-namespace",
            "wrong namespace",
        ),
        (
            "namespace demanded",
            "a.preface",
            ["--namespace", "acme"].map(String::from).to_vec(),
            14,
            "other-namespace",
            "wrong namespace",
        ),
        (
            "expired",
            "old.preface",
            vec![],
            16,
            "expired",
            "valid until 2020-01-01T00:00:00Z",
        ),
        (
            "newer trust store",
            "newer.preface",
            vec![],
            11,
            "trust-store-too-old",
            "update the trust store first",
        ),
        (
            "no such bundle",
            "none.preface",
            vec![],
            20,
            "unreadable",
            "cannot read",
        ),
        (
            "a folder",
            "adapter",
            vec![],
            20,
            "unreadable",
            "not a regular file",
        ),
        (
            "no such base",
            "a.preface",
            ["--base", "none"].map(String::from).to_vec(),
            20,
            "base-unreadable",
            "none",
        ),
    ];
    for (name, file, more, exit_code, reason, sentence) in cases {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let (code, report) =
            scene.verify_with(&[&["verify", file, "--trust", "trust"], &more[..]].concat());
        assert_eq!(
            (code, report["reason"].as_str()),
            (exit_code, Some(reason)),
            "{name}: {report}"
        );
        assert!(
            report["message"].as_str().unwrap().contains(sentence),
            "{name}: {report}"
        );
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let scene = Scene::new();
    let good = scene.bundle();
    assert_eq!(scene.verify_here(&good), Ok(()));
    for bit in 0..8 * good.len() {
        let code = scene
            .verify_here(&flipped(&good, bit))
            .map_err(|error| error.exit_code());
        assert!(matches!(code, Err(10 | 12 | 13)), "bit {bit}: {code:?}");
    }
    for bit in (0..8 * good.len()).step_by(211) {
        let expected = scene
            .verify_here(&flipped(&good, bit))
            .unwrap_err()
            .exit_code();
        let (code, report) = scene.verify_bytes(&flipped(&good, bit));
        assert_eq!(code, i32::from(expected), "bit {bit}: {report}");
    }
}

#[test]
fn every_cut_is_refused() {
    let scene = Scene::new();
    let good = scene.bundle();
    for cut in 0..good.len() {
        let error = scene.verify_here(&good[..cut]);
        assert!(
            matches!(error, Err(Error::Truncated { .. })),
            "cut at {cut}: {error:?}"
        );
    }
    for cut in (0..good.len()).step_by(61) {
        let (code, report) = scene.verify_bytes(&good[..cut]);
        assert_eq!(
            (code, report["reason"].as_str()),
            (10, Some("truncated")),
            "cut at {cut}"
        );
    }
}

#[test]
fn without_a_good_trust_store_nothing_is_verified() {
    let scene = Scene::new();
    let good = fs::read_to_string(scene.at("trust")).unwrap();
    let cases = [
        ("empty", String::new(), 0o644, 18),
        (
            "no key",
            good.lines().take(4).collect::<Vec<_>>().join("\n"),
            0o644,
            18,
        ),
        (
            "threshold 0",
            good.replace("threshold 1", "threshold 0"),
            0o644,
            18,
        ),
        (
            "threshold above keys",
            good.replace("threshold 1", "threshold 2"),
            0o644,
            18,
        ),
        (
            "weak key",
            format!("{good}key ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"),
            0o644,
            18,
        ),
        ("others can write it", good.clone(), 0o666, 21),
    ];
    for (name, content, mode, exit_code) in cases {
        let path = scene.at("bad-trust");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let (code, report) = scene.verify_with(&["verify", "a.preface", "--trust", "bad-trust"]);
        assert_eq!(code, exit_code, "{name}: {report}");
        assert_eq!(check(&report, "frame"), "not-reached", "{name}: {report}");
    }
    let (code, _) = scene.verify_with(&["verify", "a.preface", "--trust", "none"]);
    assert_eq!(code, 18);
    assert_eq!(
        scene.run(&["verify", "a.preface"]).status.code(),
        Some(2),
        "a store must be named"
    );
}

#[test]
fn trust_stores_grow_and_revoke() {
    let scene = Scene::new();
    let shown: Value =
        serde_json::from_str(&scene.good(&["trust", "show", "trust", "--json"])).unwrap();
    assert_eq!(
        (&shown["version"], &shown["threshold"]),
        (&json!(1), &json!(1))
    );
    let key = shown["keys"][0]["id"].as_str().unwrap();
    scene.good(&[
        "trust",
        "add",
        "trust",
        "--key",
        "keys/other.pub",
        "--task",
        "acme.*",
    ]);
    assert_eq!(scene.verify("a.preface", &[]).0, 0);
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "3",
        "--key",
        "keys/other.key",
        "-o",
        "other.preface",
    ]);
    let (code, report) = scene.verify("other.preface", &[]);
    assert_eq!(
        (code, report["reason"].as_str()),
        (11, Some("key-out-of-scope"))
    );
    let (_, report) = scene.verify("a.preface", &[]);
    scene.good(&[
        "trust",
        "revoke",
        "trust",
        "--bundle",
        report["bundle_id"].as_str().unwrap(),
    ]);
    assert_eq!(scene.verify("a.preface", &[]).0, 17);
    scene.good(&["trust", "revoke", "trust", "--key", key]);
    let (code, report) = scene.verify("a.preface", &[]);
    assert_eq!((code, report["reason"].as_str()), (17, Some("revoked-key")));
    let shown: Value =
        serde_json::from_str(&scene.good(&["trust", "show", "trust", "--json"])).unwrap();
    assert_eq!(shown["version"], 4);
    assert_eq!(
        scene
            .run(&["trust", "new", "-o", "trust", "--key", "keys/other.pub"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(
        scene.run(&["trust", "revoke", "trust"]).status.code(),
        Some(2)
    );
}

#[test]
fn packing_is_reproducible_and_reported() {
    let scene = Scene::new();
    let first = scene.bundle();
    assert_eq!(scene.pack("b.preface", &[]), first);
    let dated = scene
        .command(&[
            "pack",
            "adapter",
            "--task",
            "intent",
            "--sequence",
            "3",
            "--key",
            "keys/release.key",
            "-o",
            "dated.preface",
        ])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("TZ", "Asia/Tokyo")
        .output()
        .unwrap();
    assert!(dated.status.success());
    let shown: Value =
        serde_json::from_str(&scene.good(&["inspect", "dated.preface", "--json"])).unwrap();
    assert_eq!(shown["created"], 1_700_000_000);
    for (dtype, most) in [
        ("f32", 1e-9),
        ("f16", 1e-3),
        ("bf16", 1e-2),
        ("i8", 1e-2),
        ("i4", 0.15),
    ] {
        let name = format!("{dtype}.preface");
        let said = scene.good(&[
            "pack",
            "adapter",
            "--task",
            "intent",
            "--sequence",
            "3",
            "--key",
            "keys/release.key",
            "-o",
            &name,
            "--dtype",
            dtype,
            "--json",
        ]);
        let report: Value = serde_json::from_str(&said).unwrap();
        let bytes = fs::read(scene.at(&name)).unwrap();
        assert_eq!(
            (&report["bytes"], &report["dtype"]),
            (&json!(bytes.len()), &json!(dtype))
        );
        assert!(report["loss"].as_f64().unwrap() <= most, "{report}");
        let (code, verified) = scene.verify(&name, &[]);
        assert_eq!((code, &verified["bundle_id"]), (0, &report["bundle_id"]));
    }
}

#[test]
fn inspect_says_that_nothing_is_verified() {
    let scene = Scene::new();
    let foreign = flipped(&scene.bundle(), 8 * 200);
    fs::write(scene.at("changed.preface"), foreign).unwrap();
    for name in ["a.preface", "changed.preface"] {
        assert!(scene.good(&["inspect", name]).contains("NOT VERIFIED"));
        let shown: Value = serde_json::from_str(&scene.good(&["inspect", name, "--json"])).unwrap();
        assert_eq!(
            (&shown["verified"], &shown["task"]),
            (&json!(false), &json!("intent"))
        );
        assert_eq!(shown["labels"], json!(["on", "off", "dim"]));
    }
    assert_eq!(scene.run(&["inspect", "trust"]).status.code(), Some(2));
}

#[test]
fn secret_keys_stay_secret() {
    let scene = Scene::new();
    let path = scene.at("keys/release.key");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let before = fs::read(&path).unwrap();
    let again = scene.run(&[
        "keygen",
        "--no-passphrase",
        "-o",
        "keys",
        "--name",
        "release",
    ]);
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(fs::read(&path).unwrap(), before);
    let made = scene.run(&["keygen", "--no-passphrase", "-o", "more", "--name", "k"]);
    assert!(text(&made.stderr).contains("not encrypted"));
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let refused = scene.run(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "4",
        "--key",
        "keys/release.key",
        "-o",
        "no.preface",
    ]);
    assert_eq!(refused.status.code(), Some(21), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("chmod 600"));
    assert!(!scene.at("no.preface").exists());
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let pack = ["pack", "adapter", "--task", "intent", "--sequence", "4"];
    let over = ["--key", "keys/other.key", "-o", "keys/release.key"];
    let over = scene.run(&[&pack[..], &over].concat());
    assert_eq!(over.status.code(), Some(2));
    assert!(
        text(&over.stderr).contains("exists already"),
        "{}",
        text(&over.stderr)
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn links_are_not_followed() {
    let scene = Scene::new();
    symlink(scene.at("a.preface"), scene.at("link.preface")).unwrap();
    assert_eq!(scene.verify("link.preface", &[]).0, 20);
    symlink(scene.at("trust"), scene.at("link-trust")).unwrap();
    assert_eq!(
        scene
            .verify_with(&["verify", "a.preface", "--trust", "link-trust"])
            .0,
        18
    );
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let scene = Scene::new();
    fs::create_dir(scene.at("out")).unwrap();
    let limited = |name: &str| {
        let script = format!(
            "trap '' XFSZ; ulimit -f 1; exec '{PROGRAM}' pack adapter --task intent --sequence 4 --key keys/release.key -o {name}"
        );
        Command::new("sh")
            .current_dir(&scene.folder)
            .args(["-c", &script])
            .output()
            .unwrap()
    };
    let names = || {
        fs::read_dir(scene.at("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let output = limited("out/x.preface");
    let said = text(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("cannot write out/x.preface: no space left on device; free some space or choose another folder with -o"), "{said}");
    assert!(names().is_empty(), "{:?}", names());
    fs::write(scene.at("out/x.preface"), b"old").unwrap();
    assert!(!limited("out/x.preface").status.success());
    assert_eq!(fs::read(scene.at("out/x.preface")).unwrap(), b"old");
    assert_eq!(names(), ["x.preface"]);
}

#[test]
fn what_cannot_be_packed_writes_nothing() {
    let scene = Scene::new();
    let base = [
        "pack",
        "adapter",
        "--sequence",
        "4",
        "--key",
        "keys/release.key",
        "-o",
        "no.preface",
    ];
    let cases: [(&str, &[&str], &str); 5] = [
        ("task", &["--task", "../up"], "--task"),
        ("base", &["--task", "intent", "--base", "none"], "none"),
        (
            "namespace",
            &["--task", "intent", "--namespace", "A"],
            "--namespace",
        ),
        (
            "date",
            &["--task", "intent", "--not-after", "tomorrow"],
            "not a date",
        ),
        ("dtype", &["--task", "intent", "--dtype", "i2"], "i2"),
    ];
    for (name, more, sentence) in cases {
        let output = scene.run(&[&base[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(
            text(&output.stderr).contains(sentence),
            "{name}: {}",
            text(&output.stderr)
        );
        assert!(!scene.at("no.preface").exists(), "{name}");
    }
}
