//! NVIDIA GPUs, by name. Limits per workgroup and unit: CUDA C++ Programming Guide, "Compute Capabilities"; lane maps:
//! PTX ISA, "Matrix Fragments for mma.m16n8k16" and "… mma.m16n8k32"; peaks: the document that each device names. Where a
//! unit adds 8-bit and 16-bit floats faster into sums of 16 bits, the figure is that of `f32` sums.

use super::{Caps, Feature, Features, Gpu, LaneMap, MmaShape, Peaks, RegisterUse};
use crate::dtype::DType;
use crate::dtype::DType::{Bf16, E2m1, E4m3fn, E5m2, F16, F32, I8, I32, U8};
use crate::layout::{Bit, Dim, Layout};

const fn row(index: u8) -> Bit {
    Bit::new(Dim::Row, index)
}

const fn column(index: u8) -> Bit {
    Bit::new(Dim::Column, index)
}

/// Lane `4 * g + t` holds pairs: of A in rows g and g + 8, columns 2t and 2t + 8; of B in column g.
pub const PAIRS: LaneMap = LaneMap {
    a: Layout::constant(&[column(0), row(3), column(3), column(1), column(2), row(0), row(1), row(2)]),
    b: Layout::constant(&[row(0), row(3), row(1), row(2), column(0), column(1), column(2)]),
    acc: SUMS,
};

/// Lane `4 * g + t` holds quads of bytes: of A in rows g and g + 8, columns 4t and 4t + 16; of B in column g.
const QUADS: LaneMap = LaneMap {
    a: Layout::constant(&[column(0), column(1), row(3), column(4), column(2), column(3), row(0), row(1), row(2)]),
    b: Layout::constant(&[row(0), row(1), row(4), row(2), row(3), column(0), column(1), column(2)]),
    acc: SUMS,
};

/// Sums: rows g and g + 8, columns 2t and 2t + 1.
const SUMS: Layout = Layout::constant(&[column(0), row(3), column(1), column(2), row(0), row(1), row(2)]);

const fn shape(k: u32, a: DType, b: DType, acc: DType, map: LaneMap) -> MmaShape {
    MmaShape { m: 16, n: 8, k, a, b, acc, lanes: 32, map: Some(map) }
}

/// `mma.sync` shapes, those of sm_80 first, then those that sm_89 adds.
pub(super) static SHAPES: [MmaShape; 8] = [
    shape(16, F16, F16, F32, PAIRS),
    shape(16, Bf16, Bf16, F32, PAIRS),
    shape(32, I8, I8, I32, QUADS),
    shape(32, U8, I8, I32, QUADS),
    shape(32, E4m3fn, E4m3fn, F32, QUADS),
    shape(32, E4m3fn, E5m2, F32, QUADS),
    shape(32, E5m2, E4m3fn, F32, QUADS),
    shape(32, E5m2, E5m2, F32, QUADS),
];

/// How many of [`SHAPES`] sm_80 and sm_86 have.
const AMPERE_SHAPES: usize = 4;

const AMPERE: Features = Features::of(&[
    Feature::Workgroups,
    Feature::Subgroups,
    Feature::Atomics,
    Feature::DeviceFence,
    Feature::F16Arithmetic,
    Feature::Bf16Arithmetic,
    Feature::Fma,
    Feature::Subnormals,
    Feature::Dot4UnsignedSigned,
    Feature::Dot4SignedSigned,
    Feature::PermuteBytes,
    Feature::F16Convert,
    Feature::Mma,
    Feature::AsyncCopy,
]);
const ADA: Features = AMPERE.with(Feature::Float8Convert).with(Feature::Float8Mma);
const HOPPER: Features = ADA.with(Feature::BulkCopy).with(Feature::GridDependency).with(Feature::WarpgroupMma);
const BLACKWELL: Features = ADA.with(Feature::BulkCopy).with(Feature::GridDependency).with(Feature::Float4Mma);

/// What the devices of one instruction set have in common.
struct Arch {
    name: &'static str,
    features: Features,
    shapes: usize,
    /// KiB of shared memory of a unit; a workgroup gets one less, which the system keeps.
    shared_kib: u32,
    threads_per_unit: u32,
}

const SM_80: Arch =
    Arch { name: "sm_80", features: AMPERE, shapes: AMPERE_SHAPES, shared_kib: 164, threads_per_unit: 2048 };
