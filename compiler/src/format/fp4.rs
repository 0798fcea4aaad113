//! compressed-tensors FP4: `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
//!
//! ```text
//! weight_packed        u8 [n, k / 2]         byte j holds weight 2 j (low nibble) and 2 j + 1 (high)
//! weight_scale         f8_e4m3 [n, k / 16]   NVFP4;  u8 (E8M0) [n, k / 32] in MXFP4
//! weight_global_scale  f32 [1]               NVFP4 only; it divides: w = e2m1 * scale / global
//! ```
//!
//! GGUF orders the nibbles of its MXFP4 otherwise. Source: compressed-tensors `compressors/*` @ac8e2ba8.

use super::gptq::{matrix, refuse};
use super::part::Parts;
use super::{
    Code, Container, Format, Granularity, Named, Outer, OuterRule, Part, PartType, Quantized, Scale, Span, Zero,
};
use crate::dtype::DType;
use crate::error::{Error, Result};

static NVFP4: Container = Container { name: "ct-nvfp4-pack-quantized", pack, unpack, check };
static MXFP4: Container = Container { name: "ct-mxfp4-pack-quantized", pack, unpack, check };

/// NVFP4.
pub(super) const NVFP4_NAMED: Named = Named {
    name: "nvfp4",
    format: Format {
        code: Code::Float(DType::E2m1),
        granularity: Granularity::Group(16),
        zero: Zero::None,
        scale: Scale {
            dtype: DType::E4m3fn,
            outer: Some(Outer { dtype: DType::F32, span: Span::Tensor, rule: OuterRule::Divide }),
        },
        container: &NVFP4,
    },
    summary: "compressed-tensors NVFP4: FP4, E4M3 scale per 16 weights, one f32, 4.5 bits",
    encode: None,
};
/// MXFP4 in compressed-tensors' nibble order.
pub(super) const MXFP4_NAMED: Named = Named {
    name: "ct-mxfp4",
    format: Format {
        code: Code::Float(DType::E2m1),
        granularity: Granularity::Group(32),
        zero: Zero::None,
        scale: Scale::of(DType::E8m0),
        container: &MXFP4,
    },
    summary: "compressed-tensors MXFP4: FP4, power-of-two scale per 32 weights, 4.25 bits",
    encode: None,
};

fn check(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    if *format != NVFP4_NAMED.format && *format != MXFP4_NAMED.format {
        faults.push(format!("{} holds one format; found {:?} beside it", format.container.name, format.code));
    }
    if let Granularity::Group(g) = format.granularity
        && g > 0
        && !k.is_multiple_of(g as usize)
    {
        faults.push(format!("{}: K is {k}; accepted are multiples of {g}", format.container.name));
    }
    faults
}

fn pack(q: &Quantized) -> Result<Vec<Part>> {
    refuse(check(&q.format, q.n, q.k))?;
    q.check()?;
    if q.order.is_some() {
        return Err(Error::invalid("FP4 has no group indices"));
    }
    let groups = q.format.granularity.grid(q.n, q.k).1;
    let mut parts = vec![
        Part::of_bytes("weight_packed", PartType::U8, &[q.n, q.k / 2], pack_pairs(&q.codes)),
        Part::of_raw("weight_scale", q.format.scale.dtype, &[q.n, groups], &q.scales),
    ];
    if q.format.scale.outer.is_some() {
        parts.push(Part::of_raw("weight_global_scale", DType::F32, &[1], &q.outer));
    }
    Ok(parts)
}

fn pack_pairs(codes: &[u8]) -> Vec<u8> {
    codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect()
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    refuse(check(format, n, k))?;
    let parts = Parts::new(format.container.name, parts);
    let groups = format.granularity.grid(n, k).1;
    let bytes = parts.bytes("weight_packed", PartType::U8, &[&[n, k / 2]])?;
    let codes = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
    let scales = parts.raw("weight_scale", format.scale.dtype, &[&[n, groups]])?;
    let mut q = matrix(format, n, k, codes, scales, vec![], None);
    if format.scale.outer.is_some() {
        q.outer = parts.raw("weight_global_scale", DType::F32, &[&[1]])?;
    }
    q.check()?;
    Ok(q)
}
