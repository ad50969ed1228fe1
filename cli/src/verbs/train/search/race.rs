//! Designs trained rung by rung.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow};
use preface_packager::{Adapter as Packable, Options as PackOptions, packed_len};
use preface_trainer::{
    Error,
    adapter::Adapter,
    checkpoint::{Checkpoint, Checkpoints, Start},
    data::Dataset,
    options::{Candidate, Options},
    progress::Progress,
    search::{Design, Finished, Rung, Standing, Trial, candidates, sample, survivors},
    training::{self, Outcome, training_id},
};

use super::{
    super::{Arguments, CHECKPOINT, Inputs, best, watch::Watch},
    FOLDER,
    bar::RungBar,
    lines::Lines,
};
use crate::{
    journal::{Journal, Resume},
    output::Output,
};

/// The folder in that of the search where an adapter lies while its bundle is measured.
const PACKED: &str = "packed";
/// The journal of a training.
const JOURNAL: &str = "metrics.jsonl";

/// A design that is still in, and the learning rates that it is trained with, rising.
pub struct Racer {
    pub design: Design,
    pub rates: Vec<f32>,
}

/// A design of the last rung, trained.
pub struct Finalist {
    pub design: Design,
    pub options: Options,
    pub outcomes: Vec<Outcome>,
    pub kept: usize,
    pub standing: Standing,
}

/// One design's training in a rung.
struct Entry<'a> {
    number: usize,
    design: &'a Design,
    options: &'a Options,
    train: &'a Dataset,
    dev: &'a Dataset,
}

/// The rungs that designs go through.
pub struct Race<'a> {
    pub arguments: &'a Arguments,
    pub inputs: &'a Inputs,
    pub options: &'a Options,
    pub budget: usize,
    pub output: &'a Output,
    pub lines: Lines,
    pub finished: Vec<Finished>,
}

