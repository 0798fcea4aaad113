//! bitsandbytes NF4: blocks of 64 weights in row-major order, a code book, absolute maxima as scales.
//!
//! ```text
//! weight            u8 [n * k / 2, 1]  byte j holds weight 2 j (high nibble) and 2 j + 1 (low)
//! absmax            f32 [blocks]; u8 [blocks] where double-quantized
//! quant_map         f32 [16]           the code book
//! nested_absmax     f32 [ceil(blocks / 256)]   double-quantized only, like the next two
//! nested_quant_map  f32 [256]          the signed dynamic map
//! nested_offset     f32 [1]            in files it stands in the JSON of `quant_state.bitsandbytes__nf4`
//! ```
//!
//! `w = absmax * book[q]`; double-quantized, `absmax = map[u8] * nested_absmax[block / 256] + nested_offset`.
//! A row must be whole blocks, so that blocks are groups. Source: bitsandbytes `functional.py` @95f9af30.

use super::gptq::{matrix, refuse};
use super::part::Parts;
use super::quantized::DYNAMIC_MAP;
use super::{
    Code, Container, Format, Granularity, Named, Outer, OuterRule, Part, PartType, Quantized, Scale, Span, Zero, tables,
};
use crate::dtype::DType;
use crate::error::{Error, Result};

static NF4: Container = Container { name: "bnb-nf4", pack, unpack, check };

const fn format(scale: Scale) -> Format {
    Format {
        code: Code::Table(&tables::NF4),
        granularity: Granularity::Group(64),
        zero: Zero::None,
        scale,
        container: &NF4,
    }
}

/// Single quantization.
pub(super) const SINGLE: Named = Named {
    name: "nf4",
    format: format(Scale::of(DType::F32)),
    summary: "bitsandbytes NF4: code book, f32 scale per 64 weights, 4.5 bits",
    encode: None,
};
/// Double quantization.
pub(super) const DOUBLE: Named = Named {
    name: "nf4-dq",
    format: format(Scale {
        dtype: DType::U8,
        outer: Some(Outer { dtype: DType::F32, span: Span::Flat(256), rule: OuterRule::DynamicMap }),
    }),
    summary: "bitsandbytes NF4 with quantized scales, 4.127 bits",
    encode: None,
};

fn check(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    if *format != SINGLE.format && *format != DOUBLE.format {
        faults.push(format!("bitsandbytes NF4 holds two formats; found {:?} beside it", format.code));
    }
    if !k.is_multiple_of(64) {
        faults.push(format!("bitsandbytes NF4: K is {k}; accepted are multiples of 64"));
    }
    faults
}

fn pack(q: &Quantized) -> Result<Vec<Part>> {
    refuse(check(&q.format, q.n, q.k))?;
    q.check()?;
    if q.order.is_some() {
        return Err(Error::invalid("bitsandbytes NF4 has no group indices"));
    }
    let bytes = q.codes.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let bits_of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let mut parts = vec![
        Part::of_bytes("weight", PartType::U8, &[q.codes.len() / 2, 1], bytes),
        Part::of_raw("absmax", q.format.scale.dtype, &[q.scales.len()], &q.scales),
        Part::of_raw("quant_map", DType::F32, &[16], &bits_of(&tables::NF4.values)),
    ];
    if q.format.scale.outer.is_some() {
        parts.push(Part::of_raw("nested_absmax", DType::F32, &[q.outer.len()], &q.outer));
        parts.push(Part::of_raw("nested_quant_map", DType::F32, &[256], &bits_of(&*DYNAMIC_MAP)));
        parts.push(Part::of_raw("nested_offset", DType::F32, &[1], &[q.scale_offset.to_bits()]));
    }
    Ok(parts)
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    refuse(check(format, n, k))?;
    let parts = Parts::new(NF4.name, parts);
    let blocks = n * k / 64;
    let bytes = parts.bytes("weight", PartType::U8, &[&[n * k / 2, 1]])?;
    let codes = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
    let scales = parts.raw("absmax", format.scale.dtype, &[&[blocks]])?;
    same_map(&parts, "quant_map", &tables::NF4.values)?;
    let mut q = matrix(format, n, k, codes, scales, vec![], None);
    if format.scale.outer.is_some() {
        q.outer = parts.raw("nested_absmax", DType::F32, &[&[blocks.div_ceil(256)]])?;
        same_map(&parts, "nested_quant_map", &*DYNAMIC_MAP)?;
        q.scale_offset = f32::from_bits(parts.raw("nested_offset", DType::F32, &[&[1]])?[0]);
    }
    q.check()?;
    Ok(q)
}

/// Refuses a map that is not the one the format means.
fn same_map(parts: &Parts<'_>, name: &str, accepted: &[f32]) -> Result<()> {
    let raw = parts.raw(name, DType::F32, &[&[accepted.len()]])?;
    match raw.iter().zip(accepted).position(|(raw, accepted)| f32::from_bits(*raw) != *accepted) {
        None => Ok(()),
        Some(at) => Err(Error::invalid(format!(
            "bitsandbytes NF4: part `{name}` has {} at {at}; accepted is {}",
            f32::from_bits(raw[at]),
            accepted[at]
        ))),
    }
}
