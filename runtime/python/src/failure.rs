//! Why a call failed, as an exception.

use preface_runtime::{Error as RuntimeError, LoadError, Status, explained, store::StoreError};
use pyo3::{create_exception, exceptions::PyException, prelude::*};

create_exception!(
    preface,
    Error,
    PyException,
    "Why an image, a task or a text cannot be used. `code` is the number of `enum preface_status` in preface.h, from 10 to \
     21 the exit code of `preface verify`; `status` is its name there, without PREFACE_."
);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no task {task} is loaded; there are {}", loaded.join(", "))]
    Task { task: String, loaded: Vec<String> },
    #[error("{what} {number} is none of the base's")]
    Token { what: &'static str, number: i64 },
    #[error("{number} {what} are none or more than 64")]
    Number { what: &'static str, number: u8 },
    #[error("this module cannot pass on an answer of this kind; use a newer one")]
    Kind,
    #[error("the session is generating the text that this function hears; let it return first")]
    Hearing,
    #[error("an earlier call with this session panicked; open another")]
    Poisoned,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Self::Task { .. } => Status::NoTask,
            Self::Token { .. } => Status::Token,
            Self::Number { .. } => Status::InvalidArgument,
            Self::Kind => Status::Unsupported,
            Self::Hearing => Status::Busy,
            Self::Poisoned => Status::Poisoned,
            Self::Load(error) => Status::of_load(error),
            Self::Store(error) => Status::of_store(error),
            Self::Runtime(error) => Status::of_error(error),
        }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let status = failure.status();
        let error = Error::new_err(explained(&failure));
        let marked = Python::attach(|py| {
            let value = error.value(py);
            value.setattr("code", status.code())?;
            value.setattr("status", status.name())
        });
        marked.err().unwrap_or(error)
    }
}
