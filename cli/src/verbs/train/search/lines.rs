//! `search.jsonl`: what became of every design in every rung, so that an interrupted search goes on.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use preface_trainer::search::Finished;

use super::FOLDER;
use crate::json_lines;

const LINES: &str = "search.jsonl";

/// The lines of a search.
pub struct Lines {
    path: PathBuf,
    finished: Vec<Finished>,
}

impl Lines {
    /// Opens the file in `output`, with the lines of an interrupted search where it is resumed and none otherwise.
    ///
    /// # Errors
    /// When it cannot be read or written, or holds something else.
    pub fn open(output: &Path, resumed: bool) -> anyhow::Result<Self> {
        let path = output.join(LINES);
        let folder = output.join(FOLDER);
        if !resumed && folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let lines = match resumed {
            true => json_lines::read(&path, "a search")?,
            false => Vec::new(),
        };
        json_lines::replace(&path, lines.iter().map(|(line, _)| &**line))?;
        let finished = lines.into_iter().map(|(_, finished)| finished).collect();
        Ok(Self { path, finished })
    }

    /// Removes those of an earlier search, of which `output` holds no more.
    pub fn forget(output: &Path) {
        let _ = fs::remove_file(output.join(LINES));
    }

    /// What became of that training, where its line is there.
    pub fn find(&self, training: &str) -> Option<&Finished> {
        self.finished
            .iter()
            .find(|finished| finished.training == training)
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, finished: Finished) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(&finished)?);
        let file = OpenOptions::new().append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished.push(finished);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use preface_trainer::search::{Design, Trial};

    use super::*;

    fn finished(training: &str) -> Finished {
        Finished {
            training: training.into(),
            rung: 1,
            design: Design {
                method: "prompt-tuning".into(),
                tokens: 2,
                layers: None,
                head: "linear".into(),
                head_rank: None,
            },
            epochs: 3,
            rows: 80,
            seconds: 1.5,
            trials: vec![Trial {
                learning_rate: 0.3,
                seed: 0,
                dev: 0.75,
                loss: 0.5,
                bytes: 2048,
            }],
            failure: None,
        }
    }

    #[test]
    fn lines_are_kept_for_a_resumed_search_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = Lines::open(folder.path(), false).unwrap();
        for training in ["a", "b"] {
            lines.add(finished(training)).unwrap();
        }
        let path = folder.path().join(LINES);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"training\":\"c")).unwrap();
        let lines = Lines::open(folder.path(), true).unwrap();
        assert_eq!(lines.find("b"), Some(&finished("b")));
        assert_eq!(lines.find("c"), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        fs::write(&path, "notes of mine\n").unwrap();
        let error = Lines::open(folder.path(), true).err().unwrap();
        assert!(format!("{error:#}").contains("line 1"), "{error:#}");
        assert!(
            Lines::open(folder.path(), false)
                .unwrap()
                .find("a")
                .is_none()
        );
    }
}
