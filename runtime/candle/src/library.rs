//! The part of `bitsmith.h` that an engine for linear layers needs, with handles that close themselves.
//!
//! Always holds: a status that is not `BITSMITH_OK` is an error with the library's own text.

use candle_core::{Error, Result};
use std::ffi::{CString, c_char, c_void};

const ABI_VERSION: u32 = 1;

#[repr(C)]
struct Want {
    op: *const c_char,
    layer: *const c_char,
    format: *const c_char,
    activation: *const c_char,
    n: u64,
    k: u64,
}

/// A range of a buffer; 0 bytes stand for all of it.
#[repr(C)]
struct View {
    buffer: u64,
    offset: u64,
    bytes: u64,
}

unsafe extern "C" {
    fn bitsmith_last_error(text: *mut c_char, bytes: usize) -> usize;
    fn bitsmith_open(abi_version: u32, name: *const c_char, device: *mut u64) -> i32;
    fn bitsmith_close(handle: u64) -> i32;
    fn bitsmith_buffer_create(device: u64, bytes: usize, buffer: *mut u64) -> i32;
    fn bitsmith_buffer_upload(buffer: u64, offset: usize, data: *const c_void, bytes: usize) -> i32;
    fn bitsmith_buffer_download(buffer: u64, offset: usize, data: *mut c_void, bytes: usize) -> i32;
    fn bitsmith_quantize(
        format: *const c_char,
        n: u64,
        k: u64,
        values: *const f32,
        importance: *const f32,
        weights: *mut u64,
    ) -> i32;
    fn bitsmith_weights_dequantize(weights: u64, values: *mut f32, count: usize) -> i32;
    fn bitsmith_weights_pack(
        weights: u64,
        packing: *const c_char,
        out: *mut c_void,
        bytes: usize,
        needed: *mut usize,
    ) -> i32;
    fn bitsmith_bundle_open(device: u64, folder: *const c_char, bundle: *mut u64) -> i32;
    fn bitsmith_kernel_choose(bundle: u64, want: *const Want, m: u64, kernel: *mut u64) -> i32;
    fn bitsmith_launch(kernel: u64, m: u64, views: *const View, count: usize) -> i32;
}

fn check(status: i32) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let mut text = vec![0u8; 512];
    // SAFETY: the buffer has the stated size.
    let needed = unsafe { bitsmith_last_error(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(needed.saturating_sub(1).min(text.len() - 1));
    Err(Error::Msg(format!("bitsmith: status {status}: {}", String::from_utf8_lossy(&text))))
}

fn text(value: &str) -> Result<CString> {
    CString::new(value).map_err(|error| Error::Msg(format!("{value:?}: {error}")))
}

/// What the library gave: a device, a bundle, weights, a kernel or a buffer. Closed when it goes.
#[derive(Debug)]
pub struct Handle(u64);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the call takes a number.
        unsafe { bitsmith_close(self.0) };
    }
}

impl Handle {
    fn made(make: impl FnOnce(*mut u64) -> i32) -> Result<Handle> {
        let mut handle = 0;
        check(make(&mut handle))?;
        Ok(Handle(handle))
    }

    /// A device by name.
    pub fn device(name: &str) -> Result<Handle> {
        let name = text(name)?;
        // SAFETY: a text and a place for the handle, here and below.
        Handle::made(|out| unsafe { bitsmith_open(ABI_VERSION, name.as_ptr(), out) })
    }

    /// The bundle in a folder, for this device.
    pub fn bundle(&self, folder: &str) -> Result<Handle> {
        let folder = text(folder)?;
        // SAFETY: as above.
        Handle::made(|out| unsafe { bitsmith_bundle_open(self.0, folder.as_ptr(), out) })
    }

    /// The matmul of this bundle for these weights and `m` rows.
    pub fn matmul(&self, format: &str, [n, k]: [usize; 2], m: usize) -> Result<Handle> {
        let (op, format, activation) = (c"matmul", text(format)?, c"f16");
        let want = Want {
            op: op.as_ptr(),
            layer: std::ptr::null(),
            format: format.as_ptr(),
            activation: activation.as_ptr(),
            n: n as u64,
            k: k as u64,
        };
        // SAFETY: a structure whose texts live until the call returns, and a place for the handle.
        Handle::made(|out| unsafe { bitsmith_kernel_choose(self.0, &want, m as u64, out) })
    }

    /// A buffer of this device with these bytes.
    pub fn filled<T: Copy>(&self, data: &[T]) -> Result<Handle> {
        let buffer = self.room(size_of_val(data))?;
        // SAFETY: the slice has that many bytes.
        check(unsafe { bitsmith_buffer_upload(buffer.0, 0, data.as_ptr().cast(), size_of_val(data)) })?;
        Ok(buffer)
    }

    /// A buffer of this device.
    pub fn room(&self, bytes: usize) -> Result<Handle> {
        // SAFETY: a place for the handle.
        Handle::made(|out| unsafe { bitsmith_buffer_create(self.0, bytes, out) })
    }

    /// The first numbers of this buffer.
    pub fn read<T: Copy + Default>(&self, count: usize) -> Result<Vec<T>> {
        let mut data = vec![T::default(); count];
        // SAFETY: the vector has that many bytes, and takes any bits: `T` is a number.
        check(unsafe { bitsmith_buffer_download(self.0, 0, data.as_mut_ptr().cast(), size_of_val(&data[..])) })?;
        Ok(data)
    }

    /// A matrix `[n, k]` in a format.
    pub fn quantized(format: &str, [n, k]: [usize; 2], values: &[f32]) -> Result<Handle> {
        if values.len() != n * k {
            candle_core::bail!("{} weights for {n} x {k}", values.len());
        }
        let format = text(format)?;
        // SAFETY: a text, `n * k` numbers, and a place for the handle.
        Handle::made(|out| unsafe {
            bitsmith_quantize(format.as_ptr(), n as u64, k as u64, values.as_ptr(), std::ptr::null(), out)
        })
    }

    /// The numbers that these weights stand for.
    pub fn dequantized(&self, count: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; count];
        // SAFETY: the vector has room for them.
        check(unsafe { bitsmith_weights_dequantize(self.0, values.as_mut_ptr(), count) })?;
        Ok(values)
    }

    /// These weights as a kernel takes them.
    pub fn packed(&self, packing: &str) -> Result<Vec<u8>> {
        let (packing, mut bytes) = (text(packing)?, 0);
        // SAFETY: a null buffer asks for the size, and the second call has it.
        unsafe {
            check(bitsmith_weights_pack(self.0, packing.as_ptr(), std::ptr::null_mut(), 0, &mut bytes))?;
            let mut data = vec![0; bytes];
            check(bitsmith_weights_pack(self.0, packing.as_ptr(), data.as_mut_ptr().cast(), bytes, &mut bytes))?;
            Ok(data)
        }
    }

    /// Runs this kernel for `m` rows.
    pub fn launch(&self, m: usize, buffers: &[&Handle]) -> Result<()> {
        let views: Vec<View> = buffers.iter().map(|buffer| View { buffer: buffer.0, offset: 0, bytes: 0 }).collect();
        // SAFETY: as many views as stated.
        check(unsafe { bitsmith_launch(self.0, m as u64, views.as_ptr(), views.len()) })
    }
}
