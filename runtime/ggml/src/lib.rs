#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod abi;
mod buffer;
mod device;
mod job;
mod product;
mod room;
mod stream;

pub use stream::share_threadpool;

use bitsmith_compiler::{Error, Result};
use llama_cpp_sys_2 as sys;

/// Registers the backend with ggml: models that are loaded from now on put the weights that kernels can multiply by in its
/// buffers, and contexts that are made from now on compute with them. Fails, and registers nothing, where the linked
/// ggml has another interface or the processor no emitter. Returns the level of instructions that kernels are made for.
pub fn register() -> Result<String> {
    let faults = abi::faults();
    if !faults.is_empty() {
        return Err(Error::Unsupported(faults.join("; ")));
    }
    let target = product::target()?;
    // SAFETY: the objects behind the registration live as long as the process.
    unsafe { sys::ggml_backend_register(device::registration()) };
    Ok(target)
}

/// Takes the backend back: models and contexts that are made from now on do without it; those that have it keep it.
pub fn unregister() {
    // SAFETY: as above; ggml only forgets the address.
    unsafe { sys::ggml_backend_unload(device::registration()) };
}
