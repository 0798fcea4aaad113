//! WebGPU: the limits that every implementation must have (the specification's default limits).

use super::{Caps, Feature, Features};

const PLAIN: Caps = Caps {
    name: "webgpu",
    features: Features::of(&[Feature::Workgroups, Feature::Atomics]),
    // WGSL does not fix a subgroup's width, so a kernel cannot count on one.
    subgroup: 1,
    max_workgroup: 256,
    max_shared_bytes: 16 << 10,
    vector_bytes: 16,
    vector_registers: 64,
    buffer_align: 64,
    // Every page may bind 128 MiB, and ask for more. Offsets have 31 bits.
    max_buffer_bytes: super::INDEX_31,
    matrix: &[],
    gpu: None,
};

const PACKED: Features = PLAIN.features.with(Feature::Dot4SignedSigned).with(Feature::Dot4UnsignedSigned);

/// The forms of WGSL that kernels can be generated in: what every browser takes, and with the language extension
/// `packed_4x8_integer_dot_product`.
pub const WEBGPU: &[Caps] = &[PLAIN, Caps { name: "webgpu-packed", features: PACKED, ..PLAIN }];
