//! `preface eval`: how often is an adapter or a bundle right?

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use preface_graph::Base;
use preface_runtime::{Answer, Sampling, Session, TaskHandle, TokenizerUse};
use preface_trainer::{
    adapter::Adapter,
    data::{AnswerKind, Dataset, Labels, Target},
    encode::{Overlength, Truth},
    engine::Library,
    evaluation::{encode, evaluate},
    metrics::{Evaluation, Found, Prediction},
    tokens::Tokens,
};

use crate::{
    onnxruntime::OnnxRuntime,
    output::Output,
    tasks::{Files, Tasks, generate_all},
};

/// Measure an adapter through ONNX Runtime, or a signed bundle on a base image.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  preface eval --base out/base --adapter out/intent --data test.jsonl
  preface eval --base minilm.base --bundle intent.preface --trust release.trust --data test.jsonl")]
pub struct Arguments {
    /// Base folder (with --adapter) or base image (with --bundle).
    #[arg(long, value_name = "BASE|IMAGE")]
    base: PathBuf,
    /// Adapter folder, run in f32 through ONNX Runtime.
    #[arg(
        long,
        value_name = "ADAPTER",
        conflicts_with = "bundle",
        required_unless_present = "bundle"
    )]
    adapter: Option<PathBuf>,
    /// Bundle, run on the base image.
    #[arg(long, value_name = "FILE", requires = "trust")]
    bundle: Option<PathBuf>,
    /// Trust store with the keys that may sign the bundle.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Labelled texts.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Cut texts that are too long instead of refusing them.
    #[arg(long)]
    truncate: bool,
    /// Label of texts that have none of the labels.
    #[arg(long, value_name = "LABEL")]
    out_of_scope: Option<String>,
    #[command(flatten)]
    onnxruntime: OnnxRuntime,
}

/// Runs every text and counts.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let data = Dataset::read(&arguments.data)?;
    let evaluation = match (&arguments.adapter, arguments.bundle, arguments.trust) {
        (Some(folder), _, _) => {
            let adapter = Adapter::read(folder)?;
            let base = Base::open(&arguments.base)?;
            adapter.fits(&base.description, folder)?;
            let library = arguments.onnxruntime.load()?;
            let overlength = if arguments.truncate {
                Overlength::Truncate
            } else {
                Overlength::Refuse
            };
            let measuring = Measuring {
                overlength,
                out_of_scope: arguments.out_of_scope.as_deref(),
                threads: arguments.onnxruntime.threads(),
            };
            let figures = on_onnxruntime(&adapter, &base, &library, &data, &measuring, output)?;
            if figures.truncated > 0 {
                output.note(format_args!(
                    "{} texts were too long and were cut",
                    figures.truncated
                ));
            }
            figures.evaluation
        }
        (None, Some(bundle), Some(trust)) => {
            let files = Files {
                base: arguments.base,
                bundles: vec![bundle],
                store: None,
                trust,
                max_tokens: None,
                truncate: arguments.truncate,
                threads: arguments.onnxruntime.threads(),
                pin: false,
                together: TOGETHER,
            };
            let Tasks {
                mut session,
                handles,
                ..
            } = files.open(TokenizerUse::AtOpen)?;
            on_runtime(
                &mut session,
                handles[0],
                &data,
                arguments.out_of_scope.as_deref(),
                output,
            )?
        }
        _ => bail!("pass --adapter, or --bundle with --trust"),
    };
    for (name, figure) in &evaluation.figures {
        output.say(format_args!("{name} {figure:.4}"));
    }
    output.say(format_args!("examples {}", evaluation.examples));
    output.json(&evaluation)?;
    Ok(ExitCode::SUCCESS)
}

/// Texts of a decoder that are generated at once.
const TOGETHER: usize = 8;

/// How an adapter is measured.
pub struct Measuring<'a> {
    /// What happens to texts that are too long.
    pub overlength: Overlength,
    /// The label of texts that have none of the labels.
    pub out_of_scope: Option<&'a str>,
    /// Threads of ONNX Runtime.
    pub threads: usize,
}

/// Figures with the answers behind them.
pub struct Figures {
    /// The figures.
    pub evaluation: Evaluation,
    /// The answers, in the order of the data.
    pub predictions: Vec<Prediction>,
    /// The right answers to them.
    pub truths: Vec<Truth>,
    /// The number of texts that lost tokens.
    pub truncated: usize,
}

/// Evaluates an adapter in f32 through ONNX Runtime.
pub fn on_onnxruntime(
    adapter: &Adapter,
    base: &Base,
    library: &Library,
    data: &Dataset,
    measuring: &Measuring,
    output: &Output,
) -> anyhow::Result<Figures> {
    let tokens = Tokens::read(&base.tokenizer)?;
    let card = &adapter.card;
    let rows = encode(
        card,
        &base.description,
        &tokens,
        data,
        measuring.overlength,
        measuring.out_of_scope,
    )?;
    let bar = output.progress(rows.rows.len() as u64, "evaluating");
    let after = |done| bar.set_position(done as u64);
    let predictions = evaluate(adapter, base, library, &rows.rows, measuring.threads, after)?;
    bar.finish_and_clear();
    let evaluation = Evaluation::of(
        card.answer.kind,
        &card.labels,
        card.answer.threshold,
        &predictions,
        rows.truths(),
    );
    Ok(Figures {
        evaluation,
        predictions,
        truths: rows.truths().cloned().collect(),
        truncated: rows.truncated,
    })
}

