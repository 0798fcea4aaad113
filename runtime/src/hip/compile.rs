//! Source to a code object, by hiprtc.

use super::api::{self, Handle, Rtc};
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::{Error, Result};
use std::ffi::CString;
use std::ptr;

/// A program that hiprtc holds until it is dropped.
struct Program {
    rtc: &'static Rtc,
    handle: Handle,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle came from `hiprtcCreateProgram` and is destroyed once.
        unsafe { (self.rtc.destroy)(&mut self.handle) };
    }
}

/// Compiles the source of an artifact for an instruction set such as `gfx942`.
pub fn compile(artifact: &Artifact, source: &str, arch: &str) -> Result<Vec<u8>> {
    let rtc = api::rtc()?;
    let c_string = |text: &str| {
        CString::new(text).map_err(|_| Error::invalid(format!("the source of {} holds a zero byte", artifact.entry)))
    };
    let (text, name) = (c_string(source)?, c_string(&format!("{}.hip", artifact.entry))?);
    let options = [c_string(&format!("--offload-arch={arch}"))?, c_string("-O3")?, c_string("-std=c++17")?];
    let option_pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program { rtc, handle: ptr::null_mut() };
    // SAFETY: the strings live until the calls return, there are no headers, and the handle is written on success alone.
    let status =
        unsafe { (rtc.create)(&mut program.handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
    if status != 0 {
        return Err(Error::Unsupported(format!("hiprtc made no program of {}: error {status}", artifact.entry)));
    }
    // SAFETY: the program was created, and the options live until the call returns.
    let status = unsafe { (rtc.compile)(program.handle, options.len() as i32, option_pointers.as_ptr()) };
    if status != 0 {
        return Err(Error::Tool {
            command: format!("hiprtc --offload-arch={arch} -O3 -std=c++17"),
            stderr: log(&program),
            path: format!("{}.hip", artifact.entry),
        });
    }
    let mut size = 0;
    // SAFETY: the size is written before the buffer of that size is.
    let status = unsafe { (rtc.code_size)(program.handle, &mut size) };
    let mut code = vec![0u8; size];
    // SAFETY: the buffer has the size that hiprtc named.
    if status != 0 || unsafe { (rtc.code)(program.handle, code.as_mut_ptr().cast()) } != 0 {
        return Err(Error::Unsupported(format!("hiprtc gave no code for {}", artifact.entry)));
    }
    Ok(code)
}

fn log(program: &Program) -> String {
    let mut size = 0;
    // SAFETY: the size is written before the buffer of that size is.
    if unsafe { (program.rtc.log_size)(program.handle, &mut size) } != 0 {
        return String::new();
    }
    let mut text = vec![0u8; size];
    // SAFETY: the buffer has the size that hiprtc named.
    if unsafe { (program.rtc.log)(program.handle, text.as_mut_ptr().cast()) } != 0 {
        return String::new();
    }
    String::from_utf8_lossy(&text).trim_end_matches('\0').to_string()
}
