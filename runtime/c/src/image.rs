//! Entries about the library and about images.

use std::ffi::c_char;

use preface_bundle::AnswerKind;
use preface_runtime::{EngineKind, Image, Status, image::Kind};

use crate::{
    border::{self, Growing},
    failure::{guarded, with_last},
};

/// `preface_image`.
pub struct ImageHandle(pub Image);

/// `preface_image_facts`.
#[repr(C)]
pub struct ImageFacts {
    size: usize,
    hidden: usize,
    layers: usize,
    vocabulary: usize,
    max_positions: usize,
    kind: i32,
    engine: i32,
}

// SAFETY: it begins with its size, and has numbers alone.
unsafe impl Growing for ImageFacts {
    const NAME: &'static str = "preface_image_facts";
}

/// Version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn preface_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Name of a status.
#[unsafe(no_mangle)]
pub extern "C" fn preface_status_name(status: i32) -> *const c_char {
    let named = Status::of_code(status);
    named.map_or(c"PREFACE_?", |(_, name)| name).as_ptr()
}

/// Text of the last failed call of this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_last_error(buffer: *mut c_char, capacity: usize) -> usize {
    let mut length = 0;
    guarded(|| {
        // SAFETY: the caller's room for as many bytes as it says.
        let buffer = unsafe { border::room(buffer, capacity, "buffer") }?;
        with_last(|text| {
            border::put_text(text, buffer);
            length = text.len();
        });
        Ok(())
    });
    length
}

/// Maps an image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_image_open(
    path: *const c_char,
    image: *mut *mut ImageHandle,
) -> i32 {
    guarded(|| {
        let place = border::place(image, "image")?;
        // SAFETY: the caller's string.
        let path = unsafe { border::path(path, "path") }?;
        // SAFETY: the header asks of the caller that the file does not change while it is open.
        let image = unsafe { Image::open(path) }?;
        let handle = Box::into_raw(Box::new(ImageHandle(image)));
        // SAFETY: the caller's place for a handle.
        unsafe { place.write(handle) };
        Ok(())
    })
}

/// Says what an image is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_image_describe(
    image: *const ImageHandle,
    facts: *mut ImageFacts,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's handle.
        let ImageHandle(image) = unsafe { border::shared(image, "image") }?;
        // SAFETY: the caller's structure.
        let facts = unsafe { border::structure(facts) }?;
        let description = image.description();
        *facts = ImageFacts {
            size: facts.size,
            hidden: description.hidden,
            layers: description.layers.len(),
            vocabulary: description.vocabulary,
            max_positions: description.max_positions.unwrap_or(0),
            kind: number_of_kind(description.kind),
            engine: number_of_engine(image.engine()),
        };
        Ok(())
    })
}

fn number_of_kind(kind: Kind) -> i32 {
    match kind {
        Kind::Encoder => 1,
        Kind::Decoder => 2,
        Kind::EncoderDecoder => 3,
        _ => 0,
    }
}

fn number_of_engine(engine: EngineKind) -> i32 {
    match engine {
        EngineKind::Executor => 1,
        EngineKind::Plan => 2,
        _ => 0,
    }
}

/// The number of a kind of answer: that of the manifest.
pub fn number_of_answer(kind: AnswerKind) -> i32 {
    kind.to_u16().into()
}

/// Lets go of an image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_image_close(image: *mut ImageHandle) {
    guarded(|| {
        if !image.is_null() {
            // SAFETY: a handle that `preface_image_open` gave, which the caller closes once.
            drop(unsafe { Box::from_raw(image) });
        }
        Ok(())
    });
}
