//! One base, two engines: what the runtime answers from a signed f32 bundle is what ONNX Runtime computes from the
//! spliced graph, for every family and both forms.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, path::Path, process::Command};

use preface_graph::Base;
use preface_trainer::{
    adapter::{Adapter, Card},
    batch::Encoded,
    evaluation::evaluate,
    form::{Form, Prompt},
    tokens::Tokens,
};
use serde_json::{Value, json};
use support::{base_folder, exports, library, skip};

/// Relative difference of scores between the engines.
const TOLERANCE: f32 = 1e-4;
const CLASSES: usize = 3;

/// Bases that the runtime does not run, with what it says; one that runs after all fails the test.
const EXCEPTIONS: [(&str, &str); 6] = [
    ("optimum_llama", "Invalid range 0..7 for slicing"),
    ("stories260K_model", "Impossible to unify 1 with 0"),
    ("stories260K_model_nocache", "Impossible to unify 1 with 0"),
    ("t5.eager.dynamo.op18.onnx", "this is an encoder-decoder"),
    ("t5.sdpa.legacy.op14.onnx", "this is an encoder-decoder"),
    ("t5.sdpa.legacy.op17.onnx", "this is an encoder-decoder"),
];

#[test]
fn minilm_gives_the_same_scores_on_both_engines() {
    let texts = ["turn on the light", "why is it so dark in here", "no"];
    assert_eq!(compare(&base_folder(), &texts), Ok(()));
}

#[test]
fn every_export_gives_the_same_scores_on_both_engines() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut wrong = Vec::new();
    for export in exports {
        let texts: &[&str] = match export.name.starts_with("stories") {
            true => &["Once upon a time", "the dog was happy"],
            false => &["w5 w9 w17 w40", "w3 w88"],
        };
        let found = compare(export.folder(), texts);
        let expected = EXCEPTIONS.iter().find(|(name, _)| *name == export.name);
        let as_listed = match (&found, expected) {
            (Ok(()), None) => true,
            (Err(reason), Some((_, listed))) => reason.contains(listed),
            _ => false,
        };
        if !as_listed {
            wrong.push(format!("{}: {found:?}, listed: {expected:?}", export.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Compares the scores of both forms; what the program says where it fails.
fn compare(folder: &Path, texts: &[&str]) -> Result<(), String> {
    let base = Base::open(folder).unwrap();
    let scene = tempfile::tempdir().unwrap();
    let at = |name: &str| scene.path().join(name).to_str().unwrap().to_owned();
    preface(&["compile", folder.to_str().unwrap(), "-o", &at("x.base")])?;
    preface(&["keygen", "-o", &at("keys"), "--name", "k"])?;
    preface(&[
        "trust",
        "new",
        "-o",
        &at("trust"),
        "--key",
        &at("keys/k.pub"),
    ])?;
    let (key, bundle) = (at("keys/k.key"), at("x.preface"));
    let run = [
        "run",
        "--json",
        "--base",
        &at("x.base"),
        "--bundle",
        &bundle,
        "--trust",
        &at("trust"),
    ];
    let tokens = Tokens::read(&base.tokenizer).unwrap();
    for kind in &base.description.forms {
        let adapter = adapter(&base, &Form::of(*kind, 3, &base.description));
        adapter.write(Path::new(&at("adapter"))).unwrap();
        preface(&[
            "pack",
            &at("adapter"),
            "--task",
            "x",
            "--sequence",
            "1",
            "--dtype",
            "f32",
            "--key",
            &key,
            "-o",
            &bundle,
        ])?;
        for text in texts {
            let row = Encoded {
                ids: tokens.encode(text).unwrap(),
                label: 0,
            };
            let expected = evaluate(&adapter, &base, library(), &[row], 1, |_| ()).unwrap()[0];
            let answer: Value =
                serde_json::from_str(&preface(&[&run[..], &[text]].concat())?).unwrap();
            let score = answer["score"].as_f64().unwrap() as f32;
            let same = answer["label"] == format!("label-{}", expected.label);
            if !same || (score - expected.score).abs() / expected.score >= TOLERANCE {
                return Err(format!("{kind:?} {text}: {answer} for {expected:?}"));
            }
        }
    }
    Ok(())
}

/// An adapter of numbers that look random: prompts as large as embeddings are, a head that tells labels apart.
fn adapter(base: &Base, form: &Form) -> Adapter {
    let description = &base.description;
    let numbers = |count: usize, scale: f32, salt: f32| -> Vec<f32> {
        (0..count)
            .map(|index| scale * (index as f32 * 1.37 + salt).sin())
            .collect()
    };
    let card = json!({
        "format": 1, "method": if form.slots() > 0 { "prompt-tuning" } else { "prefix-tuning" }, "form": form,
        "head": {"kind": "linear", "classes": CLASSES, "hidden": description.hidden},
        "labels": (0..CLASSES).map(|class| format!("label-{class}")).collect::<Vec<_>>(),
        "template": "{text}", "pooling": "mean", "positions": form.positions(description),
        "base_id": description.base_id, "tokenizer_id": description.tokenizer_id, "probes": [], "metrics": BTreeMap::<String, f64>::new(),
        "token_budget": {"prompt": form.tokens(), "longest": 9, "typical": 5, "positions": description.max_positions},
        "receipt": {"seed": 0, "epochs": 1, "best_epoch": 1, "learning_rate": 0.1, "head_learning_rate": 0.1, "batch": 1,
                    "examples": 1, "data_sha256": "00".repeat(32), "dev_sha256": "00".repeat(32), "threads": 1, "version": "0"},
    });
    let card: Card = serde_json::from_value(card).unwrap();
    let tensors = form
        .shapes()
        .iter()
        .enumerate()
        .map(|(index, shape)| numbers(shape.iter().product(), 0.5, index as f32))
        .collect();
    let head = vec![
        numbers(CLASSES * description.hidden, 0.2, 0.7),
        numbers(CLASSES, 0.1, 0.1),
    ];
    Adapter {
        card,
        prompt: Prompt {
            form: form.clone(),
            tensors,
        },
        head,
    }
}

fn preface(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .args(arguments)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
