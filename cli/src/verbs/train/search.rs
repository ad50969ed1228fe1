//! `preface train --budget`: several designs, of which one is chosen.

mod lines;
mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use preface_packager::{Adapter as Packable, Options as PackOptions, packed_len};
use preface_trainer::{
    Error,
    adapter::Adapter,
    checkpoint::{Checkpoint, Checkpoints, Start},
    data::Dataset,
    methods::method,
    options::{Candidate, Options},
    progress::{EpochFigures, Progress, StepFigures},
    search::{
        DESIGNS, Design, Finished, Problem, Rung, Standing, Trial, candidates, choice, rates,
        rungs, sample, spread, standard_error, survivors, table,
    },
    training::{self, Outcome, training_id},
};

pub use summary::Search;

use self::lines::Lines;
use super::{Arguments, CHECKPOINT, Inputs, best, watch::Watch};
use crate::{
    journal::{Journal, Resume},
    output::Output,
};

/// Where the designs of the last rung are trained.
pub const FOLDER: &str = "search.partial";
/// The folder in it where an adapter lies while its bundle is measured.
const PACKED: &str = "packed";
/// The journal of a training.
const JOURNAL: &str = "metrics.jsonl";

/// Reads a size: bytes, or `KB`, `KiB`, `MB` or `MiB` behind a number.
///
/// # Errors
/// When it is none, or less than a byte.
pub fn bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, f64); 6] = [
        ("", 1.0),
        ("b", 1.0),
        ("kb", 1e3),
        ("kib", 1024.0),
        ("mb", 1e6),
        ("mib", 1_048_576.0),
    ];
    let wrong = || {
        format!("{text:?} is no size; write bytes, or KB or KiB behind a number: 8192, 8KB, 8KiB")
    };
    let text = text.trim();
    let end = text
        .find(|letter: char| letter != '.' && !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| factor);
    let size = number
        .parse::<f64>()
        .ok()
        .zip(factor)
        .map(|(number, factor)| number * factor);
    match size {
        Some(size) if (1.0..=1e12).contains(&size) => Ok(size as usize),
        _ => Err(wrong()),
    }
}

/// The design that was chosen, trained.
pub struct Chosen {
    /// How.
    pub options: Options,
    /// What each seed gave.
    pub outcomes: Vec<Outcome>,
    /// The seed that is kept.
    pub kept: usize,
    /// What it was chosen from.
    pub search: Search,
}

/// Searches; the chosen design's journal is then that of the output folder.
pub fn run(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    budget: usize,
    output: &Output,
) -> anyhow::Result<Chosen> {
    let given = arguments.given();
    let problem = Problem::new(&inputs.base, &inputs.train, options);
    let fitting = problem.within(&given, budget)?;
    let mut racers = Vec::new();
    for contender in spread(&fitting, DESIGNS) {
        let own = method(&contender.design.method)?.learning_rate;
        racers.push(Racer {
            design: contender.design,
            rates: rates(given.learning_rate, own),
        });
    }
    let most_rates = racers
        .iter()
        .map(|racer| racer.rates.len())
        .max()
        .unwrap_or(1);
    let plan = rungs(racers.len(), most_rates, options.epochs);
    let (rows, seeds) = (inputs.train.examples.len(), options.candidates.len());
    let row_passes = plan.iter().map(|rung| rung.row_passes(rows, seeds)).sum();
    explain(
        &plan,
        fitting.len(),
        row_passes,
        options.epochs * rows * seeds,
        output,
    );
    let mut race = Race {
        arguments,
        inputs,
        options,
        budget,
        output,
        lines: Lines::open(&arguments.output, arguments.resume)?,
        finished: Vec::new(),
    };
    for (at, rung) in plan.iter().enumerate().take(plan.len() - 1) {
        race.early(&racers, rung, (at + 1, plan.len()))?;
        racers = race.survivors(at + 1, &plan[at + 1])?;
    }
    let mut finalists = race.last(&racers, &plan)?;
    let standings: Vec<Standing> = finalists.iter().map(|finalist| finalist.standing).collect();
    let examples = finalists
        .first()
        .map_or(0, |finalist| finalist.outcomes[0].dev.examples);
    let Some(chosen) = choice(&standings, examples) else {
        return Err(race.nothing_left(plan.len()));
    };
    let best = standings
        .iter()
        .map(|standing| standing.dev)
        .fold(0.0, f64::max);
    let finalist = finalists.swap_remove(chosen);
    race.keep_journal(&finalist.design)?;
    let search = Search {
        budget,
        fitting: fitting.len(),
        table: table(&race.finished, budget, &finalist.design),
        rungs: plan,
        row_passes,
        figure: finalist.outcomes[finalist.kept].dev.main,
        standard_error: standard_error(best, examples),
    };
    tell(&search, output);
    Ok(Chosen {
        options: finalist.options,
        outcomes: finalist.outcomes,
        kept: finalist.kept,
        search,
    })
}

