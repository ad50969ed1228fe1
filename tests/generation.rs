//! Text that a decoder goes on with: token by token what ONNX Runtime finds most probable, for every decoder and
//! every form of a prompt, with no allocation once a text was generated.

#![allow(clippy::unwrap_used)]

#[path = "../cli/src/allocations.rs"]
#[allow(unsafe_code)]
mod allocations;
#[path = "support/scene.rs"]
#[allow(dead_code)]
mod scene;
mod support;
#[path = "generation/together.rs"]
mod together;

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use preface_graph::{Base, Kind};
use preface_runtime::{
    Answer, Constraint, Encoded, Error, Image, Options, Sampling, Session, TaskHandle,
    TokenizerUse, Trust,
};
use preface_trainer::{
    adapter::Adapter,
    encode::{Encoded as Row, Truth},
    evaluation::evaluate,
    form::{Form, Place},
    metrics::Found,
    tokens::Tokens,
};
use scene::Scene as Files;
use serde_json::{Value, json};
use support::{adapters::adapter, exports, library, skip};

/// Tokens of every text.
const TOKENS: usize = 12;
/// A decoder whose positions are rotations, and one that has a table of them.
const LLAMA: &str = "llama.sdpa.legacy.op14.onnx";
const GPT2: &str = "gpt2.sdpa.legacy.op14.onnx";

#[test]
fn every_decoder_goes_on_as_on_onnxruntime() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut generated = 0;
    for export in exports {
        let base = Base::open(export.folder()).unwrap();
        if base.description.kind != Kind::Encoder && base.description.logits.is_some() {
            generated += 1;
            check(&export.name, export.folder());
        }
    }
    assert!(generated > 10, "{generated} decoders");
}

#[test]
fn an_encoder_decoder_of_two_files_goes_on_as_on_onnxruntime() {
    let Some(export) = support::export("t5.sdpa.legacy.op17.onnx") else {
        return skip("the exports of ../shared");
    };
    support::parted::part(&export);
    check("t5 in two files", export.folder());
}

#[test]
fn a_decoder_in_fewer_bits_goes_on_as_it_reads() {
    for name in ["stories260K_model", GPT2, LLAMA] {
        let Some(export) = support::export(name) else {
            return skip("the exports of ../shared");
        };
        for weights in ["f16", "i8", "i8a8", "i4"] {
            let mut scene = Scene::with_weights(export.folder(), weights);
            for (number, form) in forms_before(&scene.base).iter().enumerate() {
                scene.load(&format!("task-{number}"), form, generating(TOKENS, &[]));
                goes_on_as_it_reads(&mut scene.session, &[5, 9, 17, 40]);
            }
        }
    }
}

/// What is generated token by token, a row at a time, is what comes first behind the text and the tokens before it, which
/// are read as many rows at once; and nothing is allocated.
fn goes_on_as_it_reads(session: &mut Session, ids: &[u32]) {
    let text = Encoded::of_ids(ids);
    let said = session.generate(&text, |_| {}).unwrap().to_vec();
    assert_eq!(said.len(), TOKENS);
    for (index, token) in said.iter().enumerate() {
        let text = Encoded::of_ids(&[ids, &said[..index]].concat());
        let before = allocations::calls();
        let first = session.generate(&text, |_| {}).unwrap()[0];
        assert_eq!((first, allocations::calls() - before), (*token, 0));
    }
}

/// A prompt of each form before the text.
fn forms_before(base: &Base) -> Vec<Form> {
    let described = &base.description;
    let kinds = described.forms.iter();
    kinds.map(|kind| Form::of(*kind, 3, described)).collect()
}

/// The same, and a prompt behind the text.
fn forms(base: &Base) -> Vec<Form> {
    let mut forms = forms_before(base);
    forms.push(Form::Embeddings {
        tokens: 2,
        hidden: base.description.hidden,
        place: Place::After,
    });
    forms
}

/// A base compiled and opened, with keys that sign its tasks.
struct Scene {
    files: Files,
    base: Base,
    session: Session,
    trust: Trust,
}

impl Scene {
    fn new(base_folder: &Path) -> Self {
        Self::with_weights(base_folder, "f32")
    }

    fn with_weights(base_folder: &Path, weights: &str) -> Self {
        let files = Files::new(base_folder, weights);
        Self {
            base: Base::open(base_folder).unwrap(),
            session: opened(&files.at("x.base"), Options::default()),
            trust: files.trust(),
            files,
        }
    }

    /// The path of one of its files.
    fn at(&self, name: &str) -> String {
        self.files.at(name)
    }

