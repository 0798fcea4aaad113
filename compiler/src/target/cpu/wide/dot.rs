//! Bit fields and integer dot products.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::value::{Repr, by_lane, is_general};
use crate::ir::{self, BinOp, Dot4Signs, Inst, Scalar, Type};

/// Dot products without VNNI whose terms are added up in 16 bits until they could overflow.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Sums of pairs of products, per register.
    pairs: Vec<Reg>,
    /// What the sums are to be added to.
    acc: ir::Value,
    /// Terms in the sums.
    terms: u32,
}

impl<'a> Lower<'a> {
    pub fn unpack(&mut self, value: ir::Value, shift: u8, bits: u8, signed: bool, to: Type) -> Repr {
        let from = self.kernel.ty(value);
        let float = to.scalar == Scalar::F32;
        let scalar = if float { Scalar::I32 } else { to.scalar };
        let container = to.with_scalar(scalar);
        let (shift, bits) = (u32::from(shift), u32::from(bits));
        if is_general(container) {
            let a = if is_general(from) {
                self.get(value)
            } else {
                let vector = self.get(value);
                self.lane_0_as(scalar, vector.one())
            };
            let field = self.scalar_field(scalar, a.one(), shift, bits, signed);
            if !float {
                return Repr::general(scalar, field);
            }
            let lane = self.vec(M::Vmovd, Size::X, &[Arg::Use(field, Size::B4)]);
            let field = Repr::vector(Size::X, vec![lane]);
            return self.field_to_float(&field, bits, signed);
        }
        let (size, _) = self.vector_shape(container.bytes());
        let width = scalar.bits();
        if !signed && shift == 0 && bits < width && self.folded.contains(&value) {
            let keep = self.number(size, width, u64::MAX >> (64 - bits));
            let args = self.args(value);
            let regs = args.into_iter().map(|arg| self.and(size, keep, arg)).collect();
            let field = Repr::vector(size, regs);
            return if float { self.field_to_float(&field, bits, false) } else { field };
        }
        let a = if is_general(from) {
            let scalar = self.get(value);
            let lane = self.in_lane_0(from, &scalar);
            Repr::vector(Size::X, vec![lane])
        } else {
            self.get(value)
        };
        let fields = self.each(&a, |l, size, a| l.field(width, size, a, shift, bits, signed));
        if float { self.field_to_float(&fields, bits, signed) } else { fields }
    }

    fn scalar_field(&mut self, scalar: Scalar, a: Reg, shift: u32, bits: u32, signed: bool) -> Reg {
        let width = scalar.bits();
        let up = u64::from(width - bits - shift);
        let down = u64::from(width - bits);
        let left = self.scalar_bin(BinOp::Shl, scalar, a, a, Some(up));
        self.scalar_bin(if signed { BinOp::ShrS } else { BinOp::ShrU }, scalar, left, left, Some(down))
    }

    /// A bit field of each lane.
    fn field(&mut self, width: u32, size: Size, a: Reg, shift: u32, bits: u32, signed: bool) -> Reg {
        if width > 8 && (signed && (width < 64 || self.facts.evex) || shift + bits == width) {
            let left = self.shift(BinOp::Shl, width, size, a, width - bits - shift);
            return self.shift(if signed { BinOp::ShrS } else { BinOp::ShrU }, width, size, left, width - bits);
        }
        if bits == width {
            return a;
        }
        // Bytes have no shift: the mask that cuts the field out also clears what came from the neighbour.
        let step = width.max(16);
        let moved = if shift == 0 {
            a
        } else {
            let mnemonic = by_lane(step, [M::Vpsrlw, M::Vpsrlw, M::Vpsrld, M::Vpsrlq]);
            self.vec_imm(mnemonic, size, a, i64::from(shift))
        };
        let keep = self.number(size, width, u64::MAX >> (64 - bits));
        let field = self.and(size, moved, Arg::Use(keep, size));
        if signed { self.sign_field(size, width, field, bits) } else { field }
    }

    fn field_to_float(&mut self, field: &Repr, bits: u32, signed: bool) -> Repr {
        if signed || bits < 32 {
            return self.each(field, |l, size, a| l.vec(M::Vcvtdq2ps, size, &[Arg::Use(a, size)]));
        }
        self.unsigned_to_float(field)
    }

