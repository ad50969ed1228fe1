//! The trust store through the built program: roots, signed updates, and the attacks on them, by the name of the attack.

#![allow(clippy::unwrap_used)]

#[path = "support/bundles.rs"]
mod bundles;

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::ExitStatusExt,
    },
    process::{Command, Stdio},
};

use base64ct::{Base64, Encoding};
use bundles::{PROGRAM, Scene, text};
use preface_bundle::{TRUST_CONTEXT, TrustStore};
use serde_json::{Value, json};

/// A store of version 1 with the roots a and b, which must both sign, and keys a to d.
fn rooted() -> Scene {
    let scene = Scene::new();
    for name in ["a", "b", "c", "d"] {
        scene.good(&["keygen", "--no-passphrase", "-o", "roots", "--name", name]);
    }
    let roots = [
        "--root",
        "roots/a.pub",
        "--root",
        "roots/b.pub",
        "--root-threshold",
        "2",
    ];
    fs::remove_file(scene.at("trust")).unwrap();
    scene.good(
        &[
            &["trust", "new", "-o", "trust", "--key", "keys/release.pub"][..],
            &roots,
        ]
        .concat(),
    );
    scene
}

fn content(scene: &Scene, name: &str) -> String {
    fs::read_to_string(scene.at(name)).unwrap()
}

fn version(scene: &Scene, name: &str) -> u32 {
    TrustStore::parse(&content(scene, name)).unwrap().version()
}

/// The key's id in a file that keygen wrote.
fn id(scene: &Scene, name: &str) -> String {
    let line = content(scene, name);
    let key = preface_bundle::TrustedKey::from_text(line.trim().strip_prefix("key ").unwrap());
    key.unwrap().id.to_string()
}

/// Signs `store` with roots; the signatures' names as options.
fn signatures(scene: &Scene, store: &str, roots: &[&str]) -> Vec<String> {
    let sign = |root: &&str| {
        let (key, name) = (format!("roots/{root}.key"), format!("{store}.{root}.sig"));
        scene.good(&["trust", "sign", store, "--key", &key, "-o", &name]);
        ["--signature".to_owned(), name]
    };
    roots.iter().flat_map(sign).collect()
}

/// Exit code and JSON of `trust update`.
fn update(scene: &Scene, next: &str, signatures: &[String]) -> (i32, Value) {
    let options: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let output = scene.run(&[&["trust", "update", "trust", next, "--json"], &options[..]].concat());
    let code = output.status.code().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    assert_eq!(report["exit_code"], code, "{report}");
    if code != 0 {
        assert!(text(&output.stderr).contains(report["error"].as_str().unwrap()));
    }
    (code, report)
}

