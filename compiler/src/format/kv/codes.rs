//! From numbers to codes, in `f32` and in this order, so that every target stores the same bytes.
//!
//! ```text
//! x      = 0 for NaN and for magnitudes below 2^-100, else clamped to the largest finite number (2^64 under a scale)
//! scale  = up(max |x| / top)                     symmetric;  0 where all x are 0
//! offset = down(min x), scale = up((max x - offset) / top)   asymmetric
//! code   = round_half_even((x - offset) · (1 / scale)), or the nearest fp8
//! ```
//!
//! `up` rounds a number that is not negative to bf16 away from zero, `down` rounds to bf16 towards minus infinity.

use super::{KvCode, KvCodes};
use crate::dtype::DType;

/// Magnitudes below this are stored as 0: it keeps every scale and quotient normal, on devices that flush subnormals too.
pub const SMALLEST: f32 = 1.0 / (1u128 << 100) as f32;
/// Magnitudes above this are clamped where there is a scale.
pub const LARGEST: f32 = (1u128 << 64) as f32;

/// A number as it is coded: finite and not subnormal.
pub fn sanitize(codes: &KvCodes, x: f32) -> f32 {
    let limit = if codes.code.is_plain() { codes.top() } else { LARGEST };
    let clamped = if x < limit { x } else { limit };
    let clamped = if clamped > -limit { clamped } else { -limit };
    // NaN fails this test, and with it the one for small magnitudes.
    if x.abs() >= SMALLEST { clamped } else { 0.0 }
}

/// The least bf16 number at or above `x`, which is not negative.
pub fn scale_up(x: f32) -> u16 {
    (x.to_bits().wrapping_add(0xffff) >> 16) as u16
}

/// The largest bf16 number at or below `x`.
pub fn offset_down(x: f32) -> u16 {
    let bits = x.to_bits();
    let bits = if bits >> 31 != 0 { bits.wrapping_add(0xffff) } else { bits };
    (bits >> 16) as u16
}

/// The number that bf16 bits stand for.
pub fn bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Scale and offset of a granule of numbers that [`sanitize`] has seen, as stored.
pub fn granule_scale(codes: &KvCodes, xs: impl Iterator<Item = f32> + Clone) -> (u16, u16) {
    if codes.asymmetric {
        let least = xs.clone().fold(LARGEST, f32::min);
        let most = xs.fold(-LARGEST, f32::max);
        let offset = offset_down(least);
        let range = most - bf16(offset);
        (scale_up(if range < SMALLEST { 0.0 } else { range } / codes.top()), offset)
    } else {
        (scale_up(xs.fold(0.0, |a: f32, x| a.max(x.abs())) / codes.top()), 0)
    }
}

/// Two levels of scales of a token and head: a bf16 for all of it, and a byte per group.
pub fn two_levels(codes: &KvCodes, xs: &[f32], group: usize) -> (u16, Vec<u8>) {
    let tops: Vec<f32> = xs
        .chunks(group)
        .map(|xs| xs.iter().fold(0.0f32, |a, &x| a.max(sanitize(codes, x).abs())) / codes.top())
        .collect();
    let outer = scale_up(tops.iter().fold(0.0f32, |a, &x| a.max(x)) / 255.0);
    let factor = inverse(bf16(outer));
    let inner = tops.iter().map(|top| (-(-(top * factor)).floor()).min(255.0) as u8).collect();
    (outer, inner)
}

/// `1 / scale`, 0 for a scale of 0 (or one so small that a range of rounding errors made it).
pub fn inverse(scale: f32) -> f32 {
    if scale >= 1.0 / (1u128 << 120) as f32 { 1.0 / scale } else { 0.0 }
}

/// The code of one number, as it is stored.
pub fn code_of(codes: &KvCodes, x: f32, inverse: f32, offset: f32) -> u32 {
    match codes.code {
        KvCode::F16 => DType::F16.encode(x as f64),
        KvCode::Bf16 => DType::Bf16.encode(x as f64),
        KvCode::Int8 | KvCode::Int4 => {
            let rounded = ((x - offset) * inverse).round_ties_even();
            let low = if codes.asymmetric { 0.0 } else { -codes.top() };
            let clamped = rounded.max(low).min(codes.top()) as i32;
            let mask = if codes.code == KvCode::Int8 { 0xff } else { 0xf };
            (clamped + codes.bias() as i32) as u32 & mask
        }
        KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => {
            // A code is finite: fp8 saturates.
            let dtype = codes.code.float().unwrap_or(DType::E4m3fn);
            dtype.encode((x * inverse) as f64)
        }
    }
}

/// Codes of numbers that share a scale; `given` is the caller's scale and offset where it gives them. Returns the codes
/// and the stored scale and offset.
pub fn encode_granule(codes: &KvCodes, xs: &[f32], given: Option<(f32, f32)>) -> (Vec<u32>, u16, u16) {
    let clean: Vec<f32> = xs.iter().map(|&x| sanitize(codes, x)).collect();
    if codes.code.is_plain() {
        return (clean.iter().map(|&x| code_of(codes, x, 1.0, 0.0)).collect(), 0, 0);
    }
    let (stored, offset) = match given {
        Some(_) => (0, 0),
        None => granule_scale(codes, clean.iter().copied()),
    };
    let (scale, shift) = given.unwrap_or((bf16(stored), bf16(offset)));
    let inverse = inverse(scale);
    (clean.iter().map(|&x| code_of(codes, x, inverse, shift)).collect(), stored, offset)
}

/// The number that a stored code stands for before scale and offset.
pub fn decode(codes: &KvCodes, code: u32) -> f64 {
    match codes.code.float() {
        Some(dtype) => dtype.decode(code),
        None if codes.code == KvCode::Int8 && !codes.asymmetric => (code as u8 as i8) as f64,
        None => code as f64 - codes.bias() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_rounding() {
        for x in [0.0f32, 1.0, 1.0 + f32::EPSILON, 3.25, 1e-20, 65504.0] {
            assert!(bf16(scale_up(x)) >= x && bf16(scale_up(x)) <= x * 1.0079);
            assert!(bf16(offset_down(x)) <= x && bf16(offset_down(-x)) <= -x);
        }
    }

    /// Numbers in [0, 1).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 40) as f32 / (1u64 << 24) as f32
        }
    }

    #[test]
    fn no_code_is_clipped() {
        let mut rng = Numbers(1);
        for name in ["int8-token", "int4-token", "int8-token-asym", "int4-token-asym", "fp8e4m3-token"] {
            let codes = name.parse::<super::super::KvFormat>().unwrap().k;
            for _ in 0..500 {
                let shift = rng.next() * 20.0 - 10.0;
                let xs: Vec<f32> = (0..32).map(|_| shift + rng.next() * 2.0 - 1.0).collect();
                let (stored, scale, offset) = encode_granule(&codes, &xs, None);
                let (scale, offset) = (bf16(scale) as f64, bf16(offset) as f64);
                for (&x, &code) in xs.iter().zip(&stored) {
                    let y = decode(&codes, code) * scale + offset;
                    let step = if codes.code.float().is_some() {
                        16.0 * scale.max(x.abs() as f64 / 256.0)
                    } else {
                        scale * 0.501
                    };
                    assert!((y - x as f64).abs() <= step, "{name}: {x} became {y}, scale {scale}");
                }
            }
        }
    }
}