    /// `acc + Σ a.byte * b.byte` per 32-bit lane. `None` where the sum goes on: its last term makes the value.
    pub fn dot4(
        &mut self,
        signs: Dot4Signs,
        a_bits: u8,
        [a, b, acc]: [ir::Value; 3],
        result: Option<ir::Value>,
    ) -> Option<Repr> {
        let ty = self.kernel.ty(acc);
        let unsigned = signs == Dot4Signs::UnsignedSigned;
        if unsigned && !self.facts.vnni && a_bits < 8 && ty.lanes > 1 {
            return self.dot4_in_words(a_bits, [a, b, acc], result);
        }
        let scalar = ty.lanes == 1;
        let sum = self.get(acc);
        let start = if scalar {
            let lane = self.in_lane_0(ty, &sum);
            Repr::vector(Size::X, vec![lane])
        } else {
            sum
        };
        let (a_value, b_value) = (a, b);
        let left = self.get(a);
        let right = self.args(b);
        let size = start.size;
        let regs = (0..start.regs.len())
            .map(|i| {
                let (acc, a) = (start.regs[i], left.regs[i]);
                match (self.facts.vnni, unsigned) {
                    (true, true) => self.accumulate(M::Vpdpbusd, size, acc, &[Arg::Use(a, size), right[i]]),
                    (true, false) => {
                        // (a + 128) · b - 128 · b, with a + 128 unsigned.
                        let b = self.in_register(size, right[i]);
                        let top = self.number(size, 8, 0x80);
                        let raised = self.xor(size, a, Arg::Use(top, size));
                        let sum = self.accumulate(M::Vpdpbusd, size, acc, &[Arg::Use(raised, size), b]);
                        let zero = self.zero();
                        let extra = self.accumulate(M::Vpdpbusd, size, zero, &[Arg::Use(top, size), b]);
                        self.vec2(M::Vpsubd, size, sum, extra)
                    }
                    (false, _) => {
                        let b = self.in_register(size, right[i]);
                        self.dot4_exact(size, acc, (a_value, a), (b_value, b), unsigned)
                    }
                }
            })
            .collect();
        let sum = Repr::vector(size, regs);
        Some(if scalar { self.lane_0_as(Scalar::I32, sum.one()) } else { sum })
    }

    /// `acc + Σ a.word * b.word` per 32-bit lane, of bf16.
    fn dot2_bf16(&mut self, [a, b, acc]: [ir::Value; 3]) -> Repr {
        let in_vector = |l: &mut Self, value: ir::Value| {
            let (ty, repr) = (l.kernel.ty(value), l.get(value));
            if is_general(ty) { Repr::vector(Size::X, vec![l.in_lane_0(ty, &repr)]) } else { repr }
        };
        let left = in_vector(self, a);
        let part = self.kernel.ty(b);
        let right = if is_general(part) { vec![in_vector(self, b).arg()] } else { self.args(b) };
        let start = self.get(acc);
        let size = left.size;
        let regs = (0..left.regs.len())
            .map(|i| {
                let own = Arg::Use(left.regs[i], size);
                self.accumulate(M::Vdpbf16ps, size, start.regs[i], &[own, right[i]])
            })
            .collect();
        Repr::vector(size, regs)
    }

    /// `acc + Σ a.part * b.part` per lane.
    pub fn dot2(&mut self, [a, b, acc]: [ir::Value; 3]) -> Repr {
        let ty = self.kernel.ty(acc);
        if ty.scalar == Scalar::F32 {
            return self.dot2_bf16([a, b, acc]);
        }
        let of_bytes = ty.scalar == Scalar::I16;
        let part = ty.with_lanes(2 * ty.lanes).with_scalar(if of_bytes { Scalar::I8 } else { Scalar::I16 });
        let (multiply, add) = if of_bytes { (M::Vpmaddubsw, M::Vpaddw) } else { (M::Vpmaddwd, M::Vpaddd) };
        let scalar = is_general(ty);
        let in_vector = |l: &mut Self, ty: Type, value: ir::Value| {
            let repr = l.get(value);
            if is_general(ty) { Repr::vector(Size::X, vec![l.in_lane_0(ty, &repr)]) } else { repr }
        };
        let left = in_vector(self, part, a);
        let right = if is_general(part) {
            in_vector(self, part, b).regs.iter().map(|&reg| Arg::Use(reg, Size::X)).collect()
        } else {
            self.args(b)
        };
        let start = if self.known(acc) == Some(0) { None } else { Some(in_vector(self, ty, acc)) };
        let size = left.size;
        let regs = (0..left.regs.len())
            .map(|i| {
                let own = Arg::Use(left.regs[i], size);
                match &start {
                    Some(start) if self.facts.vnni && !of_bytes => {
                        self.accumulate(M::Vpdpwssd, size, start.regs[i], &[own, right[i]])
                    }
                    Some(start) => {
                        let products = self.vec(multiply, size, &[own, right[i]]);
                        self.added(add, size, start.regs[i], products)
                    }
                    None => self.vec(multiply, size, &[own, right[i]]),
                }
            })
            .collect();
        let sum = Repr::vector(size, regs);
        if scalar { self.lane_0_as(ty.scalar, sum.one()) } else { sum }
    }

