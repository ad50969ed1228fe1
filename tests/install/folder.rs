//! The store's folder: who may have changed it, what was changed in it, and what comes of that.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use preface_runtime::store::{Install, MonotonicCounter, Store, StoreError};

use crate::scene::{PROGRAM, Scene, TASK, TEXT, copy, good, id_of};

fn bundle(scene: &Scene, name: &str) -> PathBuf {
    let id = id_of(&scene.at(name));
    scene.at(&format!("store/bundles/{id}.preface"))
}

#[test]
fn a_bundle_changed_after_its_install_is_refused_and_the_one_before_serves() {
    let scene = Scene::new();
    scene.installed("old");
    scene.installed("new");
    let (old, new) = (bundle(&scene, "old"), bundle(&scene, "new"));
    let whole = fs::read(&new).unwrap();
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    // Changed, cut, another bundle that is good by itself, a link, nothing.
    let cut = whole[..middle].to_vec();
    for bytes in [changed.clone(), cut, fs::read(&old).unwrap()] {
        fs::write(&new, bytes).unwrap();
        serves_the_one_before(&scene);
    }
    fs::remove_file(&new).unwrap();
    serves_the_one_before(&scene);
    symlink(scene.at("new"), &new).unwrap();
    serves_the_one_before(&scene);
    // Installing it again mends it.
    assert_eq!(scene.installed("new")["changed"], true);
    let (code, answer, said) = scene.run();
    assert!(
        code == 0 && answer.starts_with("2-") && !said.contains("not used"),
        "{said}"
    );
    assert_eq!(fs::read(&new).unwrap(), whole);
    for path in [&old, &new] {
        fs::write(path, &changed).unwrap();
    }
    let (code, answer, said) = scene.run();
    assert_eq!((code, &*answer), (2, ""), "{said}");
    assert!(said.contains("is not served"), "{said}");
}

fn serves_the_one_before(scene: &Scene) {
    let (code, answer, said) = scene.run();
    assert!(code == 0 && answer.starts_with("1-"), "{answer}{said}");
    let (old, new) = (id_of(&scene.at("old")), id_of(&scene.at("new")));
    assert!(
        said.contains(&format!("bundle {new} is not used")),
        "{said}"
    );
    assert!(said.contains(&format!("bundle {old} serves")), "{said}");
}

#[test]
fn a_bundle_that_is_revoked_later_is_refused_and_the_one_before_serves() {
    let scene = Scene::new();
    scene.installed("old");
    scene.installed("new");
    let id = id_of(&scene.at("new")).to_string();
    good(&["trust", "revoke", &scene.text("trust"), "--bundle", &id]);
    serves_the_one_before(&scene);
}

#[test]
fn a_task_that_is_asked_for_and_not_served_is_told_why() {
    let scene = Scene::new();
    scene.installed("old");
    let names = ["adapter", "keys/k.key", "other", "trust", "x.base", "store"];
    let [adapter, key, other, trust, base, store] = names.map(|name| scene.text(name));
    let pack = ["pack", &adapter, "--task", "other", "--sequence", "1"];
    good(&[&pack[..], &["--key", &key, "-o", &other]].concat());
    scene.installed("other");
    let id = id_of(&scene.at("old")).to_string();
    good(&["trust", "revoke", &trust, "--bundle", &id]);
    let run = ["run", "--base", &base, "--trust", &trust, "--store", &store];
    let run = [&run[..], &["--task", TASK, TEXT]].concat();
    let output = Command::new(PROGRAM).args(run).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in [
        "the trust store revokes bundle",
        "no bundle has the task intent; there are other",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn one_copy_of_the_state_is_enough_and_without_both_everything_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    scene.installed("new");
    let state = scene.state();
    scene.save();
    let harm: [fn(&std::path::Path); 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, &fs::read(path).unwrap()[..100]).unwrap(),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[70] ^= 4;
            fs::write(path, bytes).unwrap();
        },
        |path| fs::write(path, vec![0; 1 << 20]).unwrap(),
    ];
    let copies = ["store/state.0", "store/state.1"].map(|name| scene.at(name));
    for harm in harm {
        for copy in &copies {
            scene.restore();
            harm(copy);
            assert_eq!(scene.state(), state);
            assert!(scene.run().1.starts_with("2-"));
        }
        scene.restore();
        copies.iter().for_each(|copy| harm(copy));
        let (code, report) = scene.install("new", &[]);
        assert_eq!((code, &report["reason"]), (18, &"state-invalid".into()));
        assert_eq!(scene.verb(&["list"]).0, 18);
        assert_eq!(scene.run().0, 2);
        let (code, report) = scene.install("old", &["--reprovision"]);
        assert_eq!((code, scene.state().tasks.len()), (0, 1), "{report}");
        assert_eq!(fs::read_dir(scene.at("store/bundles")).unwrap().count(), 1);
    }
}

