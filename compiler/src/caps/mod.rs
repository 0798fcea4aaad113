//! Facts about devices, as data: widths, limits, features, peaks.
//!
//! Reads `dtype` and `layout` only. Families and the verifier ask it; nobody guesses a width.

mod amd;
mod cpu;
mod gpu;
mod matrix;
mod nvidia;
pub mod vulkan;
pub mod webgpu;

pub use amd::{AMD_DEVICES, AMD_GPUS, AmdGpu, Dot4, Float8, Matrix};
pub use cpu::CPU_LEVELS;
pub use gpu::{Gpu, Peaks, RegisterUse};
pub use matrix::{LaneMap, MmaShape, place};
pub use nvidia::{NVIDIA_DEVICES, PAIRS};

use crate::dtype::DType;

use std::fmt;

/// Something a device can do and another cannot. Names are stable: `--json` and errors print them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Several threads per workgroup, shared memory and barriers.
    Workgroups,
    /// `shuffle` and `subgroup_reduce`.
    Subgroups,
    /// `atomic_add`.
    Atomics,
    /// Arithmetic on f16 (not only load, store and cast).
    F16Arithmetic,
    /// Arithmetic on bf16.
    Bf16Arithmetic,
    /// Fused multiply-add in one instruction.
    Fma,
    /// `dot4` of unsigned by signed bytes in one instruction.
    Dot4UnsignedSigned,
    /// `dot4` of signed bytes in one instruction.
    Dot4SignedSigned,
    /// `dot2` in one instruction or two.
    Dot2,
    /// `dot2` of bf16 in one instruction.
    Dot2Bf16,
    /// Arithmetic on `f32` takes and gives subnormal numbers. A device without it may take zeros in their place.
    Subnormals,
    /// Byte table look-up in one instruction.
    PermuteBytes,
    /// The same in a table of 128 bytes.
    PermuteLong,
    /// Hardware conversion between f16 and f32.
    F16Convert,
    /// Matrix instructions of a subgroup: the shapes of [`Caps::matrix`].
    Mma,
    /// Copies from global to shared memory that a thread starts and waits for later.
    AsyncCopy,
    /// Copies of long ranges by one thread, counted by a barrier object in shared memory.
    BulkCopy,
    /// Asynchronous matrix instructions of four subgroups, with operands in shared memory.
    WarpgroupMma,
    /// Hardware conversion between the OCP 8-bit floats and f16.
    Float8Convert,
    /// Matrix instructions on the OCP 8-bit floats.
    Float8Mma,
    /// Matrix instructions on 4-bit floats with a scale per block.
    Float4Mma,
    /// A kernel may start before the one that it depends on has ended, and wait for it later.
    GridDependency,
    /// Order between workgroups of a launch by fences around atomics.
    DeviceFence,
    /// Matrices that a subgroup holds together in a way of the device's own: the shapes of [`Caps::matrix`] without a lane map.
    CooperativeMatrix,
}

impl Feature {
    /// Every feature, in declaration order.
    pub const ALL: [Feature; 24] = [
        Feature::Workgroups,
        Feature::Subgroups,
        Feature::Atomics,
        Feature::F16Arithmetic,
        Feature::Bf16Arithmetic,
        Feature::Fma,
        Feature::Dot4UnsignedSigned,
        Feature::Dot4SignedSigned,
        Feature::Dot2,
        Feature::Dot2Bf16,
        Feature::Subnormals,
        Feature::PermuteBytes,
        Feature::PermuteLong,
        Feature::F16Convert,
        Feature::Mma,
        Feature::AsyncCopy,
        Feature::BulkCopy,
        Feature::WarpgroupMma,
        Feature::Float8Convert,
        Feature::Float8Mma,
        Feature::Float4Mma,
        Feature::GridDependency,
        Feature::DeviceFence,
        Feature::CooperativeMatrix,
    ];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::Workgroups => "workgroups",
            Feature::Subgroups => "subgroups",
            Feature::Atomics => "atomics",
            Feature::F16Arithmetic => "f16-arithmetic",
            Feature::Bf16Arithmetic => "bf16-arithmetic",
            Feature::Fma => "fma",
            Feature::Dot4UnsignedSigned => "dot4-unsigned-signed",
            Feature::Dot4SignedSigned => "dot4-signed-signed",
            Feature::Dot2 => "dot2",
            Feature::Dot2Bf16 => "dot2-bf16",
            Feature::Subnormals => "subnormals",
            Feature::PermuteBytes => "permute-bytes",
            Feature::PermuteLong => "permute-long",
            Feature::F16Convert => "f16-convert",
            Feature::Mma => "mma",
            Feature::AsyncCopy => "async-copy",
            Feature::BulkCopy => "bulk-copy",
            Feature::WarpgroupMma => "warpgroup-mma",
            Feature::Float8Convert => "float8-convert",
            Feature::Float8Mma => "float8-mma",
            Feature::Float4Mma => "float4-mma",
            Feature::GridDependency => "grid-dependency",
            Feature::DeviceFence => "device-fence",
            Feature::CooperativeMatrix => "cooperative-matrix",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(u64);

impl Features {
    /// No feature.
    pub const NONE: Features = Features(0);

