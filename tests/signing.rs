//! Keys and signatures through the built program: passphrases, signatures made elsewhere, thresholds, minisign,
//! and the attacks on each, by the name of the attack.

#![allow(clippy::unwrap_used)]

#[path = "support/bundles.rs"]
mod bundles;
#[path = "signing/elsewhere.rs"]
mod elsewhere;
#[path = "signing/forged.rs"]
mod forged;

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use bundles::{BASE, PROGRAM, Scene, TOKENIZER, text, write_adapter};
use preface_bundle::{Frame, Id};
use serde_json::{Value, json};

const PACK: [&str; 6] = ["pack", "adapter", "--task", "intent", "--sequence", "3"];
const SEED: [u8; 32] = [7; 32];

fn write_private(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A key of a known seed, as keygen --no-passphrase writes it.
fn write_known_key(scene: &Scene) {
    let key = format!("preface-secret-key v1\ned25519-seed {}\n", Id(SEED));
    write_private(&scene.at("known.key"), &key, 0o600);
}

/// Runs another program, which must be there and do as it is told; `None`, said aloud, where it is not there.
fn other(scene: &Scene, program: &str, arguments: &[&str]) -> Option<Output> {
    let output = Command::new(program)
        .current_dir(&scene.folder)
        .args(arguments)
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {program}: {error}");
            None
        }
    }
}

fn mode(scene: &Scene, name: &str) -> u32 {
    fs::metadata(scene.at(name)).unwrap().permissions().mode() & 0o777
}

/// Exit code of the program with `arguments`, a closed stdin and no terminal.
fn code(scene: &Scene, arguments: &[&str]) -> i32 {
    let mut command = Command::new("setsid");
    command.args(["-w", PROGRAM]).args(arguments);
    let status = command
        .current_dir(&scene.folder)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    status.unwrap().code().unwrap()
}

