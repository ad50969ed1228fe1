//! A number in hardware that only grows.

use std::{fmt, io};

/// A counter that no copy of the store's files can turn back: a TPM's NV counter, a write counter of RPMB, one-time
/// fuses. A store raises it with every change, so that a state from before is told from the present one.
pub trait MonotonicCounter: fmt::Debug + Send + Sync {
    /// The number; `None` where there is no counter.
    ///
    /// # Errors
    /// When the hardware does not answer: the store is then not used.
    fn read(&self) -> io::Result<Option<u64>>;

    /// Raises the number to `to`, and leaves it where it is already there or beyond.
    ///
    /// # Errors
    /// When the hardware does not do it: the change is then taken back.
    fn raise(&self, to: u64) -> io::Result<()>;
}

/// No counter: whoever can put back the whole folder can put back an earlier state.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCounter;

impl MonotonicCounter for NoCounter {
    fn read(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn raise(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
