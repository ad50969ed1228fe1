//! `preface run`: answers texts.

use std::{
    fmt, fs,
    io::{self, BufRead, ErrorKind},
    process::ExitCode,
    vec,
};

use anyhow::{Context, Error, anyhow, bail, ensure};
use preface_bundle::{AnswerKind, Inputs};
use preface_runtime::{Answer, Constraint, Sampling, Session, TaskHandle, TokenizerUse};
use serde::Serialize;

use crate::{
    output::Output,
    tasks::{Files, Tasks, Text, count, generate_all},
};

/// Answer texts with the tasks of verified bundles.
#[derive(clap::Args)]
#[command(after_help = "\
Every loaded task answers every text, unless --task names one. Without TEXT, lines are read from
standard input, blank ones passed over; a line may be a JSON object with \"text\". A task that reads
pairs takes two texts parted by a tab, or \"text\" and \"text2\". A task that tags answers with a tag
for each word, also of \"tokens\".
With --store, each line is answered by the bundles that are active when it comes.

With --json, one object is printed for each answer: {task, label | labels | tags, score}, or
{task, text} of a task that generates text; score is a list where there are several, and where the
text is outside the task's scope label is null and out_of_scope true.

A SHAPE is JSON, or a file of it: \"string\", \"number\", \"integer\" or \"boolean\"; a list of
strings, of which the value is one; a list of one shape, of which the value is a list; an object of
shapes, whose keys come in this order.

Example:
  preface run --base minilm.base --bundle intents.preface --trust trust.txt \"turn on the light\"
  preface run --base minilm.base --bundle *.preface --trust trust.txt --task intents --json < lines
  preface run --base minilm.base --store /var/lib/preface --trust trust.txt \"turn on the light\"
  preface run --base llama.base --bundle home.preface --trust trust.txt \"dim the hall\" \\
              --shape '{\"action\": [\"on\", \"off\", \"dim\"], \"room\": \"string\", \"level\": \"integer\"}'")]
pub struct Arguments {
    #[command(flatten)]
    files: Files,
    /// Only this task answers.
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// The text; without it, lines of standard input.
    text: Option<String>,
    #[command(flatten)]
    generated: Generated,
}

/// How a generated text comes about.
#[derive(clap::Args)]
#[command(next_help_heading = "Generated texts")]
struct Generated {
    /// Print a text as it grows; on a terminal it is so anyway.
    #[arg(long)]
    stream: bool,
    /// End a text before this string; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Answer with one of these alone; several may follow, so that the text comes before them.
    #[arg(long, value_name = "LABEL", num_args = 1.., conflicts_with = "shape")]
    only_labels: Vec<String>,
    /// Answer with JSON of this shape alone.
    #[arg(long, value_name = "SHAPE")]
    shape: Option<String>,
    /// What the logits are divided by; 0 takes the most probable token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep only so many of the most probable tokens.
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Keep the most probable tokens that add up to this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Make tokens that were seen less probable; 1 changes nothing.
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Where the draws of each text begin.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End a text behind so many tokens, where its task allows more.
    #[arg(long, value_name = "N", value_parser = count(1_000_000))]
    most_tokens: Option<usize>,
}

impl Generated {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    /// Generates the texts of lines at once: of each line, those of the tasks that generate text.
    fn all(
        &self,
        session: &mut Session,
        tasks: &[(TaskHandle, String)],
        lines: &[(String, String)],
    ) -> anyhow::Result<vec::IntoIter<String>> {
        let mut texts = Vec::new();
        for (place, line) in lines {
            for &(task, _) in tasks {
                if generates(session, task) {
                    session.activate(task)?;
                    let encoded = Text::of_line(line, inputs(session, task))
                        .and_then(|text| Ok(text.encode(session)?));
                    texts.push((task, encoded.with_context(|| place.clone())?));
                }
            }
        }
        let generated = generate_all(session, &texts, self.sampling(), || ())?;
        Ok(generated.into_iter())
    }

    /// Lets the session generate the texts of `tasks` so.
    fn prepare(&self, session: &mut Session, tasks: &[TaskHandle]) -> anyhow::Result<()> {
        let sampling = self.sampling();
        let constraint = self.constraint()?;
        let is_plain = sampling == Sampling::default() && self.most_tokens.is_none();
        if is_plain && self.stop.is_empty() && constraint.is_none() {
            return Ok(());
        }
        ensure!(
            tasks.iter().any(|&task| generates(session, task)),
            "none of the tasks generates text: leave the options for generated texts out"
        );
        session.sample(sampling)?;
        session.stop_at(&self.stop)?;
        session.at_most(self.most_tokens)?;
        if let Some(constraint) = constraint {
            for &task in tasks {
                if generates(session, task) {
                    session.constrain(task, Some(&constraint))?;
                }
            }
        }
        Ok(())
    }

