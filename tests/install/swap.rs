//! Installs beside each other, and beside requests that are in flight.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{BufRead, BufReader, Lines, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use preface_runtime::{Encoded, Error, store::Follower};
use serde_json::Value;

use crate::scene::{IDS, PROGRAM, Scene, TEXT, good, id_of, reported, said};

#[test]
fn two_installs_at_once_come_one_after_the_other() {
    for round in 0..10 {
        let scene = Scene::new();
        scene.installed("old");
        scene.pack(3, 3, "third");
        let start = |name: &str| {
            let mut command = Command::new(PROGRAM);
            command.args(scene.install_arguments(name, &[]));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let (second, third) = (start("new"), start("third"));
        let (second, report) = reported(&second.wait_with_output().unwrap());
        let third = reported(&third.wait_with_output().unwrap()).0;
        assert_eq!(third, 0, "round {round}");
        // Behind the third bundle the second comes too late.
        assert!(
            second == 0 || (second == 15 && report["reason"] == "rollback"),
            "{report}"
        );
        let task = scene.task();
        assert_eq!(task.active, Some(id_of(&scene.at("third"))));
        let kept = 2 + usize::from(second == 0);
        assert_eq!(task.kept.len(), kept);
        let files = std::fs::read_dir(scene.at("store/bundles"))
            .unwrap()
            .count();
        assert_eq!((files, scene.temporary().len()), (kept, 0));
    }
}

/// Requests wait for a few sessions, each of which looks at the store between two of them, while bundles are installed by
/// another process.
#[test]
fn while_100_requests_run_each_is_answered_by_one_bundle_entirely() {
    const REQUESTS: usize = 100;
    let scene = Scene::new();
    let answers = ["old", "new"].map(|name| scene.answer_of(name));
    assert_ne!(answers[0], answers[1]);
    scene.installed("old");
    let (send, receive) = mpsc::sync_channel(REQUESTS);
    let (receive, done) = (Mutex::new(receive), AtomicUsize::new(0));
    let heard = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut session = scene.session();
                let mut follower = Follower::new(scene.store(), scene.trust());
                loop {
                    // The lock is free again before the request is answered.
                    let request = receive.lock().unwrap().recv();
                    let Ok(request) = request else { break };
                    for served in follower.follow(&mut session).unwrap() {
                        assert!(served.notes.is_empty(), "{served:?}");
                        session.activate(served.loaded.unwrap().0).unwrap();
                    }
                    let answer = said(&mut session);
                    done.fetch_add(1, Ordering::SeqCst);
                    heard.lock().unwrap().push((request, answer));
                }
            });
        }
        (0..REQUESTS).for_each(|request| send.send(request).unwrap());
        // The other half comes while the new bundle is installed, some of it behind that.
        let arguments = scene.install_arguments("new", &[]);
        let mut install = Command::new(PROGRAM)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut sent = REQUESTS;
        while install.try_wait().unwrap().is_none() {
            send.send(sent).unwrap();
            sent += 1;
        }
        assert!(install.wait().unwrap().success());
        let behind = sent;
        (behind..behind + REQUESTS).for_each(|request| send.send(request).unwrap());
        drop(send);
    });
    let heard = heard.into_inner().unwrap();
    let mut counts = BTreeMap::new();
    for (_, answer) in &heard {
        assert!(answers.contains(answer), "{answer:?} is of neither bundle");
        *counts.entry(answer == &answers[1]).or_insert(0) += 1;
    }
    assert_eq!(heard.len(), done.into_inner());
    assert!(
        counts.len() == 2 && heard.len() >= 2 * REQUESTS,
        "{counts:?}"
    );
    // What was asked behind the install is answered by the new bundle.
    let last = heard.iter().map(|(request, _)| request).max().unwrap() + 1 - REQUESTS;
    let late = heard.iter().filter(|(request, _)| *request >= last);
    assert!(
        late.into_iter().all(|(_, answer)| answer == &answers[1]),
        "{counts:?}"
    );
}

#[test]
fn a_session_follows_the_store_without_losing_its_place() {
    let scene = Scene::new();
    scene.installed("old");
    let mut session = scene.session();
    let mut follower = Follower::new(scene.store(), scene.trust());
    let served = follower.follow(&mut session).unwrap();
    let (handle, id) = served[0].loaded.unwrap();
    assert_eq!((served.len(), id), (1, id_of(&scene.at("old"))));
    session.activate(handle).unwrap();
    assert_eq!(said(&mut session), scene.answer_of("old"));
    assert!(follower.follow(&mut session).unwrap().is_empty());
    scene.installed("new");
    assert_eq!(said(&mut session), scene.answer_of("old"), "until it looks");
    let served = follower.follow(&mut session).unwrap();
    assert_eq!(served[0].loaded, Some((handle, id_of(&scene.at("new")))));
    assert_eq!(said(&mut session), scene.answer_of("new"));
}

/// A program that answers lines of a pipe with what the store has active.
struct Answering {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Answering {
    fn start(scene: &Scene, more: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        let [base, trust, store] = ["x.base", "trust", "store"].map(|name| scene.at(name));
        command.args(["run", "--json", "--base"]).arg(base);
        command.arg("--trust").arg(trust).arg("--store").arg(store);
        command.args(more);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn ask(&mut self) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{TEXT}\n").as_bytes()).unwrap();
    }

