//! Extended instructions in the hardware's own: bit fields by `lop3` and `bfe`, byte dot products by `dp4a`, table
//! look-ups by `prmt`.

use super::emit::Emitter;
use super::text::{F, Word};
use crate::ir::{Dot4Signs, Scalar, Type, Value};

/// Bits of 2^23 as a float: a number below 2^23 in the fraction is the float 2^23 plus that number.
const MAGIC: u32 = 0x4b00_0000;
/// Truth table of `(a & b) | c` for `lop3`: the tables of a, b, c are 0xf0, 0xcc, 0xaa.
const AND_OR: &str = "0xea";
/// Truth table of `(a & b) ^ c`.
const AND_XOR: &str = "0x6a";
/// Truth table of `(a & b) | (!a & c)`.
const CHOOSE: &str = "0xca";

impl Emitter<'_> {
    pub(super) fn unpack(&mut self, a: Value, shift: u8, bits: u8, signed: bool, ty: Type) -> Vec<Word> {
        let words = self.words(a);
        let container = if ty.scalar == Scalar::F32 { ty.with_scalar(Scalar::I32) } else { ty };
        let words = self.bitcast(&words, self.ty(a), container);
        let (shift, bits) = (shift as u32, bits as u32);
        match ty.scalar {
            Scalar::F32 => self.each(&words, |e, word| e.field_as_float(word, shift, bits, signed)),
            Scalar::I64 => self.each(&words, |e, word| {
                let name = if signed { "bfe.s64" } else { "bfe.u64" };
                let word = e.text.reg(word);
                e.text.b64(name, &[&word, &shift, &bits])
            }),
            Scalar::I32 => self.each(&words, |e, word| e.field(word, shift, bits, signed)),
            _ => self.each(&words, |e, word| e.narrow_field(word, shift, bits, signed, container)),
        }
    }

    /// A field of a 32-bit container.
    fn field(&mut self, word: Word, shift: u32, bits: u32, signed: bool) -> Word {
        let word = self.text.reg(word);
        match (signed, shift + bits == 32) {
            (_, true) if shift == 0 => word,
            (true, true) => self.text.b32("shr.s32", &[&word, &shift]),
            (false, true) => self.text.b32("shr.u32", &[&word, &shift]),
            (false, false) if shift == 0 => self.text.b32("and.b32", &[&word, &Word::I((1 << bits) - 1)]),
            (true, false) => self.text.b32("bfe.s32", &[&word, &shift, &bits]),
            (false, false) => self.text.b32("bfe.u32", &[&word, &shift, &bits]),
        }
    }

    /// A field of a 32-bit container as a float. `cvt` runs at a quarter of the rate of `fma` or less, so short
    /// fields are masked into the fraction of 2^23 and one exact `fma` takes out the 2^23, the shift and the sign.
    fn field_as_float(&mut self, word: Word, shift: u32, bits: u32, signed: bool) -> Word {
        if bits > 22 {
            let field = self.field(word, shift, bits, signed);
            let name = if signed { "cvt.rn.f32.s32" } else { "cvt.rn.f32.u32" };
            return self.text.b32(name, &[&field]);
        }
        let word = self.text.reg(word);
        // Fields above the fraction move down first.
        let (word, shift) =
            if shift + bits > 23 { (self.text.b32("shr.u32", &[&word, &shift]), 0) } else { (word, shift) };
        let mask = ((1u32 << bits) - 1) << shift;
        let sign = 1u32 << (bits - 1);
        let (exponent, table) = if signed { (MAGIC | sign << shift, AND_XOR) } else { (MAGIC, AND_OR) };
        let raw = self.text.b32("lop3.b32", &[&word, &Word::I(mask), &Word::I(exponent), &table]);
        let scale = 1.0 / (1u32 << shift) as f32;
        let offset = (1u32 << (23 - shift)) as f32 + if signed { sign as f32 } else { 0.0 };
        let (scale, offset) = (Word::I(scale.to_bits()), Word::I((-offset).to_bits()));
        self.text.b32("fma.rn.f32", &[&F(raw), &F(scale), &F(offset)])
    }

    /// Fields of the 8- or 16-bit containers of a word, all at once.
    fn narrow_field(&mut self, word: Word, shift: u32, bits: u32, signed: bool, ty: Type) -> Word {
        let width = ty.scalar.bits();
        if bits == width {
            return word;
        }
        let every = |lane: u32| {
            let whole = if width == 8 { 0x0101_0101u32 } else { 0x0001_0001 } * lane;
            if ty.bits() >= 32 { whole } else { whole & ((1 << ty.bits()) - 1) }
        };
        let word = self.text.reg(word);
        let word = if shift == 0 { word } else { self.text.b32("shr.u32", &[&word, &shift]) };
        let field = self.text.b32("and.b32", &[&word, &Word::I(every((1 << bits) - 1))]);
        if !signed {
            return field;
        }
        // Flipping the sign bit and taking it off again extends it; a set top bit keeps the borrow in its lane.
        let (sign, top) = (every(1 << (bits - 1)), every(1 << (width - 1)));
        let flipped = self.text.b32("xor.b32", &[&field, &Word::I(sign | top)]);
        let less = self.text.b32("sub.s32", &[&flipped, &Word::I(sign)]);
        self.text.b32("xor.b32", &[&less, &Word::I(top)])
    }

    pub(super) fn dot4(&mut self, signs: Dot4Signs, a: Value, b: Value, acc: Value) -> Vec<Word> {
        let name = match signs {
            Dot4Signs::SignedSigned => "dp4a.s32.s32",
            Dot4Signs::UnsignedSigned => "dp4a.u32.s32",
        };
        let (left, right, sums) = (self.words(a), self.words(b), self.words(acc));
        left.iter()
            .zip(right.iter().zip(&sums))
            .map(|(&a, (&b, &sum))| {
                let (a, b, sum) = (self.text.reg(a), self.text.reg(b), self.text.reg(sum));
                self.text.b32(name, &[&a, &b, &sum])
            })
            .collect()
    }

    pub(super) fn permute(&mut self, table: Value, index: Value) -> Vec<Word> {
        let table = self.words(table);
        let table: Vec<Word> = table.into_iter().map(|word| self.text.reg(word)).collect();
        let index = self.words(index);
        self.each(&index, |e, index| {
            // Four index bytes become four nibbles, their fourth bit cut off: it would ask for a sign.
            let index = e.text.reg(index);
            let up = e.text.b32("shr.u32", &[&index, &4]);
            let pairs = e.text.b32("or.b32", &[&index, &up]);
            let selector = e.text.b32("prmt.b32", &[&pairs, &0, &"0x4420"]);
            let selector = e.text.b32("and.b32", &[&selector, &Word::I(0x7777)]);
            let low = e.text.b32("prmt.b32", &[&table[0], &table[1], &selector]);
            let high = e.text.b32("prmt.b32", &[&table[2], &table[3], &selector]);
            // The fourth bit, moved to the top of its byte, fills the byte: which half of the table.
            let top = e.text.b32("shl.b32", &[&index, &4]);
            let upper = e.text.b32("prmt.b32", &[&top, &0, &"0xba98"]);
            e.text.b32("lop3.b32", &[&upper, &high, &low, &CHOOSE])
        })
    }
}
