//! AMD GPUs, by name: one constant each.
//!
//! Sources: the Instinct MI250, MI300X, MI300A, MI350X and Radeon RX 7900 XTX, RX 9070 XT data sheets (units, caches,
//! bandwidth, peaks); the CDNA 2, CDNA 3, CDNA 4, RDNA 3 and RDNA 4 instruction set manuals (waves, registers, LDS,
//! instructions); lane maps: AMD's matrix instruction calculator.
//!
//! Always holds: what a family may rely on is in [`Caps`]; what only the spelling of source needs is in [`AmdGpu`].

use super::{Caps, Feature, Features, Gpu, LaneMap, MmaShape, Peaks, RegisterUse};
use crate::dtype::DType;
use crate::dtype::DType::{Bf16, E4m3fn, E4m3fnuz, E5m2, E5m2fnuz, F16, F32, I8, I32};
use crate::layout::{Bit, Dim, Layout};

/// An AMD GPU: what kernels are made for, and how its instructions are spelled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AmdGpu {
    /// What kernels are made for.
    pub caps: Caps,
    /// Dies with an L2 cache of their own; workgroups go to them in turn.
    pub dies: u32,
    /// The instruction for four byte products.
    pub dot4: Dot4,
    /// The 8-bit floats that the hardware converts.
    pub float8: Float8,
    /// The matrix instructions.
    pub matrix: Matrix,
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

/// How a generation spells matrix instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// `v_mfma_*`.
    Mfma,
    /// `v_wmma_*` whose two halves of a wave hold the same operands; kernels hold half each, and exchange.
    WmmaTwice,
    /// `v_wmma_*` whose lanes each hold their own part.
    Wmma,
}

const fn row(index: u8) -> Bit {
    Bit::new(Dim::Row, index)
}

const fn column(index: u8) -> Bit {
    Bit::new(Dim::Column, index)
}

/// Sums of a 16 x 16 MFMA: lane l holds rows 4 (l / 16) and the three after it, column l % 16.
const SUMS_64: Layout = Layout::constant(&[row(0), row(1), column(0), column(1), column(2), column(3), row(2), row(3)]);

/// 16 x 16 MFMA with four elements of K in a lane: lane l holds row l % 16, columns 4 (l / 16) and after.
const MFMA_4: LaneMap = LaneMap {
    a: Layout::constant(&[column(0), column(1), row(0), row(1), row(2), row(3), column(2), column(3)]),
    b: Layout::constant(&[row(0), row(1), column(0), column(1), column(2), column(3), row(2), row(3)]),
    acc: SUMS_64,
};

/// The same with eight.
const MFMA_8: LaneMap = LaneMap {
    a: Layout::constant(&[column(0), column(1), column(2), row(0), row(1), row(2), row(3), column(3), column(4)]),
    b: Layout::constant(&[row(0), row(1), row(2), column(0), column(1), column(2), column(3), row(3), row(4)]),
    acc: SUMS_64,
};

/// The same with sixteen.
const MFMA_16: LaneMap = LaneMap {
    a: Layout::constant(&[
        column(0),
        column(1),
        column(2),
        column(3),
        row(0),
        row(1),
        row(2),
        row(3),
        column(4),
        column(5),
    ]),
    b: Layout::constant(&[row(0), row(1), row(2), row(3), column(0), column(1), column(2), column(3), row(4), row(5)]),
    acc: SUMS_64,
};

/// WMMA: lane l holds row l % 16, columns 8 (l / 16) and the seven after.
const WMMA_OPERANDS: (Layout, Layout) = (
    Layout::constant(&[column(0), column(1), column(2), row(0), row(1), row(2), row(3), column(3)]),
    Layout::constant(&[row(0), row(1), row(2), column(0), column(1), column(2), column(3), row(3)]),
);

/// Sums on RDNA 3: lane l holds every second row from l / 16, column l % 16.
const WMMA_11: LaneMap = LaneMap {
    a: WMMA_OPERANDS.0,
    b: WMMA_OPERANDS.1,
    acc: Layout::constant(&[row(1), row(2), row(3), column(0), column(1), column(2), column(3), row(0)]),
};

/// Sums on RDNA 4: lane l holds rows 8 (l / 16) and the seven after, column l % 16.
const WMMA_12: LaneMap = LaneMap {
    a: WMMA_OPERANDS.0,
    b: WMMA_OPERANDS.1,
    acc: Layout::constant(&[row(0), row(1), row(2), column(0), column(1), column(2), column(3), row(3)]),
};

const fn shape(k: u32, a: DType, b: DType, acc: DType, lanes: u32, map: LaneMap) -> MmaShape {
    MmaShape { m: 16, n: 16, k, a, b, acc, lanes, map: Some(map) }
}

