//! AMD GPUs: each device is one entry of [`AMD_DEVICES`].
//!
//! Always holds: what a kernel may rely on is in [`Caps`]; what only the HIP emitter asks (instruction names that differ
//! between generations) is in [`AmdGpu`].

use super::{Caps, Feature, Features};

/// An AMD GPU, or one die of it where the driver shows each die as a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AmdGpu {
    /// What kernels are made for.
    pub caps: Caps,
    /// The instruction set, as `--offload-arch` takes it.
    pub gfx: &'static str,
    /// Full product names.
    pub models: &'static str,
    /// Compute units.
    pub compute_units: u32,
    /// Dies that have an L2 cache of their own; workgroups go to them in turn.
    pub dies: u32,
    /// The instruction for four byte products.
    pub dot4: Dot4,
    /// The 8-bit floats that the hardware converts.
    pub float8: Float8,
    /// Memory bandwidth in GB/s.
    pub memory_gbps: f64,
    /// Dense matrix throughput in TFLOP/s: f16, then 8-bit floats (0 where it has none), then int8 in TOP/s.
    pub matrix_tops: [f64; 3],
}

/// How a generation spells `dot4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dot4 {
    /// `v_dot4_i32_i8`: both signed.
    Sdot4,
    /// `v_dot4_i32_iu8`: a sign for each operand.
    Sudot4,
}

/// Which 8-bit floats the conversion and matrix instructions take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8 {
    /// None.
    None,
    /// E4M3 and E5M2 with one zero and a bias one higher.
    Fnuz,
    /// E4M3 and E5M2 as the Open Compute Project says.
    Ocp,
}

const COMMON: &[Feature] = &[
    Feature::Workgroups,
    Feature::Subgroups,
    Feature::Atomics,
    Feature::F16Arithmetic,
    Feature::Bf16Arithmetic,
    Feature::Fma,
    Feature::Dot4SignedSigned,
    Feature::Dot4UnsignedSigned,
    Feature::PermuteBytes,
    Feature::F16Convert,
];

const fn caps(name: &'static str, subgroup: u32, max_shared_bytes: u32) -> Caps {
    Caps {
        name,
        features: Features::of(COMMON),
        subgroup,
        max_workgroup: 1024,
        max_shared_bytes,
        vector_bytes: 16,
        // A lane addresses 256 vector registers of 4 bytes; in units of `vector_bytes` that is 64.
        vector_registers: 64,
        buffer_align: 256,
    }
}

/// Every AMD device that kernels can be made for.
///
/// Sources: AMD Instinct MI200, MI300X, MI300A, MI350 and Radeon RX 7900 XTX, RX 9070 XT data sheets (units, bandwidth,
/// peaks); the CDNA 2, CDNA 3, CDNA 4, RDNA 3 and RDNA 4 instruction set manuals (waves, LDS, instructions).
pub const AMD_DEVICES: &[AmdGpu] = &[
    AmdGpu {
        caps: caps("mi300x", 64, 64 << 10),
        gfx: "gfx942",
        models: "AMD Instinct MI300X",
        compute_units: 304,
        dies: 8,
        dot4: Dot4::Sdot4,
        float8: Float8::Fnuz,
        memory_gbps: 5300.0,
        matrix_tops: [1307.4, 2614.9, 2614.9],
    },
    AmdGpu {
        caps: caps("mi300a", 64, 64 << 10),
        gfx: "gfx942",
        models: "AMD Instinct MI300A",
        compute_units: 228,
        dies: 6,
        dot4: Dot4::Sdot4,
        float8: Float8::Fnuz,
        memory_gbps: 5300.0,
        matrix_tops: [980.6, 1961.2, 1961.2],
    },
    AmdGpu {
        caps: caps("mi250", 64, 64 << 10),
        gfx: "gfx90a",
        models: "AMD Instinct MI250, one of its two dies",
        compute_units: 104,
        dies: 1,
        dot4: Dot4::Sdot4,
        float8: Float8::None,
        memory_gbps: 1638.4,
        matrix_tops: [181.0, 0.0, 181.0],
    },
    AmdGpu {
        caps: caps("mi350x", 64, 160 << 10),
        gfx: "gfx950",
        models: "AMD Instinct MI350X",
        compute_units: 256,
        dies: 8,
        dot4: Dot4::Sdot4,
        float8: Float8::Ocp,
        memory_gbps: 8000.0,
        matrix_tops: [2306.9, 4613.7, 4613.7],
    },
    AmdGpu {
        caps: caps("rx7900xtx", 32, 64 << 10),
        gfx: "gfx1100",
        models: "AMD Radeon RX 7900 XTX",
        compute_units: 96,
        dies: 1,
        dot4: Dot4::Sudot4,
        float8: Float8::None,
        memory_gbps: 960.0,
        matrix_tops: [122.8, 0.0, 122.8],
    },
    AmdGpu {
        caps: caps("rx9070xt", 32, 64 << 10),
        gfx: "gfx1201",
        models: "AMD Radeon RX 9070 XT",
        compute_units: 64,
        dies: 1,
        dot4: Dot4::Sudot4,
        float8: Float8::Ocp,
        memory_gbps: 640.0,
        matrix_tops: [194.6, 389.0, 389.0],
    },
];
