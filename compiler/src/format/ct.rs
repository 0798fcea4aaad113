//! compressed-tensors: `pack-quantized` integers of any width, and `int-quantized` or `float-quantized` plain tensors.
//!
//! ```text
//! pack-quantized
//!   weight_packed      i32 [n, ceil(k * bits / 32)]       row = dense bit stream of codes, least significant bit first
//!   weight_scale       f16 [n, groups]                    (or bf16, f32)
//!   weight_zero_point  i32 [ceil(n * bits / 32), groups]  where asymmetric: bit stream along N
//!   weight_g_idx       i32 [k]                            where groups are not in order
//!   weight_shape       i64 [2]                            n, k
//! int-quantized, float-quantized
//!   weight             i8 or f8_e4m3 [n, k]
//!   weight_scale       [1], [n, 1], [n, groups] or [ceil(n / rows), ceil(k / columns)] of blocks
//! ```
//!
//! Files speak of signed codes and zeros, stored plus 2^(bits-1); here both are unsigned as stored, which is the same
//! difference. Until 2026-05 (before 3f01c782) widths that do not divide 32 were stored 32 / bits to a word with
//! padding: that generation is read too, told by its width or, where both widths agree, by its padding; what cannot be
//! told apart is refused. The dense one is written. Source: compressed-tensors `compressors/*` @ac8e2ba8.

use super::gptq::{common_faults, matrix, refuse, scale_word, transpose, trivial_order};
use super::grammar::{Family, granularity, granularity_word, number};
use super::part::Parts;
use super::{Code, Container, Format, Granularity, Part, PartType, Quantized, Scale, Zero, bits};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// `pack-quantized`.
pub static CT_PACK: Container =
    Container { name: "ct-pack-quantized", pack: pack_dense, unpack: unpack_dense, check: check_dense };
/// `int-quantized`, `float-quantized`, `naive-quantized`: one byte per code.
pub static CT_PLAIN: Container = Container {
    name: "ct-plain-quantized",
    pack: |q| pack_bytes(q, "weight_scale"),
    unpack: |f, n, k, p| unpack_bytes(f, n, k, p, "weight_scale"),
    check: check_bytes,
};
/// DeepSeek's and Hugging Face's block FP8: `weight_scale_inv`, which multiplies despite its name.
pub static HF_FP8: Container = Container {
    name: "hf-fp8",
    pack: |q| pack_bytes(q, "weight_scale_inv"),
    unpack: |f, n, k, p| unpack_bytes(f, n, k, p, "weight_scale_inv"),
    check: check_bytes,
};

/// Names: `ct-int4-g128-asym`, `ct-fp8-channel`.
pub(super) static FAMILY: Family = Family {
    prefix: "ct-",
    accepted: "int<2..8>-<g<size>|channel>[-asym][-bf16|-f32], int8-plain-<…> or fp8-<channel|tensor|block<size>|g<size>>\
               [-bf16|-f16]",
    parse,
    print,
};

fn parse(tail: &str) -> Result<Format> {
    let accepted = || Error::invalid(format!("`{tail}` after ct-; accepted is {}", FAMILY.accepted));
    let mut words = tail.split('-');
    let first = words.next().unwrap_or_default();
    let width = first.strip_prefix("int").and_then(number).filter(|width| (2..=8).contains(width));
    let (code, mut zero, mut dtype, mut container) = match width {
        Some(width) => {
            let width = width as u8;
            (Code::Int { bits: width, signed: false }, Zero::Bias(1 << (width - 1)), DType::F16, &CT_PACK)
        }
        None if first == "fp8" => (Code::Float(DType::E4m3fn), Zero::None, DType::F32, &CT_PLAIN),
        None => return Err(accepted()),
    };
    let mut grain = None;
    let mut code = code;
    for word in words {
        match word {
            "asym" if width.is_some() => zero = Zero::Int(code.bits()),
            "plain" if first == "int8" => {
                (code, zero, container) = (Code::Int { bits: 8, signed: true }, Zero::None, &CT_PLAIN);
            }
            "bf16" => dtype = DType::Bf16,
            "f32" => dtype = DType::F32,
            "f16" => dtype = DType::F16,
            _ => grain = Some(granularity(word)?.filter(|_| grain.is_none()).ok_or_else(accepted)?),
        }
    }
    let granularity = grain.ok_or_else(accepted)?;
    let format = Format { code, granularity, zero, scale: Scale::of(dtype), container };
    if *container == CT_PACK {
        refuse(common_faults("compressed-tensors", &format))?;
    }
    if *container == CT_PLAIN {
        refuse(byte_faults(&format))?;
    }
    Ok(format)
}

