//! Keys and signatures through the built program: passphrases, signatures made elsewhere, thresholds, minisign,
//! and the attacks on each, by the name of the attack.

#![allow(clippy::unwrap_used)]

#[path = "support/bundles.rs"]
mod bundles;

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use base64ct::{Base64, Encoding};
use bundles::{BASE, PROGRAM, Scene, TOKENIZER, text, write_adapter};
use curve25519_dalek::{EdwardsPoint, Scalar, scalar::clamp_integer};
use preface_bundle::{Frame, Id};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

const PACK: [&str; 6] = ["pack", "adapter", "--task", "intent", "--sequence", "3"];
const SEED: [u8; 32] = [7; 32];
/// Order of the base point, little-endian (RFC 8032, section 5.1).
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

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

/// A trust store with an OpenSSL key, and the statement of an unsigned bundle.
fn openssl_scene() -> Option<Scene> {
    let scene = Scene::new();
    other(
        &scene,
        "openssl",
        &["genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
    )?;
    other(
        &scene,
        "openssl",
        &["pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem"],
    )?;
    scene.good(&["trust", "new", "-o", "ssl.trust", "--key", "pub.pem"]);
    scene.good(&[&PACK[..], &["--unsigned", "-o", "unsigned"]].concat());
    scene.good(&["statement", "unsigned", "-o", "statement"]);
    Some(scene)
}

fn openssl_sign(scene: &Scene, statement: &str, signature: &str) {
    let sign = ["pkeyutl", "-sign", "-rawin", "-inkey", "key.pem"];
    let files = ["-in", statement, "-out", signature];
    assert!(
        other(scene, "openssl", &[&sign[..], &files].concat())
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_signature_by_openssl_is_attached_and_the_key_never_was_here() {
    let Some(scene) = openssl_scene() else { return };
    let statement = fs::read(scene.at("statement")).unwrap();
    assert_eq!(
        statement,
        Frame::parse(&scene.bundle()).unwrap().signed_prefix()
    );
    let (code, report) = scene.verify_with(&["verify", "unsigned", "--trust", "ssl.trust"]);
    assert_eq!(
        (code, report["reason"].as_str()),
        (10, Some("truncated")),
        "nothing unsigned is accepted"
    );
    openssl_sign(&scene, "statement", "raw.sig");
    other(
        &scene,
        "openssl",
        &["base64", "-in", "raw.sig", "-out", "base64.sig"],
    )
    .unwrap();
    for signature in ["raw.sig", "base64.sig"] {
        scene.good(&[
            "attach",
            "unsigned",
            "--signature",
            signature,
            "--trust",
            "ssl.trust",
            "-o",
            "ssl.preface",
        ]);
        let (code, report) = scene.verify_with(&["verify", "ssl.preface", "--trust", "ssl.trust"]);
        assert_eq!(code, 0, "{report}");
    }
    let both = [
        "attach",
        "a.preface",
        "--signature",
        "raw.sig",
        "--trust",
        "ssl.trust",
    ];
    scene.good(&both);
    assert_eq!(
        scene.verify("a.preface", &[]).0,
        0,
        "the first signature is still there"
    );
    assert_eq!(
        scene
            .verify_with(&["verify", "a.preface", "--trust", "ssl.trust"])
            .0,
        0
    );
}

#[test]
fn a_timestamp_key_that_never_was_here_signs_an_index() {
    let Some(scene) = openssl_scene() else { return };
    scene.good(&["trust", "add", "trust", "--timestamp", "pub.pem"]);
    let new = [
        "index",
        "new",
        "a.preface",
        "--trust",
        "trust",
        "--days",
        "14",
    ];
    scene.good(&[&new[..], &["-o", "fleet.index"]].concat());
    scene.good(&["statement", "fleet.index", "-o", "index.statement"]);
    openssl_sign(&scene, "index.statement", "index.sig");
    openssl_sign(&scene, "fleet.index", "file.sig");
    openssl_sign(&scene, "statement", "bundle.sig");
    let before = fs::read(scene.at("fleet.index")).unwrap();
    let attach = |signature, trust| {
        let attach = ["attach", "fleet.index", "--signature", signature];
        code(&scene, &[&attach[..], &["--trust", trust]].concat())
    };
    for (signature, trust) in [
        ("file.sig", "trust"),
        ("bundle.sig", "trust"),
        // There it is a release key, which signs no index.
        ("index.sig", "ssl.trust"),
    ] {
        assert_eq!(attach(signature, trust), 12, "{signature} {trust}");
        assert_eq!(fs::read(scene.at("fleet.index")).unwrap(), before);
    }
    let show = ["index", "show", "fleet.index", "--trust", "trust"];
    assert_eq!(code(&scene, &show), 11, "nobody has signed it");
    assert_eq!(attach("index.sig", "trust"), 0);
    let shown: Value =
        serde_json::from_str(&scene.good(&[&show[..], &["--json"]].concat())).unwrap();
    assert_eq!(shown["verified"], json!(true), "{shown}");
}

/// Attack 45.
#[test]
fn a_signature_of_another_statement_is_not_attached_and_the_file_stays_as_it_was() {
    let Some(scene) = openssl_scene() else { return };
    scene.good(&[
        "pack",
        "adapter",
        "--task",
        "intent",
        "--sequence",
        "4",
        "--unsigned",
        "-o",
        "next",
    ]);
    scene.good(&["statement", "next", "-o", "next.statement"]);
    openssl_sign(&scene, "next.statement", "next.sig");
    openssl_sign(&scene, "unsigned", "file.sig");
    fs::write(scene.at("zeros.sig"), [0; 64]).unwrap();
    fs::write(scene.at("short.sig"), [0; 63]).unwrap();
    for file in ["unsigned", "a.preface"] {
        let before = fs::read(scene.at(file)).unwrap();
        for (signature, trust, expected) in [
            ("next.sig", "ssl.trust", 12),
            ("file.sig", "ssl.trust", 12),
            ("zeros.sig", "ssl.trust", 12),
            ("short.sig", "ssl.trust", 2),
            ("none.sig", "ssl.trust", 2),
            ("next.sig", "trust", 12),
            ("next.sig", "none", 18),
        ] {
            let attach = ["attach", file, "--signature", signature, "--trust", trust];
            assert_eq!(code(&scene, &attach), expected, "{signature}");
            assert_eq!(fs::read(scene.at(file)).unwrap(), before, "{signature}");
            assert_eq!(
                code(&scene, &[&attach[..], &["-o", "no"]].concat()),
                expected
            );
            assert!(!scene.at("no").exists(), "{signature}");
        }
    }
}

#[test]
fn keys_that_are_revoked_out_of_scope_or_of_another_fleet_are_not_attached() {
    let Some(scene) = openssl_scene() else { return };
    openssl_sign(&scene, "statement", "raw.sig");
    let shown: Value =
        serde_json::from_str(&scene.good(&["trust", "show", "ssl.trust", "--json"])).unwrap();
    let id = shown["keys"][0]["id"].as_str().unwrap();
    scene.good(&[
        "trust", "new", "-o", "scoped", "--key", "pub.pem", "--task", "acme.*",
    ]);
    scene.good(&[
        "trust",
        "new",
        "-o",
        "fleet",
        "--key",
        "pub.pem",
        "--namespace",
        "acme",
    ]);
    scene.good(&["trust", "new", "-o", "revoked", "--key", "pub.pem"]);
    scene.good(&["trust", "revoke", "revoked", "--key", id]);
    for (trust, expected) in [("scoped", 11), ("fleet", 14), ("revoked", 17)] {
        let attach = [
            "attach",
            "unsigned",
            "--signature",
            "raw.sig",
            "--trust",
            trust,
            "-o",
            "no",
        ];
        assert_eq!(code(&scene, &attach), expected, "{trust}");
        assert!(!scene.at("no").exists(), "{trust}");
    }
}

/// One string of SSH's wire format (RFC 4251).
fn ssh_string(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

/// Asks an agent for its raw signature of `message` (draft-miller-ssh-agent, section 3.6).
fn agent_signature(socket: &Path, key: &[u8; 32], message: &[u8]) -> Vec<u8> {
    let key = [ssh_string(b"ssh-ed25519"), ssh_string(key)].concat();
    let request = [&[13][..], &ssh_string(&key), &ssh_string(message), &[0; 4]].concat();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&ssh_string(&request)).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], 14, "the agent signs");
    answer[answer.len() - 64..].to_vec()
}

#[test]
fn a_signature_by_ssh_agent_is_attached() {
    let scene = Scene::new();
    let socket = scene.at("agent");
    let agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn();
    let Ok(mut agent) = agent else {
        eprintln!("SKIPPED: no ssh-agent");
        return;
    };
    let keygen = [
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "a comment",
        "-f",
        "ssh",
    ];
    other(&scene, "ssh-keygen", &keygen).unwrap();
    let add = |_| {
        let add = Command::new("ssh-add")
            .arg(scene.at("ssh"))
            .env("SSH_AUTH_SOCK", &socket)
            .output();
        std::thread::yield_now();
        add.is_ok_and(|output| output.status.success())
    };
    assert!((0..1000).any(add), "the agent takes the key");
    scene.good(&["trust", "new", "-o", "ssh.trust", "--key", "ssh.pub"]);
    let shown: Value =
        serde_json::from_str(&scene.good(&["trust", "show", "ssh.trust", "--json"])).unwrap();
    let key =
        preface_bundle::PublicKey::from_text(shown["keys"][0]["key"].as_str().unwrap()).unwrap();
    scene.good(&[&PACK[..], &["--unsigned", "-o", "unsigned"]].concat());
    scene.good(&["statement", "unsigned", "-o", "statement"]);
    let statement = fs::read(scene.at("statement")).unwrap();
    let signature = agent_signature(&socket, key.as_bytes(), &statement);
    agent.kill().unwrap();
    agent.wait().unwrap();
    fs::write(scene.at("sig"), signature).unwrap();
    scene.good(&[
        "attach",
        "unsigned",
        "--signature",
        "sig",
        "--trust",
        "ssh.trust",
        "-o",
        "ssh.preface",
    ]);
    assert_eq!(
        scene
            .verify_with(&["verify", "ssh.preface", "--trust", "ssh.trust"])
            .0,
        0
    );
}

#[test]
fn a_threshold_takes_as_many_keys_in_any_order() {
    let scene = Scene::new();
    let keys = ["--key", "keys/release.pub", "--key", "keys/other.pub"];
    scene.good(
        &[
            &["trust", "new", "-o", "two", "--threshold", "2"],
            &keys[..],
        ]
        .concat(),
    );
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
    assert_eq!(code(&scene, &[&PACK[..], &twice].concat()), 2);
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
    let keys = ["--key", "keys/release.pub", "--key", "keys/other.pub"];
    scene.good(
        &[
            &["trust", "new", "-o", "two", "--threshold", "2"],
            &keys[..],
        ]
        .concat(),
    );
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
