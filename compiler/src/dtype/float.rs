//! Binary floats of any small width, described by four numbers.

/// Sign, exponent and mantissa widths, exponent bias, and which codes are special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float {
    /// Exponent bits.
    pub exponent: u32,
    /// Mantissa bits, without the hidden one.
    pub mantissa: u32,
    /// Exponent bias.
    pub bias: i32,
    /// Special codes.
    pub specials: Specials,
}

/// Which codes of a float are not finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// The top exponent holds infinities (mantissa 0) and NaNs.
    Ieee,
    /// All ones below the sign is NaN; nothing is infinite (the "fn" types).
    AllOnesNan,
    /// What would be negative zero is NaN; nothing is infinite (the "fnuz" types).
    Fnuz,
    /// Every code is finite.
    None,
}

impl Float {
    /// Width with the sign.
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    /// The code of the largest finite number.
    pub const fn max_code(self) -> u32 {
        let all_ones = (1 << (self.exponent + self.mantissa)) - 1;
        match self.specials {
            Specials::Ieee => all_ones - (1 << self.mantissa),
            Specials::AllOnesNan => all_ones - 1,
            Specials::Fnuz | Specials::None => all_ones,
        }
    }

    const fn sign_bit(self) -> u32 {
        1 << (self.exponent + self.mantissa)
    }

    /// The number that a code stands for.
    pub fn decode(self, code: u32) -> f64 {
        let magnitude = code & (self.sign_bit() - 1);
        let negative = code & self.sign_bit() != 0;
        if self.specials == Specials::Fnuz && negative && magnitude == 0 {
            return f64::NAN;
        }
        if magnitude > self.max_code() {
            let infinite = self.specials == Specials::Ieee && magnitude == self.max_code() + 1;
            return if !infinite {
                f64::NAN
            } else if negative {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            };
        }
        let field = magnitude >> self.mantissa;
        let mantissa = magnitude & ((1 << self.mantissa) - 1);
        let (significand, exponent) = if field == 0 {
            (mantissa, 1 - self.bias)
        } else {
            (mantissa | 1 << self.mantissa, field as i32 - self.bias)
        };
        let value = significand as f64 * 2f64.powi(exponent - self.mantissa as i32);
        if negative { -value } else { value }
    }

    /// The code of the nearest number, ties to even; past the largest, that one if `saturate`, else infinity or NaN.
    pub fn encode(self, x: f64, saturate: bool) -> u32 {
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        let nan = match self.specials {
            Specials::Ieee => sign | (self.max_code() + 1) | 1 << (self.mantissa - 1),
            Specials::AllOnesNan => sign | (self.sign_bit() - 1),
            Specials::Fnuz => self.sign_bit(),
            Specials::None => sign ^ self.sign_bit(),
        };
        if x.is_nan() {
            return nan;
        }
        let overflow = match self.specials {
            Specials::None => sign | self.max_code(),
            _ if saturate => sign | self.max_code(),
            Specials::Ieee => sign | (self.max_code() + 1),
            Specials::AllOnesNan | Specials::Fnuz => nan,
        };
        if x.is_infinite() {
            return overflow;
        }
        let least = 1 - self.bias;
        let exponent = if x == 0.0 { least } else { exponent_of(x).max(least) };
        // Exact: a power of two, and the quotient has at most 53 significant bits.
        let steps = (x.abs() / 2f64.powi(exponent - self.mantissa as i32)).round_ties_even();
        let code = steps as u64 + (((exponent - least) as u64) << self.mantissa);
        if code > self.max_code() as u64 {
            overflow
        } else if code == 0 && self.specials == Specials::Fnuz {
            0
        } else {
            sign | code as u32
        }
    }
}

/// The largest `e` with `2^e <= |x|`, for finite non-zero `x`.
pub(super) fn exponent_of(x: f64) -> i32 {
    let field = (x.to_bits() >> 52 & 0x7ff) as i32;
    // f64 subnormals are far below every type's range: any exponent that small does.
    if field == 0 { -1023 } else { field - 1023 }
}
