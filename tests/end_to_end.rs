//! `check`, `train`, `eval` and `demo` as a person types them, and what people meet when things go wrong.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use support::{base_folder, root};

const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");

fn preface(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts the exit code and that stderr holds every part.
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
}

fn lines(path: &Path, lines: &[&str]) -> String {
    fs::write(path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A folder with small data files and the arguments that train on them.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        support::small_task(folder.path());
        Self { folder }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, more: &[&str]) -> Output {
        let (base, train, dev, out) = (
            base_folder(),
            self.at("train.jsonl"),
            self.at("dev.jsonl"),
            self.at("adapter"),
        );
        let base = base.to_str().unwrap();
        let arguments = [
            "train", "--json", "--base", base, "--train", &train, "--dev", &dev, "--tokens", "2",
            "-o", &out,
        ];
        let epochs: &[&str] = match more.contains(&"--epochs") {
            true => &[],
            false => &["--epochs", "4"],
        };
        preface(&[&arguments, epochs, more].concat())
    }
}

impl Scene {
    fn eval(&self, data: &str) -> Output {
        let base = base_folder();
        let (base, adapter) = (base.to_str().unwrap(), self.at("adapter"));
        preface(&[
            "eval",
            "--json",
            "--base",
            base,
            "--adapter",
            &adapter,
            "--data",
            data,
        ])
    }
}

/// Names of the files in a folder, sorted.
fn files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn check_describes_a_base() {
    let output = preface(&["check", base_folder().to_str().unwrap(), "--json"]);
    let found = json(&output);
    assert_eq!(
        (&found["usable"], &found["kind"]),
        (&true.into(), &"encoder".into())
    );
    assert_eq!(
        (&found["layers"], &found["hidden"], &found["max_positions"]),
        (&6.into(), &384.into(), &512.into())
    );
    assert_eq!(
        found["forms"],
        serde_json::json!(["embeddings", "key-values"])
    );
    assert!(found["gradient_error"].as_f64().unwrap() < 1e-3, "{found}");
}

#[test]
fn doctor_says_what_is_missing() {
    let found = json(&preface(&["doctor", "--json"]));
    assert_eq!(found["architecture"], std::env::consts::ARCH);
    assert_eq!(found["onnxruntime"]["loaded"], true, "{found}");
    assert_eq!(found["engines"][0], "executor", "{found}");
    for bases in ["encoders", "decoders"] {
        let kernels = found["kernels"][bases].as_array().unwrap();
        assert!(!kernels.is_empty(), "{found}");
    }
    let output = preface(&["doctor", "--onnxruntime", "/nowhere/lib.so"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("ORT_DYLIB_PATH"));
}

#[test]
fn check_names_what_is_no_transformer() {
    use preface_graph::{
        builder::Builder,
        onnx::{
            GraphProto, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
        },
    };
    use prost::Message;
    let folder = tempfile::tempdir().unwrap();
    let mut graph = GraphProto {
        input: vec![ValueInfoProto::tensor(
            "ids",
            data_type::INT64,
            &["batch", "sequence"],
        )],
        initializer: vec![TensorProto::of_floats("table", &[8, 4], &[0.5; 32])],
        output: vec![ValueInfoProto::tensor(
            "y",
            data_type::FLOAT,
            &["batch", "sequence", "4"],
        )],
        ..GraphProto::default()
    };
    let mut builder = Builder::beside(&graph, "x", 17);
    builder.write("Gather", &["table", "ids"], &["rows"], &[]);
    builder.write("Relu", &["rows"], &["y"], &[]);
    builder.append_to(&mut graph);
    let set = OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(17),
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![set],
        graph: Some(graph),
        ..ModelProto::default()
    };
    fs::write(folder.path().join("model.onnx"), model.encode_to_vec()).unwrap();
    let tokenizer = fs::read(base_folder().join("tokenizer.json")).unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let output = preface(&["check", folder.path().to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = json(&output);
    assert_eq!(found["usable"], false);
    assert!(
        found["reason"]
            .as_str()
            .unwrap()
            .contains("no attention was found"),
        "{found}"
    );
    fs::write(folder.path().join("model.onnx"), "this is not ONNX").unwrap();
    refused(
        &preface(&["check", folder.path().to_str().unwrap()]),
        2,
        &["model.onnx", "is not an ONNX model"],
    );
}

#[test]
fn a_base_without_its_files_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    refused(
        &preface(&["check", path]),
        2,
        &[
            path,
            "neither model.onnx nor encoder_model.onnx with decoder_model.onnx",
        ],
    );
    fs::copy(
        base_folder().join("model.onnx"),
        folder.path().join("model.onnx"),
    )
    .unwrap();
    refused(
        &preface(&["check", path]),
        2,
        &[
            path,
            "no tokenizer.json",
            "copy the one that belongs to the model",
        ],
    );
}

#[test]
fn a_missing_libonnxruntime_says_what_to_install() {
    let base = base_folder();
    let output = preface(&[
        "check",
        base.to_str().unwrap(),
        "--onnxruntime",
        "/nowhere/libonnxruntime.so",
    ]);
    refused(
        &output,
        2,
        &[
            "/nowhere/libonnxruntime.so",
            "PyPI package onnxruntime",
            "ORT_DYLIB_PATH",
        ],
    );
}

#[test]
fn train_eval_and_repeat() {
    let scene = Scene::new();
    let test = scene.at("dev.jsonl");
    let output = scene.train(&["--test", &test, "--seed", "5"]);
    let trained = json(&output);
    assert_eq!(trained["method"], "prompt-tuning");
    assert!(
        trained["test"]["accuracy"].as_f64().unwrap() > 0.8,
        "{trained}"
    );
    let first = fs::read(scene.at("adapter/adapter_model.safetensors")).unwrap();
    let report = fs::read_to_string(scene.at("adapter/report.html")).unwrap();
    let figure = format!("{:.4}", trained["test"]["accuracy"].as_f64().unwrap());
    assert!(report.contains(&figure) && report.contains("prompt-tuning"));
    let journal = fs::read_to_string(scene.at("adapter/metrics.jsonl")).unwrap();
    let kinds = |kind: &str| {
        let lines = journal
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["kind"] == kind).count()
    };
    assert_eq!((kinds("epoch"), kinds("step")), (4, 20));
    let left = files(&scene.at("adapter"));
    assert_eq!(left.len(), 6, "{left:?}");
    assert!(left[2].starts_with("events.out.tfevents"), "{left:?}");
    assert!(
        scene
            .train(&["--test", &test, "--seed", "5"])
            .status
            .success()
    );
    assert_eq!(
        fs::read(scene.at("adapter/adapter_model.safetensors")).unwrap(),
        first
    );
    let found = json(&scene.eval(&test));
    for figure in ["accuracy", "macro_f1", "examples"] {
        assert_eq!(found[figure], trained["test"][figure], "{figure}");
    }
    assert_eq!(found["examples"], 40);
}

