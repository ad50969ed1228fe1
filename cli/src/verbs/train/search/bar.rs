//! Drawing a search.

use indicatif::ProgressBar;
use preface_trainer::{
    progress::{EpochFigures, Progress, StepFigures},
    search::Design,
};

/// Draws the trainings of a rung.
pub struct RungBar {
    bar: ProgressBar,
    steps: usize,
    begun: usize,
    design: String,
}

impl RungBar {
    /// Over designs of `steps` steps each.
    pub fn new(bar: ProgressBar, steps: usize) -> Self {
        Self {
            bar,
            steps,
            begun: 0,
            design: String::new(),
        }
    }

    /// The next design begins.
    pub fn design(&mut self, design: &Design) {
        self.bar.set_position((self.begun * self.steps) as u64);
        self.begun += 1;
        self.design = design.to_string();
        self.bar.set_message(self.design.clone());
    }
}

impl Progress for RungBar {
    fn begin(&mut self, _: usize, _: usize) {}

    fn step(&mut self, figures: &StepFigures) {
        let before = self.begun.saturating_sub(1) * self.steps;
        self.bar.set_position((before + figures.step) as u64);
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        if let Some((name, figure)) = figures.dev.iter().next() {
            self.bar
                .set_message(format!("{}: dev {name} {figure:.3}", self.design));
        }
    }
}

impl Drop for RungBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