/// Who puts a store before the roots that takes a revocation back, or lowers a floor, must not get away with it unsaid.
#[test]
fn what_a_trust_store_grants_is_said_to_whoever_signs_it() {
    let scene = rooted();
    let store = fs::read_to_string(scene.at("trust")).unwrap();
    let key = store.lines().find(|line| line.starts_with("key ")).unwrap();
    let next = store
        .replace("\nversion 1\n", "\nversion 2\n")
        .replace(key, &(key.replace(" tasks=*", "") + " tasks=acme.*,door"));
    let (key_id, bundle_id) = ("0a".repeat(16), "0b".repeat(32));
    let more = format!(
        "min-security 7\ndated 2026-11-23T00:00:00Z\nrevoke-key {key_id}\nrevoke-bundle {bundle_id}\n"
    );
    fs::write(scene.at("next"), next.clone() + &more).unwrap();
    fs::write(scene.at("lax"), next).unwrap();
    let says = |store: &str, words: &[&str]| {
        let sign = ["trust", "sign", store, "--key", "roots/a.key", "-o", "sig"];
        for arguments in [&["statement", store][..], &sign] {
            let output = scene.run(arguments);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let said = text(&output.stderr);
            for word in words {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    };
    let revoked = [
        format!("Revoked keys: {key_id}."),
        format!("Revoked bundles: {bundle_id}."),
    ];
    let [key_is, bundle_is] = &revoked;
    says(
        "next",
        &[
            "(tasks acme.*,door)",
            "security version 7 at least, and it is not earlier than 2026-11-23",
            key_is,
            bundle_is,
        ],
    );
    says(
        "lax",
        &["security version 0 at least. Revoked keys: none. Revoked bundles: none."],
    );
}

#[test]
fn an_update_by_enough_roots_is_in_force_and_the_same_again_changes_nothing() {
    let scene = rooted();
    scene.good(&[
        "sign",
        "a.preface",
        "--key",
        "keys/other.key",
        "-o",
        "other.preface",
    ]);
    scene.good(&[
        "trust",
        "add",
        "trust",
        "--key",
        "keys/other.pub",
        "-o",
        "next",
    ]);
    scene.good(&[
        "trust",
        "remove",
        "next",
        "--key",
        &id(&scene, "keys/release.pub"),
        "--same-version",
    ]);
    assert_eq!((version(&scene, "trust"), version(&scene, "next")), (1, 2));
    let by_hand = scene.run(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "4",
        "--key",
        "keys/other.key",
        "-o",
        "b.preface",
    ]);
    assert!(by_hand.status.success());
    assert_eq!(scene.verify("b.preface", &[]).0, 11);
    let both = signatures(&scene, "next", &["a", "b"]);
    let (code, report) = update(&scene, "next", &both);
    assert_eq!(
        (code, &report["updated"], &report["version"]),
        (0, &json!(true), &json!(2))
    );
    assert_eq!(content(&scene, "trust"), content(&scene, "next"));
    assert_eq!(scene.verify("b.preface", &[]).0, 0);
    assert_eq!(
        scene.verify("a.preface", &[]).0,
        11,
        "release is no key any more"
    );
    let (code, report) = update(&scene, "next", &both);
    assert_eq!((code, &report["updated"]), (0, &json!(false)));
    let mode = fs::metadata(scene.at("trust"))
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o644);
}

#[test]
fn a_root_that_openssl_keeps_signs_too() {
    let scene = rooted();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .current_dir(&scene.folder)
            .args(arguments)
            .output();
        output.map(|output| assert!(output.status.success(), "{}", text(&output.stderr)))
    };
    if let Err(error) = openssl(&["genpkey", "-algorithm", "ed25519", "-out", "key.pem"]) {
        eprintln!("SKIPPED: openssl: {error}");
        return;
    }
    openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem"]).unwrap();
    scene.good(&[
        "trust",
        "add",
        "trust",
        "--root",
        "pub.pem",
        "--root-threshold",
        "3",
        "-o",
        "next",
    ]);
    scene.good(&["statement", "next", "-o", "statement"]);
    assert!(
        fs::read(scene.at("statement"))
            .unwrap()
            .starts_with(&TRUST_CONTEXT)
    );
    openssl(&[
        "pkeyutl",
        "-sign",
        "-rawin",
        "-inkey",
        "key.pem",
        "-in",
        "statement",
        "-out",
        "ssl.sig",
    ])
    .unwrap();
    let mut all = signatures(&scene, "next", &["a", "b"]);
    assert_eq!(update(&scene, "next", &all).0, 11, "the new root must sign");
    all.extend(["--signature".into(), "ssl.sig".into()]);
    assert_eq!(update(&scene, "next", &all).0, 0);
}