impl Race<'_> {
    /// Trains every design of a rung before the last, but for those whose lines are there. One whose loss is no number
    /// any more is trained again without its largest learning rate.
    pub fn early(
        &mut self,
        racers: &[Racer],
        rung: &Rung,
        place: (usize, usize),
    ) -> anyhow::Result<()> {
        let part = |data: &Dataset| {
            rung.rows
                .map_or_else(|| data.clone(), |rows| sample(data, rows))
        };
        let (train, dev) = (part(&self.inputs.train), part(&self.inputs.dev));
        let mut bar = self.bar(racers.len(), rung, train.examples.len(), place);
        for racer in racers {
            bar.design(&racer.design);
            let like = self.options.candidates[0];
            for count in (1..=racer.rates.len()).rev() {
                let options = Options {
                    epochs: rung.epochs,
                    candidates: candidates(&racer.rates[..count], like),
                    ..racer.design.options(self.options)
                };
                let entry = Entry {
                    number: place.0,
                    design: &racer.design,
                    options: &options,
                    train: &train,
                    dev: &dev,
                };
                let finished = match self.lines.find(&self.training(&entry)) {
                    Some(finished) => finished.clone(),
                    None => self.enter(&entry, &mut bar, None)?.0,
                };
                let last = count == 1 || finished.failure.is_none();
                if last {
                    self.finished.push(finished);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Trains every design of the last rung with every seed, each in a folder of its own.
    pub fn last(&mut self, racers: &[Racer], plan: &[Rung]) -> anyhow::Result<Vec<Finalist>> {
        let (inputs, Some(rung)) = (self.inputs, plan.last()) else {
            return Ok(Vec::new());
        };
        let mut bar = self.bar(
            racers.len(),
            rung,
            inputs.train.examples.len(),
            (plan.len(), plan.len()),
        );
        let mut finalists = Vec::new();
        for Racer { design, rates } in racers {
            bar.design(design);
            let candidate = |candidate: &Candidate| Candidate {
                learning_rate: rates.first().copied(),
                ..*candidate
            };
            let options = Options {
                candidates: self.options.candidates.iter().map(candidate).collect(),
                ..design.options(self.options)
            };
            let entry = Entry {
                number: plan.len(),
                design,
                options: &options,
                train: &inputs.train,
                dev: &inputs.dev,
            };
            let folder = self.folder(design);
            let (finished, outcomes) = self.enter(&entry, &mut bar, Some(&folder))?;
            let standing = finished.standing(self.budget);
            let fits = |at: usize| finished.trials[at].bytes <= self.budget;
            let kept = best(&outcomes, fits);
            self.finished.push(finished);
            if let (Some(standing), Some(kept)) = (standing, kept) {
                let design = design.clone();
                finalists.push(Finalist {
                    design,
                    options,
                    outcomes,
                    kept,
                    standing,
                });
            }
        }
        Ok(finalists)
    }

    /// Trains one design, in `folder` with a journal and checkpoints where it has one, and writes its line.
    fn enter(
        &mut self,
        entry: &Entry,
        bar: &mut RungBar,
        folder: Option<&Path>,
    ) -> anyhow::Result<(Finished, Vec<Outcome>)> {
        let begun = Instant::now();
        let training = self.training(entry);
        let before = self.lines.find(&training).cloned();
        if let Some(failed) = before.as_ref().filter(|before| before.failure.is_some()) {
            return Ok((failed.clone(), Vec::new()));
        }
        let trained = match folder {
            Some(folder) => self.in_folder(entry, bar, folder)?,
            None => self.train(entry, None, bar),
        };
        let (outcomes, failure) = match trained {
            Ok(outcomes) => (outcomes, None),
            Err(error) if is_the_designs(&error) => {
                self.output.note(format_args!("{}: {error}", entry.design));
                (Vec::new(), Some(error.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(before) = before {
            return Ok((before, outcomes));
        }
        let mut trials = Vec::new();
        for outcome in &outcomes {
            trials.push(self.trial(outcome)?);
        }
        let finished = Finished {
            training,
            rung: entry.number,
            design: entry.design.clone(),
            epochs: entry.options.epochs,
            rows: entry.train.examples.len(),
            seconds: begun.elapsed().as_secs_f64(),
            trials,
            failure,
        };
        self.lines.add(finished.clone())?;
        Ok((finished, outcomes))
    }

    fn in_folder(
        &self,
        entry: &Entry,
        bar: &mut RungBar,
        folder: &Path,
    ) -> anyhow::Result<Result<Vec<Outcome>, Error>> {
        let path = folder.join(CHECKPOINT);
        let resume = Checkpoint::epoch(&path).map_or(Resume::Fresh, Resume::After);
        let mut watch = Watch::new(bar, folder, entry.options.candidates.len(), resume);
        let checkpoints = Checkpoints {
            path,
            start: Start::Resume,
        };
        let trained = self.train(entry, Some(&checkpoints), &mut watch);
        watch.finish()?;
        Ok(trained)
    }

    fn train(
        &self,
        entry: &Entry,
        checkpoints: Option<&Checkpoints>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Outcome>, Error> {
        let Inputs { base, library, .. } = self.inputs;
        training::train(
            base,
            library,
            entry.train,
            entry.dev,
            entry.options,
            checkpoints,
            progress,
        )
    }

    fn training(&self, entry: &Entry) -> String {
        training_id(&self.inputs.base, entry.train, entry.dev, entry.options)
    }

    fn trial(&self, outcome: &Outcome) -> anyhow::Result<Trial> {
        let receipt = &outcome.adapter.card.receipt;
        Ok(Trial {
            learning_rate: receipt.learning_rate,
            seed: receipt.seed,
            dev: outcome.dev.score(),
            loss: outcome.dev.loss,
            bytes: self.packed(&outcome.adapter)?,
        })
    }

    /// The bytes of the bundle that `preface pack` makes of an adapter, with the figures on test data that it will have.
    fn packed(&self, adapter: &Adapter) -> anyhow::Result<usize> {
        let mut adapter = adapter.clone();
        if self.inputs.test.is_some() {
            let metrics = adapter.card.metrics.clone().into_iter();
            let of_test = metrics.map(|(name, figure)| (name.replacen("dev_", "test_", 1), figure));
            adapter.card.metrics.extend(of_test);
        }
        let folder = self.arguments.output.join(FOLDER).join(PACKED);
        adapter.write(&folder)?;
        let bytes = packed_len(&Packable::open(&folder)?, &PackOptions::new(PACKED, 1))?;
        fs::remove_dir_all(&folder)?;
        Ok(bytes)
    }

    /// The designs that go on to the next rung.
    pub fn survivors(&self, number: usize, next: &Rung) -> anyhow::Result<Vec<Racer>> {
        let of_rung = self
            .finished
            .iter()
            .filter(|finished| finished.rung == number);
        let placed: Vec<(&Finished, Standing)> = of_rung
            .filter_map(|finished| Some((finished, finished.standing(self.budget)?)))
            .collect();
        let standings: Vec<Standing> = placed.iter().map(|(_, standing)| *standing).collect();
        if standings.is_empty() {
            return Err(self.nothing_left(number));
        }
        let racer = |at: usize| Racer {
            design: placed[at].0.design.clone(),
            rates: placed[at].0.rates(next.rates, self.budget),
        };
        Ok(survivors(&standings, next.designs)
            .into_iter()
            .map(racer)
            .collect())
    }

    pub fn nothing_left(&self, number: usize) -> anyhow::Error {
        let mut of_rung = self
            .finished
            .iter()
            .filter(|finished| finished.rung == number);
        let bytes = of_rung
            .clone()
            .flat_map(|finished| &finished.trials)
            .map(|trial| trial.bytes)
            .min();
        match (
            of_rung.find_map(|finished| finished.failure.as_ref()),
            bytes,
        ) {
            (_, Some(bytes)) => {
                anyhow!("trained designs take {bytes} bytes and more; pass --budget {bytes}")
            }
            (failure, None) => anyhow!(
                "no design could be trained: {}",
                failure.map_or("", String::as_str)
            ),
        }
    }

    fn folder(&self, design: &Design) -> PathBuf {
        self.arguments.output.join(FOLDER).join(design.folder())
    }

    /// Makes the journal of a design that of the output folder, and removes what else was trained.
    pub fn keep_journal(&self, design: &Design) -> anyhow::Result<()> {
        let output = &self.arguments.output;
        fs::rename(self.folder(design).join(JOURNAL), output.join(JOURNAL))
            .with_context(|| format!("cannot write {}", output.join(JOURNAL).display()))?;
        let seeds = self.options.candidates.len();
        Journal::open(output, seeds, Resume::After(usize::MAX))?.finish()
    }

    fn bar(
        &self,
        designs: usize,
        rung: &Rung,
        rows: usize,
        (number, count): (usize, usize),
    ) -> RungBar {
        let steps = rung.epochs * rows.div_ceil(self.options.batch.max(1));
        RungBar::new(
            self.output.progress(
                (designs * steps) as u64,
                &format!("rung {number} of {count}"),
            ),
            steps,
        )
    }
}

/// Whether it is a design that failed, and another may not.
fn is_the_designs(error: &Error) -> bool {
    matches!(
        error,
        Error::Diverged { .. }
            | Error::RanAway { .. }
            | Error::Options(_)
            | Error::TooLong { .. }
            | Error::NoRule { .. }
            | Error::NoGradient { .. }
    )
}
