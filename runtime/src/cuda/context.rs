//! A device's context, its stream, and who may use them when.
//!
//! Always holds: whoever calls the driver for this context holds the lock of [`Context::enter`], which makes the context
//! the thread's own. The context is the caller's, or the device's primary one, which other libraries of the process share:
//! their pointers and streams are good here.

use super::driver::check;
use bitsmith_compiler::Result;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUstream};
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A context with a stream.
pub struct Context {
    /// Whose primary context it is; `None` for a context of the caller's.
    primary: Option<CUdevice>,
    context: CUcontext,
    /// Where copies and launches are queued.
    pub stream: CUstream,
    own_stream: bool,
    lock: Mutex<()>,
}

// SAFETY: the handles are opaque, and the driver may be called with them from any thread; calls are ordered by the lock.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes the primary context of a device, with a stream of its own.
    pub fn new(device: CUdevice) -> Result<Context> {
        let mut context = Context::primary(device, ptr::null_mut())?;
        let mut stream = ptr::null_mut();
        {
            let _guard = context.enter()?;
            let flag = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the context is the thread's, and the place is written on success.
            check(unsafe { sys::cuStreamCreate(&mut stream, flag) }, "making a stream")?;
        }
        context.stream = stream;
        context.own_stream = true;
        Ok(context)
    }

    /// Takes the primary context of a device, with the caller's stream.
    pub fn primary(device: CUdevice, stream: CUstream) -> Result<Context> {
        let mut context = ptr::null_mut();
        // SAFETY: the driver has been started, and the place is written on success.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) }, "taking the device's context")?;
        Ok(Context { primary: Some(device), context, stream, own_stream: false, lock: Mutex::new(()) })
    }

    /// Takes the caller's context and stream, which outlive it.
    pub fn adopted(context: CUcontext, stream: CUstream) -> Context {
        Context { primary: None, context, stream, own_stream: false, lock: Mutex::new(()) }
    }

    /// Makes this the thread's context and keeps others out.
    pub fn enter(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context is retained for as long as `self` lives.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "choosing the context")?;
        Ok(guard)
    }

    /// The context as the driver knows it.
    pub fn raw(&self) -> *mut c_void {
        self.context.cast()
    }

    /// Waits for the stream. The caller holds the lock.
    pub fn wait(&self, what: &str) -> Result<()> {
        // SAFETY: the stream belongs to the context, which is the thread's.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, what)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the stream was made here, nothing is queued by others, and the context is given back once.
        unsafe {
            if self.own_stream && sys::cuCtxSetCurrent(self.context) == sys::CUresult::CUDA_SUCCESS {
                sys::cuStreamDestroy_v2(self.stream);
            }
            if let Some(device) = self.primary {
                sys::cuDevicePrimaryCtxRelease_v2(device);
            }
        }
    }
}

/// Device memory.
pub struct Memory {
    context: Arc<Context>,
    /// First byte.
    pub address: CUdeviceptr,
    owned: bool,
}

impl Memory {
    /// Undefined bytes, aligned to 256.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Memory> {
        let _guard = context.enter()?;
        let mut address = 0;
        // SAFETY: the context is the thread's, and the place is written on success.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        check(status, &format!("allocating {bytes} bytes"))?;
        Ok(Memory { context: context.clone(), address, owned: true })
    }

    /// Memory of the caller's, which outlives this.
    pub fn borrowed(context: &Arc<Context>, address: CUdeviceptr) -> Memory {
        Memory { context: context.clone(), address, owned: false }
    }

    /// Whether it belongs to a context.
    pub fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.owned
            && let Ok(_guard) = self.context.enter()
        {
            // SAFETY: the address came from the driver and is freed once; freeing waits for launches that use it.
            unsafe {
                sys::cuStreamSynchronize(self.context.stream);
                sys::cuMemFree_v2(self.address);
            }
        }
    }
}
