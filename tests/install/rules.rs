//! Which bundles are taken in, which are left again, and which are gone back to.

use std::{fs, path::Path, process::Command};

use preface_runtime::store::StoreError;
use serde_json::Value;

use crate::scene::{Design, PROGRAM, Probe, Scene, TASK, code, floor, good, id_of, is, reported};

#[test]
fn a_bundle_is_installed_confirmed_and_answers() {
    let scene = Scene::new();
    let (code, report) = scene.verb(&["list"]);
    assert_eq!((code, &report["reason"]), (20, &"no-store".into()));
    let report = scene.installed("old");
    let old = id_of(&scene.at("old")).to_string();
    assert_eq!(
        (&report["task"], &report["bundle_id"]),
        (&TASK.into(), &Value::from(&*old))
    );
    assert_eq!(
        (&report["probes"], &report["trial"]),
        (&1.into(), &false.into())
    );
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() == 16 && checks.iter().all(|check| check["result"] == "passed"));
    let (label, _) = scene.answer_of("old");
    let (code, answer, said) = scene.run();
    assert_eq!(
        (code, answer.split('\t').next()),
        (0, Some(&*label)),
        "{said}"
    );
    let (code, report) = scene.verb(&["list"]);
    let task = &report["tasks"][0];
    assert_eq!(
        (code, &task["active"], &task["floor"]["sequence"]),
        (0, &Value::from(&*old), &1.into())
    );
    assert_eq!(task["bundles"][0]["status"], "confirmed");
}

#[test]
fn the_same_bundle_again_changes_nothing() {
    let scene = Scene::new();
    scene.installed("old");
    let before = scene.state();
    let report = scene.installed("old");
    assert_eq!(
        (&report["changed"], &report["probes"]),
        (&false.into(), &0.into())
    );
    assert_eq!(scene.state(), before);
}

#[test]
fn a_probe_with_another_answer_leaves_the_old_bundle_active_and_the_floor_where_it_is() {
    let scene = Scene::new();
    scene.installed("old");
    let before = scene.state();
    let wrong = Design {
        name: "wrong",
        sequence: 2,
        salt: 3,
        probe: Probe::Wrong,
        more: &[],
    };
    scene.design(&wrong);
    for more in [&[][..], &["--no-confirm"]] {
        let (code, report) = scene.install("wrong", more);
        assert_eq!((code, &report["reason"]), (14, &"probe-failed".into()));
        assert!(
            report["message"]
                .as_str()
                .unwrap()
                .contains("probe 1 is answered 3-")
        );
        assert_eq!((scene.state(), floor(&scene)), (before.clone(), Some(1)));
        assert_eq!(fs::read_dir(scene.at("store/bundles")).unwrap().count(), 1);
    }
    let none = Design {
        probe: Probe::None,
        ..wrong
    };
    scene.design(&none);
    let report = scene.installed("wrong");
    assert!(
        report["message"]
            .as_str()
            .unwrap()
            .contains("it has no probes"),
        "{report}"
    );
}

#[test]
fn a_bundle_that_is_started_three_times_and_never_confirmed_is_left_by_itself() {
    let scene = Scene::new();
    scene.installed("old");
    let report = scene.install("new", &["--no-confirm"]).1;
    assert_eq!((&report["trial"], floor(&scene)), (&true.into(), Some(1)));
    for start in 1..=3 {
        let (code, answer, said) = scene.run();
        assert!(code == 0 && answer.starts_with("2-"), "{said}");
        assert_eq!(scene.task().starts, start);
    }
    let (code, answer, said) = scene.run();
    assert!(code == 0 && answer.starts_with("1-"), "{said}");
    assert!(
        said.contains("was started 3 times and never confirmed"),
        "{said}"
    );
    let task = scene.task();
    assert_eq!(
        (task.active, task.trial),
        (Some(id_of(&scene.at("old"))), false)
    );
    assert_eq!(floor(&scene), Some(1), "the floor did not rise");
    let (_, _, said) = scene.run();
    assert!(!said.contains("never confirmed"), "it is said once: {said}");
    assert_eq!(
        scene.verb(&["list"]).1["tasks"][0]["bundles"][0]["status"],
        "unproven"
    );
    // The same bundle may be tried again, and confirmed in time it stays.
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    let (code, report) = scene.verb(&["confirm", TASK]);
    assert_eq!(
        (code, &report["changed"], floor(&scene)),
        (0, &true.into(), Some(2))
    );
    assert_eq!(scene.verb(&["confirm", TASK]).1["changed"], false);
    for _ in 0..5 {
        assert!(scene.run().1.starts_with("2-"));
    }
}

