//! The table of named formats and of format families: the one list that a new format enters.
//!
//! Reads nothing; makes `Format::ALL`. Always holds: names are unique, lower case, and each parses to its own format.

use super::encode::Encoder;
use super::grammar::Family;
use super::{
    AWQ, CT_PACK, CT_PLAIN, Code, Format, GPTQ_V1, GPTQ_V2, Granularity, HF_FP8, PLAIN, Scale, Zero, awq, ct, fp4,
    gguf, gptq, nf4,
};
use crate::dtype::DType;

/// A format that has a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Its name: `q4_k`.
    pub name: &'static str,
    /// What the name stands for.
    pub format: Format,
    /// One line for lists and reports.
    pub summary: &'static str,
    /// How its own tool quantizes, where that is not round to nearest.
    pub encode: Option<Encoder>,
}

/// Families of names with parameters; the plain grammar is what remains.
pub(super) const FAMILIES: &[&Family] = &[&gptq::FAMILY, &awq::FAMILY, &ct::FAMILY];

impl Format {
    /// Every named format, and representatives of those that the grammar spells.
    pub const ALL: &'static [Named] = &[
        gguf::named::<gguf::Q4_0>(),
        gguf::named::<gguf::Q4_1>(),
        gguf::named::<gguf::Q5_0>(),
        gguf::named::<gguf::Q5_1>(),
        gguf::named::<gguf::Q8_0>(),
        gguf::named::<gguf::Q2K>(),
        gguf::named::<gguf::Q3K>(),
        gguf::named::<gguf::Q4K>(),
        gguf::named::<gguf::Q5K>(),
        gguf::named::<gguf::Q6K>(),
        gguf::named::<gguf::Iq4Nl>(),
        gguf::named::<gguf::Tq1_0>(),
        gguf::named::<gguf::Tq2_0>(),
        gguf::named::<gguf::Q2_0>(),
        gguf::named::<gguf::Mxfp4>(),
        fp4::NVFP4_NAMED,
        fp4::MXFP4_NAMED,
        nf4::SINGLE,
        nf4::DOUBLE,
        entry(
            "gptq-int2-g64",
            unsigned(2),
            Granularity::Group(64),
            Zero::Bias(2),
            DType::F16,
            &GPTQ_V1,
            "GPTQ 2-bit, symmetric, groups of 64",
        ),
        entry(
            "gptq-int3-g128",
            unsigned(3),
            Granularity::Group(128),
            Zero::Bias(4),
            DType::F16,
            &GPTQ_V1,
            "GPTQ 3-bit, symmetric, groups of 128",
        ),
        entry(
            "gptq-int4-g128",
            unsigned(4),
            Granularity::Group(128),
            Zero::Bias(8),
            DType::F16,
            &GPTQ_V1,
            "GPTQ 4-bit, symmetric, groups of 128",
        ),
        entry(
            "gptq-int8-g128",
            unsigned(8),
            Granularity::Group(128),
            Zero::Bias(128),
            DType::F16,
            &GPTQ_V1,
            "GPTQ 8-bit, symmetric, groups of 128",
        ),
        entry(
            "gptq-int4-g128-asym",
            unsigned(4),
            Granularity::Group(128),
            Zero::Int(4),
            DType::F16,
            &GPTQ_V1,
            "GPTQ 4-bit with zeros, groups of 128",
        ),
        entry(
            "gptq-int4-g128-asym-v2",
            unsigned(4),
            Granularity::Group(128),
            Zero::Int(4),
            DType::F16,
            &GPTQ_V2,
            "GPTQ 4-bit with zeros as they are, groups of 128",
        ),
        entry(
            "awq-g128",
            unsigned(4),
            Granularity::Group(128),
            Zero::Int(4),
            DType::F16,
            &AWQ,
            "AWQ gemm, 4-bit with zeros, groups of 128",
        ),
        entry(
            "ct-int3-g128",
            unsigned(3),
            Granularity::Group(128),
            Zero::Bias(4),
            DType::F16,
            &CT_PACK,
            "compressed-tensors W3A16, groups of 128",
        ),
        entry(
            "ct-int4-g128",
            unsigned(4),
            Granularity::Group(128),
            Zero::Bias(8),
            DType::F16,
            &CT_PACK,
            "compressed-tensors W4A16, groups of 128",
        ),
        entry(
            "ct-int4-g128-asym",
            unsigned(4),
            Granularity::Group(128),
            Zero::Int(4),
            DType::F16,
            &CT_PACK,
            "compressed-tensors W4A16_ASYM, groups of 128",
        ),
        entry(
            "ct-int8-plain-channel-f32",
            SIGNED8,
            Granularity::Channel,
            Zero::None,
            DType::F32,
            &CT_PLAIN,
            "compressed-tensors INT8, scale per row",
        ),
        entry(
            "ct-fp8-channel",
            FP8,
            Granularity::Channel,
            Zero::None,
            DType::F32,
            &CT_PLAIN,
            "compressed-tensors FP8, scale per row",
        ),
        entry(
            "ct-fp8-tensor",
            FP8,
            Granularity::Tensor,
            Zero::None,
            DType::F32,
            &CT_PLAIN,
            "compressed-tensors FP8, one scale",
        ),
        entry(
            "hf-fp8-block128",
            FP8,
            Granularity::Block { n: 128, k: 128 },
            Zero::None,
            DType::F32,
            &HF_FP8,
            "DeepSeek FP8, scale per 128 by 128 block",
        ),
        entry(
            "int4-g64-asym",
            unsigned(4),
            Granularity::Group(64),
            Zero::Int(4),
            DType::F16,
            &PLAIN,
            "4-bit with zeros, groups of 64",
        ),
        entry(
            "int4-g128",
            Code::Int { bits: 4, signed: true },
            Granularity::Group(128),
            Zero::None,
            DType::F16,
            &PLAIN,
            "4-bit two's complement, groups of 128",
        ),
        entry(
            "int3-g128",
            Code::Int { bits: 3, signed: true },
            Granularity::Group(128),
            Zero::None,
            DType::F16,
            &PLAIN,
            "3-bit two's complement, groups of 128",
        ),
        entry(
            "int2-g64-asym",
            unsigned(2),
            Granularity::Group(64),
            Zero::Int(2),
            DType::F16,
            &PLAIN,
            "2-bit with zeros, groups of 64",
        ),
        entry(
            "int8-channel",
            SIGNED8,
            Granularity::Channel,
            Zero::None,
            DType::F16,
            &PLAIN,
            "8-bit two's complement, scale per row",
        ),
        entry("fp8e4m3-channel", FP8, Granularity::Channel, Zero::None, DType::F32, &PLAIN, "FP8 E4M3, scale per row"),
        entry("fp8e4m3-tensor", FP8, Granularity::Tensor, Zero::None, DType::F32, &PLAIN, "FP8 E4M3, one scale"),
        entry(
            "fp8e4m3-block128",
            FP8,
            Granularity::Block { n: 128, k: 128 },
            Zero::None,
            DType::F32,
            &PLAIN,
            "FP8 E4M3, scale per 128 by 128 block",
        ),
        entry(
            "fp4-g32-e8m0",
            Code::Float(DType::E2m1),
            Granularity::Group(32),
            Zero::None,
            DType::E8m0,
            &PLAIN,
            "FP4, power-of-two scale per 32 weights",
        ),
        entry(
            "ternary-g128",
            Code::Ternary,
            Granularity::Group(128),
            Zero::None,
            DType::F16,
            &PLAIN,
            "-1, 0, 1, groups of 128",
        ),
        entry(
            "binary-g128",
            Code::Binary,
            Granularity::Group(128),
            Zero::None,
            DType::F16,
            &PLAIN,
            "-1, 1, groups of 128",
        ),
        entry(
            "log4-g32",
            Code::Log { bits: 4 },
            Granularity::Group(32),
            Zero::None,
            DType::F16,
            &PLAIN,
            "signed powers of two, groups of 32",
        ),
    ];

    /// The named entry that this format equals.
    pub fn named(&self) -> Option<&'static Named> {
        Format::ALL.iter().find(|named| named.format == *self)
    }
}

const SIGNED8: Code = Code::Int { bits: 8, signed: true };
const FP8: Code = Code::Float(DType::E4m3fn);

const fn unsigned(bits: u8) -> Code {
    Code::Int { bits, signed: false }
}

/// An entry whose quantizer is round to nearest.
const fn entry(
    name: &'static str,
    code: Code,
    granularity: Granularity,
    zero: Zero,
    scale: DType,
    container: &'static super::Container,
    summary: &'static str,
) -> Named {
    let format = Format { code, granularity, zero, scale: Scale::of(scale), container };
    Named { name, format, summary, encode: None }
}
