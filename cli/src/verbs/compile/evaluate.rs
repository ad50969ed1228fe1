//! `preface compile --evaluate`: what weights in fewer bits cost tasks.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use preface_graph::Base;
use preface_runtime::{Image, Options, Session, Trust, Weights, compile::Summary, unix_now};
use preface_trainer::{data::Dataset, metrics::Evaluation};
use serde::Serialize;
use serde_json::json;

use super::{Choice, compile_if, described, say};
use crate::{output::Output, tasks::overlength, verbs::eval::on_runtime};

/// What is measured before an image takes its place.
#[derive(clap::Args)]
pub struct Arguments {
    /// A bundle and labelled texts to measure its task on, on this image and with weights in f32; may be repeated.
    #[arg(long, value_name = "BUNDLE=DATA", requires = "trust", value_parser = OsStringValueParser::new().try_map(pair))]
    evaluate: Vec<(PathBuf, PathBuf)>,
    /// Trust store with the keys that may sign the bundles.
    #[arg(long, value_name = "FILE", requires = "evaluate")]
    trust: Option<PathBuf>,
    /// Points that a task may lose: where one loses more, the exit code is 1 and an older image stays.
    #[arg(long, value_name = "POINTS", requires = "evaluate", value_parser = points)]
    max_loss: Option<f64>,
    /// Cut texts that are too long instead of refusing them.
    #[arg(long, requires = "evaluate")]
    truncate: bool,
}

/// Parts a bundle from its data at the first = behind the name of a file, or else at the last.
fn pair(text: OsString) -> Result<(PathBuf, PathBuf), &'static str> {
    let bytes = text.as_bytes();
    let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
    let signs = || (0..bytes.len()).filter(|&at| bytes[at] == b'=');
    let at = signs().find(|&at| path(&bytes[..at]).is_file());
    let at = at.or_else(|| signs().next_back());
    let at = at.ok_or("give a bundle and its data, parted by =")?;
    Ok((path(&bytes[..at]), path(&bytes[at + 1..])))
}

/// Reads points on the command line.
pub fn points(text: &str) -> Result<f64, &'static str> {
    let points = text.parse().ok();
    let points = points.filter(|points| (0.0..=100.0).contains(points));
    points.ok_or("give points from 0 to 100")
}

/// What was measured on one image.
struct Measured {
    image_bytes: usize,
    /// The tasks by name.
    tasks: Vec<(String, Evaluation)>,
}

/// What a task loses.
#[derive(Serialize)]
struct Loss {
    task: String,
    examples: usize,
    /// The name of the figure that counts.
    figure: &'static str,
    f32: f64,
    found: f64,
    loss_points: f64,
}

impl Arguments {
    /// Whether anything is to be measured.
    pub fn is_asked(&self) -> bool {
        !self.evaluate.is_empty()
    }

    /// Compiles `base` as is asked and with weights in f32, measures every task on both, and puts the image at `path` unless one
    /// loses too much.
    ///
    /// # Errors
    /// When a file cannot be read, the base not be compiled, or a task not be measured.
    pub fn run(
        &self,
        base: &Base,
        path: &Path,
        (engine, weights): (Choice, Weights),
        output: &Output,
    ) -> anyhow::Result<ExitCode> {
        let trust = self.trust.as_deref().context("no trust store is given")?;
        let trust = Trust::read(trust)?;
        let data = self.evaluate.iter().map(|(_, data)| Dataset::read(data));
        let data = data.collect::<Result<Vec<Dataset>, _>>()?;
        let with = |weights: Weights, keep: &dyn Fn(&Measured) -> bool| {
            let mut measured = None;
            let summary = compile_if(base, path, (engine, weights), output, |image| {
                let found = self.measure(image, &data, &trust, output);
                let kept = found.as_ref().is_ok_and(keep);
                measured = Some(found);
                kept
            })?;
            let measured = measured.context("nothing was measured")??;
            Ok::<_, anyhow::Error>((measured, summary))
        };
        let reference = match weights {
            Weights::F32 => None,
            _ => Some(with(Weights::F32, &|_| false)?.0),
        };
        let against = |found: &Measured| losses(reference.as_ref().unwrap_or(found), found);
        let most = self.max_loss.unwrap_or(f64::INFINITY);
        // What is exactly as much is not more, however it is rounded.
        let too_much = |loss: &Loss| loss.loss_points > most + 1e-9;
        let (found, summary) = with(weights, &|found| !against(found).iter().any(too_much))?;
        let losses = against(&found);
        let reference_bytes = reference.as_ref().unwrap_or(&found).image_bytes;
        show(&losses, weights, output);
        report(
            summary.as_ref(),
            &losses,
            [reference_bytes, found.image_bytes],
            output,
        )?;
        if summary.is_some() {
            return Ok(ExitCode::SUCCESS);
        }
        let names = losses.iter().filter(|loss| too_much(loss));
        let names: Vec<&str> = names.map(|loss| &*loss.task).collect();
        output.note(format_args!(
            "preface: {} is not written: more than {most} points are lost by {}; compile it with other --weights",
            path.display(),
            names.join(", "),
        ));
        Ok(ExitCode::from(1))
    }

