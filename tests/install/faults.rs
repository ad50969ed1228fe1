//! An install whose disk fails, at every write.

use std::{fs, io::Write, path::Path};

use preface_bundle::Id;

use crate::{
    scene::{Scene, TASK, TEXT, check_next, check_sound, id_of, reported},
    strace::{Call, calls, inject, strace},
};

#[test]
fn a_bundle_that_shrinks_while_it_is_read_is_refused() {
    let scene = Scene::new();
    scene.installed("old");
    let before = scene.state();
    let new = scene.text("new");
    // The file ends at the first read, or is longer than it was said to be.
    for fault in ["retval=0:when=1", "retval=64:when=1"] {
        let inject = format!("inject=read:{fault}");
        let arguments = [
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-P",
            &new,
            "-e",
            "trace=read",
            "-e",
            &inject,
        ];
        let output = strace(&arguments, &scene.install_arguments("new", &[]));
        let (code, report) = reported(&output);
        assert_eq!(
            (code, &report["reason"]),
            (20, &"unreadable".into()),
            "{report}"
        );
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("changed while it was read"), "{message}");
        assert_eq!(scene.state(), before);
    }
}

/// The calls that write into the store or name something in it.
fn writing(scene: &Scene, calls: Vec<Call>) -> Vec<Call> {
    const WRITING: [&str; 12] = [
        "write",
        "pwrite64",
        "writev",
        "fsync",
        "fdatasync",
        "rename",
        "renameat",
        "renameat2",
        "mkdir",
        "fchmod",
        "chmod",
        "openat",
    ];
    let store = scene.text("store");
    let writes = |call: &Call| {
        let of_store = call.line.contains(&store);
        let creates = call.name != "openat" || call.line.contains("O_CREAT");
        WRITING.contains(&&*call.name) && of_store && creates && !call.line.contains("EEXIST")
    };
    calls.into_iter().filter(writes).collect()
}

/// Lets every writing call of a verb fail in turn; each writes at least `files` files.
fn failing_everywhere(scene: &Scene, old: Option<Id>, program: &[String], files: usize) {
    let calls = writing(scene, calls(scene, program));
    let names = |name: &str| calls.iter().filter(|call| call.name == name).count();
    assert!(
        names("write") >= files && names("rename") >= files && names("fsync") >= 2 * files,
        "{calls:#?}"
    );
    for error in ["ENOSPC", "EIO", "EDQUOT"] {
        for call in &calls {
            let what = format!("{error} at {}", call.line);
            scene.restore();
            let [trace, inject] = inject(call, &format!("error={error}"));
            let arguments = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let (code, report) = reported(&strace(&arguments, program));
            let reason = &report["reason"];
            assert_eq!((code, reason), (20, &"io".into()), "{what}: {report}");
            check_sound(scene, &[old], &what);
            let left = scene.temporary();
            assert!(left.is_empty(), "{what}: {left:?}");
            check_files(scene, &what);
            check_next(scene, &what);
        }
    }
    let _ = writeln!(
        std::io::stderr(),
        "{} writing calls failed in 3 ways: what was active before is active after each",
        calls.len()
    );
}

/// No bundle is left that the state does not name.
fn check_files(scene: &Scene, what: &str) {
    let Ok(state) = scene.store().state() else {
        return;
    };
    for file in fs::read_dir(scene.at("store/bundles")).unwrap().flatten() {
        let named = state.keeps(id_of(&file.path()));
        assert!(named, "{what}: {} is left behind", file.path().display());
    }
}

#[test]
fn a_disk_that_fails_at_any_write_leaves_the_old_bundle_active_and_nothing_behind() {
    let scene = Scene::new();
    scene.installed("old");
    scene.save();
    let install = scene.install_arguments("new", &[]);
    failing_everywhere(&scene, Some(id_of(&scene.at("old"))), &install, 3);
}

#[test]
fn a_disk_that_fails_during_the_first_install_leaves_nothing_active() {
    let scene = Scene::new();
    let install = scene.install_arguments("new", &[]);
    failing_everywhere(&scene, None, &install, 5);
}

#[test]
fn a_disk_that_fails_during_a_step_back_or_a_confirmation_leaves_everything_as_it_was() {
    let scene = Scene::new();
    scene.installed("old");
    scene.installed("new");
    scene.save();
    let new = Some(id_of(&scene.at("new")));
    let verb = |verb: &str| {
        let store = scene.text("store");
        ["--json", verb, TASK, "--store", &store].map(str::to_owned)
    };
    failing_everywhere(&scene, new, &verb("rollback"), 2);
    scene.pack(3, 3, "third");
    assert_eq!(scene.install("third", &["--no-confirm"]).0, 0);
    fs::remove_dir_all(scene.at("saved")).unwrap();
    scene.save();
    let third = Some(id_of(&scene.at("third")));
    failing_trial(&scene, third, &verb("confirm"));
}

