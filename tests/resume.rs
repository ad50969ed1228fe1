//! A training that is killed, again and again, ends as one that was not; one that diverges says so and leaves its
//! checkpoint.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use preface_trainer::checkpoint::Checkpoint;
use serde_json::Value;
use support::{export, random, skip, toy_task};

const BERT: &str = "bert_base.sdpa.legacy.op17.onnx";
const EPOCHS: usize = 60;
/// Kills of one training: the first before its first epoch is over, the others after so many epochs more.
const KILLS: [usize; 6] = [0, 1, 4, 3, 6, 5];

struct Scene {
    export: support::Export,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Option<Self> {
        let Some(export) = export(BERT) else {
            skip("the exports of ../shared");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        toy_task(folder.path());
        Some(Self { export, folder })
    }

    /// The folder of an adapter: the last part of its name, which reports show, is always the same.
    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("adapter")
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
        let at = |name: &str| self.folder.path().join(name);
        command.args([
            "train",
            "--threads",
            "1",
            "--tokens",
            "2",
            "--batch",
            "4",
            "--patience",
            "0",
        ]);
        command.args(["--epochs", &EPOCHS.to_string()]);
        command.arg("--base").arg(self.export.folder());
        command
            .arg("--train")
            .arg(at("train.jsonl"))
            .arg("--dev")
            .arg(at("dev.jsonl"));
        command.arg("-o").arg(self.out(name)).args(more);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, name: &str, more: &[&str]) -> Output {
        self.command(name, more).output().unwrap()
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        self.out(name).join("checkpoint.safetensors")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of a journal without times, epochs apart from steps.
fn journal(folder: &Path) -> [Vec<Value>; 2] {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let object = line.as_object_mut().unwrap();
        object.remove("time");
        object.remove("seconds");
        line
    });
    let (epochs, steps) = lines.partition(|line| line["kind"] == "epoch");
    [epochs, steps]
}

/// The report without its time.
fn report(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("report.html")).unwrap();
    let before = "<dt>Time</dt><dd>";
    let start = text.find(before).expect("the report tells the time") + before.len();
    let end = start + text[start..].find("</dd>").unwrap();
    text[..start].to_owned() + &text[end..]
}

/// Waits until the program has `epochs` behind it, and a little longer; whether it still runs.
fn wait(child: &mut Child, checkpoint: &Path, epochs: usize, longer: Duration) -> bool {
    while epochs > 0 && Checkpoint::epoch(checkpoint).unwrap_or(0) < epochs {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(longer);
    child.try_wait().unwrap().is_none()
}

#[test]
fn a_killed_training_ends_as_one_that_was_not() {
    let Some(scene) = Scene::new() else { return };
    let mut below = random(11);
    let cases: [(&str, &[&str]); 3] = [
        ("adamw", &["--optimizer", "adamw"]),
        (
            "adafactor",
            &["--optimizer", "adafactor", "--method", "prefix-tuning"],
        ),
        (
            "candidates",
            &[
                "--seeds",
                "2",
                "--method",
                "gated-prefix-tuning",
                "--layers",
                "top:1",
            ],
        ),
    ];
    for (name, options) in cases {
        let whole = format!("{name}-whole");
        let begun = Instant::now();
        let output = scene.run(&whole, options);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let epoch_us = begun.elapsed().as_micros() as u64 / EPOCHS as u64;

        let resumed = [options, &["--resume"]].concat();
        let (mut done, mut kills) = (0, 0);
        for more in KILLS {
            let mut child = scene.command(name, &resumed).spawn().unwrap();
            let longer = Duration::from_micros(below(epoch_us));
            let runs = wait(&mut child, &scene.checkpoint(name), done + more, longer);
            child.kill().unwrap();
            child.wait().unwrap();
            kills += usize::from(runs);
            done = Checkpoint::epoch(&scene.checkpoint(name)).unwrap_or(done);
            eprintln!("{name}: killed after epoch {done} and {longer:?}");
        }
        assert!(
            kills >= 5 && done < EPOCHS,
            "{name}: {kills} kills, {done} epochs"
        );
        let output = scene.run(name, &resumed);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("going on after epoch"),
            "{}",
            text(&output.stderr)
        );

        let [left, right] = [scene.out(name), scene.out(&whole)];
        let tensors = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert!(tensors(&left) == tensors(&right), "{name}: other tensors");
        let card = |folder: &Path| fs::read_to_string(folder.join("preface.json")).unwrap();
        assert_eq!(card(&left), card(&right), "{name}");
        assert_eq!(journal(&left), journal(&right), "{name}");
        assert_eq!(report(&left), report(&right), "{name}");
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| !name.starts_with("events")).collect();
            names.sort();
            names
        };
        assert_eq!(names(&left), names(&right), "{name}");
    }
}

#[test]
fn another_training_does_not_go_on_from_a_checkpoint() {
    let Some(scene) = Scene::new() else { return };
    let mut child = scene.command("x", &[]).spawn().unwrap();
    assert!(wait(&mut child, &scene.checkpoint("x"), 1, Duration::ZERO));
    child.kill().unwrap();
    child.wait().unwrap();
    let output = scene.run("x", &["--resume", "--seed", "9"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("checkpoint.safetensors") && stderr.contains("other options, data or base"),
        "{stderr}"
    );
    let output = scene.run("x", &["--seed", "9"]);
    assert!(output.status.success() && text(&output.stderr).contains("beginning anew"));
}

#[test]
fn a_training_that_runs_away_stops_with_its_place_and_leaves_the_checkpoint() {
    let Some(scene) = Scene::new() else { return };
    let output = scene.run("at-once", &["--head-learning-rate", "1e30"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for part in ["epoch 1, step", "runs away", "smaller --learning-rate"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(!scene.out("at-once").join("preface.json").exists());

    // Every step multiplies the head by one minus rate and decay, until it is beyond all numbers.
    let late = [
        "--head-learning-rate",
        "400",
        "--weight-decay",
        "0.01",
        "--schedule",
        "constant",
        "--warm-up",
        "0",
    ];
    let output = scene.run("late", &late);
    let first = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{first}");
    let epoch = Checkpoint::epoch(&scene.checkpoint("late")).expect("a checkpoint is left");
    assert!(
        first.contains(&format!("in epoch {}, step", epoch + 1)),
        "{epoch} {first}"
    );
    let output = scene.run("late", &[&late[..], &["--resume"]].concat());
    let second = text(&output.stderr);
    assert!(
        second.contains(&format!("going on after epoch {epoch}")),
        "{second}"
    );
    let told =
        |text: &str| text[text.find("the prompt or the head runs away").unwrap()..].to_owned();
    assert_eq!(told(&first), told(&second));
}
