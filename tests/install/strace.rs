//! The program under strace, which fails or kills it at a system call.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use crate::scene::{PROGRAM, Scene, reported};

/// A system call of an install: its name, and which of those of its name it is, from 1.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    pub count: usize,
    pub line: String,
}

/// Runs the program under strace.
pub fn strace(arguments: &[&str], program: &[String]) -> Output {
    let output = Command::new("strace")
        .args(arguments)
        .arg("--")
        .arg(PROGRAM)
        .args(program)
        .output();
    output.expect("this test needs strace: apt-get install strace")
}

/// The system calls of an install, in order.
pub fn calls(scene: &Scene, install: &[String]) -> Vec<Call> {
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

/// The options that let a call fail so.
pub fn inject(call: &Call, fault: &str) -> [String; 2] {
    let Call { name, count, .. } = call;
    [
        format!("trace={name}"),
        format!("inject={name}:{fault}:when={count}"),
    ]
}
