//! `preface train`: learns a prompt for one task.

mod advice;
mod arguments;
mod outcome;
mod search;
mod watch;

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, ensure};
use preface_graph::Base;
use preface_trainer::{
    adapter::Adapter,
    checkpoint::{Checkpoint, Checkpoints, Start},
    data::Dataset,
    engine::Library,
    metrics::Evaluation,
    options::Options,
    task::refuse_unmeasurable,
    training::{self, Outcome},
};

pub use arguments::Arguments;
pub use watch::Bar;

use self::{outcome::Measured, watch::Watch};
use super::eval::on_onnxruntime;
use crate::{journal::Resume, output::Output};

/// The file in the adapter's folder that an interrupted training goes on from.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// What a training reads.
pub struct Inputs {
    /// Examples to learn from.
    pub train: Dataset,
    /// Examples that choose.
    pub dev: Dataset,
    /// Examples that are only measured.
    pub test: Option<Dataset>,
    /// The base.
    pub base: Base,
    /// ONNX Runtime.
    pub library: Library,
}

/// Trains and writes the adapter.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let mut inputs = arguments.read()?;
    let mut options = arguments.options(&inputs)?;
    options.examples = advice::take_examples(&mut inputs.train, arguments.few_shot)?;
    arguments.refuse_empty_scope(&inputs)?;
    for data in [Some(&inputs.dev), inputs.test.as_ref()]
        .into_iter()
        .flatten()
    {
        refuse_unmeasurable(&inputs.base, &inputs.train, data, &options)?;
    }
    let _held = hold(&arguments.output)?;
    let mut about_data = advice::of_data(&inputs);
    about_data.extend(advice::of_image(&inputs, &options)?);
    about_data.iter().for_each(|note| output.note(note));
    let checkpoints = arguments.checkpoints(CHECKPOINT);
    let (options, outcomes, kept, search) = match arguments.budget {
        Some(budget) => {
            let chosen = search::run(&arguments, &inputs, &options, budget, output)?;
            (
                chosen.options,
                chosen.outcomes,
                chosen.kept,
                Some(chosen.search),
            )
        }
        None => {
            search::Lines::forget(&arguments.output);
            let outcomes = learn(&arguments, &inputs, &options, &checkpoints, output)?;
            let kept = best(&outcomes, |_| true).unwrap_or(0);
            (options, outcomes, kept, None)
        }
    };
    // Whatever happens while it is measured, it is there.
    outcomes[kept].adapter.write(&arguments.output)?;
    let mut measured = measure(&arguments, &inputs, outcomes, kept, output)?;
    measured.chosen_by(search);
    measured.about_data(about_data);
    measured.adapter().write(&arguments.output)?;
    match advise(&arguments, &inputs, &options, measured.outcome(), output) {
        Ok(notes) => notes.into_iter().for_each(|note| measured.advise(note)),
        Err(error) => output.note(format_args!("preface: no advice: {error:#}")),
    }
    outcome::write_report(&arguments, &inputs, &options, &measured)?;
    // What is left of them is of no use any more, and no harm.
    let _ = fs::remove_file(&checkpoints.path);
    if arguments.budget.is_some() {
        let _ = fs::remove_dir_all(arguments.output.join(search::FOLDER));
    }
    outcome::report(&arguments, &inputs, &measured, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the folder and keeps other trainings out of it for as long as what is returned is open.
fn hold(folder: &Path) -> anyhow::Result<File> {
    let cannot = || {
        format!(
            "cannot write {}; choose another place with -o",
            folder.display()
        )
    };
    fs::create_dir_all(folder).with_context(cannot)?;
    let held = File::open(folder).with_context(cannot)?;
    // A file system without locks does not keep anybody from training.
    ensure!(
        !matches!(held.try_lock(), Err(TryLockError::WouldBlock)),
        "another training writes into {}; wait for its end, or choose another place with -o",
        folder.display()
    );
    Ok(held)
}

/// The first of the outcomes that is best on dev among those that `counts` takes.
fn best(outcomes: &[Outcome], counts: impl Fn(usize) -> bool) -> Option<usize> {
    let score = |index: usize| (outcomes[index].dev.score(), -outcomes[index].dev.loss);
    let better = |best: usize, index: usize| match score(index) > score(best) {
        true => index,
        false => best,
    };
    (0..outcomes.len())
        .filter(|&index| counts(index))
        .reduce(better)
}

/// Trains every candidate.
fn learn(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    checkpoints: &Checkpoints,
    output: &Output,
) -> anyhow::Result<Vec<Outcome>> {
    let begun = Checkpoint::epoch(&checkpoints.path);
    let resume = match (checkpoints.start, begun) {
        (Start::Resume, Some(epoch)) => {
            output.note(format_args!("going on after epoch {epoch}"));
            Resume::After(epoch)
        }
        (Start::Anew, Some(_)) => {
            output.note(
                "beginning anew; an interrupted training in this folder goes on with --resume",
            );
            Resume::Fresh
        }
        (Start::Resume, None) => {
            output.note("nothing in this folder to go on from: beginning anew");
            Resume::Fresh
        }
        (Start::Anew, None) => Resume::Fresh,
    };
    let mut watch = Watch::new(
        Bar::new(output, "training"),
        &arguments.output,
        options.candidates.len(),
        resume,
    );
    let outcomes = training::train(
        &inputs.base,
        &inputs.library,
        &inputs.train,
        &inputs.dev,
        options,
        Some(checkpoints),
        &mut watch,
    )?;
    if let Err(error) = watch.finish() {
        output.note(format_args!("preface: {error:#}"));
    }
    Ok(outcomes)
}

/// Measures every candidate on the test data.
fn measure(
    arguments: &Arguments,
    inputs: &Inputs,
    outcomes: Vec<Outcome>,
    kept: usize,
    output: &Output,
) -> anyhow::Result<Measured> {
    let mut tests = Vec::new();
    if let Some(test) = &inputs.test {
        for outcome in &outcomes {
            tests.push(on_onnxruntime(
                &outcome.adapter,
                &inputs.base,
                &inputs.library,
                test,
                &arguments.measuring(),
                output,
            )?);
        }
    }
    Ok(Measured::new(outcomes, kept, tests))
}

/// What a person should know of the prompt that is kept.
fn advise(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    outcome: &Outcome,
    output: &Output,
) -> anyhow::Result<Vec<String>> {
    if arguments.no_advice {
        return Ok(Vec::new());
    }
    let examples = advice::of_examples(inputs, options, outcome, output)?;
    let size = match arguments.budget {
        None => advice::of_size(inputs, options, outcome, output)?,
        Some(_) => None,
    };
    Ok(examples.into_iter().chain(size).collect())
}

/// Keeps the figures on test data with the adapter.
pub fn note_test(adapter: &mut Adapter, test: &Evaluation) {
    let named = test
        .figures
        .iter()
        .map(|(name, figure)| (format!("test_{name}"), *figure));
    adapter.card.metrics.extend(named);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_one_training_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new").join("adapter");
        let held = hold(&folder).unwrap();
        let error = hold(&folder).unwrap_err().to_string();
        assert!(error.contains("another training writes into"), "{error}");
        drop(held);
        hold(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let error = hold(&folder.join("file")).unwrap_err().to_string();
        assert!(error.contains("choose another place"), "{error}");
    }
}
