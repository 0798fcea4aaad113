//! Casts between `f32` and the smaller floats in integer arithmetic, exact for every input.
//!
//! No step makes or takes a subnormal `f32`, so a device that flushes those still gives the right bits (but for E8M0
//! and bf16, which have some of their own).

use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Value};

/// A small float by its numbers.
struct Shape {
    /// Bits of the fraction.
    fraction: i64,
    bias: i64,
    /// The code that numbers past the largest get: infinity, or the largest.
    over: i64,
    /// The NaN that results have.
    nan: i64,
    /// Codes of magnitude from here on are infinity and NaN, if the type has infinity; the code of NaN otherwise.
    special: i64,
    infinity: bool,
    /// No negative zero: its code is NaN.
    unsigned_zero: bool,
}

/// The numbers of the types that have a sign, an exponent and a fraction, bf16 apart.
fn shape(scalar: Scalar) -> Option<Shape> {
    let (fraction, bias, over, nan, special, infinity, unsigned_zero) = match scalar {
        Scalar::F16 => (10, 15, 0x7c00, 0x7e00, 0x7c00, true, false),
        Scalar::E4m3fn => (3, 7, 0x7e, 0x7f, 0x7f, false, false),
        Scalar::E4m3fnuz => (3, 8, 0x7f, 0x80, 0x80, false, true),
        Scalar::E5m2 => (2, 15, 0x7b, 0x7e, 0x7c, true, false),
        Scalar::E5m2fnuz => (2, 16, 0x7f, 0x80, 0x80, false, true),
        Scalar::Bf16
        | Scalar::E8m0
        | Scalar::F32
        | Scalar::Bool
        | Scalar::I8
        | Scalar::I16
        | Scalar::I32
        | Scalar::I64 => return None,
    };
    Some(Shape { fraction, bias, over, nan, special, infinity, unsigned_zero })
}

/// A small float as `f32`.
pub fn decode(b: &mut Builder, a: Value) -> Value {
    let ty = b.ty(a);
    let words = ty.with_scalar(Scalar::I32);
    let result = ty.with_scalar(Scalar::F32);
    let narrow = if ty.scalar.bits() == 8 { Scalar::I8 } else { Scalar::I16 };
    let raw = b.bitcast(a, ty.with_scalar(narrow));
    let code = b.cast(CastOp::ExtendU, raw, Scalar::I32);
    let Some(shape) = shape(ty.scalar) else {
        let bits = if ty.scalar == Scalar::Bf16 {
            b.bin_imm(BinOp::Shl, code, 16)
        } else {
            // 2^-127 is the one subnormal, and the last code is NaN.
            let bits = b.bin_imm(BinOp::Shl, code, 23);
            let bits = replace(b, code, 0, 0x0040_0000, bits);
            replace(b, code, 0xff, 0x7fc0_0000, bits)
        };
        return b.bitcast(bits, result);
    };
    let sign_bit = 1i64 << (ty.scalar.bits() - 1);
    let magnitude = b.bin_imm(BinOp::And, code, sign_bit - 1);
    let sign = b.bin_imm(BinOp::And, code, sign_bit);
    let sign = b.bin_imm(BinOp::Shl, sign, 32 - ty.scalar.bits() as i64);
    let aligned = b.bin_imm(BinOp::Shl, magnitude, 23 - shape.fraction);
    let normal = b.bin_imm(BinOp::Add, aligned, (127 - shape.bias) << 23);
    // A subnormal is a small integer times the smallest step.
    let steps = b.cast(CastOp::IntToFloatS, magnitude, Scalar::F32);
    let step = b.f32(ty.lanes, 2f32.powi((1 - shape.bias - shape.fraction) as i32));
    let tiny = b.mul(steps, step);
    let tiny = b.bitcast(tiny, words);
    let limit = b.int(words, 1 << shape.fraction);
    let is_tiny = b.cmp(CmpOp::LtS, magnitude, limit);
    let mut bits = b.select(is_tiny, tiny, normal);
    if shape.infinity {
        let special = b.bin_imm(BinOp::Or, aligned, 0x7f80_0000);
        let limit = b.int(words, shape.special);
        let finite = b.cmp(CmpOp::LtS, magnitude, limit);
        bits = b.select(finite, bits, special);
    } else {
        let whole = if shape.unsigned_zero { code } else { magnitude };
        bits = replace(b, whole, shape.special, 0x7fc0_0000, bits);
    }
    let bits = b.bin(BinOp::Or, bits, sign);
    b.bitcast(bits, result)
}

