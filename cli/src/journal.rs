//! The journal of a training: `metrics.jsonl`, and the same figures as TensorBoard events.
//!
//! `metrics.jsonl` is what counts: the event files are written anew from it when a training is resumed.

mod events;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use preface_trainer::progress::{EpochFigures, Progress, StepFigures};
use serde::{Deserialize, Serialize};

use self::events::{Events, event_files};
use crate::json_lines;

const METRICS: &str = "metrics.jsonl";
const CANDIDATE: &str = "candidate-";

/// What happens to figures that lie in the folder already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// They belong to another training and are removed.
    #[default]
    Fresh,
    /// Training goes on behind this epoch: its figures and those before it stay, later ones are removed.
    After(usize),
}

/// Writes the figures of a training into a folder as they come.
///
/// Each line of `metrics.jsonl` is a step (`"kind":"step"`) or an epoch (`"kind":"epoch"`) of one candidate, with its
/// `time` in Unix seconds. Everything is flushed after each epoch. What cannot be written is kept until
/// [`Journal::finish`], so that training itself goes on.
pub struct Journal {
    path: PathBuf,
    metrics: BufWriter<File>,
    runs: Vec<Events>,
    failure: Option<io::Error>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: Entry,
    time: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Entry {
    Step(StepFigures),
    Epoch(EpochFigures),
}

impl Journal {
    /// Opens the journal in `folder` for a training of `candidates` candidates. The events of several candidates lie in
    /// one subfolder each (`candidate-0` and so on), which TensorBoard shows as runs.
    ///
    /// # Errors
    /// When the folder cannot be written, or its `metrics.jsonl` is not a journal.
    pub fn open(folder: &Path, candidates: usize, resume: Resume) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join(METRICS);
        let lines = match resume {
            Resume::Fresh => Vec::new(),
            Resume::After(epoch) => kept(&path, epoch)?,
        };
        json_lines::replace(&path, lines.iter().map(String::as_str))?;
        let runs = runs(folder, candidates)
            .with_context(|| format!("cannot write event files in {}", folder.display()))?;
        let metrics = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut journal = Self {
            path,
            metrics: BufWriter::new(metrics),
            runs,
            failure: None,
        };
        // A figure that is not finite is null in JSON: such a line stays, but has no event.
        for line in lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
        {
            journal.attempt(|journal| journal.event(&line));
        }
        journal.attempt(Self::flush);
        Ok(journal)
    }

    /// Ends the journal.
    ///
    /// # Errors
    /// The first failure to write since it was opened.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.attempt(Self::flush);
        match self.failure {
            Some(error) => Err(error).with_context(|| {
                format!(
                    "{} and the events beside it are incomplete",
                    self.path.display()
                )
            }),
            None => Ok(()),
        }
    }

    fn note(&mut self, entry: Entry) {
        let line = Line { entry, time: now() };
        self.attempt(|journal| {
            serde_json::to_writer(&mut journal.metrics, &line)?;
            journal.metrics.write_all(b"\n")?;
            journal.event(&line)
        });
    }

    fn event(&mut self, line: &Line) -> io::Result<()> {
        match &line.entry {
            Entry::Step(step) => {
                let scalars = [
                    ("train/loss", step.loss),
                    ("train/gradient_norm", step.gradient_norm),
                    ("train/learning_rate", step.learning_rate),
                ];
                let run = self.run(step.candidate)?;
                run.scalars(line.time, step.step, scalars)
            }
            Entry::Epoch(epoch) => {
                let losses = [
                    ("train/epoch_loss".to_owned(), epoch.train_loss),
                    ("dev/loss".to_owned(), epoch.dev_loss),
                ];
                let metrics = epoch.dev.iter().filter(|(name, _)| *name != "loss");
                let metrics = metrics.map(|(name, &value)| (format!("dev/{name}"), value));
                let scalars: Vec<(String, f64)> = losses.into_iter().chain(metrics).collect();
                let scalars = scalars.iter().map(|(tag, value)| (tag.as_str(), *value));
                let run = self.run(epoch.candidate)?;
                run.scalars(line.time, epoch.epoch, scalars)
            }
        }
    }

    fn run(&mut self, candidate: usize) -> io::Result<&mut Events> {
        let unknown = || {
            io::Error::other(format!(
                "figures of candidate {candidate}, which was not announced"
            ))
        };
        self.runs.get_mut(candidate).ok_or_else(unknown)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.metrics.flush()?;
        self.runs.iter_mut().try_for_each(Events::flush)
    }

    /// Does `action` unless an earlier one failed, and remembers the first failure.
    fn attempt(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.failure.is_none() {
            self.failure = action(self).err();
        }
    }
}

