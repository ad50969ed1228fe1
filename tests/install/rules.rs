//! Which bundles are taken in, which are gone back to, and what is remembered.

use std::{fs, path::Path, process::Command};

use preface_runtime::store::{Install, StoreError};
use serde_json::Value;

use crate::scene::{Design, PROGRAM, Probe, Scene, TASK, good, id_of};

fn code(scene: &Scene, name: &str) -> (i32, String) {
    let (code, report) = scene.install(name, &[]);
    (code, report["reason"].as_str().unwrap().to_owned())
}

fn is(code: i32, reason: &str) -> (i32, String) {
    (code, reason.to_owned())
}

fn floor(scene: &Scene) -> Option<u64> {
    scene.task().confirmed.map(|floor| floor.sequence)
}

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
fn lower_and_equal_sequences_are_refused_and_a_new_trust_version_makes_low_ones_good_again() {
    let scene = Scene::new();
    scene.installed("old");
    scene.installed("new");
    assert_eq!(
        code(&scene, "old"),
        is(15, "rollback"),
        "lower than confirmed"
    );
    scene.pack(2, 3, "equal");
    assert_eq!(
        code(&scene, "equal"),
        is(15, "rollback"),
        "equal with another id"
    );
    let greatest = u64::MAX.to_string();
    let stolen = Design {
        name: "stolen",
        sequence: u64::MAX,
        salt: 4,
        probe: Probe::Right,
        more: &[],
    };
    scene.design(&stolen);
    scene.installed("stolen");
    scene.pack(3, 5, "third");
    assert_eq!(
        code(&scene, "third"),
        is(15, "rollback"),
        "below {greatest}"
    );
    let later = |name, sequence, version| {
        scene.design(&Design {
            name,
            sequence,
            salt: 6,
            probe: Probe::None,
            more: &["--trust-version", version],
        })
    };
    later("recovery", 1, "2");
    assert_eq!(code(&scene, "recovery"), is(11, "trust-store-too-old"));
    let trust = fs::read_to_string(scene.at("trust")).unwrap();
    fs::write(scene.at("trust"), trust.replace("version 1", "version 2")).unwrap();
    scene.installed("recovery");
    assert_eq!(
        scene.task().confirmed.map(|floor| floor.order()),
        Some((2, 1))
    );
    later("beyond", 2, "4294967295");
    assert_eq!(code(&scene, "beyond"), is(11, "trust-store-too-old"));
    // Behind the newest trust store no older one is used.
    fs::write(scene.at("trust"), trust).unwrap();
    assert_eq!(code(&scene, "recovery"), is(15, "trust-store-older"));
    let (code, _, said) = scene.run();
    assert!(
        code == 2 && said.contains("the trust store is version 1"),
        "{said}"
    );
}

#[test]
fn a_rival_of_an_unconfirmed_bundle_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    scene.pack(2, 3, "equal");
    assert_eq!(code(&scene, "equal"), is(15, "rival"));
    assert_eq!(scene.task().active, Some(id_of(&scene.at("new"))));
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
fn security_floors_stay_where_a_trust_store_put_them() {
    let scene = Scene::new();
    let trust = fs::read_to_string(scene.at("trust")).unwrap();
    let secure = |name, sequence| {
        scene.design(&Design {
            name,
            sequence,
            salt: 3,
            probe: Probe::Right,
            more: &["--security-version", "4294967295"],
        })
    };
    secure("secure", 3);
    scene.installed("secure");
    assert_eq!(scene.state().min_security, 0, "no bundle raises it");
    fs::write(scene.at("trust"), format!("{trust}min-security 7\n")).unwrap();
    secure("more", 4);
    scene.installed("more");
    assert_eq!(scene.state().min_security, 7);
    fs::write(scene.at("trust"), trust).unwrap();
    scene.pack(5, 5, "insecure");
    assert_eq!(code(&scene, "insecure"), is(15, "insecure-version"));
}

