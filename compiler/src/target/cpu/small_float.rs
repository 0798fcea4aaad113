//! Floats of 8 and 16 bits to and from `f32`, four at a time, by exact arithmetic on bits.
//!
//! Widening shifts exponent and mantissa to their places in an `f32` and multiplies by a power of two, which is exact
//! for normal and subnormal numbers alike; narrowing adds half a unit (less one where the last kept bit is even).

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self as clif, InstBuilder, types};

use super::emit::Emitter;
use crate::ir::Scalar;

/// The layout of a float with a sign, an exponent and a mantissa.
struct Layout {
    /// Width of the whole number.
    bits: u32,
    /// Width of the mantissa.
    mantissa: u32,
    /// Exponent bias.
    bias: u32,
    /// What the codes past the finite numbers mean.
    special: Special,
    /// Code of the largest finite number.
    largest: u64,
    /// Code of a NaN.
    nan: u64,
}

enum Special {
    /// Infinities and NaNs under the highest exponent.
    Ieee,
    /// NaN is the highest code of either sign; no infinity.
    TopIsNan,
    /// NaN is the code of minus zero; no infinity.
    MinusZeroIsNan,
}

/// Sources: IEEE 754-2019 (binary16); OCP 8-bit Floating Point Specification (E4M3, E5M2); the `fnuz` forms are AMD's.
fn layout(scalar: Scalar) -> Option<Layout> {
    let (bits, mantissa, bias, special, largest, nan) = match scalar {
        Scalar::F16 => (16, 10, 15, Special::Ieee, 0x7bff, 0x7e00),
        Scalar::E4m3fn => (8, 3, 7, Special::TopIsNan, 0x7e, 0x7f),
        Scalar::E4m3fnuz => (8, 3, 8, Special::MinusZeroIsNan, 0x7f, 0x80),
        Scalar::E5m2 => (8, 2, 15, Special::Ieee, 0x7b, 0x7e),
        Scalar::E5m2fnuz => (8, 2, 16, Special::MinusZeroIsNan, 0x7f, 0x80),
        _ => return None,
    };
    Some(Layout { bits, mantissa, bias, special, largest, nan })
}

const INFINITY: u64 = 0x7f80_0000;
const QUIET_NAN: u64 = 0x7fc0_0000;
const MAGNITUDE: u64 = 0x7fff_ffff;