/// Attack 66.
#[test]
fn updates_that_skip_a_version_or_that_one_side_alone_signed_are_refused() {
    let scene = rooted();
    scene.good(&["trust", "set", "trust", "--min-security", "1", "-o", "next"]);
    scene.good(&["trust", "set", "next", "--min-security", "2", "-o", "skip"]);
    scene.good(&[
        "trust",
        "set",
        "trust",
        "--min-security",
        "3",
        "--same-version",
        "-o",
        "same",
    ]);
    let take_over = ["--root", "roots/c.pub", "--root", "roots/d.pub"];
    scene.good(&[&["trust", "add", "trust", "-o", "rolled"], &take_over[..]].concat());
    let [a, b] = ["a", "b"].map(|name| id(&scene, &format!("roots/{name}.pub")));
    scene.good(&[
        "trust",
        "remove",
        "rolled",
        "--key",
        &a,
        "--key",
        &b,
        "--same-version",
    ]);
    fs::write(
        scene.at("fleet"),
        content(&scene, "next").replace("namespace default", "namespace acme"),
    )
    .unwrap();
    let rootless: String = content(&scene, "next")
        .lines()
        .filter(|line| !line.starts_with("root"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(scene.at("rootless"), rootless).unwrap();
    fs::write(
        scene.at("broken"),
        content(&scene, "next").replace("threshold 1", "threshold 0"),
    )
    .unwrap();
    let before = content(&scene, "trust");
    let cases: [(&str, &[&str], i32, &str); 12] = [
        ("skip", &["a", "b"], 15, "one version at a time"),
        ("same", &["a", "b"], 15, "one version at a time"),
        (
            "next",
            &["a"],
            11,
            "1 of 2 required signatures are by roots of the trust store in force",
        ),
        ("next", &["a", "a"], 11, "1 of 2"),
        ("next", &["a", "b", "c"], 12, "signature 3 is by no root"),
        (
            "rolled",
            &["a", "b"],
            11,
            "0 of 2 required signatures are by roots of the new trust store",
        ),
        (
            "rolled",
            &["c", "d"],
            11,
            "0 of 2 required signatures are by roots of the trust store in force",
        ),
        ("rolled", &["a", "b", "c"], 11, "1 of 2"),
        ("rolled", &["a", "c", "d"], 11, "1 of 2"),
        ("fleet", &["a", "b"], 14, "wrong namespace"),
        (
            "rootless",
            &["a", "b"],
            11,
            "the new trust store has no roots",
        ),
        ("none", &[], 18, "none"),
    ];
    for (next, roots, expected, sentence) in cases {
        let mut made = match next {
            "none" => vec![],
            "rootless" => signatures(&scene, "next", roots),
            next => signatures(&scene, next, roots),
        };
        if made.is_empty() {
            made.extend(["--signature".into(), "keys/release.pub".into()]);
            fs::write(scene.at("some.sig"), [0; 64]).unwrap();
            made[1] = "some.sig".into();
        }
        let (code, report) = update(&scene, next, &made);
        assert_eq!(code, expected, "{next} {roots:?}: {report}");
        assert!(
            report["error"].as_str().unwrap().contains(sentence),
            "{next} {roots:?}: {report}"
        );
        assert_eq!(content(&scene, "trust"), before, "{next} {roots:?}");
    }
    let sigs = signatures(&scene, "next", &["a", "b"]);
    assert_eq!(update(&scene, "broken", &sigs).0, 18);
    assert_eq!(
        update(&scene, "same", &sigs).0,
        12,
        "signatures of another store"
    );
    assert_eq!(content(&scene, "trust"), before);
    assert_eq!(
        update(
            &scene,
            "rolled",
            &signatures(&scene, "rolled", &["a", "b", "c", "d"])
        )
        .0,
        0
    );
}

#[test]
fn a_store_without_roots_is_never_replaced_by_a_signature() {
    let scene = rooted();
    let rooted = content(&scene, "trust");
    fs::write(scene.at("next"), rooted.replace("version 1", "version 2")).unwrap();
    let sigs = signatures(&scene, "next", &["a", "b"]);
    let rootless: String = rooted
        .lines()
        .filter(|line| !line.starts_with("root"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(scene.at("trust"), &rootless).unwrap();
    assert_eq!(scene.verify("a.preface", &[]).0, 0, "it is valid");
    let (code, report) = update(&scene, "next", &sigs);
    assert_eq!(code, 11, "{report}");
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("the trust store in force has no roots")
    );
    assert_eq!(content(&scene, "trust"), rootless);
    for arguments in [
        ["trust", "sign", "trust", "--key", "roots/a.key", "-o", "no"].as_slice(),
        &["statement", "trust", "-o", "no"],
    ] {
        assert_eq!(
            scene.run(arguments).status.code(),
            Some(11),
            "{arguments:?}"
        );
        assert!(!scene.at("no").exists(), "{arguments:?}");
    }
}

/// Attack 42.
#[test]
fn a_signature_of_a_store_is_none_of_a_bundle_and_none_of_a_bundle_is_one_of_a_store() {
    let scene = rooted();
    scene.good(&[
        "trust",
        "new",
        "-o",
        "bundles",
        "--key",
        "roots/a.pub",
        "--key",
        "roots/b.pub",
    ]);
    scene.good(&["trust", "set", "trust", "--min-security", "1", "-o", "next"]);
    let sigs = signatures(&scene, "next", &["a", "b"]);
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "3",
        "--unsigned",
        "-o",
        "unsigned",
    ]);
    let attach = scene.run(&[
        "attach",
        "unsigned",
        "--signature",
        "next.a.sig",
        "--trust",
        "bundles",
        "-o",
        "no",
    ]);
    assert_eq!(attach.status.code(), Some(12));
    scene.good(&[
        "sign",
        "unsigned",
        "--key",
        "roots/a.key",
        "--key",
        "roots/b.key",
        "-o",
        "by-roots",
    ]);
    assert_eq!(
        scene
            .verify_with(&["verify", "by-roots", "--trust", "bundles"])
            .0,
        0
    );
    let bundle = fs::read(scene.at("by-roots")).unwrap();
    let bundle_signatures = [bundle.len() - 64, bundle.len() - 152].map(|at| {
        let name = format!("{at}.sig");
        fs::write(scene.at(&name), &bundle[at..at + 64]).unwrap();
        ["--signature".to_owned(), name]
    });
    assert_eq!(
        update(&scene, "next", bundle_signatures.as_flattened()).0,
        12
    );
    let mut pasted = bundle.clone();
    let signature = Base64::decode_vec(content(&scene, "next.a.sig").trim()).unwrap();
    for at in [bundle.len() - 64, bundle.len() - 152] {
        pasted[at..at + 64].copy_from_slice(&signature);
    }
    fs::write(scene.at("pasted"), pasted).unwrap();
    assert_eq!(
        scene
            .verify_with(&["verify", "pasted", "--trust", "bundles"])
            .0,
        12
    );
    scene.good(&["statement", "next", "-o", "statement"]);
    let statement = fs::read(scene.at("statement")).unwrap();
    let mut begun = bundle.clone();
    begun[..statement.len()].copy_from_slice(&statement);
    fs::write(scene.at("begun"), begun).unwrap();
    assert_eq!(
        scene
            .verify_with(&["verify", "begun", "--trust", "bundles"])
            .0,
        10
    );
    assert_eq!(scene.verify("by-roots", &[]).0, 11, "roots sign no bundles");
    assert_eq!(update(&scene, "next", &sigs).0, 0);
}

/// A library that ends the process at its first rename.
fn killer(scene: &Scene) -> Option<std::path::PathBuf> {
    let (source, library) = (scene.at("killer.c"), scene.at("killer.so"));
    let code = "#include <signal.h>\n#include <unistd.h>\n\
        int rename(const char *a, const char *b) { (void)a; (void)b; kill(getpid(), SIGKILL); return -1; }\n";
    fs::write(&source, code).unwrap();
    let gcc = Command::new("gcc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    gcc.is_ok_and(|status| status.success()).then_some(library)
}

/// Attack 67.
#[test]
fn an_update_that_is_killed_before_its_rename_leaves_the_old_store_in_force() {
    let scene = rooted();
    scene.good(&["trust", "set", "trust", "--min-security", "1", "-o", "next"]);
    let sigs = signatures(&scene, "next", &["a", "b"]);
    let Some(killer) = killer(&scene) else {
        eprintln!("SKIPPED: no gcc");
        return;
    };
    let before = content(&scene, "trust");
    let mut killed = scene.command(&["trust", "update", "trust", "next"]);
    let status = killed
        .args(&sigs)
        .env("LD_PRELOAD", killer)
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    assert_eq!(
        content(&scene, ".trust.new"),
        content(&scene, "next"),
        "it was written"
    );
    assert_eq!(content(&scene, "trust"), before, "and not in force");
    assert_eq!(scene.verify("a.preface", &[]).0, 0);
    assert_eq!(update(&scene, "next", &sigs).0, 0);
    assert!(!scene.at(".trust.new").exists());
    assert_eq!(version(&scene, "trust"), 2);
}

#[test]
fn an_update_without_room_leaves_the_old_store_and_nothing_beside_it() {
    let scene = rooted();
    scene.good(&["trust", "set", "trust", "--min-security", "1", "-o", "next"]);
    let sigs = signatures(&scene, "next", &["a", "b"]);
    let before = content(&scene, "trust");
    let script = format!(
        "trap '' XFSZ; ulimit -f 0; exec '{PROGRAM}' trust update trust next {}",
        sigs.join(" ")
    );
    let status = Command::new("sh")
        .current_dir(&scene.folder)
        .args(["-c", &script])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(20));
    assert_eq!(content(&scene, "trust"), before);
    assert!(!scene.at(".trust.new").exists());
}

/// Attack 37.
#[test]
fn a_store_that_is_missing_empty_unreadable_or_that_others_can_write_refuses_everything() {
    let scene = rooted();
    scene.good(&["trust", "set", "trust", "--min-security", "1", "-o", "next"]);
    let sigs = signatures(&scene, "next", &["a", "b"]);
    let good = content(&scene, "trust");
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "3",
        "--unsigned",
        "-o",
        "unsigned",
    ]);
    fs::write(scene.at("some.sig"), [1; 64]).unwrap();
    let root = rustix::process::geteuid().is_root();
    let spoil = |name: &str| {
        let (path, set) = (scene.at("trust"), |mode| {
            fs::set_permissions(scene.at("trust"), Permissions::from_mode(mode)).unwrap()
        });
        match name {
            "missing" => fs::remove_file(&path).unwrap(),
            "empty" => fs::write(&path, "").unwrap(),
            "one blank line" => fs::write(&path, "\n").unwrap(),
            "cut in its last line" => fs::write(&path, &good[..good.len() - 1]).unwrap(),
            "not text" => fs::write(&path, [0xff; 64]).unwrap(),
            "larger than any" => fs::write(&path, good.clone() + &"#\n".repeat(40_000)).unwrap(),
            "unreadable" if root => return false,
            "unreadable" => set(0o000),
            "everybody can write" => set(0o666),
            "its group can write" => set(0o664),
            "a stranger's" if !root => return false,
            "a stranger's" => chown(&path, Some(12345), None).unwrap(),
            "in a folder that everybody can write" => {
                fs::set_permissions(&scene.folder, Permissions::from_mode(0o777)).unwrap()
            }
            "a folder" => {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            _ => unreachable!(),
        }
        true
    };
    let cases = [
        ("missing", 18),
        ("empty", 18),
        ("one blank line", 18),
        ("cut in its last line", 18),
        ("not text", 18),
        ("larger than any", 18),
        ("unreadable", 18),
        ("everybody can write", 21),
        ("its group can write", 21),
        ("a stranger's", 21),
        ("in a folder that everybody can write", 21),
        ("a folder", 18),
    ];
    for (name, expected) in cases {
        if !spoil(name) {
            eprintln!("SKIPPED: {name}, as this user");
            continue;
        }
        let (code, report) = scene.verify_with(&["verify", "a.preface", "--trust", "trust"]);
        assert_eq!(
            (code, &report["verified"]),
            (expected, &json!(false)),
            "{name}: {report}"
        );
        assert_eq!(update(&scene, "next", &sigs).0, expected, "{name}");
        let attach = [
            "attach",
            "unsigned",
            "--signature",
            "some.sig",
            "--trust",
            "trust",
            "-o",
            "no",
        ];
        for arguments in [
            &attach[..],
            &["trust", "sign", "trust", "--key", "roots/a.key", "-o", "no"],
            &["trust", "set", "trust", "--min-security", "2", "-o", "no"],
            &["trust", "show", "trust"],
        ] {
            assert_eq!(
                scene.run(arguments).status.code(),
                Some(expected),
                "{name}: {arguments:?}"
            );
            assert!(!scene.at("no").exists(), "{name}");
        }
        fs::set_permissions(&scene.folder, Permissions::from_mode(0o700)).unwrap();
        let _ = fs::remove_dir(scene.at("trust"));
        let _ = fs::remove_file(scene.at("trust"));
        fs::write(scene.at("trust"), &good).unwrap();
        assert_eq!(scene.verify("a.preface", &[]).0, 0, "after {name}");
    }
    fs::set_permissions(&scene.folder, Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(
        scene.verify("a.preface", &[]).0,
        0,
        "a folder like /tmp is none of them"
    );
}

/// Attacks 38 and 39: thresholds, and the low-order, non-canonical and mixed-order keys of CCTV.
#[test]
fn stores_of_no_threshold_or_of_weak_keys_are_invalid() {
    let scene = rooted();
    let good = content(&scene, "trust");
    let mut cases: Vec<(String, String)> = Vec::new();
    for threshold in ["0", "-1", "2", "+1", "01", "1 1", "4294967296", ""] {
        cases.push((
            format!("threshold {threshold}"),
            good.replace("\nthreshold 1\n", &format!("\nthreshold {threshold}\n")),
        ));
    }
    for threshold in ["0", "-1", "3", "02", "18446744073709551617", ""] {
        cases.push((
            format!("root-threshold {threshold}"),
            good.replace("root-threshold 2", &format!("root-threshold {threshold}")),
        ));
    }
    let a = id(&scene, "roots/a.pub");
    cases.push((
        "a revoked root that is needed".into(),
        format!("{good}revoke-key {a}\n"),
    ));
    let low = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    ];
    let bytes = low.map(|hex| preface_bundle::Id::<32>::from_hex(hex).unwrap().0);
    let mixed = {
        let point = |bytes| {
            curve25519_dalek::edwards::CompressedEdwardsY(bytes)
                .decompress()
                .unwrap()
        };
        let good = curve25519_dalek::EdwardsPoint::mul_base(&curve25519_dalek::Scalar::from(7u8));
        (good + point(bytes[4])).compress().to_bytes()
    };
    for key in bytes.iter().chain([&mixed]) {
        for role in ["key", "root", "timestamp"] {
            let line = format!("{role} ed25519:{}\n", Base64::encode_string(key));
            cases.push((line.clone(), format!("{good}{line}")));
        }
    }
    for (name, content) in cases {
        assert_ne!(content, good, "{name}");
        fs::write(scene.at("trust"), content).unwrap();
        let (code, report) = scene.verify("a.preface", &[]);
        assert_eq!(code, 18, "{name}: {report}");
    }
}

