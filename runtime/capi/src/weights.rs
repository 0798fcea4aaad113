//! Weights: quantized here, or read from another tool's parts; packed for a kernel, or back in numbers.

use super::guard::{Answer, Fault, guarded};
use super::pointer::{copy_out, slice, slice_mut, text, write};
use super::registry::{self, Thing};
use bitsmith_compiler::format::{Format, Part, PartType, Quantized};
use bitsmith_compiler::lower::Packing;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// Largest matrix, in weights.
const MOST: usize = 1 << 40;

/// One tensor of a quantized matrix as another tool wrote it: `qweight` of GPTQ, `blocks` of GGUF.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithPart {
    /// Its name in that tool's files.
    pub name: *const c_char,
    /// Type of an element: `u8`, `i32`, `f16`.
    pub element: *const c_char,
    /// Its content.
    pub data: *const c_void,
    /// Bytes of its content.
    pub bytes: usize,
    /// Extents, outermost first.
    pub shape: *const u64,
    /// Number of extents.
    pub rank: usize,
}

/// Names of parts, as the files of GGUF, GPTQ, AWQ, compressed-tensors, HF FP8 and bitsandbytes have them.
const PARTS: &[&str] = &[
    "blocks",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "nested_offset",
];

/// Types of elements.
const ELEMENTS: &[(&str, PartType)] = &[
    ("u8", PartType::U8),
    ("i8", PartType::I8),
    ("i32", PartType::I32),
    ("i64", PartType::I64),
    ("f16", PartType::F16),
    ("bf16", PartType::Bf16),
    ("f32", PartType::F32),
    ("e4m3fn", PartType::E4m3fn),
    ("e4m3fnuz", PartType::E4m3fnuz),
    ("e5m2", PartType::E5m2),
    ("e5m2fnuz", PartType::E5m2fnuz),
];

fn sizes(n: u64, k: u64) -> Answer<(usize, usize)> {
    let total = n.checked_mul(k).and_then(|total| usize::try_from(total).ok()).filter(|&total| total <= MOST);
    match total {
        Some(total) if total > 0 => Ok((n as usize, k as usize)),
        _ => Err(Fault::invalid(format!("a matrix of {n} x {k}; accepted: 1 to {MOST} weights"))),
    }
}

fn give(weights: Quantized, out: *mut u64) -> Answer<()> {
    // SAFETY: every caller below has had `out` promised, and written a 0 to it.
    unsafe { write(out, registry::register(Thing::Weights(Arc::new(weights))), "weights") }
}

/// Quantizes a row-major matrix `[n, k]` of floats to a format (`int4-g128`, `q4_k`). `importance` is null, or has a weight per
/// column for the rounding.
///
/// # Safety
/// `format` must end with a zero byte; `values` must have `n * k` readable floats, `importance` `k` of them or be null;
/// `weights` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_quantize(
    format: *const c_char,
    n: u64,
    k: u64,
    values: *const f32,
    importance: *const f32,
    weights: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let format: Format = unsafe {
            write(weights, 0, "weights")?;
            text(format, "format")?
        }
        .parse()?;
        let (n, k) = sizes(n, k)?;
        // SAFETY: as above.
        let values = unsafe { slice(values, n * k, "values")? };
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Fault::invalid(format!(
                "row {}, column {} is {}; accepted: finite numbers",
                at / k,
                at % k,
                values[at]
            )));
        }
        // SAFETY: as above.
        let importance = if importance.is_null() { None } else { Some(unsafe { slice(importance, k, "importance")? }) };
        give(format.encode(values, n, k, importance)?, weights)
    })
}