    fn constraint(&self) -> anyhow::Result<Option<Constraint>> {
        let Some(shape) = &self.shape else {
            let some = !self.only_labels.is_empty();
            let labels = some.then(|| Constraint::labels(&self.only_labels));
            return Ok(labels.transpose()?);
        };
        let written = shape.trim_start().starts_with(['{', '[', '"']);
        let text = match written {
            true => shape.clone(),
            false => fs::read_to_string(shape)
                .with_context(|| format!("{shape} is no JSON and cannot be read as a file"))?,
        };
        let constraint = Constraint::shape(&text);
        Ok(Some(constraint.with_context(|| match written {
            true => "cannot use --shape".to_owned(),
            false => format!("cannot use {shape}"),
        })?))
    }
}

fn inputs(session: &Session, task: TaskHandle) -> Inputs {
    let plan = session.plan(task);
    plan.map_or(Inputs::One, |plan| plan.inputs)
}

fn generates(session: &Session, task: TaskHandle) -> bool {
    let plan = session.plan(task);
    plan.is_some_and(|plan| plan.kind == AnswerKind::Text)
}

/// One answer; a text outside the task's scope has no label.
#[derive(Serialize)]
struct Line<'a> {
    task: &'a str,
    #[serde(flatten)]
    said: Said<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said<'a> {
    Label {
        label: Option<&'a str>,
        score: f32,
        #[serde(skip_serializing_if = "is_false")]
        out_of_scope: bool,
    },
    Labels {
        labels: Vec<&'a str>,
        score: Vec<f32>,
    },
    Tags {
        tags: Vec<Option<&'a str>>,
        score: Vec<Option<f32>>,
    },
    Text {
        text: &'a str,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

impl<'a> Said<'a> {
    fn of(answer: Answer<'a>) -> anyhow::Result<Self> {
        Ok(match answer {
            Answer::Label { best, out_of_scope } => Self::Label {
                label: (!out_of_scope).then_some(best.label),
                score: best.score,
                out_of_scope,
            },
            Answer::Labels(choices) => {
                let (labels, score) = choices
                    .iter()
                    .flatten()
                    .map(|choice| (choice.label, choice.score))
                    .unzip();
                Self::Labels { labels, score }
            }
            Answer::Tags(tags) => Self::Tags {
                tags: tags.iter().map(|tag| tag.map(|tag| tag.label)).collect(),
                score: tags.iter().map(|tag| tag.map(|tag| tag.score)).collect(),
            },
            Answer::Text(text) => Self::Text { text },
            other => bail!("this program cannot show {other:?}; update preface"),
        })
    }
}

impl fmt::Display for Said<'_> {
    /// The answer as a column of text, and where it is one label its score as another.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label { label, score, .. } => {
                write!(formatter, "{}\t{score:.3}", label.unwrap_or(OUT_OF_SCOPE))
            }
            Self::Labels { labels, .. } => formatter.write_str(&labels.join(", ")),
            Self::Tags { tags, .. } => {
                let tags: Vec<&str> = tags.iter().map(|tag| tag.unwrap_or(NO_TAG)).collect();
                formatter.write_str(&tags.join(" "))
            }
            Self::Text { text } => formatter.write_str(text),
        }
    }
}

/// What people are shown for a text outside a task's scope.
const OUT_OF_SCOPE: &str = "(out of scope)";
/// What people are shown for a word that the tokenizer drops.
const NO_TAG: &str = "-";

/// Opens the image and the bundles, and answers.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let mut tasks = arguments.files.open(TokenizerUse::AtOpen)?;
    tasks.note_store(output);
    let mut answering = arguments.answering(&mut tasks)?;
    tasks.note_memory(output);
    let streams = output.shows_parts(arguments.generated.stream);
    if let Some(text) = &arguments.text {
        let generated = &mut None;
        answer(
            &mut tasks.session,
            &answering,
            text,
            (streams, generated),
            output,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = lines(io::stdin().lock());
    let together = arguments.files.together;
    loop {
        let batch = lines.by_ref().take(together);
        let batch = batch.collect::<anyhow::Result<Vec<(String, String)>>>()?;
        if batch.is_empty() || output.is_closed() {
            return Ok(ExitCode::SUCCESS);
        }
        if tasks.follow()? {
            tasks.note_store(output);
            answering = arguments.answering(&mut tasks)?;
        }
        let session = &mut tasks.session;
        let generated =
            (together > 1).then(|| arguments.generated.all(session, &answering, &batch));
        let mut generated = generated.transpose()?;
        for (place, line) in &batch {
            let how = (streams, &mut generated);
            answer(session, &answering, line, how, output).with_context(|| place.clone())?;
        }
    }
}

/// The lines that are not empty, each behind the name of its place.
fn lines(from: impl BufRead) -> impl Iterator<Item = anyhow::Result<(String, String)>> {
    from.lines().enumerate().filter_map(|(number, line)| {
        let place = format!("line {} of standard input", number + 1);
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(Ok((place, line))),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Some(Err(anyhow!("{place} is not UTF-8 text")))
            }
            Err(error) => Some(Err(Error::new(error).context("cannot read standard input"))),
        }
    })
}

