//! Bundles, kernels and launches.

use super::guard::{Answer, Fault, guarded};
use super::pointer::{copy_out, optional_text, read, slice, text, write};
use super::registry::{self, Thing};
use bitsmith_runtime::bundle::{ArgEntry, Bundle, Kernels, Want};
use bitsmith_runtime::{Buffer, View};
use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

/// What a kernel is wanted for. A null text and a 0 do not matter.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithWant {
    /// `matmul`, `dequant`, `quantize`. Not null.
    pub op: *const c_char,
    /// Name of a layer: `q_proj`.
    pub layer: *const c_char,
    /// Format of the weights: `int4-g128`.
    pub format: *const c_char,
    /// How activations come: `f16`, `int8-token`.
    pub activation: *const c_char,
    /// Output features.
    pub n: u64,
    /// Input features.
    pub k: u64,
}

/// What a kernel takes in a place.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithArgument {
    /// Bytes for the number of rows that was asked for.
    pub bytes: u64,
    /// Alignment of the first byte.
    pub align: u32,
    /// 1 where the kernel writes it.
    pub written: u32,
    /// Its name, ended by a zero byte: `x`, `x_scale`, `x_sum`, `w`, `y`.
    pub name: [c_char; 24],
    /// Type of its elements, ended by a zero byte: `f16`, `i8`, `u8` for packed weights.
    pub element: [c_char; 16],
}

/// A range of a buffer.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithView {
    /// The buffer.
    pub buffer: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 0 stands for the rest.
    pub bytes: u64,
}

/// Opens the bundle in a folder for a device: takes the target that serves it best.
///
/// # Safety
/// `folder` must end with a zero byte; `bundle` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_bundle_open(device: u64, folder: *const c_char, bundle: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let folder = unsafe {
            write(bundle, 0, "bundle")?;
            text(folder, "folder")?
        };
        let device = registry::device(device)?;
        let kernels = Kernels::new(Arc::new(Bundle::open(Path::new(folder))?), device)?;
        // SAFETY: as above.
        unsafe { write(bundle, registry::register(Thing::Bundle(Arc::new(kernels))), "bundle") }
    })
}

/// The kernel of a bundle for `m` rows, loaded. `bitsmith_describe` says why it was taken.
///
/// # Safety
/// The texts of `want` must be null or end with zero bytes; `kernel` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kernel_choose(
    bundle: u64,
    want: *const BitsmithWant,
    m: u64,
    kernel: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let want = unsafe {
            write(kernel, 0, "kernel")?;
            let want = read(want, "want")?;
            Want {
                op: text(want.op, "op")?,
                layer: optional_text(want.layer, "layer")?,
                n: size(want.n, "n")?,
                k: size(want.k, "k")?,
                format: optional_text(want.format, "format")?,
                activation: optional_text(want.activation, "activation")?,
            }
        };
        let kernels = registry::bundle(bundle)?;
        let choice = kernels.choose(&want, rows(m)?)?;
        kernels.kernel(choice.index)?;
        // SAFETY: as above.
        unsafe {
            write(kernel, registry::register(Thing::Kernel(kernels, choice.index, choice.reason.into())), "kernel")
        }
    })
}

fn size(value: u64, name: &str) -> Answer<Option<usize>> {
    let size = usize::try_from(value).map_err(|_| Fault::invalid(format!("`{name}` is {value}: too large")))?;
    Ok((size > 0).then_some(size))
}

fn rows(m: u64) -> Answer<usize> {
    let fits = (1..=i32::MAX as u64).contains(&m);
    if fits { Ok(m as usize) } else { Err(Fault::invalid(format!("m is {m}; accepted: 1 to {}", i32::MAX))) }
}

/// Number of arguments of a kernel: the buffers that a launch takes.
///
/// # Safety
/// `count` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kernel_arguments(kernel: u64, count: *mut usize) -> i32 {
    guarded(|| {
        let (kernels, index, _) = registry::kernel(kernel)?;
        // SAFETY: the caller's promise.
        unsafe { write(count, kernels.kernel(index)?.buffers().count(), "count") }
    })
}

