//! Arithmetic on f16 and bf16 as arithmetic on `f32`, rounded once more.
//!
//! Always holds: the result is the interpreter's. For f16, sums, products, quotients and roots rounded twice equal those
//! rounded once, since `f32` has more than twice f16's digits plus two; for `fma` the sum is rounded to odd first, which
//! keeps the second rounding honest. bf16 is defined as two roundings.

use super::Choice;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Inst, Scalar, Type, UnOp, Value};

impl Choice {
    fn widened(&self, scalar: Scalar) -> bool {
        scalar == Scalar::F16 && self.f16_arithmetic || scalar == Scalar::Bf16 && self.bf16_arithmetic
    }

    /// A cast between floats, expanded or not.
    fn convert(&self, b: &mut Builder, a: Value, to: Scalar) -> Value {
        match self.float_cast(b, a, to) {
            Some(value) => value,
            None => b.cast(CastOp::Float, a, to),
        }
    }

    /// Builds the expansion of an arithmetic instruction on small floats, or nothing if it stays.
    pub(super) fn small_arithmetic(&self, b: &mut Builder, inst: &Inst, ty: Type) -> Option<Value> {
        match *inst {
            Inst::Bin(op, x, y) if self.widened(ty.scalar) => {
                let (x, y) = (self.convert(b, x, Scalar::F32), self.convert(b, y, Scalar::F32));
                let wide = b.bin(op, x, y);
                Some(self.convert(b, wide, ty.scalar))
            }
            Inst::Un(op, x) if self.widened(ty.scalar) => {
                // The sign is a bit, NaN's too.
                let bits = ty.with_scalar(Scalar::I16);
                let on_sign = match op {
                    UnOp::Neg => Some((BinOp::Xor, 0x8000)),
                    UnOp::Abs => Some((BinOp::And, 0x7fff)),
                    _ => None,
                };
                if let Some((sign, mask)) = on_sign {
                    let x = b.bitcast(x, bits);
                    let x = b.bin_imm(sign, x, mask);
                    return Some(b.bitcast(x, ty));
                }
                let x = self.convert(b, x, Scalar::F32);
                let wide = b.un(op, x);
                Some(self.convert(b, wide, ty.scalar))
            }
            Inst::Cmp(op, x, y) if self.widened(b.ty(x).scalar) => {
                let (x, y) = (self.convert(b, x, Scalar::F32), self.convert(b, y, Scalar::F32));
                Some(b.cmp(op, x, y))
            }
            Inst::Fma(x, y, z) if self.widened(ty.scalar) || ty.scalar == Scalar::F16 && self.f16_fma => {
                let [x, y, z] = [x, y, z].map(|value| self.convert(b, value, Scalar::F32));
                let wide = if ty.scalar == Scalar::Bf16 { b.fma(x, y, z) } else { odd_fma(b, x, y, z) };
                Some(self.convert(b, wide, ty.scalar))
            }
            _ => None,
        }
    }
}

/// `x * y + z` of f16 numbers in `f32`, rounded to odd: where the sum is not exact and its last bit is even, it moves to
/// the neighbour on the side of what was lost. (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums",
/// 2008.) The product of two f16 numbers is exact in `f32`.
fn odd_fma(b: &mut Builder, x: Value, y: Value, z: Value) -> Value {
    let floats = b.ty(x);
    let words = floats.with_scalar(Scalar::I32);
    let product = b.mul(x, y);
    let sum = b.add(product, z);
    // Knuth's two-sum: what the addition lost, exactly.
    let of_z = b.bin(BinOp::Sub, sum, product);
    let of_product = b.bin(BinOp::Sub, sum, of_z);
    let lost_product = b.bin(BinOp::Sub, product, of_product);
    let lost_z = b.bin(BinOp::Sub, z, of_z);
    let lost = b.add(lost_product, lost_z);
    let zero = b.f32(floats.lanes, 0.0);
    // Both are false of the NaN that infinities make.
    let below = b.cmp(CmpOp::Lt, lost, zero);
    let above = b.cmp(CmpOp::Lt, zero, lost);
    let inexact = b.bin(BinOp::Or, below, above);
    let bits = b.bitcast(sum, words);
    let no = b.int(words, 0);
    let negative = b.cmp(CmpOp::LtS, bits, no);
    let inward = b.bin(BinOp::Xor, below, negative);
    // `below` and negative, or `above` and positive: away from zero, one more; otherwise one less.
    let outward = b.bin(BinOp::Xor, inward, inexact);
    let (one, minus_one) = (b.int(words, 1), b.int(words, -1));
    let last = b.bin(BinOp::And, bits, one);
    let even = b.cmp(CmpOp::Eq, last, no);
    let step = b.select(outward, one, minus_one);
    let moves = b.bin(BinOp::And, inexact, even);
    let step = b.select(moves, step, no);
    let bits = b.add(bits, step);
    b.bitcast(bits, floats)
}
