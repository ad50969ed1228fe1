//! Probes of pairs, tags and generated text: what a bundle's maker says that is answered, asked at `install`.

#![allow(clippy::unwrap_used)]

mod exchange_scene;
mod support;

use std::{fs, path::Path};

use exchange_scene::{Scene, case};
use preface_graph::Base;
use preface_trainer::{form::Form, tokens::Tokens};
use serde_json::{Value, json};

/// Installs an adapter with one probe into a store of its own: exit code and report.
fn installed(scene: &Scene, adapter: &str, image: &str, probe: &Value) -> (i32, Value) {
    scene.change(adapter, |card| card["probes"] = json!([probe]));
    let bundle = scene.packed(adapter);
    let store = scene.at("store");
    let _ = std::fs::remove_dir_all(&store);
    scene.reported(&[
        "install",
        &bundle,
        "--base",
        image,
        "--trust",
        &scene.at("trust"),
        "--store",
        &store,
        "--json",
    ])
}

/// The probe is answered rightly; the one that is changed is not, and says so.
fn is_asked(scene: &Scene, adapter: &str, image: &str, probe: &Value, change: fn(&mut Value)) {
    let (code, report) = installed(scene, adapter, image, probe);
    assert_eq!((code, &report["probes"]), (0, &json!(1)), "{report}");
    let mut wrong = probe.clone();
    change(&mut wrong);
    let (code, report) = installed(scene, adapter, image, &wrong);
    assert_eq!(
        (code, &report["reason"]),
        (14, &json!("probe-failed")),
        "{report}"
    );
}

#[test]
fn the_tags_of_a_probe_are_asked() {
    let scene = Scene::new();
    let case = case("bert-tags-prompt");
    let adapter = scene.imported(&case, 0);
    let answers = scene.answers(&case, &scene.packed(&adapter));
    let number = |tag: &Value| scene.labels.iter().position(|label| tag == label).unwrap();
    let tags = answers[0]["tags"].as_array().unwrap();
    let tags: Vec<_> = tags.iter().map(number).enumerate().collect();
    let probe = json!({"ids": [5, 9, 31], "label": 0, "tags": tags});
    assert_eq!(case.texts[0], "w5 w9 w31");
    is_asked(&scene, &adapter, &scene.image(&case), &probe, |probe| {
        let last = &mut probe["tags"][2][1];
        *last = json!((last.as_u64().unwrap() + 1) % 3);
    });
    let silent = json!({"ids": [5, 9, 31], "label": 0});
    let (code, report) = installed(&scene, &adapter, &scene.image(&case), &silent);
    assert_eq!((code, &report["probes"]), (0, &json!(0)), "{report}");
}

#[test]
fn all_labels_of_a_probe_are_asked() {
    let scene = Scene::new();
    let case = case("gpt2-mlp");
    let adapter = scene.imported(&case, 0);
    scene.change(&adapter, |card| card["answer"]["threshold"] = json!(0.0));
    let probe = json!({"ids": [5, 9, 31], "label": 0, "labels": [0, 1, 2]});
    is_asked(&scene, &adapter, &scene.image(&case), &probe, |probe| {
        probe["labels"] = json!([0, 1]);
    });
    let first = json!({"ids": [5, 9, 31], "label": 2});
    let (code, report) = installed(&scene, &adapter, &scene.image(&case), &first);
    assert_eq!((code, &report["probes"]), (0, &json!(1)), "{report}");
}

/// Trains on these lines, which are the dev set too, packs in i8 and installs: the probes that the trainer wrote, and the
/// report.
fn trained(scene: &Scene, base: &Path, lines: &[Value], more: &[&str]) -> (Vec<Value>, Value) {
    let [data, adapter, image] =
        ["data.jsonl", "trained", "trained.base"].map(|name| scene.at(name));
    let lines = lines.iter().map(|line| format!("{line}\n"));
    fs::write(&data, lines.collect::<String>()).unwrap();
    let base = base.to_str().unwrap();
    let train = ["train", "--base", base, "--train", &data, "--dev", &data];
    let rest = ["--no-advice", "--json", "-o", &adapter];
    scene.good(&[&train[..], more, &rest].concat());
    let card = fs::read(Path::new(&adapter).join("preface.json")).unwrap();
    let card: Value = serde_json::from_slice(&card).unwrap();
    scene.good(&["compile", base, "-o", &image, "--json"]);
    let (bundle, key) = (scene.at("trained.preface"), scene.at("keys/k.key"));
    let pack = ["pack", &adapter, "--task", "t", "--sequence", "1", "--json"];
    scene.good(&[&pack[..], &["--key", &key, "-o", &bundle]].concat());
    let (trust, store) = (scene.at("trust"), scene.at("store"));
    let install = ["install", &bundle, "--base", &image, "--trust", &trust];
    let (code, report) = scene.reported(&[&install[..], &["--store", &store, "--json"]].concat());
    assert_eq!(code, 0, "{report}");
    (card["probes"].as_array().unwrap().clone(), report)
}

