//! Texts that are generated at once are those that come one by one.

use std::fs::{self, File};

use preface_runtime::{Encoded, Options, Part, Request, Sampling, Session};
use preface_trainer::form::Form;

use super::{GPT2, LLAMA, Scene, allocations, forms, generating, opened, support};

/// Decoders that differ in positions, heads and vocabulary, one of them behind an encoder, and how they are stored.
const DECODERS: [(&str, &str); 5] = [
    (LLAMA, "f32"),
    (GPT2, "f16"),
    ("stories260K_model", "f32"),
    ("stories260K_model", "i4"),
    ("t5.sdpa.legacy.op14.onnx", "f32"),
];
/// Fewer than there are texts: some begin where others ended.
const AT_ONCE: usize = 3;

/// A text with its task and what is drawn of it.
struct Asked {
    task: usize,
    text: Encoded,
    sampling: Sampling,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    tokens: Vec<u32>,
    text: String,
}

/// Tasks of every form, whose prompts and texts differ in length.
fn loaded(scene: &mut Scene, session: &mut Session) {
    let forms = forms(&scene.base);
    for (number, form) in forms.iter().enumerate() {
        let name = format!("task-{number}");
        let form = match form {
            Form::Embeddings { hidden, place, .. } => Form::Embeddings {
                tokens: 2 + 3 * number,
                hidden: *hidden,
                place: *place,
            },
            other => other.clone(),
        };
        scene.load(&name, &form, generating(4 + 5 * number, &[]));
        let bundle = scene.at(&name);
        let path = std::path::Path::new(&bundle);
        session.load_file(path, &scene.trust, None).unwrap();
    }
}

/// Each task is asked about a short text and a long one, most probable and drawn.
fn asked(tasks: usize) -> Vec<Asked> {
    let texts = [&[5, 9, 17, 40][..], &[3], &[7, 8, 7, 8, 7, 8, 21, 22, 23]];
    let drawn = |seed| Sampling {
        temperature: 50.0,
        repetition_penalty: 1.5,
        top_k: Some(20),
        seed,
        ..Sampling::default()
    };
    let all = (0..tasks).flat_map(|task| texts.map(|text| (task, Encoded::of_ids(text))));
    let all = all.flat_map(|(task, text)| {
        let seed = (10 * task + text.len()) as u64;
        [Sampling::default(), drawn(seed)].map(|sampling| Asked {
            task,
            text: text.clone(),
            sampling,
        })
    });
    all.collect()
}

fn requests<'a>(session: &Session, asked: &'a [Asked]) -> Vec<Request<'a>> {
    let tasks: Vec<_> = session.tasks().map(|(task, _)| task).collect();
    let request = |asked: &'a Asked| Request {
        task: tasks[asked.task],
        text: &asked.text,
        sampling: asked.sampling,
    };
    asked.iter().map(request).collect()
}

fn one_by_one(session: &mut Session, requests: &[Request<'_>]) -> Vec<Said> {
    let said = requests.iter().map(|request| {
        session.activate(request.task).unwrap();
        session.sample(request.sampling).unwrap();
        let tokens = session.generate(request.text, |_| ()).unwrap().to_vec();
        let text = session.stream(request.text, |_| ()).unwrap().to_owned();
        Said { tokens, text }
    });
    said.collect()
}

fn at_once(session: &mut Session, requests: &[Request<'_>]) -> Vec<Said> {
    let mut said = vec![Said::default(); requests.len()];
    let mut heard = vec![String::new(); requests.len()];
    session
        .generate_all(requests, |index, part| match part {
            Part::Token(token) => said[index].tokens.push(token),
            Part::Piece(piece) => heard[index].push_str(piece),
            Part::End(text) => said[index].text.push_str(text),
        })
        .unwrap();
    for (said, heard) in said.iter().zip(heard) {
        assert_eq!(said.text, heard);
    }
    said
}

#[test]
fn texts_at_once_are_those_that_come_one_by_one() {
    for (name, weights) in DECODERS {
        let Some(export) = support::export(name) else {
            return support::skip("the exports of ../shared");
        };
        let mut scene = Scene::with_weights(export.folder(), weights);
        let options = Options {
            texts: AT_ONCE,
            ..Options::default()
        };
        let mut session = opened(&scene.at("x.base"), options);
        loaded(&mut scene, &mut session);
        let asked = asked(session.tasks().count());
        let requests = requests(&session, &asked);
        let alone = one_by_one(&mut session, &requests);
        assert!(alone.iter().any(|said| said.tokens != alone[0].tokens));
        assert_eq!(at_once(&mut session, &requests), alone, "{name} {weights}");
        let before = allocations::calls();
        session.generate_all(&requests, |_, _| ()).unwrap();
        assert_eq!(allocations::calls() - before, 0, "{name} {weights}");
    }
}

/// What `preface run` prints for lines of standard input.
fn run_lines(scene: &Scene, more: &[&str]) -> String {
    let beside = scene.at("task-1");
    let arguments = [&["--bundle", &beside, "--temperature", "50"], more].concat();
    let mut command = scene.command("run", "task-0", &arguments);
    let lines = scene.at("lines");
    fs::write(&lines, "w5 w9\n\nw4\nw7 w8 w9 w10\nw6\nw5 w5\n").unwrap();
    command.stdin(File::open(&lines).unwrap());
    super::printed(command)
}

#[test]
fn lines_that_are_read_together_are_answered_as_one_by_one() {
    let Some(export) = support::export(LLAMA) else {
        return support::skip("the exports of ../shared");
    };
    let mut scene = Scene::new(export.folder());
    let forms = forms(&scene.base);
    for (number, most) in [(0, 12), (1, 5)] {
        let name = format!("task-{number}");
        scene.load(&name, &forms[number], generating(most, &[]));
    }
    scene.load("labels", &forms[0], serde_json::json!({}));
    let labels = scene.at("labels");
    for more in [&["--json"][..], &[], &["--json", "--bundle", &labels]] {
        let alone = run_lines(&scene, more);
        assert!(alone.lines().count() >= 10, "{alone}");
        for together in ["2", "5", "64"] {
            let more = [more, &["--together", together]].concat();
            assert_eq!(run_lines(&scene, &more), alone, "{more:?}");
        }
    }
}
