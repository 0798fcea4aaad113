//! The plain container: every part of a matrix as a flat array, for every format.
//!
//! ```text
//! codes        u8 [n, ceil(k * bits / 8)]   each row a bit stream, least significant bit first, rows begin on a byte
//! scales       [granules n, granules k]     of the scale's type (E8m0 as bytes)
//! outer        [count]                      second level, where there is one
//! zeros        [granules n, granules k]     bytes for integers, else of the zero's type
//! zeros_outer  [count]                      second level of offsets, where there is one
//! scale_offset f32 [1]                      where scales are under the dynamic map
//! order        i32 [k]                      group of each column, where groups are not in order
//! ```

use super::part::Parts;
use super::{Container, Format, OuterRule, Part, PartType, Quantized, Zero, bits};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The container.
pub static PLAIN: Container = Container { name: "plain", pack, unpack, check: Format::shape_faults };

fn pack(q: &Quantized) -> Result<Vec<Part>> {
    q.check()?;
    let Format { code, granularity, zero, scale, .. } = q.format;
    let (rows, columns) = granularity.grid(q.n, q.k);
    let width = bits::bytes_for(q.k, code.bits());
    let codes = q.codes.chunks_exact(q.k).flat_map(|row| bits::pack_bytes(row, code.bits())).collect();
    let mut parts = vec![
        Part::of_bytes("codes", PartType::U8, &[q.n, width], codes),
        Part::of_raw("scales", scale.dtype, &[rows, columns], &q.scales),
    ];
    if let Some(outer) = scale.outer {
        parts.push(Part::of_raw("outer", outer.dtype, &[q.outer.len()], &q.outer));
        if outer.rule == OuterRule::DynamicMap {
            parts.push(Part::of_raw("scale_offset", DType::F32, &[1], &[q.scale_offset.to_bits()]));
        }
    }
    if let Some(dtype) = zero_type(zero) {
        parts.push(Part::of_raw("zeros", dtype, &[rows, columns], &q.zeros));
    }
    if let Zero::Offset { scale: super::Scale { outer: Some(outer), .. }, .. } = zero {
        parts.push(Part::of_raw("zeros_outer", outer.dtype, &[q.zeros_outer.len()], &q.zeros_outer));
    }
    if let Some(order) = &q.order {
        parts.push(Part::of_words("order", &[q.k], order));
    }
    Ok(parts)
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    let faults = format.shape_faults(n, k);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let parts = Parts::new(PLAIN.name, parts);
    let Format { code, granularity, zero, scale, .. } = *format;
    let (rows, columns) = granularity.grid(n, k);
    let grid: &[usize] = &[rows, columns];
    let width = bits::bytes_for(k, code.bits());
    let rows_of_codes = parts.bytes("codes", PartType::U8, &[&[n, width]])?;
    let mut q = Quantized {
        format: *format,
        n,
        k,
        codes: rows_of_codes.chunks_exact(width).flat_map(|row| bits::unpack_bytes(row, code.bits(), k)).collect(),
        scales: parts.raw("scales", scale.dtype, &[grid])?,
        outer: vec![],
        zeros: vec![],
        zeros_outer: vec![],
        scale_offset: 0.0,
        order: None,
    };
    if let Some(outer) = scale.outer {
        q.outer = parts.raw("outer", outer.dtype, &[&[scale.outer_len(granularity, n, k)]])?;
        if outer.rule == OuterRule::DynamicMap {
            q.scale_offset = f32::from_bits(parts.raw("scale_offset", DType::F32, &[&[1]])?[0]);
        }
    }
    if let Some(dtype) = zero_type(zero) {
        q.zeros = parts.raw("zeros", dtype, &[grid])?;
    }
    if let Zero::Offset { scale: how @ super::Scale { outer: Some(outer), .. }, .. } = zero {
        q.zeros_outer = parts.raw("zeros_outer", outer.dtype, &[&[how.outer_len(granularity, n, k)]])?;
    }
    if parts.find("order").is_some() {
        q.order = Some(parts.words("order", &[k])?);
    }
    q.check()?;
    Ok(q)
}

/// Type of the numbers in `zeros`, where there are any.
fn zero_type(zero: Zero) -> Option<DType> {
    match zero {
        Zero::None | Zero::Bias(_) => None,
        Zero::Int(_) => Some(DType::U8),
        Zero::Float(dtype) => Some(dtype),
        Zero::Offset { scale, .. } => Some(scale.dtype),
    }
}
