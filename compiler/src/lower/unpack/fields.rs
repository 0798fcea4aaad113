//! Codes as floats without shifting them into place: a field of a word, converted where it stands, is the code times a
//! power of two, which the activation of its column takes back (see `lower::stage`). A weight then costs a mask, a
//! conversion and a multiply-add.

use super::{Weights, integer_meaning};
use crate::format::Code;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, Value};

/// What activations are multiplied by besides, so that powers of two reach as far up as down: results carry it.
pub(in crate::lower) const CENTER: f32 = 4096.0;

/// How codes are read as fields: `code = factor · field · 2^-place - offset`. Codes that are no integers are decoded to
/// what they mean instead, and need no factors.
#[derive(Clone, Copy, Debug)]
pub(in crate::lower) struct Fields {
    /// Whether codes are integers.
    pub integers: bool,
    /// 1 or 2.
    factor: i32,
    /// Taken off each code.
    pub offset: i32,
}

/// The word that holds the four columns of a quad.
#[derive(Clone, Copy, Debug)]
pub(in crate::lower) struct Word {
    word: Value,
    bit: u8,
    width: u8,
}

/// Where column `byte` of a quad stands in a word: fields up to the sign are shifted down instead.
fn place(bit: u8, width: u8, byte: usize) -> u8 {
    let place = 8 * byte as u8 + bit;
    if place + width == 32 { 0 } else { place }
}

impl Fields {
    /// How a layout's codes are read.
    pub fn of(layout: &N16) -> Fields {
        let code = layout.format.code;
        if !matches!(code, Code::Int { .. } | Code::Ternary | Code::Binary) {
            return Fields { integers: false, factor: 1, offset: 0 };
        }
        let (factor, offset) = integer_meaning(code, layout.format.zero);
        Fields { integers: true, factor, offset }
    }

    /// What the activations of columns `0..period` are multiplied by; `period` is a multiple of a unit.
    pub fn factors(&self, layout: &N16, period: usize) -> Vec<f32> {
        let shift = |column: usize| {
            let (_, places) = layout.quad(column / 4);
            match *places {
                [(_, bit)] => place(bit, layout.planes[0], column % 4),
                _ => place(0, 8, column % 4),
            }
        };
        if !self.integers {
            return vec![CENTER; period];
        }
        (0..period).map(|column| CENTER * self.factor as f32 / (1u32 << shift(column)) as f32).collect()
    }
}

impl Weights<'_> {
    /// The word of a quad, planes joined, from what [`Weights::words`] gave.
    pub fn quad_word(&self, b: &mut Builder, words: &[(Value, u8)]) -> Word {
        match *words {
            [(word, bit)] => Word { word, bit, width: self.layout.planes[0] },
            _ => Word { word: self.join(b, words, 0x0101_0101), bit: 0, width: 8 },
        }
    }

    /// Codes of two bits as bytes of an integer dot product, and whether they are four times what they stand for: a word
    /// is then shifted once for its four fields.
    pub fn quarter_bytes(&self, b: &mut Builder, words: &[(Value, u8)]) -> (Value, bool) {
        let (word, bit) = words[0];
        let four = bit % 4 != 0;
        let moved = if bit >= 4 { b.bin_imm(BinOp::ShrU, word, 4) } else { word };
        let field = b.bin_imm(BinOp::And, moved, if four { 0x0c0c_0c0c } else { 0x0303_0303 });
        (b.bitcast(field, Type::vector(Scalar::I8, 4 * self.lanes)), four)
    }

    /// Column `byte` of a quad as it stands, in `f32`.
    pub fn field(&self, b: &mut Builder, word: Word, byte: usize) -> Value {
        let shift = 8 * byte as u8 + word.bit;
        let field = if shift + word.width == 32 {
            b.bin_imm(BinOp::ShrU, word.word, i64::from(shift))
        } else {
            b.bin_imm(BinOp::And, word.word, ((1i64 << word.width) - 1) << shift)
        };
        b.cast(CastOp::IntToFloatS, field, Scalar::F32)
    }
}
