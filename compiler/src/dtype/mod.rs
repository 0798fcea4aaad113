//! Scalar types: what a number's bits mean, its range, and exact conversions.
//!
//! Reads bit patterns, makes numbers, and back. Nothing here knows of formats, operations or devices.
//! Always holds: `decode` is exact in `f64`; `encode` rounds once, to nearest even, and saturates where the type says so.

mod float;
mod fnuz;

pub use float::{Float, Specials};
pub use fnuz::{fn_to_fnuz, fnuz_to_fn};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

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
    /// OCP FP6 with two exponent bits: maximum 7.5.
    E2m3,
    /// OCP FP6 with three exponent bits: maximum 28.
    E3m2,
    /// IEEE-like E4M3 with infinities: maximum 240.
    E4m3,
    /// IEEE-like E3M4 with infinities: maximum 15.5.
    E3m4,
    /// E4M3 with bias 11, no infinity, no negative zero: maximum 30.
    E4m3b11fnuz,
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

/// What the bits of a type are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A binary float with sign, exponent and mantissa.
    Float(Float),
    /// A power of two with neither sign nor zero.
    Exponent,
    /// Two's complement of this many bits.
    Signed(u32),
    /// Unsigned of this many bits.
    Unsigned(u32),
}

impl DType {
    /// Every type, in declaration order.
    pub const ALL: [DType; 23] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::E4m3fn,
        DType::E4m3fnuz,
        DType::E5m2,
        DType::E5m2fnuz,
        DType::E8m0,
        DType::E2m1,
        DType::E2m3,
        DType::E3m2,
        DType::E4m3,
        DType::E3m4,
        DType::E4m3b11fnuz,
        DType::I2,
        DType::I3,
        DType::I4,
        DType::I8,
        DType::I32,
        DType::U2,
        DType::U3,
        DType::U4,
        DType::U8,
    ];

    /// What its bits are, as data: every conversion follows from this.
    pub const fn kind(self) -> Kind {
        const fn float(exponent: u32, mantissa: u32, bias: i32, specials: Specials) -> Kind {
            Kind::Float(Float { exponent, mantissa, bias, specials })
        }
        match self {
            DType::F32 => float(8, 23, 127, Specials::Ieee),
            DType::F16 => float(5, 10, 15, Specials::Ieee),
            DType::Bf16 => float(8, 7, 127, Specials::Ieee),
            DType::E4m3fn => float(4, 3, 7, Specials::AllOnesNan),
            DType::E4m3fnuz => float(4, 3, 8, Specials::Fnuz),
            DType::E5m2 => float(5, 2, 15, Specials::Ieee),
            DType::E5m2fnuz => float(5, 2, 16, Specials::Fnuz),
            DType::E2m1 => float(2, 1, 1, Specials::None),
            DType::E2m3 => float(2, 3, 1, Specials::None),
            DType::E3m2 => float(3, 2, 3, Specials::None),
            DType::E4m3 => float(4, 3, 7, Specials::Ieee),
            DType::E3m4 => float(3, 4, 3, Specials::Ieee),
            DType::E4m3b11fnuz => float(4, 3, 11, Specials::Fnuz),
            DType::E8m0 => Kind::Exponent,
            DType::I2 => Kind::Signed(2),
            DType::I3 => Kind::Signed(3),
            DType::I4 => Kind::Signed(4),
            DType::I8 => Kind::Signed(8),
            DType::I32 => Kind::Signed(32),
            DType::U2 => Kind::Unsigned(2),
            DType::U3 => Kind::Unsigned(3),
            DType::U4 => Kind::Unsigned(4),
            DType::U8 => Kind::Unsigned(8),
        }
    }

    /// Stable name, as serde and the command line spell it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::E4m3fn => "e4m3fn",
            DType::E4m3fnuz => "e4m3fnuz",
            DType::E5m2 => "e5m2",
            DType::E5m2fnuz => "e5m2fnuz",
            DType::E8m0 => "e8m0",
            DType::E2m1 => "e2m1",
            DType::E2m3 => "e2m3",
            DType::E3m2 => "e3m2",
            DType::E4m3 => "e4m3",
            DType::E3m4 => "e3m4",
            DType::E4m3b11fnuz => "e4m3b11fnuz",
            DType::I2 => "i2",
            DType::I3 => "i3",
            DType::I4 => "i4",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::U2 => "u2",
            DType::U3 => "u3",
            DType::U4 => "u4",
            DType::U8 => "u8",
        }
    }

    /// Width of an element in bits.
    pub const fn bits(self) -> u32 {
        match self.kind() {
            Kind::Float(float) => float.bits(),
            Kind::Exponent => 8,
            Kind::Signed(bits) | Kind::Unsigned(bits) => bits,
        }
    }

    /// Whole bytes that hold an element.
    pub const fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// Whether it is a float with sign, exponent and mantissa.
    pub const fn is_float(self) -> bool {
        matches!(self.kind(), Kind::Float(_))
    }

    /// The largest finite number.
    pub fn max_finite(self) -> f64 {
        match self.kind() {
            Kind::Float(float) => float.decode(float.max_code()),
            Kind::Exponent => 2f64.powi(127),
            Kind::Signed(bits) => ((1i64 << (bits - 1)) - 1) as f64,
            Kind::Unsigned(bits) => ((1i64 << bits) - 1) as f64,
        }
    }

    /// The number that a bit pattern stands for; exact. Bits above the type's width are ignored.
    pub fn decode(self, bits: u32) -> f64 {
        match self {
            DType::F32 => f32::from_bits(bits) as f64,
            DType::F16 => half::f16::from_bits(bits as u16).to_f64(),
            DType::Bf16 => half::bf16::from_bits(bits as u16).to_f64(),
            _ => match self.kind() {
                Kind::Float(_) => SMALL_FLOATS[self as usize][bits as usize & 0xff],
                Kind::Exponent if bits & 0xff == 0xff => f64::NAN,
                Kind::Exponent => 2f64.powi((bits & 0xff) as i32 - 127),
                Kind::Signed(width) => ((bits << (32 - width)) as i32 >> (32 - width)) as f64,
                Kind::Unsigned(width) => (bits & ((1 << width) - 1)) as f64,
            },
        }
    }

    /// The bit pattern of the number nearest to `x`, ties to even.
    ///
    /// Floats of 8 bits and fewer saturate at their largest finite number, as `cvt.rn.satfinite` does; wider ones go to
    /// infinity. NaN stays NaN where there is one; types without NaN take it to a zero of the opposite sign, as
    /// `ml_dtypes` does. Integers saturate, and take NaN to 0. `E8m0` takes the binary exponent rounded down (the OCP rule
    /// for block scales) and saturates; zero, negative numbers and NaN go to NaN.
    pub fn encode(self, x: f64) -> u32 {
        match self.kind() {
            Kind::Float(float) => float.encode(x, float.bits() <= 8),
            Kind::Exponent if x.is_nan() || x <= 0.0 => 0xff,
            Kind::Exponent => (float::exponent_of(x) + 127).clamp(0, 254) as u32,
            Kind::Signed(bits) => {
                let (low, high) = (-((1i64 << (bits - 1)) as f64), self.max_finite());
                let rounded = if x.is_nan() { 0.0 } else { x.round_ties_even().clamp(low, high) };
                rounded as i64 as u32 & (u32::MAX >> (32 - bits))
            }
            Kind::Unsigned(_) => {
                if x.is_nan() {
                    0
                } else {
                    x.round_ties_even().clamp(0.0, self.max_finite()) as u32
                }
            }
        }
    }

    /// Numbers as memory holds them: the nearest code of each, little-endian; of a type of whole bytes.
    pub fn to_bytes(self, numbers: impl IntoIterator<Item = f64>) -> Vec<u8> {
        let size = self.bits() as usize / 8;
        let mut bytes = Vec::new();
        numbers.into_iter().for_each(|x| bytes.extend_from_slice(&self.encode(x).to_le_bytes()[..size]));
        bytes
    }

    /// The numbers that memory holds, as [`DType::to_bytes`] makes it; exact.
    pub fn from_bytes(self, bytes: &[u8]) -> impl Iterator<Item = f64> {
        let size = self.bits() as usize / 8;
        bytes.chunks_exact(size).map(move |bytes| {
            let mut word = [0; 4];
            word[..size].copy_from_slice(bytes);
            self.decode(u32::from_le_bytes(word))
        })
    }

    /// Like [`DType::encode`], but an overflow goes to infinity or NaN where the type has one, and `E8m0` rounds to the
    /// nearest power of two, half way up, and between its two least numbers always up: the conversions of `ml_dtypes` and
    /// torch.
    pub fn encode_nonsaturating(self, x: f64) -> u32 {
        match self.kind() {
            Kind::Float(float) => float.encode(x, false),
            Kind::Exponent if x.is_nan() || x <= 0.0 || x.is_infinite() => 0xff,
            Kind::Exponent => {
                let down = float::exponent_of(x);
                // Between 2^-127 and 2^-126 a binary32 is subnormal, and what is above 2^-127 goes up there: a rule of
                // the conversions that we follow, not what is nearest.
                let up = if down == -127 { x > 2f64.powi(-127) } else { x / 2f64.powi(down) >= 1.5 };
                let nearest = if up { down + 1 } else { down };
                // Below 2^-127 everything is nearest to the least power, and past 2^127 there is only NaN.
                (nearest + 127).clamp(0, 255) as u32
            }
            _ => self.encode(x),
        }
    }
}

/// Every code of every float of at most 8 bits, by type; the rows of other types are unused.
static SMALL_FLOATS: LazyLock<Vec<[f64; 256]>> = LazyLock::new(|| {
    DType::ALL
        .iter()
        .map(|dtype| match dtype.kind() {
            Kind::Float(float) if float.bits() <= 8 => {
                std::array::from_fn(|code| float.decode(code as u32 & ((1 << float.bits()) - 1)))
            }
            _ => [0.0; 256],
        })
        .collect()
});

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            let known: Vec<&str> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
            Error::invalid(format!("scalar type `{text}` is not known; accepted: {}", known.join(", ")))
        })
    }
}
