//! How training goes, as it is told while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Figures of one step of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// The candidate, counted from 0.
    pub candidate: usize,
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// The step, counted from 1 over the whole run.
    pub step: usize,
    /// Mean loss over the rows of the step.
    pub loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The prompt's learning rate at this step.
    pub learning_rate: f64,
}

/// Figures of one epoch of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochFigures {
    /// The candidate, counted from 0.
    pub candidate: usize,
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Mean loss over the training rows, each as it was when it was learned from.
    pub train_loss: f64,
    /// Mean loss over the dev rows.
    pub dev_loss: f64,
    /// Figures on the dev data, by name.
    pub dev: BTreeMap<String, f64>,
    /// Whether it is the best epoch so far.
    pub best: bool,
    /// Wall time since training began.
    pub seconds: f64,
}

/// Told how training goes.
pub trait Progress {
    /// Training begins: at most `epochs` passes of `steps` steps each.
    fn begin(&mut self, epochs: usize, steps: usize);
    /// A step is done; told once for every candidate.
    fn step(&mut self, figures: &StepFigures);
    /// An epoch is done; told once for every candidate.
    fn epoch(&mut self, figures: &EpochFigures);
}

impl<P: Progress + ?Sized> Progress for &mut P {
    fn begin(&mut self, epochs: usize, steps: usize) {
        (**self).begin(epochs, steps);
    }

    fn step(&mut self, figures: &StepFigures) {
        (**self).step(figures);
    }

    fn epoch(&mut self, figures: &EpochFigures) {
        (**self).epoch(figures);
    }
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: usize, _: usize) {}
    fn step(&mut self, _: &StepFigures) {}
    fn epoch(&mut self, _: &EpochFigures) {}
}