    /// A sum with something added. It stays in its register, as loops that carry it want; and a few long lives leave an allocator
    /// more room than many short ones, whose gaps fit nothing.
    fn added(&mut self, mnemonic: M, size: Size, sum: Reg, more: Reg) -> Reg {
        self.accumulate(mnemonic, size, sum, &[Arg::Use(sum, size), Arg::Use(more, size)])
    }

    fn in_register(&mut self, size: Size, arg: Arg) -> Arg {
        match arg {
            Arg::Mem(_) => Arg::Use(self.vec(M::Vmovups, size, &[arg]), size),
            other => other,
        }
    }

    /// Any bytes: even and odd ones are widened to 16 bits, whose products in pairs are exact. Widened ones are kept for
    /// the block, since tiles use each several times.
    fn dot4_exact(
        &mut self,
        size: Size,
        acc: Reg,
        (a_value, a): (ir::Value, Reg),
        (b_value, b): (ir::Value, Arg),
        unsigned: bool,
    ) -> Reg {
        let Arg::Use(b, _) = b else { return acc };
        let mut sum = acc;
        for odd in [false, true] {
            let part = |l: &mut Self, value: ir::Value, reg: Reg, unsigned: bool| {
                if let Some(&kept) = l.widened_bytes.get(&(value, reg, odd, unsigned)) {
                    return kept;
                }
                let part = match (odd, unsigned) {
                    (false, true) => {
                        let low = l.number_arg(size, 16, 0xff);
                        l.and(size, reg, low)
                    }
                    (true, true) => l.vec_imm(M::Vpsrlw, size, reg, 8),
                    (false, false) => {
                        let up = l.vec_imm(M::Vpsllw, size, reg, 8);
                        l.vec_imm(M::Vpsraw, size, up, 8)
                    }
                    (true, false) => l.vec_imm(M::Vpsraw, size, reg, 8),
                };
                // What is read once more would be widened once more.
                if l.uses[value.0 as usize] > 1 {
                    l.widened_bytes.insert((value, reg, odd, unsigned), part);
                }
                part
            };
            let (x, y) = (part(self, a_value, a, unsigned), part(self, b_value, b, false));
            let products = self.vec2(M::Vpmaddwd, size, x, y);
            sum = self.added(M::Vpaddd, size, sum, products);
        }
        sum
    }

    /// Unsigned bytes below `2^a_bits`: `vpmaddubsw` adds two products in 16 bits without saturating, and several such
    /// sums fit there before they must be widened.
    fn dot4_in_words(&mut self, a_bits: u8, [a, b, acc]: [ir::Value; 3], result: Option<ir::Value>) -> Option<Repr> {
        let most = 32767 / (((1u32 << a_bits) - 1) * 256);
        let size = self.vector_shape(self.kernel.ty(acc).bytes()).0;
        let chain = self.chains.remove(&acc);
        let left = self.get(a);
        let right = self.args(b);
        let products: Vec<Reg> =
            left.regs.iter().zip(right).map(|(&a, b)| self.vec(M::Vpmaddubsw, size, &[Arg::Use(a, size), b])).collect();
        let chain = match chain {
            None => Chain { pairs: products, acc, terms: 1 },
            Some(chain) => {
                let pairs = chain.pairs.iter().zip(products).map(|(&x, y)| self.added(M::Vpaddw, size, x, y)).collect();
                Chain { pairs, terms: chain.terms + 1, ..chain }
            }
        };
        if let Some(result) = result
            && chain.terms < most.max(1)
            && self.goes_on(result, a_bits)
        {
            self.chains.insert(result, chain);
            return None;
        }
        let ones = self.number_arg(size, 16, 1);
        let words: Vec<Reg> =
            chain.pairs.iter().map(|&pair| self.vec(M::Vpmaddwd, size, &[Arg::Use(pair, size), ones])).collect();
        if self.known(chain.acc) == Some(0) {
            return Some(Repr::vector(size, words));
        }
        let acc = self.get(chain.acc);
        let regs = words.iter().zip(&acc.regs).map(|(&words, &acc)| self.added(M::Vpaddd, size, acc, words)).collect();
        Some(Repr::vector(size, regs))
    }

    /// Whether the only reader of a sum is another term of the same kind in the same block.
    fn goes_on(&self, result: ir::Value, a_bits: u8) -> bool {
        self.uses[result.0 as usize] == 1
            && self.continued.get(&result).is_some_and(|inst| {
                matches!(inst, Inst::Dot4 { signs: Dot4Signs::UnsignedSigned, a_bits: bits, acc, a, b }
                    if *bits == a_bits && *acc == result && *a != result && *b != result)
            })
    }
}
