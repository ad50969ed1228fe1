//! Bundles and the fleet's index in OCI registries: Debian's docker-registry on loopback, read back with Debian's
//! skopeo, and a registry that lies.

#![allow(clippy::unwrap_used)]

#[path = "support/bundles.rs"]
mod bundles;
#[path = "registry/hub.rs"]
mod hub;
#[path = "registry/liar.rs"]
mod liar;

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    process::Output,
};

use bundles::{BASE, Scene, text};
use hub::{Doors, Hub, skopeo};
use preface_bundle::{Frame, Id};
use serde_json::Value;

const BUNDLE_TYPE: &str = "application/vnd.preface.bundle.v1";

/// Exit code, what was said to people, and the report.
pub fn told(output: &Output) -> (i32, String, Value) {
    let said = text(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|error| panic!("{error}: {said}"));
    let code = output.status.code().unwrap();
    assert_eq!(report["exit_code"], code, "{report}");
    (code, said, report)
}

/// The program on a registry without TLS, as nobody.
pub fn run(scene: &Scene, arguments: &[&str]) -> (i32, String, Value) {
    let mut command = scene.command(&[arguments, &["--plain-http", "--json"]].concat());
    let command = command.env("DOCKER_CONFIG", scene.at("no-docker"));
    told(&command.output().unwrap())
}

/// Two bundles, of tasks intent and mood, and an index of both.
fn fleet() -> Scene {
    let scene = Scene::new();
    scene.pack("b.preface", &[]);
    let mood = ["pack", "adapter", "--task", "mood", "--sequence", "5"];
    scene.good(&[&mood[..], &["--key", "keys/release.key", "-o", "b.preface"]].concat());
    scene.good(&["keygen", "--no-passphrase", "-o", "keys", "--name", "clock"]);
    scene.good(&["trust", "add", "trust", "--timestamp", "keys/clock.pub"]);
    let index = ["index", "new", "a.preface", "b.preface", "--trust", "trust"];
    scene.good(&[&index[..], &["--days", "14", "-o", "fleet.index"]].concat());
    scene.good(&["index", "sign", "fleet.index", "--key", "keys/clock.key"]);
    scene
}

#[test]
fn what_was_pushed_comes_back_byte_for_byte() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let place = hub.place("fleet:1");
    let (code, said, pushed) = run(
        &scene,
        &["push", "a.preface", "b.preface", "fleet.index", &place],
    );
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        pushed["files"],
        serde_json::json!(["intent.preface", "mood.preface", "fleet.index"])
    );
    let cases: [(&str, &[&str]); 3] = [
        ("a.preface", &["--task", "intent"]),
        ("b.preface", &["--task", "mood"]),
        ("fleet.index", &["--index"]),
    ];
    for (file, more) in cases {
        for trust in [&[][..], &["--trust", "trust"]] {
            let pull = ["pull", &place, "-o", "pulled"];
            let (code, said, report) = run(&scene, &[&pull[..], more, trust].concat());
            assert_eq!(code, 0, "{said}");
            assert_eq!(
                fs::read(scene.at("pulled")).unwrap(),
                fs::read(scene.at(file)).unwrap()
            );
            assert_eq!(report["digest"], pushed["digest"]);
            assert_eq!(report["verified"], !trust.is_empty());
            assert_eq!(said.contains("NOT VERIFIED"), trust.is_empty(), "{said}");
        }
    }
    let (code, said, _) = run(&scene, &["pull", &place, "-o", "x"]);
    assert!(
        code == 2 && said.contains("it has task intent, task mood, an index"),
        "{said}"
    );
    let (code, said, _) = run(&scene, &["pull", &place, "--task", "other", "-o", "x"]);
    assert!(
        code == 2 && said.contains("there is no such file"),
        "{said}"
    );
    assert!(!scene.at("x").exists());
}