    /// The features listed.
    pub const fn of(list: &[Feature]) -> Features {
        let mut bits = 0;
        let mut i = 0;
        while i < list.len() {
            bits |= 1 << list[i] as u64;
            i += 1;
        }
        Features(bits)
    }

    /// Whether the set holds a feature.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u64) != 0
    }

    /// The set with one more feature.
    pub const fn with(self, feature: Feature) -> Features {
        Features(self.0 | 1 << feature as u64)
    }

    /// The set without a feature.
    pub const fn without(self, feature: Feature) -> Features {
        Features(self.0 & !(1 << feature as u64))
    }

    /// The features in declaration order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |&f| self.has(f))
    }
}

/// Most bytes that offsets of 31 bits reach.
const INDEX_31: u64 = (1 << 31) - 1;

/// What a device is and can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// Name on the command line and in tables: `x86-64-v3`.
    pub name: &'static str,
    /// What it can do.
    pub features: Features,
    /// Threads that run in lockstep; 1 on a CPU.
    pub subgroup: u32,
    /// Most threads per workgroup.
    pub max_workgroup: u32,
    /// Most bytes of shared memory per workgroup.
    pub max_shared_bytes: u32,
    /// Bytes of the widest vector register that the target's emitter uses.
    pub vector_bytes: u32,
    /// Number of vector registers that the emitter can use.
    pub vector_registers: u32,
    /// Alignment that vector loads want, in bytes: buffers are allocated at this.
    pub buffer_align: u32,
    /// Most bytes of a buffer that kernels can address; `u64::MAX` where memory is the limit.
    pub max_buffer_bytes: u64,
    /// Matrix instructions of a subgroup.
    pub matrix: &'static [MmaShape],
    /// The device as a whole, where it is a GPU.
    pub gpu: Option<&'static Gpu>,
}

impl Caps {
    /// Everything the IR can say, for the interpreter and for tests.
    pub const ANY: Caps = Caps {
        name: "any",
        features: Features::of(&Feature::ALL),
        subgroup: 32,
        max_workgroup: 1024,
        max_shared_bytes: 1 << 20,
        vector_bytes: 64,
        vector_registers: 32,
        buffer_align: 64,
        max_buffer_bytes: u64::MAX,
        matrix: &ANY_SHAPES,
        gpu: None,
    };

    /// Whether the 8-bit floats that its matrix instructions multiply are the `fnuz` types, and not those of the OCP.
    pub fn has_fnuz(&self) -> bool {
        let has = |dtype| self.matrix.iter().any(|shape| shape.a == dtype);
        has(DType::E4m3fnuz) && !has(DType::E4m3fn)
    }

    /// The matrix instruction with operands and sums of these types whose lanes are known, if the device has one.
    pub fn mma(&self, a: DType, b: DType, acc: DType) -> Option<&'static MmaShape> {
        self.matrix.iter().find(|shape| (shape.a, shape.b, shape.acc) == (a, b, acc) && shape.map.is_some())
    }

    /// The cooperative matrices of these types for the device's subgroups, if it has any.
    pub fn cooperative(&self, a: DType, b: DType, acc: DType) -> Option<&'static MmaShape> {
        let fits = |shape: &&MmaShape| shape.map.is_none() && shape.lanes == self.subgroup;
        self.matrix.iter().filter(fits).find(|shape| (shape.a, shape.b, shape.acc) == (a, b, acc))
    }
}

/// Shapes with a lane map and without.
static ANY_SHAPES: [MmaShape; nvidia::SHAPES.len() + vulkan::COOPERATIVE.len()] = {
    let mut list = [nvidia::SHAPES[0]; nvidia::SHAPES.len() + vulkan::COOPERATIVE.len()];
    let mut number = 0;
    while number < list.len() {
        let own = nvidia::SHAPES.len();
        list[number] = if number < own { nvidia::SHAPES[number] } else { vulkan::COOPERATIVE[number - own] };
        number += 1;
    }
    list
};

/// GPUs that kernels can be made for, by vendor.
pub const GPUS: &[&[Caps]] = &[&NVIDIA_DEVICES, &AMD_DEVICES];

/// Every matrix instruction of any device, for the text form.
pub fn matrix_shapes() -> impl Iterator<Item = &'static MmaShape> {
    nvidia::SHAPES.iter().chain(amd::shapes()).chain(&vulkan::COOPERATIVE)
}

/// A GPU by its name (`h200`), or the first one of an instruction set (`sm_90a`).
pub fn gpu(name: &str) -> Option<&'static Caps> {
    let all = || GPUS.iter().flat_map(|list| list.iter());
    let of_arch = |caps: &&Caps| caps.gpu.is_some_and(|gpu| gpu.arch.eq_ignore_ascii_case(name));
    all().find(|caps| caps.name.eq_ignore_ascii_case(name)).or_else(|| all().find(of_arch))
}
