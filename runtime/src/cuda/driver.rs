//! NVIDIA's driver, found at run time.
//!
//! Always holds: no other function of the driver is called before [`open`] succeeded, since the bindings panic where the
//! library or a symbol is missing; [`open`] asks for the library first, and for a version that has every symbol used here.

use bitsmith_compiler::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// The least version of CUDA that a driver must offer: launches with attributes and graphs as used here are in all of 12.
pub const LEAST: i32 = 12000;

/// Loads and starts the driver, once; the version of CUDA that it offers (12080 is 12.8).
pub fn open() -> Result<i32> {
    static DRIVER: OnceLock<std::result::Result<i32, String>> = OnceLock::new();
    DRIVER.get_or_init(start).clone().map_err(Error::Unsupported)
}

fn start() -> std::result::Result<i32, String> {
    // SAFETY: loading NVIDIA's library runs its initializers, as in any program that links it.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "CUDA: no NVIDIA driver is here (libcuda.so.1 cannot be loaded); install a driver of CUDA 12 or later"
                .to_string(),
        );
    }
    let mut version = 0;
    // SAFETY: the place is written on success.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "asking for its version").map_err(|e| e.to_string())?;
    if version < LEAST {
        return Err(format!("CUDA: the driver offers {}; accepted: 12.0 or later", spelled(version)));
    }
    // SAFETY: the flag word must be 0.
    check(unsafe { sys::cuInit(0) }, "starting the driver").map_err(|error| match error {
        Error::Unsupported(why) => why,
        other => other.to_string(),
    })?;
    Ok(version)
}

/// A version as people write it: 12080 is 12.8.
pub fn spelled(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// An error for a status that is not success.
pub fn check(status: CUresult, what: &str) -> Result<()> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the place is written with a string of static storage, or null for an unknown status.
    unsafe { sys::cuGetErrorString(status, &mut text) };
    let said = if text.is_null() {
        String::new()
    } else {
        // SAFETY: it is a C string of static storage.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    Err(Error::Unsupported(format!("CUDA: {what}: {status:?}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_spelled() {
        assert_eq!([11040, 12080, 13000].map(spelled), ["11.4", "12.8", "13.0"]);
    }

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        match open() {
            Ok(version) => assert!(version >= LEAST),
            Err(Error::Unsupported(why)) => assert!(why.starts_with("CUDA: ") && !why.contains('\n'), "{why}"),
            Err(other) => panic!("{other}"),
        }
    }
}
