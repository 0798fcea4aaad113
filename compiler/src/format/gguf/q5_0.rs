//! GGUF Q5_0: blocks of 32 weights, one f16 scale, 22 bytes; `w = d * (q - 16)`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..6   fifth bits, u32; bit j belongs to weight j
//! byte 6..22  low nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! Source: ggml `block_q5_0`.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, simple};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q5_0>("gguf-q5_0");

/// The type.
pub(in crate::format) struct Q5_0;

impl Block for Q5_0 {
    const NAME: &'static str = "q5_0";
    const SUMMARY: &'static str = "GGUF Q5_0: 32 weights, f16 scale, 5.5 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 22;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 5, signed: false },
        granularity: Granularity::Group(32),
        zero: Zero::Bias(16),
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        simple::put_fifth(&mut bytes[2..6], &fields.codes);
        simple::put_halves(&mut bytes[6..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        simple::get_halves(&bytes[6..], &mut fields.codes);
        simple::get_fifth(&bytes[2..6], &mut fields.codes);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        simple::about_middle(weights, 16, fields);
    }
}