#[test]
fn a_digest_that_is_pinned_names_the_same_bytes_whatever_becomes_of_the_tag() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let place = hub.place("intent:newest");
    let pushed = |file: &str| {
        let (code, said, report) = run(&scene, &["push", file, &place]);
        assert_eq!(code, 0, "{said}");
        report["pinned"].as_str().unwrap().to_owned()
    };
    let first = pushed("a.preface");
    assert_eq!(
        pushed("a.preface"),
        first,
        "the same files have the same digest"
    );
    let second = pushed("b.preface");
    assert_ne!(first, second);
    for (place, file) in [
        (&first, "a.preface"),
        (&second, "b.preface"),
        (&place, "b.preface"),
    ] {
        let (code, said, _) = run(&scene, &["pull", place, "-o", "pulled"]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(
            fs::read(scene.at("pulled")).unwrap(),
            fs::read(scene.at(file)).unwrap()
        );
    }
    let (repository, _) = first.split_once('@').unwrap();
    let other = format!("{repository}@sha256:{}", "0".repeat(64));
    let (code, said, _) = run(&scene, &["pull", &other, "-o", "x"]);
    assert!(code == 2 && said.contains("it answers 404"), "{said}");
}

#[test]
fn skopeo_reads_what_was_pushed() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let place = hub.place("fleet:1");
    let (code, said, pushed) = run(&scene, &["push", "a.preface", "fleet.index", &place]);
    assert_eq!(code, 0, "{said}");
    let source = format!("docker://{place}");
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &source]);
    assert_eq!(
        format!("sha256:{}", Id::of(&raw)),
        pushed["digest"].as_str().unwrap()
    );
    let manifest: Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(manifest["artifactType"], "application/vnd.preface.fleet.v1");
    let bundle = scene.bundle();
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], BUNDLE_TYPE);
    assert_eq!(layer["size"], bundle.len());
    assert_eq!(layer["digest"], format!("sha256:{}", Id::of(&bundle)));
    let id = Frame::parse(&bundle).unwrap().bundle_id().to_string();
    let base = BASE.to_string();
    let said = [
        ("vnd.preface.task", "intent"),
        ("vnd.preface.sequence", "3"),
        ("vnd.preface.trust-version", "1"),
        ("vnd.preface.bundle-id", &id),
        ("vnd.preface.base-id", &base),
        ("org.opencontainers.image.title", "intent.preface"),
    ];
    for (name, value) in said {
        assert_eq!(layer["annotations"][name], value, "{name}");
    }
    assert_eq!(
        manifest["layers"][1]["mediaType"],
        "application/vnd.preface.index.v1"
    );
    let folder = scene.at("copied");
    let to = format!("dir:{}", folder.display());
    skopeo(&[
        "copy",
        "--insecure-policy",
        "--src-tls-verify=false",
        &source,
        &to,
    ]);
    let copied = fs::read(folder.join(Id::of(&bundle).to_string())).unwrap();
    assert_eq!(copied, bundle);
    assert_eq!(fs::read(folder.join("manifest.json")).unwrap(), raw);
}

#[test]
fn files_that_pull_could_not_tell_apart_are_not_sent() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let place = hub.place("fleet:1");
    let many = vec!["a.preface"; 65];
    let cases: [(&[&str], &str); 3] = [
        (
            &["a.preface", "a.preface"],
            "two of the files would be intent.preface",
        ),
        (
            &["fleet.index", "a.preface", "fleet.index"],
            "two of the files would be fleet.index",
        ),
        (&many, "65 files are too many"),
    ];
    for (files, part) in cases {
        let (code, said, _) = run(&scene, &[&["push"], files, &[&place]].concat());
        assert!(code == 2 && said.contains(part), "{said}");
    }
    let (code, said, _) = run(&scene, &["pull", &place, "-o", "x"]);
    assert!(
        code == 2 && said.contains("404"),
        "nothing is there: {said}"
    );
}

