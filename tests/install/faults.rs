//! An install that is killed, or whose disk fails, at every point; strace does both.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output},
};

use preface_bundle::Id;

use crate::scene::{PROGRAM, Scene, id_of, reported};

/// A system call of an install: its name, and which of those of its name it is, from 1.
#[derive(Clone, Debug)]
struct Call {
    name: String,
    count: usize,
    line: String,
}

fn strace(arguments: &[&str], program: &[String]) -> Output {
    let output = Command::new("strace")
        .args(arguments)
        .arg("--")
        .arg(PROGRAM)
        .args(program)
        .output();
    output.expect("this test needs strace: apt-get install strace")
}

/// The system calls of an install, in order.
fn calls(scene: &Scene, install: &[String]) -> Vec<Call> {
    let trace = scene.text("trace");
    let output = strace(&["-f", "-y", "-s", "0", "-o", &trace], install);
    assert_eq!(reported(&output).0, 0);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = Vec::new();
    let mut threads = Vec::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        let (thread, line) = line.split_once(' ').unwrap();
        threads.push(thread.to_owned());
        let Some((name, _)) = line.trim_start().split_once('(') else {
            continue;
        };
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        calls.push(Call {
            name: name.to_owned(),
            count: *count,
            line: line.to_owned(),
        });
    }
    threads.dedup();
    assert_eq!(
        threads.len(),
        1,
        "calls are counted by thread, and there is one"
    );
    // Starting the program is strace's own doing.
    assert_eq!(calls.remove(0).name, "execve");
    calls
}

fn inject(call: &Call, fault: &str) -> [String; 2] {
    let Call { name, count, .. } = call;
    [
        format!("trace={name}"),
        format!("inject={name}:{fault}:when={count}"),
    ]
}

/// What must hold whatever happened: the old bundle or the new one is active and can be loaded, the floor is not above
/// it, and the next install works.
fn check_sound(scene: &Scene, allowed: &[Option<Id>], what: &str) -> Option<Id> {
    let active = match scene.store().state() {
        Err(preface_runtime::store::StoreError::NoStore { .. }) => None,
        state => {
            let state = state.unwrap_or_else(|error| panic!("{what}: {error}"));
            state.task(crate::scene::TASK).and_then(|task| {
                let active = task.active.and_then(|id| task.release(id));
                let floor = task.confirmed.map(|floor| floor.order());
                assert!(
                    floor <= active.map(|active| active.order()),
                    "{what}: {task:?}"
                );
                assert_eq!(
                    task.trial,
                    active.is_some() && floor != active.map(|one| one.order())
                );
                task.active
            })
        }
    };
    assert!(allowed.contains(&active), "{what}: {active:?} is active");
    if let Some(id) = active {
        let path = scene.at(&format!("store/bundles/{id}.preface"));
        assert_eq!(id_of(&path), id, "{what}");
        let loaded = scene.session().load_file(&path, &scene.trust(), None);
        assert!(loaded.is_ok(), "{what}: {loaded:?}");
    }
    active
}

fn check_next(scene: &Scene, what: &str) {
    let (code, report) = scene.install("new", &[]);
    assert_eq!(code, 0, "{what}: {report}");
    let task = scene.task();
    let new = Some(id_of(&scene.at("new")));
    let confirmed = task.confirmed.map(|floor| floor.id);
    assert_eq!(
        (task.active, confirmed, task.trial),
        (new, new, false),
        "{what}"
    );
    assert!(
        scene.temporary().is_empty(),
        "{what}: {:?}",
        scene.temporary()
    );
    let files = fs::read_dir(scene.at("store/bundles")).unwrap().count();
    assert_eq!(files, task.kept.len(), "{what}: a file that nobody names");
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
        ["--json", verb, crate::scene::TASK, "--store", &store].map(str::to_owned)
    };
    failing_everywhere(&scene, new, &verb("rollback"), 2);
    scene.pack(3, 3, "third");
    assert_eq!(scene.install("third", &["--no-confirm"]).0, 0);
    std::fs::remove_dir_all(scene.at("saved")).unwrap();
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
        let expected = before.task(crate::scene::TASK).unwrap();
        assert_eq!((&task, task.active), (expected, third), "{}", call.line);
        assert!(scene.temporary().is_empty(), "{}", call.line);
        assert_eq!(scene.verb(&["confirm", crate::scene::TASK]).0, 0);
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
        "run",
        "--base",
        "x.base",
        "--trust",
        "trust",
        "--store",
        "store",
        crate::scene::TEXT,
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
        "run",
        "--base",
        base,
        "--trust",
        trust,
        "--store",
        store,
        crate::scene::TEXT,
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
