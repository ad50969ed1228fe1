//! Examples from JSON lines, CSV and TSV files.
//!
//! The fields of a line say what is learned: `text` and `label` (or a list of `labels`), `text2` for sentence pairs,
//! `tokens` and `tags`, or `text` and `target`. All lines of a file are of one kind.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Error;

/// What an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    /// One label.
    #[default]
    Label,
    /// Any number of labels.
    Labels,
    /// One tag a word: B-, I- and O.
    Tags,
    /// A text that the base goes on with.
    Text,
}

impl AnswerKind {
    /// The fields of a line of this kind.
    fn fields(self) -> &'static str {
        match self {
            Self::Label => "\"text\" and \"label\"",
            Self::Labels => "\"text\" and \"labels\"",
            Self::Tags => "\"tokens\" and \"tags\"",
            Self::Text => "\"text\" and \"target\"",
        }
    }
}

/// The right answer of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One label.
    Label(String),
    /// Any number of labels, none twice.
    Labels(Vec<String>),
    /// A tag for each word.
    Tags(Vec<String>),
    /// The text to go on with.
    Text(String),
}

impl Target {
    /// Its kind.
    pub fn kind(&self) -> AnswerKind {
        match self {
            Self::Label(_) => AnswerKind::Label,
            Self::Labels(_) => AnswerKind::Labels,
            Self::Tags(_) => AnswerKind::Tags,
            Self::Text(_) => AnswerKind::Text,
        }
    }

    /// The names in it that a head knows by number.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Label(label) => std::slice::from_ref(label),
            Self::Labels(names) | Self::Tags(names) => names,
            Self::Text(_) => &[],
        }
    }
}

/// One example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text; words with a space between them where it came as `tokens`.
    pub text: String,
    /// The second text of a pair.
    pub text2: Option<String>,
    /// The right answer.
    pub target: Target,
    /// Its line in the file, counted from 1.
    pub line: usize,
}

/// The examples of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// The examples, in the file's order.
    pub examples: Vec<Example>,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}

/// What some editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];
/// Longest label that a bundle carries.
const LABEL_BYTES: usize = 255;
/// What stands between the labels of one cell of a table.
const BETWEEN_LABELS: char = '|';

/// The fields of a line as they come.
#[derive(Default, Deserialize)]
struct Row {
    text: Option<String>,
    text2: Option<String>,
    label: Option<Value>,
    labels: Option<Names>,
    tokens: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    target: Option<Value>,
}

/// A list of names, or one cell of a table with bars between them.
struct Names(Vec<String>);

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
    fn of_cell(cell: &str) -> Self {
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
    fn example(self, line: usize) -> Result<Example, String> {
        let text2 = self.text2.clone();
        let (text, target) = self.text_and_target()?;
        if text.trim().is_empty() || text2.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return Err("the text is empty; remove the line".into());
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
            let one_word = |token: &String| token.split_whitespace().count() == 1;
            if tokens.len() != tags.len() || !tokens.iter().all(one_word) {
                return Err(format!(
                    "{} tokens and {} tags; each word, without a space in it, needs one tag",
                    tokens.len(),
                    tags.len()
                ));
            }
            return Ok((tokens.join(" "), Target::Tags(tags)));
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
        Ok((text, once_each(target)))
    }
}

