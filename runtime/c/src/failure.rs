//! Why a call failed, and the text of it that a thread's last failed call left.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use preface_runtime::{Error, LoadError, Status, explained, store::StoreError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0} is a null pointer")]
    Null(&'static str),
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    #[error(
        "{structure}.size is {found}, at least {expected} is needed; set it to sizeof({structure})"
    )]
    Size {
        structure: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("{structure} has fields set that this library does not know; use a newer one")]
    Newer { structure: &'static str },
    #[error("{field} is {value}, which the header does not name")]
    Value { field: &'static str, value: i64 },
    #[error("{0} has more elements than memory can hold")]
    Length(&'static str),
    #[error("room for {room}, {needed} are needed; the call says how many")]
    Room { needed: usize, room: usize },
    #[error("the session has no task {0}; those of preface_session_load count from 0")]
    Task(usize),
    #[error("the task has no label {0}")]
    Label(usize),
    #[error("a constraint has labels or a shape, not both")]
    LabelsAndShape,
    #[error("this library cannot pass on an answer of this kind; use a newer one")]
    Kind,
    #[error("another thread is using the session; one at a time may")]
    Busy,
    #[error("the library panicked, please report it: {0}")]
    Panicked(String),
    #[error("an earlier call with this session panicked; close it and open another")]
    Poisoned,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl Failure {
    fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("no message").to_owned())
    }

    fn status(&self) -> Status {
        match self {
            Self::Room { .. } => Status::BufferTooSmall,
            Self::Task(_) => Status::NoTask,
            Self::Kind => Status::Unsupported,
            Self::Busy => Status::Busy,
            Self::Panicked(_) => Status::Panicked,
            Self::Poisoned => Status::Poisoned,
            Self::Load(error) => Status::of_load(error),
            Self::Store(error) => Status::of_store(error),
            Self::Runtime(error) => Status::of_error(error),
            _ => Status::InvalidArgument,
        }
    }
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does the work of an entry: what fails or panics is a status, and its text this thread's last.
pub fn guarded(work: impl FnOnce() -> Result<(), Failure>) -> i32 {
    // What a panic may have left half done is a session behind its lock, which is poisoned.
    let done = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)));
    let Err(failure) = done else {
        return Status::Ok.code();
    };
    LAST.with_borrow_mut(|last| *last = explained(&failure));
    failure.status().code()
}

/// Hands the text of this thread's last failed call to `read`.
pub fn with_last<T>(read: impl FnOnce(&str) -> T) -> T {
    LAST.with_borrow(|last| read(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_its_text_and_its_causes() {
        let source = preface_bundle::Error::PayloadDigest;
        let (path, cause) = ("x.preface".into(), source.to_string());
        let refused = LoadError::NotVerified { path, source };
        let table = [
            (Failure::Null("text"), 1, "text is a null pointer"),
            (Failure::Room { needed: 3, room: 1 }, 2, "room for 1, 3 are"),
            (Failure::Runtime(Error::NoTask), 3, "no task is active"),
            (Failure::Busy, 4, "another thread"),
            (Failure::Load(refused), 13, &cause),
        ];
        for (failure, code, text) in table {
            assert_eq!(guarded(|| Err(failure)), code);
            with_last(|last| assert!(last.contains(text), "{last}"));
        }
        assert_eq!(guarded(|| Ok(())), 0);
        with_last(|last| assert!(last.starts_with("x.preface is refused: "), "{last}"));
    }

    #[test]
    fn a_panic_is_a_status() {
        for message in ["fixed".to_owned(), format!("made {}", 1)] {
            assert_eq!(guarded(|| panic!("{message}")), 5);
            with_last(|last| assert!(last.ends_with(&message), "{last}"));
        }
    }
}