const CDNA2: &[MmaShape] =
    &[shape(16, F16, F16, F32, 64, MFMA_4), shape(16, Bf16, Bf16, F32, 64, MFMA_4), shape(16, I8, I8, I32, 64, MFMA_4)];

const CDNA3: &[MmaShape] = &[
    shape(16, F16, F16, F32, 64, MFMA_4),
    shape(16, Bf16, Bf16, F32, 64, MFMA_4),
    shape(32, I8, I8, I32, 64, MFMA_8),
    shape(32, E4m3fnuz, E4m3fnuz, F32, 64, MFMA_8),
    shape(32, E4m3fnuz, E5m2fnuz, F32, 64, MFMA_8),
    shape(32, E5m2fnuz, E4m3fnuz, F32, 64, MFMA_8),
    shape(32, E5m2fnuz, E5m2fnuz, F32, 64, MFMA_8),
];

const CDNA4: &[MmaShape] = &[
    shape(32, F16, F16, F32, 64, MFMA_8),
    shape(32, Bf16, Bf16, F32, 64, MFMA_8),
    shape(64, I8, I8, I32, 64, MFMA_16),
    // For strips of 32 columns, which codes of 8 bits have.
    shape(32, I8, I8, I32, 64, MFMA_8),
    shape(32, E4m3fn, E4m3fn, F32, 64, MFMA_8),
    shape(32, E4m3fn, E5m2, F32, 64, MFMA_8),
    shape(32, E5m2, E4m3fn, F32, 64, MFMA_8),
    shape(32, E5m2, E5m2, F32, 64, MFMA_8),
];

const RDNA3: &[MmaShape] = &[
    shape(16, F16, F16, F32, 32, WMMA_11),
    shape(16, Bf16, Bf16, F32, 32, WMMA_11),
    shape(16, I8, I8, I32, 32, WMMA_11),
];

const RDNA4: &[MmaShape] = &[
    shape(16, F16, F16, F32, 32, WMMA_12),
    shape(16, Bf16, Bf16, F32, 32, WMMA_12),
    shape(16, I8, I8, I32, 32, WMMA_12),
    shape(16, E4m3fn, E4m3fn, F32, 32, WMMA_12),
    shape(16, E4m3fn, E5m2, F32, 32, WMMA_12),
    shape(16, E5m2, E4m3fn, F32, 32, WMMA_12),
    shape(16, E5m2, E5m2, F32, 32, WMMA_12),
];

const BASIC: Features = Features::of(&[
    Feature::Workgroups,
    Feature::Subgroups,
    Feature::Atomics,
    Feature::F16Arithmetic,
    Feature::Fma,
    Feature::Subnormals,
    Feature::Dot4SignedSigned,
    Feature::Dot4UnsignedSigned,
    Feature::PermuteBytes,
    Feature::F16Convert,
    Feature::Mma,
]);
/// With the OCP 8-bit floats.
const OCP: Features = BASIC.with(Feature::Float8Convert).with(Feature::Float8Mma);

const fn caps(
    name: &'static str,
    features: Features,
    subgroup: u32,
    matrix: &'static [MmaShape],
    gpu: &'static Gpu,
) -> Caps {
    Caps {
        name,
        features,
        subgroup,
        max_workgroup: 1024,
        max_shared_bytes: if gpu.shared_per_unit < 64 << 10 || subgroup == 64 { gpu.shared_per_unit } else { 64 << 10 },
        vector_bytes: 4,
        vector_registers: gpu.registers_per_thread,
        buffer_align: 256,
        max_buffer_bytes: u64::MAX,
        matrix,
        gpu: Some(gpu),
    }
}

/// A CDNA unit: four SIMDs of 512 registers for 64 lanes, eight waves each.
const fn cdna(
    arch: &'static str,
    model: &'static str,
    units: u32,
    shared_kib: u32,
    cache_mib: u64,
    peaks: Peaks,
) -> Gpu {
    Gpu {
        arch,
        model,
        units,
        registers_per_unit: 4 * 512 * 64,
        registers_per_thread: 512,
        registers: RegisterUse { step: 8, leftover: true, tables: true },
        shared_per_unit: shared_kib << 10,
        threads_per_unit: 2048,
        cache_bytes: cache_mib << 20,
        peaks,
    }
}

/// An RDNA unit, half of a workgroup processor: two SIMDs of 1536 registers for 32 lanes, sixteen waves each.
const fn rdna(arch: &'static str, model: &'static str, units: u32, cache_mib: u64, peaks: Peaks) -> Gpu {
    Gpu {
        arch,
        model,
        units,
        registers_per_unit: 2 * 1536 * 32,
        registers_per_thread: 256,
        registers: RegisterUse { step: 24, leftover: true, tables: true },
        shared_per_unit: 64 << 10,
        threads_per_unit: 1024,
        cache_bytes: cache_mib << 20,
        peaks,
    }
}

