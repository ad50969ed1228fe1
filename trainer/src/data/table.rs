//! CSV and TSV with a header, quoted as RFC 4180 says.

use csv::ErrorKind;
use serde_json::Value;

use super::{
    Example,
    row::{Names, Row},
};

/// What parts the cells of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delimiter {
    /// CSV.
    Comma,
    /// TSV.
    Tab,
}

impl Delimiter {
    fn byte(self) -> u8 {
        match self {
            Self::Comma => b',',
            Self::Tab => b'\t',
        }
    }
}

/// How a quote gets into a cell.
const QUOTED: &str =
    "write a quote of a text twice, in a cell within quotes: \"\"\"yes\"\", she said\"";

/// The examples of `text`, one a record.
///
/// # Errors
/// The line and the reason, where the header lacks a column or a record is no example.
pub fn read(text: &str, delimiter: Delimiter) -> Result<Vec<Example>, (usize, String)> {
    refuse_stray_quotes(text.as_bytes(), delimiter)?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter.byte())
        .from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| (1, error.to_string()))?;
    let names: Vec<String> = headers.iter().map(|name| name.trim().to_owned()).collect();
    refuse_missing(&names)?;
    let column = |name: &str| names.iter().position(|header| header == name);
    let mut examples = Vec::new();
    let mut lines = Lines::of(text);
    for record in reader.records() {
        let mut line = |position: Option<&csv::Position>| {
            position.map_or(1, |position| lines.at(position.byte() as usize))
        };
        let record = record.map_err(|error| (line(error.position()), reason(&error)))?;
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
        examples.push(row.example(line).map_err(|reason| (line, reason))?);
    }
    Ok(examples)
}

/// Which line a record is on, for one record after the other.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            bytes: text.as_bytes(),
            at: 0,
            line: 1,
        }
    }

    /// The line of the record that begins at `byte`, or behind the ends of lines there: blank ones are no records.
    fn at(&mut self, byte: usize) -> usize {
        let ends = self.bytes.iter().skip(byte);
        let blank = ends.take_while(|byte| matches!(byte, b'\n' | b'\r'));
        let begin = (byte + blank.count()).min(self.bytes.len());
        let before = &self.bytes[self.at.min(begin)..begin];
        self.line += before.iter().filter(|&&byte| byte == b'\n').count();
        self.at = begin;
        self.line
    }
}

/// Refuses a header without the columns of an example.
fn refuse_missing(names: &[String]) -> Result<(), (usize, String)> {
    let has = |name: &str| names.iter().any(|header| header == name);
    let answers = ["label", "labels", "target"];
    let missing =
        match (has("text"), answers.into_iter().any(has)) {
            (true, true) => return Ok(()),
            _ if has("tags") => return Err((
                1,
                "tokens and tags are lists, which a table does not hold; write them as JSON lines"
                    .into(),
            )),
            (false, _) => "\"text\"",
            (true, false) => "\"label\", \"labels\" or \"target\"",
        };
    let found: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let way_out = match names {
        [_] => "part them by commas in a .csv, by tabs in a .tsv",
        _ => "rename what it is there",
    };
    Err((
        1,
        format!(
            "the header names no column {missing}, but {}; {way_out}",
            found.join(", ")
        ),
    ))
}

fn reason(error: &csv::Error) -> String {
    match error.kind() {
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!(
            "{len} cells under a header of {expected_len}; a cell that holds what parts cells stands within quotes"
        ),
        _ => error.to_string(),
    }
}