    /// Packs an adapter nobody trained as `task`, loads it and makes it the active one.
    fn load(&mut self, task: &str, form: &Form, changes: Value) -> (Adapter, TaskHandle) {
        let adapter = adapter(&self.base, form, changes);
        let file = self.files.packed(&adapter, task, &["--dtype", "f32"]);
        let handle = self.session.load_file(Path::new(&file), &self.trust, None);
        let handle = handle.unwrap();
        self.session.activate(handle).unwrap();
        (adapter, handle)
    }

    /// A verb on the image and the bundle of `task`.
    fn command(&self, verb: &str, task: &str, arguments: &[&str]) -> Command {
        let (image, bundle, trust) = (self.at("x.base"), self.at(task), self.at("trust"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_preface"));
        command.args([verb, "--base", &image, "--bundle", &bundle]);
        command.args(["--trust", &trust]).args(arguments);
        command
    }

    /// What it prints.
    fn run(&self, verb: &str, task: &str, arguments: &[&str]) -> String {
        printed(self.command(verb, task, arguments))
    }
}

fn check(name: &str, folder: &Path) {
    let mut scene = Scene::new(folder);
    for (number, form) in forms(&scene.base).iter().enumerate() {
        let (adapter, _) = scene.load(&format!("task-{number}"), form, generating(TOKENS, &[]));
        let (session, base) = (&mut scene.session, &scene.base);
        let far: Vec<u32> = (0..180).map(|token| 3 + 7 * token % 90).collect();
        let texts = [&[5, 9, 17, 40][..], &[3], &far];
        // Only what has no table of positions is sure to have room for a text whose ends are far apart.
        let count = if base.description.max_positions.is_none() {
            3
        } else {
            2
        };
        for ids in &texts[..count] {
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
            draws(session, &text);
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

/// A session on an image that a test wrote.
fn opened(image: &str, options: Options) -> Session {
    // SAFETY: nobody else knows the file.
    #[allow(unsafe_code)]
    let image = unsafe { Image::open(Path::new(image)) }.unwrap();
    Session::open(&image, options).unwrap()
}

/// The scene of an export, and the form of its prompts.
fn scene_of(export: &str) -> Option<(Scene, Form)> {
    let Some(export) = support::export(export) else {
        skip("the exports of ../shared");
        return None;
    };
    let scene = Scene::new(export.folder());
    let form = forms(&scene.base).swap_remove(0);
    Some((scene, form))
}

/// What the active task goes on with.
fn said(session: &mut Session, text: &str) -> String {
    match session.answer(text, None).unwrap() {
        Answer::Text(said) => said.to_owned(),
        other => panic!("another kind of answer: {other:?}"),
    }
}

#[test]
fn a_text_ends_with_its_token_and_is_spelled_out() {
    let Some((mut scene, form)) = scene_of(LLAMA) else {
        return;
    };
    let tokens = Tokens::read(&scene.base.tokenizer).unwrap();
    let mut ends = Vec::new();
    let mut whole = Vec::new();
    for task in ["whole", "ended"] {
        scene.load(task, &form, generating(TOKENS, &ends));
        let session = &mut scene.session;
        let text = session.encode("w5 w9", None).unwrap();
        let ids = session.generate(&text, |_| {}).unwrap().to_vec();
        let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        assert_eq!(said(session, "w5 w9"), tokens.text(&wide).unwrap());
        if task == "whole" {
            ends = vec![ids[5]];
            whole = ids;
        } else {
            let end = whole.iter().position(|token| *token == ends[0]);
            assert_eq!(ids, whole[..end.unwrap()]);
        }
    }
    let said = scene.run("run", "whole", &["--json", "w5 w9"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let words = said["text"].as_str().unwrap().split_whitespace().count();
    assert_eq!((words, &said["task"]), (TOKENS, &json!("whole")));
}

#[test]
fn what_tokens_spell_may_be_read_with_the_first_text() {
    let Some((mut scene, form)) = scene_of(LLAMA) else {
        return;
    };
    scene.load("t", &form, generating(TOKENS, &[]));
    let expected = said(&mut scene.session, "w5 w9");
    let options = Options {
        tokenizer: TokenizerUse::WithFirstText,
        ..Options::default()
    };
    let mut session = opened(&scene.at("x.base"), options);
    let task = session.load_file(Path::new(&scene.at("t")), &scene.trust, None);
    session.activate(task.unwrap()).unwrap();
    let ids = session.generate(&Encoded::of_ids(&[5, 9]), |_| {}).unwrap();
    assert_eq!(ids.len(), TOKENS);
    assert_eq!(said(&mut session, "w5 w9"), expected);
}

#[test]
fn a_text_ends_where_positions_run_out() {
    let Some((mut scene, form)) = scene_of(GPT2) else {
        return;
    };
    let positions = scene.base.description.max_positions.unwrap();
    scene.load("long", &form, generating(2 * positions, &[]));
    let text = Encoded::of_ids(&[5, 9, 17]);
    let said = scene.session.generate(&text, |_| {}).unwrap();
    // The last token is chosen and not run.
    assert_eq!(form.tokens() + text.len() + said.len(), positions + 1);
}

#[test]
fn a_text_fits_behind_its_prompt_where_the_base_names_no_positions() {
    let Some((mut scene, _)) = scene_of("stories260K_model") else {
        return;
    };
    assert_eq!(scene.base.description.max_positions, None);
    let long = "and ".repeat(3000);
    for (number, form) in forms(&scene.base).iter().enumerate() {
        let task = format!("task-{number}");
        scene.load(&task, form, json!({}));
        let session = &mut scene.session;
        let refused = session.encode(&long, None);
        let Err(Error::TooLong { limit, .. }) = refused else {
            panic!("{form:?}: {refused:?}");
        };
        assert!((2000..=2048).contains(&limit), "{form:?}: {limit}");
        let answered = session.answer_encoded(&Encoded::of_ids(&vec![5; limit]));
        assert!(answered.is_ok(), "{form:?}: {answered:?}");
        let said = scene.run("run", &task, &["--truncate", "--json", &long]);
        assert!(said.contains(r#""label":"#), "{form:?}: {said}");
    }
}

#[test]
fn a_text_is_streamed_up_to_a_stop() {
    let Some((mut scene, form)) = scene_of(LLAMA) else {
        return;
    };
    scene.load("t", &form, generating(TOKENS, &[]));
    let sampling = Sampling {
        temperature: 50.0,
        ..Sampling::default()
    };
    scene.session.sample(sampling).unwrap();
    let whole = said(&mut scene.session, "w5 w9");
    let words: Vec<&str> = whole.split(' ').collect();
    // Over the border of two words, and one that never comes but begins with each.
    let stop = format!("{} {}", &words[6][1..], &words[7][..2]);
    let session = &mut scene.session;
    session.stop_at(&[&*stop, "w5 never"]).unwrap();
    let text = session.encode("w5 w9", None).unwrap();
    let mut heard = Vec::new();
    let streamed = session.stream(&text, |piece| heard.push(piece.to_owned()));
    let streamed = streamed.unwrap().to_owned();
    assert_eq!(streamed, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(heard.concat(), streamed);
    assert!(heard.len() > 3, "{heard:?}");
    let before = allocations::calls();
    let again =
        matches!(session.answer_encoded(&text).unwrap(), Answer::Text(said) if said == streamed);
    assert_eq!((again, allocations::calls() - before), (true, 0));
    assert!(session.stop_at(&[""]).is_err());

    let run = |more: &[&str]| {
        scene.run(
            "run",
            "t",
            &[&["w5 w9", "--temperature", "50", "--stop", &stop], more].concat(),
        )
    };
    assert_eq!(run(&[]), format!("{streamed}\n"));
    assert_eq!(run(&["--stream"]), format!("{streamed}\n"));
    let line: Value = serde_json::from_str(&run(&["--stream", "--json"])).unwrap();
    assert_eq!(line, json!({"task": "t", "text": streamed}));
}

#[test]
fn a_text_says_only_what_is_allowed() {
    let Some((mut scene, form)) = scene_of("stories260K_model") else {
        return;
    };
    let (_, task) = scene.load("t", &form, generating(60, &[2]));
    let labels = ["turn_on", "turn_off", "turn", "Réglage"];
    let constraint = Constraint::labels(&labels).unwrap();
    scene.session.constrain(task, Some(&constraint)).unwrap();
    // What stands in a constrained text ends nothing.
    scene.session.stop_at(&["t", "\""]).unwrap();
    let said_by = |scene: &mut Scene, temperature: f32, seed: u64| {
        let sampling = Sampling {
            temperature,
            seed,
            ..Sampling::default()
        };
        scene.session.sample(sampling).unwrap();
        said(&mut scene.session, "Once upon a time")
    };
    assert!(labels.contains(&&*said_by(&mut scene, 0.0, 0)));
    let drawn: BTreeSet<String> = (0..60)
        .map(|seed| said_by(&mut scene, 50.0, seed))
        .collect();
    assert_eq!(drawn, labels.map(str::to_owned).into());

    let shape =
        r#"{"room": "string", "on": "boolean", "level": "integer", "do": [["dim", "off"]]}"#;
    let constraint = Constraint::shape(shape).unwrap();
    scene.session.constrain(task, Some(&constraint)).unwrap();
    for (temperature, seed) in [(0.0, 0), (2.0, 1), (2.0, 2), (50.0, 3), (50.0, 4)] {
        let text = said_by(&mut scene, temperature, seed);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(
            value["room"].is_string() && value["on"].is_boolean(),
            "{text}"
        );
        assert!(value["level"].is_i64() && value["do"].is_array(), "{text}");
    }
    let text = scene.session.encode("Once", None).unwrap();
    scene.session.answer_encoded(&text).unwrap();
    let before = allocations::calls();
    scene.session.answer_encoded(&text).unwrap();
    assert_eq!(allocations::calls() - before, 0);

    let long = Constraint::labels(&["x".repeat(200)]).unwrap();
    let refused = scene.session.constrain(task, Some(&long)).unwrap_err();
    assert!(refused.to_string().contains("and 60 may come"), "{refused}");

    // A task beside it that generates none answers as ever.
    scene.load("labels", &form, json!({}));
    let beside = scene.at("labels");
    let both = ["Once upon", "--json", "--bundle", &beside];
    let both = scene.run(
        "run",
        "t",
        &[&both[..], &["--only-labels", "turn_on"]].concat(),
    );
    assert!(
        both.contains(r#""text":"turn_on""#) && both.contains(r#""label":"#),
        "{both}"
    );
    let only = ["Once upon", "--only-labels", "turn_on", "Réglage"];
    let said = scene.run("run", "t", &only);
    assert!(["turn_on\n", "Réglage\n"].contains(&&*said), "{said}");
    let file = scene.at("shape.json");
    fs::write(&file, shape).unwrap();
    for shape in [shape, &file] {
        let said = scene.run("run", "t", &["Once", "--stream", "--shape", shape]);
        let value: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 4);
    }
}

#[test]
fn options_for_texts_are_refused_where_none_is_generated() {
    let Some((mut scene, form)) = scene_of(LLAMA) else {
        return;
    };
    let (_, task) = scene.load("labels", &form, json!({}));
    let constraint = Constraint::labels(&["on"]).unwrap();
    let refused = scene.session.constrain(task, Some(&constraint));
    assert!(matches!(refused, Err(Error::NoText { .. })));
    for option in [["--stop", "x"], ["--seed", "1"], ["--shape", "{}"]] {
        let mut command = scene.command("run", "labels", &[&["w5"], &option[..]].concat());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(said.contains("none of the tasks generates text"), "{said}");
    }
}

#[test]
fn generated_texts_are_measured_by_whether_they_are_exact() {
    let Some((mut scene, form)) = scene_of(LLAMA) else {
        return;
    };
    scene.load("t", &form, generating(TOKENS, &[]));
    let asked = ["w5 w9", "w4", "w7 w8 w9", "w6"];
    let lines = asked.iter().enumerate().map(|(index, text)| {
        let target = match index {
            0 => "w1 w1".to_owned(),
            _ => said(&mut scene.session, text),
        };
        json!({"text": text, "target": target}).to_string() + "\n"
    });
    let lines: String = lines.collect();
    let data = scene.at("data.jsonl");
    fs::write(&data, lines).unwrap();
    let figures = scene.run("eval", "t", &["--json", "--data", &data]);
    let figures: Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(figures, json!({"exact_match": 0.75, "examples": 4}));
}

fn generating(tokens: usize, ends: &[u32]) -> Value {
    json!({
        "head": {"kind": "generation", "classes": 0, "hidden": 0},
        "labels": [],
        "answer": {"kind": "text"},
        "decode": {"most_tokens": tokens, "stop_ids": ends},
        "pooling": "last",
    })
}

/// What ONNX Runtime finds most probable at each place of the text that goes on as `said`.
fn expected(adapter: &Adapter, base: &Base, ids: &[u32], said: &[u32]) -> Vec<u32> {
    let wide = |ids: &[u32]| ids.iter().map(|&id| id.into()).collect::<Vec<i64>>();
    let run = wide(&said[..said.len() - 1]);
    let mut row = Row::of_ids(wide(ids));
    let first = match base.description.start_token {
        Some(start) => {
            row.decoder_ids = [vec![start.into()], run].concat();
            0
        }
        None => {
            row.ids.extend(run);
            ids.len() - 1
        }
    };
    let places = said.iter().enumerate();
    let places = places.map(|(index, &token)| (first + index, token as usize));
    row.truth = Truth::Places(places.collect());
    let found = evaluate(adapter, base, library(), &[row], 1, |_| ()).unwrap();
    match &found[0].found {
        Found::Places(found) => found.iter().map(|&token| token as u32).collect(),
        other => panic!("another kind of answer: {other:?}"),
    }
}

fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