/// Says what the search will cost.
fn explain(plan: &[Rung], fitting: usize, row_passes: usize, once: usize, output: &Output) {
    let tried = plan.first().map_or(0, |rung| rung.designs);
    output.note(format_args!(
        "{fitting} designs fit the budget, {tried} are tried:"
    ));
    for (at, rung) in plan.iter().enumerate() {
        let rows = rung
            .rows
            .map_or("all rows".into(), |rows| format!("at most {rows} rows"));
        output.note(format_args!(
            "  rung {}: {} designs, {} learning rates at once, {} epochs, {rows}",
            at + 1,
            rung.designs,
            rung.rates,
            rung.epochs
        ));
    }
    output.note(format_args!(
        "  epochs x rows x candidates: {row_passes} at most, {:.1} times one training",
        row_passes as f64 / once.max(1) as f64
    ));
}

fn tell(search: &Search, output: &Output) {
    search.lines().iter().for_each(|line| output.say(line));
    output.say(search.legend());
}

/// A design that is still in, and the learning rates that it is trained with, rising.
struct Racer {
    design: Design,
    rates: Vec<f32>,
}

/// A design of the last rung, trained.
struct Finalist {
    design: Design,
    options: Options,
    outcomes: Vec<Outcome>,
    kept: usize,
    standing: Standing,
}

/// One design's training in a rung.
struct Entry<'a> {
    number: usize,
    design: &'a Design,
    options: &'a Options,
    train: &'a Dataset,
    dev: &'a Dataset,
}

struct Race<'a> {
    arguments: &'a Arguments,
    inputs: &'a Inputs,
    options: &'a Options,
    budget: usize,
    output: &'a Output,
    lines: Lines,
    finished: Vec<Finished>,
}

impl Race<'_> {
    /// Trains every design of a rung before the last, but for those whose lines are there. One whose loss is no number
    /// any more is trained again without its largest learning rate.
    fn early(
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
    fn last(&mut self, racers: &[Racer], plan: &[Rung]) -> anyhow::Result<Vec<Finalist>> {
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
    fn survivors(&self, number: usize, next: &Rung) -> anyhow::Result<Vec<Racer>> {
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

    fn nothing_left(&self, number: usize) -> anyhow::Error {
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
    fn keep_journal(&self, design: &Design) -> anyhow::Result<()> {
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
            | Error::Options(_)
            | Error::TooLong { .. }
            | Error::NoRule { .. }
            | Error::NoGradient { .. }
    )
}

/// Draws the trainings of a rung.
struct RungBar {
    bar: ProgressBar,
    steps: usize,
    begun: usize,
    design: String,
}

impl RungBar {
    /// Over designs of `steps` steps each.
    fn new(bar: ProgressBar, steps: usize) -> Self {
        Self {
            bar,
            steps,
            begun: 0,
            design: String::new(),
        }
    }

    /// The next design begins.
    fn design(&mut self, design: &Design) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let table = [
            ("8192", Some(8192)),
            ("8KB", Some(8000)),
            ("8 KiB", Some(8192)),
            ("8kib", Some(8192)),
            ("1.5KiB", Some(1536)),
            ("1MiB", Some(1 << 20)),
            ("2mb", Some(2_000_000)),
            ("700 B", Some(700)),
            ("0", None),
            ("", None),
            ("KiB", None),
            ("-8KiB", None),
            ("8 gallons", None),
            ("1.2.3", None),
            ("9e99", None),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        let error = bytes("8 gallons").unwrap_err();
        assert!(
            error.contains("8 gallons") && error.contains("8KiB"),
            "{error}"
        );
    }
}
