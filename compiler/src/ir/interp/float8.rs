//! What the bits of a float narrower than binary32 mean, and the nearest such float of a number.
//!
//! Reads and makes bit patterns by plain arithmetic on exact `f64`s, from five numbers per type. It shares no code
//! with `dtype`, so that each checks the other. Always holds: `decode` is exact; `encode` rounds once.

use crate::ir::types::Scalar;

/// The shape of a float: a sign, an exponent, a fraction.
struct Shape {
    /// Bits of the fraction.
    fraction: u32,
    /// Exponent bias.
    bias: i32,
    /// The sign's bit.
    sign: u64,
    /// Largest finite magnitude.
    max: u64,
    /// What a number past the largest becomes: infinity, or the largest.
    over: u64,
    /// The NaN that `encode` makes.
    nan: u64,
    /// Neither infinity nor negative zero; the code of negative zero is the only NaN.
    unsigned_zero: bool,
}

const fn shape(scalar: Scalar) -> Option<Shape> {
    let (fraction, bias, sign, max, over, nan, unsigned_zero) = match scalar {
        Scalar::F16 => (10, 15, 0x8000, 0x7bff, 0x7c00, 0x7e00, false),
        Scalar::Bf16 => (7, 127, 0x8000, 0x7f7f, 0x7f80, 0x7fc0, false),
        Scalar::E4m3fn => (3, 7, 0x80, 0x7e, 0x7e, 0x7f, false),
        Scalar::E4m3fnuz => (3, 8, 0x80, 0x7f, 0x7f, 0x80, true),
        Scalar::E5m2 => (2, 15, 0x80, 0x7b, 0x7b, 0x7e, false),
        Scalar::E5m2fnuz => (2, 16, 0x80, 0x7f, 0x7f, 0x80, true),
        Scalar::Bool | Scalar::I8 | Scalar::I16 | Scalar::I32 | Scalar::I64 | Scalar::F32 | Scalar::E8m0 => {
            return None;
        }
    };
    Some(Shape { fraction, bias, sign, max, over, nan, unsigned_zero })
}

/// The number behind a float's bits. Integers and bools have none and give NaN.
pub fn decode(scalar: Scalar, bits: u64) -> f64 {
    if scalar == Scalar::F32 {
        return f32::from_bits(bits as u32) as f64;
    }
    if scalar == Scalar::E8m0 {
        return if bits == 0xff { f64::NAN } else { power_of_two(bits as i32 - 127) };
    }
    let Some(shape) = shape(scalar) else { return f64::NAN };
    let negative = bits & shape.sign != 0;
    let magnitude = bits & (shape.sign - 1);
    if shape.unsigned_zero && bits == shape.sign {
        return f64::NAN;
    }
    let number = if magnitude > shape.max {
        // E4M3 has no infinity: its one code above the largest number is NaN.
        if scalar != Scalar::E4m3fn && magnitude == shape.max + 1 { f64::INFINITY } else { f64::NAN }
    } else {
        let exponent = (magnitude >> shape.fraction) as i32;
        let fraction = magnitude & ((1 << shape.fraction) - 1);
        let hidden = if exponent == 0 { 0 } else { 1 << shape.fraction };
        (hidden | fraction) as f64 * power_of_two(exponent.max(1) - shape.bias - shape.fraction as i32)
    };
    if negative { -number } else { number }
}

/// The bits of the float nearest to a number, ties to even. Past the largest, IEEE types give infinity and 8-bit ones
/// the largest; NaN stays NaN. E8M0 takes the exponent of the magnitude, rounded down and clamped to its range.
pub fn encode(scalar: Scalar, number: f64) -> u64 {
    if scalar == Scalar::F32 {
        return (number as f32).to_bits() as u64;
    }
    if scalar == Scalar::E8m0 {
        return if number.is_nan() { 0xff } else { (exponent_of(number).clamp(-127, 127) + 127) as u64 };
    }
    let Some(shape) = shape(scalar) else { return 0 };
    if number.is_nan() {
        return shape.nan;
    }
    let magnitude = if number.is_infinite() {
        shape.over
    } else {
        // In units of the last place, the number is an integer plus what rounding drops. Adding the integer to the
        // exponent field lets a carry out of the fraction raise the exponent by itself.
        let exponent = exponent_of(number).max(1 - shape.bias);
        let units = (number.abs() * power_of_two(shape.fraction as i32 - exponent)).round_ties_even() as u64;
        let code = ((exponent + shape.bias - 1) as u64).saturating_mul(1 << shape.fraction) + units;
        if code > shape.max { shape.over } else { code }
    };
    if number.is_sign_negative() && !(shape.unsigned_zero && magnitude == 0) {
        magnitude | shape.sign
    } else {
        magnitude
    }
}

/// `2^exponent` for exponents of normal `f64`s.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The binary exponent, rounded down; -1023 for zero and what is as small.
fn exponent_of(number: f64) -> i32 {
    ((number.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: [Scalar; 7] =
        [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0];

    #[test]
    fn every_finite_code_survives_a_round_trip() {
        for scalar in SMALL {
            for code in 0..1u64 << scalar.bits() {
                let number = decode(scalar, code);
                if number.is_finite() {
                    assert_eq!(encode(scalar, number), code, "{scalar} {code:#x} = {number}");
                }
            }
        }
    }

    #[test]
    fn half_precision_agrees_with_the_half_crate() {
        for code in 0..=0xffffu16 {
            let (ours, theirs) = (decode(Scalar::F16, code as u64), half::f16::from_bits(code).to_f64());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{code:#x}");
            let (ours, theirs) = (decode(Scalar::Bf16, code as u64), half::bf16::from_bits(code).to_f64());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{code:#x}");
        }
        let mut random = 1u64;
        for _ in 0..200_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = f32::from_bits((random >> 32) as u32);
            if !x.is_nan() {
                assert_eq!(encode(Scalar::F16, x as f64), half::f16::from_f32(x).to_bits() as u64, "{x:e}");
                assert_eq!(encode(Scalar::Bf16, x as f64), half::bf16::from_f32(x).to_bits() as u64, "{x:e}");
            }
        }
    }

    #[test]
    fn known_codes_and_limits() {
        assert_eq!(decode(Scalar::E4m3fn, 0x7e), 448.0);
        assert_eq!(decode(Scalar::E4m3fnuz, 0x7f), 240.0);
        assert_eq!(decode(Scalar::E5m2, 0x7b), 57344.0);
        assert_eq!(decode(Scalar::E5m2fnuz, 0x7f), 57344.0);
        assert_eq!(decode(Scalar::E5m2, 0xfc), f64::NEG_INFINITY);
        assert!(decode(Scalar::E4m3fn, 0x7f).is_nan() && decode(Scalar::E5m2, 0x7d).is_nan());
        assert!(decode(Scalar::E4m3fnuz, 0x80).is_nan() && decode(Scalar::E8m0, 0xff).is_nan());
        assert_eq!(decode(Scalar::E8m0, 0), 2f64.powi(-127));
        assert_eq!(encode(Scalar::E4m3fn, 464.0), 0x7e);
        assert_eq!(encode(Scalar::E4m3fn, f64::INFINITY), 0x7e);
        assert_eq!(encode(Scalar::E5m2, f64::NEG_INFINITY), 0xfb);
        assert_eq!(encode(Scalar::E4m3fnuz, -1e-9), 0);
        assert_eq!(encode(Scalar::E4m3fn, -1e-9), 0x80);
        assert_eq!(encode(Scalar::E8m0, 3.99), 128);
        assert_eq!(encode(Scalar::E8m0, 0.0), 0);
    }
}
