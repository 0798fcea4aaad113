//! Exact arithmetic under every rounding mode of PTX, and the small float formats.
//!
//! The trick is rounding to odd: an `f64` result whose last bit records that it was inexact can be rounded once more, to
//! any format of at most 50 bits, as if the exact result had been rounded. The error terms come from error-free
//! transformations (Knuth, Dekker; Boldo and Muller for fused multiply-add).

/// How a result is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    #[default]
    Nearest,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// What the top exponent of a small float means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top {
    /// Infinities and NaNs.
    Ieee,
    /// Numbers, but for the all-ones pattern, which is NaN.
    OneNan,
    /// Numbers alone.
    Numbers,
}

/// A binary float format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
    /// What the top exponent means.
    pub top: Top,
}

/// IEEE half.
pub const F16: Float = Float { exponent: 5, fraction: 10, top: Top::Ieee };
/// bfloat16.
pub const BF16: Float = Float { exponent: 8, fraction: 7, top: Top::Ieee };
/// The 19 high bits of a single.
pub const TF32: Float = Float { exponent: 8, fraction: 10, top: Top::Ieee };
/// IEEE single.
pub const F32: Float = Float { exponent: 8, fraction: 23, top: Top::Ieee };
/// FP8 with 4 exponent bits.
pub const E4M3: Float = Float { exponent: 4, fraction: 3, top: Top::OneNan };
/// FP8 with 5 exponent bits.
pub const E5M2: Float = Float { exponent: 5, fraction: 2, top: Top::Ieee };

impl Float {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn sign(self) -> u32 {
        1 << (self.exponent + self.fraction)
    }

    /// The largest finite magnitude's bits.
    pub fn largest(self) -> u32 {
        match self.top {
            Top::Ieee => (((1 << self.exponent) - 1) << self.fraction) - 1,
            Top::OneNan => self.sign() - 2,
            Top::Numbers => self.sign() - 1,
        }
    }

    /// The NaN that the ISA writes.
    pub fn nan(self) -> u32 {
        self.sign() - 1
    }

    /// The value of a bit pattern.
    pub fn value(self, bits: u32) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let (exponent, fraction) = (magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1));
        let special = exponent == (1 << self.exponent) - 1;
        let value = if special && self.top == Top::Ieee {
            if fraction == 0 { f64::INFINITY } else { f64::NAN }
        } else if self.top == Top::OneNan && magnitude == self.sign() - 1 {
            f64::NAN
        } else if exponent == 0 {
            f64::from(fraction) * power(1 - self.bias() - self.fraction as i32)
        } else {
            f64::from(fraction + (1 << self.fraction)) * power(exponent as i32 - self.bias() - self.fraction as i32)
        };
        if bits & self.sign() != 0 { -value } else { value }
    }

    /// Rounds a number; `saturate` turns overflow and infinity into the largest finite number.
    pub fn round(self, x: f64, mode: Rounding, saturate: bool) -> u32 {
        if x.is_nan() {
            return self.nan();
        }
        let negative = x.is_sign_negative();
        let sign = if negative { self.sign() } else { 0 };
        let overflow = || {
            let towards_zero =
                matches!((mode, negative), (Rounding::Zero, _) | (Rounding::Down, false) | (Rounding::Up, true));
            let finite = saturate || self.top != Top::Ieee || towards_zero;
            if finite { self.largest() } else { self.largest() + 1 }
        };
        if x.is_infinite() {
            return sign | if saturate || self.top != Top::Ieee { self.largest() } else { self.largest() + 1 };
        }
        let bits = x.to_bits() & !(1 << 63);
        let field = (bits >> 52) as i32;
        let mantissa = (bits & ((1 << 52) - 1)) | if field == 0 { 0 } else { 1 << 52 };
        if mantissa == 0 {
            return sign;
        }
        let exponent = field.max(1) - 1023;
        let least = 1 - self.bias() - self.fraction as i32;
        let quantum = (exponent - self.fraction as i32).max(least);
        let shift = (quantum - (exponent - 52)).clamp(1, 63) as u32;
        let (whole, rest, half) = (mantissa >> shift, mantissa & ((1 << shift) - 1), 1u64 << (shift - 1));
        let up = match mode {
            Rounding::Nearest => rest > half || rest == half && whole & 1 == 1,
            Rounding::Away => rest >= half,
            Rounding::Zero => false,
            Rounding::Up => rest != 0 && !negative,
            Rounding::Down => rest != 0 && negative,
        };
        let result = (((quantum - least) as u64) << self.fraction) + whole + u64::from(up);
        sign | if result > u64::from(self.largest()) { overflow() } else { result as u32 }
    }
}

