//! Codes whose bits are those of a 16-bit float once they have moved: small floats, signs, powers of two.
//!
//! ```text
//! small float    sign | exponent | fraction  ->  sign at bit 15, the rest against the fraction's top; times a power of two
//! ±1             sign                        ->  sign at bit 15, exclusive or with -1
//! ±2^-e          sign | e                    ->  sign at bit 15, e at the exponent, exclusive or with 1: e is taken off it
//! ```
//!
//! Always holds: the number is exact, subnormals and all, since multiplying by a power of two is.

use super::float;
use crate::dtype::DType;
use crate::format::Code;
use crate::ir::{BinOp, Builder, Scalar, Type, Value};

/// How a code becomes a float of 16 bits.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::lower) struct Direct {
    /// Bits of the code: lowest, how many, and where the lowest goes.
    moves: Vec<(i64, u32, i64)>,
    /// What they are combined with by an exclusive or.
    flips: u16,
    /// The power of two that the float is multiplied by.
    power: i32,
}

impl Direct {
    /// For a code and a type of fragments (`F16` or `Bf16`); `None` if its bits are no float's.
    pub fn of(code: Code, element: DType) -> Option<Direct> {
        let (fraction, bias, one) = if element == DType::F16 { (10, 15, 0x3c00) } else { (7, 127, 0x3f80) };
        let width = i64::from(code.bits());
        let sign = (width - 1, 1, 15);
        match code {
            Code::Float(dtype) => {
                let (own_fraction, own_bias) = match dtype {
                    DType::E2m1 => (1, 1),
                    DType::E4m3fn => (3, 7),
                    DType::E4m3fnuz => (3, 8),
                    DType::E5m2 => (2, 15),
                    _ => return None,
                };
                let moves = vec![(0, width as u32 - 1, fraction - own_fraction), sign];
                Some(Direct { moves, flips: 0, power: bias - own_bias })
            }
            Code::Binary => Some(Direct { moves: vec![sign], flips: one | 0x8000, power: 0 }),
            Code::Log { .. } => {
                Some(Direct { moves: vec![(0, width as u32 - 1, fraction), sign], flips: one, power: 0 })
            }
            Code::Int { .. } | Code::Ternary | Code::Table(_) => None,
        }
    }

    /// Two floats from the codes that start at a bit of each half of a word.
    pub fn pair(&self, b: &mut Builder, word: Value, bit: i64, element: DType) -> Value {
        let mut all = None;
        for &(low, count, to) in &self.moves {
            let moved = match to - (bit + low) {
                0 => word,
                up @ 1.. => b.bin_imm(BinOp::Shl, word, up),
                down => b.bin_imm(BinOp::ShrU, word, -down),
            };
            let mask = (((1i64 << count) - 1) << to) * 0x0001_0001;
            let field = b.bin_imm(BinOp::And, moved, mask as u32 as i32 as i64);
            all = Some(all.map_or(field, |all| b.bin(BinOp::Or, all, field)));
        }
        let mut bits = all.expect("something moves");
        if self.flips != 0 {
            let flips = u32::from(self.flips) << 16 | u32::from(self.flips);
            bits = b.bin_imm(BinOp::Xor, bits, flips as i32 as i64);
        }
        if self.power == 0 {
            return bits;
        }
        let ty = Type::vector(float(element), 2);
        let pair = b.bitcast(bits, ty);
        let power = element.encode((self.power as f64).exp2());
        let power = b.int(ty, power as i64);
        let product = b.mul(pair, power);
        b.bitcast(product, Scalar::I32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::ir::interp::{ArgValue, Launch, run};
    use crate::ir::{Access, Address, verify};

    /// Every code of a format in every place of a word, against the format's own meaning.
    #[test]
    fn every_code_in_every_place() {
        for text in [
            "fp4-g32",
            "fp8e4m3-channel",
            "fp8e4m3fnuz-channel",
            "fp8e5m2-channel",
            "binary-g64",
            "log4-g64",
            "log2-g64",
        ] {
            let format: Format = text.parse().unwrap();
            let width = format.code.bits();
            for element in [DType::F16, DType::Bf16] {
                let direct = Direct::of(format.code, element).unwrap();
                for place in 0..16 / width {
                    let mut b = Builder::new("k");
                    let (x, y) = (b.buffer("x", Access::Read, 4), b.buffer("y", Access::Write, 4));
                    let at = |memory| Address { memory, index: None, offset: 0 };
                    let word = b.load(Scalar::I32, at(x), 4);
                    let pair = direct.pair(&mut b, word, i64::from(place * width), element);
                    b.store(at(y), 4, pair);
                    let kernel = b.finish();
                    let verified = verify(&kernel, &crate::caps::Caps::ANY).unwrap();
                    for code in 0..1u32 << width {
                        let expected = format.code.decode(code as u8);
                        if !expected.is_finite() {
                            continue;
                        }
                        // The other fields are all ones, which must not show.
                        let field = ((1u32 << width) - 1) << (place * width);
                        let half = (0xffff & !field) | code << (place * width);
                        let mut args =
                            [ArgValue::filled((half << 16 | half).to_le_bytes().into()), ArgValue::unwritten(4)];
                        run(&verified, 1, Launch { grid: [1; 3], args: &mut args }).unwrap();
                        for half in args[1].bytes().chunks(2) {
                            let found = element.decode(u32::from(u16::from_le_bytes([half[0], half[1]])));
                            assert_eq!(found, expected, "{text}, {}, code {code} in place {place}", element.name());
                        }
                    }
                }
            }
        }
    }
}
