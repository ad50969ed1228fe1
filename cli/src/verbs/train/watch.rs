//! Drawing training, and writing it down.

use std::path::Path;

use indicatif::ProgressBar;
use preface_trainer::progress::{EpochFigures, Progress, StepFigures};

use crate::{
    journal::{Journal, Resume},
    output::Output,
};

/// Draws training.
pub struct Bar<'a> {
    output: &'a Output,
    label: String,
    bar: Option<ProgressBar>,
}

impl<'a> Bar<'a> {
    /// A bar with `label` before it.
    pub fn new(output: &'a Output, label: &str) -> Self {
        Self {
            output,
            label: label.to_owned(),
            bar: None,
        }
    }
}

impl Progress for Bar<'_> {
    fn begin(&mut self, epochs: usize, steps: usize) {
        self.bar = Some(self.output.progress((epochs * steps) as u64, &self.label));
    }

    fn step(&mut self, figures: &StepFigures) {
        if let (Some(bar), 0) = (&self.bar, figures.candidate) {
            bar.set_position(figures.step as u64);
        }
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        let EpochFigures {
            epoch,
            train_loss,
            dev,
            ..
        } = figures;
        let main = dev.iter().next();
        if let (Some(bar), Some((name, figure))) = (&self.bar, main) {
            bar.set_message(format!(
                "epoch {epoch}: loss {train_loss:.3}, dev {name} {figure:.3}"
            ));
        }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Draws training on `bar` and writes its journal, which is opened when training begins: what cannot be trained leaves no figures.
pub struct Watch<'a, B> {
    bar: B,
    folder: &'a Path,
    candidates: usize,
    resume: Resume,
    journal: Option<anyhow::Result<Journal>>,
}

impl<'a, B: Progress> Watch<'a, B> {
    /// A watch whose journal lies in `folder`.
    pub fn new(bar: B, folder: &'a Path, candidates: usize, resume: Resume) -> Self {
        Self {
            bar,
            folder,
            candidates,
            resume,
            journal: None,
        }
    }

    /// Ends the journal.
    ///
    /// # Errors
    /// When it could not be opened or written.
    pub fn finish(self) -> anyhow::Result<()> {
        self.journal.map_or(Ok(()), |journal| journal?.finish())
    }

    fn journal(&mut self) -> Option<&mut Journal> {
        self.journal.as_mut()?.as_mut().ok()
    }
}

impl<B: Progress> Progress for Watch<'_, B> {
    fn begin(&mut self, epochs: usize, steps: usize) {
        self.bar.begin(epochs, steps);
        self.journal = Some(Journal::open(self.folder, self.candidates, self.resume));
        if let Some(journal) = self.journal() {
            journal.begin(epochs, steps);
        }
    }

    fn step(&mut self, figures: &StepFigures) {
        self.bar.step(figures);
        if let Some(journal) = self.journal() {
            journal.step(figures);
        }
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        self.bar.epoch(figures);
        if let Some(journal) = self.journal() {
            journal.epoch(figures);
        }
    }
}
