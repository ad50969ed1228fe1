//! What no bundle gets behind: releases, security versions and time.

use std::{fs, process::Command};

use preface_runtime::store::Install;

use crate::scene::{Design, PROGRAM, Probe, Scene, TASK, code, id_of, is};

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

/// Without that a typing error of the roots would lock a fleet out for ever.
#[test]
fn a_floor_that_was_set_too_high_is_lowered_by_the_next_version_of_the_trust_store() {
    let scene = Scene::new();
    scene.installed("old");
    let trust = fs::read_to_string(scene.at("trust")).unwrap();
    let version = |version: u32, more: &str| {
        let next = trust.replace("version 1", &format!("version {version}"));
        fs::write(scene.at("trust"), next + more).unwrap();
    };
    version(2, "min-security 4000000000\ndated 2999-01-01T00:00:00Z\n");
    assert!(scene.store().remember(&scene.trust()).unwrap());
    assert_eq!(code(&scene, "new"), is(15, "insecure-version"));
    assert_eq!(scene.run().0, 2, "what it served is below the floor too");
    version(3, "min-security 0\ndated 2026-01-01T00:00:00Z\n");
    let (code_of_run, answer, said) = scene.run();
    assert!(code_of_run == 0 && answer.starts_with("1-"), "{said}");
    scene.installed("new");
    let state = scene.state();
    assert_eq!((state.trust_version, state.min_security), (3, 0));
    assert_eq!(state.time_floor, 1_767_225_600);
    // A later version that says nothing of the time leaves it.
    version(4, "");
    assert!(scene.store().remember(&scene.trust()).unwrap());
    assert_eq!(scene.state().time_floor, 1_767_225_600);
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
fn a_rival_of_an_unconfirmed_bundle_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    scene.pack(2, 3, "equal");
    assert_eq!(code(&scene, "equal"), is(15, "rival"));
    assert_eq!(scene.task().active, Some(id_of(&scene.at("new"))));
}

#[test]
fn a_newer_trust_store_is_remembered_without_an_install() {
    let scene = Scene::new();
    let old = scene.trust();
    assert!(scene.store().remember(&old).is_err(), "there is no store");
    scene.installed("old");
    let trust = fs::read_to_string(scene.at("trust")).unwrap();
    let newer = trust.replace("version 1", "version 3") + "min-security 2\n";
    fs::write(scene.at("trust"), newer + "dated 2026-01-01T00:00:00Z\n").unwrap();
    let newer = scene.trust();
    assert!(scene.store().remember(&newer).unwrap());
    assert!(!scene.store().remember(&newer).unwrap());
    let state = scene.state();
    assert_eq!((state.trust_version, state.min_security), (3, 2));
    assert_eq!(state.time_floor, 1_767_225_600);
    let refused = scene.store().remember(&old).unwrap_err();
    assert_eq!(refused.exit_code(), 15);
    let (code, _, said) = scene.run();
    assert!(
        code == 2 && said.contains("security version 0 is below"),
        "{said}"
    );
}
