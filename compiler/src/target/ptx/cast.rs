//! Changes of representation.
//!
//! Always holds: every float type reaches every other through `f32`, which holds all their numbers, so that there is
//! one rounding; FP8 that the hardware converts stays here, the rest has been expanded.

use super::emit::{Emitter, word_count};
use super::lanes::Fill;
use super::text::{F, Word};
use crate::ir::{CastOp, Scalar, Type, Value};

impl Emitter<'_> {
    pub(super) fn cast(&mut self, op: CastOp, a: Value, ty: Type) -> Vec<Word> {
        let from = self.ty(a);
        let words = self.words(a);
        match op {
            CastOp::Truncate if from.scalar == Scalar::I64 => {
                let low = self.each(&words, |e, a| match a {
                    Word::L(bits) => Word::I(bits as u32),
                    a => e.text.b32("cvt.u32.u64", &[&a]),
                });
                self.pack(ty, &low)
            }
            CastOp::Truncate => {
                let bytes: Vec<_> = (0..ty.lanes)
                    .flat_map(|lane| {
                        let mut bytes = Self::lane_bytes(&words, from, lane);
                        bytes.truncate(ty.scalar.bytes() as usize);
                        bytes
                    })
                    .collect();
                self.gather(&bytes)
            }
            CastOp::ExtendU | CastOp::ExtendS => {
                let (fill, widen) = match op {
                    CastOp::ExtendU => (Fill::Zero, "cvt.u64.u32"),
                    _ => (Fill::Sign, "cvt.s64.s32"),
                };
                let lanes = self.lanes(&words, from, fill);
                if ty.scalar != Scalar::I64 {
                    return self.pack(ty, &lanes);
                }
                self.each(&lanes, |e, a| {
                    let a = e.text.reg(a);
                    e.text.b64(widen, &[&a])
                })
            }
            CastOp::IntToFloatS | CastOp::IntToFloatU => {
                let (fill, name) = match op {
                    CastOp::IntToFloatS => (Fill::Sign, "cvt.rn.f32.s32"),
                    _ => (Fill::Zero, "cvt.rn.f32.u32"),
                };
                let lanes = self.lanes(&words, from, fill);
                self.each(&lanes, |e, a| {
                    let a = e.text.reg(a);
                    e.text.b32(name, &[&a])
                })
            }
            CastOp::FloatToIntS => {
                let limit = 1i64 << (ty.scalar.bits() - 1);
                let lanes = self.each(&words, |e, a| {
                    let a = e.text.reg(a);
                    // Saturates, and gives 0 for a NaN.
                    let number = e.text.b32("cvt.rzi.s32.f32", &[&a]);
                    if ty.scalar == Scalar::I32 {
                        return number;
                    }
                    let above = e.text.b32("max.s32", &[&number, &-limit]);
                    e.text.b32("min.s32", &[&above, &(limit - 1)])
                });
                self.pack(ty, &lanes)
            }
            CastOp::Float => {
                let fp8 = matches!(from.scalar, Scalar::E4m3fn | Scalar::E5m2);
                if fp8 && ty.scalar == Scalar::F16 {
                    return self.fp8_to_f16(&words, from);
                }
                let wide = self.widen(&words, from);
                self.narrow(&wide, ty)
            }
        }
    }

    /// The lanes of a value of a float type as `f32`.
    pub(super) fn widen(&mut self, words: &[Word], ty: Type) -> Vec<Word> {
        match ty.scalar {
            Scalar::F32 => words.to_vec(),
            Scalar::F16 => self.f16_to_f32(words, ty.lanes),
            Scalar::Bf16 => {
                let mut out = Vec::new();
                for &word in words {
                    out.push(self.text.b32("shl.b32", &[&word, &16]));
                    out.push(self.text.b32("and.b32", &[&word, &Word::I(0xffff_0000)]));
                }
                out.truncate(ty.lanes as usize);
                out
            }
            Scalar::E4m3fn | Scalar::E5m2 => {
                let halves = self.fp8_to_f16(words, ty);
                self.f16_to_f32(&halves, ty.lanes)
            }
            // Integers have no such cast, and the other floats have been expanded.
            Scalar::Bool
            | Scalar::I8
            | Scalar::I16
            | Scalar::I32
            | Scalar::I64
            | Scalar::E4m3fnuz
            | Scalar::E5m2fnuz
            | Scalar::E8m0 => words.to_vec(),
        }
    }

    fn f16_to_f32(&mut self, words: &[Word], lanes: u8) -> Vec<Word> {
        let mut out = Vec::new();
        for &word in words {
            for half in self.text.split(word) {
                if out.len() < lanes as usize {
                    out.push(self.text.b32("cvt.f32.f16", &[&half]));
                }
            }
        }
        out
    }

    fn fp8_to_f16(&mut self, words: &[Word], ty: Type) -> Vec<Word> {
        let name = if ty.scalar == Scalar::E4m3fn { "cvt.rn.f16x2.e4m3x2" } else { "cvt.rn.f16x2.e5m2x2" };
        let count = word_count(ty.with_scalar(Scalar::F16));
        let mut out = Vec::new();
        for &word in words {
            for pair in self.text.split(word) {
                if out.len() < count {
                    // The byte past a lone lane is zero, and so is its number.
                    out.push(self.text.b32(name, &[&pair]));
                }
            }
        }
        out
    }

    /// A value of a float type from `f32` lanes, rounded to nearest even.
    pub(super) fn narrow(&mut self, lanes: &[Word], ty: Type) -> Vec<Word> {
        let zero = Word::I(0);
        match ty.scalar {
            Scalar::F32 => lanes.to_vec(),
            Scalar::F16 | Scalar::Bf16 => {
                let name = if ty.scalar == Scalar::F16 { "cvt.rn.f16x2.f32" } else { "cvt.rn.bf16x2.f32" };
                lanes
                    .chunks(2)
                    .map(|pair| {
                        let high = pair.get(1).copied().unwrap_or(zero);
                        self.text.b32(name, &[&F(high), &F(pair[0])])
                    })
                    .collect()
            }
            Scalar::E4m3fn | Scalar::E5m2 => {
                let name = if ty.scalar == Scalar::E4m3fn {
                    "cvt.rn.satfinite.e4m3x2.f32"
                } else {
                    "cvt.rn.satfinite.e5m2x2.f32"
                };
                lanes
                    .chunks(4)
                    .map(|four| {
                        let lane = |i: usize| F(four.get(i).copied().unwrap_or(zero));
                        let low = self.text.b16(name, &[&lane(1), &lane(0)]);
                        let high = self.text.b16(name, &[&lane(3), &lane(2)]);
                        self.text.join(low, high)
                    })
                    .collect()
            }
            Scalar::Bool
            | Scalar::I8
            | Scalar::I16
            | Scalar::I32
            | Scalar::I64
            | Scalar::E4m3fnuz
            | Scalar::E5m2fnuz
            | Scalar::E8m0 => lanes.to_vec(),
        }
    }

    /// The same bits read as another type: nothing to do, but 64-bit lanes live in registers of their own.
    pub(super) fn bitcast(&mut self, words: &[Word], from: Type, to: Type) -> Vec<Word> {
        match (from.scalar == Scalar::I64, to.scalar == Scalar::I64) {
            (true, false) => words.iter().flat_map(|&word| self.text.split_double(word)).collect(),
            (false, true) => words.chunks(2).map(|pair| self.text.join_double(pair[0], pair[1])).collect(),
            _ => words.to_vec(),
        }
    }
}
