//! GGUF Q2_0: blocks of 64 weights in 2 bits, one f16 scale, 18 bytes; `w = d * (q - 1)`.
//!
//! ```text
//! byte 0..2    d, f16
//! byte 2..18   2-bit codes; byte j holds weights 4j, 4j+1, 4j+2, 4j+3 from its low bits up
//! ```
//!
//! Source: ggml `block_q2_0`, type 42. A code of 3 reads as 2 d; no quantizer writes it.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, tq2_0};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Q2_0>("gguf-q2_0");

/// The type.
pub(in crate::format) struct Q2_0;

impl Block for Q2_0 {
    const NAME: &'static str = "q2_0";
    const SUMMARY: &'static str = "GGUF Q2_0: 2 bits, 64 weights, f16 scale, 2.25 bits";
    const WEIGHTS: usize = 64;
    const BYTES: usize = 18;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 2, signed: false },
        granularity: Granularity::Group(64),
        zero: Zero::Bias(1),
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_half(bytes, fields.scales[0]);
        for (byte, codes) in bytes[2..].iter_mut().zip(fields.codes.chunks(4)) {
            *byte = codes.iter().rev().fold(0, |byte, code| byte << 2 | code);
        }
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = get_half(bytes);
        for (codes, byte) in fields.codes.chunks_mut(4).zip(&bytes[2..]) {
            codes.iter_mut().enumerate().for_each(|(i, code)| *code = byte >> (2 * i) & 3);
        }
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        tq2_0::by_magnitude(weights, fields);
    }
}