#[test]
fn a_first_bundle_that_is_never_confirmed_is_left_for_none() {
    let scene = Scene::new();
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    (0..3).for_each(|_| assert_eq!(scene.run().0, 0));
    let (code, _, said) = scene.run();
    assert!(code == 2 && said.contains("no task of"), "{said}");
    assert_eq!(scene.task().active, None);
    let (code, report) = scene.verb(&["confirm", TASK]);
    assert_eq!((code, &report["reason"]), (2, &"nothing-active".into()));
}

#[test]
fn an_install_of_the_bundle_on_trial_tries_and_confirms_it() {
    let scene = Scene::new();
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    let report = scene.installed("new");
    assert_eq!(
        (&report["trial"], &report["probes"], floor(&scene)),
        (&false.into(), &1.into(), Some(2))
    );
}

#[test]
fn operators_go_back_and_forth_among_what_is_kept() {
    let scene = Scene::new();
    let names = ["old", "new", "third", "fourth", "fifth"];
    for (name, sequence) in names.into_iter().zip(1..) {
        if sequence > 2 {
            scene.pack(sequence, sequence as u32, name);
        }
        scene.installed(name);
    }
    let ids = names.map(|name| id_of(&scene.at(name)));
    let texts = ids.map(|id| id.to_string());
    let file = |at: usize| {
        scene
            .at(&format!("store/bundles/{}.preface", texts[at]))
            .exists()
    };
    assert_eq!(
        (0..5).map(file).collect::<Vec<_>>(),
        [false, true, true, true, true]
    );
    let active =
        |(code, report): (i32, Value)| (code, report["active"].as_str().unwrap().to_owned());
    assert_eq!(
        active(scene.verb(&["rollback", TASK])),
        (0, texts[3].clone())
    );
    assert!(scene.run().1.starts_with("4-"));
    assert_eq!(
        active(scene.verb(&["rollback", TASK])),
        (0, texts[4].clone())
    );
    assert_eq!(
        active(scene.verb(&["activate", TASK, &texts[1]])),
        (0, texts[1].clone())
    );
    assert!(scene.run().1.starts_with("2-"));
    assert_eq!(floor(&scene), Some(5), "the floor stays");
    assert_eq!(
        code(&scene, "third"),
        is(15, "rollback"),
        "and holds for installing"
    );
    scene.installed("fifth");
    assert_eq!(
        scene.task().active,
        Some(ids[4]),
        "the bundle of the floor may come back"
    );
    let before = scene.state();
    let table: [(&[&str], &str); 6] = [
        (
            &["activate", TASK, &texts[1], "--expect", &texts[0]],
            "not-expected",
        ),
        (&["rollback", TASK, "--expect", &texts[0]], "not-expected"),
        (&["confirm", TASK, "--expect", &texts[0]], "not-expected"),
        (&["activate", TASK, &texts[0]], "not-kept"),
        (&["activate", "other", &texts[1]], "no-task"),
        (&["rollback", "other"], "no-task"),
    ];
    for (arguments, reason) in table {
        let (code, report) = scene.verb(arguments);
        assert_eq!(
            (code, &report["reason"]),
            (2, &reason.into()),
            "{arguments:?}"
        );
    }
    assert_eq!(scene.state(), before);
    let arguments = ["activate", TASK, &texts[1], "--expect", &texts[4]];
    assert_eq!(active(scene.verb(&arguments)), (0, texts[1].clone()));
    fs::write(
        scene
            .at("store/bundles")
            .join(format!("{}.preface", texts[4])),
        b"x",
    )
    .unwrap();
    let (code, report) = scene.verb(&["activate", TASK, &texts[4]]);
    assert_eq!((code, &report["reason"]), (13, &"replaced".into()));
}

#[test]
fn nothing_is_before_the_first_bundle() {
    let scene = Scene::new();
    scene.installed("old");
    let (code, report) = scene.verb(&["rollback", TASK]);
    assert_eq!((code, &report["reason"]), (2, &"nothing-before".into()));
}

