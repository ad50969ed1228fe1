//! The memory that steps read and write.

use std::{marker::PhantomData, ops::Range, ptr, slice};

use tract_data::internal::{Tensor, TensorView};

use super::super::failed;
use crate::Error;

/// What the beginnings of the arena and of panels are multiples of, at least.
pub(super) const ALIGNMENT_BYTES: usize = 64;

/// Whether the system has room for `count` numbers: a tensor that finds none ends the process.
pub(super) fn find_room(count: usize) -> Result<(), Error> {
    let mut room: Vec<f32> = Vec::new();
    let found = room.try_reserve_exact(count.saturating_add(ALIGNMENT_BYTES));
    found.map_err(|_| Error::Memory {
        bytes: count.saturating_mul(size_of::<f32>()),
    })
}

/// One allocation of numbers.
#[derive(Debug)]
pub(super) struct Arena(Tensor);

/// An arena as threads use it at the same time, each a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    tensor: &'a Tensor,
    start: *mut f32,
    arena: PhantomData<&'a mut [f32]>,
}

// SAFETY: `Arena::share` asks for the promise that threads stay apart.
unsafe impl Send for Shared<'_> {}
// SAFETY: the same.
unsafe impl Sync for Shared<'_> {}

/// A part of the arena: runs of neighbouring numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub first: usize,
    /// From one run to the next.
    pub step: usize,
}

impl Arena {
    /// Room for `count` numbers, which the system hands out as they are touched.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(count: usize) -> Result<Self, Error> {
        find_room(count)?;
        // SAFETY: what is read was written before, as `Program::check` makes sure; and any bits are a number.
        let tensor = unsafe { Tensor::uninitialized_aligned::<f32>(&[count], ALIGNMENT_BYTES) };
        tensor.map(Self).map_err(failed("reserving the arena"))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn view(&self) -> &[f32] {
        // SAFETY: the tensor holds 32-bit floats, as `new` made it.
        unsafe { self.0.as_slice_unchecked::<f32>() }
    }

    pub fn numbers(&mut self) -> &mut [f32] {
        // SAFETY: the tensor holds 32-bit floats, as `new` made it.
        unsafe { self.0.as_slice_mut_unchecked::<f32>() }
    }

    /// Lets several threads use it.
    ///
    /// # Safety
    /// What one thread writes, through any copy, no other reads or writes before the threads have met again, and
    /// nobody keeps a slice of numbers that are written meanwhile.
    pub unsafe fn share(&mut self) -> Shared<'_> {
        let start = self.numbers().as_mut_ptr();
        Shared {
            tensor: &self.0,
            start,
            arena: PhantomData,
        }
    }
}

impl<'a> Shared<'a> {
    pub fn len(self) -> usize {
        self.tensor.len()
    }

    fn check(self, range: &Range<usize>) {
        let inside = range.start <= range.end && range.end <= self.len();
        assert!(inside, "{range:?} is not in the arena");
    }

    pub fn read(self, range: Range<usize>) -> &'a [f32] {
        self.check(&range);
        // SAFETY: the range is inside; nobody writes there meanwhile, as was promised to `Arena::share`.
        unsafe { slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    #[allow(clippy::mut_from_ref)]
    pub fn write(self, range: Range<usize>) -> &'a mut [f32] {
        self.check(&range);
        // SAFETY: the range is inside; nobody else reads or writes there meanwhile, as was promised to `Arena::share`.
        unsafe { slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Copies numbers to `to`, where they may overlap.
    pub fn copy(self, from: Range<usize>, to: usize) {
        self.check(&from);
        self.check(&(to..to + from.len()));
        // SAFETY: both ranges are inside, and this thread's, as was promised to `Arena::share`.
        unsafe {
            let (from, count) = (self.start.add(from.start), from.len());
            ptr::copy(from, self.start.add(to), count);
        }
    }

    /// Where a kernel reads or writes; it stays inside where it keeps to a block that [`Block::fits`].
    #[cfg(target_arch = "x86_64")]
    pub(super) fn as_mut_ptr(self) -> *mut f32 {
        self.start
    }

    /// The same as a view of runs.
    pub(super) fn view<'v>(
        self,
        first: usize,
        shape: &'v [usize; 2],
        strides: &'v [isize; 2],
    ) -> TensorView<'v>
    where
        'a: 'v,
    {
        let offset = (first * size_of::<f32>()) as isize;
        // SAFETY: a view is read and written by kernels alone, within blocks that fit.
        unsafe { TensorView::from_bytes(self.tensor, offset, shape, strides) }
    }
}

impl Block {
    /// The same runs without their first `count` numbers.
    pub fn behind(self, count: usize) -> Self {
        Self {
            first: self.first + count,
            ..self
        }
    }

    pub fn fits(self, length: usize, runs: usize, room: usize) -> bool {
        let last = self.step.checked_mul(runs.saturating_sub(1));
        let end = last.and_then(|last| self.first.checked_add(last)?.checked_add(length));
        end.is_some_and(|end| end <= room)
    }
}