impl Arguments {
    /// The tasks that answer, with their names, ready to generate texts as is asked for.
    fn answering(&self, tasks: &mut Tasks) -> anyhow::Result<Vec<(TaskHandle, String)>> {
        let name = |handle: TaskHandle| {
            let mut loaded = tasks.session.tasks();
            let found = loaded.find(|&(other, _)| other == handle);
            found.map_or("", |(_, name)| name).to_owned()
        };
        let handles = tasks.handles.iter();
        let mut answering: Vec<(TaskHandle, String)> =
            handles.map(|&handle| (handle, name(handle))).collect();
        if let Some(id) = &self.task {
            let names: Vec<&str> = answering.iter().map(|(_, name)| &**name).collect();
            ensure!(
                names.contains(&&**id),
                "no bundle has the task {id}; there are {}",
                names.join(", ")
            );
            answering.retain(|(_, name)| name == id);
        }
        let handles: Vec<TaskHandle> = answering.iter().map(|&(handle, _)| handle).collect();
        self.generated.prepare(&mut tasks.session, &handles)?;
        Ok(answering)
    }
}

/// Prints what the tasks say about a line; texts are streamed, or the next of those that were generated before.
fn answer(
    session: &mut Session,
    handles: &[(TaskHandle, String)],
    line: &str,
    (streams, generated): (bool, &mut Option<vec::IntoIter<String>>),
    output: &Output,
) -> anyhow::Result<()> {
    for (handle, task) in handles {
        let text = Text::of_line(line, inputs(session, *handle))?;
        session.activate(*handle)?;
        let several = handles.len() > 1;
        let generates = generates(session, *handle);
        if streams && generates && generated.is_none() {
            let encoded = text.encode(session)?;
            if several {
                output.say_part(&format!("{task}\t"));
            }
            let said = session.stream(&encoded, |piece| output.say_part(piece));
            output.say_part("\n");
            said?;
            continue;
        }
        let made = match generates {
            true => generated.as_mut().and_then(Iterator::next),
            false => None,
        };
        let said = match &made {
            Some(text) => Said::Text { text },
            None => Said::of(text.ask(session)?)?,
        };
        let line = Line { task, said };
        output.json(&line)?;
        match several {
            true => output.say(format_args!("{task}\t{}", line.said)),
            false => output.say(&line.said),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use preface_runtime::{Choice, Choices};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_answer_is_shown_to_people_and_to_scripts() {
        let label = |out_of_scope| Answer::Label {
            best: Choice {
                label: "on",
                class: 0,
                score: 0.5,
            },
            out_of_scope,
        };
        let labels = ["on", "off"].map(str::to_owned);
        let (on, off) = (Some((0, 0.75)), Some((1, 0.5)));
        let (both, tags) = ([on, off], [on, None]);
        let table = [
            (
                label(false),
                json!({"label": "on", "score": 0.5}),
                "on\t0.500",
            ),
            (
                label(true),
                json!({"label": null, "score": 0.5, "out_of_scope": true}),
                "(out of scope)\t0.500",
            ),
            (
                Answer::Labels(Choices::new(&labels, &both)),
                json!({"labels": ["on", "off"], "score": [0.75, 0.5]}),
                "on, off",
            ),
            (
                Answer::Labels(Choices::new(&labels, &[])),
                json!({"labels": [], "score": []}),
                "",
            ),
            (
                Answer::Tags(Choices::new(&labels, &tags)),
                json!({"tags": ["on", null], "score": [0.75, null]}),
                "on -",
            ),
            (
                Answer::Text("light on"),
                json!({"text": "light on"}),
                "light on",
            ),
        ];
        for (answer, mut expected, people) in table {
            let said = Said::of(answer).expect("an answer of this program");
            assert_eq!(said.to_string(), people);
            let line = Line { task: "t", said };
            expected["task"] = json!("t");
            assert_eq!(serde_json::to_value(&line).expect("JSON"), expected);
        }
    }
}