fn once_each(target: Target) -> Target {
    match target {
        Target::Labels(mut labels) => {
            labels.sort();
            labels.dedup();
            Target::Labels(labels)
        }
        other => other,
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

impl Dataset {
    /// Reads a file: CSV or TSV with a header where its name ends so, JSON lines otherwise. Blank lines are passed
    /// over.
    ///
    /// # Errors
    /// When the file cannot be read, a line is no example or of another kind than the first, or there is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let at = |line: usize, reason: String| Error::Data {
            path: path.into(),
            line,
            reason,
        };
        let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
        let examples = match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => read_table(text, b',', at)?,
            Some("tsv") => read_table(text, b'\t', at)?,
            _ => read_lines(text, at)?,
        };
        let first = examples
            .first()
            .ok_or_else(|| at(1, "the file holds no example".into()))?;
        let shape = |example: &Example| (example.target.kind(), example.text2.is_some());
        let (kind, pairs) = shape(first);
        if let Some(other) = examples
            .iter()
            .find(|example| shape(example) != (kind, pairs))
        {
            let pair = if pairs { " and \"text2\"" } else { "" };
            return Err(at(
                other.line,
                format!(
                    "is of another kind than the lines before it, which have {}{pair}",
                    kind.fields()
                ),
            ));
        }
        let sha256 = preface_graph::hex(&Sha256::digest(&bytes));
        Ok(Self {
            path: path.into(),
            examples,
            sha256,
        })
    }

    /// What the answers are.
    pub fn kind(&self) -> AnswerKind {
        self.examples
            .first()
            .map_or(AnswerKind::Label, |example| example.target.kind())
    }

    /// Whether the examples are sentence pairs.
    pub fn pairs(&self) -> bool {
        self.examples
            .first()
            .is_some_and(|example| example.text2.is_some())
    }

    /// The labels or tags, sorted.
    pub fn labels(&self) -> Vec<String> {
        let names = self
            .examples
            .iter()
            .flat_map(|example| example.target.names());
        let mut labels: Vec<String> = names.cloned().collect();
        labels.sort();
        labels.dedup();
        labels
    }

    /// Refuses another kind of answer than `kind`, or pairs where there should be none.
    ///
    /// # Errors
    /// When the first line is of another kind.
    pub fn expect(&self, kind: AnswerKind, pairs: bool) -> Result<(), Error> {
        if (self.kind(), self.pairs()) == (kind, pairs) {
            return Ok(());
        }
        let pair = if pairs { ", and \"text2\"" } else { "" };
        Err(self.at(
            self.examples.first().map_or(1, |example| example.line),
            format!("the task has lines with {}{pair}", kind.fields()),
        ))
    }

    /// The number of each name of `example` among `labels`.
    ///
    /// # Errors
    /// When a name is not among them.
    pub fn indices(&self, example: &Example, labels: &Labels) -> Result<Vec<usize>, Error> {
        let find = |name: &String| {
            labels.index(name).ok_or_else(|| {
                self.at(
                    example.line,
                    format!(
                        "label {name:?} is not one that was learned from the training data: {}",
                        labels.listed()
                    ),
                )
            })
        };
        example.target.names().iter().map(find).collect()
    }

    /// The examples without those that have the one label `label`.
    pub fn without(mut self, label: &str) -> Self {
        self.examples
            .retain(|example| example.target.names() != [label]);
        self
    }

    /// An error at a line of this file.
    pub fn at(&self, line: usize, reason: String) -> Error {
        Error::Data {
            path: self.path.clone(),
            line,
            reason,
        }
    }
}

/// Labels with their numbers.
#[derive(Clone, Debug)]
pub struct Labels<'a> {
    names: &'a [String],
    numbers: BTreeMap<&'a str, usize>,
}

impl<'a> Labels<'a> {
    /// Numbers `names` in their order.
    pub fn of(names: &'a [String]) -> Self {
        let numbers = names
            .iter()
            .enumerate()
            .map(|(index, name)| (name.as_str(), index));
        Self {
            names,
            numbers: numbers.collect(),
        }
    }

    /// The number of `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    fn listed(&self) -> String {
        const SHOWN: usize = 20;
        let mut listed = self
            .names
            .iter()
            .take(SHOWN)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if self.names.len() > SHOWN {
            listed += &format!(" and {} more", self.names.len() - SHOWN);
        }
        listed
    }
}

fn read_lines(bytes: &[u8], at: impl Fn(usize, String) -> Error) -> Result<Vec<Example>, Error> {
    let mut examples = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let number = index + 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_slice(line)
            .map_err(|error| at(number, format!("not a JSON object with texts: {error}")))?;
        examples.push(row.example(number).map_err(|reason| at(number, reason))?);
    }
    Ok(examples)
}

