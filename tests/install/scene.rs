//! A device: a tiny base image, a trust store, bundles of one task, and a store that the program writes.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use preface_bundle::Id;
use preface_graph::Base;
use preface_runtime::{
    Answer, Encoded, Image, Options, Session, TokenizerUse, Trust,
    store::{State, Store, StoreError, TaskState},
};
use preface_trainer::form::Form;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    fused,
    support::adapters::{CLASSES, adapter},
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_preface");
pub const TASK: &str = "intent";
/// A text as its ids, and as the tokenizer reads it.
pub const IDS: [u32; 3] = [5, 9, 17];
pub const TEXT: &str = "w5 w9 w17";

/// What a bundle says of its probe.
#[derive(Clone, Copy)]
pub enum Probe {
    None,
    Right,
    Wrong,
}

/// What differs between two bundles of a task.
pub struct Design<'a> {
    /// The bundle's file.
    pub name: &'a str,
    pub sequence: u64,
    /// Other numbers in prompt and head, and other labels.
    pub salt: u32,
    pub probe: Probe,
    /// More arguments of `pack`.
    pub more: &'a [&'a str],
}

pub struct Scene {
    folder: TempDir,
    base: Base,
}

impl Scene {
    /// The base, the image, a key, a trust store, and the bundles `old` of sequence 1 and `new` of sequence 2.
    pub fn new() -> Self {
        let scene = Self::bare();
        scene.pack(1, 1, "old");
        scene.pack(2, 2, "new");
        scene
    }

    fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("base");
        fs::create_dir(&source).unwrap();
        let models = fused::models();
        let (_, model) = &models[0];
        fused::write(model, &source);
        let base = Base::open(&source).unwrap();
        let scene = Self { folder, base };
        let at = |name: &str| scene.text(name);
        good(&["compile", &at("base"), "-o", &at("x.base")]);
        good(&[
            "keygen",
            "-o",
            &at("keys"),
            "--name",
            "k",
            "--no-passphrase",
        ]);
        good(&[
            "trust",
            "new",
            "-o",
            &at("trust"),
            "--key",
            &at("keys/k.pub"),
        ]);
        scene
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// A bundle with a probe that holds.
    pub fn pack(&self, sequence: u64, salt: u32, name: &str) -> Id {
        self.design(&Design {
            name,
            sequence,
            salt,
            probe: Probe::Right,
            more: &[],
        })
    }

    pub fn design(&self, design: &Design<'_>) -> Id {
        let label = match design.probe {
            Probe::None => None,
            probe => {
                self.write(design, None);
                let found = self.class_of(design.name);
                let wrong = usize::from(matches!(probe, Probe::Wrong));
                Some((found + wrong) % CLASSES)
            }
        };
        self.write(design, label);
        id_of(&self.at(design.name))
    }

    fn write(&self, design: &Design<'_>, probe: Option<usize>) {
        let kind = self.base.description.forms[0];
        let form = Form::of(kind, 2, &self.base.description);
        let salt = design.salt;
        let labels: Vec<String> = (0..CLASSES)
            .map(|class| format!("{salt}-{class}"))
            .collect();
        let probes: Vec<Value> = probe
            .iter()
            .map(|label| json!({"ids": IDS, "label": label}))
            .collect();
        let mut adapter = adapter(
            &self.base,
            &form,
            json!({"labels": labels, "probes": probes}),
        );
        let numbers = adapter.prompt.tensors.iter_mut().chain(&mut adapter.head);
        numbers
            .flatten()
            .for_each(|number| *number = (*number * salt as f32).sin() * 0.5);
        let folder = self.text("adapter");
        adapter.write(Path::new(&folder)).unwrap();
        let (key, sequence) = (self.text("keys/k.key"), design.sequence.to_string());
        let pack = ["pack", &folder, "--task", TASK, "--sequence", &sequence];
        let out = ["--key", &key, "-o", &self.text(design.name)];
        good(&[&pack[..], &out, design.more].concat());
    }

    pub fn image(&self) -> Image {
        // SAFETY: nobody else knows the file.
        #[allow(unsafe_code)]
        let image = unsafe { Image::open(&self.at("x.base")) };
        image.unwrap()
    }

    pub fn session(&self) -> Session {
        let tokenizer = TokenizerUse::WithFirstText;
        let options = Options {
            tokenizer,
            ..Options::default()
        };
        Session::open(&self.image(), options).unwrap()
    }

    pub fn trust(&self) -> Trust {
        Trust::read(&self.at("trust")).unwrap()
    }

    /// The class that a bundle answers, by itself.
    fn class_of(&self, name: &str) -> usize {
        let mut session = self.session();
        let handle = session
            .load_file(&self.at(name), &self.trust(), None)
            .unwrap();
        session.activate(handle).unwrap();
        match session.answer_encoded(&Encoded::of_ids(&IDS)).unwrap() {
            Answer::Label { best, .. } => best.class,
            other => panic!("{other:?}"),
        }
    }

    /// What a bundle answers, by itself: the label and the bits of its score.
    pub fn answer_of(&self, name: &str) -> (String, u32) {
        let mut session = self.session();
        let handle = session
            .load_file(&self.at(name), &self.trust(), None)
            .unwrap();
        session.activate(handle).unwrap();
        said(&mut session)
    }

    pub fn store(&self) -> Store {
        Store::at(&self.at("store"))
    }

    pub fn state(&self) -> State {
        self.store().state().unwrap()
    }

    pub fn task(&self) -> TaskState {
        self.state().task(TASK).unwrap().clone()
    }

