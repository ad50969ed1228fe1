//! Text that a decoder goes on with: token by token what ONNX Runtime finds most probable, for every decoder and every form
//! of a prompt, with no allocation once a text was generated.

#![allow(clippy::unwrap_used)]

#[path = "../cli/src/allocations.rs"]
#[allow(unsafe_code)]
mod allocations;
mod support;

use std::{path::Path, process::Command};

use preface_graph::{Base, Kind};
use preface_runtime::{Answer, Encoded, Image, Options, Sampling, Session, Trust};
use preface_trainer::{
    adapter::Adapter,
    encode::{Encoded as Row, Truth},
    evaluation::evaluate,
    form::{Form, Place},
    metrics::Found,
};
use serde_json::json;
use support::{adapters::adapter, exports, library, skip};

/// Tokens of every text.
const TOKENS: usize = 12;

#[test]
fn every_decoder_goes_on_as_on_onnxruntime() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut generated = 0;
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        if base.description.kind == Kind::Decoder && base.description.logits.is_some() {
            generated += 1;
            check(&export.name, export.folder(), &base);
        }
    }
    assert!(generated > 10, "{generated} decoders");
}

/// A prompt of each form, and one behind the text.
fn forms(base: &Base) -> Vec<Form> {
    let described = &base.description;
    let kinds = described.forms.iter();
    let mut forms: Vec<Form> = kinds.map(|kind| Form::of(*kind, 3, described)).collect();
    forms.push(Form::Embeddings {
        tokens: 2,
        hidden: described.hidden,
        place: Place::After,
    });
    forms
}

fn check(name: &str, folder: &Path, base: &Base) {
    let scene = tempfile::tempdir().unwrap();
    let at = |name: &str| scene.path().join(name).to_str().unwrap().to_owned();
    preface(&["compile", folder.to_str().unwrap(), "-o", &at("x.base")]);
    preface(&["keygen", "-o", &at("keys"), "--name", "k"]);
    let public = at("keys/k.pub");
    preface(&["trust", "new", "-o", &at("trust"), "--key", &public]);
    // SAFETY: nobody else knows the file.
    #[allow(unsafe_code)]
    let image = unsafe { Image::open(Path::new(&at("x.base"))) }.unwrap();
    let mut session = Session::open(&image, Options::default()).unwrap();
    let trust = Trust::read(Path::new(&at("trust"))).unwrap();
    for (number, form) in forms(base).iter().enumerate() {
        let task = format!("task-{number}");
        let (folder, file) = (at("adapter"), at(&task));
        let adapter = adapter(base, form, generating(&[]));
        adapter.write(Path::new(&folder)).unwrap();
        let pack = [
            "pack",
            &folder,
            "--task",
            &task,
            "--sequence",
            "1",
            "--dtype",
            "f32",
        ];
        preface(&[&pack[..], &["--key", &at("keys/k.key"), "-o", &file]].concat());
        let handle = session.load_file(Path::new(&file), &trust, None).unwrap();
        session.activate(handle).unwrap();
        for ids in [&[5, 9, 17, 40][..], &[3]] {
            let text = Encoded::of_ids(ids);
            let mut heard = Vec::new();
            let said = session.generate(&text, |token| heard.push(token)).unwrap();
            let said = said.to_vec();
            assert_eq!((heard.len(), &heard), (TOKENS, &said), "{name} {form:?}");
            assert_eq!(
                expected(&adapter, base, ids, &said),
                said,
                "{name} {form:?}"
            );
            let before = allocations::calls();
            let again = session.generate(&text, |_| {}).unwrap() == said;
            assert_eq!((again, allocations::calls() - before), (true, 0), "{name}");
            draws(&mut session, &text);
        }
    }
}

/// Tokens that are drawn are the same for a seed and others for another, and take no memory either.
fn draws(session: &mut Session, text: &Encoded) {
    let drawn = |session: &mut Session, seed: u64| {
        let sampling = Sampling {
            temperature: 50.0,
            seed,
            ..Sampling::default()
        };
        session.sample(sampling).unwrap();
        session.generate(text, |_| {}).unwrap().to_vec()
    };
    let first = drawn(session, 1);
    assert_ne!(drawn(session, 2), first);
    assert_eq!(drawn(session, 1), first);
    let before = allocations::calls();
    let again = session.generate(text, |_| {}).unwrap() == first;
    assert_eq!((again, allocations::calls() - before), (true, 0));
    session.sample(Sampling::default()).unwrap();
}

