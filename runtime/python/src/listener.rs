//! Functions of the caller's that hear a text as it grows.

use std::ops::ControlFlow;

use pyo3::{call::PyCallArgs, prelude::*};

use crate::session::Session;

/// A function that hears a text, and what it raised.
pub struct Listener<'a> {
    session: &'a Session,
    hear: Option<Py<PyAny>>,
    raised: Option<PyErr>,
}

impl<'a> Listener<'a> {
    /// Hears nothing where there is no function.
    pub fn new(session: &'a Session, hear: Option<Py<PyAny>>) -> Self {
        Self {
            session,
            hear,
            raised: None,
        }
    }

    /// Calls the function with these arguments; the text ends where it returns what is true, or raises. It is not called
    /// again once it has raised.
    pub fn hear(&mut self, heard: impl for<'py> PyCallArgs<'py>) -> ControlFlow<()> {
        if self.raised.is_some() {
            return ControlFlow::Break(());
        }
        let Some(hear) = &self.hear else {
            return ControlFlow::Continue(());
        };
        let called = || Python::attach(|py| hear.bind(py).call1(heard)?.is_truthy());
        match self.session.while_hearing(called) {
            Ok(false) => ControlFlow::Continue(()),
            Ok(true) => ControlFlow::Break(()),
            Err(raised) => {
                self.raised = Some(raised);
                ControlFlow::Break(())
            }
        }
    }

    /// Raises what the function raised.
    pub fn finish(self) -> PyResult<()> {
        self.raised.map_or(Ok(()), Err)
    }
}
