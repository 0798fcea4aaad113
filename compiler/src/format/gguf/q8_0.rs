//! GGUF Q8_0: blocks of 32 weights, one f16 scale, 34 bytes; `w = d * q`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..34  q, i8
//! ```
//!
//! Source: ggml `block_q8_0`.

use super::{Block, Fields, HALF, Weights, container, get_half, half_bits, put_half};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q8_0>("gguf-q8_0");

/// The type.
pub(in crate::format) struct Q8_0;

impl Block for Q8_0 {
    const NAME: &'static str = "q8_0";
    const SUMMARY: &'static str = "GGUF Q8_0: 32 weights, f16 scale, 8.5 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 34;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 8, signed: true },
        granularity: Granularity::Group(32),
        zero: Zero::None,
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        bytes[2..].copy_from_slice(&fields.codes[..32]);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        fields.codes[..32].copy_from_slice(&bytes[2..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        let most = weights.x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = most / 127.0;
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        fields.scales[0] = half_bits(scale);
        for (code, x) in fields.codes.iter_mut().zip(weights.x) {
            // Half away from zero, as ggml rounds here.
            *code = (x * inverse).round() as i8 as u8;
        }
    }
}
