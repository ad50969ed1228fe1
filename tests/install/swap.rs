//! Installs beside each other, and beside requests that are in flight.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use preface_runtime::store::Follower;

use crate::scene::{PROGRAM, Scene, id_of, reported, said};

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