/// A confirmation that fails leaves the bundle on trial, and the next one works.
fn failing_trial(scene: &Scene, third: Option<Id>, confirm: &[String]) {
    let before = scene.state();
    for call in writing(scene, calls(scene, confirm)) {
        scene.restore();
        let [trace, inject] = inject(&call, "error=EIO");
        let arguments = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        assert_eq!(
            reported(&strace(&arguments, confirm)).0,
            20,
            "{}",
            call.line
        );
        let task = scene.task();
        let expected = before.task(TASK).unwrap();
        assert_eq!((&task, task.active), (expected, third), "{}", call.line);
        assert!(scene.temporary().is_empty(), "{}", call.line);
        assert_eq!(scene.verb(&["confirm", TASK]).0, 0);
        assert_eq!(scene.task().confirmed.map(|floor| floor.sequence), Some(3));
    }
}

/// Power that fails loses what was not flushed: whatever takes its place was flushed before, and its folder after.
#[test]
fn what_takes_its_place_was_flushed_before_and_its_folder_after() {
    let scene = Scene::new();
    let install = scene.install_arguments("old", &[]);
    let calls = calls(&scene, &install);
    let of_store = |call: &&Call| call.line.contains(&scene.text("store"));
    let calls: Vec<&Call> = calls.iter().filter(of_store).collect();
    let mut renames = 0;
    for (place, call) in calls.iter().enumerate() {
        if !call.name.starts_with("rename") {
            continue;
        }
        renames += 1;
        let paths: Vec<&str> = call.line.split('"').skip(1).step_by(2).collect();
        let [from, to] = paths[..] else {
            panic!("{}", call.line);
        };
        let last = |name: &str, path: &str| {
            let of_file = format!("<{path}>");
            let mut before = calls[..place].iter();
            before.rposition(|call| call.name == name && call.line.contains(&of_file))
        };
        let (written, flushed) = (last("write", from), last("fsync", from));
        assert!(written.is_some() && written < flushed, "{}", call.line);
        let folder = format!("<{}>", Path::new(to).parent().unwrap().display());
        let next = calls[place + 1..].iter().find(|call| call.name == "fsync");
        assert!(
            next.is_some_and(|next| next.line.contains(&folder)),
            "{}",
            call.line
        );
    }
    // The empty state, the bundle and the state with it.
    assert_eq!(renames, 5);
}

/// A disk that fails for good from some write on.
#[test]
fn a_full_disk_leaves_the_old_bundle_active() {
    let scene = Scene::new();
    scene.installed("old");
    scene.save();
    let old = id_of(&scene.at("old"));
    let install = scene.install_arguments("new", &[]);
    let writes = writing(&scene, calls(&scene, &install));
    for call in writes.iter().filter(|call| call.name == "write") {
        scene.restore();
        let inject = format!("inject=write:error=ENOSPC:when={}+", call.count);
        let report = scene.text("report");
        // What the program says is written, too: it is let go.
        let arguments = [
            "-f",
            "-qq",
            "-o",
            &report,
            "-e",
            "trace=write",
            "-e",
            &inject,
        ];
        let output = strace(&arguments, &install);
        assert_eq!(output.status.code(), Some(20), "{}", call.line);
        check_sound(&scene, &[Some(old)], &call.line);
        check_next(&scene, &call.line);
    }
}

#[test]
fn a_read_only_store_is_said_aloud_and_goes_on_serving() {
    let scene = Scene::new();
    scene.installed("old");
    let lock = scene.text("store/lock");
    let inject = [
        "-P",
        &lock,
        "-e",
        "trace=openat",
        "-e",
        "inject=openat:error=EROFS",
    ];
    let arguments = [&["-f", "-qq", "-o", "/dev/null"][..], &inject].concat();
    let (code, report) = reported(&strace(&arguments, &scene.install_arguments("new", &[])));
    assert_eq!(code, 20, "{report}");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("its file system is read-only") && message.contains(&lock),
        "{message}"
    );
    let run = [
        "run", "--base", "x.base", "--trust", "trust", "--store", "store", TEXT,
    ];
    let run = run.map(|argument| match Path::new(&scene.text(argument)).exists() {
        true => scene.text(argument),
        false => argument.to_owned(),
    });
    let served = strace(&arguments, &run);
    let answer = String::from_utf8_lossy(&served.stdout).into_owned();
    assert!(
        served.status.success() && answer.starts_with("1-"),
        "{served:?}"
    );
}

#[test]
fn without_a_place_to_count_a_bundle_on_trial_is_not_started() {
    let scene = Scene::new();
    scene.installed("old");
    assert_eq!(scene.install("new", &["--no-confirm"]).0, 0);
    let lock = scene.text("store/lock");
    let arguments = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        &lock,
        "-e",
        "trace=openat",
        "-e",
        "inject=openat:error=EROFS",
    ];
    let files = ["x.base", "trust", "store"].map(|name| scene.text(name));
    let [base, trust, store] = &files;
    let run = [
        "run", "--base", base, "--trust", trust, "--store", store, TEXT,
    ];
    let served = strace(&arguments, &run.map(str::to_owned));
    let said = String::from_utf8_lossy(&served.stderr).into_owned();
    assert!(
        String::from_utf8_lossy(&served.stdout).starts_with("1-"),
        "{served:?}"
    );
    assert!(
        said.contains("is on trial and its start cannot be written down"),
        "{said}"
    );
    assert_eq!(scene.task().starts, 0);
}
