//! What a text may say.

use super::{
    automaton::{Automaton, State},
    shape::Shape,
};
use crate::Error;

/// All that a generated text may say: one of some labels, or JSON of a shape.
#[derive(Clone, Debug)]
pub struct Constraint {
    pub(super) automaton: Automaton,
    pub(super) start: State,
    pub(super) labels: Vec<String>,
}

impl Constraint {
    /// One of `labels`.
    ///
    /// # Errors
    /// When there is none, or one is empty or begins with a space.
    pub fn labels(labels: &[impl AsRef<str>]) -> Result<Self, Error> {
        let labels = labels.iter().map(|label| label.as_ref().to_owned());
        let labels: Vec<String> = labels.collect();
        if labels.is_empty() {
            return Err(refused("there is no label"));
        }
        let mut automaton = Automaton::default();
        let start = automaton.add();
        for label in &labels {
            if label.is_empty() || label.starts_with(' ') {
                return Err(refused(format!(
                    "label {label:?} is empty or begins with a space"
                )));
            }
            let end = automaton.branch(start, label.as_bytes());
            automaton.end(end);
        }
        Ok(Self {
            automaton,
            start,
            labels,
        })
    }

    /// JSON of the shape that `shape` writes as JSON: `"string"`, `"number"`, `"integer"` or `"boolean"`; a list of
    /// strings, of which the value is one; a list of one shape, of which the value is a list; an object of shapes,
    /// whose keys come in this order. Parts are written with no space between them, or with one behind a colon or a
    /// comma. Whole numbers have 18 digits at most, fractions 15, without an exponent; strings have no escapes of
    /// numbers.
    ///
    /// # Errors
    /// When it is no JSON, or something in it has no meaning; the message says what.
    pub fn shape(shape: &str) -> Result<Self, Error> {
        let shape: Shape = serde_json::from_str(shape).map_err(|error| {
            refused(format!(
                "the shape is no JSON of strings, lists and objects: {error}"
            ))
        })?;
        let mut automaton = Automaton::default();
        let end = automaton.add();
        automaton.end(end);
        let start = shape.compile(&mut automaton, end).map_err(refused)?;
        Ok(Self {
            automaton,
            start,
            labels: Vec::new(),
        })
    }
}

/// Why a constraint cannot be kept.
pub(super) fn refused(reason: impl Into<String>) -> Error {
    Error::Constraint {
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said_is_refused() {
        let none: [&str; 0] = [];
        let table = [
            (Constraint::labels(&none), "no label"),
            (Constraint::labels(&["a", ""]), "\"\" is empty"),
            (Constraint::labels(&[" a"]), "begins with a space"),
            (Constraint::shape("{"), "is no JSON"),
            (Constraint::shape("\"date\""), "no kind of value"),
        ];
        for (constraint, reason) in table {
            let refused = constraint.unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