#[test]
fn time_never_goes_back_behind_a_trust_store_and_no_clock_moves_it() {
    const DAY: u64 = 86_400;
    let scene = Scene::new();
    let trust = fs::read_to_string(scene.at("trust")).unwrap();
    let dated = |date: &str| {
        fs::write(
            scene.at("trust"),
            format!("{trust}dated {date}T00:00:00Z\n"),
        )
        .unwrap();
        scene.trust()
    };
    let until = |name, sequence, until: &str| {
        scene.design(&Design {
            name,
            sequence,
            salt: 3,
            probe: Probe::None,
            more: &["--not-after", &format!("{until}T00:00:00Z")],
        })
    };
    let (image, store) = (scene.image(), scene.store());
    let install = |name: &str, trust: &preface_runtime::Trust, now: Option<u64>| {
        let file = scene.at(name);
        let done = store.install(&image, &Install::new(&file, trust, now));
        done.map(|_| ()).map_err(|error| error.exit_code())
    };
    let date = |text: &str| preface_bundle::unix_seconds(&format!("{text}T00:00:00Z")).unwrap();
    let in_2026 = date("2026-06-01");
    until("summer", 3, "2026-06-01");
    let spring = dated("2026-03-01");
    for now in [None, Some(0), Some(in_2026 - DAY)] {
        assert_eq!(install("summer", &spring, now), Ok(()), "{now:?}");
    }
    assert_eq!(scene.state().time_floor, date("2026-03-01"));
    until("autumn", 4, "2026-09-09");
    let in_50_years = Some(in_2026 + 50 * 365 * DAY);
    assert_eq!(
        install("autumn", &spring, in_50_years),
        Err(16),
        "the clock is far ahead"
    );
    assert_eq!(
        scene.state().time_floor,
        date("2026-03-01"),
        "it has moved nothing"
    );
    assert_eq!(
        install("autumn", &spring, Some(in_2026)),
        Ok(()),
        "and is back"
    );
    // A trust store from after the last day says so for ever, also where a later one has no date.
    until("winter", 5, "2026-12-18");
    assert_eq!(install("winter", &dated("2027-01-01"), Some(0)), Err(16));
    scene.pack(6, 6, "sixth");
    assert_eq!(install("sixth", &dated("2027-01-01"), Some(0)), Ok(()));
    until("late", 7, "2026-12-18");
    assert_eq!(install("late", &dated("2026-03-01"), None), Err(16));
    // When a bundle says that it was made is shown, and moves nothing.
    let floor = scene.state().time_floor;
    scene.pack(8, 8, "future");
    let (folder, key, out) = (
        scene.text("adapter"),
        scene.text("keys/k.key"),
        scene.text("future"),
    );
    let pack = ["pack", &folder, "--task", TASK, "--sequence", "8"];
    let packed = Command::new(PROGRAM)
        .args(pack)
        .args(["--key", &key, "-o", &out])
        .env("SOURCE_DATE_EPOCH", "16725225600")
        .status();
    assert!(packed.unwrap().success());
    assert_eq!(install("future", &dated("2026-03-01"), None), Ok(()));
    assert_eq!(scene.state().time_floor, floor);
}

#[test]
fn an_expired_bundle_goes_on_serving_and_is_not_installed() {
    let scene = Scene::new();
    let soon = Design {
        name: "soon",
        sequence: 2,
        salt: 3,
        probe: Probe::None,
        more: &["--not-after", "1970-01-01T00:16:40Z"],
    };
    scene.design(&soon);
    assert_eq!(code(&scene, "soon"), is(16, "expired"));
    let (file, trust) = (scene.at("soon"), scene.trust());
    let request = Install::new(&file, &trust, Some(999));
    scene.store().install(&scene.image(), &request).unwrap();
    let (code, answer, said) = scene.run();
    assert!(code == 0 && answer.starts_with("3-"), "{said}");
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
