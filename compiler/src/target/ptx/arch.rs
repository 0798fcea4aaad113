//! The architectures that PTX is written for: name, the PTX version to declare, what the hardware converts.

use crate::caps::{Caps, Feature, Features};

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// As `.target` and `ptxas -arch` spell it.
    pub name: &'static str,
    /// The least PTX version that has every instruction emitted for it; a driver takes it and all before its own.
    pub version: &'static str,
    /// Whether casts between FP8 (OCP) and f16 or `f32` are instructions.
    pub fp8_casts: bool,
    /// Devices of this architecture that `--device` knows by name.
    pub devices: &'static [&'static str],
    /// What such a device can do.
    pub caps: Caps,
}

const fn caps(name: &'static str, max_shared_bytes: u32) -> Caps {
    Caps {
        name,
        features: Features::of(&[
            Feature::Workgroups,
            Feature::Subgroups,
            Feature::Atomics,
            Feature::F16Arithmetic,
            Feature::Bf16Arithmetic,
            Feature::Fma,
            Feature::Dot4UnsignedSigned,
            Feature::Dot4SignedSigned,
            Feature::PermuteBytes,
            Feature::F16Convert,
        ]),
        subgroup: 32,
        max_workgroup: 1024,
        max_shared_bytes,
        vector_bytes: 16,
        vector_registers: 255,
        buffer_align: 256,
    }
}

/// Every architecture, oldest first.
pub const ARCHES: &[Arch] = &[
    Arch { name: "sm_80", version: "7.8", fp8_casts: false, devices: &["a100"], caps: caps("sm_80", 163 << 10) },
    Arch {
        name: "sm_86",
        version: "7.8",
        fp8_casts: false,
        devices: &["rtx3090", "a10"],
        caps: caps("sm_86", 99 << 10),
    },
    Arch {
        name: "sm_89",
        version: "8.4",
        fp8_casts: true,
        devices: &["l4", "l40s", "rtx4090"],
        caps: caps("sm_89", 99 << 10),
    },
    Arch {
        name: "sm_90a",
        version: "8.0",
        fp8_casts: true,
        devices: &["h100", "h200"],
        caps: caps("sm_90a", 227 << 10),
    },
    Arch { name: "sm_100a", version: "8.8", fp8_casts: true, devices: &["b200"], caps: caps("sm_100a", 227 << 10) },
    Arch { name: "sm_120a", version: "8.8", fp8_casts: true, devices: &["rtx5090"], caps: caps("sm_120a", 99 << 10) },
];