impl Progress for Journal {
    fn begin(&mut self, _epochs: usize, _steps: usize) {}

    fn step(&mut self, figures: &StepFigures) {
        self.note(Entry::Step(*figures));
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        self.note(Entry::Epoch(figures.clone()));
        self.attempt(Self::flush);
    }
}

/// The lines of the journal at `path` up to `epoch`.
fn kept(path: &Path, epoch: usize) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Position {
        epoch: usize,
    }
    let lines = json_lines::read(path, "a training journal")?;
    let kept = lines
        .into_iter()
        .filter(|(_, position): &(String, Position)| position.epoch <= epoch);
    Ok(kept.map(|(line, _)| line).collect())
}

/// One event file for each candidate, in place of all that lie in `folder`.
fn runs(folder: &Path, candidates: usize) -> io::Result<Vec<Events>> {
    let time = now();
    let place = |candidate| match candidates {
        1 => folder.to_owned(),
        _ => folder.join(format!("{CANDIDATE}{candidate}")),
    };
    let create = |candidate| Events::create(&place(candidate), time);
    let runs = (0..candidates)
        .map(create)
        .collect::<io::Result<Vec<_>>>()?;
    for run_folder in run_folders(folder)? {
        for path in event_files(&run_folder)? {
            if !runs.iter().any(|run| run.path() == path) {
                fs::remove_file(path)?;
            }
        }
        // One of a candidate that is none any more; it stays where it holds anything else.
        if run_folder != folder {
            let _ = fs::remove_dir(run_folder);
        }
    }
    Ok(runs)
}

