//! `pack --max-loss` as a person types it: the smallest encoding that loses little enough on the runtime, of every kind of
//! answer.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/scene.rs"]
#[allow(dead_code)]
mod scene;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use preface_graph::{Base, FormKind};
use preface_trainer::{adapter::Adapter, form::Form};
use scene::Scene;
use serde_json::{Value, json};
use support::{
    Export,
    adapters::adapter,
    base_folder,
    program::{done, json_of, said},
    random, skip,
};

/// A small decoder with a scene around it.
struct Decoder {
    export: Export,
    base: Base,
    scene: Scene,
}

impl Decoder {
    fn new() -> Option<Self> {
        let export = support::export("stories260K_model")?;
        Some(Self {
            base: Base::open(export.folder()).unwrap(),
            scene: Scene::new(export.folder(), "f32"),
            export,
        })
    }

    fn adapter(&self, kind: FormKind, changes: Value) -> Adapter {
        let form = Form::of(kind, 4, &self.base.description);
        adapter(&self.base, &form, changes)
    }

    /// Texts with the answers that the bundle of the adapter in f32 gives them, as a data file.
    fn data(&self, adapter: &Adapter, answer: &str, pairs: bool) -> String {
        let bundle = self.scene.packed(adapter, "exact", &["--dtype", "f32"]);
        let words = ["once", "upon", "time", "the", "dog", "was", "happy", "ran"];
        let count = if answer == "text" { 24 } else { 120 };
        let texts = (0..count).map(|index: usize| {
            let words = [1, 3, 7].map(|step| words[(index * step + index / 11) % words.len()]);
            words.join(" ")
        });
        let texts: Vec<String> = texts.collect();
        let lines = texts.iter().map(|text| match pairs {
            true => format!("{text}\tthe dog"),
            false => text.clone(),
        });
        let lines = self.write("lines", &lines.collect::<Vec<_>>().join("\n"));
        let mut run = self.on_bundle("run", &bundle);
        let output = run.stdin(fs::File::open(lines).unwrap()).output().unwrap();
        let said = String::from_utf8(done(&output).stdout.clone()).unwrap();
        let examples = said.lines().zip(&texts).map(|(said, text)| {
            let said: Value = serde_json::from_str(said).unwrap();
            let right = &said[answer];
            let mut example = json!({"text": text});
            match answer {
                "tags" => {
                    let words: Vec<&str> = text.split(' ').collect();
                    example = json!({"tokens": words, "tags": right});
                }
                "text" => example["target"] = right.clone(),
                _ => example[answer] = right.clone(),
            }
            if pairs {
                example["text2"] = "the dog".into();
            }
            example.to_string()
        });
        self.write("dev.jsonl", &examples.collect::<Vec<_>>().join("\n"))
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.scene.at(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A verb on the image and a bundle.
    fn on_bundle(&self, verb: &str, bundle: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
        let (image, trust) = (self.scene.at("x.base"), self.scene.at("trust"));
        command.args([verb, "--json", "--base", &image, "--bundle", bundle]);
        command.args(["--trust", &trust]);
        command
    }

    /// `pack` of the adapter that was written last.
    fn pack(&self, base: &str, more: &[&str]) -> Output {
        let [folder, key, bundle] = ["adapter", "keys/k.key", "packed"].map(|at| self.scene.at(at));
        let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
        command.args(["pack", "--json", &folder, "--base", base, "--key", &key]);
        command.args(["--task", "x", "--sequence", "1", "-o", &bundle]);
        command.args(more).output().unwrap()
    }

    /// What `eval` finds for a bundle.
    fn figure(&self, bundle: &str, data: &str, figure: &str) -> f64 {
        let mut eval = self.on_bundle("eval", bundle);
        let output = eval.args(["--data", data]).output().unwrap();
        json_of(done(&output))[figure].as_f64().unwrap()
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_smallest_encoding_within_the_loss_is_taken_for_every_kind_of_answer() {
    let Some(decoder) = Decoder::new() else {
        return skip("the models of ../shared");
    };
    let hidden = decoder.base.description.hidden;
    let several = json!({"answer": {"kind": "labels", "threshold": 0.3}});
    let tags = json!({"head": {"kind": "token-linear", "classes": 3, "hidden": hidden}, "answer": {"kind": "tags"},
                      "labels": ["O", "B-x", "B-y"]});
    let factored =
        json!({"head": {"kind": "factored-linear", "classes": 3, "hidden": hidden, "rank": 2}});
    let words = json!({"head": {"kind": "verbaliser", "classes": 3, "hidden": 0}, "pooling": "last",
                       "verbaliser": [[5], [300, 310], [400]]});
    let texts = json!({"head": {"kind": "generation", "classes": 0, "hidden": 0}, "labels": [], "pooling": "last",
                       "answer": {"kind": "text"}, "decode": {"most_tokens": 8, "stop_ids": []}});
    let (rows, prefix) = (FormKind::Embeddings, FormKind::KeyValues);
    let table = [
        ("label", "accuracy", rows, json!({})),
        ("label", "accuracy", prefix, json!({"inputs": "pair"})),
        ("label", "accuracy", rows, factored),
        ("labels", "micro_f1", rows, several),
        ("tags", "entity_f1", prefix, tags),
        ("label", "accuracy", rows, words),
        ("text", "exact_match", prefix, texts),
    ];
    let mut passed_over = 0;
    for (answer, figure, form, changes) in table {
        let adapter = decoder.adapter(form, changes.clone());
        let data = decoder.data(&adapter, answer, changes["inputs"] == "pair");
        let image = decoder.scene.at("x.base");
        let pack = |loss: &str| {
            let output = decoder.pack(&image, &["--max-loss", loss, "--dev", &data]);
            json_of(done(&output))
        };
        let report = pack("0");
        let measured = &report["measured"];
        assert_eq!(measured["figure"], figure, "{changes}");
        assert_eq!(
            (
                &measured["reference"]["found"],
                &measured["reference"]["prompt"]
            ),
            (&json!(1.0), &json!("f32")),
            "{changes}: {measured}"
        );
        let tried = measured["tried"].as_array().unwrap();
        let (taken, others) = tried.split_last().unwrap();
        passed_over += others.len();
        assert!(number(&taken["loss_points"]) <= 0.0, "{changes}: {taken}");
        for other in others {
            assert!(number(&other["loss_points"]) > 0.0, "{changes}: {other}");
        }
        let sizes: Vec<f64> = tried.iter().map(|trial| number(&trial["bytes"])).collect();
        assert!(sizes.is_sorted(), "{changes}: {sizes:?}");
        let bundle = decoder.scene.at("packed");
        let written = fs::metadata(&bundle).unwrap().len();
        assert_eq!(
            (&report["bytes"], &taken["bytes"]),
            (&json!(written), &json!(written))
        );
        let found = decoder.figure(&bundle, &data, figure);
        assert_eq!(json!(found), taken["found"], "{changes}");
        let inspected = Command::new(env!("CARGO_BIN_EXE_preface"))
            .args(["inspect", "--json", &bundle])
            .output()
            .unwrap();
        let manifest = json_of(done(&inspected));
        let metric =
            |name: &str| number(&manifest["metrics"][format!("runtime_dev_{figure}{name}")]);
        assert!(
            (metric("") - found).abs() < 1e-6 && metric("_exact") == 1.0,
            "{manifest}"
        );
        let encoding = &manifest["receipt"]["encoding"];
        assert_eq!(
            [
                &encoding["prompt"],
                &encoding["head"],
                &encoding["max_loss_points"]
            ],
            [&taken["prompt"], &taken["head"], &json!(0.0)],
            "{changes}"
        );

        let report = pack("100");
        let tried = report["measured"]["tried"].as_array().unwrap();
        assert_eq!(tried.len(), 1, "{changes}");
        let first = [&tried[0]["prompt"], &tried[0]["head"]];
        assert_eq!(first, ["i4", "i4"], "{changes}");
        assert!(number(&report["bytes"]) <= sizes[0], "{changes}");
    }
    assert!(passed_over > 0, "nothing lost anything");
}

#[test]
fn what_was_measured_is_what_the_same_encoding_by_hand_answers() {
    let Some(decoder) = Decoder::new() else {
        return skip("the models of ../shared");
    };
    let mut adapter = decoder.adapter(FormKind::Embeddings, json!({}));
    // Labels that are nearly alike, so that small errors change the answer.
    let (first, others) = adapter.head[0].split_at_mut(decoder.base.description.hidden);
    for row in others.chunks_mut(first.len()) {
        row.iter_mut()
            .zip(&*first)
            .for_each(|(value, first)| *value = first + 0.03 * *value);
    }
    adapter.head[1].fill(0.0);
    let data = decoder.data(&adapter, "label", false);
    // A base folder is compiled for it, and nothing of that is left.
    let folder = decoder.export.folder().to_str().unwrap();
    let output = decoder.pack(folder, &["--max-loss", "0", "--dev", &data]);
    assert!(
        said(&output).contains("is not the dev file that the adapter was trained with"),
        "{}",
        said(&output)
    );
    let report = json_of(done(&output));
    let packed = fs::read_dir(decoder.scene.at("")).unwrap();
    let names = packed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(
        names,
        [
            "adapter",
            "dev.jsonl",
            "exact",
            "keys",
            "lines",
            "packed",
            "trust",
            "x.base"
        ]
    );
    let mut compared = 0;
    for trial in report["measured"]["tried"].as_array().unwrap() {
        let [prompt, head] = ["prompt", "head"].map(|part| trial[part].as_str().unwrap());
        if trial["scales"] == "largest" {
            continue;
        }
        let formats = ["--dtype", prompt, "--head-dtype", head];
        let bundle = decoder.scene.packed(&adapter, "by-hand", &formats);
        let found = decoder.figure(&bundle, &data, "accuracy");
        assert_eq!(json!(found), trial["found"], "{trial}");
        compared += 1;
    }
    assert!(compared > 1, "{report}");
}

#[test]
fn where_f32_does_not_fit_a_bundle_losses_are_against_the_most_exact_that_does() {
    let scene = Scene::new(&base_folder(), "f32");
    let base = Base::open(&base_folder()).unwrap();
    let form = Form::of(FormKind::KeyValues, 80, &base.description);
    let head =
        json!({"head": {"kind": "label-text", "classes": 3, "hidden": base.description.hidden}});
    let mut adapter = adapter(&base, &form, head);
    // Numbers that no compressor makes much of.
    let mut below = random(7);
    for value in adapter.prompt.tensors.iter_mut().flatten() {
        *value = below(1 << 24) as f32 / (1 << 24) as f32 - 0.5;
    }
    adapter.write(Path::new(&scene.at("adapter"))).unwrap();
    let [folder, key, bundle] = ["adapter", "keys/k.key", "packed"].map(|at| scene.at(at));
    let (image, dev) = (scene.at("x.base"), scene.at("dev.jsonl"));
    fs::write(&dev, r#"{"text": "the dog was happy", "label": "label-0"}"#).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
    command.args(["pack", "--json", &folder, "--base", &image, "--key", &key]);
    command.args(["--task", "x", "--sequence", "1", "-o", &bundle]);
    let output = command.args(["--max-loss", "100", "--dev", &dev]).output();
    let report = json_of(done(&output.unwrap()));
    let reference = &report["measured"]["reference"];
    assert_eq!(
        [&reference["prompt"], &reference["head"]],
        ["f16", "f16"],
        "{reference}"
    );
    assert!(number(&reference["bytes"]) > 500_000.0, "{reference}");
    assert_eq!(report["dtype"], "i4");
}

#[test]
fn what_is_missing_or_contradicts_itself_is_named() {
    let Some(decoder) = Decoder::new() else {
        return skip("the models of ../shared");
    };
    let adapter = decoder.adapter(FormKind::Embeddings, json!({}));
    let data = decoder.data(&adapter, "label", false);
    let image = decoder.scene.at("x.base");
    let dev = ["--dev", &data];
    let tagged = decoder.write("tags.jsonl", r#"{"tokens": ["a"], "tags": ["O"]}"#);
    let table: [(&[&str], &str); 6] = [
        (&["--max-loss", "1"], "measures on labelled texts"),
        (&dev, "--max-loss <POINTS>"),
        (
            &["--max-loss", "1", "--dtype", "i8", dev[0], dev[1]],
            "cannot be used with",
        ),
        (
            &["--max-loss", "101", dev[0], dev[1]],
            "points from 0 to 100",
        ),
        (&["--max-loss", "1", "--dev", "absent"], "absent"),
        (&["--max-loss", "1", "--dev", &tagged], "tags"),
    ];
    for (arguments, part) in table {
        let output = decoder.pack(&image, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            said(&output).contains(part),
            "{arguments:?}: {}",
            said(&output)
        );
        assert!(!fs::exists(decoder.scene.at("packed")).unwrap());
    }
}
