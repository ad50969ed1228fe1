//! What a prompt gives away: `pack` and `inspect` say which tokens it is near to, and warn where it spells training text.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use preface_graph::{Base, FormKind};
use preface_trainer::{adapter::Adapter, form::Form, tokens::Tokens};
use serde_json::{Value, json};
use support::{
    adapters::adapter,
    base_folder,
    program::{done, json_of, said},
    small_task,
};

/// A base, the files of a small task, and adapters for them.
struct Scene {
    folder: tempfile::TempDir,
    base: String,
    train: String,
    /// A text of the training file.
    text: String,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (train, _) = small_task(folder.path());
        let examples = train.examples.into_iter().map(|example| example.text);
        Self {
            base: base_folder().to_str().unwrap().to_owned(),
            train: train.path.to_str().unwrap().to_owned(),
            text: examples.max_by_key(String::len).unwrap(),
            folder,
        }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, name: &str, more: &[&str]) {
        let (dev, folder) = (self.at("dev.jsonl"), self.at(name));
        let train = ["train", "--base", &self.base, "--train", &self.train];
        let train = [&train[..], &["--dev", &dev, "--no-advice", "-o", &folder]].concat();
        done(&preface(&[&train[..], more].concat()));
    }

    /// `inspect` of an adapter in the base's vocabulary, and beside the training file.
    fn inspect(&self, name: &str) -> (Value, String) {
        let folder = self.at(name);
        let with = ["--base", &self.base, "--train", &self.train];
        let output = preface(&[&["inspect", "--json", &folder], &with[..]].concat());
        (json_of(done(&output)), said(&output))
    }

    fn warnings(&self, name: &str) -> Vec<String> {
        let (report, said) = self.inspect(name);
        let warnings = report["reading"]["warnings"].as_array().unwrap().iter();
        let warnings: Vec<String> = warnings
            .map(|warning| warning.as_str().unwrap().to_owned())
            .collect();
        for warning in &warnings {
            assert!(
                said.contains(&format!("preface: warning: {warning}")),
                "{said}"
            );
        }
        assert_eq!(said.contains("warning"), !warnings.is_empty(), "{said}");
        warnings
    }
}

fn preface(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
    command.args(arguments).output().unwrap()
}

