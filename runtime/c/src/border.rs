//! What the caller points at, checked as far as a pointer can be.
//!
//! Everything here relies on what the header asks of every pointer: it is null, or good for what it is named after
//! until the call returns.

use std::{
    ffi::{CStr, OsStr, c_char},
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::NonNull,
    slice,
};

use crate::failure::Failure;

/// A structure of the header that begins with its own size as the caller's compiler sees it, a `usize`.
///
/// # Safety
/// It is `repr(C)`, begins with that size, and any bits are one.
pub unsafe trait Growing {
    /// Its name in the header.
    const NAME: &'static str;
}

/// A C string as bytes without the zero that ends it.
unsafe fn bytes<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a [u8], Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(name));
    }
    // SAFETY: not null, so a string with a zero at its end, which stays as it is until the call returns.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// A C string as text.
pub unsafe fn text<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's pointer, as `bytes` needs it.
    let bytes = unsafe { bytes(pointer, name) }?;
    str::from_utf8(bytes).map_err(|_| Failure::NotUtf8(name))
}

/// A C string as text; `None` where there is none.
pub unsafe fn optional_text<'a>(
    pointer: *const c_char,
    name: &'static str,
) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's pointer, as `text` needs it.
    unsafe { text(pointer, name) }.map(Some)
}

/// Strings that the caller gives, of which none is null.
pub unsafe fn texts<'a>(
    pointer: *const *const c_char,
    count: usize,
    name: &'static str,
) -> Result<Vec<&'a str>, Failure> {
    // SAFETY: the caller's list of as many strings as it says.
    let strings = unsafe { list(pointer, count, name) }?;
    // SAFETY: the caller's string, as `text` needs it.
    let texts = strings.iter().map(|&string| unsafe { text(string, name) });
    texts.collect()
}

/// A C string as a path.
pub unsafe fn path<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's pointer, as `bytes` needs it.
    let bytes = unsafe { bytes(pointer, name) }?;
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// What a handle stands for.
pub unsafe fn shared<'a, T>(pointer: *const T, name: &'static str) -> Result<&'a T, Failure> {
    // SAFETY: null, or a handle that this library gave and that is not closed before the call returns.
    unsafe { pointer.as_ref() }.ok_or(Failure::Null(name))
}

/// Where a result goes.
pub fn place<T>(pointer: *mut T, name: &'static str) -> Result<NonNull<T>, Failure> {
    NonNull::new(pointer).ok_or(Failure::Null(name))
}

/// Elements that the caller gives.
pub unsafe fn list<'a, T>(
    pointer: *const T,
    count: usize,
    name: &'static str,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    check_list(pointer, count, name)?;
    // SAFETY: not null, so as many elements as the caller says; their bytes fit an `isize`.
    Ok(unsafe { slice::from_raw_parts(pointer, count) })
}

/// Room for elements that the caller is given.
pub unsafe fn room<'a, T>(
    pointer: *mut T,
    count: usize,
    name: &'static str,
) -> Result<&'a mut [MaybeUninit<T>], Failure> {
    if count == 0 {
        return Ok(&mut []);
    }
    check_list(pointer, count, name)?;
    // SAFETY: not null, so room for as many elements as the caller says; their bytes fit an `isize`.
    Ok(unsafe { slice::from_raw_parts_mut(pointer.cast(), count) })
}

fn check_list<T>(pointer: *const T, count: usize, name: &'static str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(name));
    }
    let bytes = count.checked_mul(size_of::<T>());
    bytes
        .and_then(|bytes| isize::try_from(bytes).ok())
        .map(|_| ())
        .ok_or(Failure::Length(name))
}

/// A structure that the caller reads results from; it may be one of a newer header.
pub unsafe fn structure<'a, T: Growing>(pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's pointer, as `size` needs it.
    unsafe { size(pointer) }?;
    // SAFETY: not null, and as large as the size at its beginning says, which `size` has compared.
    Ok(unsafe { &mut *pointer })
}

/// A structure that the caller fills; fields of a newer header must be zero.
pub unsafe fn filled<'a, T: Growing>(pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: the caller's pointer, as `size` needs it.
    let size = unsafe { size(pointer) }?;
    // SAFETY: the structure is as large as the size at its beginning says.
    let more = unsafe {
        let end = pointer.add(1).cast::<u8>();
        slice::from_raw_parts(end, size - size_of::<T>())
    };
    if more.iter().any(|&byte| byte != 0) {
        return Err(Failure::Newer { structure: T::NAME });
    }
    // SAFETY: not null, and large enough.
    Ok(unsafe { &*pointer })
}