fn print(format: &Format) -> Option<String> {
    let grain = granularity_word(format.granularity);
    if *format.container == CT_PACK {
        let asym = if matches!(format.zero, Zero::Int(_)) { "-asym" } else { "" };
        return Some(format!("int{}-{grain}{asym}{}", format.code.bits(), scale_word(format.scale.dtype)));
    }
    if *format.container != CT_PLAIN {
        return None;
    }
    match format.code {
        Code::Float(_) if format.scale.dtype == DType::F16 => Some(format!("fp8-{grain}-f16")),
        Code::Float(_) if format.scale.dtype == DType::F32 => Some(format!("fp8-{grain}")),
        Code::Float(_) => Some(format!("fp8-{grain}{}", scale_word(format.scale.dtype))),
        _ => Some(format!("int8-plain-{grain}{}", scale_word(format.scale.dtype))),
    }
}

fn check_dense(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    if !matches!(format.code, Code::Int { bits: 1..=8, signed: false }) {
        faults.push(format!("pack-quantized of {:?}; accepted are unsigned integers of 1 to 8 bits", format.code));
    } else {
        faults.extend(common_faults("pack-quantized", format));
    }
    faults.extend(group_faults(format, k));
    faults
}

/// A group that the last columns do not fill has no place in these files.
fn group_faults(format: &Format, k: usize) -> Option<String> {
    match format.granularity {
        Granularity::Group(g) if g > 0 && !k.is_multiple_of(g as usize) => {
            Some(format!("compressed-tensors: K is {k}; accepted are multiples of the group size {g}"))
        }
        _ => None,
    }
}

