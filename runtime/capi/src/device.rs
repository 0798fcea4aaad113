//! Devices and buffers.

use super::guard::{Answer, BITSMITH_ABI_VERSION, Fault, guarded};
use super::pointer::{copy_out, slice, slice_mut, text, write};
use super::registry::{self, Thing};
use bitsmith_runtime::kv::KvCache;
use std::ffi::{c_char, c_void};

fn version(found: u32) -> Answer<()> {
    if found == BITSMITH_ABI_VERSION { Ok(()) } else { Err(Fault::Abi(found)) }
}

/// Opens a device by name: `cpu`, `cpu:4`, `cuda:0`, `hip:0`, `vulkan:0`. `abi_version` is the header's `BITSMITH_ABI_VERSION`.
///
/// # Safety
/// `name` must end with a zero byte; `device` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_open(abi_version: u32, name: *const c_char, device: *mut u64) -> i32 {
    guarded(|| {
        version(abi_version)?;
        // SAFETY: the caller's promise, here and below.
        unsafe {
            write(device, 0, "device")?;
            let opened = bitsmith_runtime::open(text(name, "name")?)?;
            write(device, registry::register(Thing::Device(opened)), "device")
        }
    })
}

/// Waits for every launch on a device.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_synchronize(device: u64) -> i32 {
    guarded(|| Ok(registry::device(device)?.synchronize()?))
}

/// Closes a handle of any kind. What it stands for lives on while a launch or another handle uses it.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_close(handle: u64) -> i32 {
    guarded(|| registry::close(handle))
}

/// Describes what a handle stands for as JSON, without a zero byte; see `copy_out` for `json`, `bytes` and `needed`.
///
/// # Safety
/// `json` is null or has `bytes` writable bytes; `needed` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_describe(handle: u64, json: *mut c_char, bytes: usize, needed: *mut usize) -> i32 {
    guarded(|| {
        let described = match registry::find(handle)? {
            Thing::Device(device) => serde_json::json!({ "kind": "device", "device": device.info() }),
            Thing::Buffer(buffer, device) => serde_json::json!({
                "kind": "buffer", "bytes": buffer.bytes(), "device": device.info().name,
            }),
            Thing::Weights(weights) => serde_json::json!({
                "kind": "weights", "format": weights.format.to_string(), "n": weights.n, "k": weights.k,
            }),
            Thing::Bundle(kernels) => serde_json::json!({
                "kind": "bundle", "target": kernels.target(), "reason": kernels.reason(),
            }),
            Thing::Cache(cache, device) => {
                let described = |cache: &KvCache| {
                    let formats = (0..cache.layers()).map(|layer| Ok(cache.layout(layer)?.format.to_string()));
                    Ok(serde_json::json!({
                        "kind": "kv_cache", "device": device.info().name, "bytes": cache.bytes(),
                        "pages": cache.pages().total(), "free_pages": cache.pages().free(),
                        "formats": formats.collect::<Answer<Vec<String>>>()?,
                    }))
                };
                cache.with(|cache| described(cache))?
            }
            Thing::Kernel(kernels, index, reason) => serde_json::json!({
                "kind": "kernel", "kernel": kernels.target().kernels.get(index), "reason": &*reason,
            }),
        };
        // SAFETY: the caller's promise.
        unsafe { copy_out(described.to_string().as_bytes(), json.cast(), bytes, needed) }
    })
}

/// Memory of a device, with undefined content.
///
/// # Safety
/// `buffer` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_buffer_create(device: u64, bytes: usize, buffer: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        unsafe { write(buffer, 0, "buffer")? };
        let device = registry::device(device)?;
        if isize::try_from(bytes).is_err() {
            return Err(Fault::invalid(format!("{bytes} bytes; more than memory holds")));
        }
        let made = device.allocate(bytes)?;
        // SAFETY: as above.
        unsafe { write(buffer, registry::register(Thing::Buffer(made, device)), "buffer") }
    })
}

/// The caller's own memory as a buffer of a device that takes its address: `cpu`, where it must start at a multiple of 64, and
/// `cuda`, where it is memory of that GPU.
///
/// # Safety
/// The memory must stay valid until the buffer is closed and its last launch has ended, and nobody else may touch it during one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_buffer_wrap(device: u64, memory: *mut c_void, bytes: usize, buffer: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        unsafe { write(buffer, 0, "buffer")? };
        let device = registry::device(device)?;
        if memory.is_null() || isize::try_from(bytes).is_err() {
            return Err(Fault::invalid(format!("{bytes} bytes at {memory:p}; accepted: memory that is there")));
        }
        // SAFETY: as above. The address may be one of a GPU: nothing is read or written here.
        let made = unsafe { device.wrap(memory.cast(), bytes)? };
        // SAFETY: as above.
        unsafe { write(buffer, registry::register(Thing::Buffer(made, device)), "buffer") }
    })
}

/// Copies to a buffer.
///
/// # Safety
/// `data` must have `bytes` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_buffer_upload(buffer: u64, offset: usize, data: *const c_void, bytes: usize) -> i32 {
    guarded(|| {
        let (buffer, device) = registry::buffer(buffer)?;
        buffer.range(offset, bytes)?;
        // SAFETY: the caller's promise.
        Ok(device.upload(&buffer, offset, unsafe { slice(data.cast::<u8>(), bytes, "data")? })?)
    })
}

/// Copies from a buffer, after all launches before it.
///
/// # Safety
/// `data` must have `bytes` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_buffer_download(buffer: u64, offset: usize, data: *mut c_void, bytes: usize) -> i32 {
    guarded(|| {
        let (buffer, device) = registry::buffer(buffer)?;
        buffer.range(offset, bytes)?;
        // SAFETY: the caller's promise.
        Ok(device.download(&buffer, offset, unsafe { slice_mut(data.cast::<u8>(), bytes, "data")? })?)
    })
}

/// A device on a context and a stream of the caller (`cuda:0`: a `CUcontext` and a `CUstream`; `hip:0`: null and a
/// `hipStream_t`): launches are put into that stream.
///
/// # Safety
/// `name` must end with a zero byte; `context` and `stream` must stay valid until the device and all that was made of it are
/// closed; `device` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_adopt(
    abi_version: u32,
    name: *const c_char,
    context: *mut c_void,
    stream: *mut c_void,
    device: *mut u64,
) -> i32 {
    guarded(|| {
        version(abi_version)?;
        // SAFETY: the caller's promise, here and below.
        let name = unsafe {
            write(device, 0, "device")?;
            text(name, "name")?
        };
        // SAFETY: as above.
        let adopted = unsafe { bitsmith_runtime::adopt(name, context, stream) }?;
        // SAFETY: as above.
        unsafe { write(device, registry::register(Thing::Device(adopted)), "device") }
    })
}
