//! GGUF Q4_1: blocks of 32 weights, f16 scale and offset, 20 bytes; `w = d * q + m`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..4   m, f16
//! byte 4..20  nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! Source: ggml `block_q4_1`.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, simple};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q4_1>("gguf-q4_1");

/// The type.
pub(in crate::format) struct Q4_1;

impl Block for Q4_1 {
    const NAME: &'static str = "q4_1";
    const SUMMARY: &'static str = "GGUF Q4_1: 32 weights, f16 scale and offset, 5 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 20;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 4, signed: false },
        granularity: Granularity::Group(32),
        zero: Zero::Offset { scale: HALF, sign: 1 },
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        put_half(&mut bytes[2..], fields.offsets[0]);
        simple::put_halves(&mut bytes[4..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        fields.offsets[0] = get_half(&bytes[2..]);
        simple::get_halves(&bytes[4..], &mut fields.codes);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        simple::from_least(weights, 15, fields);
    }
}
