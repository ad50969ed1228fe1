//! A folder with an adapter, keys, a trust store and a bundle, all made by the program but the adapter.

#![allow(dead_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use preface_bundle::{Error, Frame, Id, Policy, TrustStore};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The built program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
/// Base of the adapter.
pub const BASE: Id = Id([0xab; 32]);
/// Tokenizer of the adapter.
pub const TOKENIZER: Id = Id([0xcd; 32]);
const HIDDEN: usize = 64;

/// A folder with an adapter, a key, a trust store and a bundle.
pub struct Scene {
    pub folder: TempDir,
}

impl Scene {
    /// Makes it.
    pub fn new() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write_adapter(&scene.at("adapter"));
        scene.good(&[
            "keygen",
            "--no-passphrase",
            "-o",
            "keys",
            "--name",
            "release",
        ]);
        scene.good(&["keygen", "--no-passphrase", "-o", "keys", "--name", "other"]);
        scene.good(&["trust", "new", "-o", "trust", "--key", "keys/release.pub"]);
        scene.pack("a.preface", &[]);
        scene
    }

    /// The path of a file in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .current_dir(&self.folder)
            .args(arguments)
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    /// Runs the program.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program, which does as it is told; its stdout.
    pub fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Packs the adapter as task intent, sequence 3, signed by release.
    pub fn pack(&self, name: &str, more: &[&str]) -> Vec<u8> {
        let arguments = [
            "pack",
            "adapter",
            "--task",
            "intent",
            "--sequence",
            "3",
            "--key",
            "keys/release.key",
            "-o",
            name,
        ];
        self.good(&[&arguments, more].concat());
        fs::read(self.at(name)).unwrap()
    }

    /// The bundle.
    pub fn bundle(&self) -> Vec<u8> {
        fs::read(self.at("a.preface")).unwrap()
    }

    /// Exit code and JSON of `verify`, as one who made the bundle for this base.
    pub fn verify(&self, name: &str, more: &[&str]) -> (i32, Value) {
        let (base, tokenizer) = (BASE.to_string(), TOKENIZER.to_string());
        let arguments = [
            "verify",
            name,
            "--trust",
            "trust",
            "--base-id",
            &base,
            "--tokenizer-id",
            &tokenizer,
        ];
        self.verify_with(&[&arguments, more].concat())
    }

    /// Exit code and JSON of a `verify`.
    pub fn verify_with(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.run(&[arguments, &["--json"]].concat());
        let code = output.status.code().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stderr)));
        assert_eq!(report["exit_code"], code, "{report}");
        assert_eq!(report["verified"], code == 0, "{report}");
        if code != 0 {
            let message = report["message"].as_str().unwrap();
            assert!(
                text(&output.stderr).contains(message),
                "the sentence is for people too"
            );
        }
        (code, report)
    }

    /// Exit code and JSON of `verify` for a file of these bytes.
    pub fn verify_bytes(&self, bytes: &[u8]) -> (i32, Value) {
        fs::write(self.at("changed.preface"), bytes).unwrap();
        self.verify("changed.preface", &[])
    }

    /// The library's answer to the same question.
    pub fn verify_here(&self, file: &[u8]) -> Result<(), Error> {
        let text = fs::read_to_string(self.at("trust")).unwrap();
        let store = TrustStore::parse(&text)?;
        let policy = Policy::for_base(BASE, TOKENIZER);
        let admitted = Frame::parse(file)?.authenticate(&store)?.admit(&policy)?;
        let decoded = preface_runtime::bundle::decode(&admitted)?;
        admitted.open(&decoded).map(|_| ())
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The file with one bit changed.
pub fn flipped(file: &[u8], bit: usize) -> Vec<u8> {
    let mut file = file.to_vec();
    file[bit / 8] ^= 1 << (bit % 8);
    file
}

/// The result of one check of a report.
pub fn check<'a>(report: &'a Value, name: &str) -> &'a str {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap();
    check["result"].as_str().unwrap()
}

/// An adapter as the trainer leaves it, with made-up numbers.
pub fn write_adapter(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let description = json!({
        "format": 1, "method": "prompt-tuning",
        "form": {"kind": "embeddings", "tokens": 4, "hidden": HIDDEN},
        "head": {"kind": "linear", "classes": 3, "hidden": HIDDEN},
        "labels": ["on", "off", "dim"], "template": "{text}", "pooling": "mean",
        "positions": "after-prompt",
        "base_id": BASE.to_string(), "tokenizer_id": TOKENIZER.to_string(),
        "probes": [{"ids": [101, 7, 102], "label": 2}],
        "metrics": {"dev_accuracy": 0.9375}, "receipt": {"seed": 1, "epochs": 30},
        "token_budget": {"prompt": 4, "longest": 31, "typical": 9, "positions": 512},
    });
    fs::write(folder.join("preface.json"), description.to_string()).unwrap();
    let tensors = [
        ("base_model.classifier.bias", vec![3]),
        ("base_model.classifier.weight", vec![3, HIDDEN]),
        ("prompt_embeddings", vec![4, HIDDEN]),
    ];
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let begin = data.len();
        for number in 0..shape.iter().product() {
            data.extend(((number as f32) * 0.7).sin().to_le_bytes());
        }
        header.insert(
            name.into(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let file = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &data,
    ]
    .concat();
    fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
}
