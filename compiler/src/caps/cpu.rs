//! CPUs, by named level. The host's level is detected by `target::cpu`.

use super::{Caps, Feature, Features};

const fn level(name: &'static str, features: &[Feature], vector_bytes: u32, vector_registers: u32) -> Caps {
    Caps {
        name,
        features: Features::of(features).with(Feature::Subnormals),
        subgroup: 1,
        max_workgroup: 1,
        max_shared_bytes: 16 << 20,
        vector_bytes,
        vector_registers,
        buffer_align: 64,
        max_buffer_bytes: u64::MAX,
        matrix: &[],
        gpu: None,
    }
}

const V2: &[Feature] = &[Feature::PermuteBytes];
const V3: &[Feature] = &[Feature::PermuteBytes, Feature::Fma, Feature::F16Convert, Feature::Dot2];
const V3_VNNI: &[Feature] =
    &[Feature::PermuteBytes, Feature::Fma, Feature::F16Convert, Feature::Dot2, Feature::Dot4UnsignedSigned];
/// Every processor but one (Cooper Lake) that multiplies bf16 has long tables (VBMI), too.
const V4_BF16: &[Feature] = &[
    Feature::PermuteBytes,
    Feature::PermuteLong,
    Feature::Fma,
    Feature::F16Convert,
    Feature::Dot2,
    Feature::Dot2Bf16,
    Feature::Dot4UnsignedSigned,
];
/// Cranelift has neither a conversion of binary16 nor products of words in pairs.
const CLIF: &[Feature] = &[Feature::PermuteBytes, Feature::Fma];
const CLIF_VNNI: &[Feature] = &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4UnsignedSigned];

/// Every CPU level that kernels can be generated for, weakest first within an architecture. From `x86-64-v3` on the wide
/// emitter makes x86-64 code, with vectors of 32 bytes (AVX2) or 64 (AVX-512); a name that ends in `+clif` takes
/// Cranelift and its vectors of 16 bytes instead.
pub const CPU_LEVELS: &[Caps] = &[
    level("x86-64-v2", V2, 16, 16),
    level("x86-64-v3", V3, 32, 16),
    level("x86-64-v3+vnni", V3_VNNI, 32, 16),
    level("x86-64-v4", V3, 64, 32),
    level("x86-64-v4+vnni", V3_VNNI, 64, 32),
    level("x86-64-v4+vnni+bf16", V4_BF16, 64, 32),
    level("x86-64-v3+clif", CLIF, 16, 16),
    level("x86-64-v3+vnni+clif", CLIF_VNNI, 16, 16),
    level("x86-64-v4+clif", CLIF, 16, 16),
    level("x86-64-v4+vnni+clif", CLIF_VNNI, 16, 16),
    level("aarch64", &[Feature::PermuteBytes, Feature::Fma], 16, 32),
    level("aarch64+dotprod", &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4SignedSigned], 16, 32),
    level(
        "aarch64+i8mm",
        &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4SignedSigned, Feature::Dot4UnsignedSigned],
        16,
        32,
    ),
    level("riscv64", &[Feature::Fma], 16, 32),
];
