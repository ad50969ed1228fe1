//! `train --budget` as a person types it: the table, the choice, and a search that was interrupted.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
const BASE: &str = "optimum_bert_feat";
const BUDGET: u64 = 1600;

fn preface(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Made-up texts of the small exports' words: the label is that of the one word below w20.
fn data(path: &Path, count: usize) {
    let line = |at: usize| {
        let word = |place: usize| format!("w{}", 20 + (at * 31 + place * 17) % 70);
        let (label, telling) = (at % 2, format!("w{}", 4 + at % 2 * 8 + at / 2 % 8));
        let label = ["first", "second"][label];
        format!(
            "{{\"text\": \"{} {} {telling} {}\", \"label\": \"{label}\"}}\n",
            word(0),
            word(1),
            word(2)
        )
    };
    fs::write(path, (0..count).map(line).collect::<String>()).unwrap();
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("search.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_search_tells_its_table_keeps_to_the_budget_and_resumes() {
    let Some(exports) = support::exports() else {
        return support::skip("the shared folder with small exports");
    };
    let base = exports.iter().find(|export| export.name == BASE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (train, dev, out) = (
        folder.path().join("train.jsonl"),
        folder.path().join("dev.jsonl"),
        folder.path().join("out"),
    );
    data(&train, 64);
    data(&dev, 32);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, train, dev, adapter) = (path(base.folder()), path(&train), path(&dev), path(&out));
    let search = |more: &[&str]| {
        let arguments = [
            "train",
            "--json",
            "--base",
            &base,
            "--train",
            &train,
            "--dev",
            &dev,
            "--test",
            &dev,
            "--epochs",
            "9",
            "--seeds",
            "2",
            "--threads",
            "1",
            "-o",
            &adapter,
        ];
        preface(&[&arguments, more].concat())
    };

    let refused = search(&["--budget", "500"]);
    assert_eq!(refused.status.code(), Some(2));
    let error = text(&refused.stderr);
    assert!(
        error.contains("no design fits 500 bytes") && error.contains("--budget "),
        "{error}"
    );

    let output = search(&["--budget", &BUDGET.to_string(), "--tokens", "2"]);
    let found: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    let table = found["search"]["table"].as_array().unwrap();
    let chosen: Vec<&Value> = table.iter().filter(|row| row["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1, "{found}");
    assert_eq!(found["method"], chosen[0]["method"]);
    assert!(
        table.len() > 2 && table.iter().all(|row| row["tokens"] == 2),
        "{found}"
    );
    assert!(table.iter().any(|row| row["pareto"] == true));
    assert_eq!(
        found["epochs"].as_u64().unwrap(),
        chosen[0]["epochs"].as_u64().unwrap()
    );
    for row in table.iter().filter(|row| row["dev"].is_number()) {
        assert!(row["bytes"].as_u64().unwrap() <= BUDGET, "{row}");
    }
    assert!(!out.join("search.partial").exists() && out.join("metrics.jsonl").exists());
    assert!(
        fs::read_to_string(out.join("report.html"))
            .unwrap()
            .contains("search: ")
    );

    let keys = folder.path().join("keys");
    let (keys, bundle) = (path(&keys), path(&folder.path().join("task.preface")));
    assert!(
        preface(&[
            "keygen",
            "--no-passphrase",
            "--name",
            "release",
            "-o",
            &keys
        ])
        .status
        .success()
    );
    let key = format!("{keys}/release.key");
    let packed = preface(&[
        "pack",
        &adapter,
        "--task",
        "task",
        "--sequence",
        "1",
        "--key",
        &key,
        "-o",
        &bundle,
    ]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    assert_eq!(
        fs::metadata(&bundle).unwrap().len(),
        chosen[0]["bytes"].as_u64().unwrap()
    );

    let before = lines(&out);
    let first = fs::read(out.join("adapter_model.safetensors")).unwrap();
    let log = fs::read_to_string(out.join("search.jsonl")).unwrap();
    let some: String = log
        .lines()
        .take(3)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(
        out.join("search.jsonl"),
        format!("{some}{{\"training\": \"cut sh"),
    )
    .unwrap();
    assert!(
        search(&["--budget", &BUDGET.to_string(), "--tokens", "2", "--resume"])
            .status
            .success()
    );
    let after = lines(&out);
    assert_eq!(after[..3], before[..3]);
    let designs = |lines: &[Value]| {
        lines
            .iter()
            .map(|line| line["trials"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(designs(&after), designs(&before));
    assert_eq!(
        fs::read(out.join("adapter_model.safetensors")).unwrap(),
        first
    );
}
