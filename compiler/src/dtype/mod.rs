//! Scalar types: what a number's bits mean, its range, and exact conversions.
//!
//! Reads bit patterns, makes numbers, and back. Nothing here knows of formats, operations or devices.
//! Always holds: `decode` is exact in `f64`; `encode` rounds once, to nearest even, and saturates where the type says so.

use serde::{Deserialize, Serialize};

/// A scalar element type as it lies in memory. `bits` says how wide one element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// OCP FP8 E4M3: bias 7, no infinity, NaN at 0x7F and 0xFF, maximum 448.
    E4m3fn,
    /// E4M3 with bias 8, no infinity, no negative zero, NaN at 0x80, maximum 240 (MI300).
    E4m3fnuz,
    /// OCP FP8 E5M2: IEEE-like, bias 15, infinities and NaNs, maximum 57344.
    E5m2,
    /// E5M2 with bias 16, no infinity, no negative zero, NaN at 0x80, maximum 57344.
    E5m2fnuz,
    /// A power of two: `2^(code - 127)`, 0xFF is NaN, there is no zero and no sign.
    E8m0,
    /// OCP FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    E2m1,
    /// Two's complement, 2 bits.
    I2,
    /// Two's complement, 3 bits.
    I3,
    /// Two's complement, 4 bits.
    I4,
    /// Two's complement, 8 bits.
    I8,
    /// Two's complement, 32 bits.
    I32,
    /// Unsigned, 2 bits.
    U2,
    /// Unsigned, 3 bits.
    U3,
    /// Unsigned, 4 bits.
    U4,
    /// Unsigned, 8 bits.
    U8,
}

impl DType {
    /// placeholder until the conversions land
    pub fn decode(self, bits: u32) -> f64 {
        f32::from_bits(bits) as f64
    }
}

impl DType {
    /// placeholder
    pub fn encode(self, _x: f64) -> u32 {
        0
    }
    /// placeholder
    pub fn name(self) -> &'static str {
        ""
    }
    /// placeholder
    pub fn max_finite(self) -> f64 {
        0.0
    }
}

impl DType {
    /// placeholder
    pub const fn bits(self) -> u32 {
        0
    }
}