impl Emitter<'_> {
    /// `f32x4` of four codes, each zero-extended in an `i32x4`.
    pub(super) fn decode_small_float(&mut self, from: Scalar, codes: clif::Value) -> clif::Value {
        let bits = match from {
            Scalar::Bf16 => self.left(codes, 16),
            Scalar::E8m0 => self.decode_e8m0(codes),
            _ => match layout(from) {
                Some(layout) => self.decode_layout(&layout, codes),
                None => codes,
            },
        };
        self.bits_as(bits, types::F32X4)
    }

    /// Codes of four numbers given as the bits of `f32`, each zero-extended in an `i32x4`.
    pub(super) fn encode_small_float(&mut self, to: Scalar, bits: clif::Value) -> clif::Value {
        match to {
            Scalar::Bf16 => self.encode_bf16(bits),
            Scalar::E8m0 => self.encode_e8m0(bits),
            _ => match layout(to) {
                Some(layout) => self.encode_layout(&layout, bits),
                None => bits,
            },
        }
    }

    fn decode_layout(&mut self, layout: &Layout, codes: clif::Value) -> clif::Value {
        let sign_bit = 1u64 << (layout.bits - 1);
        let magnitude = self.masked(codes, sign_bit - 1);
        let placed = self.left(magnitude, 23 - layout.mantissa);
        let placed = self.bits_as(placed, types::F32X4);
        let scale = self.number(types::F32X4, u64::from((127 + 127 - layout.bias) << 23));
        let scaled = self.b.ins().fmul(placed, scale);
        let mut bits = self.bits_as(scaled, types::I32X4);
        match layout.special {
            Special::Ieee => {
                // The mantissa is in place already; the exponent becomes that of infinity and NaN.
                let beyond = self.above(magnitude, layout.largest);
                let exponent = self.masked(beyond, INFINITY);
                bits = self.b.ins().bor(bits, exponent);
            }
            Special::TopIsNan => {
                let beyond = self.above(magnitude, layout.largest);
                let nan = self.masked(beyond, QUIET_NAN);
                bits = self.b.ins().bor(bits, nan);
            }
            Special::MinusZeroIsNan => {}
        }
        let sign = self.masked(codes, sign_bit);
        let sign = self.left(sign, 32 - layout.bits);
        let bits = self.b.ins().bor(bits, sign);
        if let Special::MinusZeroIsNan = layout.special {
            let code = self.number(types::I32X4, layout.nan);
            let is_nan = self.b.ins().icmp(IntCC::Equal, codes, code);
            let nan = self.masked(is_nan, QUIET_NAN);
            return self.b.ins().bor(bits, nan);
        }
        bits
    }

    /// A power of two is an exponent; the one below the normal numbers is a subnormal.
    fn decode_e8m0(&mut self, codes: clif::Value) -> clif::Value {
        let power = self.left(codes, 23);
        let zero = self.number(types::I32X4, 0);
        let lowest = self.b.ins().icmp(IntCC::Equal, codes, zero);
        let subnormal = self.masked(lowest, 0x0040_0000);
        let bits = self.b.ins().bor(power, subnormal);
        let is_nan = self.above(codes, 0xfe);
        let nan = self.masked(is_nan, QUIET_NAN);
        self.b.ins().bor(bits, nan)
    }

    fn encode_bf16(&mut self, bits: clif::Value) -> clif::Value {
        let rounded = self.round_off(bits, 16);
        let cut = self.right(bits, 16);
        let quiet = self.number(types::I32X4, 0x40);
        let nan = self.b.ins().bor(cut, quiet);
        let magnitude = self.masked(bits, MAGNITUDE);
        let is_nan = self.above(magnitude, INFINITY);
        self.b.ins().bitselect(is_nan, nan, rounded)
    }

    /// The exponent of the magnitude, rounded down; what lies past the largest power becomes the largest power.
    fn encode_e8m0(&mut self, bits: clif::Value) -> clif::Value {
        let magnitude = self.masked(bits, MAGNITUDE);
        let is_nan = self.above(magnitude, INFINITY);
        let exponent = self.right(magnitude, 23);
        let largest = self.number(types::I32X4, 0xfe);
        let finite = self.b.ins().smin(exponent, largest);
        let nan = self.masked(is_nan, 0xff);
        self.b.ins().bor(finite, nan)
    }

    fn encode_layout(&mut self, layout: &Layout, bits: clif::Value) -> clif::Value {
        let magnitude = self.masked(bits, MAGNITUDE);
        let is_nan = self.above(magnitude, INFINITY);
        let shift = 23 - layout.mantissa;
        let rebias = u64::from((127 - layout.bias) << 23);
        let saturates = layout.bits == 8;
        let finite = if saturates {
            let largest = self.number(types::I32X4, (layout.largest << shift) + rebias);
            self.b.ins().smin(magnitude, largest)
        } else {
            magnitude
        };
        // Normal numbers: move the exponent, round off the low mantissa bits; a carry goes into the exponent.
        let base = self.number(types::I32X4, rebias);
        let moved = self.b.ins().isub(finite, base);
        let normal = self.round_off(moved, shift);
        // Subnormal ones: adding a number whose last place is the smallest subnormal lets the FPU round.
        let magic = u64::from((127 + 1 + 23 - layout.bias - layout.mantissa) << 23);
        let float = self.bits_as(finite, types::F32X4);
        let magic_float = self.number(types::F32X4, magic);
        let sum = self.b.ins().fadd(float, magic_float);
        let sum = self.bits_as(sum, types::I32X4);
        let magic = self.number(types::I32X4, magic);
        let subnormal = self.b.ins().isub(sum, magic);
        let is_normal = self.above(finite, rebias + (1 << 23) - 1);
        let mut code = self.b.ins().bitselect(is_normal, normal, subnormal);
        if !saturates {
            // What rounds past the largest number is infinity, and so is everything with a larger exponent.
            let infinity = self.number(types::I32X4, layout.largest + 1);
            let beyond = self.above(magnitude, rebias + ((layout.largest + 1) << shift) - 1);
            code = self.b.ins().bitselect(beyond, infinity, code);
        }
        let nan = self.number(types::I32X4, layout.nan);
        let sign = self.right(bits, 31);
        let sign = self.left(sign, layout.bits - 1);
        if let Special::MinusZeroIsNan = layout.special {
            // There is no minus zero: its code is the NaN.
            let zero = self.number(types::I32X4, 0);
            let is_zero = self.b.ins().icmp(IntCC::Equal, code, zero);
            let sign = self.b.ins().band_not(sign, is_zero);
            let signed = self.b.ins().bor(code, sign);
            return self.b.ins().bitselect(is_nan, nan, signed);
        }
        let code = self.b.ins().bitselect(is_nan, nan, code);
        self.b.ins().bor(code, sign)
    }

    /// `bits >> shift`, rounded to nearest, ties to even.
    fn round_off(&mut self, bits: clif::Value, shift: u32) -> clif::Value {
        let half = self.number(types::I32X4, (1 << (shift - 1)) - 1);
        let last = self.right(bits, shift);
        let last = self.masked(last, 1);
        let sum = self.b.ins().iadd(bits, half);
        let sum = self.b.ins().iadd(sum, last);
        self.right(sum, shift)
    }

    /// Mask of the lanes above a limit; both are below 2^31.
    fn above(&mut self, value: clif::Value, limit: u64) -> clif::Value {
        let limit = self.number(types::I32X4, limit);
        self.b.ins().icmp(IntCC::SignedGreaterThan, value, limit)
    }

    fn left(&mut self, value: clif::Value, by: u32) -> clif::Value {
        let by = self.b.ins().iconst(types::I32, i64::from(by));
        self.b.ins().ishl(value, by)
    }

    fn right(&mut self, value: clif::Value, by: u32) -> clif::Value {
        let by = self.b.ins().iconst(types::I32, i64::from(by));
        self.b.ins().ushr(value, by)
    }
}
