//! GGUF Q4_0: blocks of 32 weights, one f16 scale, 18 bytes; `w = d * (q - 8)`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..18  nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! Source: ggml `block_q4_0`.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, simple};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q4_0>("gguf-q4_0");

/// The type.
pub(in crate::format) struct Q4_0;

impl Block for Q4_0 {
    const NAME: &'static str = "q4_0";
    const SUMMARY: &'static str = "GGUF Q4_0: 32 weights, f16 scale, 4.5 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 18;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 4, signed: false },
        granularity: Granularity::Group(32),
        zero: Zero::Bias(8),
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        simple::put_halves(&mut bytes[2..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        simple::get_halves(&bytes[2..], &mut fields.codes);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        simple::about_middle(weights, 8, fields);
    }
}
