//! The runtime's C interface: programs in C against the header and both libraries answer as a session in Rust does.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use preface_bundle::Inputs;
use preface_graph::{Base, FormKind};
use preface_runtime::{Answer, Constraint, Image, Options, Sampling, Session, Trust};
use preface_trainer::form::Form;
use serde_json::{Value, json};
use support::{
    adapters::{CLASSES, adapter},
    base_folder, export, root, skip,
};
use tempfile::TempDir;

/// The bases that valgrind has the time for.
const ENCODER: &str = "bert_base.sdpa.legacy.op14.onnx";
const DECODER: &str = "llama.sdpa.legacy.op14.onnx";
/// A decoder that spells with bytes.
const STORIES: &str = "stories260K_model";
const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
/// What a static library needs beside itself; tract's assembly does not say that its stack is not run.
const STATIC: [&str; 5] = ["-lpthread", "-ldl", "-lm", "-lgcc_s", "-Wl,-z,noexecstack"];
/// Two texts a line, parted by a tab.
const LINES: &str = "turn on the light\tin the hall\n\
    it is dark in here and I cannot see the stairs, please help\tso it is\n\
    naïve – 42 \u{1f600} x\tyes\n";

/// A folder with an image, two trust stores, and bundles.
struct Scene {
    folder: TempDir,
    base: PathBuf,
    bundles: Vec<String>,
}

impl Scene {
    fn new(base: &Path, designs: fn(&Base) -> Vec<Design>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut scene = Self {
            folder,
            base: base.to_owned(),
            bundles: Vec::new(),
        };
        scene.preface(&["compile", base.to_str().unwrap(), "-o", "x.base"]);
        for name in ["trust", "other"] {
            scene.preface(&["keygen", "--no-passphrase", "-o", "keys", "--name", name]);
            let key = format!("keys/{name}.pub");
            scene.preface(&["trust", "new", "-o", name, "--key", &key]);
        }
        let base = Base::open(base).unwrap();
        for design in designs(&base) {
            let file = format!("{}.preface", design.0);
            scene.pack(&base, design, "1", &file);
            scene.bundles.push(file);
        }
        let mut altered = fs::read(scene.at(&scene.bundles[0])).unwrap();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(scene.at("altered"), altered).unwrap();
        fs::write(scene.at("lines"), LINES).unwrap();
        scene
    }