    /// The label and the bits of its score that the next line is answered with.
    fn answer(&mut self) -> (String, u32) {
        self.ask();
        let line = self.lines.next().unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        let score = line["score"].as_f64().unwrap() as f32;
        (line["label"].as_str().unwrap().to_owned(), score.to_bits())
    }

    /// The exit code, and what it said to people.
    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }
}

#[test]
fn a_program_that_waits_for_its_next_line_takes_over_what_is_installed() {
    let scene = Scene::new();
    scene.installed("old");
    let mut program = Answering::start(&scene, &[]);
    assert_eq!(program.answer(), scene.answer_of("old"));
    scene.installed("new");
    assert_eq!(program.answer(), scene.answer_of("new"));
    assert_eq!(program.answer(), scene.answer_of("new"));
    let (code, _) = scene.verb(&["rollback", "intent"]);
    assert_eq!(code, 0);
    assert_eq!(program.answer(), scene.answer_of("old"));
    let (code, said) = program.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_program_that_waits_goes_on_where_the_new_bundle_was_changed_and_ends_where_the_store_is_gone()
{
    let scene = Scene::new();
    scene.installed("old");
    let mut program = Answering::start(&scene, &["--task", "intent"]);
    assert_eq!(program.answer(), scene.answer_of("old"));
    scene.installed("new");
    let new = id_of(&scene.at("new"));
    let file = scene.at(&format!("store/bundles/{new}.preface"));
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(program.answer(), scene.answer_of("old"));
    fs::write(scene.at("store/state.0"), "").unwrap();
    fs::write(scene.at("store/state.1"), "").unwrap();
    program.ask();
    let (code, said) = program.end();
    assert_eq!(code, Some(2), "{said}");
    let old = id_of(&scene.at("old"));
    assert!(
        said.contains(&format!("bundle {new} is not used")),
        "{said}"
    );
    assert!(
        said.contains(&format!("task intent: bundle {old} serves")),
        "{said}"
    );
    assert!(said.contains("gone or damaged"), "{said}");
}

/// Nobody installs anything: a revocation must not wait for the next bundle, which may never come.
#[test]
fn a_bundle_that_is_revoked_while_a_program_serves_it_answers_nothing_more() {
    let scene = Scene::new();
    scene.installed("old");
    let mut session = scene.session();
    let mut follower = Follower::new(scene.store(), scene.trust());
    follower.follow(&mut session).unwrap();
    let revoked = id_of(&scene.at("new")).to_string();
    scene.installed("new");
    let served = follower.follow(&mut session).unwrap();
    assert_eq!(served[0].loaded.unwrap().1.to_string(), revoked);
    let trust = scene.text("trust");
    good(&["trust", "revoke", &trust, "--bundle", &revoked]);
    let served = follower.follow(&mut session).unwrap();
    let (handle, id) = served[0].loaded.unwrap();
    assert_eq!(id, id_of(&scene.at("old")));
    assert!(
        served[0].notes[0].to_string().contains("revoke"),
        "{served:?}"
    );
    session.activate(handle).unwrap();
    assert_eq!(said(&mut session), scene.answer_of("old"));
    assert!(follower.follow(&mut session).unwrap().is_empty());
    // The session itself gives no answer by a task of which no bundle is left, whoever asks it.
    let last = id_of(&scene.at("old")).to_string();
    good(&["trust", "revoke", &trust, "--bundle", &last]);
    let served = follower.follow(&mut session).unwrap();
    assert!(served[0].loaded.is_none(), "{served:?}");
    let asked = session.answer_encoded(&Encoded::of_ids(&IDS)).map(|_| ());
    let again = session.activate(handle);
    for refused in [asked, again] {
        assert!(
            matches!(refused, Err(Error::Withdrawn { .. })),
            "{refused:?}"
        );
    }
    scene.pack(4, 4, "third");
    scene.installed("third");
    let served = follower.follow(&mut session).unwrap();
    assert_eq!(served[0].loaded.unwrap().0, handle);
    assert_eq!(said(&mut session), scene.answer_of("third"));
    // A trust store that everybody can write is none.
    let open = |mode| fs::set_permissions(&trust, Permissions::from_mode(mode)).unwrap();
    open(0o666);
    assert!(follower.follow(&mut session).is_err());
    open(0o644);
    assert!(follower.follow(&mut session).unwrap().is_empty());
}

#[test]
fn a_program_that_waits_ends_where_all_of_its_bundles_are_revoked() {
    let scene = Scene::new();
    scene.installed("old");
    let mut program = Answering::start(&scene, &[]);
    assert_eq!(program.answer(), scene.answer_of("old"));
    let (trust, id) = (scene.text("trust"), id_of(&scene.at("old")).to_string());
    good(&["trust", "revoke", &trust, "--bundle", &id]);
    program.ask();
    let (code, said) = program.end();
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("no task of") && said.contains("revoked"),
        "{said}"
    );
}
