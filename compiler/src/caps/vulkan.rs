//! Vulkan devices: what a driver reports, as far as kernels care.
//!
//! The names are families of devices; a runtime fills in what the driver at hand reports. All of them have 8-, 16- and
//! 64-bit integers, 8- and 16-bit storage, and shuffles and sums of subgroups: Vulkan 1.2 with the features that desktop
//! drivers have had since 2020. Sources: vulkan.gpuinfo.org and each driver's `vulkaninfo`.

use super::{Caps, Feature, Features, MmaShape};
use crate::dtype::DType::{F16, F32};

/// One Vulkan device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vulkan {
    /// What families and the verifier ask.
    pub caps: Caps,
    /// IEEE behaviour of f16 that the driver can promise (`VkPhysicalDeviceFloatControlsProperties`).
    pub f16_modes: FloatModes,
    /// IEEE behaviour of f32.
    pub f32_modes: FloatModes,
    /// Whether conversions from and to f16 are exact and round to even, subnormal numbers included: scales can be such.
    pub casts_f16: bool,
    /// Whether `Fma` of f16 rounds once.
    pub fuses_f16: bool,
    /// Whether `Fma` of `f32` rounds once, as every GPU does it; where it does not, `f64` stands in.
    pub fuses_f32: bool,
}

/// What a driver promises of a float type when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatModes {
    /// Signed zeros, infinities and NaN are kept.
    pub preserves_nan: bool,
    /// Results and conversions round to nearest even.
    pub rounds_to_even: bool,
    /// Subnormal numbers are not flushed.
    pub keeps_subnormals: bool,
}

impl Vulkan {
    /// The same device, run with subgroups of this many threads.
    pub const fn with_subgroup(self, subgroup: u32) -> Vulkan {
        Vulkan { caps: Caps { subgroup, ..self.caps }, ..self }
    }
}

const fn cooperative(m: u32, n: u32, k: u32, lanes: u32) -> MmaShape {
    MmaShape { m, n, k, a: F16, b: F16, acc: F32, lanes, map: None }
}

/// Cooperative matrices of f16 with sums in `f32`, as drivers report them: NVIDIA's, whose subgroups have 32 threads, and
/// RADV's on RDNA 3 and 4, in both widths; Intel's, Xe2 and Arc; Mesa's for the CPU, seen in version 26.1 with
/// subgroups of 8 alone. A device's width chooses one.
/// Sources: `vulkaninfo` of such devices; Mesa's `intel_device_info.c`.
pub(super) static COOPERATIVE: [MmaShape; 5] = [
    cooperative(16, 16, 16, 32),
    cooperative(16, 16, 16, 64),
    cooperative(8, 16, 16, 16),
    cooperative(8, 8, 16, 8),
    cooperative(8, 8, 8, 8),
];

/// Those of NVIDIA's and AMD's drivers, of Intel's, and of Mesa's for the CPU.
const SQUARE: &[MmaShape] = COOPERATIVE.split_at(2).0;
const INTEL: &[MmaShape] = COOPERATIVE.split_at(2).1.split_at(2).0;
const EIGHTS: &[MmaShape] = COOPERATIVE.split_at(4).1;

const COMMON: FloatModes = FloatModes { preserves_nan: true, rounds_to_even: true, keeps_subnormals: false };
const IEEE: FloatModes = FloatModes { keeps_subnormals: true, ..COMMON };

const BASE: Features = Features::of(&[
    Feature::Workgroups,
    Feature::Subgroups,
    Feature::Atomics,
    Feature::F16Arithmetic,
    Feature::F16Convert,
    Feature::Fma,
]);
const DOT: Features = BASE.with(Feature::Dot4SignedSigned).with(Feature::Dot4UnsignedSigned);

const GENERIC: Vulkan = Vulkan {
    caps: Caps {
        name: "vulkan",
        features: BASE,
        subgroup: 32,
        max_workgroup: 256,
        max_shared_bytes: 32 << 10,
        vector_bytes: 16,
        vector_registers: 64,
        buffer_align: 64,
        // Offsets have 31 bits; a driver may bind less, and the runtime asks it.
        max_buffer_bytes: super::INDEX_31,
        matrix: &[],
        gpu: None,
    },
    f16_modes: COMMON,
    f32_modes: COMMON,
    casts_f16: false,
    fuses_f16: false,
    fuses_f32: true,
};

const fn device(name: &'static str, features: Features, subgroup: u32, shared: u32, fuses_f16: bool) -> Vulkan {
    Vulkan {
        caps: Caps {
            name,
            features: features.with(Feature::Subnormals),
            subgroup,
            max_workgroup: 1024,
            max_shared_bytes: shared << 10,
            ..GENERIC.caps
        },
        f16_modes: IEEE,
        f32_modes: IEEE,
        casts_f16: true,
        fuses_f16,
        fuses_f32: true,
    }
}

/// Every Vulkan device that kernels can be generated for.
pub const DEVICES: &[Vulkan] = &[
    GENERIC,
    device("vulkan-nvidia", DOT, 32, 48, true),
    device("vulkan-amd", DOT, 64, 64, true),
    device("vulkan-intel", DOT, 16, 64, true),
    LAVAPIPE,
    matrices("vulkan-coop", device("", BASE, 32, 32, false), SQUARE),
    matrices("vulkan-nvidia-coop", device("", DOT, 32, 48, true), SQUARE),
    matrices("vulkan-amd-coop", device("", DOT, 32, 64, true), SQUARE),
    matrices("vulkan-intel-coop", device("", DOT, 16, 64, true), INTEL),
    matrices("vulkan-lavapipe-coop", LAVAPIPE, EIGHTS),
];

/// What follows the name of a device for the same one with cooperative matrices.
pub const COOPERATIVE_SUFFIX: &str = "-coop";

/// A device with cooperative matrices: its subgroup's width chooses among the shapes.
const fn matrices(name: &'static str, plain: Vulkan, matrix: &'static [MmaShape]) -> Vulkan {
    let features = plain.caps.features.with(Feature::CooperativeMatrix);
    Vulkan { caps: Caps { name, features, matrix, ..plain.caps }, ..plain }
}

/// Mesa's CPU driver: its subgroup is a vector of `LP_NATIVE_VECTOR_WIDTH` bits, and it expands dot products itself. It
/// promises nothing of subnormal numbers; those of f16 it converts as they are.
const LAVAPIPE: Vulkan = {
    let like_gpus = device("vulkan-lavapipe", DOT, 8, 32, false);
    let features = like_gpus.caps.features.without(Feature::Subnormals);
    let caps = Caps { features, ..like_gpus.caps };
    Vulkan { caps, fuses_f32: false, f16_modes: COMMON, f32_modes: COMMON, ..like_gpus }
};
