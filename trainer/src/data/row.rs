//! The fields of one line, as JSON or as the cells of a table, and the example that they make.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Example, Target};

/// Longest label that a bundle carries.
const LABEL_BYTES: usize = 255;
/// What stands between the labels of one cell of a table.
const BETWEEN_LABELS: char = '|';

/// The fields of a line as they come.
#[derive(Default, Deserialize)]
pub struct Row {
    pub text: Option<String>,
    pub text2: Option<String>,
    pub label: Option<Value>,
    pub labels: Option<Names>,
    pub tokens: Option<Vec<String>>,
    pub tags: Option<Vec<String>>,
    pub target: Option<Value>,
}

/// A list of names, or one cell of a table with bars between them.
pub struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Array(values) => values
                .iter()
                .map(plain)
                .collect::<Option<Vec<_>>>()
                .map(Self),
            Value::String(cell) => Some(Self::of_cell(&cell)),
            _ => None,
        }
        .ok_or_else(|| serde::de::Error::custom("labels are a list of texts or numbers"))
    }
}

impl Names {
    /// The names of a cell.
    pub fn of_cell(cell: &str) -> Self {
        let names = cell.split(BETWEEN_LABELS).map(str::trim);
        Self(
            names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        )
    }
}

/// The text of a name that may have come as a number or a truth value.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

impl Row {
    /// The example that the fields of `line` make.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn example(self, line: usize) -> Result<Example, String> {
        let text2 = self.text2.clone();
        let (text, target) = self.text_and_target()?;
        for (name, text) in [("text", Some(&text)), ("text2", text2.as_ref())] {
            if text.is_some_and(|text| text.trim().is_empty()) {
                return Err(format!("the {name} is empty; remove the line"));
            }
        }
        target
            .names()
            .iter()
            .try_for_each(|name| sound_label(name))?;
        Ok(Example {
            text,
            text2,
            target,
            line,
        })
    }

    fn text_and_target(self) -> Result<(String, Target), String> {
        if let Some(tags) = self.tags {
            let tokens = self.tokens.ok_or("tags without \"tokens\"")?;
            if tokens.len() != tags.len() {
                return Err(format!(
                    "{} tokens and {} tags; each token needs one tag",
                    tokens.len(),
                    tags.len()
                ));
            }
            if let Some(token) = tokens
                .iter()
                .find(|token| token.split_whitespace().count() != 1)
            {
                return Err(format!(
                    "the token {token:?} is not one word; a token has no space in it and is not empty"
                ));
            }
            return Ok((tokens.join(" "), tidy(Target::Tags(tags))));
        }
        let text = self
            .text
            .ok_or("no \"text\"; each line needs one, or \"tokens\" and \"tags\"")?;
        let target = match (self.label, self.labels, self.target) {
            (Some(Value::Array(labels)), None, None) => {
                let labels = labels.iter().map(plain).collect::<Option<Vec<_>>>();
                Target::Labels(labels.ok_or("a label that is no text or number")?)
            }
            (Some(label), None, None) => {
                Target::Label(plain(&label).ok_or("a label that is no text or number")?)
            }
            (None, Some(Names(labels)), None) => Target::Labels(labels),
            (None, None, Some(target)) => {
                Target::Text(plain(&target).ok_or("a target that is no text")?)
            }
            (None, None, None) => return Err(
                "no \"label\"; each line needs a \"label\", \"labels\", \"tags\" or a \"target\""
                    .into(),
            ),
            _ => return Err("more than one of \"label\", \"labels\" and \"target\"".into()),
        };
        Ok((text, tidy(target)))
    }
}

/// The answer without space around its names, and without names that come twice among labels.
fn tidy(target: Target) -> Target {
    let trimmed = |names: Vec<String>| names.iter().map(|name| name.trim().to_owned()).collect();
    match target {
        Target::Label(label) => Target::Label(label.trim().to_owned()),
        Target::Labels(labels) => {
            let mut labels: Vec<String> = trimmed(labels);
            labels.sort();
            labels.dedup();
            Target::Labels(labels)
        }
        Target::Tags(tags) => Target::Tags(trimmed(tags)),
        Target::Text(text) => Target::Text(text),
    }
}

fn sound_label(label: &str) -> Result<(), String> {
    if label.is_empty() || label.len() > LABEL_BYTES || label.chars().any(char::is_control) {
        return Err(format!(
            "a label is 1 to {LABEL_BYTES} bytes without control characters, not {label:?}"
        ));
    }
    Ok(())
}