#[test]
fn a_prompt_that_started_from_a_training_text_and_hardly_moved_warns_and_a_trained_one_does_not() {
    let scene = Scene::new();
    let start = format!("text:{}", scene.text);
    scene.train(
        "leaking",
        &["--init", &start, "--learning-rate", "1e-4", "--epochs", "1"],
    );
    let warnings = scene.warnings("leaking");
    let [near, spelled] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    assert!(
        near.starts_with("8 of 8 vectors are tokens all but exactly"),
        "{near}"
    );
    assert!(spelled.starts_with("vectors 1 to 8 spell \""), "{spelled}");
    let letters = |text: &str| {
        let letters = text.chars().filter(|letter| letter.is_alphanumeric());
        letters.collect::<String>().to_lowercase()
    };
    let read = letters(spelled.split('"').nth(1).unwrap());
    assert!(
        letters(&scene.text).starts_with(&read) && read.len() > 20,
        "{spelled}"
    );
    assert!(
        spelled.contains("train.jsonl: whoever has the bundle reads them"),
        "{spelled}"
    );

    scene.train("ordinary", &["--epochs", "4"]);
    assert!(scene.warnings("ordinary").is_empty());

    // The same is said where a bundle is made, and once without the training file.
    let [folder, bundle] = ["leaking", "x.preface"].map(|name| scene.at(name));
    let pack = ["pack", "--json", &folder, "--task", "x", "--sequence", "1"];
    let pack = [
        &pack[..],
        &["--unsigned", "-o", &bundle, "--base", &scene.base],
    ]
    .concat();
    let with = [&pack[..], &["--train", &scene.train]].concat();
    for (arguments, count) in [(with, 2), (pack, 1)] {
        let output = preface(&arguments);
        let report = json_of(done(&output));
        let reading = &report["reading"];
        assert_eq!(reading["warnings"].as_array().unwrap().len(), count);
        assert_eq!(reading["nearest_tokens"].as_array().unwrap().len(), 8);
        assert_eq!(said(&output).matches("preface: warning: ").count(), count);
    }
    // An image has the vocabulary too, also in fewer bits.
    let (cosines, image) = (scene.inspect("leaking").0, scene.at("x.base"));
    let compile = ["compile", &scene.base, "-o", &image, "--weights", "f16"];
    done(&preface(&compile));
    let by_image = preface(&[
        "inspect",
        "--json",
        &folder,
        "--base",
        &image,
        "--train",
        &scene.train,
    ]);
    let by_image = json_of(done(&by_image));
    assert_eq!(
        by_image["reading"]["warnings"],
        cosines["reading"]["warnings"]
    );
    let nearest = |report: &Value| {
        let vectors = report["reading"]["nearest_tokens"]
            .as_array()
            .unwrap()
            .clone();
        let first = vectors.iter().map(|near| near[0]["token"].clone());
        first.collect::<Vec<_>>()
    };
    assert_eq!(nearest(&by_image), nearest(&cosines));
    let other = scene.at("other.jsonl");
    fs::write(&other, r#"{"text": "nothing of it", "label": "urgent"}"#).unwrap();
    let output = preface(&["inspect", &folder, "--base", &scene.base, "--train", &other]);
    let told = said(done(&output));
    assert!(
        told.contains("is not the training file that the adapter was trained with"),
        "{told}"
    );
    assert!(!told.contains("spell"), "{told}");
}

#[test]
fn vectors_that_moved_and_still_spell_a_text_warn() {
    let scene = Scene::new();
    let base = Base::open(Path::new(&scene.base)).unwrap();
    let table = base.model.graph.as_ref().unwrap();
    let table = table
        .initializer(&base.description.embedding_table)
        .unwrap();
    let tokens = Tokens::read(&base.tokenizer)
        .unwrap()
        .plain(&scene.text)
        .unwrap();
    let form = Form::of(FormKind::Embeddings, 6, &base.description);
    let mut moved = adapter(&base, &form, json!({}));
    // Two rows of other words are before four of the text, and all are as far away as the rows are long.
    let ids = [&[2003, 2003], &tokens[1..5]].concat();
    let hidden = base.description.hidden;
    for (vector, id) in moved.prompt.tensors[0].chunks_mut(hidden).zip(&ids) {
        let row = table.row(&base.folder, *id as usize).unwrap();
        let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let scale = length(&row) / length(vector);
        vector
            .iter_mut()
            .zip(&row)
            .for_each(|(value, row)| *value = row + scale * *value);
    }
    moved.write(Path::new(&scene.at("moved"))).unwrap();
    let warnings = scene.warnings("moved");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("vectors 3 to 6 spell"),
        "{warnings:?}"
    );
    let (report, _) = scene.inspect("moved");
    let nearest = report["reading"]["nearest_tokens"].as_array().unwrap();
    assert_eq!((nearest.len(), &nearest[0][0]["token"]), (6, &json!("is")));
    let cosine = nearest[0][0]["cosine"].as_f64().unwrap();
    assert!((0.6..0.85).contains(&cosine), "{cosine}");
}

#[test]
fn keys_and_values_are_said_to_have_no_such_reading() {
    let scene = Scene::new();
    let base = Base::open(Path::new(&scene.base)).unwrap();
    let form = Form::of(FormKind::KeyValues, 2, &base.description);
    let prefix: Adapter = adapter(&base, &form, json!({}));
    prefix.write(Path::new(&scene.at("prefix"))).unwrap();
    assert!(scene.warnings("prefix").is_empty());
    let folder = scene.at("prefix");
    let output = preface(&["inspect", &folder, "--base", &scene.base]);
    let shown = String::from_utf8_lossy(&done(&output).stdout).into_owned();
    assert!(
        shown.contains("a prefix of keys and values: its vectors are near to no tokens"),
        "{shown}"
    );
    let alone = preface(&["inspect", &folder]);
    let shown = String::from_utf8_lossy(&done(&alone).stdout).into_owned();
    assert!(
        shown.contains("prefix: an adapter") && !shown.contains("tokens\n"),
        "{shown}"
    );
}
