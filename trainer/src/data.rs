//! Examples from JSON lines, CSV and TSV files.
//!
//! The fields of a line say what is learned: `text` and `label` (or a list of `labels`), `text2` for sentence pairs,
//! `tokens` and `tags`, or `text` and `target`. All lines of a file are of one kind.

mod lines;
mod row;
mod table;
pub(crate) mod tags;
mod twice;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::table::Delimiter;
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
    /// How many entities began with `I-` and are read as beginning with `B-`, and the first line of one.
    pub begun: Option<(usize, usize)>,
}

/// What some editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];
/// What stands before UTF-16 text.
const UTF16_MARKS: [&[u8]; 2] = [&[0xFF, 0xFE], &[0xFE, 0xFF]];

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
        let named = |(line, reason)| at(line, reason);
        let text = utf8(&bytes).map_err(named)?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let mut examples = match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("csv") => table::read(text, Delimiter::Comma),
            Some("tsv") => table::read(text, Delimiter::Tab),
            _ => lines::read(text),
        }
        .map_err(named)?;
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
        tags::refuse_mixed(&examples).map_err(named)?;
        let begun = tags::begin_entities(&mut examples);
        let sha256 = preface_graph::hex(&Sha256::digest(&bytes));
        Ok(Self {
            path: path.into(),
            examples,
            sha256,
            begun,
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

/// The text of a file without the mark before it.
///
/// # Errors
/// The line and the reason, where it is no UTF-8.
fn utf8(bytes: &[u8]) -> Result<&str, (usize, String)> {
    if UTF16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        let reason =
            "the file is UTF-16; save it as UTF-8, or convert it: iconv -f UTF-16 -t UTF-8";
        return Err((1, reason.into()));
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let reason =
            "is no UTF-8; save the file as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8";
        (line, reason.into())
    })
}

#[cfg(test)]
impl Dataset {
    /// Texts with a label each, on lines counted from 1.
    pub(crate) fn of_labels(pairs: &[(&str, &str)]) -> Self {
        let example = |(line, &(text, label)): (usize, &(&str, &str))| Example {
            text: text.into(),
            text2: None,
            target: Target::Label(label.into()),
            line,
        };
        Self {
            path: "t".into(),
            examples: (1..).zip(pairs).map(example).collect(),
            sha256: String::new(),
            begun: None,
        }
    }
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
            ("a.CSV", "label,text\r\n1,\"so, what\"\r\n2,x\r\n"),
            ("b.csv", "text,label\n\"so, what\", 1\nx,2 \n"),
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
            (
                "a.jsonl",
                "[1]\n",
                "line 1: a JSON array; write one object a line",
            ),
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
                "{\"tokens\":[\"x\",\"\"],\"tags\":[\"O\",\"O\"]}\n",
                "line 1: the token \"\" is not one word",
            ),
            (
                "a.jsonl",
                "{\"text\":\"x\",\"text2\":\"\",\"label\":\"a\"}\n",
                "line 1: the text2 is empty",
            ),
            (
                "a.jsonl",
                "{\"text\":\"x\",\"label\":\"a\"}\n{\"text\":\"y\",\n",
                "line 2: not a JSON object with texts: EOF while parsing a value at column 12",
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
    fn a_file_in_another_encoding_is_told_how_to_become_utf_8() {
        let table: [(&[u8], &str); 2] = [
            (b"\xFF\xFEt\0e\0", "the file is UTF-16"),
            (b"text,label\ncaf\xE9,a\n", "is no UTF-8; save"),
        ];
        for (line, (bytes, expected)) in (1..).zip(table) {
            let (found, reason) = utf8(bytes).unwrap_err();
            assert!(
                found == line && reason.contains(expected),
                "{found}: {reason}"
            );
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
