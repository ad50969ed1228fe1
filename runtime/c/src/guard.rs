//! The lock around what a handle stands for.

use std::sync::{Mutex, TryLockError};

use crate::failure::Failure;

/// One caller at a time; none after a panic.
#[derive(Debug)]
pub struct Guarded<T>(Mutex<T>);

impl<T> Guarded<T> {
    pub fn new(state: T) -> Self {
        Self(Mutex::new(state))
    }

    /// Does `work`, unless another thread is at it or a panic has left things half done.
    pub fn with(&self, work: impl FnOnce(&mut T) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut state = self.0.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::Busy,
            TryLockError::Poisoned(_) => Failure::Poisoned,
        })?;
        work(&mut state)
    }
}

#[cfg(test)]
mod tests {
    use preface_runtime::Status;

    use super::*;
    use crate::failure::guarded;

    #[test]
    fn one_caller_is_in_at_a_time_and_none_after_a_panic() {
        let state = Guarded::new(0);
        let call = |work: &dyn Fn(&mut i32)| {
            guarded(|| {
                state.with(|state| {
                    work(state);
                    Ok(())
                })
            })
        };
        assert_eq!(call(&|state| *state += 1), Status::Ok.code());
        let nested = |_: &mut i32| assert_eq!(call(&|_| ()), Status::Busy.code());
        assert_eq!(call(&nested), Status::Ok.code());
        assert_eq!(call(&|_| panic!("half done")), Status::Panicked.code());
        for _ in 0..2 {
            assert_eq!(call(&|_| ()), Status::Poisoned.code());
        }
    }
}
