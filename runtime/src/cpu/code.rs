//! Machine code made executable, by `cranelift_jit`.

use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::{Error, Result};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};

/// The entry of a CPU artifact: arguments, scratch of the thread, first workgroup, one past the last.
type Entry = unsafe extern "C" fn(*const u64, *mut u8, u64, u64);

/// One loaded function.
pub(super) struct Code {
    entry: Entry,
    module: Option<JITModule>,
}

// SAFETY: after loading, the module is only kept alive; nothing in it is changed until it is dropped.
unsafe impl Send for Code {}
// SAFETY: as above.
unsafe impl Sync for Code {}

impl Code {
    /// Loads the machine code of an artifact made for this host.
    pub fn load(artifact: &Artifact) -> Result<Code> {
        let Payload::Machine(bytes) = &artifact.payload else {
            return Err(Error::invalid(format!("{} holds text, not machine code", artifact.entry)));
        };
        let bug = |message: String| Error::Bug { message, text: artifact.entry.clone() };
        let builder = JITBuilder::new(default_libcall_names()).map_err(|e| bug(e.to_string()))?;
        let mut module = JITModule::new(builder);
        let signature = module.make_signature();
        let id = module
            .declare_function(&artifact.entry, Linkage::Export, &signature)
            .map_err(|e| bug(e.to_string()))?;
        module.define_function_bytes(id, 64, bytes, &[]).map_err(|e| bug(e.to_string()))?;
        module.finalize_definitions().map_err(|e| bug(e.to_string()))?;
        let address = module.get_finalized_function(id);
        // SAFETY: the bytes are a function of this signature, as CPU targets emit them.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
        Ok(Code { entry, module: Some(module) })
    }

    /// Runs workgroups `begin..end`.
    ///
    /// # Safety
    /// `args` must be what the artifact takes, followed by the grid; buffers and scratch must be as large as it says and
    /// not be touched by others meanwhile.
    pub unsafe fn call(&self, args: &[u64], scratch: u64, begin: u64, end: u64) {
        // SAFETY: the caller's promise.
        unsafe { (self.entry)(args.as_ptr(), scratch as *mut u8, begin, end) };
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: programs own their code, so no call is under way, and the entry is not used again.
            unsafe { module.free_memory() };
        }
    }
}
