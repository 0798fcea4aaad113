//! GGUF Q6_K: blocks of 256 weights in 16 groups, 210 bytes; `w = d * scale * (q - 32)`, scale an i8.
//!
//! ```text
//! byte 0..128    low nibbles; 64 bytes per 128 weights, byte j holds weight j (low) and weight j + 64 (high)
//! byte 128..192  top 2 bits; 32 bytes per 128 weights, byte j holds weights j, j+32, j+64, j+96 from its low bits up
//! byte 192..208  scales, i8
//! byte 208..210  d, f16
//! ```
//!
//! Source: ggml `block_q6_K`.

use super::{
    Block, Fields, Weights, container, get_crumbs, get_half, half_bits, half_value, inner, put_crumbs, put_half, search,
};
use crate::dtype::DType;
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q6K>("gguf-q6_k");

/// The type.
pub(in crate::format) struct Q6K;

impl Block for Q6K {
    const NAME: &'static str = "q6_k";
    const SUMMARY: &'static str = "GGUF Q6_K: 16 groups in 256 weights, 6.5625 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 210;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 6, signed: false },
        granularity: Granularity::Group(16),
        zero: Zero::Bias(32),
        scale: inner(DType::I8),
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 8;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        for (i, byte) in bytes[..128].iter_mut().enumerate() {
            let first = i / 64 * 128 + i % 64;
            *byte = fields.codes[first] & 15 | (fields.codes[first + 64] & 15) << 4;
        }
        put_crumbs(&mut bytes[128..192], fields.codes.iter().map(|code| code >> 4));
        for (byte, scale) in bytes[192..208].iter_mut().zip(&fields.scales) {
            *byte = *scale as u8;
        }
        put_half(&mut bytes[208..], fields.outer);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        get_crumbs(&bytes[128..192], &mut fields.codes);
        for (i, code) in fields.codes.iter_mut().enumerate() {
            *code = *code << 4 | bytes[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        }
        for (scale, byte) in fields.scales.iter_mut().zip(&bytes[192..208]) {
            *scale = *byte as u32;
        }
        fields.outer = get_half(&bytes[208..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        let x = weights.x;
        let mut scales = [0.0f32; 16];
        for (j, scale) in scales.iter_mut().enumerate() {
            let (x, codes) = (&x[16 * j..][..16], &mut fields.codes[16 * j..][..16]);
            *scale = match weights.importance {
                Some(importance) => search::symmetric(x, |i| importance[16 * j + i], 32, codes),
                None => search::symmetric(x, |i| x[i] * x[i], 32, codes),
            };
        }
        let extreme = search::extreme(&scales);
        if extreme.abs() < search::TINY {
            fields.codes.fill(0);
            return;
        }
        let inverse = -128.0 / extreme;
        fields.outer = half_bits(1.0 / inverse);
        for (j, scale) in scales.iter().enumerate() {
            let level = search::nearest(inverse * scale).clamp(-128, 127);
            fields.scales[j] = level as i8 as u8 as u32;
            let scale = half_value(fields.outer) * level as f32;
            if scale != 0.0 {
                for (code, x) in fields.codes[16 * j..][..16].iter_mut().zip(&x[16 * j..][..16]) {
                    *code = (search::nearest(x / scale).clamp(-32, 31) + 32) as u8;
                }
            }
        }
    }
}