#[test]
fn a_key_under_a_passphrase_signs_with_it_alone() {
    let scene = Scene::new();
    write_private(&scene.at("right"), "correct horse\n", 0o600);
    write_private(&scene.at("wrong"), "correct horze\n", 0o600);
    write_private(&scene.at("lax"), "correct horse\n", 0o640);
    let keygen = ["keygen", "-o", "keys", "--name", "locked"];
    let made = scene.good(&[&keygen[..], &["--passphrase-file", "right", "--json"]].concat());
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(
        (&made["encrypted"], mode(&scene, "keys/locked.key")),
        (&json!(true), 0o600)
    );
    scene.good(&["trust", "add", "trust", "--key", "keys/locked.pub"]);
    let pack = [
        &PACK[..],
        &["--key", "keys/locked.key", "-o", "locked.preface"],
    ]
    .concat();
    let with = |more: &[&'static str]| [&pack[..], more].concat();
    for (more, expected) in [
        (vec!["--passphrase-file", "wrong"], 2),
        (vec!["--passphrase-file", "none"], 2),
        (vec!["--passphrase-file", "lax"], 21),
        (vec!["--passphrase-fd", "0"], 2),
        (vec![], 2),
    ] {
        assert_eq!(code(&scene, &with(&more)), expected, "{more:?}");
        assert!(!scene.at("locked.preface").exists(), "{more:?}");
    }
    scene.good(&with(&["--passphrase-file", "right"]));
    assert_eq!(scene.verify("locked.preface", &[]).0, 0);
    let mut child = scene
        .command(&with(&["--passphrase-fd", "0"]))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"correct horse\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn keygen_without_a_terminal_or_a_passphrase_writes_nothing() {
    let scene = Scene::new();
    write_private(&scene.at("empty"), "\n", 0o600);
    for more in [
        &[][..],
        &["--passphrase-file", "empty"],
        &["--passphrase-fd", "99"],
    ] {
        let arguments = [&["keygen", "-o", "new", "--name", "k"][..], more].concat();
        assert_eq!(code(&scene, &arguments), 2, "{more:?}");
        assert!(!scene.at("new").exists(), "{more:?}");
    }
}

/// Attacks 87 and 88.
#[test]
fn whatever_the_umask_secrets_are_private_and_an_old_file_is_never_written_into() {
    for mask in ["000", "077", "777"] {
        let scene = Scene::new();
        let script = format!(
            "umask {mask}; '{PROGRAM}' keygen -o keys --name masked --no-passphrase && \
             '{PROGRAM}' trust new -o masked.trust --key keys/masked.pub && \
             '{PROGRAM}' pack adapter --task intent --sequence 1 --key keys/masked.key -o masked.preface"
        );
        let status = other(&scene, "sh", &["-c", &script]).unwrap().status;
        assert!(status.success(), "{mask}");
        let modes = [
            "keys/masked.key",
            "keys/masked.pub",
            "masked.trust",
            "masked.preface",
        ]
        .map(|name| mode(&scene, name));
        assert_eq!(modes, [0o600, 0o644, 0o644, 0o644], "{mask}");
    }
    let scene = Scene::new();
    write_private(
        &scene.at("keys/taken.key"),
        "somebody waits for a key\n",
        0o644,
    );
    let keygen = ["keygen", "-o", "keys", "--name", "taken", "--no-passphrase"];
    assert_eq!(code(&scene, &keygen), 2);
    assert_eq!(
        fs::read_to_string(scene.at("keys/taken.key")).unwrap(),
        "somebody waits for a key\n"
    );
    fs::set_permissions(scene.at("keys/release.key"), Permissions::from_mode(0o640)).unwrap();
    for arguments in [
        &["sign", "a.preface", "--key", "keys/release.key", "-o", "no"][..],
        &[
            "minisig",
            "a.preface",
            "--key",
            "keys/release.key",
            "-o",
            "no",
        ],
        &[&PACK[..], &["--key", "keys/release.key", "-o", "no"]].concat(),
    ] {
        assert_eq!(code(&scene, arguments), 21, "{arguments:?}");
        assert!(!scene.at("no").exists());
    }
}

/// Writes `two`, a trust store that asks for both keys of `scene`.
fn trust_two_keys(scene: &Scene) {
    let keys = ["--key", "keys/release.pub", "--key", "keys/other.pub"];
    let new = ["trust", "new", "-o", "two", "--threshold", "2"];
    scene.good(&[&new[..], &keys[..]].concat());
}

#[test]
fn a_threshold_takes_as_many_keys_in_any_order() {
    let scene = Scene::new();
    trust_two_keys(&scene);
    let verify = |name| {
        let (code, report) = scene.verify_with(&["verify", name, "--trust", "two"]);
        (code, report["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(verify("a.preface"), (11, "threshold-missed".into()));
    scene.good(&[
        "sign",
        "a.preface",
        "--key",
        "keys/other.key",
        "-o",
        "second",
    ]);
    assert_eq!(verify("second"), (0, "verified".into()));
    scene.good(&["sign", "second", "--key", "keys/other.key", "-o", "again"]);
    for (name, keys) in [
        ("one", ["release", "other"]),
        ("two-keys", ["other", "release"]),
    ] {
        let keys = keys.map(|key| format!("keys/{key}.key"));
        scene.good(
            &[
                &PACK[..],
                &["--key", &keys[0], "--key", &keys[1], "-o", name],
            ]
            .concat(),
        );
        assert_eq!(
            fs::read(scene.at(name)).unwrap(),
            fs::read(scene.at("second")).unwrap(),
            "{name}"
        );
    }
    assert_eq!(
        fs::read(scene.at("again")).unwrap(),
        fs::read(scene.at("second")).unwrap()
    );
    let twice = [
        "--key",
        "keys/other.key",
        "--key",
        "keys/other.key",
        "-o",
        "no",
    ];
    for signing in [&PACK[..], &["sign", "a.preface"]] {
        let output = scene.run(&[signing, &twice].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("the same key is there twice"), "{said}");
    }
    assert_eq!(
        code(&scene, &[&PACK[..], &["-o", "no"]].concat()),
        2,
        "a key or --unsigned"
    );
    assert_eq!(
        code(
            &scene,
            &[
                &PACK[..],
                &["--unsigned", "--key", "keys/other.key", "-o", "no"]
            ]
            .concat()
        ),
        2
    );
    assert!(!scene.at("no").exists());
}

#[test]
fn sign_says_what_it_vouches_for_and_refuses_what_verify_would() {
    let scene = Scene::new();
    let output = scene.run(&[
        "sign",
        "a.preface",
        "--key",
        "keys/other.key",
        "-o",
        "signed",
    ]);
    let said = text(&output.stderr);
    for word in [
        "task intent",
        "sequence 3",
        &BASE.to_string(),
        &TOKENIZER.to_string(),
        "for ever",
    ] {
        assert!(said.contains(word), "{said}");
    }
    let shown: Value =
        serde_json::from_str(&scene.good(&["statement", "signed", "--json"])).unwrap();
    let bundle_id = Frame::parse(&scene.bundle())
        .unwrap()
        .bundle_id()
        .to_string();
    assert_eq!(
        (&shown["bundle_id"], &shown["sha256"]),
        (&json!(bundle_id), &json!(bundle_id))
    );
    assert_eq!(shown["signature_keys"].as_array().unwrap().len(), 2);
    let good = scene.bundle();
    let payload_at = Frame::parse(&good).unwrap().signed_prefix().len();
    fs::write(scene.at("payload"), bundles::flipped(&good, 8 * payload_at)).unwrap();
    fs::write(scene.at("cut"), &good[..good.len() - 1]).unwrap();
    fs::write(scene.at("damaged"), bundles::flipped(&good, 8 * 50)).unwrap();
    for (name, more, expected) in [
        ("payload", &[][..], 13),
        ("cut", &[], 10),
        ("damaged", &[], 10),
        ("trust", &[], 10),
        ("a.preface", &["--namespace", "acme"], 14),
        ("none", &[], 20),
    ] {
        let sign = ["sign", name, "--key", "keys/other.key", "-o", "no"];
        assert_eq!(
            code(&scene, &[&sign[..], more].concat()),
            expected,
            "{name}"
        );
        assert!(!scene.at("no").exists(), "{name}");
    }
}

#[test]
fn minisign_accepts_minisig_and_not_one_byte_more() {
    let scene = Scene::new();
    let minisig = [
        "minisig",
        "a.preface",
        "--key",
        "keys/release.key",
        "--public",
        "release.minisign",
    ];
    scene.good(&minisig);
    let verify = ["-V", "-p", "release.minisign", "-m", "a.preface"];
    let Some(output) = other(&scene, "minisign", &verify) else {
        return;
    };
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(
        said.contains("Signature and comment signature verified"),
        "{said}"
    );
    assert!(
        said.contains(&format!("task=intent sequence=3 base={BASE}")),
        "{said}"
    );
    let good = scene.bundle();
    fs::write(scene.at("a.preface"), [&good[..], b"\n"].concat()).unwrap();
    assert!(
        !other(&scene, "minisign", &verify).unwrap().status.success(),
        "one byte more"
    );
    fs::write(scene.at("a.preface"), &good).unwrap();
    let signature = fs::read_to_string(scene.at("a.preface.minisig")).unwrap();
    fs::write(
        scene.at("a.preface.minisig"),
        signature.replace("sequence=3", "sequence=4"),
    )
    .unwrap();
    assert!(
        !other(&scene, "minisign", &verify).unwrap().status.success(),
        "another comment"
    );
    scene.good(&[
        "trust",
        "new",
        "-o",
        "mini.trust",
        "--key",
        "release.minisign",
    ]);
    assert_eq!(
        scene
            .verify_with(&["verify", "a.preface", "--trust", "mini.trust"])
            .0,
        0
    );
}

/// Attack 40.
#[test]
fn a_key_that_a_bundle_brings_along_counts_for_nothing() {
    let scene = Scene::new();
    let path = scene.at("adapter/preface.json");
    let mut description: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let key = fs::read_to_string(scene.at("keys/other.pub")).unwrap();
    description["receipt"] =
        json!({"key": key.trim(), "trust": "preface-trust v1", "verified": true});
    fs::write(&path, description.to_string()).unwrap();
    scene.good(&[&PACK[..], &["--key", "keys/other.key", "-o", "own-key"]].concat());
    let bytes = fs::read(scene.at("own-key")).unwrap();
    assert!(text(&bytes).contains(key.trim()));
    let (code, report) = scene.verify("own-key", &[]);
    assert_eq!((code, report["reason"].as_str()), (11, Some("unknown-key")));
}

/// Attack 65.
#[test]
fn a_date_or_trust_version_far_ahead_moves_nothing() {
    let scene = Scene::new();
    let dated = [
        &PACK[..],
        &[
            "--key",
            "keys/release.key",
            "--not-after",
            "2400-01-01T00:00:00Z",
            "-o",
            "ahead",
        ],
    ]
    .concat();
    let output = scene
        .command(&dated)
        .env("SOURCE_DATE_EPOCH", "16725225600")
        .output()
        .unwrap();
    assert!(output.status.success());
    let before = fs::read(scene.at("trust")).unwrap();
    assert_eq!(
        scene.verify("ahead", &[]).0,
        0,
        "made in 2500, valid until 2400"
    );
    scene.pack("later", &["--not-after", "2400-01-01T00:00:00Z"]);
    assert_eq!(scene.verify("later", &[]).0, 0);
    scene.pack("newest", &["--trust-version", "4294967295"]);
    let (code, report) = scene.verify("newest", &[]);
    assert_eq!(
        (code, report["reason"].as_str()),
        (11, Some("trust-store-too-old"))
    );
    assert_eq!(fs::read(scene.at("trust")).unwrap(), before);
}

/// Attacks 89 and 90.
#[test]
fn garbage_is_refused_in_valid_json_and_nothing_is_printed_as_good() {
    let scene = Scene::new();
    let mut garbage = Vec::new();
    for length in [0usize, 1, 31, 32, 64, 4096, 70_000] {
        garbage.push(
            (0..length)
                .map(|at| (at * 197 % 251) as u8)
                .collect::<Vec<_>>(),
        );
    }
    garbage.push(b"\xff\xfe{\"verified\": true, \"exit_code\": 0}\n\0".to_vec());
    for file in garbage {
        let (code, report) = scene.verify_bytes(&file);
        assert_eq!((code, &report["verified"]), (10, &json!(false)), "{report}");
        let output = scene.run(&["verify", "changed.preface", "--trust", "trust"]);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
        assert_eq!(output.status.code(), Some(10));
    }
}

/// Attack 91.
#[test]
fn the_same_input_gives_the_same_bytes_in_another_folder_time_and_locale() {
    let scene = Scene::new();
    let away = tempfile::tempdir().unwrap();
    write_adapter(&away.path().join("elsewhere"));
    for file in ["preface.json", "adapter_model.safetensors"] {
        let file = fs::File::options()
            .write(true)
            .open(away.path().join("elsewhere").join(file))
            .unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let key = scene.at("keys/release.key");
    for (name, epoch) in [("undated", None), ("dated", Some("1700000000"))] {
        let pack = [
            "--key",
            "keys/release.key",
            "--not-after",
            "2400-01-01T00:00:00Z",
            "-o",
            name,
        ];
        let mut here = scene.command(&[&PACK[..], &pack].concat());
        let mut there = Command::new(PROGRAM);
        there
            .current_dir(away.path())
            .arg0("another-name")
            .args([
                "pack",
                "elsewhere",
                "--task",
                "intent",
                "--sequence",
                "3",
                "--not-after",
                "2400-01-01T00:00:00Z",
            ])
            .args(["--key".as_ref(), key.as_os_str()])
            .args(["-o", name])
            .env_clear()
            .envs([
                ("LC_ALL", "tr_TR.UTF-8"),
                ("LANG", "ar_EG.UTF-8"),
                ("TZ", "Pacific/Kiritimati"),
                ("HOME", "/"),
            ]);
        if let Some(epoch) = epoch {
            here.env("SOURCE_DATE_EPOCH", epoch);
            there.env("SOURCE_DATE_EPOCH", epoch);
        }
        assert!(here.output().unwrap().status.success());
        assert!(there.output().unwrap().status.success());
        let (here, there) = (
            fs::read(scene.at(name)).unwrap(),
            fs::read(away.path().join(name)).unwrap(),
        );
        assert_eq!(here, there, "{name}");
    }
    let [dated, undated] = ["dated", "undated"].map(|name| fs::read(scene.at(name)).unwrap());
    assert_ne!(dated, undated);
}