/// Attacks 33, 34 and 60.
#[test]
fn revocation_scope_and_the_floor_of_security_come_with_an_update() {
    let scene = rooted();
    let release = id(&scene, "keys/release.pub");
    scene.pack("secure", &["--security-version", "4294967295"]);
    let mut number = 0;
    let mut step = |arguments: &[&str]| {
        number += 1;
        let next = format!("next{number}");
        scene.good(&[arguments, &["-o", &next]].concat());
        let sigs = signatures(&scene, &next, &["a", "b"]);
        assert_eq!(update(&scene, &next, &sigs).0, 0, "{arguments:?}");
    };
    step(&["trust", "set", "trust", "--min-security", "7"]);
    assert_eq!(scene.verify("a.preface", &[]).0, 15);
    let before = content(&scene, "trust");
    assert_eq!(scene.verify("secure", &[]).0, 0);
    assert_eq!(content(&scene, "trust"), before, "a bundle moves no floor");
    step(&[
        "trust",
        "add",
        "trust",
        "--key",
        "keys/other.pub",
        "--task",
        "acme.*",
    ]);
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "9",
        "--security-version",
        "7",
        "--key",
        "keys/other.key",
        "-o",
        "scoped",
    ]);
    assert_eq!(scene.verify("scoped", &[]).0, 11);
    step(&["trust", "revoke", "trust", "--key", &release]);
    let (code, report) = scene.verify("secure", &[]);
    assert_eq!((code, report["reason"].as_str()), (17, Some("revoked-key")));
}