    fn measure(
        &self,
        image: &Image,
        data: &[Dataset],
        trust: &Trust,
        output: &Output,
    ) -> anyhow::Result<Measured> {
        let options = Options {
            overlength: overlength(self.truncate),
            ..Options::default()
        };
        let mut session = Session::open(image, options)?;
        let tasks = self.evaluate.iter().zip(data).map(|((bundle, _), data)| {
            let task = session.load_file(bundle, trust, unix_now())?;
            let evaluation = on_runtime(&mut session, task, data, None, output)?;
            let mut tasks = session.tasks();
            let name = tasks.find(|&(other, _)| other == task);
            Ok((name.map_or("", |(_, name)| name).to_owned(), evaluation))
        });
        Ok(Measured {
            tasks: tasks.collect::<anyhow::Result<_>>()?,
            image_bytes: image.len_bytes(),
        })
    }
}

fn losses(reference: &Measured, found: &Measured) -> Vec<Loss> {
    let tasks = reference.tasks.iter().zip(&found.tasks);
    let losses = tasks.map(|((_, reference), (task, found))| Loss {
        task: task.clone(),
        examples: found.examples,
        figure: found.main,
        f32: reference.score(),
        found: found.score(),
        loss_points: 100.0 * (reference.score() - found.score()),
    });
    losses.collect()
}

fn show(losses: &[Loss], weights: Weights, output: &Output) {
    let line = |[task, examples, figure, reference, found, loss]: [&str; 6]| {
        output.say(format_args!(
            "{task:<20} {examples:>8} {figure:<11} {reference:>7} {found:>7} {loss:>12}"
        ));
    };
    let name = weights.name();
    line(["task", "examples", "figure", "f32", name, "loss, points"]);
    for loss in losses {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        line([
            &loss.task,
            &loss.examples.to_string(),
            loss.figure,
            &percent(loss.f32),
            &percent(loss.found),
            &format!("{:.1}", loss.loss_points),
        ]);
    }
}

fn report(
    summary: Option<&Summary>,
    losses: &[Loss],
    [reference_bytes, image_bytes]: [usize; 2],
    output: &Output,
) -> anyhow::Result<()> {
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    output.say(format_args!(
        "{:.1} MiB, {:.1} MiB in f32",
        mebibytes(image_bytes),
        mebibytes(reference_bytes)
    ));
    let mut report = match summary {
        Some(summary) => {
            say(summary, output);
            described(summary)
        }
        None => json!({"bytes": image_bytes}),
    };
    report["kept"] = summary.is_some().into();
    report["f32_bytes"] = reference_bytes.into();
    report["evaluation"] = serde_json::to_value(losses)?;
    output.json(&report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_parted_behind_its_bundle_or_at_its_last_equals_sign() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().to_str().unwrap();
        std::fs::write(format!("{folder}/a=b.preface"), "").unwrap();
        for (bundle, data) in [
            ("a=b.preface", "c"),
            ("a=b.preface", "lr=1/c=d"),
            ("a=none.preface", "c"),
        ] {
            let bundle = format!("{folder}/{bundle}");
            let text = format!("{bundle}={data}");
            assert_eq!(pair(text.into()), Ok((bundle.into(), data.into())));
        }
        assert!(pair("a.preface".into()).is_err());
    }

    #[test]
    fn points_are_a_share_of_a_hundred() {
        assert_eq!((points("0"), points("1.5")), (Ok(0.0), Ok(1.5)));
        for wrong in ["-1", "NaN", "inf", "one"] {
            assert!(points(wrong).is_err(), "{wrong}");
        }
    }
}
