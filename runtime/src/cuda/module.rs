//! Code on a device: PTX that the driver assembles, or a cubin.
//!
//! Always holds: where the driver refuses a text, the error holds what its assembler said. The driver keeps what it
//! assembled in a cache on disk of its own.

use super::context::Context;
use super::driver::check;
use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::target::ptx::STATIC_SHARED;
use bitsmith_compiler::{Error, Result};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

/// A loaded module and its functions.
pub struct Module {
    context: Arc<Context>,
    module: CUmodule,
    /// The entry.
    pub own: Function,
    /// The entry that each launch runs first, if there is one.
    pub first: Option<Function>,
    /// Whether kernels themselves wait for the one before them, so that they may start early.
    pub waits: bool,
}

/// A function of a module.
pub struct Function {
    /// The driver's handle.
    pub handle: CUfunction,
    /// Bytes of shared memory that a launch asks for.
    pub dynamic_shared: u32,
}

// SAFETY: the handles are opaque, and the driver may be called with them from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// Room for what the assembler says.
const LOG: usize = 16 << 10;

impl Module {
    /// Loads an artifact, whose architecture the caller has checked.
    pub fn load(context: &Arc<Context>, artifact: &Artifact) -> Result<Module> {
        let mut image = match &artifact.payload {
            Payload::Text(_) | Payload::Machine(_) => artifact.payload.bytes().to_vec(),
            Payload::Binary(_) => {
                return Err(Error::invalid(format!("{} is a module for another driver", artifact.entry)));
            }
        };
        let text = matches!(artifact.payload, Payload::Text(_));
        // A text ends with a zero byte.
        image.push(0);
        let module = assemble(context, &image).map_err(|(status, log)| refused(artifact, text, status, &log))?;
        let empty = || Function { handle: ptr::null_mut(), dynamic_shared: 0 };
        let waits = text && asks_for_early_start(&String::from_utf8_lossy(&image));
        // From here on the module is unloaded whatever happens.
        let mut module = Module { context: context.clone(), module, own: empty(), first: None, waits };
        module.own = module.find(&artifact.entry, artifact.shared_bytes)?;
        if let Some(first) = &artifact.preparation {
            module.first = Some(module.find(&first.entry, first.shared_bytes)?);
        }
        Ok(module)
    }

    /// Finds a function and raises its limit of shared memory.
    fn find(&self, entry: &str, shared_bytes: u64) -> Result<Function> {
        let name = CString::new(entry).map_err(|_| Error::invalid(format!("the entry {entry:?} holds a zero byte")))?;
        let _guard = self.context.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the module is loaded, and the name is a C string.
        let status = unsafe { sys::cuModuleGetFunction(&mut handle, self.module, name.as_ptr()) };
        check(status, &format!("finding {entry}"))?;
        let dynamic_shared = if shared_bytes > STATIC_SHARED { shared_bytes as u32 } else { 0 };
        if dynamic_shared > 0 {
            let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of the module just loaded.
            let status = unsafe { sys::cuFuncSetAttribute(handle, limit, dynamic_shared as i32) };
            check(status, &format!("giving {entry} {dynamic_shared} bytes of shared memory"))?;
        }
        Ok(Function { handle, dynamic_shared })
    }

    /// Whether it belongs to a context.
    pub fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }
}

/// Loads an image that ends with a zero byte; where the driver refuses it, its status and what it said.
fn assemble(context: &Context, image: &[u8]) -> std::result::Result<CUmodule, (Option<CUresult>, Vec<u8>)> {
    let _guard = context.enter().map_err(|error| (None, error.to_string().into_bytes()))?;
    let mut log = vec![0u8; LOG];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes the size as a pointer's value.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(LOG)];
    let mut module = ptr::null_mut();
    // SAFETY: the image ends with a zero byte; options and values are two each, and the log has the size that is named.
    let status = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if status == CUresult::CUDA_SUCCESS { Ok(module) } else { Err((Some(status), log)) }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_guard) = self.context.enter() {
            // SAFETY: the module was loaded and is unloaded once, after every launch of it.
            unsafe {
                sys::cuStreamSynchronize(self.context.stream);
                sys::cuModuleUnload(self.module);
            }
        }
    }
}

/// Whether a text waits for the launch before it by itself (PTX ISA, `griddepcontrol`): it may then start before that one
/// has ended. Comments do not count.
fn asks_for_early_start(text: &str) -> bool {
    text.lines().any(|line| line.split("//").next().unwrap_or_default().contains("griddepcontrol.wait"))
}

/// The error for a module that the driver does not take.
fn refused(artifact: &Artifact, text: bool, status: Option<CUresult>, log: &[u8]) -> Error {
    let said = String::from_utf8_lossy(log);
    let said = said.trim_end_matches('\0').trim();
    let Some(status) = status else { return Error::Unsupported(said.to_string()) };
    if !text || said.is_empty() {
        return check(status, &format!("loading {}", artifact.entry)).expect_err("the status is not success");
    }
    Error::Tool {
        command: "the assembler of NVIDIA's driver".into(),
        stderr: format!("{status:?}: {said}"),
        path: format!("the PTX of {} for {}", artifact.entry, artifact.target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_waits_by_itself_may_start_early() {
        assert!(asks_for_early_start(".entry x {\n  griddepcontrol.wait;\n}"));
        assert!(!asks_for_early_start("// griddepcontrol.wait\n.entry x { griddepcontrol.launch_dependents; }"));
    }
}