const SM_86: Arch = Arch { name: "sm_86", shared_kib: 100, threads_per_unit: 1536, ..SM_80 };
const SM_89: Arch = Arch { name: "sm_89", features: ADA, shapes: SHAPES.len(), ..SM_86 };
const SM_90A: Arch = Arch { name: "sm_90a", features: HOPPER, shared_kib: 228, threads_per_unit: 2048, ..SM_89 };
const SM_100A: Arch = Arch { name: "sm_100a", features: BLACKWELL, ..SM_90A };
const SM_120A: Arch = Arch { name: "sm_120a", features: BLACKWELL, ..SM_89 };

const fn gpu(arch: &Arch, model: &'static str, units: u32, cache_mib: u64, peaks: Peaks) -> Gpu {
    Gpu {
        arch: arch.name,
        model,
        units,
        registers_per_unit: 65536,
        registers_per_thread: 255,
        // `ptxas` is held to the estimate itself; a permute reads its table from the bank of constants.
        registers: RegisterUse { step: 8, leftover: false, tables: false },
        shared_per_unit: arch.shared_kib * 1024,
        threads_per_unit: arch.threads_per_unit,
        cache_bytes: cache_mib << 20,
        peaks,
    }
}

const fn caps(name: &'static str, arch: &Arch, gpu: &'static Gpu) -> Caps {
    Caps {
        name,
        features: arch.features,
        subgroup: 32,
        max_workgroup: 1024,
        max_shared_bytes: (arch.shared_kib - 1) * 1024,
        vector_bytes: 4,
        vector_registers: 255,
        buffer_align: 256,
        max_buffer_bytes: u64::MAX,
        matrix: SHAPES.split_at(arch.shapes).0,
        gpu: Some(gpu),
    }
}

static A100: Gpu = gpu(
    &SM_80,
    "NVIDIA A100 80GB SXM",
    108,
    40,
    Peaks {
        memory_gb: 2039.0,
        f32_tera: 19.5,
        matrix_tera: &[(F16, 312.0), (Bf16, 312.0), (I8, 624.0)],
        source: "NVIDIA A100 Tensor Core GPU data sheet 1758950 r4; NVIDIA A100 Tensor Core GPU Architecture white paper",
    },
);
static RTX_3090: Gpu = gpu(
    &SM_86,
    "NVIDIA GeForce RTX 3090",
    82,
    6,
    Peaks {
        memory_gb: 936.0,
        f32_tera: 35.6,
        matrix_tera: &[(F16, 71.0), (Bf16, 71.0), (I8, 284.0)],
        source: "NVIDIA Ampere GA102 GPU Architecture white paper V2.0, appendix A; 142 into sums of 16 bits",
    },
);
static A10: Gpu = gpu(
    &SM_86,
    "NVIDIA A10",
    72,
    6,
    Peaks {
        memory_gb: 600.0,
        f32_tera: 31.2,
        matrix_tera: &[(F16, 125.0), (Bf16, 125.0), (I8, 250.0)],
        source: "NVIDIA A10 Tensor Core GPU data sheet",
    },
);
static L4: Gpu = gpu(
    &SM_89,
    "NVIDIA L4",
    58,
    48,
    Peaks {
        memory_gb: 300.0,
        f32_tera: 30.3,
        matrix_tera: &[(F16, 121.0), (Bf16, 121.0), (I8, 242.5), (E4m3fn, 242.5), (E5m2, 242.5)],
        source: "NVIDIA L4 Tensor Core GPU data sheet, half of its figures with sparsity",
    },
);
static L40S: Gpu = gpu(
    &SM_89,
    "NVIDIA L40S",
    142,
    96,
    Peaks {
        memory_gb: 864.0,
        f32_tera: 91.6,
        matrix_tera: &[(F16, 362.0), (Bf16, 362.0), (I8, 733.0), (E4m3fn, 733.0), (E5m2, 733.0)],
        source: "NVIDIA L40S GPU data sheet",
    },
);
static RTX_4090: Gpu = gpu(
    &SM_89,
    "NVIDIA GeForce RTX 4090",
    128,
    72,
    Peaks {
        memory_gb: 1008.0,
        f32_tera: 82.6,
        matrix_tera: &[(F16, 165.2), (Bf16, 165.2), (I8, 660.6), (E4m3fn, 330.3), (E5m2, 330.3)],
        source: "NVIDIA Ada GPU Architecture white paper",
    },
);
const HOPPER_MATRIX: &[(DType, f64)] = &[(F16, 989.0), (Bf16, 989.0), (I8, 1979.0), (E4m3fn, 1979.0), (E5m2, 1979.0)];
static H100: Gpu = gpu(
    &SM_90A,
    "NVIDIA H100 SXM",
    132,
    50,
    Peaks {
        memory_gb: 3350.0,
        f32_tera: 67.0,
        matrix_tera: HOPPER_MATRIX,
        source: "NVIDIA H100 Tensor Core GPU data sheet, half of its figures with sparsity",
    },
);
static H200: Gpu = gpu(
    &SM_90A,
    "NVIDIA H200 SXM",
    132,
    50,
    Peaks {
        memory_gb: 4800.0,
        f32_tera: 67.0,
        matrix_tera: HOPPER_MATRIX,
        source: "NVIDIA H200 Tensor Core GPU data sheet, half of its figures with sparsity",
    },
);
static B200: Gpu = gpu(
    &SM_100A,
    "NVIDIA B200",
    148,
    126,
    Peaks {
        memory_gb: 8000.0,
        f32_tera: 80.0,
        matrix_tera: &[(F16, 2250.0), (Bf16, 2250.0), (I8, 4500.0), (E4m3fn, 4500.0), (E5m2, 4500.0), (E2m1, 9000.0)],
        source: "NVIDIA Blackwell Architecture Technical Brief, HGX B200 per GPU at 1,000 W",
    },
);
static RTX_5090: Gpu = gpu(
    &SM_120A,
    "NVIDIA GeForce RTX 5090",
    170,
    96,
    Peaks {
        memory_gb: 1792.0,
        f32_tera: 104.8,
        matrix_tera: &[(F16, 209.5), (Bf16, 209.5), (I8, 838.0), (E4m3fn, 419.0), (E5m2, 419.0), (E2m1, 1676.0)],
        source: "NVIDIA RTX Blackwell GPU Architecture white paper",
    },
);

