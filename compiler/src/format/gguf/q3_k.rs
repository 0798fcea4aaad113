//! GGUF Q3_K: blocks of 256 weights in 16 groups, 110 bytes; `w = d * scale * (q - 4)`, scale from -32 to 31.
//!
//! ```text
//! byte 0..32     third bits: bit i of byte j belongs to weight 32 i + j
//! byte 32..96    low 2 bits; 32 bytes per 128 weights, byte j holds weights j, j+32, j+64, j+96 from its low bits up
//! byte 96..108   scale + 32 in 6 bits: byte j < 8 holds the low nibbles of scales j (low) and j + 8 (high); byte 8 + j
//!                the top 2 bits of scales j, j+4, j+8, j+12 from its low bits up
//! byte 108..110  d, f16
//! ```
//!
//! Source: ggml `block_q3_K`.

use super::{
    Block, Fields, Weights, container, get_crumbs, get_half, half_bits, half_value, inner, put_crumbs, put_half, search,
};
use crate::dtype::DType;
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q3K>("gguf-q3_k");

/// The type.
pub(in crate::format) struct Q3K;

impl Block for Q3K {
    const NAME: &'static str = "q3_k";
    const SUMMARY: &'static str = "GGUF Q3_K: 16 groups in 256 weights, 3.4375 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 110;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 3, signed: false },
        granularity: Granularity::Group(16),
        zero: Zero::Bias(4),
        scale: inner(DType::I8),
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 6;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        bytes[..32].fill(0);
        for (i, code) in fields.codes.iter().enumerate() {
            bytes[i % 32] |= (code >> 2) << (i / 32);
        }
        put_crumbs(&mut bytes[32..96], fields.codes.iter().copied());
        bytes[96..108].fill(0);
        for (j, scale) in fields.scales.iter().enumerate() {
            let scale = (*scale as u8).wrapping_add(32);
            bytes[96 + j % 8] |= (scale & 15) << (j / 8 * 4);
            bytes[104 + j % 4] |= (scale >> 4) << (j / 4 * 2);
        }
        put_half(&mut bytes[108..], fields.outer);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        get_crumbs(&bytes[32..96], &mut fields.codes);
        for (i, code) in fields.codes.iter_mut().enumerate() {
            *code |= (bytes[i % 32] >> (i / 32) & 1) << 2;
        }
        for (j, scale) in fields.scales.iter_mut().enumerate() {
            let low = bytes[96 + j % 8] >> (j / 8 * 4) & 15;
            let high = bytes[104 + j % 4] >> (j / 4 * 2) & 3;
            *scale = (low | high << 4).wrapping_sub(32) as u32;
        }
        fields.outer = get_half(&bytes[108..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        let x = weights.x;
        let mut scales = [0.0f32; 16];
        let levels: [i32; 16];
        match weights.importance {
            Some(importance) => {
                let variance = 2.0 * x.iter().fold(0.0f32, |sum, x| sum + x * x) / 256.0;
                let mut sums = [0.0f32; 16];
                for (j, scale) in scales.iter_mut().enumerate() {
                    let (x, importance) = (&x[16 * j..][..16], &importance[16 * j..][..16]);
                    let weight = |i: usize| importance[i] * (variance + x[i] * x[i]).sqrt();
                    sums[j] = (0..16).fold(0.0f32, |sum, i| sum + weight(i));
                    *scale = search::symmetric(x, weight, 4, &mut fields.codes[16 * j..][..16]);
                }
                let mut codes = [0u8; 16];
                fields.outer = half_bits(search::symmetric(&scales, |i| sums[i], 32, &mut codes));
                levels = codes.map(|code| code as i32 - 32);
            }
            None => {
                for (j, scale) in scales.iter_mut().enumerate() {
                    *scale = search::descent(&x[16 * j..][..16], 4, &mut fields.codes[16 * j..][..16]);
                }
                let extreme = search::extreme(&scales);
                if extreme != 0.0 {
                    let inverse = -32.0 / extreme;
                    fields.outer = half_bits(1.0 / inverse);
                    levels = scales.map(|scale| search::nearest(inverse * scale).clamp(-32, 31));
                } else {
                    levels = [-32; 16];
                }
            }
        }
        for (j, level) in levels.iter().enumerate() {
            fields.scales[j] = *level as i8 as u8 as u32;
            let scale = half_value(fields.outer) * *level as f32;
            if scale != 0.0 {
                for (code, x) in fields.codes[16 * j..][..16].iter_mut().zip(&x[16 * j..][..16]) {
                    *code = (search::nearest(x / scale).clamp(-4, 3) + 4) as u8;
                }
            }
        }
    }
}