/// `folder` and its candidates' subfolders.
fn run_folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(CANDIDATE) && entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn step(candidate: usize, epoch: usize, step: usize) -> StepFigures {
        StepFigures {
            candidate,
            epoch,
            step,
            loss: 1.0 / step as f64,
            gradient_norm: 0.5,
            learning_rate: 1e-3,
        }
    }

    fn epoch(candidate: usize, epoch: usize) -> EpochFigures {
        EpochFigures {
            candidate,
            epoch,
            train_loss: 0.25,
            dev_loss: 0.5,
            dev: BTreeMap::from([("accuracy".into(), 0.75)]),
            best: true,
            seconds: 2.0,
        }
    }

    fn write(journal: &mut Journal, candidates: usize, epochs: std::ops::RangeInclusive<usize>) {
        for at in epochs {
            for candidate in 0..candidates {
                journal.step(&step(candidate, at, at));
                journal.epoch(&epoch(candidate, at));
            }
        }
    }

    fn lines(folder: &Path) -> Vec<(String, u64, u64)> {
        let text = fs::read_to_string(folder.join(METRICS)).unwrap();
        text.lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let number = |name: &str| line[name].as_u64().unwrap();
                assert!(line["time"].as_f64().unwrap() > 1.6e9);
                let kind = line["kind"].as_str().unwrap().to_owned();
                (kind, number("candidate"), number("epoch"))
            })
            .collect()
    }

    fn events(folder: &Path) -> Vec<(String, i64, f32)> {
        let files = event_files(folder).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        events::read(&files[0])
    }

    #[test]
    fn figures_in_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 1, Resume::Fresh).unwrap();
        write(&mut journal, 1, 1..=2);
        journal.finish().unwrap();
        let kinds: Vec<_> = lines(folder.path())
            .into_iter()
            .map(|line| (line.0, line.2))
            .collect();
        let kind = |kind: &str, epoch| (kind.to_owned(), epoch);
        assert_eq!(
            kinds,
            [
                kind("step", 1),
                kind("epoch", 1),
                kind("step", 2),
                kind("epoch", 2)
            ]
        );
        let expected = [
            ("train/loss", 1, 1.0),
            ("train/gradient_norm", 1, 0.5),
            ("train/learning_rate", 1, 1e-3),
            ("train/epoch_loss", 1, 0.25),
            ("dev/loss", 1, 0.5),
            ("dev/accuracy", 1, 0.75),
            ("train/loss", 2, 0.5),
        ];
        let events = events(folder.path());
        assert_eq!(
            events[..7],
            expected.map(|(tag, step, value)| (tag.to_owned(), step, value))
        );
        assert_eq!(events.len(), 12);
    }

    #[test]
    fn candidates_are_runs() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 3, Resume::Fresh).unwrap();
        write(&mut journal, 3, 1..=1);
        journal.finish().unwrap();
        assert_eq!(lines(folder.path()).len(), 6);
        for candidate in 0..3 {
            assert_eq!(
                events(&folder.path().join(format!("candidate-{candidate}"))).len(),
                6
            );
        }
        assert!(event_files(folder.path()).unwrap().is_empty());
        Journal::open(folder.path(), 1, Resume::Fresh)
            .unwrap()
            .finish()
            .unwrap();
        assert!(!folder.path().join("candidate-1").exists());
        assert!(lines(folder.path()).is_empty() && events(folder.path()).is_empty());
    }

    #[test]
    fn a_resumed_journal_is_that_of_an_unbroken_run() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 2, Resume::Fresh).unwrap();
        write(&mut journal, 2, 1..=3);
        journal.finish().unwrap();
        let path = folder.path().join(METRICS);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}{{\"kind\":\"step\",\"cand")).unwrap();

        let mut journal = Journal::open(folder.path(), 2, Resume::After(2)).unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(before.starts_with(&kept) && kept.lines().count() == 8);
        write(&mut journal, 2, 3..=4);
        journal.finish().unwrap();

        let epochs: Vec<u64> = lines(folder.path()).iter().map(|line| line.2).collect();
        assert_eq!(epochs, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]);
        for candidate in ["candidate-0", "candidate-1"] {
            let events = events(&folder.path().join(candidate));
            let steps = events
                .iter()
                .filter(|event| event.0 == "train/loss")
                .map(|event| event.1);
            assert_eq!(steps.collect::<Vec<_>>(), [1, 2, 3, 4]);
        }
    }

    #[test]
    fn resuming_without_a_journal_begins_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 1, Resume::After(5)).unwrap();
        write(&mut journal, 1, 6..=6);
        journal.finish().unwrap();
        assert_eq!(lines(folder.path()).len(), 2);
    }

    #[test]
    fn what_a_training_that_was_killed_left_half_written_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(".metrics.jsonl.00112233aabbccdd.tmp");
        fs::write(&left, "{").unwrap();
        Journal::open(folder.path(), 1, Resume::Fresh).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn another_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS);
        fs::write(&path, "{\"epoch\":1}\nnotes of mine\n").unwrap();
        let error = Journal::open(folder.path(), 1, Resume::After(1))
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        assert!(fs::read_to_string(&path).unwrap().contains("notes of mine"));
    }

    #[test]
    fn losses_that_are_not_numbers_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 1, Resume::Fresh).unwrap();
        journal.step(&StepFigures {
            loss: f64::NAN,
            ..step(0, 1, 1)
        });
        journal.finish().unwrap();
        assert_eq!(lines(folder.path()).len(), 1);
        assert!(events(folder.path())[0].2.is_nan());
        Journal::open(folder.path(), 1, Resume::After(1))
            .unwrap()
            .finish()
            .unwrap();
        assert_eq!(lines(folder.path()).len(), 1);
    }

    #[test]
    fn the_first_failure_is_told_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), 1, Resume::Fresh).unwrap();
        write(&mut journal, 2, 1..=2);
        let error = format!("{:#}", journal.finish().unwrap_err());
        assert!(
            error.contains(METRICS) && error.contains("candidate 1"),
            "{error}"
        );
    }
}
