//! Conversions between numbers. Casts of 8-bit floats and bf16 are expanded before they come here.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::value::{Repr, general_size, is_general};
use crate::ir::{self, CastOp, Inst, Scalar, Type, UnOp};

impl Lower<'_> {
    pub fn cast(&mut self, op: CastOp, value: ir::Value, to: Type) -> Repr {
        let from = self.kernel.ty(value);
        match op {
            CastOp::Truncate | CastOp::ExtendU | CastOp::ExtendS => self.resize(op, value, from, to),
            CastOp::IntToFloatS | CastOp::IntToFloatU => {
                let a = self.get(value);
                self.int_to_float(&a, from, op == CastOp::IntToFloatS)
            }
            CastOp::FloatToIntS => {
                // The conversion rounds to the nearest one by itself.
                let (value, convert) = match self.defs[value.0 as usize] {
                    Some(&Inst::Un(UnOp::Nearest, exact)) => (exact, M::Vcvtps2dq),
                    _ => (value, M::Vcvttps2dq),
                };
                let a = self.get(value);
                self.float_to_int(&a, convert, to)
            }
            CastOp::Float => self.half_cast(value, from, to),
        }
    }

    fn resize(&mut self, op: CastOp, value: ir::Value, from: Type, to: Type) -> Repr {
        let (old, new) = (from.scalar.bits(), to.scalar.bits());
        let signed = op == CastOp::ExtendS;
        if is_general(from) {
            let a = self.get(value).one();
            let reg = match (old, new) {
                _ if new < old => a,
                (32, 64) if signed => self.general(M::Movsxd, Size::B8, &[Arg::Use(a, Size::B4)]),
                (32, 64) => self.general(M::Mov, Size::B4, &[Arg::Use(a, Size::B4)]),
                (_, 64) if signed => {
                    let size = if old == 8 { Size::B1 } else { Size::B2 };
                    self.general(M::Movsx, Size::B8, &[Arg::Use(a, size)])
                }
                _ => self.widened(from.scalar, a, signed),
            };
            return Repr::general(to.scalar, reg);
        }
        if op == CastOp::Truncate {
            let a = self.get(value);
            return self.truncate(&a, old, new, from.lanes);
        }
        if let Some(mems) = self.in_memory(value)
            && let ([mem], (size, 1)) = (mems.as_slice(), self.vector_shape(to.bytes()))
        {
            let reg = self.vec(extension(old, new, signed), size, &[Arg::Mem(*mem)]);
            return Repr::vector(size, vec![reg]);
        }
        let a = self.get(value);
        self.extend(&a, old, new, from.lanes, signed)
    }

    /// Integers of a larger width.
    pub fn extend(&mut self, a: &Repr, old: u32, new: u32, lanes: u8, signed: bool) -> Repr {
        if old == new {
            return a.clone();
        }
        let total = u32::from(lanes) * new / 8;
        let (size, count) = self.vector_shape(total);
        if count == 1 {
            let from = Size::vector(size.bytes() * old / new);
            let reg = self.vec(extension(old, new, signed), size, &[Arg::Use(a.one(), from)]);
            return Repr::vector(size, vec![reg]);
        }
        // Twice the width at a time; each register becomes two, or the only one fills a wider one.
        let twice = self.vector_shape(u32::from(lanes) * old / 4);
        let mnemonic = extension(old, 2 * old, signed);
        let half = Size::vector(twice.0.bytes() / 2);
        let mut regs = Vec::new();
        for &reg in &a.regs {
            regs.push(self.vec(mnemonic, twice.0, &[Arg::Use(reg, half)]));
            if twice.1 > 1 {
                let upper = self.upper_half(reg, a.size);
                regs.push(self.vec(mnemonic, twice.0, &[Arg::Use(upper, half)]));
            }
        }
        let wide = Repr::vector(twice.0, regs);
        self.extend(&wide, 2 * old, new, lanes, signed)
    }

    /// The low bits of integers.
    pub fn truncate(&mut self, a: &Repr, old: u32, new: u32, lanes: u8) -> Repr {
        if old == new {
            return a.clone();
        }
        if self.facts.evex {
            return self.narrow_by_move(a, old, new, lanes, false);
        }
        let half = old / 2;
        let narrow = if old == 64 {
            self.low_words(a, lanes)
        } else {
            let mask = (1u64 << half) - 1;
            let clear = self.each(a, |l, size, reg| {
                let mask = l.number_arg(size, old, mask);
                l.and(size, reg, mask)
            });
            self.pack(&clear, if old == 32 { M::Vpackusdw } else { M::Vpackuswb }, lanes, half)
        };
        self.truncate(&narrow, half, new, lanes)
    }

    /// AVX-512: narrowing moves, saturating as signed numbers or not at all.
    fn narrow_by_move(&mut self, a: &Repr, old: u32, new: u32, lanes: u8, saturate: bool) -> Repr {
        let mnemonic = match (old, new, saturate) {
            (64, 32, _) => M::Vpmovqd,
            (64, 16, _) => M::Vpmovqw,
            (64, 8, _) => M::Vpmovqb,
            (32, 16, false) => M::Vpmovdw,
            (32, 16, true) => M::Vpmovsdw,
            (32, 8, false) => M::Vpmovdb,
            (32, 8, true) => M::Vpmovsdb,
            _ => M::Vpmovwb,
        };
        let part = Size::vector(a.size.bytes() * new / old);
        let parts: Vec<Reg> = a.regs.iter().map(|&reg| self.vec(mnemonic, part, &[Arg::Use(reg, a.size)])).collect();
        let (size, count) = self.vector_shape(u32::from(lanes) * new / 8);
        if parts.len() == count {
            return Repr::vector(size, parts);
        }
        // Parts of 8 bytes come from no register of 64, so each is 16 or 32 bytes here; 64 -> 8 bits makes parts of 8.
        let bytes = a.size.bytes() * new / old;
        let mut chunks: Vec<Reg> = Vec::new();
        match bytes {
            8 => parts.chunks(2).for_each(|pair| {
                let joined =
                    if pair.len() == 2 { self.vec2(M::Vpunpcklqdq, Size::X, pair[0], pair[1]) } else { pair[0] };
                chunks.push(joined);
            }),
            16 => chunks = parts,
            _ => {
                let regs = parts
                    .chunks(2)
                    .map(|pair| if pair.len() == 2 { self.join_halves(Size::Z, pair[0], pair[1]) } else { pair[0] })
                    .collect();
                return Repr::vector(size, regs);
            }
        }
        self.joined_chunks(&chunks)
    }

    /// AVX2: the low halves of 64-bit lanes.
    fn low_words(&mut self, a: &Repr, lanes: u8) -> Repr {
        let (size, _) = self.vector_shape(u32::from(lanes) * 4);
        let pairs: Vec<(Reg, Reg)> = self.pairs_of(a);
        let regs = pairs
            .into_iter()
            .map(|(low, high)| {
                if a.size == Size::Y && a.regs.len() > 1 {
                    // Even words of both, quarter by quarter; then the quarters in order.
                    let args = [Arg::Use(low, size), Arg::Use(high, size), Arg::Imm(0x88)];
                    let mixed = self.vec(M::Vshufps, size, &args);
                    return self.vec_imm(M::Vpermq, size, mixed, 0xd8);
                }
                let args = [Arg::Use(low, Size::X), Arg::Use(high, Size::X), Arg::Imm(0x88)];
                self.vec(M::Vshufps, Size::X, &args)
            })
            .collect();
        Repr::vector(size, regs)
    }

    /// What narrowing reads together: neighbouring registers, or the halves of the only one.
    fn pairs_of(&mut self, a: &Repr) -> Vec<(Reg, Reg)> {
        if a.regs.len() > 1 {
            return a.regs.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        }
        let reg = a.one();
        match a.size {
            Size::X => vec![(reg, reg)],
            _ => vec![(reg, self.upper_half(reg, a.size))],
        }
    }

    /// AVX2: half the width by an instruction that packs two registers.
    fn pack(&mut self, a: &Repr, mnemonic: M, lanes: u8, half: u32) -> Repr {
        let (size, _) = self.vector_shape(u32::from(lanes) * half / 8);
        let whole = a.regs.len() > 1;
        let regs = self
            .pairs_of(a)
            .into_iter()
            .map(|(low, high)| {
                if whole {
                    let packed = self.vec2(mnemonic, Size::Y, low, high);
                    self.vec_imm(M::Vpermq, Size::Y, packed, 0xd8)
                } else {
                    self.vec2(mnemonic, Size::X, low, high)
                }
            })
            .collect();
        Repr::vector(size, regs)
    }

    /// Signed integers of 32 bits in fewer, saturating.
    fn narrow_saturating(&mut self, a: &Repr, new: u32, lanes: u8) -> Repr {
        if new == 32 {
            return a.clone();
        }
        if self.facts.evex {
            return self.narrow_by_move(a, 32, new, lanes, true);
        }
        let words = self.pack(a, M::Vpackssdw, lanes, 16);
        if new == 16 { words } else { self.pack(&words, M::Vpacksswb, lanes, 8) }
    }

    fn int_to_float(&mut self, a: &Repr, from: Type, signed: bool) -> Repr {
        let wide = if is_general(from) {
            let reg = self.widened(from.scalar, a.one(), signed);
            let reg = self.vec(M::Vmovd, Size::X, &[Arg::Use(reg, Size::B4)]);
            Repr::vector(Size::X, vec![reg])
        } else {
            self.extend(a, from.scalar.bits(), 32, from.lanes, signed)
        };
        if signed || from.scalar.bits() < 32 {
            return self.each(&wide, |l, size, a| l.vec(M::Vcvtdq2ps, size, &[Arg::Use(a, size)]));
        }
        self.unsigned_to_float(&wide)
    }

    /// Unsigned integers of 32 bits as floats, rounded once.
    pub fn unsigned_to_float(&mut self, wide: &Repr) -> Repr {
        self.each(wide, |l, size, a| {
            if l.facts.evex {
                return l.vec(M::Vcvtudq2ps, size, &[Arg::Use(a, size)]);
            }
            // Both halves are exact, and so is the upper one times 2^16: their sum is rounded once.
            let high = l.vec_imm(M::Vpsrld, size, a, 16);
            let high = l.vec(M::Vcvtdq2ps, size, &[Arg::Use(high, size)]);
            let mask = l.number_arg(size, 32, 0xffff);
            let low = l.and(size, a, mask);
            let low = l.vec(M::Vcvtdq2ps, size, &[Arg::Use(low, size)]);
            let up = l.number_arg(size, 32, u64::from(65536f32.to_bits()));
            l.accumulate(M::Vfmadd231ps, size, low, &[Arg::Use(high, size), up])
        })
    }

    /// Rounded to zero, saturating, NaN to 0. The instruction gives the least integer for all that does not fit; from
    /// 2^31 on its bits are flipped.
    fn float_to_int(&mut self, a: &Repr, convert: M, to: Type) -> Repr {
        const ORDERED: i64 = 7;
        const AT_LEAST: i64 = 13;
        let limit = u64::from(2147483648f32.to_bits());
        let ints = self.each(a, |l, size, a| {
            if l.facts.evex {
                let number = l.mask(M::Vcmpps, &[Arg::Use(a, size), Arg::Use(a, size), Arg::Imm(ORDERED)]);
                let limit = l.number_arg(size, 32, limit);
                let above = l.mask(M::Vcmpps, &[Arg::Use(a, size), limit, Arg::Imm(AT_LEAST)]);
                let ints = l.masked(convert, size, (number, true), &[Arg::Use(a, size)]);
                let flip = l.vec(M::Vpmovm2d, size, &[Arg::Use(above, Size::K)]);
                return l.xor(size, ints, Arg::Use(flip, size));
            }
            let number = l.vec(M::Vcmpps, size, &[Arg::Use(a, size), Arg::Use(a, size), Arg::Imm(ORDERED)]);
            let clean = l.and(size, a, Arg::Use(number, size));
            let limit = l.number_arg(size, 32, limit);
            let above = l.vec(M::Vcmpps, size, &[Arg::Use(clean, size), limit, Arg::Imm(AT_LEAST)]);
            let ints = l.vec(convert, size, &[Arg::Use(clean, size)]);
            l.xor(size, ints, Arg::Use(above, size))
        });
        if to.lanes > 1 {
            return self.narrow_saturating(&ints, to.scalar.bits(), to.lanes);
        }
        let mut reg = ints.one();
        if to.scalar != Scalar::I32 {
            let largest = (1u64 << (to.scalar.bits() - 1)) - 1;
            let (low, high) = (self.number_arg(Size::X, 32, !largest), self.number_arg(Size::X, 32, largest));
            reg = self.vec(M::Vpmaxsd, Size::X, &[Arg::Use(reg, Size::X), low]);
            reg = self.vec(M::Vpminsd, Size::X, &[Arg::Use(reg, Size::X), high]);
        }
        let out = self.general(M::Vmovd, Size::B4, &[Arg::Use(reg, Size::X)]);
        Repr::general(to.scalar, out)
    }

    /// Between binary16 and `f32`.
    fn half_cast(&mut self, value: ir::Value, from: Type, to: Type) -> Repr {
        if from.scalar == to.scalar {
            return self.get(value);
        }
        if to.scalar == Scalar::F32 {
            let (size, count) = self.vector_shape(to.bytes());
            if let Some(mems) = self.in_memory(value)
                && let ([mem], 1) = (mems.as_slice(), count)
            {
                let reg = self.vec(M::Vcvtph2ps, size, &[Arg::Mem(*mem)]);
                return Repr::vector(size, vec![reg]);
            }
            let a = self.get(value);
            if is_general(from) {
                let bits = self.general(M::Movzx, Size::B4, &[Arg::Use(a.one(), Size::B2)]);
                let code = self.vec(M::Vmovd, Size::X, &[Arg::Use(bits, Size::B4)]);
                let reg = self.vec(M::Vcvtph2ps, Size::X, &[Arg::Use(code, Size::X)]);
                return Repr::vector(Size::X, vec![reg]);
            }
            let half = Size::vector(size.bytes() / 2);
            let mut regs = Vec::new();
            for &reg in &a.regs {
                regs.push(self.vec(M::Vcvtph2ps, size, &[Arg::Use(reg, half)]));
                if count > 1 {
                    let upper = self.upper_half(reg, a.size);
                    regs.push(self.vec(M::Vcvtph2ps, size, &[Arg::Use(upper, half)]));
                }
            }
            return Repr::vector(size, regs);
        }
        let a = self.get(value);
        let part = Size::vector(a.size.bytes() / 2);
        let parts: Vec<Reg> =
            a.regs.iter().map(|&reg| self.vec(M::Vcvtps2ph, part, &[Arg::Use(reg, a.size), Arg::Imm(0)])).collect();
        if to.lanes == 1 {
            let out = self.general(M::Vmovd, general_size(to.scalar), &[Arg::Use(parts[0], Size::X)]);
            return Repr::general(to.scalar, out);
        }
        let (size, _) = self.vector_shape(to.bytes());
        let regs = match parts.as_slice() {
            [one] => vec![*one],
            many => many.chunks(2).map(|pair| self.join_halves(size, pair[0], pair[1])).collect(),
        };
        Repr::vector(size, regs)
    }
}

/// The instruction that extends lanes.
fn extension(old: u32, new: u32, signed: bool) -> M {
    match (old, new, signed) {
        (8, 16, false) => M::Vpmovzxbw,
        (8, 16, true) => M::Vpmovsxbw,
        (8, 32, false) => M::Vpmovzxbd,
        (8, 32, true) => M::Vpmovsxbd,
        (8, 64, false) => M::Vpmovzxbq,
        (8, 64, true) => M::Vpmovsxbq,
        (16, 32, false) => M::Vpmovzxwd,
        (16, 32, true) => M::Vpmovsxwd,
        (16, 64, false) => M::Vpmovzxwq,
        (16, 64, true) => M::Vpmovsxwq,
        (_, _, false) => M::Vpmovzxdq,
        (_, _, true) => M::Vpmovsxdq,
    }
}
