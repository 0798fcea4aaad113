//! GGUF Q2_K: blocks of 256 weights in 16 groups, 84 bytes; `w = d * scale * q - dmin * offset`.
//!
//! ```text
//! byte 0..16   per group of 16 weights: scale (low nibble), offset (high nibble)
//! byte 16..80  2-bit codes; 32 bytes per 128 weights, byte j holds weights j, j+32, j+64, j+96 from its low bits up
//! byte 80..82  d, f16
//! byte 82..84  dmin, f16
//! ```
//!
//! Source: ggml `block_q2_K`.

use super::offset_blocks::{self, Rule};
use super::search::Trials;
use super::{Block, Fields, Weights, container, get_crumbs, get_half, inner, put_crumbs, put_half};
use crate::dtype::DType;
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q2K>("gguf-q2_k");

/// The type.
pub(in crate::format) struct Q2K;

impl Block for Q2K {
    const NAME: &'static str = "q2_k";
    const SUMMARY: &'static str = "GGUF Q2_K: 16 groups in 256 weights, 2.625 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 84;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 2, signed: false },
        granularity: Granularity::Group(16),
        zero: Zero::Offset { scale: inner(DType::U4), sign: -1 },
        scale: inner(DType::U4),
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 4;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        for (byte, (scale, offset)) in bytes.iter_mut().zip(fields.scales.iter().zip(&fields.offsets)) {
            *byte = (scale | offset << 4) as u8;
        }
        put_crumbs(&mut bytes[16..80], fields.codes.iter().copied());
        put_half(&mut bytes[80..], fields.outer);
        put_half(&mut bytes[82..], fields.offsets_outer);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        for (i, byte) in bytes[..16].iter().enumerate() {
            (fields.scales[i], fields.offsets[i]) = (*byte as u32 & 15, *byte as u32 >> 4);
        }
        get_crumbs(&bytes[16..80], &mut fields.codes);
        fields.outer = get_half(&bytes[80..]);
        fields.offsets_outer = get_half(&bytes[82..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        offset_blocks::quantize(&RULE, weights, fields);
    }
}

const RULE: Rule = Rule {
    group: 16,
    most: 3,
    scale_most: 15,
    trials: Trials { start: -0.5, step: 0.1, count: 15, absolute: true },
    root_mean_square: false,
    variance_factor: 1.0,
};