/// What a kernel takes as its argument `place` for `m` rows.
///
/// # Safety
/// `argument` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kernel_argument(
    kernel: u64,
    place: usize,
    m: u64,
    argument: *mut BitsmithArgument,
) -> i32 {
    guarded(|| {
        let (kernels, index, _) = registry::kernel(kernel)?;
        let loaded = kernels.kernel(index)?;
        let count = loaded.buffers().count();
        let arg = loaded
            .buffers()
            .nth(place)
            .ok_or_else(|| Fault::invalid(format!("argument {place}; accepted: below {count}")))?;
        let answer = BitsmithArgument {
            bytes: bytes(arg, rows(m)?)? as u64,
            align: arg.align,
            written: u32::from(arg.written),
            name: name(&arg.name),
            element: name(&arg.dtype),
        };
        // SAFETY: the caller's promise.
        unsafe { write(argument, answer, "argument") }
    })
}

fn bytes(arg: &ArgEntry, m: usize) -> Answer<usize> {
    arg.bytes_for(m).ok_or_else(|| Fault::invalid(format!("{m} rows of `{}`: more than memory holds", arg.name)))
}

/// A text in a field, cut to its room.
fn name<const ROOM: usize>(text: &str) -> [c_char; ROOM] {
    let mut field = [0; ROOM];
    for (to, from) in field[..ROOM - 1].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    field
}

/// Bytes of workspace that a launch for `m` rows takes beside its arguments. They are the library's own; an engine counts them.
///
/// # Safety
/// `workspace` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kernel_workspace(kernel: u64, m: u64, workspace: *mut u64) -> i32 {
    guarded(|| {
        let (kernels, index, _) = registry::kernel(kernel)?;
        rows(m)?;
        let threads = kernels.device().info().threads as u64;
        let scratch = kernels.kernel(index)?.entry().scratch_bytes;
        // SAFETY: the caller's promise.
        unsafe { write(workspace, scratch.saturating_mul(threads), "workspace") }
    })
}

/// Starts a kernel for `m` rows. `views` are its arguments in order. Every size, alignment and overlap is checked before anything
/// runs. On a GPU it may still run when this returns.
///
/// # Safety
/// `views` must have `count` readable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_launch(kernel: u64, m: u64, views: *const BitsmithView, count: usize) -> i32 {
    guarded(|| {
        let (kernels, index, _) = registry::kernel(kernel)?;
        if count > 64 {
            return Err(Fault::invalid(format!("{count} views; accepted: up to 64")));
        }
        // SAFETY: the caller's promise.
        let given = unsafe { slice(views, count, "views")? };
        let mut buffers = Vec::with_capacity(count);
        for view in given {
            let (buffer, device) = registry::buffer(view.buffer)?;
            if !Arc::ptr_eq(&device, kernels.device()) {
                return Err(Fault::invalid(format!(
                    "buffer {} belongs to another device than the kernel; accepted: buffers of {}",
                    view.buffer,
                    kernels.device().info().name
                )));
            }
            buffers.push(buffer);
        }
        let mut ranges = Vec::with_capacity(count);
        for (view, buffer) in given.iter().zip(&buffers) {
            ranges.push(range_of(view, buffer)?);
        }
        Ok(kernels.kernel(index)?.launch(rows(m)?, &ranges)?)
    })
}

/// The range of a buffer that a view means.
pub(crate) fn range_of<'a>(view: &BitsmithView, buffer: &'a Buffer) -> Answer<View<'a>> {
    let far = |_| Fault::invalid(format!("a view of bytes {}+{}: too far", view.offset, view.bytes));
    let offset = usize::try_from(view.offset).map_err(far)?;
    let length = match view.bytes {
        0 => buffer.bytes().saturating_sub(offset),
        bytes => usize::try_from(bytes).map_err(far)?,
    };
    Ok(buffer.range(offset, length)?)
}

/// The manifest of the bundle in a folder as JSON, checked; no device is needed.
///
/// # Safety
/// `folder` must end with a zero byte; `json` is null or has `bytes` writable bytes; `needed` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_bundle_manifest(
    folder: *const c_char,
    json: *mut c_char,
    bytes: usize,
    needed: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let bundle = Bundle::open(Path::new(unsafe { text(folder, "folder")? }))?;
        // SAFETY: as above.
        unsafe { copy_out(bundle.manifest().to_text()?.as_bytes(), json.cast(), bytes, needed) }
    })
}