#[test]
fn files_of_any_name_are_sent_and_written() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let place = hub.place("fleet:1");
    for name in [&b"with a space"[..], b"-", b"\xff\xfe"] {
        let name = OsStr::from_bytes(name);
        fs::write(scene.folder.path().join(name), scene.bundle()).unwrap();
        let done = |before: &[&str], after: &[&str]| {
            let mut command = scene.command(before);
            let command = command.arg(Path::new(".").join(name)).args(after);
            let command = command.args(["--plain-http", "--json"]);
            told(
                &command
                    .env("DOCKER_CONFIG", scene.at("no-docker"))
                    .output()
                    .unwrap(),
            )
        };
        let (code, said, _) = done(&["push"], &[&place]);
        assert_eq!(code, 0, "{name:?}: {said}");
        fs::remove_file(scene.folder.path().join(name)).unwrap();
        let (code, said, _) = done(&["pull", &place, "-o"], &[]);
        assert_eq!(code, 0, "{name:?}: {said}");
        assert_eq!(
            fs::read(scene.folder.path().join(name)).unwrap(),
            scene.bundle()
        );
    }
}

#[test]
fn with_a_trust_store_nothing_is_written_that_does_not_verify() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    let pack = ["pack", "adapter", "--task", "intent", "--sequence", "9"];
    scene.good(
        &[
            &pack[..],
            &["--key", "keys/other.key", "-o", "foreign.preface"],
        ]
        .concat(),
    );
    let place = hub.place("foreign:1");
    assert_eq!(
        run(&scene, &["push", "foreign.preface", &place]).0,
        0,
        "anybody may push anything"
    );
    fs::write(scene.at("kept"), b"as it was").unwrap();
    let (code, said, _) = run(&scene, &["pull", &place, "-o", "kept", "--trust", "trust"]);
    assert!(code == 11 && said.contains("not trusted"), "{said}");
    assert_eq!(fs::read(scene.at("kept")).unwrap(), b"as it was");
    let (code, said, _) = run(&scene, &["pull", &place, "-o", "pulled"]);
    assert!(code == 0 && said.contains("NOT VERIFIED"), "{said}");
    assert_eq!(
        scene.verify("pulled", &[]).0,
        11,
        "install and verify refuse it as ever"
    );
    let unsigned = [
        "index",
        "new",
        "a.preface",
        "--trust",
        "trust",
        "--days",
        "1",
        "-o",
        "unsigned",
    ];
    scene.good(&unsigned);
    let place = hub.place("unsigned:1");
    assert_eq!(run(&scene, &["push", "unsigned", &place]).0, 0);
    let pull = ["pull", &place, "--index", "-o", "x", "--trust", "trust"];
    assert_eq!(run(&scene, &pull).0, 11);
    let (code, _, _) = run(&scene, &["pull", &place, "-o", "x", "--trust", "nowhere"]);
    assert_eq!(code, 18);
    assert!(!scene.at("x").exists());
    let left = fs::read_dir(scene.folder.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|file| file.file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().ends_with(".tmp")),
        "{left:?}"
    );
}