    /// The arguments that install a bundle.
    pub fn install_arguments(&self, name: &str, more: &[&str]) -> Vec<String> {
        let files = [
            self.text(name),
            self.text("x.base"),
            self.text("trust"),
            self.text("store"),
        ];
        let [file, base, trust, store] = &files;
        let arguments = [
            "install", file, "--base", base, "--trust", trust, "--store", store,
        ];
        let all = [&arguments[..], more, &["--json"]].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// Exit code and report of `install`.
    pub fn install(&self, name: &str, more: &[&str]) -> (i32, Value) {
        let arguments = self.install_arguments(name, more);
        let output = Command::new(PROGRAM).args(&arguments).output().unwrap();
        let (code, report) = reported(&output);
        assert_eq!(report["verified"], code == 0, "{report}");
        (code, report)
    }

    /// Installs a bundle, which must be good.
    pub fn installed(&self, name: &str) -> Value {
        let (code, report) = self.install(name, &[]);
        assert_eq!(code, 0, "{report}");
        report
    }

    /// Exit code and report of a verb on the store.
    pub fn verb(&self, arguments: &[&str]) -> (i32, Value) {
        let store = self.text("store");
        let arguments = [arguments, &["--store", &store, "--json"]].concat();
        reported(&Command::new(PROGRAM).args(&arguments).output().unwrap())
    }

    /// What `run --store` answers, with what it says on stderr.
    pub fn run(&self) -> (i32, String, String) {
        let files = [self.text("x.base"), self.text("trust"), self.text("store")];
        let [base, trust, store] = &files;
        let arguments = [
            "run", "--base", base, "--trust", trust, "--store", store, TEXT,
        ];
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap(),
            said(&output.stdout),
            said(&output.stderr),
        )
    }

    /// Files that are there for a moment alone.
    pub fn temporary(&self) -> Vec<PathBuf> {
        let folders = ["store", "store/bundles"].map(|name| fs::read_dir(self.at(name)));
        let files = folders.into_iter().flatten().flatten().flatten();
        files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|end| end == "tmp"))
            .collect()
    }

    /// Puts a copy of the store aside.
    pub fn save(&self) {
        copy(&self.at("store"), &self.at("saved"));
    }

    /// Puts the copy back in the store's place; where there is none, nothing is there.
    pub fn restore(&self) {
        let _ = fs::remove_dir_all(self.at("store"));
        if self.at("saved").exists() {
            copy(&self.at("saved"), &self.at("store"));
        }
    }
}

/// Copies a store, file by file.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

pub fn id_of(path: &Path) -> Id {
    let bytes = fs::read(path).unwrap();
    preface_bundle::Frame::parse(&bytes).unwrap().bundle_id()
}

/// What the active task of a session answers: the label and the bits of its score.
pub fn said(session: &mut Session) -> (String, u32) {
    match session.answer_encoded(&Encoded::of_ids(&IDS)).unwrap() {
        Answer::Label { best, .. } => (best.label.to_owned(), best.score.to_bits()),
        other => panic!("{other:?}"),
    }
}

pub fn reported(output: &Output) -> (i32, Value) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.signal().is_none(), "{said}");
    let code = output.status.code().unwrap();
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(report["exit_code"], code, "{report}");
    if code != 0 {
        let message = report["message"].as_str().unwrap();
        assert!(said.contains(message), "people are told as well: {said}");
    }
    (code, report)
}

/// Runs the program, which does as it is told.
pub fn good(arguments: &[&str]) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

/// Exit code and reason of an install.
pub fn code(scene: &Scene, name: &str) -> (i32, String) {
    let (code, report) = scene.install(name, &[]);
    (code, report["reason"].as_str().unwrap().to_owned())
}

/// The same as it should be.
pub fn is(code: i32, reason: &str) -> (i32, String) {
    (code, reason.to_owned())
}

/// The sequence that was confirmed.
pub fn floor(scene: &Scene) -> Option<u64> {
    scene.task().confirmed.map(|floor| floor.sequence)
}

/// What must hold whatever happened: the old bundle or the new one is active and can be loaded, the floor is not above
/// it, and the next install works.
pub fn check_sound(scene: &Scene, allowed: &[Option<Id>], what: &str) -> Option<Id> {
    let active = match scene.store().state() {
        Err(StoreError::NoStore { .. }) => None,
        state => {
            let state = state.unwrap_or_else(|error| panic!("{what}: {error}"));
            state.task(TASK).and_then(|task| {
                let active = task.active.and_then(|id| task.release(id));
                let floor = task.confirmed.map(|floor| floor.order());
                assert!(
                    floor <= active.map(|active| active.order()),
                    "{what}: {task:?}"
                );
                assert_eq!(
                    task.trial,
                    active.is_some() && floor != active.map(|one| one.order())
                );
                task.active
            })
        }
    };
    assert!(allowed.contains(&active), "{what}: {active:?} is active");
    if let Some(id) = active {
        let path = scene.at(&format!("store/bundles/{id}.preface"));
        assert_eq!(id_of(&path), id, "{what}");
        let loaded = scene.session().load_file(&path, &scene.trust(), None);
        assert!(loaded.is_ok(), "{what}: {loaded:?}");
    }
    active
}

/// The next install works, and leaves nothing behind.
pub fn check_next(scene: &Scene, what: &str) {
    let (code, report) = scene.install("new", &[]);
    assert_eq!(code, 0, "{what}: {report}");
    let task = scene.task();
    let new = Some(id_of(&scene.at("new")));
    let confirmed = task.confirmed.map(|floor| floor.id);
    assert_eq!(
        (task.active, confirmed, task.trial),
        (new, new, false),
        "{what}"
    );
    assert!(
        scene.temporary().is_empty(),
        "{what}: {:?}",
        scene.temporary()
    );
    let files = fs::read_dir(scene.at("store/bundles")).unwrap().count();
    assert_eq!(files, task.kept.len(), "{what}: a file that nobody names");
}
