//! Comparisons, selections and vectors of bools.
//!
//! With AVX-512 a vector of bools is a mask register. On AVX2 it is a vector of all-ones and zero lanes, as wide as the
//! comparison that made it, resized where it meets other lanes.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::value::{Repr, by_lane, is_general};
use crate::ir::{self, BinOp, CmpOp, Constant, Scalar, Type};

/// Predicates of `vcmpps` that raise nothing for quiet NaNs.
fn float_predicate(op: CmpOp) -> i64 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Ne => 4,
        CmpOp::Lt => 17,
        _ => 18,
    }
}

impl Lower<'_> {
    pub fn cmp(&mut self, op: CmpOp, a: ir::Value, b: ir::Value) -> Repr {
        let ty = self.kernel.ty(a);
        let (left, right) = (self.get(a), self.get(b));
        if is_general(ty) {
            let bit = self.scalar_cmp(op, ty.scalar, left.one(), right.one());
            return Repr::general(Scalar::Bool, bit);
        }
        let mask = if self.facts.evex {
            self.compare_masks(op, ty, &left, &right)
        } else {
            let bits = ty.scalar.bits();
            let compared = self.pairs(&left, &right, |l, size, a, b| l.compare_lanes(op, ty.scalar, size, a, b));
            Repr { lane: bits, ..compared }
        };
        if ty.lanes > 1 {
            return mask;
        }
        let bit = self.mask_bit(&mask, 0);
        Repr::general(Scalar::Bool, bit)
    }

    /// AVX2: lanes of ones where the comparison holds.
    fn compare_lanes(&mut self, op: CmpOp, scalar: Scalar, size: Size, a: Reg, b: Reg) -> Reg {
        if scalar == Scalar::F32 {
            let args = [Arg::Use(a, size), Arg::Use(b, size), Arg::Imm(float_predicate(op))];
            return self.vec(M::Vcmpps, size, &args);
        }
        let bits = scalar.bits();
        let equal = by_lane(bits, [M::Vpcmpeqb, M::Vpcmpeqw, M::Vpcmpeqd, M::Vpcmpeqq]);
        let above = by_lane(bits, [M::Vpcmpgtb, M::Vpcmpgtw, M::Vpcmpgtd, M::Vpcmpgtq]);
        let inverted = |l: &mut Self, mask: Reg| {
            let ones = l.number_arg(size, 8, 0xff);
            l.xor(size, mask, ones)
        };
        match op {
            CmpOp::Eq => self.vec2(equal, size, a, b),
            CmpOp::Ne => {
                let mask = self.vec2(equal, size, a, b);
                inverted(self, mask)
            }
            CmpOp::LtS => self.vec2(above, size, b, a),
            CmpOp::LeS => {
                let mask = self.vec2(above, size, a, b);
                inverted(self, mask)
            }
            // Unsigned order is signed order with the top bit flipped. Floats alone have the other two.
            CmpOp::LtU | CmpOp::Lt | CmpOp::Le => {
                let top = 1u64 << (bits - 1);
                let flip = self.number(size, bits, top);
                let (a, b) = (self.xor(size, a, Arg::Use(flip, size)), self.xor(size, b, Arg::Use(flip, size)));
                self.vec2(above, size, b, a)
            }
        }
    }

    /// AVX-512: a mask of the lanes where the comparison holds.
    fn compare_masks(&mut self, op: CmpOp, ty: Type, a: &Repr, b: &Repr) -> Repr {
        let bits = ty.scalar.bits();
        let (mnemonic, predicate) = match op {
            _ if ty.scalar == Scalar::F32 => (M::Vcmpps, float_predicate(op)),
            CmpOp::LtU => (by_lane(bits, [M::Vpcmpub, M::Vpcmpuw, M::Vpcmpud, M::Vpcmpuq]), 1),
            _ => {
                let predicate = match op {
                    CmpOp::Eq => 0,
                    CmpOp::LtS => 1,
                    CmpOp::LeS => 2,
                    _ => 4,
                };
                (by_lane(bits, [M::Vpcmpb, M::Vpcmpw, M::Vpcmpd, M::Vpcmpq]), predicate)
            }
        };
        let per = 8 * a.size.bytes() / bits;
        let masks: Vec<Reg> = a
            .regs
            .iter()
            .zip(&b.regs)
            .map(|(&x, &y)| self.mask(mnemonic, &[Arg::Use(x, a.size), Arg::Use(y, a.size), Arg::Imm(predicate)]))
            .collect();
        let joined = self.join_masks(&masks, per);
        // Whole registers: a comparison clears the bits above its lanes.
        let spare = per * masks.len() as u32 - u32::from(ty.lanes);
        self.trimmed(joined, if spare == 0 { 64 } else { ty.lanes })
    }

    /// Masks of `per` lanes each, one above the other.
    fn join_masks(&mut self, masks: &[Reg], per: u32) -> Reg {
        let mut joined = masks[0];
        for (i, &mask) in masks.iter().enumerate().skip(1) {
            let args = [Arg::Use(mask, Size::K), Arg::Imm(i64::from(i as u32 * per))];
            let moved = self.mask(M::Kshiftlq, &args);
            joined = self.mask(M::Korq, &[Arg::Use(joined, Size::K), Arg::Use(moved, Size::K)]);
        }
        joined
    }

    /// A mask whose bits past the last lane are 0. Vectors of fewer lanes than a register make bits from garbage.
    fn trimmed(&mut self, mask: Reg, lanes: u8) -> Repr {
        let spare = 64 - i64::from(lanes);
        let mut mask = mask;
        if spare > 0 {
            mask = self.mask(M::Kshiftlq, &[Arg::Use(mask, Size::K), Arg::Imm(spare)]);
            mask = self.mask(M::Kshiftrq, &[Arg::Use(mask, Size::K), Arg::Imm(spare)]);
        }
        Repr { size: Size::K, lane: 0, regs: vec![mask] }
    }

    /// A known vector of bools.
    pub fn constant_mask(&mut self, constant: &Constant, lanes: u8) -> Repr {
        let bit = |i: usize| match constant {
            Constant::Splat(bits) => bits & 1,
            Constant::Lanes(list) => list[i] & 1,
        };
        if self.facts.evex {
            let bits = (0..lanes as usize).fold(0u64, |all, i| all | bit(i) << i);
            let reg = self.int(Size::B8, bits as i64);
            return Repr { size: Size::K, lane: 0, regs: vec![self.mask(M::Kmovq, &[Arg::Use(reg, Size::B8)])] };
        }
        let bytes: Vec<u64> = (0..lanes as usize).map(|i| 0xff * bit(i)).collect();
        let repr = self.make_constant(&Constant::Lanes(bytes), Type::vector(Scalar::I8, lanes));
        Repr { lane: 8, ..repr }
    }

    /// A vector of bools with lanes of so many bits; a mask register has none.
    pub fn mask_of_width(&mut self, mask: &Repr, lanes: u8, bits: u32) -> Repr {
        if self.facts.evex || mask.lane == bits {
            return mask.clone();
        }
        let resized = if mask.lane < bits {
            self.extend(mask, mask.lane, bits, lanes, true)
        } else {
            self.truncate(mask, mask.lane, bits, lanes)
        };
        Repr { lane: bits, ..resized }
    }

    /// Two vectors of bools with lanes of one width.
    fn alike(&mut self, a: &Repr, b: &Repr, lanes: u8) -> (Repr, Repr) {
        let bits = a.lane.min(b.lane);
        (self.mask_of_width(a, lanes, bits), self.mask_of_width(b, lanes, bits))
    }

    /// `and`, `or` and `xor` of bools.
    pub fn bools(&mut self, op: BinOp, ty: Type, a: ir::Value, b: ir::Value) -> Repr {
        let (a, b) = (self.get(a), self.get(b));
        if self.facts.evex {
            let mnemonic = match op {
                BinOp::And => M::Kandq,
                BinOp::Or => M::Korq,
                _ => M::Kxorq,
            };
            let reg = self.mask(mnemonic, &[a.arg(), b.arg()]);
            return Repr { size: Size::K, lane: 0, regs: vec![reg] };
        }
        let (a, b) = self.alike(&a, &b, ty.lanes);
        self.pairs(&a, &b, |l, size, a, b| match op {
            BinOp::And => l.and(size, a, Arg::Use(b, size)),
            BinOp::Or => l.or(size, a, Arg::Use(b, size)),
            _ => l.xor(size, a, Arg::Use(b, size)),
        })
    }

    pub fn not_bools(&mut self, a: &Repr, lanes: u8) -> Repr {
        if self.facts.evex {
            let reg = self.mask(M::Knotq, &[a.arg()]);
            return self.trimmed(reg, lanes);
        }
        self.each(a, |l, size, reg| {
            let ones = l.number_arg(size, 8, 0xff);
            l.xor(size, reg, ones)
        })
    }

    /// A scalar bool in every lane.
    pub fn splat_bool(&mut self, bit: Reg, lanes: u8) -> Repr {
        let zero = self.int(Size::B8, 0);
        let all = self.general2(M::Sub, Size::B8, zero, Arg::Use(bit, Size::B8));
        if self.facts.evex {
            let mask = self.mask(M::Kmovq, &[Arg::Use(all, Size::B8)]);
            return self.trimmed(mask, lanes);
        }
        let (size, count) = self.vector_shape(u32::from(lanes));
        let lane = self.vec(M::Vmovd, Size::X, &[Arg::Use(all, Size::B4)]);
        let reg = self.vec(M::Vpbroadcastb, size, &[Arg::Use(lane, Size::X)]);
        Repr { size, lane: 8, regs: vec![reg; count] }
    }

    /// The bools that say which bytes are not 0.
    pub fn nonzero_bytes(&mut self, bytes: &Repr, lanes: u8) -> Repr {
        let ty = Type::vector(Scalar::I8, lanes);
        let zero = self.zero();
        let zeros = Repr { regs: vec![zero; bytes.regs.len()], ..bytes.clone() };
        if self.facts.evex {
            return self.compare_masks(CmpOp::Ne, ty, bytes, &zeros);
        }
        let mask = self.pairs(bytes, &zeros, |l, size, a, b| l.compare_lanes(CmpOp::Ne, Scalar::I8, size, a, b));
        Repr { lane: 8, ..mask }
    }

    /// Lane `index` of a vector of bools as 0 or 1.
    pub fn mask_bit(&mut self, mask: &Repr, index: u8) -> Reg {
        if self.facts.evex {
            let mut reg = mask.one();
            if index > 0 {
                reg = self.mask(M::Kshiftrq, &[Arg::Use(reg, Size::K), Arg::Imm(i64::from(index))]);
            }
            let bits = self.general(M::Kmovd, Size::B4, &[Arg::Use(reg, Size::K)]);
            return self.general2(M::And, Size::B4, bits, Arg::Imm(1));
        }
        let scalar = match mask.lane {
            8 => Scalar::I8,
            16 => Scalar::I16,
            32 => Scalar::I32,
            _ => Scalar::I64,
        };
        let lane = self.lane(scalar, mask, index as usize);
        self.general2(M::And, Size::B4, lane.one(), Arg::Imm(1))
    }

    /// Lanes picked from two vectors of bools, as bytes.
    pub fn swizzle_bools(&mut self, ty: Type, sources: [&Repr; 2], lanes: &[u8]) -> Repr {
        let bytes = sources.map(|repr| {
            if ty.lanes == 1 {
                let zero = self.int(Size::B4, 0);
                let byte = self.general2(M::Sub, Size::B4, zero, Arg::Use(repr.one(), Size::B4));
                return Repr::vector(Size::X, vec![self.vec(M::Vmovd, Size::X, &[Arg::Use(byte, Size::B4)])]);
            }
            if !self.facts.evex {
                return self.mask_of_width(repr, ty.lanes, 8);
            }
            let (size, _) = self.vector_shape(u32::from(ty.lanes));
            Repr::vector(size, vec![self.vec(M::Vpmovm2b, size, &[repr.arg()])])
        });
        // A scalar is lane 0 of a vector here, so its neighbours must not be read: `pick` reads lanes of the type alone.
        let many = Type::vector(Scalar::I8, ty.lanes);
        if let &[lane] = lanes {
            let (repr, lane) = if lane < ty.lanes { (&bytes[0], lane) } else { (&bytes[1], lane - ty.lanes) };
            let byte = self.lane(Scalar::I8, repr, lane as usize).one();
            return Repr::general(Scalar::Bool, self.general2(M::And, Size::B4, byte, Arg::Imm(1)));
        }
        let picked = self.pick_vectors(many, [&bytes[0], &bytes[1]], lanes);
        if self.facts.evex {
            let mask = self.mask(M::Vpmovb2m, &[Arg::Use(picked.one(), picked.size)]);
            return self.trimmed(mask, lanes.len() as u8);
        }
        Repr { lane: 8, ..picked }
    }

    pub fn select(&mut self, cond: ir::Value, a: ir::Value, b: ir::Value) -> Repr {
        let ty = self.kernel.ty(a);
        let cond_type = self.kernel.ty(cond);
        if let Some(extreme) = self.select_extreme(cond, ty, a, b) {
            return extreme;
        }
        let (cond, a, b) = (self.get(cond), self.get(a), self.get(b));
        if is_general(ty) {
            self.push(M::Test, vec![Arg::Use(cond.one(), Size::B4), Arg::Use(cond.one(), Size::B4)]);
            let reg = self.choose(super::machine::Condition::NotZero, a.size, a.one(), b.one());
            return Repr::general(ty.scalar, reg);
        }
        let cond = if cond_type.lanes == 1 { self.splat_bool(cond.one(), ty.lanes) } else { cond };
        if ty.scalar == Scalar::Bool {
            return self.select_bools(ty.lanes, &cond, &a, &b);
        }
        let bits = ty.scalar.bits();
        if self.facts.evex {
            let per = 8 * a.size.bytes() / bits;
            let blend = by_lane(bits, [M::Vpblendmb, M::Vpblendmw, M::Vpblendmd, M::Vpblendmq]);
            let regs = (0..a.regs.len())
                .map(|i| {
                    let mut mask = cond.one();
                    if i > 0 {
                        let by = Arg::Imm(i64::from(i as u32 * per));
                        mask = self.mask(M::Kshiftrq, &[Arg::Use(mask, Size::K), by]);
                    }
                    let args = [Arg::Use(b.regs[i], a.size), Arg::Use(a.regs[i], a.size)];
                    self.masked(blend, a.size, (mask, false), &args)
                })
                .collect();
            return Repr::vector(a.size, regs);
        }
        let mask = self.mask_of_width(&cond, ty.lanes, bits);
        let regs = (0..a.regs.len()).map(|i| self.blend_bytes(a.size, mask.regs[i], a.regs[i], b.regs[i])).collect();
        Repr::vector(a.size, regs)
    }

    /// `x < y ? y : x` and `x < y ? x : y` of floats: `vmaxps` and `vminps`, which give the second operand unless the first
    /// is beyond it, NaNs and zeros included.
    fn select_extreme(&mut self, cond: ir::Value, ty: Type, a: ir::Value, b: ir::Value) -> Option<Repr> {
        let Some(&ir::Inst::Cmp(CmpOp::Lt, x, y)) = self.defs[cond.0 as usize] else { return None };
        if ty.scalar != Scalar::F32 || self.kernel.ty(cond).lanes != ty.lanes {
            return None;
        }
        let mnemonic = match (a, b) {
            _ if (a, b) == (y, x) => M::Vmaxps,
            _ if (a, b) == (x, y) => M::Vminps,
            _ => return None,
        };
        let (first, second) = (self.get(a), self.get(b));
        Some(self.pairs(&first, &second, |l, size, a, b| l.vec2(mnemonic, size, a, b)))
    }

    fn select_bools(&mut self, lanes: u8, cond: &Repr, a: &Repr, b: &Repr) -> Repr {
        if self.facts.evex {
            let on = self.mask(M::Kandq, &[cond.arg(), a.arg()]);
            let off = self.mask(M::Kandnq, &[cond.arg(), b.arg()]);
            let reg = self.mask(M::Korq, &[Arg::Use(on, Size::K), Arg::Use(off, Size::K)]);
            return Repr { size: Size::K, lane: 0, regs: vec![reg] };
        }
        let (a, b) = self.alike(a, b, lanes);
        let cond = self.mask_of_width(cond, lanes, a.lane);
        let regs = (0..a.regs.len()).map(|i| self.blend_bytes(a.size, cond.regs[i], a.regs[i], b.regs[i])).collect();
        Repr { regs, ..a }
    }
}