#[test]
fn a_registry_that_wants_a_password_gets_it_from_a_file_or_from_docker() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Locked));
    let place = hub.place("intent:1");
    let (code, said, _) = run(&scene, &["push", "a.preface", &place]);
    assert!(code == 2 && said.contains("--username"), "{said}");
    let (code, said, _) = run(&scene, &["pull", &place, "-o", "x"]);
    assert!(
        code == 2 && said.contains("401") && said.contains("--username"),
        "{said}"
    );
    for (name, password) in [("right", hub::PASSWORD), ("wrong", "nothing")] {
        fs::write(scene.at(name), format!("{password}\n")).unwrap();
        fs::set_permissions(scene.at(name), Permissions::from_mode(0o600)).unwrap();
    }
    let as_user = |file: &'static str| ["--username", hub::USER, "--password-file", file];
    let push = ["push", "a.preface", &place];
    let (code, said, _) = run(&scene, &[&push[..], &as_user("wrong")].concat());
    assert!(code == 2 && said.contains("--username"), "{said}");
    assert!(!said.contains("nothing\""), "no password is said: {said}");
    let (code, said, _) = run(&scene, &[&push[..], &as_user("right")].concat());
    assert_eq!(code, 0, "{said}");
    let pull = ["pull", &place, "-o", "pulled", "--plain-http", "--json"];
    let mut command = scene.command(&pull);
    fs::create_dir(scene.at("docker")).unwrap();
    fs::write(scene.at("docker/config.json"), hub.docker_config()).unwrap();
    command.env("DOCKER_CONFIG", scene.at("docker"));
    let (code, said, _) = told(&command.output().unwrap());
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read(scene.at("pulled")).unwrap(), scene.bundle());
    fs::set_permissions(scene.at("right"), Permissions::from_mode(0o644)).unwrap();
    let (code, said, _) = run(&scene, &[&push[..], &as_user("right")].concat());
    assert!(code == 21 && said.contains("right"), "{said}");
    for (line, expected) in [(hub::PASSWORD, 0), ("nothing", 2), ("", 2)] {
        let stdin = ["--username", hub::USER, "--password-stdin", "--plain-http"];
        let mut command = scene.command(&[&push[..], &stdin, &["--json"]].concat());
        fs::write(scene.at("line"), format!("{line}\n")).unwrap();
        command.stdin(fs::File::open(scene.at("line")).unwrap());
        let (code, said, _) = told(&command.output().unwrap());
        assert_eq!(code, expected, "{line}: {said}");
    }
}

