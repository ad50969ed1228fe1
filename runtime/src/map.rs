//! The one place where a file is mapped.

use std::{
    fs::File,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use memmap2::{Mmap, MmapMut, MmapOptions};

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

/// Numbers in pages of their own. The system hands all of them out at once, which takes less time than one by one as they
/// are touched.
#[derive(Debug)]
pub(crate) struct Pages(MmapMut);

impl Pages {
    /// `count` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn zeroed(count: usize) -> Result<Self, Error> {
        let bytes = count.saturating_mul(size_of::<f32>());
        let pages = MmapOptions::new().len(bytes.max(1)).populate().map_anon();
        pages.map(Self).map_err(|_| Error::Memory { bytes })
    }

    /// The numbers, and zeros behind them.
    pub fn numbers(&mut self) -> &mut [f32] {
        // SAFETY: any four bytes are a 32-bit float.
        unsafe { self.0.align_to_mut::<f32>() }.1
    }
}

/// Some of the numbers of pages that are no longer written.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl Numbers {
    /// Those of `range`.
    pub fn of(pages: &Arc<Pages>, range: Range<usize>) -> Self {
        debug_assert!(range.end <= floats(&pages.0).len());
        Self {
            pages: pages.clone(),
            range,
        }
    }
}

#[cfg(test)]
impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        let mut pages = Pages::zeroed(numbers.len()).unwrap();
        pages.numbers()[..numbers.len()].copy_from_slice(&numbers);
        Self::of(&Arc::new(pages), 0..numbers.len())
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &floats(&self.pages.0)[self.range.clone()]
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
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            return Err(Error::NotAnImage {
                path: path.to_owned(),
            });
        }
        // SAFETY: the caller promises that the file does not change under the map.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Self::check(path, Map(map))
    }
}