const MI300X: Gpu = cdna(
    "gfx942",
    "AMD Instinct MI300X",
    304,
    64,
    256,
    Peaks {
        memory_gb: 5300.0,
        f32_tera: 163.4,
        matrix_tera: &[(F16, 1307.4), (Bf16, 1307.4), (I8, 2614.9), (E4m3fnuz, 2614.9), (E5m2fnuz, 2614.9)],
        source: "AMD Instinct MI300X data sheet",
    },
);
const MI300A: Gpu = cdna(
    "gfx942",
    "AMD Instinct MI300A",
    228,
    64,
    256,
    Peaks {
        memory_gb: 5300.0,
        f32_tera: 122.6,
        matrix_tera: &[(F16, 980.6), (Bf16, 980.6), (I8, 1961.2), (E4m3fnuz, 1961.2), (E5m2fnuz, 1961.2)],
        source: "AMD Instinct MI300A data sheet",
    },
);
const MI250: Gpu = cdna(
    "gfx90a",
    "AMD Instinct MI250 (one of its two dies)",
    104,
    64,
    8,
    Peaks {
        memory_gb: 1638.4,
        f32_tera: 22.6,
        matrix_tera: &[(F16, 181.0), (Bf16, 181.0), (I8, 181.0)],
        source: "AMD Instinct MI250 data sheet, halved",
    },
);
const MI350X: Gpu = cdna(
    "gfx950",
    "AMD Instinct MI350X",
    256,
    160,
    256,
    Peaks {
        memory_gb: 8000.0,
        f32_tera: 144.2,
        matrix_tera: &[(F16, 2306.9), (Bf16, 2306.9), (I8, 4613.7), (E4m3fn, 4613.7), (E5m2, 4613.7)],
        source: "AMD Instinct MI350X data sheet",
    },
);
const RX_7900_XTX: Gpu = rdna(
    "gfx1100",
    "AMD Radeon RX 7900 XTX",
    96,
    96,
    Peaks {
        memory_gb: 960.0,
        f32_tera: 61.4,
        matrix_tera: &[(F16, 122.8), (Bf16, 122.8), (I8, 122.8)],
        source: "AMD Radeon RX 7900 XTX product page",
    },
);
const RX_9070_XT: Gpu = rdna(
    "gfx1201",
    "AMD Radeon RX 9070 XT",
    64,
    64,
    Peaks {
        memory_gb: 640.0,
        f32_tera: 48.7,
        matrix_tera: &[(F16, 195.0), (Bf16, 195.0), (I8, 389.0), (E4m3fn, 389.0), (E5m2, 389.0)],
        source: "AMD Radeon RX 9070 XT product page",
    },
);

const fn gpu(caps: Caps, dies: u32, dot4: Dot4, float8: Float8, matrix: Matrix) -> AmdGpu {
    AmdGpu { caps, dies, dot4, float8, matrix }
}

/// Every AMD device that kernels can be made for.
pub const AMD_GPUS: &[AmdGpu] = &[
    gpu(caps("mi300x", BASIC, 64, CDNA3, &MI300X), 8, Dot4::Sdot4, Float8::Fnuz, Matrix::Mfma),
    gpu(caps("mi300a", BASIC, 64, CDNA3, &MI300A), 6, Dot4::Sdot4, Float8::Fnuz, Matrix::Mfma),
    gpu(caps("mi250", BASIC, 64, CDNA2, &MI250), 1, Dot4::Sdot4, Float8::None, Matrix::Mfma),
    gpu(caps("mi350x", OCP, 64, CDNA4, &MI350X), 8, Dot4::Sdot4, Float8::Ocp, Matrix::Mfma),
    gpu(caps("rx7900xtx", BASIC, 32, RDNA3, &RX_7900_XTX), 1, Dot4::Sudot4, Float8::None, Matrix::WmmaTwice),
    gpu(caps("rx9070xt", OCP, 32, RDNA4, &RX_9070_XT), 1, Dot4::Sudot4, Float8::Ocp, Matrix::Wmma),
];

/// The same as every vendor lists them.
pub const AMD_DEVICES: [Caps; AMD_GPUS.len()] = {
    let mut list = [AMD_GPUS[0].caps; AMD_GPUS.len()];
    let mut number = 0;
    while number < list.len() {
        list[number] = AMD_GPUS[number].caps;
        number += 1;
    }
    list
};

/// Every matrix instruction, for the text form.
pub(super) fn shapes() -> impl Iterator<Item = &'static MmaShape> {
    [CDNA2, CDNA3, CDNA4, RDNA3, RDNA4].into_iter().flatten()
}
