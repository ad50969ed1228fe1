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
use preface_runtime::{Answer, Image, Options, Session, Trust};
use preface_trainer::form::Form;
use serde_json::{Value, json};
use support::{
    adapters::{CLASSES, adapter},
    base_folder, root, skip,
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
/// What a static library needs beside itself.
const SYSTEM: [&str; 4] = ["-lpthread", "-ldl", "-lm", "-lgcc_s"];
/// Two texts a line, parted by a tab.
const LINES: &str = "turn on the light\tin the hall\n\
    it is dark in here and I cannot see the stairs, please help\tso it is\n\
    naïve – 42 \u{1f600} x\tyes\n";

/// A folder with an image, two trust stores, and a bundle of every kind of answer.
struct Scene {
    folder: TempDir,
    bundles: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut scene = Self {
            folder,
            bundles: Vec::new(),
        };
        let base = base_folder();
        scene.preface(&["compile", base.to_str().unwrap(), "-o", "x.base"]);
        for name in ["trust", "other"] {
            scene.preface(&["keygen", "-o", "keys", "--name", name]);
            let key = format!("keys/{name}.pub");
            scene.preface(&["trust", "new", "-o", name, "--key", &key]);
        }
        let base = Base::open(&base).unwrap();
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

    /// Compiles C source at `source`, linked with `library` of this build.
    fn compile(&self, source: &Path, library: &[&str], more: &[&str], name: &str) {
        let include = root().join("runtime/c/include");
        let mut command = Command::new("gcc");
        command.args(["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]);
        command.args(more).arg("-I").arg(include).arg(source);
        good(
            command
                .args(library)
                .args(SYSTEM)
                .arg("-o")
                .arg(self.at(name)),
        );
    }

    /// Runs a program of this folder on its files, as the argument of `before` where that names one.
    fn answers(&self, before: &[&str], program: &str, image: &str) -> String {
        let program = self.at(program);
        let words: Vec<&str> = [before, &[program.to_str().unwrap()]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&self.folder);
        command.args([image, "trust", "other", "altered"]);
        command.args(&self.bundles);
        command.stdin(fs::File::open(self.at("lines")).unwrap());
        good(command.env("LD_LIBRARY_PATH", libraries()))
    }
}

/// A task of each kind of answer; the last reads pairs.
fn designs(base: &Base) -> Vec<(&'static str, Form, Value)> {
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
    // SAFETY: nobody else knows the file.
    #[allow(unsafe_code)]
    let image = unsafe { Image::open(&scene.at("x.base")) }.unwrap();
    let mut session = Session::open(&image, Options::default()).unwrap();
    let trust = Trust::read(&scene.at("trust")).unwrap();
    for bundle in &scene.bundles {
        session.load_file(&scene.at(bundle), &trust, None).unwrap();
    }
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

#[test]
fn programs_in_c_answer_as_a_session_does() {
    let scene = Scene::new();
    let expected = expected(&scene);
    for kind in ["\t1\t0\t", "\t1\t1\t", "\t2\t0\t", "\t3\t0\t"] {
        assert!(expected.contains(kind), "{kind:?} in {expected}");
    }
    let folder = libraries();
    let (source, archive) = (root().join("tests/c/answer.c"), folder.join("libpreface.a"));
    let shared = ["-L", folder.to_str().unwrap(), "-lpreface"];
    let counting = ["-DCOUNT_ALLOCATIONS"];
    scene.compile(&source, &shared, &counting, "shared");
    scene.compile(&source, &[archive.to_str().unwrap()], &counting, "static");
    for program in ["shared", "static"] {
        assert_eq!(scene.answers(&[], program, "x.base"), expected, "{program}");
    }
    if !is_there("valgrind") {
        return skip("valgrind");
    }
    // It emulates a processor of its own, whose kernels need an image of their own.
    let base = base_folder();
    let compile = [
        PROGRAM,
        "compile",
        base.to_str().unwrap(),
        "-o",
        "valgrind.base",
    ];
    let mut command = Command::new("valgrind");
    good(
        command
            .arg("--tool=none")
            .args(compile)
            .current_dir(&scene.folder),
    );
    scene.compile(&source, &shared, &[], "plain");
    let memcheck = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
    ];
    let said = scene.answers(&memcheck, "plain", "valgrind.base");
    assert_eq!(labels(&said), labels(&expected));
}

#[test]
fn the_example_of_the_readme_answers() {
    let scene = Scene::new();
    let readme = fs::read_to_string(root().join("runtime/c/README.md")).unwrap();
    let example = readme.split_once("```c\n").unwrap().1;
    let example = example.split_once("```").unwrap().0;
    fs::write(scene.at("example.c"), example).unwrap();
    let folder = libraries();
    let shared = ["-L", folder.to_str().unwrap(), "-lpreface"];
    scene.compile(&scene.at("example.c"), &shared, &[], "example");
    let arguments = ["x.base", "label.preface", "trust", "turn on the light"];
    let mut command = Command::new(scene.at("example"));
    command.current_dir(&scene.folder).args(arguments);
    let said = good(command.env("LD_LIBRARY_PATH", &folder));
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
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(12), "{text}");
    assert!(text.contains("altered is refused: bad signature"), "{text}");
}