#[test]
fn a_text_ends_with_its_token_and_is_spelled_out() {
    let Some(export) = support::export("llama.sdpa.legacy.op14.onnx") else {
        return skip("the exports of ../shared");
    };
    let base = Base::open(export.folder()).unwrap();
    let scene = tempfile::tempdir().unwrap();
    let at = |name: &str| scene.path().join(name).to_str().unwrap().to_owned();
    preface(&[
        "compile",
        export.folder().to_str().unwrap(),
        "-o",
        &at("x.base"),
    ]);
    preface(&["keygen", "-o", &at("keys"), "--name", "k"]);
    let public = at("keys/k.pub");
    preface(&["trust", "new", "-o", &at("trust"), "--key", &public]);
    let trust = Trust::read(Path::new(&at("trust"))).unwrap();
    // SAFETY: nobody else knows the file.
    #[allow(unsafe_code)]
    let image = unsafe { Image::open(Path::new(&at("x.base"))) }.unwrap();
    let mut session = Session::open(&image, Options::default()).unwrap();
    let mut stops = Vec::new();
    let mut whole = Vec::new();
    for task in ["whole", "stopped"] {
        let adapter = adapter(&base, &forms(&base)[0], generating(&stops));
        adapter.write(Path::new(&at("adapter"))).unwrap();
        let pack = ["pack", &at("adapter"), "--task", task, "--sequence", "1"];
        let signed = ["--key", &at("keys/k.key"), "-o", &at(task)];
        preface(&[&pack[..], &signed].concat());
        let handle = session
            .load_file(Path::new(&at(task)), &trust, None)
            .unwrap();
        session.activate(handle).unwrap();
        let text = session.encode("w5 w9", None).unwrap();
        let said = session.generate(&text, |_| {}).unwrap().to_vec();
        let Answer::Text(spelled) = session.answer("w5 w9", None).unwrap() else {
            panic!("another kind of answer");
        };
        assert_eq!(spelled.split_whitespace().count(), said.len(), "{spelled}");
        match task {
            "whole" => {
                stops = vec![said[5]];
                whole = said;
            }
            _ => {
                let end = whole.iter().position(|token| *token == stops[0]);
                assert_eq!(said, whole[..end.unwrap()]);
            }
        }
    }
    let (image, trust, bundle) = (at("x.base"), at("trust"), at("whole"));
    let run = ["run", "--json", "--base", &image, "--bundle", &bundle];
    let said = preface(&[&run[..], &["--trust", &trust, "w5 w9"]].concat());
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let words = said["text"].as_str().unwrap().split_whitespace().count();
    assert_eq!((words, &said["task"]), (TOKENS, &json!("whole")));
}

fn generating(stops: &[u32]) -> serde_json::Value {
    json!({
        "head": {"kind": "generation", "classes": 0, "hidden": 0},
        "labels": [],
        "answer": {"kind": "text"},
        "decode": {"most_tokens": TOKENS, "stop_ids": stops},
        "pooling": "last",
    })
}

/// What ONNX Runtime finds most probable at each place of the text that goes on as `said`.
fn expected(adapter: &Adapter, base: &Base, ids: &[u32], said: &[u32]) -> Vec<u32> {
    let all = ids.iter().chain(&said[..said.len() - 1]);
    let mut row = Row::of_ids(all.map(|&id| id.into()).collect());
    row.text = ids.len();
    let places = said.iter().enumerate();
    let places = places.map(|(index, &token)| (ids.len() - 1 + index, token as usize));
    row.truth = Truth::Places(places.collect());
    let found = evaluate(adapter, base, library(), &[row], 1, |_| ()).unwrap();
    match &found[0].found {
        Found::Places(found) => found.iter().map(|&token| token as u32).collect(),
        other => panic!("another kind of answer: {other:?}"),
    }
}

fn preface(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