#[test]
fn refused_bundles_have_the_exit_codes_of_verify_and_change_nothing() {
    let scene = Scene::new();
    scene.installed("old");
    let before = scene.state();
    let whole = fs::read(scene.at("new")).unwrap();
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let payload = preface_bundle::Frame::parse(&whole)
        .unwrap()
        .signed_prefix()
        .len();
    for (bytes, expected) in [
        (whole[..whole.len() - 1].to_vec(), 10),
        (changed(200), 12),
        (changed(payload), 13),
        (changed(whole.len() - 1), 12),
    ] {
        fs::write(scene.at("bad"), bytes).unwrap();
        let (code, report) = scene.install("bad", &[]);
        assert_eq!(code, expected, "{report}");
        let failed = report["checks"].as_array().unwrap().iter();
        assert_eq!(
            failed.filter(|check| check["result"] == "failed").count(),
            1,
            "{report}"
        );
    }
    assert_eq!(code(&scene, "nothing"), is(20, "unreadable"));
    let id = id_of(&scene.at("new")).to_string();
    good(&["trust", "revoke", &scene.text("trust"), "--bundle", &id]);
    assert_eq!(code(&scene, "new"), is(17, "revoked-bundle"));
    assert_eq!(scene.state(), before);
    assert!(scene.temporary().is_empty());
}

#[test]
fn a_bundle_of_another_base_is_refused() {
    let (scene, other) = (Scene::new(), Scene::new());
    let adapter = fs::read_to_string(other.at("adapter/preface.json")).unwrap();
    let base = other.image().description().base_id.to_string();
    let adapter = adapter.replace(&base, &"ab".repeat(32));
    fs::write(scene.at("adapter/preface.json"), adapter).unwrap();
    let (folder, key, out) = (
        scene.text("adapter"),
        scene.text("keys/k.key"),
        scene.text("other"),
    );
    good(&[
        "pack",
        &folder,
        "--task",
        TASK,
        "--sequence",
        "3",
        "--key",
        &key,
        "-o",
        &out,
    ]);
    assert_eq!(code(&scene, "other"), is(14, "other-base"));
}

#[test]
fn only_signatures_that_were_verified_are_kept() {
    let scene = Scene::new();
    let bytes = fs::read(scene.at("old")).unwrap();
    let block = bytes.len() - 8 - 88;
    let mut two = bytes[..block].to_vec();
    two.extend(b"SIG1\x02\x00\x58\x00");
    let entry = &bytes[block + 8..];
    let mut unknown = entry.to_vec();
    // A key that nobody knows, and whose entry comes behind.
    unknown[8..24].fill(0xff);
    two.extend([entry, &unknown].concat());
    fs::write(scene.at("two"), two).unwrap();
    scene.installed("two");
    let id = id_of(&scene.at("old"));
    let stored = fs::read(scene.at(&format!("store/bundles/{id}.preface"))).unwrap();
    assert_eq!(stored, bytes);
}

#[test]
fn a_library_is_told_what_is_wrong() {
    let scene = Scene::new();
    let missing = scene.store().state();
    assert!(matches!(missing, Err(StoreError::NoStore { .. })));
    let switched = scene.store().roll_back(TASK, None);
    assert!(
        matches!(switched, Err(StoreError::NoStore { .. })),
        "{switched:?}"
    );
    assert!(
        !Path::new(&scene.text("store")).exists(),
        "asking makes no store"
    );
}

/// An image has digests of itself, and nobody has signed them.
#[test]
fn an_image_in_the_place_of_a_bundle_is_neither_verified_nor_installed() {
    let scene = Scene::new();
    fs::copy(scene.at("x.base"), scene.at("image")).unwrap();
    let image = scene.text("image");
    let verify = |more: &[&str]| {
        let arguments = [&["verify", &image, "--json"], more].concat();
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        reported(&output)
    };
    assert_eq!(verify(&[]).0, 0, "it is a whole image");
    let trust = scene.text("trust");
    for more in [
        &["--trust", &trust][..],
        &["--trust", &trust, "--namespace", "default"],
    ] {
        let (code, report) = verify(more);
        assert_eq!((code, &report["verified"]), (10, &false.into()), "{report}");
    }
    assert_eq!(code(&scene, "image").0, 10);
}
