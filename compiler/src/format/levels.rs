//! Scales as they are stored: numbers rounded to their type, in one level or two.
//!
//! Reads the scales that a quantizer wants, makes raw bits. Always holds: what is stored is finite, and 0 stays 0 where
//! the type has a zero.

use super::quantized::DYNAMIC_MAP;
use super::{Outer, OuterRule, Quantized, Scale};
use crate::dtype::DType;

/// Raw bits of the scales of a matrix.
pub(super) struct Written {
    /// One per granule.
    pub inner: Vec<u32>,
    /// The second level.
    pub outer: Vec<u32>,
    /// The offset of the dynamic map, else 0.
    pub offset: f32,
}

/// Writes the scales that `q`'s granules want; `places` holds the row and column of one weight of each granule.
pub(super) fn write(q: &Quantized, how: &Scale, ideal: &[f64], places: &[(usize, usize)]) -> Written {
    let Some(Outer { dtype, rule, .. }) = how.outer else {
        return Written {
            inner: ideal.iter().map(|scale| store(how.dtype, *scale)).collect(),
            outer: vec![],
            offset: 0.0,
        };
    };
    let offset = match rule {
        OuterRule::DynamicMap => (ideal.iter().sum::<f64>() / ideal.len() as f64) as f32,
        OuterRule::Multiply | OuterRule::Divide => 0.0,
    };
    let spans: Vec<usize> =
        places.iter().enumerate().map(|(granule, place)| q.outer_index(how, granule, place.0, place.1)).collect();
    let mut most = vec![0.0f64; how.outer_len(q.format.granularity, q.n, q.k)];
    for (scale, span) in ideal.iter().zip(&spans) {
        most[*span] = most[*span].max((scale - offset as f64).abs());
    }
    let top = largest(how.dtype);
    let outer: Vec<u32> = most
        .iter()
        .map(|most| match rule {
            OuterRule::Multiply => store(dtype, most / top),
            OuterRule::Divide if *most == 0.0 => store(dtype, 1.0),
            OuterRule::Divide => store(dtype, top / most),
            OuterRule::DynamicMap => store(dtype, *most),
        })
        .collect();
    let inner = ideal
        .iter()
        .zip(&spans)
        .map(|(scale, span)| {
            let outer = dtype.decode(outer[*span]);
            match rule {
                OuterRule::Multiply if outer == 0.0 => 0,
                OuterRule::Multiply => match store(how.dtype, scale / outer) {
                    // A small granule beside a large one keeps its shape: it is not rounded away.
                    0 if *scale > 0.0 => 1,
                    raw => raw,
                },
                OuterRule::Divide => store(how.dtype, scale * outer),
                OuterRule::DynamicMap => {
                    let x = if outer == 0.0 { 0.0 } else { (*scale as f32 - offset) / outer as f32 };
                    dynamic(x)
                }
            }
        })
        .collect();
    Written { inner, outer, offset }
}

/// Index of the number of the dynamic map that is nearest to `x`; a tie takes the lower one.
pub(super) fn dynamic(x: f32) -> u32 {
    let at = DYNAMIC_MAP.partition_point(|value| *value < x).min(255);
    if at > 0 && x - DYNAMIC_MAP[at - 1] <= DYNAMIC_MAP[at] - x { at as u32 - 1 } else { at as u32 }
}

/// Raw bits of the nearest number that a type has, cut to its finite range.
pub(super) fn store(dtype: DType, x: f64) -> u32 {
    match dtype {
        DType::I8 | DType::U4 | DType::U8 => dtype.encode(x),
        DType::E8m0 => {
            // Callers round to powers of two; there is no 0, so the smallest power stands for it.
            if x > 0.0 { (x.log2().floor() + 127.0).clamp(0.0, 254.0) as u32 } else { 0 }
        }
        _ => dtype.encode(x.clamp(-largest(dtype), largest(dtype))),
    }
}

/// The largest finite number of a type that scales, zeros or codes have.
pub(super) fn largest(dtype: DType) -> f64 {
    dtype.max_finite()
}
