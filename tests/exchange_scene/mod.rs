//! A folder with images of the golden bases, a key and a trust store, and the golden files of PEFT.
#![allow(dead_code)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::root;

const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");

/// Where the golden files are.
pub fn golden() -> PathBuf {
    fs::canonicalize(root().join("tests/golden/peft")).unwrap()
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden().join("expected.json")).unwrap()).unwrap()
}

/// An adapter that PEFT saved, and what PEFT answers with it.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub base: String,
    pub task_type: String,
    pub texts: Vec<String>,
    /// Answers to the texts, of each of its tasks; none where it is no prompt.
    pub tasks: Vec<Value>,
    /// Logits of every word for the first of each answer, of some that are generated.
    pub first_logits: Value,
}

/// Every adapter.
pub fn cases() -> Vec<Case> {
    let expected = expected();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let case = |(name, case): (&String, &Value)| Case {
        name: name.clone(),
        base: text(&case["base"]),
        task_type: text(&case["task_type"]),
        texts: case["texts"].as_array().unwrap().iter().map(text).collect(),
        tasks: case["tasks"].as_array().cloned().unwrap_or_default(),
        first_logits: case["first_logits"].clone(),
    };
    expected["cases"]
        .as_object()
        .unwrap()
        .iter()
        .map(case)
        .collect()
}

/// The adapter of that name.
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

impl Case {
    /// Whether it can be imported.
    pub fn is_served(&self) -> bool {
        !self.tasks.is_empty()
    }

    pub fn folder(&self) -> PathBuf {
        golden().join("adapters").join(&self.name)
    }

    pub fn base_folder(&self) -> String {
        golden()
            .join("bases")
            .join(&self.base)
            .to_str()
            .unwrap()
            .to_owned()
    }
}

/// The folder.
pub struct Scene {
    folder: TempDir,
    pub labels: Vec<String>,
    /// Words of a generated text at most.
    pub generated: usize,
}

impl Scene {
    pub fn new() -> Self {
        let expected = expected();
        let labels = expected["labels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|label| label.as_str().unwrap().to_owned());
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            labels: labels.collect(),
            generated: expected["generated"].as_u64().unwrap() as usize,
        };
        scene.done(&[
            "keygen",
            "--no-passphrase",
            "-o",
            &scene.at("keys"),
            "--name",
            "k",
        ]);
        scene.done(&[
            "trust",
            "new",
            "-o",
            &scene.at("trust"),
            "--key",
            &scene.at("keys/k.pub"),
        ]);
        scene
    }

    pub fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str], lines: &str) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.folder.path());
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that refuses its arguments reads no lines.
        let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            said(&output.stderr)
        );
        said(&output.stdout)
    }

    /// The JSON object of a run that must succeed.
    pub fn good(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(arguments)).unwrap()
    }

    /// What the program says about arguments that it must refuse.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            said(&output.stdout)
        );
        said(&output.stderr)
    }

    /// Exit code and JSON object of a run, whatever becomes of it.
    pub fn reported(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.run(arguments, "");
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", said(&output.stderr)));
        (output.status.code().unwrap(), report)
    }

    /// The adapter folder of one task of a case.
    pub fn imported(&self, case: &Case, task: usize) -> String {
        let (source, output) = (case.folder(), self.at(&format!("{}-{task}", case.name)));
        let (labels, task, most) = (
            self.labels.join(","),
            task.to_string(),
            self.generated.to_string(),
        );
        let mut arguments = vec![
            "import",
            "peft",
            source.to_str().unwrap(),
            "-o",
            &output,
            "--json",
        ];
        let base = case.base_folder();
        arguments.extend(["--base", &base, "--most-tokens", &most]);
        if case.task_type.ends_with("_CLS") {
            arguments.extend(["--labels", &labels]);
        }
        if case.task_type == "SEQ_CLS" {
            arguments.push("--multi-label");
        }
        let pooler = golden().join("bases/bert/pooler.safetensors");
        if case.name.contains("pooled") {
            arguments.extend(["--pooler", pooler.to_str().unwrap()]);
        }
        if case.tasks.len() > 1 {
            arguments.extend(["--task-index", &task]);
        }
        let report = self.good(&arguments);
        assert_eq!(report["tokens"], json!(3), "{}", case.name);
        output
    }

    /// Changes what an adapter folder says about itself.
    pub fn change(&self, adapter: &str, change: impl FnOnce(&mut Value)) {
        let path = Path::new(adapter).join("preface.json");
        let mut card = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut card);
        fs::write(&path, card.to_string()).unwrap();
    }

    /// A bundle of an adapter, in full precision.
    pub fn packed(&self, adapter: &str) -> String {
        let (bundle, key) = (format!("{adapter}.preface"), self.at("keys/k.key"));
        let pack = [
            "pack",
            adapter,
            "--task",
            "t",
            "--sequence",
            "1",
            "--dtype",
            "f32",
        ];
        self.done(&[&pack[..], &["--key", &key, "-o", &bundle]].concat());
        bundle
    }

    /// The base image of a case.
    pub fn image(&self, case: &Case) -> String {
        let image = self.at(&format!("{}.base", case.base));
        if !Path::new(&image).exists() {
            self.done(&["compile", &case.base_folder(), "-o", &image]);
        }
        image
    }

    /// The runtime's answers to the texts of a case.
    pub fn answers(&self, case: &Case, bundle: &str) -> Vec<Value> {
        self.answers_on(&self.image(case), bundle, &case.texts)
    }

    /// The runtime's answers to lines.
    pub fn answers_on(&self, image: &str, bundle: &str, lines: &[String]) -> Vec<Value> {
        let run = [
            "run",
            "--json",
            "--base",
            image,
            "--bundle",
            bundle,
            "--trust",
            &self.at("trust"),
        ];
        let output = self.run(&run, &format!("{}\n", lines.join("\n")));
        assert!(
            output.status.success(),
            "{bundle}: {}",
            said(&output.stderr)
        );
        said(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Where an adapter or a bundle was exported to.
    pub fn exported(&self, case: &Case, source: &str, format: &str) -> String {
        let output = format!("{source}.{format}");
        let (base, trust) = (case.base_folder(), self.at("trust"));
        let report = self.good(&[
            "export", format, source, "--base", &base, "--trust", &trust, "-o", &output, "--json",
        ]);
        assert!(
            report["differences"].as_array().is_none_or(Vec::is_empty),
            "{report}"
        );
        output
    }

    /// A copy of a golden adapter that may be changed.
    pub fn copy(&self, case: &Case) -> String {
        let folder = self.at("copy");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(case.folder().join(name), Path::new(&folder).join(name)).unwrap();
        }
        folder
    }

    /// A numpy file of this shape, as Python writes it.
    pub fn npy(&self, shape: &str, kind: &str, values: &[f32]) -> String {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        let mut bytes = [&b"\x93NUMPY\x01\x00\x76\x00"[..], header.as_bytes()].concat();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let path = self.at("prompt.npy");
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// What was printed.
pub fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
