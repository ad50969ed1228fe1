//! The memory ceiling that is said at open holds: with no more address space than that, the longest text is answered, and
//! with clearly less nothing is answered and the program says why.

#![allow(clippy::unwrap_used)]

#[path = "support/scene.rs"]
#[allow(dead_code)]
mod scene;
mod support;

use std::process::{Command, Output};

use preface_graph::{Base, FormKind};
use preface_trainer::form::Form;
use scene::{Scene, preface};
use serde_json::{Value, json};
use support::{adapters::adapter, base_folder};

/// Address space beside the ceiling: stacks, and what the heap cannot use between its blocks.
const MARGIN_BYTES: u64 = 4 << 20;

#[test]
fn the_longest_text_is_answered_within_the_ceiling() {
    let folder = base_folder();
    let base = Base::open(&folder).unwrap();
    let scene = Scene::new(&folder, "f32");
    let form = Form::of(FormKind::KeyValues, 32, &base.description);
    let bundle = scene.packed(&adapter(&base, &form, json!({})), "t", &[]);
    let (image, trust) = (scene.at("x.base"), scene.at("trust"));
    let files = ["--base", &image, "--bundle", &bundle, "--trust", &trust];
    let bench = ["bench", "--runs", "1", "--processes", "1"];
    let measured = preface(&[&bench[..], &files, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let ceiling = report["ceiling_bytes"].as_u64().unwrap();
    let mapped = report["image_bytes"].as_u64().unwrap();
    let longest = vec!["light"; base.description.max_positions.unwrap() - 2].join(" ");
    let run = [&["run"][..], &files, &[&longest]].concat();
    let own = least_bytes(&["--version"]);

    let answered = limited(own + mapped + ceiling + MARGIN_BYTES, &run);
    let said = String::from_utf8_lossy(&answered.stderr);
    assert!(answered.status.success(), "{said}");
    assert!(said.contains("memory: at most"), "{said}");

    let ids = [&bench[..], &files, &["--ids"]].concat();
    for (bytes, arguments) in [
        (own + mapped / 2, &run),
        (own + mapped + ceiling / 4, &ids),
        (own + mapped + ceiling / 4, &run),
    ] {
        let refused = limited(bytes, arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && refused.stdout.is_empty());
        // The tokenizer's memory is asked for in ways that end the process.
        let aborted = bytes > own + mapped && arguments == &run && refused.status.code().is_none();
        assert!(
            refused.status.code() == Some(2) || aborted,
            "{bytes}: {said}"
        );
        assert!(said.contains("memory"), "{bytes}: {said}");
    }
}

/// The least address space in which the program does what it is told, to a mebibyte.
fn least_bytes(arguments: &[&str]) -> u64 {
    let (mut little, mut enough) = (0, 1 << 10);
    while enough - little > 1 {
        let middle: u64 = (little + enough) / 2;
        match limited(middle << 20, arguments).status.success() {
            true => enough = middle,
            false => little = middle,
        }
    }
    enough << 20
}

/// Runs the program with so many bytes of address space.
fn limited(bytes: u64, arguments: &[&str]) -> Output {
    let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", bytes >> 10);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_preface")])
        .args(arguments);
    command.output().unwrap()
}
