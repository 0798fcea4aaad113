//! GGUF Q5_1: blocks of 32 weights, f16 scale and offset, 24 bytes; `w = d * q + m`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..4   m, f16
//! byte 4..8   fifth bits, u32; bit j belongs to weight j
//! byte 8..24  low nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! Source: ggml `block_q5_1`.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, simple};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q5_1>("gguf-q5_1");

/// The type.
pub(in crate::format) struct Q5_1;

impl Block for Q5_1 {
    const NAME: &'static str = "q5_1";
    const SUMMARY: &'static str = "GGUF Q5_1: 32 weights, f16 scale and offset, 6 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 24;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 5, signed: false },
        granularity: Granularity::Group(32),
        zero: Zero::Offset { scale: HALF, sign: 1 },
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        put_half(&mut bytes[2..], fields.offsets[0]);
        simple::put_fifth(&mut bytes[4..8], &fields.codes);
        simple::put_halves(&mut bytes[8..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        fields.offsets[0] = get_half(&bytes[2..]);
        simple::get_halves(&bytes[8..], &mut fields.codes);
        simple::get_fifth(&bytes[4..8], &mut fields.codes);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        simple::from_least(weights, 31, fields);
    }
}
