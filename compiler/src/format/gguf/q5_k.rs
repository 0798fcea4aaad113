//! GGUF Q5_K: blocks of 256 weights in 8 groups, 176 bytes; `w = d * scale * q - dmin * offset`.
//!
//! ```text
//! byte 0..2     d, f16
//! byte 2..4     dmin, f16
//! byte 4..16    6-bit scales and offsets: bytes 0..4 scales 0..4, bytes 4..8 offsets 0..4 (low 6 bits); bytes 8..12
//!               the low nibbles of scale (low) and offset (high) 4..8, whose top 2 bits are those of bytes 0..4, 4..8
//! byte 16..48   fifth bits: bit i of byte j belongs to weight j of group i
//! byte 48..176  low nibbles; 32 bytes per 64 weights, byte j holds weight j (low) and weight j + 32 (high)
//! ```
//!
//! Source: ggml `block_q5_K`, `get_scale_min_k4`.

use super::offset_blocks::{self, Rule};
use super::search::Trials;
use super::{Block, Fields, Weights, container, get_half, inner, put_half};
use crate::dtype::DType;
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q5K>("gguf-q5_k");

/// The type.
pub(in crate::format) struct Q5K;

impl Block for Q5K {
    const NAME: &'static str = "q5_k";
    const SUMMARY: &'static str = "GGUF Q5_K: 8 groups in 256 weights, 5.5 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 176;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 5, signed: false },
        granularity: Granularity::Group(32),
        zero: Zero::Offset { scale: inner(DType::U8), sign: -1 },
        scale: inner(DType::U8),
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 6;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.outer);
        put_half(&mut bytes[2..], fields.offsets_outer);
        offset_blocks::put_sixes(&mut bytes[4..16], fields);
        bytes[16..48].fill(0);
        for (i, code) in fields.codes.iter().enumerate() {
            bytes[16 + i % 32] |= (code >> 4 & 1) << (i / 32);
        }
        offset_blocks::put_nibbles(&mut bytes[48..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.outer = get_half(bytes);
        fields.offsets_outer = get_half(&bytes[2..]);
        offset_blocks::get_sixes(&bytes[4..16], fields);
        offset_blocks::get_nibbles(&bytes[48..], &mut fields.codes);
        for (i, code) in fields.codes.iter_mut().enumerate() {
            *code |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
        }
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        offset_blocks::quantize(&RULE, weights, fields);
    }
}

const RULE: Rule = Rule {
    group: 32,
    most: 31,
    scale_most: 63,
    trials: Trials { start: -0.5, step: 0.1, count: 15, absolute: false },
    root_mean_square: true,
    variance_factor: 2.0,
};
