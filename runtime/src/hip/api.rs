//! The functions of `libamdhip64` and `libhiprtc`, found at run time.
//!
//! Always holds: a function is called with the types of HIP's public headers (`hip/hip_runtime_api.h`, `hip/hiprtc.h`), and
//! the libraries stay loaded for as long as the process runs.

use bitsmith_compiler::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// A status: 0 is success.
pub type Status = c_int;
/// A loaded module, a function in it, a stream, a program under compilation: all opaque.
pub type Handle = *mut c_void;

/// `hipMemcpyKind`.
pub const TO_DEVICE: c_int = 1;
/// `hipMemcpyKind`.
pub const TO_HOST: c_int = 2;

/// Makes a table of functions that one library must have.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal: fn($($arg:ty),*) -> $out:ty;)* }) => {
        $(#[$doc])*
        pub struct $name {
            $(pub $field: unsafe extern "C" fn($($arg),*) -> $out,)*
        }

        impl $name {
            fn load(library: &'static Library) -> Result<$name> {
                Ok($name {
                    $($field: {
                        // SAFETY: the symbol is the function of this name, whose type is the one in HIP's header.
                        let symbol = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *symbol.map_err(|error| Error::Unsupported(format!("HIP: {} is missing: {error}", $symbol)))?
                    },)*
                })
            }
        }
    };
}

table! {
    /// The runtime.
    Hip {
        init = "hipInit": fn(c_uint) -> Status;
        device_count = "hipGetDeviceCount": fn(*mut c_int) -> Status;
        set_device = "hipSetDevice": fn(c_int) -> Status;
        properties = "hipGetDevicePropertiesR0600": fn(*mut c_void, c_int) -> Status;
        malloc = "hipMalloc": fn(*mut *mut c_void, usize) -> Status;
        free = "hipFree": fn(*mut c_void) -> Status;
        copy = "hipMemcpyWithStream": fn(*mut c_void, *const c_void, usize, c_int, Handle) -> Status;
        load_module = "hipModuleLoadData": fn(*mut Handle, *const c_void) -> Status;
        unload_module = "hipModuleUnload": fn(Handle) -> Status;
        function = "hipModuleGetFunction": fn(*mut Handle, Handle, *const c_char) -> Status;
        launch = "hipModuleLaunchKernel": fn(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> Status;
        synchronize = "hipStreamSynchronize": fn(Handle) -> Status;
        error_string = "hipGetErrorString": fn(Status) -> *const c_char;
    }
}

table! {
    /// The compiler of source.
    Rtc {
        create = "hiprtcCreateProgram": fn(
            *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> Status;
        compile = "hiprtcCompileProgram": fn(Handle, c_int, *const *const c_char) -> Status;
        log_size = "hiprtcGetProgramLogSize": fn(Handle, *mut usize) -> Status;
        log = "hiprtcGetProgramLog": fn(Handle, *mut c_char) -> Status;
        code_size = "hiprtcGetCodeSize": fn(Handle, *mut usize) -> Status;
        code = "hiprtcGetCode": fn(Handle, *mut c_char) -> Status;
        destroy = "hiprtcDestroyProgram": fn(*mut Handle) -> Status;
    }
}

/// Opens the first library of a list, which stays loaded.
fn open(names: &[&str], what: &str) -> Result<&'static Library> {
    let mut first = None;
    for name in names {
        // SAFETY: loading AMD's libraries runs their initializers, which do no more than any program that links them asks for.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let why = first.map_or(String::new(), |error| format!(" ({error})"));
    Err(Error::Unsupported(format!("HIP: {} is not here{why}; install {what} of ROCm 6 or later", names[0])))
}

/// The runtime, loaded once.
pub fn hip() -> Result<&'static Hip> {
    static HIP: OnceLock<Result<Hip, String>> = OnceLock::new();
    let load = || {
        let names = ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"];
        open(&names, "hip-runtime-amd").and_then(Hip::load).map_err(|error| match error {
            Error::Unsupported(why) => why,
            other => other.to_string(),
        })
    };
    HIP.get_or_init(load).as_ref().map_err(|why| Error::Unsupported(why.clone()))
}

/// The compiler, loaded once.
pub fn rtc() -> Result<&'static Rtc> {
    static RTC: OnceLock<Result<Rtc, String>> = OnceLock::new();
    let load = || {
        let names = ["libhiprtc.so", "libhiprtc.so.7", "libhiprtc.so.6"];
        open(&names, "hiprtc").and_then(Rtc::load).map_err(|error| match error {
            Error::Unsupported(why) => why,
            other => other.to_string(),
        })
    };
    RTC.get_or_init(load).as_ref().map_err(|why| Error::Unsupported(why.clone()))
}

impl Hip {
    /// An error for a status that is not success.
    pub fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function gives a string of static storage for every number.
        let text = unsafe { (self.error_string)(status) };
        let text = if text.is_null() {
            String::new()
        } else {
            // SAFETY: it is a C string of static storage.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Unsupported(format!("HIP: {what}: error {status}: {text}")))
    }
}
