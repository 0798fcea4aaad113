//! Arithmetic, comparisons and selection, lane by lane or on whole words where the lanes cannot tell.
//!
//! Always holds: `f32` rounds as IEEE 754 says (`.rn` on every instruction forbids contraction), subnormals stay;
//! f16 has the hardware's own arithmetic; bf16 goes through `fma` where one rounding equals two, else through `f32`.

use super::emit::Emitter;
use super::lanes::Fill;
use super::text::{F, Word};
use crate::ir::{BinOp, CmpOp, Scalar, Type, UnOp, Value};

impl Emitter<'_> {
    pub(super) fn bin(&mut self, op: BinOp, a: Value, b: Value, ty: Type) -> Vec<Word> {
        let (left, right) = (self.words(a), self.words(b));
        match ty.scalar {
            Scalar::Bool => self.each2(&left, &right, |e, a, b| {
                let (a, b) = (e.text.reg(a), e.text.reg(b));
                e.text.pred(&format!("{}.pred", logic(op)), &[&a, &b])
            }),
            Scalar::F32 => self.each2(&left, &right, |e, a, b| e.f32_bin(op, a, b)),
            Scalar::F16 => match op {
                BinOp::Div => self.through_f32(&[left, right], ty, |e, lane| e.f32_bin(op, lane[0], lane[1])),
                _ => {
                    let name = match op {
                        BinOp::Add => "add.rn.f16x2",
                        BinOp::Sub => "sub.rn.f16x2",
                        BinOp::Mul => "mul.rn.f16x2",
                        BinOp::Min => "min.NaN.f16x2",
                        _ => "max.NaN.f16x2",
                    };
                    self.each2(&left, &right, |e, a, b| {
                        let (a, b) = (e.text.reg(a), e.text.reg(b));
                        e.text.b32(name, &[&a, &b])
                    })
                }
            },
            Scalar::Bf16 => self.bf16_bin(op, left, right, ty),
            Scalar::I64 => self.each2(&left, &right, |e, a, b| e.i64_bin(op, a, b)),
            _ if matches!(op, BinOp::And | BinOp::Or | BinOp::Xor) => {
                self.each2(&left, &right, |e, a, b| e.text.b32(&format!("{}.b32", logic(op)), &[&a, &b]))
            }
            scalar => {
                let fill = match op {
                    BinOp::DivS | BinOp::RemS | BinOp::MinS | BinOp::MaxS | BinOp::ShrS => Fill::Sign,
                    _ => Fill::Zero,
                };
                let left = self.lanes(&left, ty, fill);
                let right = self.lanes(&right, ty, fill);
                let out = self.each2(&left, &right, |e, a, b| e.i32_bin(op, a, b, scalar.bits()));
                self.pack(ty, &out)
            }
        }
    }

    /// One integer lane of 32 bits, or a narrower one extended to it.
    fn i32_bin(&mut self, op: BinOp, a: Word, b: Word, bits: u32) -> Word {
        let name = match op {
            BinOp::Add => "add.s32",
            BinOp::Sub => "sub.s32",
            BinOp::Mul => "mul.lo.s32",
            BinOp::DivS => "div.s32",
            BinOp::RemS => "rem.s32",
            BinOp::MinS => "min.s32",
            BinOp::MaxS => "max.s32",
            BinOp::Shl => "shl.b32",
            BinOp::ShrU => "shr.u32",
            BinOp::ShrS => "shr.s32",
            BinOp::And | BinOp::Or | BinOp::Xor => return self.text.b32(&format!("{}.b32", logic(op)), &[&a, &b]),
            // Floats alone have these.
            BinOp::Div | BinOp::Min | BinOp::Max => return a,
        };
        let b = match op {
            BinOp::Shl | BinOp::ShrU | BinOp::ShrS => self.amount(b, bits),
            _ => b,
        };
        self.text.b32(name, &[&a, &b])
    }

    /// A shift amount modulo the width; the hardware would clamp it.
    fn amount(&mut self, amount: Word, bits: u32) -> Word {
        match amount {
            Word::I(known) => Word::I(known & (bits - 1)),
            other => self.text.b32("and.b32", &[&other, &(bits - 1)]),
        }
    }

    fn i64_bin(&mut self, op: BinOp, a: Word, b: Word) -> Word {
        let name = match op {
            BinOp::Add => "add.s64",
            BinOp::Sub => "sub.s64",
            BinOp::Mul => "mul.lo.s64",
            BinOp::DivS => "div.s64",
            BinOp::RemS => "rem.s64",
            BinOp::MinS => "min.s64",
            BinOp::MaxS => "max.s64",
            BinOp::And | BinOp::Or | BinOp::Xor => return self.text.b64(&format!("{}.b64", logic(op)), &[&a, &b]),
            BinOp::Shl => "shl.b64",
            BinOp::ShrU => "shr.u64",
            BinOp::ShrS => "shr.s64",
            BinOp::Div | BinOp::Min | BinOp::Max => return a,
        };
        let b = match (op, b) {
            (BinOp::Shl | BinOp::ShrU | BinOp::ShrS, Word::L(amount)) => Word::I(amount as u32 & 63),
            (BinOp::Shl | BinOp::ShrU | BinOp::ShrS, amount) => {
                let low = self.text.b32("cvt.u32.u64", &[&amount]);
                self.amount(low, 64)
            }
            (_, b) => b,
        };
        self.text.b64(name, &[&a, &b])
    }

    pub(super) fn f32_bin(&mut self, op: BinOp, a: Word, b: Word) -> Word {
        let name = match op {
            BinOp::Add => "add.rn.f32",
            BinOp::Sub => "sub.rn.f32",
            BinOp::Mul => "mul.rn.f32",
            BinOp::Div => "div.rn.f32",
            BinOp::Min => "min.NaN.f32",
            BinOp::Max => "max.NaN.f32",
            // Integers alone have these.
            BinOp::DivS
            | BinOp::RemS
            | BinOp::MinS
            | BinOp::MaxS
            | BinOp::And
            | BinOp::Or
            | BinOp::Xor
            | BinOp::Shl
            | BinOp::ShrU
            | BinOp::ShrS => return a,
        };
        self.text.b32(name, &[&F(a), &F(b)])
    }

    /// Sums and products of bf16 by one `fma`, which sm_80 has; their one rounding is the IR's, since `f32` has more
    /// than twice bf16's digits plus two. The rest goes through `f32`.
    fn bf16_bin(&mut self, op: BinOp, left: Vec<Word>, right: Vec<Word>, ty: Type) -> Vec<Word> {
        const ONES: Word = Word::I(0x3f80_3f80);
        const MINUS_ONES: Word = Word::I(0xbf80_bf80);
        const MINUS_ZEROS: Word = Word::I(0x8000_8000);
        // The upper half of a lone lane stays zero: 0·0 − 0 would set its sign.
        let minus_zeros = if ty.lanes == 1 { Word::I(0x8000) } else { MINUS_ZEROS };
        match op {
            BinOp::Add => self.each2(&left, &right, |e, a, b| e.fma_bf16x2(a, ONES, b)),
            BinOp::Sub => self.each2(&left, &right, |e, a, b| e.fma_bf16x2(b, MINUS_ONES, a)),
            BinOp::Mul => self.each2(&left, &right, |e, a, b| e.fma_bf16x2(a, b, minus_zeros)),
            _ => self.through_f32(&[left, right], ty, |e, lane| e.f32_bin(op, lane[0], lane[1])),
        }
    }

    fn fma_bf16x2(&mut self, a: Word, b: Word, c: Word) -> Word {
        let (a, b, c) = (self.text.reg(a), self.text.reg(b), self.text.reg(c));
        self.text.b32("fma.rn.bf16x2", &[&a, &b, &c])
    }

    pub(super) fn fma(&mut self, a: Value, b: Value, c: Value, ty: Type) -> Vec<Word> {
        let operands = [self.words(a), self.words(b), self.words(c)];
        let f32_fma =
            |e: &mut Emitter<'_>, lane: &[Word]| e.text.b32("fma.rn.f32", &[&F(lane[0]), &F(lane[1]), &F(lane[2])]);
        match ty.scalar {
            Scalar::F32 => (0..ty.lanes as usize)
                .map(|i| f32_fma(self, &[operands[0][i], operands[1][i], operands[2][i]]))
                .collect(),
            Scalar::F16 => (0..operands[0].len())
                .map(|i| {
                    let [a, b, c] = [0, 1, 2].map(|operand: usize| self.text.reg(operands[operand][i]));
                    self.text.b32("fma.rn.f16x2", &[&a, &b, &c])
                })
                .collect(),
            // The IR rounds to `f32` in between, which the hardware's bf16 does not.
            _ => self.through_f32(&operands, ty, f32_fma),
        }
    }

    pub(super) fn un(&mut self, op: UnOp, a: Value, ty: Type) -> Vec<Word> {
        let words = self.words(a);
        match (op, ty.scalar) {
            (UnOp::Not, Scalar::Bool) => self.each(&words, |e, a| {
                let a = e.text.reg(a);
                e.text.pred("not.pred", &[&a])
            }),
            (UnOp::Not, Scalar::I64) => self.each(&words, |e, a| e.text.b64("not.b64", &[&a])),
            (UnOp::Not, _) => {
                let mask = Word::I(word_mask(ty));
                self.each(&words, |e, a| e.text.b32("xor.b32", &[&a, &mask]))
            }
            (UnOp::Neg, Scalar::F32) => self.each(&words, |e, a| e.text.b32("neg.f32", &[&F(a)])),
            (UnOp::Abs, Scalar::F32) => self.each(&words, |e, a| e.text.b32("abs.f32", &[&F(a)])),
            (UnOp::Neg, Scalar::F16 | Scalar::Bf16) => {
                let signs = Word::I(word_mask(ty) & 0x8000_8000);
                self.each(&words, |e, a| e.text.b32("xor.b32", &[&a, &signs]))
            }
            (UnOp::Abs, Scalar::F16 | Scalar::Bf16) => {
                self.each(&words, |e, a| e.text.b32("and.b32", &[&a, &Word::I(0x7fff_7fff)]))
            }
            (UnOp::Neg, Scalar::I64) => self.each(&words, |e, a| e.text.b64("neg.s64", &[&a])),
            (UnOp::Neg, _) => {
                let lanes = self.lanes(&words, ty, Fill::Zero);
                let out = self.each(&lanes, |e, a| e.text.b32("neg.s32", &[&a]));
                self.pack(ty, &out)
            }
            (UnOp::Popcount, Scalar::I64) => self.each(&words, |e, a| {
                let a = e.text.reg(a);
                let count = e.text.b32("popc.b64", &[&a]);
                e.text.b64("cvt.u64.u32", &[&count])
            }),
            (UnOp::Popcount, _) => {
                let lanes = self.lanes(&words, ty, Fill::Zero);
                let out = self.each(&lanes, |e, a| {
                    let a = e.text.reg(a);
                    e.text.b32("popc.b32", &[&a])
                });
                self.pack(ty, &out)
            }
            (UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2 | UnOp::Abs, _) => {
                let name = match op {
                    UnOp::Sqrt => "sqrt.rn.f32",
                    UnOp::Nearest => "cvt.rni.f32.f32",
                    UnOp::Floor => "cvt.rmi.f32.f32",
                    // At most 2 units in the last place of error, of the IR's 4.
                    _ => "ex2.approx.f32",
                };
                self.through_f32(&[words], ty, |e, lane| {
                    let a = e.text.reg(lane[0]);
                    e.text.b32(name, &[&a])
                })
            }
        }
    }

    pub(super) fn cmp(&mut self, op: CmpOp, a: Value, b: Value) -> Vec<Word> {
        let ty = self.ty(a);
        let (left, right) = (self.words(a), self.words(b));
        if ty.scalar.is_float() {
            let name = match op {
                CmpOp::Eq => "setp.eq.f32",
                // True for a NaN.
                CmpOp::Ne => "setp.neu.f32",
                CmpOp::Lt => "setp.lt.f32",
                CmpOp::Le => "setp.le.f32",
                CmpOp::LtS | CmpOp::LeS | CmpOp::LtU => return left,
            };
            let left = self.widen(&left, ty);
            let right = self.widen(&right, ty);
            return self.each2(&left, &right, |e, a, b| e.text.pred(name, &[&F(a), &F(b)]));
        }
        let wide = ty.scalar == Scalar::I64;
        let (name, fill) = match (op, wide) {
            (CmpOp::Eq, false) => ("setp.eq.s32", Fill::Zero),
            (CmpOp::Ne, false) => ("setp.ne.s32", Fill::Zero),
            (CmpOp::LtU, false) => ("setp.lt.u32", Fill::Zero),
            (CmpOp::LtS | CmpOp::Lt, false) => ("setp.lt.s32", Fill::Sign),
            (CmpOp::LeS | CmpOp::Le, false) => ("setp.le.s32", Fill::Sign),
            (CmpOp::Eq, true) => ("setp.eq.s64", Fill::Zero),
            (CmpOp::Ne, true) => ("setp.ne.s64", Fill::Zero),
            (CmpOp::LtU, true) => ("setp.lt.u64", Fill::Zero),
            (CmpOp::LtS | CmpOp::Lt, true) => ("setp.lt.s64", Fill::Sign),
            (CmpOp::LeS | CmpOp::Le, true) => ("setp.le.s64", Fill::Sign),
        };
        let left = self.lanes(&left, ty, fill);
        let right = self.lanes(&right, ty, fill);
        self.each2(&left, &right, |e, a, b| e.text.pred(name, &[&a, &b]))
    }

    pub(super) fn select(&mut self, cond: Value, a: Value, b: Value, ty: Type) -> Vec<Word> {
        let conds = self.words(cond);
        let (left, right) = (self.words(a), self.words(b));
        if conds.len() == 1 {
            return self.each2(&left, &right, |e, a, b| e.select_word(conds[0], a, b));
        }
        let left = self.lanes(&left, ty, Fill::Zero);
        let right = self.lanes(&right, ty, Fill::Zero);
        let out: Vec<Word> =
            conds.iter().zip(left.iter().zip(&right)).map(|(&cond, (&a, &b))| self.select_word(cond, a, b)).collect();
        self.pack(ty, &out)
    }

    fn select_word(&mut self, cond: Word, a: Word, b: Word) -> Word {
        if let Word::B(taken) = cond {
            return if taken { a } else { b };
        }
        match a {
            Word::P(_) | Word::B(_) => {
                let (a, b) = (self.text.reg(a), self.text.reg(b));
                let first = self.text.pred("and.pred", &[&cond, &a]);
                let other = self.text.pred("not.pred", &[&cond]);
                let second = self.text.pred("and.pred", &[&other, &b]);
                self.text.pred("or.pred", &[&first, &second])
            }
            Word::D(_) | Word::L(_) => self.text.b64("selp.b64", &[&a, &b, &cond]),
            Word::R(_) | Word::I(_) => self.text.b32("selp.b32", &[&a, &b, &cond]),
        }
    }

    /// Applies a function of `f32` lanes to values of any float type, which are widened and rounded back.
    fn through_f32(
        &mut self,
        operands: &[Vec<Word>],
        ty: Type,
        function: impl Fn(&mut Self, &[Word]) -> Word,
    ) -> Vec<Word> {
        let wide: Vec<Vec<Word>> = operands.iter().map(|words| self.widen(words, ty)).collect();
        let lanes: Vec<Word> = (0..ty.lanes as usize)
            .map(|lane| {
                let lane: Vec<Word> = wide.iter().map(|words| words[lane]).collect();
                function(self, &lane)
            })
            .collect();
        self.narrow(&lanes, ty)
    }

    pub(super) fn each(&mut self, words: &[Word], function: impl Fn(&mut Self, Word) -> Word) -> Vec<Word> {
        words.iter().map(|&word| function(self, word)).collect()
    }

    pub(super) fn each2(
        &mut self,
        left: &[Word],
        right: &[Word],
        function: impl Fn(&mut Self, Word, Word) -> Word,
    ) -> Vec<Word> {
        left.iter().zip(right).map(|(&a, &b)| function(self, a, b)).collect()
    }
}

fn logic(op: BinOp) -> &'static str {
    match op {
        BinOp::And => "and",
        BinOp::Or => "or",
        _ => "xor",
    }
}

/// The bits of a value's words that belong to it.
fn word_mask(ty: Type) -> u32 {
    if ty.bits() >= 32 { u32::MAX } else { (1 << ty.bits()) - 1 }
}
