//! Arithmetic, comparisons, choices, and moves between lanes.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{self as clif, InstBuilder, types};

use super::emit::Emitter;
use super::level::Arch;
use super::value::{Repr, lane_type, piece_count, vector_type};
use crate::ir::{self, BinOp, CmpOp, Inst, Scalar, Type, UnOp};

impl Emitter<'_> {
    pub(super) fn bin(&mut self, op: BinOp, a_value: ir::Value, b_value: ir::Value) -> Repr {
        let ty = self.kernel.ty(a_value);
        let (a, b) = (self.get(a_value), self.get(b_value));
        let float = ty.scalar.is_float();
        match op {
            BinOp::Add if float => self.zip(&a, &b, |e, a, b| e.b.ins().fadd(a, b)),
            BinOp::Sub if float => self.zip(&a, &b, |e, a, b| e.b.ins().fsub(a, b)),
            BinOp::Mul if float => self.zip(&a, &b, |e, a, b| e.b.ins().fmul(a, b)),
            BinOp::Add => self.zip(&a, &b, |e, a, b| e.b.ins().iadd(a, b)),
            BinOp::Sub => self.zip(&a, &b, |e, a, b| e.b.ins().isub(a, b)),
            BinOp::Mul if ty.lanes > 1 && ty.scalar == Scalar::I8 => {
                let (a, b) = (self.resize(&a, types::I16, false), self.resize(&b, types::I16, false));
                let product = self.zip(&a, &b, |e, a, b| e.b.ins().imul(a, b));
                self.resize(&product, types::I8, false)
            }
            BinOp::Mul => self.zip(&a, &b, |e, a, b| e.b.ins().imul(a, b)),
            BinOp::Div => self.zip(&a, &b, |e, a, b| e.b.ins().fdiv(a, b)),
            BinOp::DivS | BinOp::RemS => self.divide(op, &a, b_value),
            BinOp::Min => self.zip(&a, &b, |e, a, b| e.b.ins().fmin(a, b)),
            BinOp::Max => self.zip(&a, &b, |e, a, b| e.b.ins().fmax(a, b)),
            BinOp::MinS | BinOp::MaxS if ty.scalar == Scalar::I64 && ty.lanes > 1 => self.zip(&a, &b, |e, a, b| {
                let cc = if op == BinOp::MinS { IntCC::SignedLessThan } else { IntCC::SignedGreaterThan };
                let first = e.b.ins().icmp(cc, a, b);
                e.b.ins().bitselect(first, a, b)
            }),
            BinOp::MinS => self.zip(&a, &b, |e, a, b| e.b.ins().smin(a, b)),
            BinOp::MaxS => self.zip(&a, &b, |e, a, b| e.b.ins().smax(a, b)),
            BinOp::And | BinOp::Or | BinOp::Xor => {
                let (a, b) = self.same_masks(ty, a, b);
                self.zip(&a, &b, |e, a, b| match op {
                    BinOp::And => e.b.ins().band(a, b),
                    BinOp::Or => e.b.ins().bor(a, b),
                    _ => e.b.ins().bxor(a, b),
                })
            }
            BinOp::Shl | BinOp::ShrU | BinOp::ShrS => self.shift(op, &a, b_value),
        }
    }

    /// Brings two masks to one width; leaves everything else alone.
    fn same_masks(&mut self, ty: Type, a: Repr, b: Repr) -> (Repr, Repr) {
        if ty.scalar != Scalar::Bool || ty.lanes == 1 {
            return (a, b);
        }
        let width = a.lane.bits().min(b.lane.bits());
        (self.mask_of_width(&a, width), self.mask_of_width(&b, width))
    }

    fn shift(&mut self, op: BinOp, a: &Repr, amount: ir::Value) -> Repr {
        let width = u64::from(a.lane.bits());
        if let Some(known) = self.known(amount) {
            return self.shift_known(op, a, (known % width) as u32);
        }
        let shift = |e: &mut Self, a, by| match op {
            BinOp::Shl => e.b.ins().ishl(a, by),
            BinOp::ShrU => e.b.ins().ushr(a, by),
            _ => e.b.ins().sshr(a, by),
        };
        if let Some(Inst::Splat(scalar)) = self.defs[amount.0 as usize]
            && a.lanes > 1
            && !self.broadcast.contains(scalar)
        {
            let by = self.get(*scalar).one();
            return self.map(a, |e, a| shift(e, a, by));
        }
        // Vector shifts take one amount for all lanes.
        let amount = self.get(amount);
        self.zip_lanes(a, &amount, shift)
    }

    /// A shift by a constant below the width.
    pub(super) fn shift_known(&mut self, op: BinOp, a: &Repr, by: u32) -> Repr {
        if by == 0 {
            return a.clone();
        }
        if self.facts.arch == Arch::X86 && a.lanes > 1 && a.lane == types::I8 && op != BinOp::ShrS {
            // x86 has no shift of bytes: shift 16 bits and clear what came from the neighbour.
            let keep = if op == BinOp::Shl { 0xff << by & 0xff } else { 0xff >> by };
            return self.map(a, |e, a| {
                let wide = e.bits_as(a, types::I16X8);
                let by = e.b.ins().iconst(types::I32, i64::from(by));
                let wide = if op == BinOp::Shl { e.b.ins().ishl(wide, by) } else { e.b.ins().ushr(wide, by) };
                let bytes = e.bits_as(wide, types::I8X16);
                let keep = e.number(types::I8X16, keep);
                e.b.ins().band(bytes, keep)
            });
        }
        self.map(a, |e, a| {
            let by = e.b.ins().iconst(types::I32, i64::from(by));
            match op {
                BinOp::Shl => e.b.ins().ishl(a, by),
                BinOp::ShrU => e.b.ins().ushr(a, by),
                _ => e.b.ins().sshr(a, by),
            }
        })
    }

    /// Signed division by constants. Scalar, for no ISA divides vectors of integers; `-1` is a negation, which wraps
    /// where the instruction would trap, and narrow numbers are divided in 32 bits.
    fn divide(&mut self, op: BinOp, a: &Repr, divisor: ir::Value) -> Repr {
        let divisors: Vec<u64> = match self.defs[divisor.0 as usize] {
            Some(Inst::Const(ir::Constant::Lanes(lanes))) => lanes.clone(),
            _ => vec![self.known(divisor).unwrap_or(1); a.lanes as usize],
        };
        let spare = 64 - a.lane.bits();
        let wide = if a.lane.bits() < 32 { types::I32 } else { a.lane };
        let lanes: Vec<clif::Value> = (0..a.lanes)
            .map(|i| {
                let dividend = self.lane(a, i);
                let divisor = (divisors[i as usize] << spare) as i64 >> spare;
                if divisor == -1 {
                    return match op {
                        BinOp::DivS => self.b.ins().ineg(dividend),
                        _ => self.b.ins().iconst(a.lane, 0),
                    };
                }
                let dividend = if wide == a.lane { dividend } else { self.b.ins().sextend(wide, dividend) };
                let divisor = self.number(wide, divisor as u64);
                let result = match op {
                    BinOp::DivS => self.b.ins().sdiv(dividend, divisor),
                    _ => self.b.ins().srem(dividend, divisor),
                };
                if wide == a.lane { result } else { self.b.ins().ireduce(a.lane, result) }
            })
            .collect();
        self.from_lanes(a.lane, &lanes)
    }

    pub(super) fn un(&mut self, op: UnOp, value: ir::Value) -> Repr {
        let ty = self.kernel.ty(value);
        let a = self.get(value);
        self.un_repr(op, ty, &a)
    }

    fn un_repr(&mut self, op: UnOp, ty: Type, a: &Repr) -> Repr {
        match op {
            UnOp::Neg if ty.scalar.is_float() => self.map(a, |e, a| e.b.ins().fneg(a)),
            UnOp::Neg => self.map(a, |e, a| e.b.ins().ineg(a)),
            UnOp::Not if ty.scalar == Scalar::Bool && ty.lanes == 1 => self.map(a, |e, a| e.b.ins().bxor_imm_u(a, 1)),
            UnOp::Not => self.map(a, |e, a| e.b.ins().bnot(a)),
            UnOp::Abs => self.map(a, |e, a| e.b.ins().fabs(a)),
            UnOp::Sqrt => self.map(a, |e, a| e.b.ins().sqrt(a)),
            UnOp::Nearest => self.map(a, |e, a| e.b.ins().nearest(a)),
            UnOp::Floor => self.map(a, |e, a| e.b.ins().floor(a)),
            UnOp::Exp2 => unreachable!("refused by support::check"),
            UnOp::Popcount => self.popcount(a),
        }
    }

    /// Counts bits by adding neighbours in ever wider fields, which every ISA can do.
    fn popcount(&mut self, a: &Repr) -> Repr {
        if a.lanes == 1 {
            return self.map(a, |e, a| e.b.ins().popcnt(a));
        }
        let mut a = a.clone();
        for (field, mask) in [(1, 0x5555_5555_5555_5555), (2, 0x3333_3333_3333_3333), (4, 0x0f0f_0f0f_0f0f_0f0f)]
            .into_iter()
            .chain([(8, 0x00ff_00ff_00ff_00ff), (16, 0x0000_ffff_0000_ffff), (32, 0x0000_0000_ffff_ffff)])
        {
            if field >= a.lane.bits() {
                break;
            }
            let high = self.shift_known(BinOp::ShrU, &a, field);
            let low = self.map(&a, |e, a| e.masked(a, mask));
            let high = self.map(&high, |e, a| e.masked(a, mask));
            a = self.zip(&low, &high, |e, a, b| e.b.ins().iadd(a, b));
        }
        a
    }

    /// `a & mask` in every lane.
    pub(super) fn masked(&mut self, a: clif::Value, mask: u64) -> clif::Value {
        let mask = self.number(self.type_of(a), mask);
        self.b.ins().band(a, mask)
    }

    pub(super) fn cmp(&mut self, op: CmpOp, a: ir::Value, b: ir::Value) -> Repr {
        let ty = self.kernel.ty(a);
        let (a, b) = (self.get(a), self.get(b));
        let lane = if ty.lanes == 1 { types::I8 } else { a.lane.as_int() };
        let mut compared = match op {
            CmpOp::Eq | CmpOp::Ne if ty.scalar == Scalar::Bool => {
                let (a, b) = self.same_masks(ty, a, b);
                let different = self.zip(&a, &b, |e, a, b| e.b.ins().bxor(a, b));
                return if op == CmpOp::Ne { different } else { self.un_repr(UnOp::Not, ty, &different) };
            }
            CmpOp::Eq if ty.scalar.is_float() => self.zip(&a, &b, |e, a, b| e.b.ins().fcmp(FloatCC::Equal, a, b)),
            CmpOp::Ne if ty.scalar.is_float() => self.zip(&a, &b, |e, a, b| e.b.ins().fcmp(FloatCC::NotEqual, a, b)),
            CmpOp::Lt => self.zip(&a, &b, |e, a, b| e.b.ins().fcmp(FloatCC::LessThan, a, b)),
            CmpOp::Le => self.zip(&a, &b, |e, a, b| e.b.ins().fcmp(FloatCC::LessThanOrEqual, a, b)),
            CmpOp::Eq => self.zip(&a, &b, |e, a, b| e.b.ins().icmp(IntCC::Equal, a, b)),
            CmpOp::Ne => self.zip(&a, &b, |e, a, b| e.b.ins().icmp(IntCC::NotEqual, a, b)),
            CmpOp::LtS => self.zip(&a, &b, |e, a, b| e.b.ins().icmp(IntCC::SignedLessThan, a, b)),
            CmpOp::LeS => self.zip(&a, &b, |e, a, b| e.b.ins().icmp(IntCC::SignedLessThanOrEqual, a, b)),
            CmpOp::LtU if ty.lanes > 1 => {
                // Unsigned order is signed order with the top bit flipped.
                let top = 1u64 << (a.lane.bits() - 1);
                self.zip(&a, &b, |e, a, b| {
                    let top = e.number(e.type_of(a), top);
                    let (a, b) = (e.b.ins().bxor(a, top), e.b.ins().bxor(b, top));
                    e.b.ins().icmp(IntCC::SignedLessThan, a, b)
                })
            }
            CmpOp::LtU => self.zip(&a, &b, |e, a, b| e.b.ins().icmp(IntCC::UnsignedLessThan, a, b)),
        };
        compared.lane = lane;
        compared
    }

    pub(super) fn select(&mut self, cond: ir::Value, a: ir::Value, b: ir::Value) -> Repr {
        let ty = self.kernel.ty(a);
        let (cond, a, b) = (self.get(cond), self.get(a), self.get(b));
        let (a, b) = self.same_masks(ty, a, b);
        if cond.lanes == 1 {
            let cond = cond.one();
            return self.zip(&a, &b, |e, a, b| e.b.ins().select(cond, a, b));
        }
        let mask = self.mask_of_width(&cond, a.lane.bits());
        let pieces = (0..a.pieces.len())
            .map(|i| {
                let mask = self.bits_as(mask.pieces[i], self.type_of(a.pieces[i]));
                self.b.ins().bitselect(mask, a.pieces[i], b.pieces[i])
            })
            .collect();
        a.with(pieces)
    }

    pub(super) fn fma(&mut self, a: ir::Value, b: ir::Value, c: ir::Value) -> Repr {
        let (a, b, c) = (self.get(a), self.get(b), self.get(c));
        let pieces = (0..a.pieces.len())
            .map(|i| {
                let (a, b, c) = (a.pieces[i], b.pieces[i], c.pieces[i]);
                if self.facts.fma {
                    return self.b.ins().fma(a, b, c);
                }
                if self.type_of(a).is_vector() {
                    return self.fma_through_f64([a, b, c]);
                }
                let vectors = [a, b, c].map(|scalar| self.in_lane_0(scalar));
                let vector = self.fma_through_f64(vectors);
                self.b.ins().extractlane(vector, 0)
            })
            .collect();
        a.with(pieces)
    }

    /// `f32x4` fused multiply-add without the instruction. In `f64` the product is exact and the sum is rounded to
    /// odd, so that the last rounding to `f32` is the only one that counts.
    fn fma_through_f64(&mut self, operands: [clif::Value; 3]) -> clif::Value {
        let halves = [0u8, 8].map(|first| {
            let [a, b, c] = operands.map(|operand| {
                let bytes = std::array::from_fn(|at| Some((operand, first + at as u8 % 8)));
                let half = if first == 0 { operand } else { self.gather_bytes(&bytes) };
                let half = self.bits_as(half, types::F32X4);
                self.b.ins().fvpromote_low(half)
            });
            let product = self.b.ins().fmul(a, b);
            let sum = self.b.ins().fadd(product, c);
            // What the sum lost (Knuth's exact sum of two numbers).
            let c_part = self.b.ins().fsub(sum, product);
            let product_part = self.b.ins().fsub(sum, c_part);
            let product_lost = self.b.ins().fsub(product, product_part);
            let c_lost = self.b.ins().fsub(c, c_part);
            let lost = self.b.ins().fadd(product_lost, c_lost);
            // Move an inexact even result one step towards what was lost: that neighbour is odd.
            let zero = self.number(types::F64X2, 0);
            let size = self.b.ins().fabs(lost);
            let inexact = self.b.ins().fcmp(FloatCC::GreaterThan, size, zero);
            let bits = self.bits_as(sum, types::I64X2);
            let lost_bits = self.bits_as(lost, types::I64X2);
            let one = self.number(types::I64X2, 1);
            let zero = self.number(types::I64X2, 0);
            let odd = self.b.ins().band(bits, one);
            let even = self.b.ins().isub(odd, one);
            let signs = self.b.ins().bxor(bits, lost_bits);
            let inwards = self.b.ins().icmp(IntCC::SignedLessThan, signs, zero);
            let step = self.b.ins().bor(inwards, one);
            let step = self.b.ins().band(step, inexact);
            let step = self.b.ins().band(step, even);
            let bits = self.b.ins().iadd(bits, step);
            let odd_sum = self.bits_as(bits, types::F64X2);
            self.b.ins().fvdemote(odd_sum)
        });
        let bytes = std::array::from_fn(|at| Some((halves[at / 8], at as u8 % 8)));
        let joined = self.gather_bytes(&bytes);
        self.bits_as(joined, types::F32X4)
    }

    pub(super) fn vector(&mut self, lanes: &[ir::Value]) -> Repr {
        let ty = self.kernel.ty(lanes[0]);
        let scalars: Vec<clif::Value> = lanes
            .iter()
            .map(|&lane| {
                let scalar = self.get(lane).one();
                if ty.scalar == Scalar::Bool && lanes.len() > 1 { self.b.ins().ineg(scalar) } else { scalar }
            })
            .collect();
        self.from_lanes(lane_type(ty.scalar), &scalars)
    }

    pub(super) fn splat(&mut self, value: ir::Value, ty: Type) -> Repr {
        let lane = lane_type(ty.scalar);
        if let Some(Inst::Extract { vector, lane: index }) = self.defs[value.0 as usize]
            && ty.scalar != Scalar::Bool
            && ty.lanes > 1
        {
            // A lane goes to every lane without a detour through a scalar register.
            let vector = self.get(*vector);
            let picks = vec![(&vector, *index); 16 / lane.bytes() as usize];
            let one = self.gather_lanes(lane, &picks).one();
            return Repr { lane, lanes: ty.lanes, pieces: vec![one; piece_count(lane, ty.lanes)] };
        }
        let scalar = self.get(value).one();
        if ty.lanes == 1 {
            return Repr::scalar(lane, self.bits_as(scalar, lane));
        }
        let scalar = if ty.scalar == Scalar::Bool { self.b.ins().ineg(scalar) } else { scalar };
        let read_as = vector_type(self.type_of(scalar));
        let vector = self.b.ins().splat(read_as, scalar);
        let vector = self.bits_as(vector, vector_type(lane));
        Repr { lane, lanes: ty.lanes, pieces: vec![vector; piece_count(lane, ty.lanes)] }
    }

    pub(super) fn swizzle(&mut self, a: ir::Value, b: ir::Value, lanes: &[u8]) -> Repr {
        let ty = self.kernel.ty(a);
        let (a, b) = (self.get(a), self.get(b));
        let (a, b) = self.same_masks(ty, a, b);
        let picks: Vec<(&Repr, u8)> =
            lanes.iter().map(|&lane| if lane < ty.lanes { (&a, lane) } else { (&b, lane - ty.lanes) }).collect();
        let picked = self.gather_lanes(a.lane, &picks);
        if ty.scalar != Scalar::Bool || (ty.lanes > 1) == (picked.lanes > 1) {
            return picked;
        }
        // Between a scalar bool (0 or 1) and a mask lane (0 or -1).
        if picked.lanes > 1 {
            return self.map(&picked, |e, a| e.b.ins().ineg(a));
        }
        let bit = self.resize(&picked, types::I8, false);
        self.map(&bit, |e, a| e.b.ins().band_imm_u(a, 1))
    }
}
