//! The runtime's C interface: programs in C against the header and both libraries answer as a session in Rust does.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use preface_bundle::Inputs;
use preface_graph::{Base, FormKind};
use preface_runtime::{Answer, Image, Options, Sampling, Session, Trust};
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
        for (task, form, changes) in designs(&base) {
            let design = adapter(&base, &form, changes);
            design.write(&scene.at("adapter")).unwrap();
            let file = format!("{task}.preface");
            let pack = ["pack", "adapter", "--task", task, "--sequence", "1"];
            scene.preface(&[&pack[..], &["--key", "keys/trust.key", "-o", &file]].concat());
            scene.bundles.push(file);
        }
        let mut altered = fs::read(scene.at(&scene.bundles[0])).unwrap();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(scene.at("altered"), altered).unwrap();
        fs::write(scene.at("lines"), LINES).unwrap();
        scene
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

    /// What `tests/c/generate.c` says.
    fn generates(&self, before: &[&str], program: &str, image: &str) -> String {
        let [text, label] = &self.bundles[..] else {
            panic!("two bundles");
        };
        self.run(before, program, &[image, "trust", text, label, TEXT])
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
        "decode": {"most_tokens": 12, "stop_ids": []}, "pooling": "last",
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

#[test]
fn programs_in_c_generate_what_a_session_does() {
    let Some(export) = export(DECODER) else {
        return skip("the exports of ../shared");
    };
    let scene = Scene::new(export.folder(), generating);
    let mut session = scene.session();
    let (task, _) = session.tasks().next().unwrap();
    session.activate(task).unwrap();
    let mut expected = match session.answer(TEXT, None).unwrap() {
        Answer::Text(text) => format!("{text}\n"),
        other => panic!("another kind of answer: {other:?}"),
    };
    let sampling = Sampling {
        temperature: 50.0,
        seed: 7,
        ..Sampling::default()
    };
    session.sample(sampling).unwrap();
    let text = session.encode(TEXT, None).unwrap();
    for token in session.generate(&text, |_| {}).unwrap() {
        write!(expected, " {token}").unwrap();
    }
    expected.push('\n');
    for program in counting(&scene, "generate.c") {
        assert_eq!(
            scene.generates(&[], program, "x.base"),
            expected,
            "{program}"
        );
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
    let said = scene.generates(&memcheck, "plain", "valgrind.base");
    assert_eq!(said, scene.generates(&[], "plain", "x.base"));
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