#[test]
fn a_change_mends_the_copy_that_was_harmed() {
    let scene = Scene::new();
    scene.installed("old");
    fs::write(scene.at("store/state.1"), b"?").unwrap();
    scene.installed("new");
    let copies = ["store/state.0", "store/state.1"].map(|name| fs::read(scene.at(name)).unwrap());
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn the_state_of_another_fleets_device_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    let (public, trust) = (scene.text("keys/k.pub"), scene.text("trust"));
    fs::remove_file(&trust).unwrap();
    good(&[
        "trust",
        "new",
        "-o",
        &trust,
        "--key",
        &public,
        "--namespace",
        "acme",
    ]);
    let (code, report) = scene.install("new", &[]);
    assert_eq!((code, &report["reason"]), (18, &"state-of-another".into()));
    assert_eq!(scene.run().0, 2);
}

/// A counter as hardware has one: it only grows.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl MonotonicCounter for Counter {
    fn read(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.load(Ordering::SeqCst)))
    }

    fn raise(&self, to: u64) -> io::Result<()> {
        self.0.fetch_max(to, Ordering::SeqCst);
        Ok(())
    }
}

/// A counter that cannot be raised.
#[derive(Debug)]
struct Stuck;

impl MonotonicCounter for Stuck {
    fn read(&self) -> io::Result<Option<u64>> {
        Ok(Some(0))
    }

    fn raise(&self, _: u64) -> io::Result<()> {
        Err(io::Error::other("the counter does not move"))
    }
}

#[test]
fn a_folder_that_was_put_back_is_noticed_where_there_is_a_hardware_counter() {
    let scene = Scene::new();
    let store = Store::with_counter(&scene.at("store"), Arc::new(Counter::default()));
    let (image, trust) = (scene.image(), scene.trust());
    let install = |name: &str| {
        let file = scene.at(name);
        let done = store.install(&image, &Install::new(&file, &trust, None));
        done.map(|_| ())
    };
    install("old").unwrap();
    scene.save();
    install("new").unwrap();
    assert!(store.state().is_ok());
    scene.restore();
    for found in [store.state().map(|_| ()), install("new"), install("old")] {
        let error = found.unwrap_err();
        assert!(matches!(error, StoreError::PutBack { .. }), "{error}");
        assert_eq!(error.exit_code(), 18);
    }
    fs::remove_dir_all(scene.at("store")).unwrap();
    assert!(
        matches!(install("old"), Err(StoreError::NoState { .. })),
        "nor is an empty one"
    );
    // Without a counter the files are all there is to go by, as STORE.md says.
    scene.restore();
    assert!(scene.store().state().is_ok());
}

#[test]
fn a_change_that_the_counter_does_not_take_is_taken_back() {
    let scene = Scene::new();
    scene.installed("old");
    let before = scene.state();
    let store = Store::with_counter(&scene.at("store"), Arc::new(Stuck));
    let (file, trust) = (scene.at("new"), scene.trust());
    let error = store
        .install(&scene.image(), &Install::new(&file, &trust, None))
        .unwrap_err();
    assert_eq!(error.exit_code(), 20, "{error}");
    assert_eq!(scene.state(), before);
    assert_eq!(fs::read_dir(scene.at("store/bundles")).unwrap().count(), 1);
}

