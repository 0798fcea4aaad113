//! Constants: numbers of each type, or their bits.

use super::{Parsed, Parser};
use crate::ir::kernel::Constant;
use crate::ir::lexer::Token;
use crate::ir::types::Scalar;

impl Parser<'_> {
    pub(super) fn constant(&mut self, scalar: Scalar) -> Parsed<Constant> {
        if self.next.token == Token::Mark('[') {
            return Ok(Constant::Lanes(self.bracketed(|parser| parser.lane(scalar))?));
        }
        Ok(Constant::Splat(self.lane(scalar)?))
    }

    /// One lane of a constant, as bits.
    fn lane(&mut self, scalar: Scalar) -> Parsed<u64> {
        let at = self.next;
        let bits = match at.token {
            Token::Number(text) => lane_bits(text, scalar),
            Token::Word("true") if scalar == Scalar::Bool => Some(1),
            Token::Word("false") if scalar == Scalar::Bool => Some(0),
            _ => None,
        };
        let Some(bits) = bits else {
            let kind = match scalar {
                Scalar::Bool => "`true` or `false`",
                _ if scalar.is_int() => "an integer that fits, or 0x with the bits",
                _ if scalar.is_float() => "a finite decimal that does not overflow, or 0x with the bits",
                _ => "0x with the bits",
            };
            return Err(self.error(at, &format!("a number of type {scalar}: {kind}")));
        };
        self.advance();
        Ok(bits)
    }
}

/// The bits of a number of the text, if the type has such a number.
fn lane_bits(text: &str, scalar: Scalar) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        // Too many bits for the type is the verifier's business: it has the better message.
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    }
    match scalar {
        Scalar::F32 => finite(text).map(|number| number.to_bits() as u64),
        Scalar::F16 => {
            let number = half::f16::from_f64(text.parse().ok()?);
            number.is_finite().then_some(number.to_bits() as u64)
        }
        Scalar::Bf16 => {
            let number = half::bf16::from_f64(text.parse().ok()?);
            number.is_finite().then_some(number.to_bits() as u64)
        }
        _ if scalar.is_int() => {
            let number: i128 = text.parse().ok()?;
            let range = -(1i128 << (scalar.bits() - 1))..1i128 << scalar.bits();
            let mask = u64::MAX >> (64 - scalar.bits());
            range.contains(&number).then_some(number as u64 & mask)
        }
        _ => None,
    }
}

fn finite(text: &str) -> Option<f32> {
    text.parse().ok().filter(|number: &f32| number.is_finite())
}