/// Attack 64, as far as a clock that cannot be set goes: the date of the store is a floor under it.
#[test]
fn the_date_of_the_store_is_a_floor_under_the_clock() {
    let scene = rooted();
    scene.pack("dated", &["--not-after", "2200-01-01T00:00:00Z"]);
    assert_eq!(scene.verify("dated", &[]).0, 0);
    for (date, expected) in [
        ("2199-12-31T23:59:59Z", 0),
        ("2200-01-01T00:00:00Z", 0),
        ("2200-01-01T00:00:01Z", 16),
    ] {
        scene.good(&["trust", "set", "trust", "--dated", date]);
        assert_eq!(scene.verify("dated", &[]).0, expected, "{date}");
    }
    let late = scene.run(&["trust", "set", "trust", "--dated", "2200-13-01T00:00:00Z"]);
    assert_eq!(late.status.code(), Some(2));
}

#[test]
fn a_store_shows_its_roots_and_what_a_root_would_sign() {
    let scene = rooted();
    scene.good(&["trust", "add", "trust", "--timestamp", "roots/c.pub"]);
    let shown: Value =
        serde_json::from_str(&scene.good(&["trust", "show", "trust", "--json"])).unwrap();
    assert_eq!(
        (&shown["root_threshold"], &shown["threshold"]),
        (&json!(2), &json!(1))
    );
    let names = |field: &str| {
        shown[field]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names("roots"), names("timestamp_keys")),
        (vec![json!("a"), json!("b")], vec![json!("c")])
    );
    let output = scene.run(&["statement", "trust", "-o", "statement"]);
    let said = text(&output.stderr);
    for word in [
        "version 2",
        "version 1",
        "namespace default",
        "release",
        "a and b",
    ] {
        assert!(said.contains(word), "{said}");
    }
    let statement = fs::read(scene.at("statement")).unwrap();
    let digest = preface_bundle::Id::of(content(&scene, "trust").as_bytes());
    let lines = format!("namespace default\nversion 2\nsha256 {digest}\n");
    assert_eq!(statement, [&TRUST_CONTEXT, lines.as_bytes()].concat());
    let stranger = scene.run(&[
        "trust",
        "sign",
        "trust",
        "--key",
        "keys/other.key",
        "-o",
        "sig",
    ]);
    assert!(
        stranger.status.success() && text(&stranger.stderr).contains("is no root of this store")
    );
}

