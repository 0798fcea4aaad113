//! Pointers and texts from the caller, checked as far as a pointer can be.

use super::guard::{Answer, Fault};
use std::ffi::{CStr, c_char};

/// Longest text that a caller may pass.
const LONGEST: usize = 4096;

fn checked<T>(pointer: *const T, count: usize, name: &str) -> Answer<()> {
    if pointer.is_null() {
        return Err(Fault::invalid(format!("`{name}` is null")));
    }
    if !pointer.is_aligned() {
        return Err(Fault::invalid(format!(
            "`{name}` is {pointer:p}; accepted: a multiple of {} bytes",
            align_of::<T>()
        )));
    }
    let bytes = count.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    match bytes {
        Some(bytes) if (pointer as usize).checked_add(bytes).is_some() => Ok(()),
        _ => Err(Fault::invalid(format!("`{name}` has {count} elements, more than memory holds"))),
    }
}

/// What the caller reads an answer from.
///
/// # Safety
/// `pointer` is null, misaligned, or may be written.
pub(crate) unsafe fn write<T>(pointer: *mut T, value: T, name: &str) -> Answer<()> {
    checked(pointer, 1, name)?;
    // SAFETY: not null, aligned; the rest is the caller's promise.
    unsafe { pointer.write(value) };
    Ok(())
}

/// A structure of the caller.
///
/// # Safety
/// `pointer` is null, misaligned, or may be read for as long as the call lasts.
pub(crate) unsafe fn read<'a, T>(pointer: *const T, name: &str) -> Answer<&'a T> {
    checked(pointer, 1, name)?;
    // SAFETY: as above.
    Ok(unsafe { &*pointer })
}

/// An array of the caller; it may be null where it is empty.
///
/// # Safety
/// `pointer` is null, misaligned, or `count` elements may be read for as long as the call lasts.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Answer<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    checked(pointer, count, name)?;
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// An array of the caller to be filled.
///
/// # Safety
/// `pointer` is null, misaligned, or `count` elements may be written by nobody else for as long as the call lasts.
pub(crate) unsafe fn slice_mut<'a, T>(pointer: *mut T, count: usize, name: &str) -> Answer<&'a mut [T]> {
    if count == 0 {
        return Ok(&mut []);
    }
    checked(pointer, count, name)?;
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, count) })
}

/// A text that ends with a zero byte.
///
/// # Safety
/// `pointer` is null or points at a text that ends with a zero byte.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Answer<&'a str> {
    // SAFETY: the caller's promise.
    unsafe { optional_text(pointer, name) }?.ok_or_else(|| Fault::invalid(format!("`{name}` is null")))
}

/// A text, or nothing where the pointer is null.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Answer<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and the caller promises a zero byte at the end.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    if bytes.len() > LONGEST {
        return Err(Fault::invalid(format!("`{name}` has {} bytes; accepted: up to {LONGEST}", bytes.len())));
    }
    std::str::from_utf8(bytes).map(Some).map_err(|error| Fault::invalid(format!("`{name}` is not UTF-8: {error}")))
}

/// Copies an answer to the caller's buffer and says what it takes. A buffer that is too small is left alone; a null one with no
/// bytes only asks for the size.
///
/// # Safety
/// `out` is null or has `bytes` writable bytes; `needed` is null, misaligned or may be written.
pub(crate) unsafe fn copy_out(answer: &[u8], out: *mut u8, bytes: usize, needed: *mut usize) -> Answer<()> {
    // SAFETY: the caller's promise, here and below.
    unsafe { write(needed, answer.len(), "needed")? };
    if out.is_null() && bytes == 0 {
        return Ok(());
    }
    if bytes < answer.len() {
        return Err(Fault::invalid(format!("the buffer has {bytes} bytes; {} are needed", answer.len())));
    }
    // SAFETY: as above.
    unsafe { slice_mut(out, answer.len(), "out")? }.copy_from_slice(answer);
    Ok(())
}
