//! Arithmetic on single numbers where Rust's own operators are not the IR's: small floats, minimum, casts.
//!
//! Reads and makes bit patterns in the low bits of a `u64`. Always holds: f16 and bf16 arithmetic is done in `f32`
//! and rounded once more; for f16 that equals one rounding, since `f32` has more than twice its digits plus two.

use super::float8::{decode, encode};
use crate::ir::kernel::{BinOp, CastOp, CmpOp, UnOp};
use crate::ir::types::Scalar;

/// IEEE 754-2019 `minimum`: NaN if either is, and -0 below +0.
#[inline(always)]
pub fn minimum(a: f32, b: f32) -> f32 {
    if a < b {
        a
    } else if b < a {
        b
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else {
        f32::NAN
    }
}

/// IEEE 754-2019 `maximum`.
#[inline(always)]
pub fn maximum(a: f32, b: f32) -> f32 {
    if a > b {
        a
    } else if b > a {
        b
    } else if a == b {
        f32::from_bits(a.to_bits() & b.to_bits())
    } else {
        f32::NAN
    }
}

/// The number, or a zero of its sign in place of a subnormal one.
#[inline(always)]
pub fn without_subnormals(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// A multiply-add of numbers without subnormals, whose factors have at most 12 bits each, that gives zeros in place of results
/// that are below the smallest normal number once rounded to 24 bits of whatever exponent.
pub fn flushing_fma(a: f32, b: f32, c: f32) -> f32 {
    let sum = without_subnormals(a.mul_add(b, c));
    if sum.abs() != f32::MIN_POSITIVE {
        return sum;
    }
    // Subnormals have fewer bits, so that more rounds up to the smallest normal number: three quarters of the last step below
    // it. The product is exact here, and the sum too, or too close to the number for its rounding to matter.
    let exact = (f64::from(a) * f64::from(b) + f64::from(c)).abs();
    let limit = f64::from(f32::MIN_POSITIVE) * (1.0 - 1.0 / f64::from(1 << 25));
    if exact < limit { 0.0f32.copysign(sum) } else { sum }
}

/// A float operation of two operands; other operations give 0.
#[inline(always)]
pub fn float_bin(op: BinOp, a: f32, b: f32) -> f32 {
    match op {
        BinOp::Add => a + b,
        BinOp::Sub => a - b,
        BinOp::Mul => a * b,
        BinOp::Div => a / b,
        BinOp::Min => minimum(a, b),
        BinOp::Max => maximum(a, b),
        BinOp::DivS
        | BinOp::RemS
        | BinOp::MinS
        | BinOp::MaxS
        | BinOp::And
        | BinOp::Or
        | BinOp::Xor
        | BinOp::Shl
        | BinOp::ShrU
        | BinOp::ShrS => 0.0,
    }
}

/// A float operation of one operand; other operations give 0. `Neg` and `Abs` work on the sign alone, NaN included.
#[inline(always)]
pub fn float_un(op: UnOp, a: f32) -> f32 {
    match op {
        UnOp::Neg => -a,
        UnOp::Abs => a.abs(),
        UnOp::Sqrt => a.sqrt(),
        UnOp::Nearest => a.round_ties_even(),
        UnOp::Floor => a.floor(),
        UnOp::Exp2 => (a as f64).exp2() as f32,
        UnOp::Not | UnOp::Popcount => 0.0,
    }
}

/// A float comparison; integer ones give false.
#[inline(always)]
pub fn float_cmp(op: CmpOp, a: f32, b: f32) -> bool {
    match op {
        CmpOp::Eq => a == b,
        CmpOp::Ne => a != b,
        CmpOp::Lt => a < b,
        CmpOp::Le => a <= b,
        CmpOp::LtS | CmpOp::LeS | CmpOp::LtU => false,
    }
}

/// A small float as `f32`: always exact.
#[inline(always)]
pub fn widen(scalar: Scalar, bits: u16) -> f32 {
    if scalar == Scalar::Bf16 { f32::from_bits((bits as u32) << 16) } else { half_to_f32(bits) }
}

/// `f32` to a 16-bit float, nearest even.
#[inline(always)]
pub fn narrow(scalar: Scalar, number: f32) -> u16 {
    if scalar == Scalar::Bf16 {
        if number.is_nan() {
            return 0x7fc0;
        }
        let bits = number.to_bits();
        // Half a unit, less one where the kept part is even, makes ties go to even. Infinity stays put.
        ((bits as u64 + 0x7fff + (bits as u64 >> 16 & 1)) >> 16) as u16
    } else {
        encode(Scalar::F16, number as f64) as u16
    }
}

fn half_to_f32(bits: u16) -> f32 {
    decode(Scalar::F16, bits as u64) as f32
}

/// `a * b + c` of 16-bit floats.
#[inline(always)]
pub fn small_fma(scalar: Scalar, a: u16, b: u16, c: u16) -> u16 {
    if scalar == Scalar::Bf16 {
        narrow(scalar, widen(scalar, a).mul_add(widen(scalar, b), widen(scalar, c)))
    } else {
        // The product is exact in f64, and wherever the sum is not, f16's rounding is far from a tie.
        let wide = |bits| widen(scalar, bits) as f64;
        encode(Scalar::F16, wide(a) * wide(b) + wide(c)) as u16
    }
}

/// One lane of a cast from bits to bits.
#[inline(always)]
pub fn cast(op: CastOp, from: Scalar, to: Scalar, bits: u64) -> u64 {
    let mask = |width: u32| if width >= 64 { u64::MAX } else { (1 << width) - 1 };
    let signed = |bits: u64| {
        let shift = 64 - from.bits();
        ((bits << shift) as i64) >> shift
    };
    match op {
        CastOp::Truncate | CastOp::ExtendU => bits & mask(to.bits()),
        CastOp::ExtendS => signed(bits) as u64 & mask(to.bits()),
        CastOp::IntToFloatS => (signed(bits) as f32).to_bits() as u64,
        CastOp::IntToFloatU => (bits as f32).to_bits() as u64,
        CastOp::FloatToIntS => {
            let number = f32::from_bits(bits as u32);
            let integer = match to {
                Scalar::I8 => number as i8 as i64,
                Scalar::I16 => number as i16 as i64,
                _ => number as i32 as i64,
            };
            integer as u64 & mask(to.bits())
        }
        CastOp::Float => match (from, to) {
            (Scalar::Bf16, Scalar::F32) => widen(from, bits as u16).to_bits() as u64,
            (Scalar::F32, Scalar::Bf16) => narrow(to, f32::from_bits(bits as u32)) as u64,
            _ => encode(to, decode(from, bits)),
        },
    }
}
