//! Weights in fewer bits as a person meets them: what they cost is measured, what cannot have them says why, and older images
//! are refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use preface_graph::{Base, FormKind};
use preface_trainer::form::Form;
use serde_json::{Value, json};
use support::{
    Export,
    adapters::adapter,
    base_folder,
    program::{done, json_of, said},
    skip,
};

/// An image, a task on it and whom it is signed by.
struct Scene {
    folder: tempfile::TempDir,
    base: String,
}

impl Scene {
    fn new(base: &Path) -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            base: base.to_str().unwrap().to_owned(),
        };
        let base = Base::open(base).unwrap();
        let form = Form::of(FormKind::Embeddings, 3, &base.description);
        let adapter = adapter(&base, &form, json!({}));
        adapter.write(Path::new(&scene.at("adapter"))).unwrap();
        let (keys, trust, bundle) = (scene.at("keys"), scene.at("trust"), scene.at("x.preface"));
        done(&preface(&[
            "keygen",
            "--no-passphrase",
            "-o",
            &keys,
            "--name",
            "k",
        ]));
        let (key, public) = (scene.at("keys/k.key"), scene.at("keys/k.pub"));
        done(&preface(&["trust", "new", "-o", &trust, "--key", &public]));
        let pack = [
            "pack",
            &scene.at("adapter"),
            "--task",
            "x",
            "--sequence",
            "1",
        ];
        done(&preface(
            &[&pack[..], &["--key", &key, "-o", &bundle]].concat(),
        ));
        scene
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn compile(&self, more: &[&str]) -> Output {
        let image = self.at("x.base");
        preface(&[&["compile", "--json", &self.base, "-o", &image], more].concat())
    }

    /// A file of texts, each with the label that the image gives it.
    fn data(&self, texts: impl Iterator<Item = String>) -> String {
        let [image, bundle, trust] = ["x.base", "x.preface", "trust"].map(|name| self.at(name));
        let texts: Vec<String> = texts.collect();
        let run = [
            "run", "--json", "--base", &image, "--bundle", &bundle, "--trust", &trust,
        ];
        let texts_file = self.at("texts");
        fs::write(&texts_file, texts.join("\n")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
        let output = command
            .args(run)
            .stdin(fs::File::open(&texts_file).unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8(done(&output).stdout.clone()).unwrap();
        let labelled = said.lines().zip(&texts).map(|(answer, text)| {
            let answer: Value = serde_json::from_str(answer).unwrap();
            json!({"text": text, "label": answer["label"]}).to_string()
        });
        let data = self.at("data.jsonl");
        fs::write(&data, labelled.collect::<Vec<_>>().join("\n")).unwrap();
        data
    }
}

fn preface(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
    command.args(arguments).output().unwrap()
}

fn decoder() -> Option<Export> {
    support::export("gpt2.sdpa.legacy.op17.onnx")
}

#[test]
fn an_image_says_how_its_weights_are_stored_and_becomes_smaller() {
    let scene = Scene::new(&base_folder());
    let mut sizes = Vec::new();
    for weights in ["f32", "f16", "i8", "i8a8", "i4"] {
        let compiled = json_of(done(&scene.compile(&["--weights", weights])));
        assert_eq!(compiled["weights"], weights);
        let inspected = json_of(done(&preface(&["inspect", "--json", &scene.at("x.base")])));
        assert_eq!(
            (&inspected["weights"], &inspected["engine"]),
            (&json!(weights), &json!("executor"))
        );
        done(&preface(&["verify", &scene.at("x.base")]));
        sizes.push(compiled["bytes"].as_u64().unwrap() as f64);
    }
    for (bytes, most) in sizes.iter().zip([1.0, 0.52, 0.28, 0.28, 0.23]) {
        assert!(bytes / sizes[0] <= most, "{sizes:?}");
    }
}

#[test]
fn the_plan_reads_no_weights_in_fewer_bits() {
    let Some(export) = decoder() else {
        return skip("the exports of ../shared");
    };
    let scene = Scene::new(export.folder());
    let output = scene.compile(&["--weights", "i8", "--engine", "plan"]);
    assert_eq!(output.status.code(), Some(2));
    for part in [
        "weights in i8",
        "the plan was asked for",
        "leave --weights i8 away",
    ] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    assert!(!Path::new(&scene.at("x.base")).exists());
}

#[test]
fn what_weights_cost_is_measured_and_too_much_leaves_the_older_image() {
    let Some(export) = support::export("stories260K_model") else {
        return skip("the exports of ../shared");
    };
    let scene = Scene::new(export.folder());
    done(&scene.compile(&[]));
    let words = [
        "once", "upon", "a", "time", "the", "dog", "was", "happy", "and", "ran", "home",
    ];
    let texts = (0..150).map(|index| {
        let words = [1, 3, 7].map(|step| words[(index * step + index / 11) % words.len()]);
        words.join(" ")
    });
    let data = scene.data(texts);
    let older = fs::read(scene.at("x.base")).unwrap();
    let pair = format!("{}={data}", scene.at("x.preface"));
    let trust = scene.at("trust");
    let evaluate = ["--evaluate", &pair, "--trust", &trust];
    let with = |more: &[&str]| scene.compile(&[&evaluate[..], more].concat());

    let output = with(&["--weights", "i4", "--max-loss", "0"]);
    let report = json_of(&output);
    let loss = &report["evaluation"][0];
    assert_eq!(
        (&loss["task"], &loss["f32"]),
        (&json!("x"), &json!(1.0)),
        "{report}"
    );
    assert!(loss["loss_points"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(
        (output.status.code(), &report["kept"]),
        (Some(1), &json!(false))
    );
    assert!(said(&output).contains("is not written: more than 0 points are lost by x"));
    assert_eq!(fs::read(scene.at("x.base")).unwrap(), older);

    let report = json_of(done(&with(&["--weights", "f16", "--max-loss", "5"])));
    assert_eq!(
        (&report["kept"], &report["weights"]),
        (&json!(true), &json!("f16"))
    );
    assert_eq!(report["f32_bytes"], older.len());
    assert!(report["bytes"].as_u64().unwrap() < older.len() as u64);
    assert_eq!(report["evaluation"][0]["examples"], 150);
    let written = fs::metadata(scene.at("x.base")).unwrap().len();
    assert_eq!(report["bytes"], written);

    let report = json_of(done(&with(&["--max-loss", "0"])));
    assert_eq!(report["evaluation"][0]["loss_points"], 0.0);
    let names = fs::read_dir(&scene.folder).unwrap();
    let partial = names.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".partial")
    });
    assert_eq!(partial.count(), 0);
}

#[test]
fn an_image_of_the_older_format_is_refused_with_the_command_that_rebuilds_it() {
    let Some(export) = decoder() else {
        return skip("the exports of ../shared");
    };
    let scene = Scene::new(export.folder());
    done(&scene.compile(&[]));
    let path = scene.at("x.base");
    let mut bytes = fs::read(&path).unwrap();
    let version = bytes.windows(4).position(|part| part == b"v006").unwrap();
    bytes[version..version + 4].copy_from_slice(b"v003");
    fs::write(&path, bytes).unwrap();
    let output = preface(&["inspect", &path]);
    assert_eq!(output.status.code(), Some(2));
    let rebuild = format!("preface compile BASE -o {path}");
    for part in ["image format v003", "reads v006", &rebuild] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
}
