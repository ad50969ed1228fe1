//! The one place where the program maps a base image.

use std::path::Path;

use preface_runtime::{Error, Image};

/// Maps the base image at `path` for as long as the program runs.
///
/// # Errors
/// As [`Image::open`].
pub fn open(path: &Path) -> Result<Image, Error> {
    // SAFETY: nothing here changes an image in place: `compile` and `install` rename a finished file over the old one,
    // which leaves what is mapped as it is. The program's manual says the same to whoever copies images by hand.
    unsafe { Image::open(path) }
}
