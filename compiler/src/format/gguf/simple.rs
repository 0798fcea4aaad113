//! What the types with one scale per 32 weights share: ggml's plain quantizers, and nibbles in two halves.
//!
//! Reads a block's weights, fills scale, offset and codes; the fifth bit of the 5-bit types is laid here too.

use super::search::{self, Trials};
use super::{Fields, Weights, half_bits};

/// Codes about the middle `half`: scale = extreme / -half, so the extreme weight is exact.
pub(super) fn about_middle(weights: &Weights<'_>, half: i32, fields: &mut Fields) {
    let x = weights.x;
    let scale = match weights.importance {
        Some(importance) => {
            let weight = |i: usize| importance[i] * (weights.row_variance + x[i] * x[i]).sqrt();
            search::symmetric(x, weight, half, &mut fields.codes[..32])
        }
        None => {
            let scale = search::extreme(x) / -half as f32;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            for (code, x) in fields.codes.iter_mut().zip(x) {
                // Truncation after adding a half, as ggml rounds here.
                *code = ((x * inverse + (half as f32 + 0.5)) as i32).clamp(0, 2 * half - 1) as u8;
            }
            scale
        }
    };
    fields.scales[0] = half_bits(scale);
}

/// Codes from the least weight up: `scale * code + offset`.
pub(super) fn from_least(weights: &Weights<'_>, most: i32, fields: &mut Fields) {
    let x = weights.x;
    let (scale, least) = match weights.importance {
        Some(importance) => {
            let mut weight = [0.0f32; 32];
            for ((weight, x), importance) in weight.iter_mut().zip(x).zip(importance) {
                *weight = importance * (weights.row_variance + x * x).sqrt();
            }
            let trials = Trials { start: -0.9, step: 0.05, count: 36, absolute: false };
            let (scale, below) = search::offset(x, &weight, most, &mut fields.codes[..32], trials);
            (scale, -below)
        }
        None => {
            let least = x.iter().fold(f32::MAX, |low, x| low.min(*x));
            let greatest = x.iter().fold(f32::MIN, |high, x| high.max(*x));
            let scale = (greatest - least) / most as f32;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            for (code, x) in fields.codes.iter_mut().zip(x) {
                *code = (((x - least) * inverse + 0.5) as i32).clamp(0, most) as u8;
            }
            (scale, least)
        }
    };
    fields.scales[0] = half_bits(scale);
    fields.offsets[0] = half_bits(least);
}

/// Writes 16 bytes: byte `j` holds weight `j` (low) and weight `j + 16` (high).
pub(super) fn put_halves(bytes: &mut [u8], codes: &[u8]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = codes[j] & 15 | (codes[j + 16] & 15) << 4;
    }
}

/// Reads what [`put_halves`] writes.
pub(super) fn get_halves(bytes: &[u8], codes: &mut [u8]) {
    for (j, byte) in bytes.iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + 16] = byte >> 4;
    }
}

/// Writes the fifth bits: bit `j` of a little-endian u32 belongs to weight `j`.
pub(super) fn put_fifth(bytes: &mut [u8], codes: &[u8]) {
    let bits = codes[..32].iter().enumerate().fold(0u32, |bits, (j, code)| bits | (*code as u32 >> 4 & 1) << j);
    bytes.copy_from_slice(&bits.to_le_bytes());
}

/// Adds the fifth bits to codes.
pub(super) fn get_fifth(bytes: &[u8], codes: &mut [u8]) {
    for (j, code) in codes[..32].iter_mut().enumerate() {
        *code |= (bytes[j / 8] >> (j % 8) & 1) << 4;
    }
}
