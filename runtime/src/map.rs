//! The one place where a file is mapped.

use std::{
    fs::OpenOptions,
    ops::{Deref, Range},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use memmap2::Mmap;
use rustix::fs::OFlags;

use crate::{Error, Image};

/// A file's bytes, mapped read-only: pages are shared with every process that maps the same file.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Mapped bytes as the little-endian floats that they are, those of a part at either end left out.
pub(crate) fn floats(bytes: &[u8]) -> &[f32] {
    const { assert!(cfg!(target_endian = "little"), "images are little-endian") };
    // SAFETY: any four bytes are a 32-bit float.
    unsafe { bytes.align_to::<f32>() }.1
}

/// Some of numbers that are no longer written.
///
/// They are of the heap, which keeps the pages of a prefix that was replaced for the next: the system takes longer to
/// hand out new ones than it takes to fill them.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    all: Arc<Vec<f32>>,
    range: Range<usize>,
}

impl Numbers {
    /// Those of `range`.
    pub fn of(all: &Arc<Vec<f32>>, range: Range<usize>) -> Self {
        debug_assert!(range.end <= all.len());
        Self {
            all: all.clone(),
            range,
        }
    }
}

#[cfg(test)]
impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        let range = 0..numbers.len();
        Self::of(&Arc::new(numbers), range)
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.all[self.range.clone()]
    }
}

/// Opens an image that this process has just written.
#[cfg(feature = "compile")]
pub(crate) fn open_own(path: &Path) -> Result<Image, Error> {
    // SAFETY: the file has a name of this process's own, and its writer is done with it.
    unsafe { Image::open(path) }
}

impl Image {
    /// Maps the base image at `path`, and checks its size, its preamble, its index and its small tables.
    ///
    /// The weights are not read: [`Image::verify_weights`] does that.
    ///
    /// # Errors
    /// When the file cannot be read, is no base image, is cut short, edited, or of another format.
    ///
    /// # Safety
    /// The file must not be changed or cut short for as long as the image or anything opened from it lives; a shorter
    /// file ends the process with SIGBUS. Replacing the file by renaming another over it is safe, and is how
    /// [`compile`](crate::compile) writes.
    pub unsafe fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        // A pipe whose other end nobody opens is not waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.map_err(read)?;
        let found = file.metadata().map_err(read)?;
        if !found.is_file() || found.len() == 0 {
            return Err(Error::NotAnImage {
                path: path.to_owned(),
            });
        }
        // SAFETY: the caller promises that the file does not change under the map.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Self::check(path, Map(map))
    }
}
