//! What Q2_K, Q4_K and Q5_K share: scales and offsets that are themselves scaled, and how ggml finds them.
//!
//! Reads the weights of a block of 256; fills inner scales and offsets, their f16 second levels, and codes.

use super::search::{self, Trials};
use super::{Fields, Weights, half_bits, half_value};

/// What differs between the types.
pub(super) struct Rule {
    /// Weights per inner scale.
    pub group: usize,
    /// The largest code.
    pub most: i32,
    /// The largest inner scale or offset.
    pub scale_most: i32,
    /// Trial scales without importances.
    pub trials: Trials,
    /// Whether, without importances, a weight's error counts by its magnitude plus the group's root mean square.
    pub root_mean_square: bool,
    /// With importances: how often the block's variance is added to a weight's square.
    pub variance_factor: f32,
}

/// Trial scales with importances.
const TRIALS: Trials = Trials { start: -0.9, step: 0.05, count: 36, absolute: false };

/// Fills a block.
pub(super) fn quantize(rule: &Rule, weights: &Weights<'_>, fields: &mut Fields) {
    let (x, groups) = (weights.x, 256 / rule.group);
    let (mut scales, mut offsets, mut sums) = ([0.0f32; 16], [0.0f32; 16], [0.0f32; 16]);
    let squares = |x: &[f32]| x.iter().fold(0.0f32, |sum, x| sum + x * x);
    let variance = rule.variance_factor * squares(x) / 256.0;
    for j in 0..groups {
        let at = j * rule.group..(j + 1) * rule.group;
        let group = &x[at.clone()];
        let mut matters = [0.0f32; 32];
        let matters = &mut matters[..rule.group];
        match weights.importance {
            Some(importance) => {
                for ((m, x), importance) in matters.iter_mut().zip(group).zip(&importance[at.clone()]) {
                    *m = importance * (variance + x * x).sqrt();
                }
            }
            None => {
                let base = if rule.root_mean_square { (squares(group) / rule.group as f32).sqrt() } else { 0.0 };
                for (m, x) in matters.iter_mut().zip(group) {
                    *m = base + x.abs();
                }
            }
        }
        sums[j] = matters.iter().fold(0.0f32, |sum, m| sum + m);
        let trials = if weights.importance.is_some() { TRIALS } else { rule.trials };
        (scales[j], offsets[j]) = search::offset(group, matters, rule.most, &mut fields.codes[at], trials);
    }
    let second_level = |numbers: &[f32], inner: &mut [u32; 16]| -> u32 {
        let mut codes = [0u8; 16];
        let outer = if weights.importance.is_some() {
            search::positive(numbers, &sums[..groups], rule.scale_most, &mut codes[..groups])
        } else {
            let most = numbers.iter().fold(0.0f32, |most, x| most.max(*x));
            let inverse = if most > 0.0 { rule.scale_most as f32 / most } else { 0.0 };
            for (code, x) in codes.iter_mut().zip(numbers) {
                *code = search::nearest(inverse * x).clamp(0, rule.scale_most) as u8;
            }
            most / rule.scale_most as f32
        };
        for (inner, code) in inner.iter_mut().zip(codes) {
            *inner = code as u32;
        }
        half_bits(outer)
    };
    fields.outer = second_level(&scales[..groups], &mut fields.scales);
    fields.offsets_outer = second_level(&offsets[..groups], &mut fields.offsets);
    for j in 0..groups {
        let scale = half_value(fields.outer) * fields.scales[j] as f32;
        let offset = half_value(fields.offsets_outer) * fields.offsets[j] as f32;
        // Under a scale of 0 the search's codes stay.
        if scale != 0.0 {
            let at = j * rule.group..(j + 1) * rule.group;
            for (code, x) in fields.codes[at.clone()].iter_mut().zip(&x[at]) {
                *code = search::nearest((x + offset) / scale).clamp(0, rule.most) as u8;
            }
        }
    }
}

/// Writes eight 6-bit scales and offsets into 12 bytes.
pub(super) fn put_sixes(bytes: &mut [u8], fields: &Fields) {
    for j in 0..4 {
        let (scale, offset) = (fields.scales[j] as u8, fields.offsets[j] as u8);
        let (late_scale, late_offset) = (fields.scales[j + 4] as u8, fields.offsets[j + 4] as u8);
        bytes[j] = scale | late_scale >> 4 << 6;
        bytes[j + 4] = offset | late_offset >> 4 << 6;
        bytes[j + 8] = late_scale & 15 | (late_offset & 15) << 4;
    }
}

/// Reads what [`put_sixes`] writes.
pub(super) fn get_sixes(bytes: &[u8], fields: &mut Fields) {
    for j in 0..4 {
        fields.scales[j] = bytes[j] as u32 & 63;
        fields.offsets[j] = bytes[j + 4] as u32 & 63;
        fields.scales[j + 4] = (bytes[j + 8] & 15 | bytes[j] >> 6 << 4) as u32;
        fields.offsets[j + 4] = (bytes[j + 8] >> 4 | bytes[j + 4] >> 6 << 4) as u32;
    }
}

/// Writes low nibbles: 32 bytes per 64 weights, the first 32 of them low.
pub(super) fn put_nibbles(bytes: &mut [u8], codes: &[u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        let first = i / 32 * 64 + i % 32;
        *byte = codes[first] & 15 | (codes[first + 32] & 15) << 4;
    }
}

/// Reads what [`put_nibbles`] writes.
pub(super) fn get_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
    }
}