/// Refuses a quote that opens a cell and does not close at its end: lines would vanish in that cell without a word. A
/// cell of a TSV file that takes both tabs and lines in is one of those.
fn refuse_stray_quotes(bytes: &[u8], delimiter: Delimiter) -> Result<(), (usize, String)> {
    let parts = |byte: u8| byte == delimiter.byte() || matches!(byte, b'\n' | b'\r');
    let (mut at, mut line, mut begins) = (0, 1, true);
    while let Some(&byte) = bytes.get(at) {
        if !(begins && byte == b'"') {
            begins = parts(byte);
            line += usize::from(byte == b'\n');
            at += 1;
            continue;
        }
        let length = quoted(&bytes[at + 1..]).ok_or_else(|| {
            (
                line,
                format!("a quote opens here and never closes; {QUOTED}"),
            )
        })?;
        let cell = &bytes[at + 1..at + 1 + length];
        at += length + 2;
        let last = line + cell.iter().filter(|&&byte| byte == b'\n').count();
        if bytes.get(at).is_some_and(|&byte| !parts(byte)) {
            let reason =
                format!("the quote that opens here closes within a cell of line {last}; {QUOTED}");
            return Err((line, reason));
        }
        if delimiter == Delimiter::Tab && last > line && cell.contains(&b'\t') {
            let reason =
                format!("the quote that opens here takes lines in up to line {last}; {QUOTED}");
            return Err((line, reason));
        }
        line = last;
        begins = false;
    }
    Ok(())
}

/// The length of a cell whose opening quote lies before `bytes`; two quotes stand for one in it.
fn quoted(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == b'"')?;
        if bytes.get(at + 1) != Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_that_would_swallow_lines_are_refused() {
        use Delimiter::{Comma, Tab};
        let table = [
            (
                "text,label\n\"so, \"\"what\"\"\n\",a\nx,\"b\"",
                Comma,
                Ok(2),
            ),
            ("text,label\nshe said \"yes\",a\n", Comma, Ok(1)),
            ("label\ttext\na\t\"x\ny\"\n", Tab, Ok(1)),
            (
                "label,text\na,x\na,\"yes\nb,no\n",
                Comma,
                Err((3, "a quote opens here and never closes")),
            ),
            (
                "label\ttext\na\t\"yes\nb\tno\nb\t\"no\n",
                Tab,
                Err((2, "closes within a cell of line 4")),
            ),
            (
                "label\ttext\na\t\"yes\nb\tno\"\n",
                Tab,
                Err((2, "takes lines in up to line 3")),
            ),
            (
                "text,label\n\"yes\" she said,a\n",
                Comma,
                Err((2, "closes within a cell of line 2")),
            ),
        ];
        for (text, delimiter, expected) in table {
            match (read(text, delimiter), expected) {
                (Ok(examples), Ok(count)) => assert_eq!(examples.len(), count, "{text}"),
                (Err((line, reason)), Err((at, part))) => {
                    assert!(
                        line == at && reason.contains(part),
                        "{text}: {line}, {reason}"
                    );
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_header_that_lacks_a_column_is_told_what_it_has() {
        let table = [
            (
                "sentence,intent\nx,y\n",
                "no column \"text\", but \"sentence\", \"intent\"; rename",
            ),
            (
                "text,tag\nx,y\n",
                "no column \"label\", \"labels\" or \"target\", but \"text\", \"tag\"",
            ),
            (
                "text;label\nx;y\n",
                "but \"text;label\"; part them by commas",
            ),
            ("tokens,tags\nx,O\n", "write them as JSON lines"),
        ];
        for (text, expected) in table {
            let (line, reason) = read(text, Delimiter::Comma).unwrap_err();
            assert!(line == 1 && reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_record_of_another_length_is_named_behind_a_cell_of_two_lines() {
        let (line, reason) =
            read("text,label\n\"x\ny\",a\nso, what,b\n", Delimiter::Comma).unwrap_err();
        assert_eq!(line, 4);
        assert!(
            reason.starts_with("3 cells under a header of 2"),
            "{reason}"
        );
    }

    #[test]
    fn a_record_is_on_its_line_behind_all_ends_of_lines() {
        for (text, expected) in [
            ("text,label\nx,a\n,b\n", 3),
            ("text,label\r\nx,a\r\ny z,b\r\n,c\r\n", 4),
            ("text,label\n\nx,a\n\n\n,c\n", 6),
            ("text,label\r\n\"x\r\ny\",a\r\n,c\r\n", 4),
        ] {
            let (line, reason) = read(text, Delimiter::Comma).unwrap_err();
            assert_eq!(line, expected, "{text:?}: {reason}");
        }
    }
}
