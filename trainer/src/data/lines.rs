//! JSON lines.

use super::{Example, row::Row};

/// The examples of `text`, one JSON object a line.
///
/// # Errors
/// The line and the reason, where one is no example.
pub fn read(text: &str) -> Result<Vec<Example>, (usize, String)> {
    let mut examples = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let number = index + 1;
        if line.trim().is_empty() {
            continue;
        }
        if examples.is_empty() && line.trim_start().starts_with('[') {
            return Err((
                number,
                "a JSON array; write one object a line, as jq -c '.[]' does".into(),
            ));
        }
        let row: Row = serde_json::from_str(line).map_err(|error| (number, reason(&error)))?;
        examples.push(row.example(number).map_err(|reason| (number, reason))?);
    }
    Ok(examples)
}

/// What is wrong, with the place in the line alone: the parser saw no other.
fn reason(error: &serde_json::Error) -> String {
    let column = error.column();
    let text = error.to_string();
    let place = format!(" at line {} column {column}", error.line());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    format!("not a JSON object with texts: {what} at column {column}")
}