#[test]
fn several_seeds_give_mean_and_spread() {
    let scene = Scene::new();
    let test = scene.at("dev.jsonl");
    let more = ["--epochs", "1", "--seeds", "2", "--test", &test];
    let trained = json(&scene.train(&more));
    for part in ["dev", "test"] {
        let spread = &trained["seeds"][part];
        assert_eq!(spread["seeds"], 2, "{trained}");
        let number = |name: &str| spread[name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&number("mean")) && number("deviation") >= 0.0);
        let kept = trained[part]["accuracy"].as_f64().unwrap();
        assert!(number("mean") <= kept + 1e-9 || part == "test", "{trained}");
    }
    let candidates = files(&scene.at("adapter"));
    assert!(
        candidates.contains(&"candidate-1".to_owned()),
        "{candidates:?}"
    );
    assert_eq!(
        json(&scene.eval(&test))["accuracy"],
        trained["test"]["accuracy"]
    );
}

#[test]
fn bad_data_is_named_with_its_line() {
    let scene = Scene::new();
    let base = base_folder();
    let base = base.to_str().unwrap();
    let good = r#"{"text": "the flat is flooding", "label": "urgent"}"#;
    let long = format!(r#"{{"text": "{}", "label": "low"}}"#, "word ".repeat(600));
    let cases: [(&str, &[&str], &[&str]); 3] = [
        (
            "a.jsonl",
            &[good, r#"{"text": "thanks"}"#],
            &["a.jsonl, line 2", "no \"label\""],
        ),
        (
            "b.jsonl",
            &[good, r#"{"text": "thanks", "label": "never seen"}"#],
            &["b.jsonl, line 2", "never seen", "training data"],
        ),
        (
            "c.jsonl",
            &[good, &long],
            &[
                "c.jsonl, line 2",
                "602 tokens",
                "room for 510",
                "--truncate",
            ],
        ),
    ];
    for (name, content, parts) in cases {
        let file = lines(&scene.folder.path().join(name), content);
        let output = scene.train(&["--test", &file]);
        refused(&output, 2, parts);
        assert!(
            !Path::new(&scene.at("adapter/preface.json")).exists(),
            "{name}"
        );
    }
    let file = scene.at("c.jsonl");
    assert!(
        scene
            .train(&["--test", &file, "--truncate"])
            .status
            .success()
    );
    let other = [
        "train", "--base", base, "--train", &file, "--dev", &file, "--method", "no-such", "-o", "x",
    ];
    refused(&preface(&other), 2, &["no method no-such", "prompt-tuning"]);
}

/// The file size limit of the shell stands in for a full disk.
#[test]
fn a_full_disk_leaves_no_half_written_file() {
    let scene = Scene::new();
    let base = base_folder();
    let line = format!(
        "trap '' XFSZ; ulimit -f 1; exec {PROGRAM} train --base '{}' --train '{}' --dev '{}' --epochs 1 --tokens 4 -o '{}'",
        base.display(),
        scene.at("train.jsonl"),
        scene.at("dev.jsonl"),
        scene.at("adapter")
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    refused(
        &output,
        2,
        &["cannot write", "checkpoint.safetensors", "free some space"],
    );
    let left = files(&scene.at("adapter"));
    let whole = |name: &String| name == "metrics.jsonl" || name.starts_with("events");
    assert!(left.iter().all(whole), "{left:?}");
}

/// The whole way, as `make demo` goes it, from what `out/demo` has already; both tasks must hold on the runtime what
/// they hold through ONNX Runtime.
#[test]
fn demo_ends_with_its_table() {
    let base = base_folder();
    let out = root().join("out/demo");
    let output = preface(&[
        "demo",
        "--json",
        "--base",
        base.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    let rows = json(&output);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let number = |name: &str| {
            row[name]
                .as_f64()
                .unwrap_or_else(|| panic!("no {name} in {row}"))
        };
        assert!(number("accuracy_f32") > 0.8, "{row}");
        assert!(
            (number("accuracy_f32") - number("accuracy_bundle")).abs() <= 0.01,
            "{row}"
        );
        assert!(
            number("accuracy_bundle") > number("majority") + 0.3,
            "{row}"
        );
        assert!(
            number("bundle_bytes") < 12_000.0 && number("swap_us") < 100.0,
            "{row}"
        );
    }
}