fn read_table(
    bytes: &[u8],
    delimiter: u8,
    at: impl Fn(usize, String) -> Error,
) -> Result<Vec<Example>, Error> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(bytes);
    let headers = reader
        .headers()
        .map_err(|error| at(1, error.to_string()))?
        .clone();
    let column = |name: &str| headers.iter().position(|header| header.trim() == name);
    if column("text").is_none() {
        return Err(at(1, "the header names no column \"text\"".into()));
    }
    if ["label", "labels", "target"]
        .iter()
        .all(|name| column(name).is_none())
    {
        return Err(at(
            1,
            "the header names no column \"label\", \"labels\" or \"target\"".into(),
        ));
    }
    let mut examples = Vec::new();
    for record in reader.records() {
        let line = |position: Option<&csv::Position>| {
            position.map_or(1, |position| position.line() as usize)
        };
        let record = record.map_err(|error| at(line(error.position()), error.to_string()))?;
        let cell = |name: &str| Some(record.get(column(name)?)?.to_owned());
        let row = Row {
            text: cell("text"),
            text2: cell("text2"),
            label: cell("label").map(Value::String),
            labels: cell("labels").map(|cell| Names::of_cell(&cell)),
            target: cell("target").map(Value::String),
            ..Row::default()
        };
        let line = line(record.position());
        examples.push(row.example(line).map_err(|reason| at(line, reason))?);
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> Result<Dataset, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Dataset::read(&path)
    }

    fn label(name: &str) -> Target {
        Target::Label(name.into())
    }

    #[test]
    fn every_format_gives_the_same_examples() {
        let table = [
            (
                "a.jsonl",
                "{\"text\":\"so, what\",\"label\":\"1\"}\n\n{\"label\":2,\"text\":\"x\"}\n",
            ),
            (
                "b.jsonl",
                "\u{feff}{\"text\":\"so, what\",\"label\":1}\n{\"label\":\"2\",\"text\":\"x\"}",
            ),
            ("a.csv", "label,text\n1,\"so, what\"\n2,x\n"),
            ("a.tsv", "text\tlabel\nso, what\t1\nx\t2\n"),
        ];
        for (name, text) in table {
            let dataset = written(name, text).unwrap();
            let pairs: Vec<_> = dataset
                .examples
                .iter()
                .map(|example| (example.text.as_str(), example.target.clone()))
                .collect();
            assert_eq!(
                pairs,
                [("so, what", label("1")), ("x", label("2"))],
                "{name}"
            );
        }
    }

    #[test]
    fn fields_say_what_is_learned() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let table = [
            (
                "a.jsonl",
                r#"{"text":"x","labels":["b","a","b"]}"#,
                Target::Labels(names(&["a", "b"])),
                false,
            ),
            (
                "a.jsonl",
                r#"{"text":"x","label":[]}"#,
                Target::Labels(vec![]),
                false,
            ),
            (
                "a.csv",
                "text,labels\nx,b|a\n",
                Target::Labels(names(&["a", "b"])),
                false,
            ),
            (
                "a.jsonl",
                r#"{"text":"x","text2":"y","label":"a"}"#,
                label("a"),
                true,
            ),
            (
                "a.jsonl",
                r#"{"tokens":["x","y"],"tags":["O","B-a"]}"#,
                Target::Tags(names(&["O", "B-a"])),
                false,
            ),
            (
                "a.tsv",
                "text\ttarget\nx\ty z\n",
                Target::Text("y z".into()),
                false,
            ),
        ];
        for (name, text, target, pairs) in table {
            let dataset = written(name, text).unwrap();
            assert_eq!(dataset.examples[0].target, target, "{text}");
            assert_eq!(
                (dataset.kind(), dataset.pairs()),
                (target.kind(), pairs),
                "{text}"
            );
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let table = [
            (
                "a.jsonl",
                "{\"text\":\"x\",\"label\":\"a\"}\n{\"text\":\"y\"}\n",
                "line 2: no \"label\"",
            ),
            ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
            (
                "a.jsonl",
                "{\"text\":\"x\",\"label\":\"a\"}\n{\"text\":\"x\",\"text2\":\"y\",\"label\":\"a\"}\n",
                "line 2: is of another kind",
            ),
            (
                "a.jsonl",
                "{\"tokens\":[\"x\"],\"tags\":[\"O\",\"O\"]}\n",
                "line 1: 1 tokens and 2 tags",
            ),
            (
                "a.jsonl",
                "{\"text\":\" \",\"label\":\"a\"}\n",
                "line 1: the text is empty",
            ),
            (
                "a.jsonl",
                "{\"text\":\"x\",\"label\":\"\"}\n",
                "line 1: a label is 1 to 255 bytes",
            ),
            ("a.jsonl", "\n", "line 1: the file holds no example"),
            (
                "a.csv",
                "text,tag\nx,y\n",
                "line 1: the header names no column \"label\"",
            ),
        ];
        for (name, text, expected) in table {
            let error = written(name, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_unknown_label_is_named_with_its_line() {
        let dataset = written(
            "t.jsonl",
            "{\"text\":\"x\",\"label\":\"a\"}\n{\"text\":\"y\",\"label\":\"z\"}\n",
        )
        .unwrap();
        let names = ["a".to_owned()];
        let error = dataset
            .indices(&dataset.examples[1], &Labels::of(&names))
            .unwrap_err()
            .to_string();
        assert!(
            error
                .contains("line 2: label \"z\" is not one that was learned from the training data"),
            "{error}"
        );
    }
}
