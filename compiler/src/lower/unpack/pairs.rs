//! Codes of up to four bits as bf16 by two byte tables, for dot products in pairs.

use super::{Weights, integer_meaning};
use crate::format::n16::N16;
use crate::format::{Code, Zero};
use crate::ir::{BinOp, Builder, Inst, Scalar, Type, Value};

/// The numbers behind stored codes, as bf16.
#[derive(Clone, Copy, Debug)]
pub(in crate::lower) struct Lookup([u16; 16]);

impl Lookup {
    /// `None` for wider codes, and where codes are not the numbers: where integer zero points are to be taken off.
    pub fn of(layout: &N16) -> Option<Lookup> {
        let code = layout.format.code;
        if code.bits() > 4 || matches!(layout.format.zero, Zero::Int(_)) {
            return None;
        }
        let number = |stored: u8| match code {
            Code::Int { .. } | Code::Ternary | Code::Binary => {
                let (factor, offset) = integer_meaning(code, layout.format.zero);
                f64::from(factor * i32::from(stored) - offset)
            }
            _ => code.decode(stored),
        };
        let mut table = [0; 16];
        for (stored, entry) in table.iter_mut().enumerate().take(1 << code.bits()) {
            *entry = ((number(stored as u8) as f32).to_bits() >> 16) as u16;
        }
        Some(Lookup(table))
    }

    /// Words of columns 0 and 2 of a quad, and of columns 1 and 3.
    pub fn pairs(&self, b: &mut Builder, weights: &Weights<'_>, words: &[(Value, u8)]) -> [Value; 2] {
        let codes = weights.codes(b, words);
        let ty = b.ty(codes);
        let [low, high] = [0, 8].map(|shift| {
            let bytes: Vec<u64> = self.0.iter().map(|&number| u64::from(number >> shift & 0xff)).collect();
            let table = b.lanes(Scalar::I8, &bytes);
            b.push(ty, Inst::PermuteBytes { table, index: codes })
        });
        interleaved(b, low, high)
    }
}

/// Words of their low and high bytes (vectors of bytes): those of even places, and of odd ones.
fn interleaved(b: &mut Builder, low: Value, high: Value) -> [Value; 2] {
    let ty = Type::vector(Scalar::I16, b.ty(low).lanes / 2);
    let [low, high] = [low, high].map(|bytes| b.bitcast(bytes, ty));
    let even = b.bin_imm(BinOp::And, low, 0xff);
    let up = b.bin_imm(BinOp::Shl, high, 8);
    let down = b.bin_imm(BinOp::ShrU, low, 8);
    let odd = b.bin_imm(BinOp::And, high, 0xff00);
    [b.bin(BinOp::Or, even, up), b.bin(BinOp::Or, down, odd)]
}
