//! Operations of two operands; integers in vectors.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::value::{Repr, by_lane, is_general};
use crate::ir::{self, BinOp, Constant, Inst, Scalar, Type};

impl Lower<'_> {
    pub fn bin(&mut self, op: BinOp, a: ir::Value, b: ir::Value) -> Repr {
        let ty = self.kernel.ty(a);
        if is_general(ty) {
            let known = self.known(b);
            let left = self.get(a).one();
            let right = if known.is_some() { left } else { self.get(b).one() };
            let right = match (known, op) {
                // Whatever the short form takes as a number needs no register.
                (Some(_), BinOp::MinS | BinOp::MaxS) => self.get(b).one(),
                (Some(bits), _) if i32::try_from(bits as i64).is_err() && ty.scalar == Scalar::I64 => self.get(b).one(),
                _ => right,
            };
            return Repr::general(ty.scalar, self.scalar_bin(op, ty.scalar, left, right, known));
        }
        if ty.scalar == Scalar::Bool {
            return self.bools(op, ty, a, b);
        }
        if ty.scalar == Scalar::F32 {
            return self.float_bin(op, ty, a, b);
        }
        match op {
            BinOp::Shl | BinOp::ShrU | BinOp::ShrS => {
                let left = self.get(a);
                if let Some(by) = self.known(b) {
                    let by = (by % u64::from(ty.scalar.bits())) as u32;
                    return self.each(&left, |l, size, reg| l.shift(op, ty.scalar.bits(), size, reg, by));
                }
                let right = self.get(b);
                self.shift_each(op, ty, &left, &right)
            }
            BinOp::Or if self.facts.evex && (self.masked_by(a).is_some() || self.masked_by(b).is_some()) => {
                let (masked, rest) = if self.masked_by(a).is_some() { (a, b) } else { (b, a) };
                self.or_masked(masked, rest)
            }
            BinOp::DivS | BinOp::RemS => self.divide_lanes(op, ty, a, b),
            BinOp::MinS | BinOp::MaxS => {
                let (left, right) = (self.get(a), self.get(b));
                self.pairs(&left, &right, |l, size, a, b| l.extreme(op == BinOp::MinS, ty.scalar.bits(), size, a, b))
            }
            BinOp::Mul if matches!(ty.scalar, Scalar::I8 | Scalar::I64) => {
                let (left, right) = (self.get(a), self.get(b));
                self.pairs(&left, &right, |l, size, a, b| match ty.scalar {
                    Scalar::I8 => l.multiply_bytes(size, a, b),
                    _ => l.multiply_quads(size, a, b),
                })
            }
            _ => {
                let bits = ty.scalar.bits();
                let mnemonic = match op {
                    BinOp::Add => by_lane(bits, [M::Vpaddb, M::Vpaddw, M::Vpaddd, M::Vpaddq]),
                    BinOp::Sub => by_lane(bits, [M::Vpsubb, M::Vpsubw, M::Vpsubd, M::Vpsubq]),
                    BinOp::Mul => by_lane(bits, [M::Vpmullw, M::Vpmullw, M::Vpmulld, M::Vpmulld]),
                    BinOp::And => {
                        if self.facts.evex {
                            M::Vpandd
                        } else {
                            M::Vpand
                        }
                    }
                    BinOp::Or => {
                        if self.facts.evex {
                            M::Vpord
                        } else {
                            M::Vpor
                        }
                    }
                    _ => {
                        if self.facts.evex {
                            M::Vpxord
                        } else {
                            M::Vpxor
                        }
                    }
                };
                self.two(mnemonic, op == BinOp::Sub, a, b)
            }
        }
    }

    /// An instruction on two vectors, whose second operand may be in memory; the first one too if they may be swapped.
    pub fn two(&mut self, mnemonic: M, ordered: bool, a: ir::Value, b: ir::Value) -> Repr {
        let constant = |this: &Self, value: ir::Value| matches!(this.defs[value.0 as usize], Some(Inst::Const(_)));
        let swap = !ordered
            && self.values[a.0 as usize].is_none()
            && (self.folded.contains(&a) || constant(self, a))
            && !self.folded.contains(&b);
        let (a, b) = if swap { (b, a) } else { (a, b) };
        let left = self.get(a);
        let right = self.args(b);
        let regs = left
            .regs
            .iter()
            .zip(right)
            .map(|(&reg, arg)| self.vec(mnemonic, left.size, &[Arg::Use(reg, left.size), arg]))
            .collect();
        Repr::vector(left.size, regs)
    }

    /// What a value is made of by a mask, where that is a vector in registers under a constant one.
    fn masked_by(&self, value: ir::Value) -> Option<(ir::Value, ir::Value)> {
        let Some(Inst::Bin(BinOp::And, a, mask)) = self.defs[value.0 as usize] else { return None };
        let constant = matches!(self.defs[mask.0 as usize], Some(Inst::Const(_)));
        (constant && !self.folded.contains(a) && !is_general(self.kernel.ty(*a))).then_some((*a, *mask))
    }

    /// `masked | rest` in one instruction: `vpternlog` sets each bit as `own & mask | rest` says. The conjunction itself is
    /// dropped where nothing else reads it.
    fn or_masked(&mut self, masked: ir::Value, rest: ir::Value) -> Repr {
        let Some((own, mask)) = self.masked_by(masked) else { return self.two(M::Vpord, false, masked, rest) };
        let (own, rest) = (self.get(own), self.get(rest));
        let (size, mask) = (own.size, self.args(mask));
        let regs = (own.regs.iter().zip(&rest.regs).zip(mask))
            .map(|((&own, &rest), mask)| {
                let args = [Arg::Use(own, size), mask, Arg::Imm(0xf8)];
                self.accumulate(M::Vpternlogd, size, rest, &args)
            })
            .collect();
        Repr::vector(size, regs)
    }

    /// Applies something to each register.
    pub fn each(&mut self, a: &Repr, mut f: impl FnMut(&mut Self, Size, Reg) -> Reg) -> Repr {
        let regs = a.regs.iter().map(|&reg| f(self, a.size, reg)).collect();
        Repr { regs, ..a.clone() }
    }

    /// Applies something to each pair of registers.
    pub fn pairs(&mut self, a: &Repr, b: &Repr, mut f: impl FnMut(&mut Self, Size, Reg, Reg) -> Reg) -> Repr {
        let regs = a.regs.iter().zip(&b.regs).map(|(&x, &y)| f(self, a.size, x, y)).collect();
        Repr { regs, ..a.clone() }
    }

    /// A shift of every lane by a number below its width.
    pub fn shift(&mut self, op: BinOp, bits: u32, size: Size, a: Reg, by: u32) -> Reg {
        if by == 0 {
            return a;
        }
        let words = |op: BinOp, bits: u32| match op {
            BinOp::Shl => by_lane(bits, [M::Vpsllw, M::Vpsllw, M::Vpslld, M::Vpsllq]),
            BinOp::ShrU => by_lane(bits, [M::Vpsrlw, M::Vpsrlw, M::Vpsrld, M::Vpsrlq]),
            _ => by_lane(bits, [M::Vpsraw, M::Vpsraw, M::Vpsrad, M::Vpsraq]),
        };
        let number = i64::from(by);
        if bits == 8 {
            // There is no shift of bytes: shift pairs of them and clear what came from the neighbour.
            let logical = if op == BinOp::ShrS { BinOp::ShrU } else { op };
            let keep = if op == BinOp::Shl { 0xff << by & 0xff } else { 0xff >> by };
            let wide = self.vec_imm(words(logical, 16), size, a, number);
            let keep = self.number_arg(size, 8, keep);
            let field = self.and(size, wide, keep);
            return if op == BinOp::ShrS { self.sign_field(size, 8, field, 8 - by) } else { field };
        }
        if bits == 64 && op == BinOp::ShrS && !self.facts.evex {
            let field = self.vec_imm(M::Vpsrlq, size, a, number);
            return self.sign_field(size, 64, field, 64 - by);
        }
        self.vec_imm(words(op, bits), size, a, number)
    }

    /// The sign of a field of `width` bits at the bottom of zeroed lanes, carried through the lane.
    pub fn sign_field(&mut self, size: Size, bits: u32, field: Reg, width: u32) -> Reg {
        let top = 1u64 << (width - 1);
        let flip = self.number_arg(size, bits, top);
        let flipped = self.xor(size, field, flip);
        let top = self.number_arg(size, bits, top);
        let mnemonic = by_lane(bits, [M::Vpsubb, M::Vpsubw, M::Vpsubd, M::Vpsubq]);
        self.vec(mnemonic, size, &[Arg::Use(flipped, size), top])
    }

    /// Shifts whose amounts differ from lane to lane, taken modulo the width.
    fn shift_each(&mut self, op: BinOp, ty: Type, a: &Repr, by: &Repr) -> Repr {
        let bits = ty.scalar.bits();
        let direct =
            bits == 32 || bits == 64 && (op != BinOp::ShrS || self.facts.evex) || bits == 16 && self.facts.evex;
        if direct {
            return self.pairs(a, by, |l, size, a, by| {
                let modulo = l.number_arg(size, bits, u64::from(bits) - 1);
                let by = l.and(size, by, modulo);
                let mnemonic = match (op, bits) {
                    (BinOp::Shl, 16) => M::Vpsllvw,
                    (BinOp::Shl, 32) => M::Vpsllvd,
                    (BinOp::Shl, _) => M::Vpsllvq,
                    (BinOp::ShrU, 16) => M::Vpsrlvw,
                    (BinOp::ShrU, 32) => M::Vpsrlvd,
                    (BinOp::ShrU, _) => M::Vpsrlvq,
                    (_, 16) => M::Vpsravw,
                    (_, 32) => M::Vpsravd,
                    _ => M::Vpsravq,
                };
                l.vec2(mnemonic, size, a, by)
            });
        }
        if bits == 64 {
            // AVX2 has no arithmetic shift of 64 bits: flip numbers below zero, shift, flip back.
            return self.pairs(a, by, |l, size, a, by| {
                let modulo = l.number_arg(size, 64, 63);
                let by = l.and(size, by, modulo);
                let zero = l.zero();
                let sign = l.vec2(M::Vpcmpgtq, size, zero, a);
                let flipped = l.xor(size, a, Arg::Use(sign, size));
                let shifted = l.vec2(M::Vpsrlvq, size, flipped, by);
                l.xor(size, shifted, Arg::Use(sign, size))
            });
        }
        // Narrow lanes are shifted in 32 bits.
        let modulo = Type::vector(ty.scalar, ty.lanes);
        let by = self.each(by, |l, size, by| {
            let modulo = l.number_arg(size, modulo.scalar.bits(), u64::from(bits) - 1);
            l.and(size, by, modulo)
        });
        let wide_a = self.extend(a, bits, 32, ty.lanes, op == BinOp::ShrS);
        let wide_by = self.extend(&by, bits, 32, ty.lanes, false);
        let wide = self.shift_each(op, Type::vector(Scalar::I32, ty.lanes), &wide_a, &wide_by);
        self.truncate(&wide, 32, bits, ty.lanes)
    }

    /// The smaller or larger of signed lanes.
    fn extreme(&mut self, least: bool, bits: u32, size: Size, a: Reg, b: Reg) -> Reg {
        if bits == 64 && !self.facts.evex {
            let above = self.vec2(M::Vpcmpgtq, size, a, b);
            let (on, off) = if least { (b, a) } else { (a, b) };
            return self.blend_bytes(size, above, on, off);
        }
        let mnemonic = if least {
            by_lane(bits, [M::Vpminsb, M::Vpminsw, M::Vpminsd, M::Vpminsq])
        } else {
            by_lane(bits, [M::Vpmaxsb, M::Vpmaxsw, M::Vpmaxsd, M::Vpmaxsq])
        };
        self.vec2(mnemonic, size, a, b)
    }

    /// Bytes of `on` where the mask's are set, of `off` elsewhere (AVX2).
    pub fn blend_bytes(&mut self, size: Size, mask: Reg, on: Reg, off: Reg) -> Reg {
        self.vec(M::Vpblendvb, size, &[Arg::Use(off, size), Arg::Use(on, size), Arg::Use(mask, size)])
    }

    /// Products of bytes: those of even bytes and those of odd ones in 16 bits, side by side.
    fn multiply_bytes(&mut self, size: Size, a: Reg, b: Reg) -> Reg {
        let even = self.vec2(M::Vpmullw, size, a, b);
        let low = self.number_arg(size, 16, 0xff);
        let even = self.and(size, even, low);
        let (a, b) = (self.vec_imm(M::Vpsrlw, size, a, 8), self.vec_imm(M::Vpsrlw, size, b, 8));
        let odd = self.vec2(M::Vpmullw, size, a, b);
        let odd = self.vec_imm(M::Vpsllw, size, odd, 8);
        self.or(size, even, Arg::Use(odd, size))
    }

    fn multiply_quads(&mut self, size: Size, a: Reg, b: Reg) -> Reg {
        if self.facts.evex {
            return self.vec2(M::Vpmullq, size, a, b);
        }
        // Low by low, plus the two crossed products moved up.
        let low = self.vec2(M::Vpmuludq, size, a, b);
        let (a_high, b_high) = (self.vec_imm(M::Vpsrlq, size, a, 32), self.vec_imm(M::Vpsrlq, size, b, 32));
        let (left, right) = (self.vec2(M::Vpmuludq, size, a_high, b), self.vec2(M::Vpmuludq, size, a, b_high));
        let crossed = self.vec2(M::Vpaddq, size, left, right);
        let crossed = self.vec_imm(M::Vpsllq, size, crossed, 32);
        self.vec2(M::Vpaddq, size, low, crossed)
    }

    /// Signed division by constants, lane by lane: no level divides vectors of integers.
    fn divide_lanes(&mut self, op: BinOp, ty: Type, a: ir::Value, divisor: ir::Value) -> Repr {
        let divisors: Vec<u64> = match self.defs[divisor.0 as usize] {
            Some(Inst::Const(Constant::Lanes(lanes))) => lanes.clone(),
            _ => vec![self.known(divisor).unwrap_or(1); ty.lanes as usize],
        };
        let a = self.get(a);
        let size = if ty.scalar == Scalar::I64 { Size::B8 } else { Size::B4 };
        let spare = 64 - ty.scalar.bits();
        let lanes: Vec<Reg> = (0..ty.lanes as usize)
            .map(|i| {
                let lane = self.lane(ty.scalar, &a, i).one();
                let lane = self.widened(ty.scalar, lane, true);
                self.divided_by(op, size, lane, ((divisors[i] << spare) as i64) >> spare)
            })
            .collect();
        self.vector_of(ty.scalar, &lanes)
    }
}