/// The size that a structure says it has.
unsafe fn size<T: Growing>(pointer: *const T) -> Result<usize, Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(T::NAME));
    }
    // SAFETY: not null, so a structure, which begins with its size.
    let found = unsafe { pointer.cast::<usize>().read() };
    let expected = size_of::<T>();
    if found < expected || isize::try_from(found).is_err() {
        return Err(Failure::Size {
            structure: T::NAME,
            found,
            expected,
        });
    }
    Ok(found)
}

/// Writes a text with the zero that ends it, and its length without that zero; a text that does not fit is not
/// written.
pub unsafe fn give_text(
    text: &str,
    (buffer, capacity): (*mut c_char, usize),
    length: *mut usize,
) -> Result<(), Failure> {
    let needed = text.len() + 1;
    if let Some(length) = NonNull::new(length) {
        // SAFETY: the caller's place for a length.
        unsafe { length.write(text.len()) };
    }
    // SAFETY: the caller's room for as many bytes as it says.
    let buffer = unsafe { room(buffer, capacity, "buffer") }?;
    if needed > capacity {
        return Err(Failure::Room {
            needed,
            room: capacity,
        });
    }
    put_text(text, buffer);
    Ok(())
}

/// Writes as much of a text as fits before the zero that ends it, in whole characters.
pub fn put_text(text: &str, buffer: &mut [MaybeUninit<c_char>]) {
    let Some(most) = buffer.len().checked_sub(1) else {
        return;
    };
    let kept = text.floor_char_boundary(most);
    let bytes = text.as_bytes()[..kept].iter().chain([&0]);
    for (slot, &byte) in buffer.iter_mut().zip(bytes) {
        slot.write(c_char::from_ne_bytes([byte]));
    }
}

/// Writes numbers from the beginning of the caller's room, which is large enough.
pub fn put<T>(numbers: impl IntoIterator<Item = T>, room: &mut [MaybeUninit<T>]) {
    for (slot, number) in room.iter_mut().zip(numbers) {
        slot.write(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure of today's header inside one of a newer header.
    #[repr(C)]
    struct Newer {
        old: Old,
        more: usize,
    }

    #[repr(C)]
    struct Old {
        size: usize,
        number: usize,
    }

    // SAFETY: it begins with its size, and has numbers alone.
    unsafe impl Growing for Old {
        const NAME: &'static str = "old";
    }

    #[test]
    fn structures_are_as_large_as_they_say() {
        let small = size_of::<Old>();
        for (size, more, fault) in [
            (small, 1, ""),
            (size_of::<Newer>(), 0, ""),
            (0, 0, "old.size is 0, at least 16 is needed"),
            (small - 1, 0, "old.size is 15"),
            (usize::MAX, 0, "old.size is"),
            (size_of::<Newer>(), 1, "old has fields set"),
        ] {
            let old = Old { size, number: 7 };
            let newer = Newer { old, more };
            // SAFETY: no more is read than the structure has.
            let found = unsafe { filled(&raw const newer.old) };
            match found {
                Ok(old) => assert_eq!((old.number, fault), (7, "")),
                Err(failure) => {
                    let text = failure.to_string();
                    assert!(!fault.is_empty() && text.starts_with(fault), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (room, kept) in [
            (0, None),
            (1, Some("")),
            (3, Some("a")),
            (4, Some("a\u{e4}")),
        ] {
            let mut buffer = vec![MaybeUninit::new(1); room];
            put_text("a\u{e4}", &mut buffer);
            let end = kept.map(|kept| (kept, buffer[kept.len()]));
            let Some((kept, end)) = end else { continue };
            // SAFETY: every byte was set when the buffer was made.
            let byte = |slot: MaybeUninit<c_char>| unsafe { slot.assume_init() }.to_ne_bytes()[0];
            let written: Vec<u8> = buffer[..kept.len()].iter().copied().map(byte).collect();
            assert_eq!((&*written, byte(end)), (kept.as_bytes(), 0));
        }
    }
}
