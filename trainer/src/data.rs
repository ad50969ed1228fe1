//! Labelled texts from JSON lines, CSV and TSV files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};

use crate::Error;

/// One labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub text: String,
    /// Its label.
    pub label: String,
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

#[derive(Deserialize)]
struct Row {
    text: Option<String>,
    label: Option<String>,
    text2: Option<IgnoredAny>,
    tags: Option<IgnoredAny>,
    target: Option<IgnoredAny>,
}

impl Row {
    fn example(self, line: usize) -> Result<Example, String> {
        if self.text2.is_some() || self.tags.is_some() || self.target.is_some() {
            let reason = "sentence pairs, tags and targets are not learned yet";
            return Err(format!(
                "{reason}; each line needs a \"text\" and a \"label\""
            ));
        }
        let missing =
            |name: &str| format!("no \"{name}\"; each line needs a \"text\" and a \"label\"");
        let text = self.text.ok_or_else(|| missing("text"))?;
        let label = self.label.ok_or_else(|| missing("label"))?;
        if text.trim().is_empty() {
            return Err("the text is empty; remove the line".into());
        }
        if label.is_empty() || label.len() > LABEL_BYTES || label.chars().any(char::is_control) {
            return Err(format!(
                "a label is 1 to {LABEL_BYTES} bytes without control characters, not {label:?}"
            ));
        }
        Ok(Example { text, label, line })
    }
}

impl Dataset {
    /// Reads a file: CSV or TSV with a header where its name ends so, JSON lines otherwise. Blank lines are passed
    /// over.
    ///
    /// # Errors
    /// When the file cannot be read, a line is no example, or there is none.
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
        if examples.is_empty() {
            return Err(at(1, "the file holds no example".into()));
        }
        let sha256 = preface_graph::hex(&Sha256::digest(&bytes));
        Ok(Self {
            path: path.into(),
            examples,
            sha256,
        })
    }

    /// The labels, sorted.
    pub fn labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = self
            .examples
            .iter()
            .map(|example| example.label.clone())
            .collect();
        labels.sort();
        labels.dedup();
        labels
    }

    /// The index of each example's label among `labels`.
    ///
    /// # Errors
    /// When a label is not among them.
    pub fn indices(&self, labels: &[String]) -> Result<Vec<usize>, Error> {
        let index: BTreeMap<&str, usize> = labels
            .iter()
            .enumerate()
            .map(|(index, label)| (label.as_str(), index))
            .collect();
        let find = |example: &Example| {
            let found = index.get(example.label.as_str()).copied();
            found.ok_or_else(|| Error::Data {
                path: self.path.clone(),
                line: example.line,
                reason: format!(
                    "label {:?} is not one that was learned from the training data: {}",
                    example.label,
                    labels.join(", ")
                ),
            })
        };
        self.examples.iter().map(find).collect()
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
    for name in ["text", "label"] {
        if !headers.iter().any(|header| header == name) {
            return Err(at(1, format!("the header names no column {name:?}")));
        }
    }
    let mut examples = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| {
            at(
                error
                    .position()
                    .map_or(1, |position| position.line() as usize),
                error.to_string(),
            )
        })?;
        let line = record
            .position()
            .map_or(1, |position| position.line() as usize);
        let row: Row = record
            .deserialize(Some(&headers))
            .map_err(|error| at(line, error.to_string()))?;
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

    #[test]
    fn every_format_gives_the_same_examples() {
        let table = [
            (
                "a.jsonl",
                "{\"text\":\"so, what\",\"label\":\"a\"}\n\n{\"label\":\"b\",\"text\":\"x\"}\n",
            ),
            (
                "b.jsonl",
                "\u{feff}{\"text\":\"so, what\",\"label\":\"a\"}\n{\"label\":\"b\",\"text\":\"x\"}",
            ),
            ("a.csv", "label,text\na,\"so, what\"\nb,x\n"),
            ("a.tsv", "text\tlabel\nso, what\ta\nx\tb\n"),
        ];
        for (name, text) in table {
            let dataset = written(name, text).unwrap();
            let pairs: Vec<_> = dataset
                .examples
                .iter()
                .map(|example| (example.text.as_str(), example.label.as_str()))
                .collect();
            assert_eq!(pairs, [("so, what", "a"), ("x", "b")], "{name}");
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
                "{\"text\":\"x\",\"text2\":\"y\",\"label\":\"a\"}\n",
                "line 1: sentence pairs",
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
        let error = dataset.indices(&["a".into()]).unwrap_err().to_string();
        assert!(
            error
                .contains("line 2: label \"z\" is not one that was learned from the training data"),
            "{error}"
        );
    }
}
