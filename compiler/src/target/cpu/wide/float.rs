//! Floats: arithmetic on `f32`, one lane or many.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::value::{Repr, by_lane, is_general};
use crate::ir::{self, BinOp, Inst, Scalar, Type, UnOp};

/// `vroundps` and `vrndscaleps`: to nearest even and down, raising nothing.
const NEAREST: i64 = 8;
const FLOOR: i64 = 9;
/// `vcmpps`: at least one operand is NaN.
pub(super) const UNORDERED: i64 = 3;

impl Lower<'_> {
    pub fn float_bin(&mut self, op: BinOp, ty: Type, a: ir::Value, b: ir::Value) -> Repr {
        let simple = match op {
            BinOp::Add => Some(M::Vaddps),
            BinOp::Sub => Some(M::Vsubps),
            BinOp::Mul => Some(M::Vmulps),
            BinOp::Div => Some(M::Vdivps),
            _ => None,
        };
        if let Some(mnemonic) = simple {
            return self.two(mnemonic, matches!(op, BinOp::Sub | BinOp::Div), a, b);
        }
        let _ = ty;
        let (left, right) = (self.get(a), self.get(b));
        self.pairs(&left, &right, |l, size, a, b| l.float_extreme(op == BinOp::Min, size, a, b))
    }

    /// IEEE 754-2019 minimum or maximum. x86 gives the second operand for a NaN or two zeros, so both orders are taken:
    /// joined bits make -0 of two unlike zeros (their common bits +0), and a NaN where either is.
    fn float_extreme(&mut self, least: bool, size: Size, a: Reg, b: Reg) -> Reg {
        if least {
            let (x, y) = (self.vec2(M::Vminps, size, a, b), self.vec2(M::Vminps, size, b, a));
            return self.or(size, x, Arg::Use(y, size));
        }
        let (x, y) = (self.vec2(M::Vmaxps, size, a, b), self.vec2(M::Vmaxps, size, b, a));
        let both = self.and(size, x, Arg::Use(y, size));
        let args = [Arg::Use(a, size), Arg::Use(b, size), Arg::Imm(UNORDERED)];
        if self.facts.evex {
            let nan = self.mask(M::Vcmpps, &args);
            let nan = self.vec(M::Vpmovm2d, size, &[Arg::Use(nan, Size::K)]);
            return self.or(size, both, Arg::Use(nan, size));
        }
        let nan = self.vec(M::Vcmpps, size, &args);
        self.or(size, both, Arg::Use(nan, size))
    }

    pub fn un(&mut self, op: UnOp, value: ir::Value) -> Repr {
        let ty = self.kernel.ty(value);
        let a = self.get(value);
        if is_general(ty) {
            return Repr::general(ty.scalar, self.scalar_un(op, ty.scalar, a.one()));
        }
        if ty.scalar == Scalar::Bool {
            return self.not_bools(&a, ty.lanes);
        }
        let bits = ty.scalar.bits();
        self.each(&a, |l, size, a| match op {
            UnOp::Neg if ty.scalar == Scalar::F32 => {
                let sign = l.number_arg(size, 32, 0x8000_0000);
                l.xor(size, a, sign)
            }
            UnOp::Neg => {
                let zero = l.zero();
                l.vec2(by_lane(bits, [M::Vpsubb, M::Vpsubw, M::Vpsubd, M::Vpsubq]), size, zero, a)
            }
            UnOp::Not => {
                let ones = l.number_arg(size, 8, 0xff);
                l.xor(size, a, ones)
            }
            UnOp::Abs => {
                let magnitude = l.number_arg(size, 32, 0x7fff_ffff);
                l.and(size, a, magnitude)
            }
            UnOp::Sqrt => l.vec(M::Vsqrtps, size, &[Arg::Use(a, size)]),
            UnOp::Nearest | UnOp::Floor => {
                let mnemonic = if l.facts.evex { M::Vrndscaleps } else { M::Vroundps };
                l.vec_imm(mnemonic, size, a, if op == UnOp::Nearest { NEAREST } else { FLOOR })
            }
            // Expanded before.
            UnOp::Exp2 | UnOp::Popcount => a,
        })
    }

    pub fn fma(&mut self, a: ir::Value, b: ir::Value, c: ir::Value) -> Repr {
        let (a, b) = if self.folded.contains(&a) { (b, a) } else { (a, b) };
        let left = self.get(a);
        if let Some(Inst::Const(constant)) = self.defs[c.0 as usize]
            && self.known(c) != Some(0)
            && !self.folded.contains(&b)
        {
            // A constant that is added is read where it lies; the product's first factor gives way to the result.
            let added = self.constant_bytes(constant, self.kernel.ty(c));
            let right = self.get(b);
            let regs = (0..left.regs.len())
                .map(|i| {
                    let args = [Arg::Use(right.regs[i], left.size), self.bytes_arg(left.size, &added[i])];
                    self.accumulate(M::Vfmadd213ps, left.size, left.regs[i], &args)
                })
                .collect();
            return Repr::vector(left.size, regs);
        }
        let acc = self.get(c);
        let right = self.args(b);
        let regs = (0..left.regs.len())
            .map(|i| {
                let args = [Arg::Use(left.regs[i], left.size), right[i]];
                self.accumulate(M::Vfmadd231ps, left.size, acc.regs[i], &args)
            })
            .collect();
        Repr::vector(left.size, regs)
    }
}
