//! What ggml registers: an accelerator beside its CPU device, which takes the weights that it can multiply by and, with them,
//! the graphs.
//!
//! Reads tensors; says what it supports. Always holds: whatever the CPU device supports on ordinary memory is supported here
//! too, since ggml's own code computes it; a packed matrix is only ever multiplied by.

use crate::abi::{Device, Registration, VERSION};
use crate::buffer::{self, Once};
use crate::stream;
use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// The name of the backend and of its only device.
const NAME: &CStr = c"Bitsmith";

static REGISTRATION: Once<Registration> = Once(OnceLock::new());
static DEVICE: Once<Device> = Once(OnceLock::new());

/// The backend as ggml registers it.
pub fn registration() -> sys::ggml_backend_reg_t {
    let registration = REGISTRATION.0.get_or_init(|| Registration {
        api_version: VERSION,
        get_name: Some(reg_name),
        get_device_count: Some(count),
        get_device: Some(get),
        get_proc_address: Some(function),
        context: std::ptr::null_mut(),
    });
    std::ptr::from_ref(registration).cast_mut().cast()
}

/// Its device.
pub fn device() -> sys::ggml_backend_dev_t {
    let device = DEVICE.0.get_or_init(|| Device {
        get_name: Some(name),
        get_description: Some(description),
        get_memory: Some(memory),
        get_type: Some(kind),
        get_props: Some(properties),
        init_backend: Some(start),
        get_buffer_type: Some(buffer_type),
        get_host_buffer_type: None,
        buffer_from_host_ptr: None,
        supports_op: Some(supports),
        supports_buft: Some(supports_buffer),
        offload_op: None,
        event_new: None,
        event_free: None,
        event_synchronize: None,
        reg: registration(),
        context: std::ptr::null_mut(),
    });
    std::ptr::from_ref(device).cast_mut().cast()
}

unsafe extern "C" fn reg_name(_: sys::ggml_backend_reg_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn count(_: sys::ggml_backend_reg_t) -> usize {
    1
}

unsafe extern "C" fn get(_: sys::ggml_backend_reg_t, _index: usize) -> sys::ggml_backend_dev_t {
    device()
}

/// The function by which an engine says how many threads it wants.
unsafe extern "C" fn function(_: sys::ggml_backend_reg_t, name: *const c_char) -> *mut c_void {
    // SAFETY: ggml gives a name that ends with a zero byte.
    if unsafe { CStr::from_ptr(name) } == c"ggml_backend_set_n_threads" {
        let function: unsafe extern "C" fn(sys::ggml_backend_t, c_int) = stream::set_threads;
        return function as *mut c_void;
    }
    std::ptr::null_mut()
}

unsafe extern "C" fn name(_: sys::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn description(_: sys::ggml_backend_dev_t) -> *const c_char {
    c"bitsmith kernels on the threads of ggml's CPU backend".as_ptr()
}

/// It has no memory but the host's.
unsafe extern "C" fn memory(_: sys::ggml_backend_dev_t, free: *mut usize, total: *mut usize) {
    // SAFETY: ggml gives places for two numbers.
    unsafe {
        *free = 0;
        *total = 0;
    }
}

unsafe extern "C" fn kind(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_ACCEL
}

unsafe extern "C" fn properties(dev: sys::ggml_backend_dev_t, props: *mut sys::ggml_backend_dev_props) {
    // SAFETY: ggml gives room for the properties, set to zero: no capability, no memory.
    unsafe {
        (*props).name = name(dev);
        (*props).description = description(dev);
        (*props).type_ = kind(dev);
        (*props).caps.mmap_support = true;
    }
}

unsafe extern "C" fn start(_: sys::ggml_backend_dev_t, _parameters: *const c_char) -> sys::ggml_backend_t {
    stream::start()
}

unsafe extern "C" fn buffer_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t {
    buffer::kind()
}

unsafe extern "C" fn supports_buffer(_: sys::ggml_backend_dev_t, kind: sys::ggml_backend_buffer_type_t) -> bool {
    // SAFETY: ggml gives a type of buffer.
    kind == buffer::kind() || unsafe { sys::ggml_backend_buft_is_host(kind) }
}

unsafe extern "C" fn supports(_: sys::ggml_backend_dev_t, op: *const sys::ggml_tensor) -> bool {
    // SAFETY: ggml gives an operation whose sources are alive.
    unsafe {
        let operation = &*op;
        for (place, &source) in operation.src.iter().enumerate() {
            if source.is_null() || !buffer::is_ours(source) {
                continue;
            }
            if buffer::holds_packed(source) {
                if place != 0 || !multiplies(operation) {
                    return false;
                }
            } else if buffer::is_empty((*source).buffer) {
                // Weights that cannot be packed are better off where ggml puts them.
                return false;
            }
        }
        let cpu = sys::ggml_backend_reg_dev_get(sys::ggml_backend_cpu_reg(), 0);
        sys::ggml_backend_dev_supports_op(cpu, op)
    }
}

/// Whether an operation is a product with its first source that kernels can make.
///
/// # Safety
/// The sources are alive.
unsafe fn multiplies(operation: &sys::ggml_tensor) -> bool {
    let [weights, x] = [operation.src[0], operation.src[1]];
    if operation.op != sys::GGML_OP_MUL_MAT || x.is_null() {
        return false;
    }
    // SAFETY: the caller's promise.
    let x = unsafe { &*x };
    let float = x.type_ == sys::GGML_TYPE_F32 && operation.type_ == sys::GGML_TYPE_F32;
    // SAFETY: as above.
    float && operation.view_src.is_null() && unsafe { buffer::weights(weights) }.is_some()
}