fn pack_dense(q: &Quantized) -> Result<Vec<Part>> {
    refuse(check_dense(&q.format, q.n, q.k))?;
    q.check()?;
    let (n, k, width) = (q.n, q.k, q.format.code.bits());
    let groups = q.format.granularity.grid(n, k).1;
    let words: Vec<u32> = q.codes.chunks_exact(k).flat_map(|row| bits::pack_words(row, width)).collect();
    if padded(&words, k, width)? {
        return Err(unclear(k, width));
    }
    let mut parts = vec![
        Part::of_words("weight_packed", &[n, bits::words_for(k, width)], &words),
        Part::of_raw("weight_scale", q.format.scale.dtype, &[n, groups], &q.scales),
        Part::of_bytes(
            "weight_shape",
            PartType::I64,
            &[2],
            [n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect(),
        ),
    ];
    if let Zero::Int(_) = q.format.zero {
        let zeros: Vec<u8> = transpose(&q.zeros, n, groups).into_iter().map(|zero| zero as u8).collect();
        let columns: Vec<u32> = zeros.chunks_exact(n).flat_map(|column| bits::pack_words(column, width)).collect();
        let height = bits::words_for(n, width);
        parts.push(Part::of_words("weight_zero_point", &[height, groups], &transpose(&columns, groups, height)));
    }
    if let Some(order) = &q.order {
        parts.push(Part::of_words("weight_g_idx", &[k], order));
    }
    Ok(parts)
}

/// Words of a row in the old generation, where that differs from the dense one.
fn old_width(k: usize, width: u8) -> Option<usize> {
    let per_word = 32 / width as usize;
    (!32u8.is_multiple_of(width) && k > per_word).then(|| k.div_ceil(per_word))
}

/// Whether words whose number both generations share could be of the old one: every padding bit is 0.
fn padded(words: &[u32], k: usize, width: u8) -> Result<bool> {
    let used = 32 / width as u32 * width as u32;
    Ok(old_width(k, width) == Some(bits::words_for(k, width)) && words.iter().all(|word| word >> used == 0))
}

fn unclear(k: usize, width: u8) -> Error {
    Error::invalid(format!(
        "pack-quantized: {k} columns of {width} bits whose top bits are all 0 may be dense or padded; accepted are \
         matrices where the two generations can be told apart"
    ))
}

fn unpack_dense(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    refuse(check_dense(format, n, k))?;
    let parts = Parts::new(CT_PACK.name, parts);
    let width = format.code.bits();
    let groups = format.granularity.grid(n, k).1;
    let dense = bits::words_for(k, width);
    let old = old_width(k, width).unwrap_or(dense);
    let found = parts.get("weight_packed")?.shape.get(1).copied();
    let codes: Vec<u8> = if found == Some(old) && old != dense {
        let per_word = 32 / width as usize;
        let words = parts.words("weight_packed", &[n, old])?;
        let row = |row: &[u32]| {
            row.iter().flat_map(|word| bits::unpack_words(&[*word], width, per_word)).take(k).collect::<Vec<_>>()
        };
        words.chunks_exact(old).flat_map(row).collect()
    } else {
        let words = parts.words("weight_packed", &[n, dense])?;
        if padded(&words, k, width)? {
            return Err(unclear(k, width));
        }
        words.chunks_exact(dense).flat_map(|row| bits::unpack_words(row, width, k)).collect()
    };
    let scales = parts.raw("weight_scale", format.scale.dtype, &[&[n, groups]])?;
    if parts.find("weight_shape").is_some() {
        let shape = parts.bytes("weight_shape", PartType::I64, &[&[2]])?;
        let accepted: Vec<u8> = [n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect();
        if shape != accepted {
            return Err(Error::invalid(format!("pack-quantized: part `weight_shape` is not the accepted [{n}, {k}]")));
        }
    }
    let zeros = match format.zero {
        Zero::Int(_) => {
            let height = bits::words_for(n, width);
            let columns = transpose(&parts.words("weight_zero_point", &[height, groups])?, height, groups);
            let zeros: Vec<u8> =
                columns.chunks_exact(height).flat_map(|column| bits::unpack_words(column, width, n)).collect();
            transpose(&zeros, groups, n).into_iter().map(|zero| zero as u32).collect()
        }
        _ => vec![],
    };
    let order = match parts.find("weight_g_idx") {
        Some(_) => Some(parts.words("weight_g_idx", &[k])?).filter(|order| *order != trivial_order(format, k)),
        None => None,
    };
    let q = matrix(format, n, k, codes, scales, zeros, order);
    q.check()?;
    Ok(q)
}

fn byte_faults(format: &Format) -> Vec<String> {
    let mut faults = vec![];
    if !matches!(format.code, Code::Int { bits: 8, signed: true } | Code::Float(DType::E4m3fn)) {
        faults.push(format!("one byte per code of {:?}; accepted are signed 8-bit integers and E4M3", format.code));
    }
    if format.zero != Zero::None {
        faults.push(format!("one byte per code with {:?}; accepted is no zero", format.zero));
    }
    if !matches!(format.scale, Scale { dtype: DType::F16 | DType::Bf16 | DType::F32, outer: None }) {
        faults.push(format!("one byte per code with {:?}; accepted are one-level F16, Bf16 and F32", format.scale));
    }
    faults
}

fn check_bytes(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    faults.extend(byte_faults(format));
    faults.extend(group_faults(format, k));
    faults
}

fn pack_bytes(q: &Quantized, scale_name: &'static str) -> Result<Vec<Part>> {
    refuse(check_bytes(&q.format, q.n, q.k))?;
    q.check()?;
    if q.order.is_some() {
        return Err(Error::invalid("one byte per code: there are no group indices"));
    }
    let (rows, columns) = q.format.granularity.grid(q.n, q.k);
    let grid = [rows, columns];
    let shape: &[usize] = if q.format.granularity == Granularity::Tensor { &[1] } else { &grid };
    Ok(vec![
        Part::of_bytes("weight", byte_type(&q.format), &[q.n, q.k], q.codes.clone()),
        Part::of_raw(scale_name, q.format.scale.dtype, shape, &q.scales),
    ])
}

fn byte_type(format: &Format) -> PartType {
    match format.code {
        Code::Float(dtype) => PartType::of(dtype),
        _ => PartType::I8,
    }
}

fn unpack_bytes(format: &Format, n: usize, k: usize, parts: &[Part], scale_name: &str) -> Result<Quantized> {
    refuse(check_bytes(format, n, k))?;
    let parts = Parts::new(format.container.name, parts);
    let codes = parts.bytes("weight", byte_type(format), &[&[n, k]])?.to_vec();
    let (rows, columns) = format.granularity.grid(n, k);
    // One scale is written as [1], as [1, 1] or as a scalar; one per row with or without its 1.
    let grid: &[usize] = &[rows, columns];
    let shapes: &[&[usize]] = match format.granularity {
        Granularity::Tensor => &[&[1], grid, &[]],
        Granularity::Channel => &[grid, &[n]],
        Granularity::Group(_) | Granularity::Block { .. } => &[grid],
    };
    let scales = parts.raw(scale_name, format.scale.dtype, shapes)?;
    let q = matrix(format, n, k, codes, scales, vec![], None);
    q.check()?;
    Ok(q)
}