/// The small float nearest to an `f32`.
pub fn encode(b: &mut Builder, a: Value, to: Scalar) -> Value {
    let ty = b.ty(a);
    let words = ty.with_scalar(Scalar::I32);
    let bits = b.bitcast(a, words);
    let magnitude = b.bin_imm(BinOp::And, bits, 0x7fff_ffff);
    let infinity = b.int(words, 0x7f80_0000);
    let is_nan = b.cmp(CmpOp::LtS, infinity, magnitude);
    let sign = b.bin(BinOp::Xor, bits, magnitude);
    let (code, nan) = match (to, shape(to)) {
        (_, Some(shape)) => {
            let code = nearest(b, magnitude, &shape);
            let sign = b.bin_imm(BinOp::ShrU, sign, 32 - to.bits() as i64);
            let signed = b.bin(BinOp::Or, code, sign);
            (if shape.unsigned_zero { replace(b, code, 0, 0, signed) } else { signed }, shape.nan)
        }
        (Scalar::E8m0, None) => {
            let exponent = b.bin_imm(BinOp::ShrU, magnitude, 23);
            (b.bin_imm(BinOp::MinS, exponent, 0xfe), 0xff)
        }
        (_, None) => {
            let code = round_off(b, magnitude, 16);
            let sign = b.bin_imm(BinOp::ShrU, sign, 16);
            (b.bin(BinOp::Or, code, sign), 0x7fc0)
        }
    };
    let nan = b.int(words, nan);
    let code = b.select(is_nan, nan, code);
    let narrow = if to.bits() == 8 { Scalar::I8 } else { Scalar::I16 };
    let code = b.cast(CastOp::Truncate, code, narrow);
    b.bitcast(code, ty.with_scalar(to))
}

/// The code of a magnitude (bits of a non-negative `f32`), rounded to nearest even and clamped.
fn nearest(b: &mut Builder, magnitude: Value, shape: &Shape) -> Value {
    let words = b.ty(magnitude);
    let floats = words.with_scalar(Scalar::F32);
    // The exponent field counts from the small type's bias; a carry out of the fraction raises it, as it should.
    let rebased = b.bin_imm(BinOp::Sub, magnitude, (127 - shape.bias) << 23);
    let normal = round_off(b, rebased, 23 - shape.fraction);
    // Adding the number whose unit in the last place is the smallest step rounds a tiny number to whole steps.
    let magic = 2f32.powi((24 - shape.bias - shape.fraction) as i32);
    let number = b.bitcast(magnitude, floats);
    let magic_value = b.f32(words.lanes, magic);
    let steps = b.add(number, magic_value);
    let steps = b.bitcast(steps, words);
    let tiny = b.bin_imm(BinOp::Sub, steps, magic.to_bits() as i64);
    let limit = b.int(words, (128 - shape.bias) << 23);
    let is_tiny = b.cmp(CmpOp::LtS, magnitude, limit);
    let code = b.select(is_tiny, tiny, normal);
    b.bin_imm(BinOp::MinS, code, shape.over)
}

/// Drops low bits, rounding to nearest even.
fn round_off(b: &mut Builder, a: Value, bits: i64) -> Value {
    let last = b.bin_imm(BinOp::ShrU, a, bits);
    let last = b.bin_imm(BinOp::And, last, 1);
    let sum = b.bin_imm(BinOp::Add, a, (1 << (bits - 1)) - 1);
    let sum = b.add(sum, last);
    b.bin_imm(BinOp::ShrU, sum, bits)
}

/// `if a == code { this } else { other }`.
fn replace(b: &mut Builder, a: Value, code: i64, this: i64, other: Value) -> Value {
    let ty = b.ty(a);
    let code = b.int(ty, code);
    let this = b.int(ty, this);
    let here = b.cmp(CmpOp::Eq, a, code);
    b.select(here, this, other)
}
