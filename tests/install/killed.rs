//! An install, a step back and a confirmation, killed at every system call.

use std::{collections::BTreeMap, io::Write, os::unix::process::ExitStatusExt};

use preface_bundle::Id;

use crate::{
    scene::{Scene, TASK, check_next, check_sound, id_of},
    strace::{calls, inject, strace},
};

#[test]
fn an_install_killed_at_any_system_call_leaves_the_old_bundle_active_or_the_new_one() {
    let scene = Scene::new();
    scene.installed("old");
    scene.save();
    killed_everywhere(&scene, Some(id_of(&scene.at("old"))), &[]);
}

#[test]
fn a_first_install_killed_at_any_system_call_leaves_nothing_active_or_the_bundle() {
    let scene = Scene::new();
    killed_everywhere(&scene, None, &[]);
}

/// Kills an install at every system call that it makes.
fn killed_everywhere(scene: &Scene, old: Option<Id>, more: &[&str]) {
    let new = Some(id_of(&scene.at("new")));
    let install = scene.install_arguments("new", more);
    let calls = calls(scene, &install);
    assert!(calls.len() > 50, "{} calls", calls.len());
    let mut found = BTreeMap::new();
    for call in &calls {
        scene.restore();
        let [trace, inject] = inject(call, "signal=KILL");
        let output = strace(
            &["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject],
            &install,
        );
        assert_eq!(output.status.signal(), Some(9), "{call:?}: {output:?}");
        let active = check_sound(scene, &[old, new], &call.line);
        *found.entry(active == new).or_insert(0) += 1;
        check_next(scene, &call.line);
    }
    // Both must have been seen, or the calls were not those of an install.
    let (olds, news) = (found.get(&false), found.get(&true));
    assert!(olds.is_some() && news.is_some(), "{found:?}");
    let _ = writeln!(
        std::io::stderr(),
        "killed at {} system calls: the old bundle active after {}, the new one after {}",
        calls.len(),
        olds.unwrap(),
        news.unwrap()
    );
}

#[test]
fn a_step_back_or_a_confirmation_killed_at_any_system_call_is_done_or_was_never_begun() {
    let scene = Scene::new();
    scene.installed("old");
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    scene.save();
    let before = scene.task();
    for verb in ["rollback", "confirm"] {
        scene.restore();
        let store = scene.text("store");
        let program = ["--json", verb, TASK, "--store", &store].map(str::to_owned);
        let calls = calls(&scene, &program);
        let after = scene.task();
        assert_ne!(after, before);
        let mut found = [0, 0];
        for call in &calls {
            scene.restore();
            let [trace, inject] = inject(call, "signal=KILL");
            let arguments = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let output = strace(&arguments, &program);
            assert_eq!(output.status.signal(), Some(9), "{verb}: {call:?}");
            let task = scene.task();
            assert!(
                [&before, &after].contains(&&task),
                "{verb}: {call:?}: {task:?}"
            );
            found[usize::from(task == after)] += 1;
            scene.installed("new");
            assert!(scene.temporary().is_empty(), "{verb}: {call:?}");
        }
        assert!(found.iter().all(|count| *count > 0), "{verb}: {found:?}");
        let _ = writeln!(std::io::stderr(), "{verb}: before and after {found:?}");
    }
}
