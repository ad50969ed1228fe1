//! Nothing is allocated while the runtime runs: after a session is open and has answered once, texts of any length, every
//! kind of answer and every change of task take no heap memory, on one thread and on several.
//!
//! Whatever the process allocates is counted: a test must be done before the harness says that it is slow, which takes
//! memory.

#![allow(clippy::unwrap_used)]

#[path = "../cli/src/allocations.rs"]
#[allow(unsafe_code)]
mod allocations;
#[path = "support/scene.rs"]
mod scene;
mod support;

use std::path::Path;

use preface_graph::{Base, FormKind, Kind};
use preface_runtime::{Answer, Encoded, EngineKind, Options, Session, TaskHandle, Threads};
use preface_trainer::form::Form;
use scene::Scene;
use serde_json::{Value, json};
use support::{
    adapters::{CLASSES, adapter},
    base_folder, exports, skip,
};

#[test]
fn an_encoder_allocates_nothing() {
    let words = "turn on the light in the kitchen and in the hall ";
    let texts = [3, 5, 9, 20].map(|times| words.repeat(times));
    check(&base_folder(), "f32", &texts);
}

#[test]
fn an_encoder_with_weights_in_fewer_bits_allocates_nothing() {
    let texts = [1, 3].map(|times| "turn on the light in the hall ".repeat(times));
    for weights in ["f16", "i8", "i8a8", "i4"] {
        check(&base_folder(), weights, &texts);
    }
}

#[test]
fn a_decoder_with_a_cache_allocates_nothing() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut exports = exports.into_iter();
    let stories = exports.find(|export| export.name == "stories260K_model");
    let texts: Vec<String> = (1..=8)
        .map(|times| "once upon ".repeat(9 * times))
        .collect();
    let stories = stories.unwrap();
    for weights in ["f32", "f16", "i8", "i8a8", "i4"] {
        check(stories.folder(), weights, &texts);
    }
}

#[test]
fn an_encoder_decoder_allocates_nothing() {
    let Some(export) = support::export("t5.sdpa.legacy.op17.onnx") else {
        return skip("the exports of ../shared");
    };
    let texts = [1, 7, 40].map(|times| "w5 w9 w17 ".repeat(times));
    for weights in ["f32", "i8"] {
        check(export.folder(), weights, &texts);
    }
}

/// Answers every text with every task on one thread and on several: the same to the last bit, and nothing is allocated.
fn check(folder: &Path, weights: &str, texts: &[String]) {
    let base = Base::open(folder).unwrap();
    let scene = Scene::new(folder, weights);
    let (image, trust) = (scene.image(), scene.trust());
    let mut bundles = Vec::new();
    for (number, (form, changes)) in designs(&base).into_iter().enumerate() {
        let adapter = adapter(&base, &form, changes);
        bundles.push(scene.packed(&adapter, &format!("task-{number}"), &[]));
    }
    let mut alone = None;
    for count in [1, 2, 3] {
        let threads = Threads {
            count,
            pinned: count == 2,
        };
        let options = Options {
            threads,
            ..Options::default()
        };
        let mut session = Session::open(&image, options).unwrap();
        assert_eq!(session.engine(), EngineKind::Executor);
        let mut tasks = Vec::new();
        for file in &bundles {
            let handle = session.load_file(Path::new(file), &trust, None).unwrap();
            session.activate(handle).unwrap();
            let encoded = texts.iter().map(|text| session.encode(text, None).unwrap());
            tasks.push((handle, encoded.collect::<Vec<Encoded>>()));
        }
        let found = answers(&mut session, &tasks);
        let same = alone.get_or_insert_with(|| found.clone()) == &found;
        assert!(same, "{count} threads give other scores");
        together(&mut session, &tasks);
    }
}

/// Every text with every task, each behind another; nothing is allocated but for the scores.
fn answers(session: &mut Session, tasks: &[(TaskHandle, Vec<Encoded>)]) -> Vec<Scores> {
    let mut all = Vec::new();
    for index in (0..tasks[0].1.len()).rev() {
        for (handle, encoded) in tasks {
            let before = allocations::calls();
            session.activate(*handle).unwrap();
            let answer = session.answer_encoded(&encoded[index]).unwrap();
            let taken = allocations::calls() - before;
            assert!(taken == 0 || all.is_empty(), "{taken} allocations");
            all.push(scores(&answer));
        }
    }
    all
}

/// Answers the texts of all tasks at once: what each alone is answered, and nothing is allocated.
fn together(session: &mut Session, tasks: &[(TaskHandle, Vec<Encoded>)]) {
    let mut requests = Vec::new();
    for index in 0..tasks[0].1.len() {
        requests.extend(tasks.iter().map(|(handle, texts)| (*handle, &texts[index])));
    }
    let mut alone = Vec::new();
    for &(handle, text) in &requests {
        session.activate(handle).unwrap();
        alone.push(scores(&session.answer_encoded(text).unwrap()));
    }
    let mut found = vec![Vec::new(); requests.len()];
    let hear = |index: usize, answer: Answer<'_>| found[index] = scores(&answer);
    session.answer_all(&requests, hear).unwrap();
    for (found, alone) in found.iter().zip(&alone) {
        assert_eq!(found.len(), alone.len());
        let pairs = found.iter().zip(alone);
        assert!(
            pairs
                .into_iter()
                .all(|((class, score), (expected, other))| {
                    class == expected && (score - other).abs() < 1e-5
                })
        );
    }
    let before = allocations::calls();
    let mut heard = 0;
    session.answer_all(&requests, |_, _| heard += 1).unwrap();
    assert_eq!((heard, allocations::calls() - before), (requests.len(), 0));
}

/// Classes with their scores.
type Scores = Vec<(usize, f32)>;

/// Those of an answer.
fn scores(answer: &Answer<'_>) -> Scores {
    match answer {
        Answer::Label { best, .. } => vec![(best.class, best.score)],
        Answer::Labels(choices) | Answer::Tags(choices) => {
            let choices = choices.iter().flatten();
            choices.map(|choice| (choice.class, choice.score)).collect()
        }
        other => panic!("another kind of answer: {other:?}"),
    }
}

/// A task of each form and of each kind of answer.
fn designs(base: &Base) -> Vec<(Form, Value)> {
    let [rows, prefix] = [FormKind::Embeddings, FormKind::KeyValues]
        .map(|kind| Form::of(kind, 5, &base.description));
    let hidden = base.description.hidden;
    let tags = json!({"kind": "token-linear", "classes": CLASSES, "hidden": hidden});
    let mut designs = vec![
        (rows.clone(), json!({})),
        (prefix.clone(), json!({})),
        (
            prefix,
            json!({"answer": {"kind": "labels", "threshold": 0.0}}),
        ),
        (
            rows,
            json!({"head": tags, "answer": {"kind": "tags"}, "labels": ["B-x", "I-x", "O"]}),
        ),
    ];
    if base.description.kind == Kind::EncoderDecoder {
        designs.pop();
    }
    designs
}