/// Evaluates a loaded task on the runtime; `out_of_scope` is the label of texts that have none of its labels.
pub fn on_runtime(
    session: &mut Session,
    task: TaskHandle,
    data: &Dataset,
    out_of_scope: Option<&str>,
    output: &Output,
) -> anyhow::Result<Evaluation> {
    let plan = session.plan(task).context("the task is not loaded")?;
    let kind = match plan.kind {
        preface_bundle::AnswerKind::Labels => AnswerKind::Labels,
        preface_bundle::AnswerKind::Tags => AnswerKind::Tags,
        preface_bundle::AnswerKind::Text => AnswerKind::Text,
        _ => AnswerKind::Label,
    };
    data.expect(kind, plan.inputs == preface_bundle::Inputs::Pair)?;
    session.activate(task)?;
    let bar = output.progress(data.examples.len() as u64, "evaluating");
    let names = session.labels(task).to_vec();
    let labels = Labels::of(&names);
    let (mut predictions, mut truths) = (Vec::new(), Vec::new());
    let generated = match kind {
        AnswerKind::Text => generated(session, task, data, || bar.inc(1))?,
        _ => Vec::new(),
    };
    let mut generated = generated.iter();
    for example in &data.examples {
        let outside = out_of_scope.is_some_and(|label| example.target.names() == [label]);
        let truth = match (outside, &example.target) {
            (true, _) => Truth::Outside,
            (false, Target::Text(target)) => {
                let text = generated.next().map_or("", |text| text);
                predictions.push(spelled(text, target));
                truths.push(SPELLED);
                continue;
            }
            (false, _) => truth(kind, data.indices(example, &labels)?),
        };
        let answer = session.answer(&example.text, example.text2.as_deref());
        let answer =
            answer.with_context(|| format!("{}, line {}", data.path.display(), example.line))?;
        let (prediction, truth) = counted(answer, truth, names.len())?;
        predictions.push(prediction);
        truths.push(truth);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Evaluation::of(
        kind,
        &names,
        plan.threshold,
        &predictions,
        &truths,
    ))
}

/// What a task generates for each of the texts; `after` is called behind each.
fn generated(
    session: &mut Session,
    task: TaskHandle,
    data: &Dataset,
    after: impl FnMut(),
) -> anyhow::Result<Vec<String>> {
    let encoded = data.examples.iter().map(|example| {
        let encoded = session.encode(&example.text, example.text2.as_deref());
        let place = || format!("{}, line {}", data.path.display(), example.line);
        Ok((task, encoded.with_context(place)?))
    });
    let encoded = encoded.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(generate_all(session, &encoded, Sampling::default(), after)?)
}

/// The truth of a generated text, which is right as a whole or wrong.
const SPELLED: Truth = Truth::Class(1);

fn spelled(text: &str, target: &str) -> Prediction {
    Prediction {
        found: Found::Class(usize::from(text.trim() == target.trim())),
        score: 1.0,
        loss: 0.0,
    }
}

fn truth(kind: AnswerKind, classes: Vec<usize>) -> Truth {
    match kind {
        AnswerKind::Labels => Truth::Classes(classes),
        AnswerKind::Tags => Truth::Places(classes.into_iter().enumerate().collect()),
        AnswerKind::Label | AnswerKind::Text => Truth::Class(classes[0]),
    }
}

/// An answer of the runtime and the truth of it as the trainer counts them: a label that was not given has the
/// probability 0, and a word that the tokenizer drops is in neither.
fn counted(answer: Answer, truth: Truth, classes: usize) -> anyhow::Result<(Prediction, Truth)> {
    let (found, truth, score) = match (answer, truth) {
        (Answer::Label { best, .. }, truth) => (Found::Class(best.class), truth, best.score),
        (Answer::Labels(choices), truth) => {
            let mut probabilities = vec![0.0; classes];
            let choices = choices.iter().flatten();
            choices.for_each(|choice| probabilities[choice.class] = choice.score);
            (Found::Probabilities(probabilities), truth, 1.0)
        }
        (Answer::Tags(words), Truth::Places(places)) => {
            let kept = words.iter().zip(places);
            let (found, places) = kept
                .filter_map(|(word, place)| word.map(|choice| (choice.class, place)))
                .unzip();
            (Found::Places(found), Truth::Places(places), 1.0)
        }
        _ => bail!("this answer cannot be measured"),
    };
    let prediction = Prediction {
        found,
        score,
        loss: 0.0,
    };
    Ok((prediction, truth))
}

#[cfg(test)]
mod tests {
    use preface_runtime::Choices;

    use super::*;

    #[test]
    fn a_word_that_the_tokenizer_drops_is_not_counted() {
        let labels = ["x", "y", "z"].map(str::to_owned);
        let found = [Some((2, 0.5)), None, Some((0, 0.5))];
        let answer = Answer::Tags(Choices::new(&labels, &found));
        let truth = Truth::Places(vec![(0, 2), (1, 1), (2, 1)]);
        let (prediction, truth) = counted(answer, truth, 3).unwrap();
        assert_eq!(prediction.found, Found::Places(vec![2, 0]));
        assert_eq!(truth, Truth::Places(vec![(0, 2), (2, 1)]));
    }
}
