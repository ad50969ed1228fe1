//! Answers with their scores as numpy arrays.

use std::iter;

use numpy::PyArray1;
use preface_bundle::AnswerKind;
use preface_runtime::{Answer as Given, Choice};
use pyo3::prelude::*;

use crate::{failure::Failure, tokens::number};

/// What a task says about a text.
#[pyclass(frozen, module = "preface")]
pub struct Answer(Found);

/// An answer that outlives the run it was read off.
pub struct Found {
    kind: AnswerKind,
    out_of_scope: bool,
    labels: Vec<Option<String>>,
    classes: Vec<i32>,
    scores: Vec<f32>,
    text: Option<String>,
}

impl Found {
    pub fn of(answer: Given<'_>) -> Result<Self, Failure> {
        Ok(match answer {
            Given::Label { best, out_of_scope } => Self {
                out_of_scope,
                ..Self::choices(AnswerKind::Label, iter::once(Some(best)))
            },
            Given::Labels(choices) => Self::choices(AnswerKind::Labels, choices.iter()),
            Given::Tags(choices) => Self::choices(AnswerKind::Tags, choices.iter()),
            Given::Text(text) => Self {
                text: Some(text.to_owned()),
                ..Self::choices(AnswerKind::Text, iter::empty())
            },
            _ => return Err(Failure::Kind),
        })
    }

    fn choices<'a>(kind: AnswerKind, choices: impl Iterator<Item = Option<Choice<'a>>>) -> Self {
        let mut found = Self {
            kind,
            out_of_scope: false,
            labels: Vec::new(),
            classes: Vec::new(),
            scores: Vec::new(),
            text: None,
        };
        for choice in choices {
            let label = choice.map(|choice| choice.label.to_owned());
            found.labels.push(label);
            found
                .classes
                .push(number(choice.map(|choice| choice.class)));
            found.scores.push(choice.map_or(0.0, |choice| choice.score));
        }
        found
    }
}

impl From<Found> for Answer {
    fn from(found: Found) -> Self {
        Self(found)
    }
}

#[pymethods]
impl Answer {
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind.name()
    }

    #[getter]
    fn label(&self) -> Option<&str> {
        let is_one = self.0.kind == AnswerKind::Label && !self.0.out_of_scope;
        self.0.labels.first().filter(|_| is_one)?.as_deref()
    }

    #[getter]
    fn out_of_scope(&self) -> bool {
        self.0.out_of_scope
    }

    #[getter]
    fn labels(&self) -> Vec<Option<&str>> {
        self.0.labels.iter().map(Option::as_deref).collect()
    }

    #[getter]
    fn classes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i32>> {
        PyArray1::from_slice(py, &self.0.classes)
    }

    #[getter]
    fn scores<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, &self.0.scores)
    }

    #[getter]
    fn text(&self) -> Option<&str> {
        self.0.text.as_deref()
    }

    fn __repr__(&self) -> String {
        let Found {
            kind,
            labels,
            scores,
            text,
            ..
        } = &self.0;
        match text {
            Some(text) => format!("<preface.Answer text={text:?}>"),
            None => {
                let labels: Vec<&str> = labels
                    .iter()
                    .map(|label| label.as_deref().unwrap_or("-"))
                    .collect();
                format!(
                    "<preface.Answer {}={labels:?} scores={scores:?}>",
                    kind.name()
                )
            }
        }
    }
}
