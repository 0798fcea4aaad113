//! CPUs, by named level. The host's level is detected by `target::cpu`.

use super::{Caps, Feature, Features};

const fn level(name: &'static str, features: &[Feature], vector_registers: u32) -> Caps {
    Caps {
        name,
        features: Features::of(features),
        subgroup: 1,
        max_workgroup: 1,
        max_shared_bytes: 16 << 20,
        vector_bytes: 16,
        vector_registers,
        buffer_align: 64,
        matrix: &[],
        gpu: None,
    }
}

/// Every CPU level that kernels can be generated for, weakest first within an architecture.
pub const CPU_LEVELS: &[Caps] = &[
    level("x86-64-v2", &[Feature::PermuteBytes], 16),
    level("x86-64-v3", &[Feature::PermuteBytes, Feature::Fma], 16),
    level("x86-64-v4", &[Feature::PermuteBytes, Feature::Fma], 16),
    level("x86-64-v4+vnni", &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4UnsignedSigned], 16),
    level("aarch64", &[Feature::PermuteBytes, Feature::Fma], 32),
    level("aarch64+dotprod", &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4SignedSigned], 32),
    level(
        "aarch64+i8mm",
        &[Feature::PermuteBytes, Feature::Fma, Feature::Dot4SignedSigned, Feature::Dot4UnsignedSigned],
        32,
    ),
    level("riscv64", &[Feature::Fma], 32),
];