    fn pack(&self, base: &Base, (task, form, changes): Design, sequence: &str, file: &str) {
        let design = adapter(base, &form, changes);
        design.write(&self.at("adapter")).unwrap();
        let pack = ["pack", "adapter", "--task", task, "--sequence", sequence];
        self.preface(&[&pack[..], &["--key", "keys/trust.key", "-o", file]].concat());
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn preface(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(PROGRAM);
        good(command.current_dir(&self.folder).args(arguments))
    }

    /// Compiles a source of C, linked with the libraries of this build.
    fn compile(&self, source: &Path, link: Link, more: &[&str], name: &str) {
        let include = root().join("runtime/c/include");
        let mut command = Command::new("gcc");
        command.args(["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]);
        command.args(more).arg("-I").arg(include).arg(source);
        match link {
            Link::Shared => command
                .arg("-L")
                .arg(libraries())
                .args(["-lpreface", "-lpthread"]),
            Link::Static => command.arg(libraries().join("libpreface.a")).args(STATIC),
        };
        good(command.arg("-o").arg(self.at(name)));
    }

    /// Runs a program of this folder, as the argument of `before` where that names one.
    fn run(&self, before: &[&str], program: &str, arguments: &[&str]) -> String {
        let program = self.at(program);
        let words: Vec<&str> = [before, &[program.to_str().unwrap()], arguments].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&self.folder);
        command.stdin(fs::File::open(self.at("lines")).unwrap());
        good(command.env("LD_LIBRARY_PATH", libraries()))
    }

    /// What `tests/c/answer.c` says.
    fn answers(&self, before: &[&str], program: &str, image: &str) -> String {
        let bundles = self.bundles.iter().map(String::as_str);
        let files = [image, "trust", "other", "altered"].into_iter();
        self.run(before, program, &files.chain(bundles).collect::<Vec<_>>())
    }

    /// What `tests/c/generate.c` says, whose drawn text two strings end.
    fn generates(
        &self,
        before: &[&str],
        program: &str,
        image: &str,
        stops: &[String; 2],
    ) -> String {
        let [text, label] = &self.bundles[..] else {
            panic!("two bundles");
        };
        let [one, other] = stops;
        let told = [image, "trust", text, label, TEXT, SHAPE, one, other];
        self.run(before, program, &told)
    }

    /// An image for the processor that valgrind emulates.
    fn compile_for_valgrind(&self) {
        let mut command = Command::new("valgrind");
        command.args(["--tool=none", PROGRAM, "compile"]);
        command.arg(&self.base).args(["-o", "valgrind.base"]);
        good(command.current_dir(&self.folder));
    }

    fn session(&self) -> Session {
        // SAFETY: nobody else knows the file.
        #[allow(unsafe_code)]
        let image = unsafe { Image::open(&self.at("x.base")) }.unwrap();
        let mut session = Session::open(&image, Options::default()).unwrap();
        let trust = Trust::read(&self.at("trust")).unwrap();
        for bundle in &self.bundles {
            session.load_file(&self.at(bundle), &trust, None).unwrap();
        }
        session
    }
}

/// Which of the two libraries.
#[derive(Clone, Copy)]
enum Link {
    Shared,
    Static,
}

/// A text of words that the tiny exports know.
const TEXT: &str = "w5 w9 w17";
/// A shape that words cannot spell, and bytes can.
const SHAPE: &str = r#"{"on": "boolean", "level": "integer"}"#;

/// A task's name, its prompt's form, and what its card says.
type Design = (&'static str, Form, Value);

/// A task of each kind of answer; the last reads pairs.
fn all_kinds(base: &Base) -> Vec<Design> {
    let [rows, prefix] = [FormKind::Embeddings, FormKind::KeyValues]
        .map(|kind| Form::of(kind, 5, &base.description));
    let hidden = base.description.hidden;
    let tags = json!({"kind": "token-linear", "classes": CLASSES, "hidden": hidden});
    let answer = |kind: &str, threshold| json!({"answer": {"kind": kind, "threshold": threshold}});
    vec![
        ("label", rows.clone(), json!({})),
        ("scoped", prefix.clone(), answer("label", 1.0)),
        ("labels", prefix, answer("labels", 0.2)),
        (
            "tags",
            rows.clone(),
            json!({"head": tags, "answer": {"kind": "tags"}}),
        ),
        ("pair", rows, json!({"inputs": "pair"})),
    ]
}

/// A task that generates text, and one that gives labels.
fn generating(base: &Base) -> Vec<Design> {
    let form = Form::of(FormKind::KeyValues, 3, &base.description);
    let text = json!({
        "head": {"kind": "generation", "classes": 0, "hidden": 0}, "labels": [], "answer": {"kind": "text"},
        "decode": {"most_tokens": 30, "stop_ids": []}, "pooling": "last",
    });
    vec![("text", form.clone(), text), ("label", form, json!({}))]
}

/// Where the libraries lie that this test was built with.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn good(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {said}");
    String::from_utf8(stdout).unwrap()
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The lines that the program in C owes.
fn expected(scene: &Scene) -> String {
    let mut session = scene.session();
    let tasks = session.tasks().map(|(task, name)| (task, name.to_owned()));
    let tasks: Vec<_> = tasks.collect();
    let mut said = String::new();
    for line in LINES.lines() {
        let (text, second) = line.split_once('\t').unwrap();
        for (task, name) in &tasks {
            session.activate(*task).unwrap();
            let pair = session.plan(*task).unwrap().inputs == Inputs::Pair;
            let answer = session.answer(text, pair.then_some(second)).unwrap();
            said += name;
            write(&mut said, answer);
        }
    }
    said
}

fn write(said: &mut String, answer: Answer<'_>) {
    let (kind, outside, choices) = match answer {
        Answer::Label { best, out_of_scope } => (1, out_of_scope, vec![Some(best)]),
        Answer::Labels(choices) => (2, false, choices.iter().collect()),
        Answer::Tags(choices) => (3, false, choices.iter().collect()),
        other => panic!("another kind of answer: {other:?}"),
    };
    write!(said, "\t{kind}\t{}", u8::from(outside)).unwrap();
    for choice in choices {
        let (label, score) = choice.map_or(("-", 0.0), |choice| (choice.label, choice.score));
        write!(said, "\t{label}:{:08x}", score.to_bits()).unwrap();
    }
    said.push('\n');
}

/// What was said, without the scores.
fn labels(said: &str) -> Vec<&str> {
    let fields = said.split_inclusive(['\t', '\n']);
    fields
        .map(|field| field.split_once(':').map_or(field, |(label, _)| label))
        .collect()
}

fn source(name: &str) -> PathBuf {
    root().join("tests/c").join(name)
}

/// The programs of both libraries, whose allocations are counted.
fn counting(scene: &Scene, source_name: &str) -> [&'static str; 2] {
    let programs = [("shared", Link::Shared), ("static", Link::Static)];
    programs.map(|(name, link)| {
        scene.compile(&source(source_name), link, &["-DCOUNT_ALLOCATIONS"], name);
        name
    })
}

#[test]
fn programs_in_c_answer_as_a_session_does() {
    let scene = Scene::new(&base_folder(), all_kinds);
    let expected = expected(&scene);
    for kind in ["\t1\t0\t", "\t1\t1\t", "\t2\t0\t", "\t3\t0\t"] {
        assert!(expected.contains(kind), "{kind:?} in {expected}");
    }
    for program in counting(&scene, "answer.c") {
        assert_eq!(scene.answers(&[], program, "x.base"), expected, "{program}");
    }
}

/// Draws as the programs in C do.
const DRAWN: Sampling = Sampling {
    temperature: 50.0,
    top_k: None,
    top_p: None,
    repetition_penalty: 1.0,
    seed: 7,
};

/// The lines that the program in C owes that generates, and the strings that end its text.
fn expected_texts(scene: &Scene) -> (String, [String; 2]) {
    let mut session = scene.session();
    let (task, _) = session.tasks().next().unwrap();
    session.activate(task).unwrap();
    let text = session.encode(TEXT, None).unwrap();
    let mut said = String::new();
    let streamed = |session: &mut Session, sampling: Sampling| {
        session.sample(sampling).unwrap();
        let streamed = session.stream(&text, |_| ()).unwrap();
        streamed.to_owned() + "\n"
    };
    let probable = streamed(&mut session, Sampling::default());
    said += &probable;
    session.sample(DRAWN).unwrap();
    for token in session.generate(&text, |_| {}).unwrap() {
        write!(said, " {token}").unwrap();
    }
    let drawn = streamed(&mut session, DRAWN);
    said += &format!("\n{probable}{drawn}");
    let mut pieces = 0;
    let cut = session.stream(&text, |_| {
        pieces += 1;
        match pieces {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    said += &format!("{}\n", cut.unwrap());
    session.at_most(Some(5)).unwrap();
    let short = streamed(&mut session, DRAWN);
    assert!(drawn.starts_with(short.trim_end()) && short.len() < drawn.len());
    said += &short;
    session.at_most(None).unwrap();
    let (top_k, top_p) = (Some(2), Some(0.25));
    let penalty = Sampling {
        repetition_penalty: 4.0,
        ..Sampling::default()
    };
    for sampling in [
        Sampling { top_k, ..DRAWN },
        Sampling { top_p, ..DRAWN },
        penalty,
    ] {
        let other = streamed(&mut session, sampling);
        assert!(other != drawn && other != probable);
        said += &other;
    }
    let stop: String = drawn.chars().skip(9).take(3).collect();
    let stops = [stop, "w5 never".to_owned()];
    session.stop_at(&stops).unwrap();
    let stopped = streamed(&mut session, DRAWN);
    assert!(stopped.len() < drawn.len() && drawn.starts_with(stopped.trim_end()));
    said += &stopped;
    let labels = Constraint::labels(&["w5 w9", "w17"]).unwrap();
    session.constrain(task, Some(&labels)).unwrap();
    said += &streamed(&mut session, DRAWN);
    let shape = Constraint::shape(SHAPE).unwrap();
    match session.constrain(task, Some(&shape)) {
        Ok(()) => said += &format!("PREFACE_OK\n{}", streamed(&mut session, DRAWN)),
        Err(_) => said += "PREFACE_INVALID_ARGUMENT\n",
    }
    said += &probable;
    (said, stops)
}

#[test]
fn programs_in_c_generate_what_a_session_does() {
    for (name, shaped) in [
        (DECODER, "PREFACE_INVALID_ARGUMENT\n"),
        (STORIES, "PREFACE_OK\n{"),
    ] {
        let Some(export) = export(name) else {
            return skip("the exports of ../shared");
        };
        let scene = Scene::new(export.folder(), generating);
        let (expected, stops) = expected_texts(&scene);
        assert!(expected.contains(shaped), "{expected}");
        for program in counting(&scene, "generate.c") {
            let said = scene.generates(&[], program, "x.base", &stops);
            assert_eq!(said, expected, "{name} {program}");
        }
    }
}

/// A program in C that answers lines of a pipe, a paragraph each.
struct Serving {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Serving {
    fn start(scene: &Scene, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(scene.at(program));
        command.args(arguments).current_dir(&scene.folder);
        command.env("LD_LIBRARY_PATH", libraries());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn ask(&mut self, line: &str) -> Vec<String> {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        let lines = self.said.by_ref().lines().map(Result::unwrap);
        lines.take_while(|line| !line.is_empty()).collect()
    }
}

#[test]
fn programs_in_c_serve_what_is_installed_while_they_run() {
    let Some(export) = export(ENCODER) else {
        return skip("the exports of ../shared");
    };
    let scene = Scene::new(export.folder(), |base| {
        let mut designs = all_kinds(base);
        designs.truncate(2);
        designs[1].2 = json!({});
        designs
    });
    let base = Base::open(export.folder()).unwrap();
    let (task, form, _) = all_kinds(&base).swap_remove(0);
    let labels = json!({"labels": ["one", "two", "three"]});
    scene.pack(&base, (task, form, labels), "2", "relabelled");
    let files = ["--base", "x.base", "--trust", "trust"];
    let install = |bundle: &str| {
        let store = ["install", bundle, "--store", "store", "--json"];
        let report = scene.preface(&[&store[..], &files].concat());
        let report: Value = serde_json::from_str(&report).unwrap();
        report["bundle_id"].as_str().unwrap().to_owned()
    };
    // Each answers with the label that the bundle gives by itself.
    let says = |task: &str, bundle: &str| {
        let bundle = ["run", "--json", "--bundle", bundle];
        let said = scene.preface(&[&bundle[..], &files, &[TEXT]].concat());
        let said: Value = serde_json::from_str(&said).unwrap();
        format!("{task} says {}", said["label"].as_str().unwrap())
    };
    for link in [Link::Shared, Link::Static] {
        let _ = fs::remove_dir_all(scene.at("store"));
        scene.compile(&source("follow.c"), link, &[], "follow");
        let first = install("label.preface");
        let mut program = Serving::start(&scene, "follow", &["x.base", "store", "trust", "other"]);
        let label = says("label", "label.preface");
        assert_eq!(
            program.ask(TEXT),
            [format!("label 0 {first}"), label.clone()]
        );
        assert_eq!(program.ask(TEXT), std::slice::from_ref(&label));
        let second = install("scoped.preface");
        let scoped = says("scoped", "scoped.preface");
        let both = [format!("scoped 1 {second}"), label, scoped.clone()];
        assert_eq!(program.ask(TEXT), both);
        let third = install("relabelled");
        let label = says("label", "relabelled");
        assert_eq!(
            program.ask(TEXT),
            [format!("label 0 {third}"), label, scoped]
        );
        drop(program.child.stdin.take());
        assert!(program.child.wait().unwrap().success());
    }
}

/// Every read and write is the program's own, every branch is on a value that was set, and nothing is lost.
#[test]
fn valgrind_finds_nothing() {
    if !is_there("valgrind") {
        return skip("valgrind");
    }
    let (Some(encoder), Some(decoder)) = (export(ENCODER), export(DECODER)) else {
        return skip("the exports of ../shared");
    };
    let memcheck = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
    ];
    let part = |text: &str, kind: u8| json!({"Sequence": {"id": text, "type_id": kind}});
    encoder.edit(|tokenizer| {
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "special_tokens": {},
            "single": [part("A", 0)], "pair": [part("A", 0), part("B", 1)],
        });
    });
    let scene = Scene::new(encoder.folder(), all_kinds);
    scene.compile_for_valgrind();
    scene.compile(&source("answer.c"), Link::Shared, &[], "plain");
    let said = scene.answers(&memcheck, "plain", "valgrind.base");
    assert_eq!(labels(&said), labels(&expected(&scene)));
    let scene = Scene::new(decoder.folder(), generating);
    scene.compile_for_valgrind();
    scene.compile(&source("generate.c"), Link::Shared, &[], "plain");
    let stops = ["w1 w".to_owned(), "w5 never".to_owned()];
    let said = scene.generates(&memcheck, "plain", "valgrind.base", &stops);
    assert_eq!(said, scene.generates(&[], "plain", "x.base", &stops));
}

#[test]
fn the_example_of_the_readme_answers() {
    let scene = Scene::new(&base_folder(), all_kinds);
    let readme = fs::read_to_string(root().join("runtime/c/README.md")).unwrap();
    let example = readme.split_once("```c\n").unwrap().1;
    let example = example.split_once("```").unwrap().0;
    fs::write(scene.at("example.c"), example).unwrap();
    scene.compile(&scene.at("example.c"), Link::Shared, &[], "example");
    let arguments = ["x.base", "label.preface", "trust", "turn on the light"];
    let said = scene.run(&[], "example", &arguments);
    let files = [
        "--base",
        "x.base",
        "--bundle",
        "label.preface",
        "--trust",
        "trust",
    ];
    let run = scene.preface(&[&["run"], &files[..], &["turn on the light"]].concat());
    assert_eq!(said, run);
    let refused = Command::new(scene.at("example"))
        .current_dir(&scene.folder)
        .args(["x.base", "altered", "trust", "turn on the light"])
        .env("LD_LIBRARY_PATH", libraries())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(12), "{text}");
    assert!(text.contains("altered is refused: bad signature"), "{text}");
}