/// A credential helper of docker's that knows the password, one that knows nobody, and one that breaks.
#[test]
fn dockers_credential_helpers_are_asked_and_what_they_print_is_not_said() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Locked));
    let place = hub.place("intent:1");
    let (address, _) = place.split_once('/').unwrap();
    let knows = format!(
        "read -r server; [ \"$server\" = {address} ] && echo '{{\"Username\": \"{}\", \"Secret\": \"{}\"}}'",
        hub::USER,
        hub::PASSWORD
    );
    let helpers = [
        ("knows", knows.as_str()),
        (
            "nobody",
            "cat; echo credentials not found in native keychain; exit 1",
        ),
        ("breaks", "cat; echo a secret; exit 1"),
    ];
    fs::create_dir(scene.at("docker")).unwrap();
    for (name, script) in helpers {
        let path = scene.at(&format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!(
        "{}:{}",
        scene.folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let asked = |config: Value, place: &str| {
        fs::write(scene.at("docker/config.json"), config.to_string()).unwrap();
        let push = ["push", "a.preface", place, "--plain-http", "--json"];
        let mut command = scene.command(&push);
        command.env("DOCKER_CONFIG", scene.at("docker"));
        told(&command.env("PATH", &path).output().unwrap())
    };
    let one = |helper: &str| serde_json::json!({"credHelpers": {address: helper}});
    for config in [one("knows"), serde_json::json!({"credsStore": "knows"})] {
        let (code, said, _) = asked(config, &place);
        assert_eq!(code, 0, "{said}");
    }
    let (code, said, _) = asked(one("nobody"), &place);
    assert!(code == 2 && said.contains("docker login"), "{said}");
    let (code, said, _) = asked(one("breaks"), &place);
    assert!(
        code == 2 && said.contains("docker-credential-breaks") && !said.contains("a secret"),
        "{said}"
    );
    let (code, said, _) = asked(one("absent"), &place);
    assert!(code == 2 && said.contains("--password-stdin"), "{said}");
    // Nobody listens there: the password is kept back before anything is sent.
    let auth = serde_json::json!({"auth": "Zmxlb3Q6c2VzYW1l"});
    let away = serde_json::json!({"auths": {"registry.invalid:5000": auth}});
    let (code, said, _) = asked(away, "registry.invalid:5000/intent:1");
    assert!(
        code == 2 && said.contains("would be read by everybody on the way"),
        "{said}"
    );
}

#[test]
fn over_tls_a_registry_is_believed_by_its_authority_and_lets_in_by_a_password() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Secure));
    let (place, authority) = (hub.place("intent:1"), hub.authority());
    fs::create_dir(scene.at("docker")).unwrap();
    fs::write(scene.at("docker/config.json"), hub.docker_config()).unwrap();
    let as_docker = |arguments: &[&str]| {
        let mut command = scene.command(&[arguments, &["--json"]].concat());
        told(
            &command
                .env("DOCKER_CONFIG", scene.at("docker"))
                .output()
                .unwrap(),
        )
    };
    let (push, pull) = (
        ["push", "a.preface", &place],
        ["pull", &place, "-o", "pulled"],
    );
    for refused in [&push[..], &pull] {
        let (code, said, _) = as_docker(refused);
        assert!(code == 2 && said.contains("--ca"), "{refused:?}: {said}");
        // An authority that is another's.
        let other = Hub::open(Doors::Secure);
        let (code, said, _) = as_docker(&[refused, &["--ca", &other.authority()]].concat());
        assert!(code == 2 && said.contains("--ca"), "{refused:?}: {said}");
        let (code, said, _) = as_docker(&[refused, &["--ca", "a.preface"]].concat());
        assert!(code == 2 && said.contains("no certificate"), "{said}");
    }
    assert!(!scene.at("pulled").exists());
    for done in [&push[..], &pull] {
        let (code, said, _) = as_docker(&[done, &["--ca", &authority]].concat());
        assert_eq!(code, 0, "{done:?}: {said}");
    }
    assert_eq!(fs::read(scene.at("pulled")).unwrap(), scene.bundle());
    let mut nobody = scene.command(&["pull", &place, "-o", "x", "--ca", &authority, "--json"]);
    let nobody = nobody.env("DOCKER_CONFIG", scene.at("no-docker"));
    let (code, said, _) = told(&nobody.output().unwrap());
    assert!(code == 2 && said.contains("--username"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_with_the_place_and_the_way_out() {
    let (scene, hub) = (fleet(), Hub::open(Doors::Open));
    fs::write(scene.at("text"), b"not a bundle").unwrap();
    let nobody = liar::closed_port();
    let (gone, here) = (
        format!("127.0.0.1:{nobody}/intent:1"),
        hub.place("intent:1"),
    );
    let secure = scene
        .command(&["pull", &here, "-o", "x", "--json"])
        .output()
        .unwrap();
    let (code, said, _) = told(&secure);
    assert!(
        code == 2 && said.contains(&here),
        "no TLS without being told: {said}"
    );
    let untagged = hub.place("intent");
    let pinned = hub.place(&format!("intent@sha256:{}", "0".repeat(64)));
    let cases: [(&[&str], i32, &str); 9] = [
        (&["pull", &here, "-o", "x"], 2, "push it first"),
        (&["pull", &gone, "-o", "x"], 2, &gone),
        (&["push", "a.preface", &gone], 2, &gone),
        (
            &["push", "text", &here],
            10,
            "only signed bundles and indexes are sent",
        ),
        (&["push", "nowhere", &here], 20, "nowhere"),
        (&["push", "a.preface", &untagged], 2, "has no tag"),
        (&["push", "a.preface", &pinned], 2, "has no tag"),
        (
            &["pull", "intent:1", "-o", "x"],
            2,
            "does not begin with a registry",
        ),
        (
            &["pull", "http://127.0.0.1:5000/intent:1", "-o", "x"],
            2,
            "--plain-http for http",
        ),
    ];
    for (arguments, expected, part) in cases {
        let (code, said, _) = run(&scene, arguments);
        assert!(
            code == expected && said.contains(part),
            "{arguments:?}: {code}: {said}"
        );
    }
    assert!(!scene.at("x").exists());
}
