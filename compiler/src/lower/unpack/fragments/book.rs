//! Codes of a book of 16 numbers: look-ups of bytes make operands of them.
//!
//! ```text
//! word of 4-bit codes, [half: 0 1][place: 0 1 2 3]   & 0x0f0f0f0f   ->  bytes: half 0 place 0, place 2; half 1 place 0, place 2
//! low and high bytes of their numbers by a look-up each             ->  two pairs of 16-bit floats; places 1, 3 likewise
//! ```
//!
//! Always holds: what comes out is the book's number in the operand's type, the nearest one where the type has not got it.

use super::Fragments;
use super::decode::look_up;
use crate::dtype::DType;
use crate::format::{Code, Table};
use crate::ir::{BinOp, Builder, Constant, Inst, Scalar, Type, Value};

/// What is added to the numbers of a book that become unsigned bytes, since they lie from -128 to 127.
pub(super) const BYTE_OFFSET: i32 = 128;

/// Whether the numbers of a book can be operands of a type.
pub(super) fn serves(book: &Table, element: DType) -> bool {
    match element {
        DType::F16 | DType::Bf16 => true,
        DType::U8 | DType::I8 => book.values.iter().all(|value| value.fract() == 0.0 && value.abs() <= 127.0),
        _ => false,
    }
}

/// The bytes of a book as operands of one byte.
pub(super) fn bytes(book: &Table, element: DType) -> Vec<u64> {
    let offset = if element == DType::U8 { BYTE_OFFSET } else { 0 };
    book.values.iter().map(|&value| u64::from((value as i32 + offset) as u8)).collect()
}

impl Fragments<'_> {
    /// The book of the codes, where there is one.
    pub(super) fn book(&self) -> Option<&'static Table> {
        match self.layout.format.code {
            Code::Table(book) => Some(book),
            _ => None,
        }
    }

    /// Pairs of 16-bit floats of the codes of two rows.
    pub(super) fn book_pairs(
        &self,
        b: &mut Builder,
        (low, high): (&[Value], &[Value]),
        book: &Table,
        element: DType,
    ) -> Vec<[Value; 4]> {
        let bits =
            |shift: u32| book.values.iter().map(|&x| u64::from(element.encode(x as f64) >> shift & 0xff)).collect();
        let [lower, upper] = [0, 8].map(|shift| {
            let bytes = Type::vector(Scalar::I8, 16);
            b.push(bytes, Inst::Const(Constant::Lanes(bits(shift))))
        });
        let pairs = |b: &mut Builder, word: Value| {
            let mut list = [word; 4];
            for odd in 0..2 {
                let moved = if odd == 0 { word } else { b.bin_imm(BinOp::ShrU, word, 4) };
                let index = b.bin_imm(BinOp::And, moved, 0x0f0f_0f0f);
                let (lower, upper) = (look_up(b, lower, index), look_up(b, upper, index));
                let up = b.bin_imm(BinOp::Shl, upper, 8);
                let down = b.bin_imm(BinOp::ShrU, lower, 8);
                for (place, [lower, upper]) in [(odd, [lower, up]), (odd + 2, [down, upper])] {
                    let lower = b.bin_imm(BinOp::And, lower, 0x00ff_00ff);
                    let upper = b.bin_imm(BinOp::And, upper, 0xff00_ff00_u32 as i32 as i64);
                    list[place] = b.bin(BinOp::Or, lower, upper);
                }
            }
            list
        };
        let mut steps = Vec::new();
        for (&row, &other) in low.iter().zip(high) {
            let (row, other) = (pairs(b, row), pairs(b, other));
            steps.extend([0, 2].map(|place| [row[place], other[place], row[place + 1], other[place + 1]]));
        }
        steps
    }
}