/// Reads a matrix `[n, k]` that another tool quantized, from its parts.
///
/// # Safety
/// `format` and the texts of the parts must end with zero bytes; the parts must have the sizes that they state; `weights` must
/// be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_weights_import(
    format: *const c_char,
    n: u64,
    k: u64,
    parts: *const BitsmithPart,
    count: usize,
    weights: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let format: Format = unsafe {
            write(weights, 0, "weights")?;
            text(format, "format")?
        }
        .parse()?;
        let (n, k) = sizes(n, k)?;
        if count > 16 {
            return Err(Fault::invalid(format!("{count} parts; accepted: up to 16")));
        }
        // SAFETY: as above.
        let given = unsafe { slice(parts, count, "parts")? };
        let mut list = Vec::new();
        for part in given {
            // SAFETY: as above.
            let (name, element, data, shape) = unsafe {
                (
                    text(part.name, "name of a part")?,
                    text(part.element, "element of a part")?,
                    slice(part.data.cast::<u8>(), part.bytes, "data of a part")?,
                    slice(part.shape, part.rank.min(9), "shape of a part")?,
                )
            };
            if part.rank > 8 {
                return Err(Fault::invalid(format!("part `{name}` has {} extents; accepted: up to 8", part.rank)));
            }
            let dtype = ELEMENTS.iter().find(|(known, _)| *known == element).map(|&(_, dtype)| dtype);
            let dtype = dtype.ok_or_else(|| {
                let known: Vec<&str> = ELEMENTS.iter().map(|(known, _)| *known).collect();
                Fault::invalid(format!("part `{name}` has elements of `{element}`; accepted: {}", known.join(", ")))
            })?;
            let known = PARTS.iter().find(|known| **known == name);
            let name = known.ok_or_else(|| Fault::invalid(format!("part `{name}`; accepted: {}", PARTS.join(", "))))?;
            let shape = shape.iter().map(|&extent| extent as usize).collect();
            list.push(Part { name, dtype, shape, bytes: data.to_vec() });
        }
        let read = (format.container.unpack)(&format, n, k, &list)?;
        read.check()?;
        give(read, weights)
    })
}

/// The numbers that a matrix stands for, row-major: `count` must be `n * k`.
///
/// # Safety
/// `values` must have `count` writable floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_weights_dequantize(weights: u64, values: *mut f32, count: usize) -> i32 {
    guarded(|| {
        let weights = registry::weights(weights)?;
        if count != weights.n * weights.k {
            return Err(Fault::invalid(format!("room for {count} numbers; accepted: {} x {}", weights.n, weights.k)));
        }
        // SAFETY: the caller's promise.
        unsafe { slice_mut(values, count, "values")? }.copy_from_slice(&weights.dequantize());
        Ok(())
    })
}

/// Packs a matrix as a kernel's manifest asks (`n16`, `qt16-f16-gt`). `needed` gets the number of bytes; `out` may be null with
/// `bytes` 0 to ask for it.
///
/// # Safety
/// `packing` must end with a zero byte; `out` must have `bytes` writable bytes; `needed` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_weights_pack(
    weights: u64,
    packing: *const c_char,
    out: *mut c_void,
    bytes: usize,
    needed: *mut usize,
) -> i32 {
    guarded(|| {
        let weights = registry::weights(weights)?;
        // SAFETY: the caller's promise, here and below.
        let name = unsafe { text(packing, "packing")? };
        let packing = Packing::ALL.into_iter().find(|packing| packing.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Packing::ALL.iter().map(|packing| packing.name()).collect();
            Fault::invalid(format!("packing `{name}`; accepted: {}", names.join(", ")))
        })?;
        let size = packing.bytes(&weights.format, weights.n, weights.k)?;
        // SAFETY: as above.
        unsafe { write(needed, size, "needed")? };
        if out.is_null() && bytes == 0 {
            return Ok(());
        }
        if bytes < size {
            return Err(Fault::invalid(format!("the buffer has {bytes} bytes; {size} are needed")));
        }
        // SAFETY: as above.
        unsafe { copy_out(&packing.pack(&weights)?, out.cast(), bytes, needed) }
    })
}
