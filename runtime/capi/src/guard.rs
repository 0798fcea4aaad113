//! What every call goes through: a panic becomes a status, an error becomes a status and a text.

use bitsmith_compiler::Error;
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Version of the functions and structures of the header. It changes when one of them does.
pub const BITSMITH_ABI_VERSION: u32 = 1;

/// The call did what it says.
pub const BITSMITH_OK: i32 = 0;
/// The request contradicts itself; the text says what was found and what is accepted.
pub const BITSMITH_INVALID: i32 = 1;
/// The request is sound; a feature is missing here, and the text names it.
pub const BITSMITH_UNSUPPORTED: i32 = 2;
/// A driver or tool refused what it was given.
pub const BITSMITH_TOOL: i32 = 3;
/// A fault of this library.
pub const BITSMITH_BUG: i32 = 4;
/// The handle has been closed.
pub const BITSMITH_CLOSED: i32 = 5;
/// The caller was built for another version of the ABI.
pub const BITSMITH_ABI: i32 = 6;

/// Why a call failed.
pub(crate) enum Fault {
    /// As the runtime says it.
    Error(Error),
    /// A handle that was closed.
    Closed(u64),
    /// Another version.
    Abi(u32),
}

impl Fault {
    pub(crate) fn invalid(text: impl Into<String>) -> Fault {
        Fault::Error(Error::invalid(text))
    }

    fn status(&self) -> i32 {
        match self {
            Fault::Error(Error::Invalid(_)) => BITSMITH_INVALID,
            Fault::Error(Error::Unsupported(_)) => BITSMITH_UNSUPPORTED,
            Fault::Error(Error::Tool { .. }) => BITSMITH_TOOL,
            Fault::Error(Error::Bug { .. }) => BITSMITH_BUG,
            Fault::Closed(_) => BITSMITH_CLOSED,
            Fault::Abi(_) => BITSMITH_ABI,
        }
    }

    fn text(&self) -> String {
        match self {
            Fault::Error(error) => error.to_string(),
            Fault::Closed(handle) => format!("handle {handle} has been closed"),
            Fault::Abi(found) => {
                format!("the caller was built for ABI version {found}; this library has {BITSMITH_ABI_VERSION}")
            }
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Error(error)
    }
}

pub(crate) type Answer<T> = Result<T, Fault>;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of a call.
pub(crate) fn guarded(body: impl FnOnce() -> Answer<()>) -> i32 {
    let (status, text) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return BITSMITH_OK,
        Ok(Err(fault)) => (fault.status(), fault.text()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
            (BITSMITH_BUG, format!("bug in bitsmith, please report: {text}"))
        }
    };
    LAST.with_borrow_mut(|last| *last = text);
    status
}

/// Version of the ABI that this library has.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_abi_version() -> u32 {
    BITSMITH_ABI_VERSION
}

/// Version of this library, ended by a zero byte. It lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Copies what the last failed call of this thread said, cut to `bytes` with a zero byte at its end, and returns the bytes that
/// all of it takes with that byte. `text` may be null where `bytes` is 0.
///
/// # Safety
/// `text` must have `bytes` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_last_error(text: *mut c_char, bytes: usize) -> usize {
    LAST.with_borrow(|last| {
        if !text.is_null() && bytes > 0 {
            // A text is cut where a character starts.
            let mut cut = last.len().min(bytes - 1);
            while !last.is_char_boundary(cut) {
                cut -= 1;
            }
            // SAFETY: the caller's promise; `cut` is below `bytes`.
            unsafe {
                std::ptr::copy_nonoverlapping(last.as_ptr(), text.cast::<u8>(), cut);
                text.add(cut).write(0);
            }
        }
        last.len() + 1
    })
}