/// Every NVIDIA device that kernels can be made for. The first device of an instruction set stands for it where a name
/// such as `sm_90a` is all that is given.
pub static NVIDIA_DEVICES: [Caps; 10] = [
    caps("a100", &SM_80, &A100),
    caps("rtx3090", &SM_86, &RTX_3090),
    caps("a10", &SM_86, &A10),
    caps("l4", &SM_89, &L4),
    caps("l40s", &SM_89, &L40S),
    caps("rtx4090", &SM_89, &RTX_4090),
    caps("h100", &SM_90A, &H100),
    caps("h200", &SM_90A, &H200),
    caps("b200", &SM_100A, &B200),
    caps("rtx5090", &SM_120A, &RTX_5090),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Coords;

    /// The formulas of the PTX ISA: `(row, column)` of element `i` of lane `4 * g + t`.
    fn documented(shape: &MmaShape, operand: char, lane: u32, i: u32) -> (u32, u32) {
        let (g, t) = (lane / 4, lane % 4);
        match (operand, shape.k) {
            ('a', 16) => {
                (if matches!(i, 0 | 1 | 4 | 5) { g } else { g + 8 }, t * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
            }
            ('b', 16) => (t * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, g),
            ('a', _) => {
                let upper = matches!(i, 0..4 | 8..12);
                (if upper { g } else { g + 8 }, t * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
            }
            ('b', _) => (t * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, g),
            _ => (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)),
        }
    }

    #[test]
    fn lane_maps_are_those_of_the_manual() {
        for shape in &SHAPES {
            let map = shape.map.expect("every shape here has a map");
            let operands = [
                ('a', map.a, shape.a_elements()),
                ('b', map.b, shape.b_elements()),
                ('d', map.acc, shape.acc_elements()),
            ];
            for (operand, layout, elements) in operands {
                assert_eq!(layout.size(), (elements * shape.lanes) as u64, "{shape}, {operand}");
                for lane in 0..shape.lanes {
                    for i in 0..elements {
                        let at: Coords = layout.coords((lane * elements + i) as usize);
                        let found = (at.get(Dim::Row), at.get(Dim::Column));
                        assert_eq!(found, documented(shape, operand, lane, i), "{shape}, {operand}, {lane}, {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn devices_are_found_by_name_and_by_instruction_set() {
        assert_eq!(super::super::gpu("H200").map(|caps| caps.name), Some("h200"));
        assert_eq!(super::super::gpu("sm_90a").map(|caps| caps.name), Some("h100"));
        assert!(super::super::gpu("sm_10").is_none());
        for device in &NVIDIA_DEVICES {
            let float8 = device.mma(E4m3fn, E4m3fn, F32).is_some();
            assert_eq!(float8, device.features.has(Feature::Float8Mma), "{}", device.name);
            assert!(device.mma(I8, I8, I32).is_some() && device.mma(F16, F16, F32).is_some());
        }
    }
}