#[test]
fn a_task_of_several_labels_is_trained_packed_and_installed_with_probes() {
    let scene = Scene::new();
    let things = [("lamp", "light"), ("radiator", "heat")];
    let mut lines = Vec::new();
    for verb in ["turn on", "switch off", "check", "dim"] {
        for (thing, label) in things {
            lines.push(json!({"text": format!("{verb} the {thing}"), "labels": [label]}));
        }
        lines.push(json!({"text": format!("{verb} the lamp and the radiator"), "labels": ["heat", "light"]}));
        lines.push(json!({"text": format!("{verb} the music"), "labels": []}));
    }
    let more = ["--epochs", "25", "--patience", "25"];
    let (probes, report) = trained(&scene, &support::base_folder(), &lines, &more);
    let mut sets: Vec<_> = probes.iter().map(|probe| probe["labels"].clone()).collect();
    sets.sort_by_key(Value::to_string);
    assert_eq!(sets, [json!([0, 1]), json!([0]), json!([1])], "{probes:?}");
    assert_eq!(report["probes"], json!(3), "{report}");
}

#[test]
fn a_task_that_makes_text_is_trained_packed_and_installed_with_probes() {
    let scene = Scene::new();
    let Some(stories) = support::export("stories260K_model") else {
        return support::skip("the models of ../shared");
    };
    let lines: Vec<Value> = ["Tom", "Lily", "Ben", "Sue", "Max", "Mia"]
        .iter()
        .flat_map(|name| [(name, "dog", "woof"), (name, "cat", "meow")])
        .map(|(name, pet, says)| json!({"text": format!("{name} has a {pet}."), "target": says}))
        .collect();
    // The token that parted its stories; that of its configuration it has never seen, and cannot end with.
    let config = stories.folder().join("config.json");
    fs::write(config, r#"{"eos_token_id": 1}"#).unwrap();
    let how = ["--method", "prefix-tuning", "--learning-rate", "0.03"];
    let more = [&how[..], &["--epochs", "120", "--patience", "120"]].concat();
    let (probes, report) = trained(&scene, stories.folder(), &lines, &more);
    let mut texts: Vec<_> = probes.iter().map(|probe| &probe["text"]).collect();
    texts.sort_by_key(|text| text.to_string());
    assert_eq!(texts, ["meow", "woof"], "{probes:?}");
    assert_eq!(report["probes"], json!(2), "{report}");
}

#[test]
fn the_text_of_a_probe_is_asked_of_a_decoder_and_of_an_encoder_decoder() {
    let scene = Scene::new();
    for name in ["gpt2-prefix", "t5-prompt"] {
        let case = case(name);
        let adapter = scene.imported(&case, 0);
        let probe = json!({"ids": [5, 9, 31], "label": 0, "text": case.tasks[0][0]});
        is_asked(&scene, &adapter, &scene.image(&case), &probe, |probe| {
            probe["text"] = format!("{} w8", probe["text"].as_str().unwrap()).into();
        });
    }
}

#[test]
fn a_pair_is_asked_where_the_base_tells_its_texts_by_their_types() {
    let scene = Scene::new();
    let folder = support::base_folder();
    let base = Base::open(&folder).unwrap();
    assert!(base.description.inputs.token_types.is_some());
    let form = Form::of(base.description.forms[0], 2, &base.description);
    let adapter = scene.at("pairs");
    let changes = json!({"inputs": "pair", "answer": {"kind": "label"}});
    support::adapters::adapter(&base, &form, changes)
        .write(Path::new(&adapter))
        .unwrap();
    let image = scene.at("minilm.base");
    scene.good(&["compile", folder.to_str().unwrap(), "-o", &image, "--json"]);
    let pair = ["a dog sleeps", "an animal rests"];
    let line = json!({"text": pair[0], "text2": pair[1]}).to_string();
    let answers = scene.answers_on(&image, &scene.packed(&adapter), &[line]);
    let label = answers[0]["label"].as_str().unwrap();
    let label: u64 = label.strip_prefix("label-").unwrap().parse().unwrap();
    let tokens = Tokens::read(&base.tokenizer).unwrap();
    let both = tokens.texts(pair[0], Some(pair[1])).unwrap();
    let second = both.types.iter().position(|&kind| kind == 1).unwrap();
    let probe = json!({"ids": both.ids, "label": label, "second": second});
    is_asked(&scene, &adapter, &image, &probe, |probe| {
        probe["label"] = json!((probe["label"].as_u64().unwrap() + 1) % 3);
    });
    let untold = json!({"ids": both.ids, "label": label});
    let (code, report) = installed(&scene, &adapter, &image, &untold);
    assert_eq!((code, &report["probes"]), (0, &json!(0)), "{report}");
}