/// Updates of one folder wait for each other: none is written over a later one.
#[test]
fn updates_at_once_end_with_the_last_version() {
    let scene = rooted();
    let mut updates = Vec::new();
    for number in 1..9 {
        let (from, next) = (format!("v{number}"), format!("v{}", number + 1));
        let from = if number == 1 { "trust" } else { &from };
        scene.good(&[
            "trust",
            "set",
            from,
            "--min-security",
            &number.to_string(),
            "-o",
            &next,
        ]);
        let sigs = signatures(&scene, &next, &["a", "b"]);
        updates.push((next, sigs));
    }
    while version(&scene, "trust") < 9 {
        let spawn = |(next, sigs): &(String, Vec<String>)| {
            let mut command = scene.command(&["trust", "update", "trust", next]);
            command
                .args(sigs)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let before = version(&scene, "trust");
        let children: Vec<_> = updates.iter().map(spawn).collect();
        let codes: Vec<_> = children
            .into_iter()
            .map(|mut child| child.wait().unwrap().code())
            .collect();
        assert!(
            codes.iter().all(|code| matches!(code, Some(0 | 15))),
            "{codes:?}"
        );
        assert!(version(&scene, "trust") > before, "{codes:?}");
    }
    assert_eq!(content(&scene, "trust"), content(&scene, "v9"));
}
