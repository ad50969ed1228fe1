//! Signatures by keys that this program never sees: OpenSSL's, an agent's, a token's.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

use preface_bundle::Frame;
use serde_json::{Value, json};

use crate::{
    PACK,
    bundles::{Scene, text},
    code, other,
};

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
    let said = report["message"].as_str().unwrap();
    assert!(
        said.contains("sign it where it was packed unsigned"),
        "{said}"
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
/// Where Debian, Fedora and others have SoftHSM.
const SOFTHSM: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// A PKCS#11 token whose keys cannot leave it.
struct Token {
    scene: Scene,
    module: &'static str,
}

impl Token {
    /// A token of SoftHSM in a folder of the scene; `None`, said aloud, where SoftHSM or OpenSC is not there.
    fn new(scene: Scene) -> Option<Self> {
        let found = SOFTHSM.into_iter().find(|path| Path::new(path).exists());
        let Some(module) = found else {
            eprintln!("SKIPPED: no SoftHSM among {SOFTHSM:?}");
            return None;
        };
        fs::create_dir(scene.at("tokens")).unwrap();
        let folder = scene.at("tokens");
        let settings = format!("directories.tokendir = {}\n", folder.display());
        fs::write(scene.at("softhsm.conf"), settings).unwrap();
        let token = Self { scene, module };
        let start = ["--init-token", "--label", "fleet", "--so-pin", "5678"];
        token.tool(&[&start[..], &["--slot-index", "0"]].concat())?;
        let pin = ["--token-label", "fleet", "--login", "--login-type", "so"];
        let pin = [&pin[..], &["--so-pin", "5678", "--init-pin"]].concat();
        token.tool(&[&pin[..], &["--new-pin", "1234"]].concat())?;
        Some(token)
    }

    /// Runs OpenSC's pkcs11-tool, which does as it is told; `None`, said aloud, where it is not there.
    fn tool(&self, arguments: &[&str]) -> Option<()> {
        let output = Command::new("pkcs11-tool")
            .current_dir(&self.scene.folder)
            .env("SOFTHSM2_CONF", self.scene.at("softhsm.conf"))
            .env("TOKEN_PIN", "1234")
            .args(["--module", self.module])
            .args(arguments)
            .output();
        match output {
            Ok(output) => {
                let said = text(&output.stderr);
                assert!(output.status.success(), "{arguments:?}: {said}");
                Some(())
            }
            Err(error) => {
                eprintln!("SKIPPED: pkcs11-tool: {error}");
                None
            }
        }
    }

    /// Logs in and does something.
    fn inside(&self, arguments: &[&str]) {
        let login = [
            "--token-label",
            "fleet",
            "--login",
            "--pin",
            "env:TOKEN_PIN",
        ];
        self.tool(&[&login[..], arguments].concat()).unwrap();
    }

    /// Makes the key of this number in the token, and writes its public half.
    fn make(&self, id: &str, public: &str) {
        let kind = ["--keypairgen", "--key-type", "EC:edwards25519"];
        self.inside(&[&kind[..], &["--id", id, "--label", public]].concat());
        let read = ["--read-object", "--type", "pubkey", "--id", id];
        self.inside(&[&read[..], &["--output-file", public]].concat());
    }

    /// Signs a file that `statement` wrote.
    fn sign(&self, id: &str, statement: &str, signature: &str) {
        let sign = ["--sign", "--mechanism", "EDDSA", "--id", id];
        let files = ["--input-file", statement, "--output-file", signature];
        self.inside(&[&sign[..], &files].concat());
    }
}

#[test]
fn a_pkcs11_token_signs_bundles_indexes_and_trust_stores_and_its_keys_stay_in_it() {
    let Some(token) = Token::new(Scene::new()) else {
        return;
    };
    let scene = &token.scene;
    let [release, root, clock] = ["01", "02", "03"];
    token.make(release, "release");
    token.make(root, "root");
    token.make(clock, "clock");
    let trust = ["trust", "new", "-o", "fleet.trust", "--key", "release"];
    let roles = ["--root", "root", "--root-threshold", "1"];
    let roles = [&roles[..], &["--timestamp", "clock"]].concat();
    scene.good(&[&trust[..], &roles].concat());

    scene.good(&[&PACK[..], &["--unsigned", "-o", "unsigned"]].concat());
    scene.good(&["statement", "unsigned", "-o", "statement"]);
    token.sign(release, "statement", "bundle.sig");
    let attach = ["attach", "unsigned", "--trust", "fleet.trust", "-o", "made"];
    scene.good(&[&attach[..], &["--signature", "bundle.sig"]].concat());
    let verify = ["verify", "made", "--trust", "fleet.trust"];
    let (code_of_bundle, report) = scene.verify_with(&verify);
    assert_eq!(code_of_bundle, 0, "{report}");

    let new = ["index", "new", "made", "--trust", "fleet.trust"];
    scene.good(&[&new[..], &["--days", "14", "-o", "fleet.index"]].concat());
    scene.good(&["statement", "fleet.index", "-o", "index.statement"]);
    token.sign(clock, "index.statement", "index.sig");
    let attach = ["attach", "fleet.index", "--trust", "fleet.trust"];
    let by = |signature| [&attach[..], &["--signature", signature]].concat();
    assert_eq!(code(scene, &by("bundle.sig")), 12, "of another statement");
    scene.good(&by("index.sig"));

    let store = fs::read_to_string(scene.at("fleet.trust")).unwrap();
    let next = store.replace("\nversion 1\n", "\nversion 2\n");
    assert_ne!(next, store);
    fs::write(scene.at("next"), next).unwrap();
    scene.good(&["statement", "next", "-o", "next.statement"]);
    let update = ["trust", "update", "fleet.trust", "next", "--signature"];
    let by = |signature| [&update[..], &[signature]].concat();
    token.sign(release, "next.statement", "no-root.sig");
    assert_eq!(
        code(scene, &by("no-root.sig")),
        12,
        "a release key is no root"
    );
    token.sign(root, "next.statement", "root.sig");
    scene.good(&by("root.sig"));
    let (code_of_bundle, report) = scene.verify_with(&verify);
    assert_eq!(code_of_bundle, 0, "{report}");
}