/// 2 to a power that may lie below the normal range of `f64`.
fn power(exponent: i32) -> f64 {
    if exponent >= -1022 {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    } else {
        f64::from_bits(1 << (exponent + 1074))
    }
}

/// An `f64` and the sign of what it lacks.
fn odd(rounded: f64, error: f64) -> f64 {
    if error == 0.0 || error.is_nan() || !rounded.is_finite() || rounded.to_bits() & 1 == 1 {
        rounded
    } else if error > 0.0 {
        rounded.next_up()
    } else {
        rounded.next_down()
    }
}

fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// `a + b`, rounded to odd; exact zero takes the sign that `mode` asks for.
pub fn add_odd(a: f64, b: f64, mode: Rounding) -> f64 {
    let (sum, error) = two_sum(a, b);
    if sum == 0.0 && mode == Rounding::Down && (a.is_sign_negative() || b.is_sign_negative()) {
        return -0.0;
    }
    odd(sum, error)
}

/// `a * b + c` rounded to odd, where `a * b` is exact in `f64`.
pub fn fma_odd(a: f64, b: f64, c: f64, mode: Rounding) -> f64 {
    add_odd(a * b, c, mode)
}

/// `a / b`, rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let rest = f64::mul_add(-quotient, b, a);
    odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// `sqrt(a)`, rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    odd(root, f64::mul_add(-root, root, a))
}

/// An `f32` from a number rounded to odd.
pub fn to_f32(x: f64, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest { x as f32 } else { f32::from_bits(F32.round(x, mode, false)) }
}

/// Moves a nearest result of `f64` arithmetic to where `mode` puts it, given the error's sign.
fn direct(rounded: f64, error: f64, mode: Rounding, finite: bool) -> f64 {
    if rounded.is_infinite() && finite {
        let stays = match mode {
            Rounding::Zero => false,
            Rounding::Up => rounded > 0.0,
            Rounding::Down => rounded < 0.0,
            _ => true,
        };
        return if stays { rounded } else { f64::MAX.copysign(rounded) };
    }
    if !rounded.is_finite() || error.is_nan() {
        return rounded;
    }
    let zero = mode == Rounding::Zero;
    let positive = rounded > 0.0 || rounded == 0.0 && error > 0.0;
    if error > 0.0 && (mode == Rounding::Up || zero && !positive) {
        rounded.next_up()
    } else if error < 0.0 && (mode == Rounding::Down || zero && positive) {
        rounded.next_down()
    } else {
        rounded
    }
}

/// `a + b` in double precision under any mode.
pub fn add64(a: f64, b: f64, mode: Rounding) -> f64 {
    let (sum, error) = two_sum(a, b);
    if sum == 0.0 && mode == Rounding::Down && (a.is_sign_negative() || b.is_sign_negative()) {
        return -0.0;
    }
    direct(sum, error, mode, a.is_finite() && b.is_finite())
}

/// `a * b` in double precision under any mode.
pub fn mul64(a: f64, b: f64, mode: Rounding) -> f64 {
    let product = a * b;
    direct(product, f64::mul_add(a, b, -product), mode, a.is_finite() && b.is_finite())
}

/// `a * b + c` in double precision under any mode.
pub fn fma64(a: f64, b: f64, c: f64, mode: Rounding) -> f64 {
    let result = f64::mul_add(a, b, c);
    if mode == Rounding::Nearest {
        return result;
    }
    if result == 0.0 && mode == Rounding::Down && a * b == -c && c != 0.0 {
        return -0.0;
    }
    let product = a * b;
    let low = f64::mul_add(a, b, -product);
    let (alpha1, alpha2) = two_sum(c, low);
    let (beta1, beta2) = two_sum(product, alpha1);
    let error = ((beta1 - result) + beta2) + alpha2;
    direct(result, error, mode, a.is_finite() && b.is_finite() && c.is_finite())
}

/// `a / b` in double precision under any mode.
pub fn div64(a: f64, b: f64, mode: Rounding) -> f64 {
    let quotient = a / b;
    let rest = f64::mul_add(-quotient, b, a);
    let error = if b < 0.0 { -rest } else { rest };
    direct(quotient, error, mode, a.is_finite() && b != 0.0)
}

/// `sqrt(a)` in double precision under any mode.
pub fn sqrt64(a: f64, mode: Rounding) -> f64 {
    let root = a.sqrt();
    direct(root, f64::mul_add(-root, root, a), mode, a.is_finite())
}

/// Flushes a subnormal to zero of its sign.
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
