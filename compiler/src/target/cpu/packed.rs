//! The extended instructions on packed data: bit fields, byte dot products, byte look-ups.
//!
//! The byte dot products rest on Cranelift's lowering rules, which fold one exact tree of widening multiplications
//! into `vpdpbusd`, `sdot` or `usdot`; each wants its operands in its own order and the accumulator added last.

use cranelift_codegen::ir::{self as clif, InstBuilder, types};

use super::emit::Emitter;
use super::level::Arch;
use super::value::{Repr, int_type};
use crate::ir::{self, BinOp, Dot4Signs, Scalar, Type};

impl Emitter<'_> {
    pub(super) fn unpack(&mut self, a: ir::Value, shift: u8, bits: u8, signed: bool, to: Type) -> Repr {
        let from = self.kernel.ty(a);
        let width = from.bits() / u32::from(to.lanes);
        let (shift, bits) = (u32::from(shift), u32::from(bits));
        let a = self.get(a);
        let container = Type { scalar: int_scalar(width), lanes: to.lanes };
        let cut = self.bitcast(&a, container);
        let field = if !signed {
            self.field(&cut, shift, bits)
        } else if bits == width {
            cut
        } else if matches!(width, 16 | 32) || to.lanes == 1 {
            let top = self.shift_known(BinOp::Shl, &cut, width - shift - bits);
            self.shift_known(BinOp::ShrS, &top, width - bits)
        } else {
            // No arithmetic shift of bytes or 64-bit lanes on x86: flip the sign bit and take it away.
            let field = self.field(&cut, shift, bits);
            let sign = 1u64 << (bits - 1);
            self.map(&field, |e, a| {
                let sign = e.number(e.type_of(a), sign);
                let flipped = e.b.ins().bxor(a, sign);
                e.b.ins().isub(flipped, sign)
            })
        };
        if to.scalar != Scalar::F32 {
            return field;
        }
        let ty = if to.lanes == 1 { types::F32 } else { types::F32X4 };
        let exact = signed || bits < 32;
        let mut floats = self.map(&field, |e, a| match exact {
            true => e.b.ins().fcvt_from_sint(ty, a),
            false => e.b.ins().fcvt_from_uint(ty, a),
        });
        floats.lane = types::F32;
        floats
    }

    /// Bits `[shift, shift + bits)` of each lane, zero-extended.
    fn field(&mut self, a: &Repr, shift: u32, bits: u32) -> Repr {
        let width = a.lane.bits();
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        let short_shift = width == 8 && a.lanes > 1 && shift > 0;
        let moved = if short_shift {
            // The mask below clears what comes over from the neighbouring byte.
            self.map(a, |e, a| {
                let wide = e.bits_as(a, types::I16X8);
                let by = e.b.ins().iconst(types::I32, i64::from(shift));
                let wide = e.b.ins().ushr(wide, by);
                e.bits_as(wide, types::I8X16)
            })
        } else {
            self.shift_known(BinOp::ShrU, a, shift)
        };
        if shift + bits == width && !short_shift { moved } else { self.map(&moved, |e, a| e.masked(a, mask)) }
    }

    pub(super) fn dot4(&mut self, signs: Dot4Signs, a_bits: u8, a: ir::Value, b: ir::Value, acc: ir::Value) -> Repr {
        if self.continued.contains(&acc) {
            let (acc, sums) = self.sixteen_bit_sums(a, b, acc);
            let pieces = std::iter::zip(&acc.pieces, sums).map(|(&acc, sum)| {
                let wide = self.widened_pairs(sum);
                self.b.ins().iadd(wide, acc)
            });
            let pieces = pieces.collect();
            return acc.with(pieces);
        }
        let (a, b, acc) = (self.get(a), self.get(b), self.get(acc));
        if acc.lanes == 1 {
            let vector = self.in_lane_0(acc.one());
            let sum = self.dot4_piece(signs, a_bits, a.one(), b.one(), vector);
            return Repr::scalar(types::I32, self.b.ins().extractlane(sum, 0));
        }
        let pieces = (0..acc.pieces.len())
            .map(|i| self.dot4_piece(signs, a_bits, a.pieces[i], b.pieces[i], acc.pieces[i]))
            .collect();
        acc.with(pieces)
    }

    /// A dot product in the middle of a run: its sums wait in 16 bits for the next one.
    pub(super) fn dot4_continued(&mut self, a: ir::Value, b: ir::Value, acc: ir::Value, result: ir::Value) {
        let sums = self.sixteen_bit_sums(a, b, acc);
        self.pending.insert(result, sums);
    }

    /// The accumulator of the run that `acc` belongs to, or `acc` itself, and the run's sums with one product more.
    fn sixteen_bit_sums(&mut self, a: ir::Value, b: ir::Value, acc: ir::Value) -> (Repr, Vec<clif::Value>) {
        let (a, b) = (self.get(a), self.get(b));
        let products: Vec<clif::Value> =
            std::iter::zip(&a.pieces, &b.pieces).map(|(&a, &b)| self.b.ins().x86_pmaddubsw(b, a)).collect();
        match self.pending.remove(&acc) {
            Some((acc, sums)) => {
                let sums = std::iter::zip(sums, products).map(|(sum, product)| self.b.ins().iadd(sum, product));
                let sums = sums.collect();
                (acc, sums)
            }
            None => (self.get(acc), products),
        }
    }

    fn dot4_piece(
        &mut self,
        signs: Dot4Signs,
        a_bits: u8,
        a: clif::Value,
        b: clif::Value,
        acc: clif::Value,
    ) -> clif::Value {
        let small = a_bits <= 7;
        match (self.facts.arch, signs) {
            (Arch::X86, Dot4Signs::UnsignedSigned) if self.facts.vnni => {
                let tree = self.dot_tree((b, true), (a, false));
                self.b.ins().iadd(tree, acc)
            }
            (Arch::X86, Dot4Signs::SignedSigned) if self.facts.vnni => {
                // a + 128 is unsigned; what it adds to the sum is 128 times the sum of b.
                let bias = self.number(types::I8X16, 0x80);
                let unsigned = self.b.ins().bxor(a, bias);
                let tree = self.dot_tree((b, true), (unsigned, false));
                let sum = self.b.ins().iadd(tree, acc);
                let zero = self.number(types::I32X4, 0);
                let tree = self.dot_tree((b, true), (bias, false));
                let excess = self.b.ins().iadd(tree, zero);
                self.b.ins().isub(sum, excess)
            }
            (Arch::X86, Dot4Signs::UnsignedSigned) if small => {
                let sum = self.dot_pairs(a, b);
                self.b.ins().iadd(sum, acc)
            }
            (Arch::X86, _) => {
                // The top bit apart, so that no sum of two products leaves 16 bits: it counts +128 or -128.
                let (low, top) = (self.masked(a, 0x7f), self.masked(a, 0x80));
                let low = self.dot_pairs(low, b);
                let top = self.dot_pairs(top, b);
                let sum = self.b.ins().iadd(low, acc);
                match signs {
                    Dot4Signs::UnsignedSigned => self.b.ins().iadd(top, sum),
                    Dot4Signs::SignedSigned => self.b.ins().isub(sum, top),
                }
            }
            (Arch::Arm, Dot4Signs::UnsignedSigned) if self.facts.dotprod && !self.facts.i8mm => {
                // sdot reads a byte of 128 or more as 256 too little.
                let tree = self.dot_tree((a, true), (b, true));
                let sum = self.b.ins().iadd(tree, acc);
                if small {
                    return sum;
                }
                let by = self.b.ins().iconst(types::I32, 7);
                let top = self.b.ins().ushr(a, by);
                let tree = self.dot_tree((top, true), (b, true));
                let zero = self.number(types::I32X4, 0);
                let missing = self.b.ins().iadd(tree, zero);
                let by = self.b.ins().iconst(types::I32, 8);
                let missing = self.b.ins().ishl(missing, by);
                self.b.ins().iadd(missing, sum)
            }
            (Arch::Arm | Arch::RiscV, signs) => {
                let tree = self.dot_tree((a, signs == Dot4Signs::SignedSigned), (b, true));
                self.b.ins().iadd(tree, acc)
            }
        }
    }

    /// Σ of four byte products per 32-bit lane, as the tree that Cranelift's rules know. Each factor: (bytes, signed).
    fn dot_tree(&mut self, a: (clif::Value, bool), b: (clif::Value, bool)) -> clif::Value {
        let halves = [false, true].map(|high| {
            let [a, b] = [a, b].map(|(bytes, signed)| match (signed, high) {
                (true, false) => self.b.ins().swiden_low(bytes),
                (true, true) => self.b.ins().swiden_high(bytes),
                (false, false) => self.b.ins().uwiden_low(bytes),
                (false, true) => self.b.ins().uwiden_high(bytes),
            });
            let products = self.b.ins().imul(a, b);
            let low = self.b.ins().swiden_low(products);
            let high = self.b.ins().swiden_high(products);
            self.b.ins().iadd_pairwise(low, high)
        });
        self.b.ins().iadd_pairwise(halves[0], halves[1])
    }

    /// x86: Σ of four products, where no sum of two leaves 16 bits.
    fn dot_pairs(&mut self, unsigned: clif::Value, signed: clif::Value) -> clif::Value {
        let pairs = self.b.ins().x86_pmaddubsw(signed, unsigned);
        self.widened_pairs(pairs)
    }

    /// x86: sums of neighbouring 16-bit lanes, in 32 bits.
    fn widened_pairs(&mut self, pairs: clif::Value) -> clif::Value {
        let ones = self.number(types::I16X8, 1);
        let [low_pairs, low_ones] = [pairs, ones].map(|value| self.b.ins().swiden_low(value));
        let [high_pairs, high_ones] = [pairs, ones].map(|value| self.b.ins().swiden_high(value));
        let low = self.b.ins().imul(low_pairs, low_ones);
        let high = self.b.ins().imul(high_pairs, high_ones);
        self.b.ins().iadd_pairwise(low, high)
    }

    pub(super) fn permute_bytes(&mut self, table: ir::Value, index: ir::Value) -> Repr {
        let table = self.get(table).one();
        let index = self.get(index);
        let x86 = self.facts.arch == Arch::X86;
        self.map(&index, |e, index| match x86 {
            true => e.b.ins().x86_pshufb(table, index),
            false => e.b.ins().swizzle(table, index),
        })
    }
}

fn int_scalar(bits: u32) -> Scalar {
    match int_type(bits) {
        types::I8 => Scalar::I8,
        types::I16 => Scalar::I16,
        types::I32 => Scalar::I32,
        _ => Scalar::I64,
    }
}
