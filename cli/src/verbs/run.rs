//! `preface run`: answers texts.

use std::{
    io::{self, BufRead, ErrorKind},
    process::ExitCode,
};

use anyhow::{Context, Error, anyhow, bail};
use preface_runtime::{Session, TaskHandle};
use serde::Serialize;

use crate::{
    output::Output,
    tasks::{Files, Tasks},
};

/// Answer texts with the tasks of verified bundles.
#[derive(clap::Args)]
#[command(after_help = "\
Every loaded task answers every text, unless --task names one. Without TEXT, lines are read from standard input; a line
may be a JSON object with \"text\". With --json, one object is printed for each answer.

Example:
  preface run --base minilm.base --bundle intents.preface --trust trust.txt \"turn on the light\"
  preface run --base minilm.base --bundle *.preface --trust trust.txt --task intents --json < lines")]
pub struct Arguments {
    #[command(flatten)]
    files: Files,
    /// Only this task answers.
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// The text; without it, lines of standard input.
    text: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    task: &'a str,
    label: &'a str,
    score: f32,
}

/// Opens the image and the bundles, and answers.
pub fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    let Tasks {
        mut session,
        handles,
        ..
    } = arguments.files.open()?;
    let handles = match &arguments.task {
        Some(id) => vec![named(&session, id)?],
        None => handles,
    };
    if let Some(text) = &arguments.text {
        answer(&mut session, &handles, text, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (number, line) in io::stdin().lock().lines().enumerate() {
        if output.is_closed() {
            break;
        }
        let place = || format!("line {} of standard input", number + 1);
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::InvalidData => anyhow!("{} is not UTF-8 text", place()),
            _ => Error::new(error).context("cannot read standard input"),
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let text = text_of(&line);
        answer(
            &mut session,
            &handles,
            text.as_deref().unwrap_or(&line),
            output,
        )
        .with_context(place)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn named(session: &Session, id: &str) -> anyhow::Result<TaskHandle> {
    let found = session.tasks().find(|(_, name)| *name == id);
    if let Some((handle, _)) = found {
        return Ok(handle);
    }
    let names: Vec<&str> = session.tasks().map(|(_, name)| name).collect();
    bail!(
        "no bundle has the task {id}; there are {}",
        names.join(", ")
    )
}

/// The text in a line of JSON; `None` where the line is the text.
fn text_of(line: &str) -> Option<String> {
    let value: serde_json::Value = line
        .starts_with('{')
        .then(|| serde_json::from_str(line).ok())??;
    Some(value.get("text")?.as_str()?.to_owned())
}

fn answer(
    session: &mut Session,
    handles: &[TaskHandle],
    text: &str,
    output: &Output,
) -> anyhow::Result<()> {
    for &handle in handles {
        session.activate(handle)?;
        let answer = session.classify(text)?;
        let line = Line {
            task: answer.task,
            label: answer.label,
            score: answer.score,
        };
        output.json(&line)?;
        match handles.len() {
            1 => output.say(format_args!("{}\t{:.3}", line.label, line.score)),
            _ => output.say(format_args!(
                "{}\t{}\t{:.3}",
                line.task, line.label, line.score
            )),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_holds_one() {
        let table = [
            ("turn on", None),
            (r#"{"text": "turn on", "label": "x"}"#, Some("turn on")),
            (r#"{"texts": "turn on"}"#, None),
            ("{brace", None),
        ];
        for (line, text) in table {
            assert_eq!(text_of(line).as_deref(), text, "{line}");
        }
    }
}