#[test]
fn links_and_names_that_others_made_beforehand_lead_nowhere() {
    let scene = Scene::new();
    scene.installed("old");
    let victim = scene.at("victim");
    fs::write(&victim, b"precious").unwrap();
    let id = id_of(&scene.at("new"));
    for name in [
        format!("bundles/{id}.preface"),
        format!("bundles/.{id}.preface.tmp"),
        ".state.0.tmp".to_owned(),
        "state.1".to_owned(),
    ] {
        let path = scene.at("store").join(name);
        let _ = fs::remove_file(&path);
        symlink(&victim, path).unwrap();
    }
    scene.installed("new");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(scene.run().1.starts_with("2-"));
    assert!(
        !fs::symlink_metadata(scene.at("store/state.1"))
            .unwrap()
            .is_symlink()
    );
    // What cannot be moved away is said, and nothing changes.
    scene.pack(3, 3, "third");
    let taken = scene.at(&format!(
        "store/bundles/.{}.preface.tmp",
        id_of(&scene.at("third"))
    ));
    fs::create_dir(taken).unwrap();
    let before = scene.state();
    let (code, report) = scene.install("third", &[]);
    assert_eq!((code, &report["reason"]), (20, &"io".into()));
    assert_eq!(scene.state(), before);
    // A lock that is a link is not followed, nor is a folder of bundles.
    fs::remove_file(scene.at("store/lock")).unwrap();
    symlink(&victim, scene.at("store/lock")).unwrap();
    assert_eq!(scene.install("new", &[]).0, 20);
    fs::remove_file(scene.at("store/lock")).unwrap();
    fs::rename(scene.at("store/bundles"), scene.at("elsewhere")).unwrap();
    symlink(scene.at("elsewhere"), scene.at("store/bundles")).unwrap();
    let (code, report) = scene.install("new", &[]);
    assert_eq!((code, &report["reason"]), (20, &"misplaced".into()));
}

#[test]
fn modes_do_not_depend_on_what_the_process_masks() {
    let scene = Scene::new();
    let install = scene.install_arguments("old", &[]);
    for mask in ["000", "077"] {
        let _ = fs::remove_dir_all(scene.at("store"));
        let script = format!("umask {mask}; exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, PROGRAM])
            .args(&install)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let id = id_of(&scene.at("old"));
        let table = [
            (String::new(), 0o755),
            ("/bundles".to_owned(), 0o755),
            (format!("/bundles/{id}.preface"), 0o644),
            ("/state.0".to_owned(), 0o644),
            ("/state.1".to_owned(), 0o644),
            ("/lock".to_owned(), 0o600),
        ];
        for (name, mode) in table {
            let found = fs::metadata(scene.at(&format!("store{name}"))).unwrap();
            assert_eq!(
                found.permissions().mode() & 0o7777,
                mode,
                "{name} under {mask}"
            );
        }
    }
}

#[test]
fn a_store_that_others_can_write_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    for name in ["store", "store/bundles"] {
        fs::set_permissions(scene.at(name), Permissions::from_mode(0o775)).unwrap();
        assert_eq!(scene.install("new", &[]).0, 21);
        assert_eq!(scene.verb(&["list"]).0, 21);
        assert_eq!(scene.run().0, 2);
        fs::set_permissions(scene.at(name), Permissions::from_mode(0o755)).unwrap();
    }
    scene.installed("new");
}

/// Who moves a store away leaves a device that has never seen a bundle, and takes the first of all again.
#[test]
fn a_store_that_others_can_move_away_is_refused() {
    let scene = Scene::new();
    let shared = scene.at("shared");
    fs::create_dir(&shared).unwrap();
    let store = shared.join("store");
    let install = |name| {
        let mut arguments = scene.install_arguments(name, &[]);
        let place = arguments.iter().position(|one| one == "--store").unwrap();
        arguments[place + 1] = store.to_str().unwrap().to_owned();
        Command::new(PROGRAM).args(arguments).output().unwrap()
    };
    assert_eq!(install("new").status.code(), Some(0));
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    fs::rename(&store, shared.join("away")).unwrap();
    let output = install("old");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(21), "{said}");
    assert!(said.contains("shared") && said.contains("777"), "{said}");
    assert_eq!(fs::read_dir(store.join("bundles")).unwrap().count(), 0);
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(install("old").status.code(), Some(0));
}

#[test]
fn what_a_killed_install_left_half_written_is_removed_by_the_next() {
    let scene = Scene::new();
    scene.installed("old");
    fs::write(scene.at("store/.state.0.tmp"), b"half").unwrap();
    fs::write(scene.at("store/bundles/.x.preface.tmp"), b"half").unwrap();
    copy(&scene.at("store"), &scene.at("before"));
    let unnamed = scene.at(&format!("store/bundles/{}.preface", "ab".repeat(32)));
    fs::write(&unnamed, b"a bundle that no state names").unwrap();
    scene.installed("new");
    assert!(scene.temporary().is_empty() && !unnamed.exists());
}
