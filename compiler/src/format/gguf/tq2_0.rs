//! GGUF TQ2_0: blocks of 256 ternary weights in 2 bits, one f16 scale, 66 bytes; `w = d * (q - 1)`.
//!
//! ```text
//! byte 0..64   2-bit codes; 32 bytes per 128 weights, byte j holds weights j, j+32, j+64, j+96 from its low bits up
//! byte 64..66  d, f16
//! ```
//!
//! Source: ggml `block_tq2_0`. A code of 3 reads as 2 d, as in ggml, which is why
//! the code is an integer here and not ternary; no quantizer writes it.

use super::{Block, Fields, HALF, Weights, container, get_crumbs, get_half, half_bits, put_crumbs, put_half};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Tq2_0>("gguf-tq2_0");

/// The type.
pub(in crate::format) struct Tq2_0;

impl Block for Tq2_0 {
    const NAME: &'static str = "tq2_0";
    const SUMMARY: &'static str = "GGUF TQ2_0: ternary, 256 weights, f16 scale, 2.0625 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 66;
    const FORMAT: Format = Format {
        code: Code::Int { bits: 2, signed: false },
        granularity: Granularity::Group(256),
        zero: Zero::Bias(1),
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        put_crumbs(&mut bytes[..64], fields.codes.iter().copied());
        put_half(&mut bytes[64..], fields.scales[0]);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        get_crumbs(&bytes[..64], &mut fields.codes);
        fields.scales[0] = get_half(&bytes[64..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        by_magnitude(weights, fields);
    }
}

/// The scale is the greatest magnitude, so weights below half of it become 0 (not the mean of magnitudes: the type is
/// meant for weights that are ternary already).
pub(super) fn by_magnitude(weights: &Weights<'_>, fields: &mut Fields) {
    let most = weights.x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let inverse = if most != 0.0 { 1.0 / most } else { 0.0 };
    fields.scales[0] = half_bits(most);
    for (code, x) in fields.codes.iter_mut().zip(weights.x) {
        *code = ((x * inverse).round() as i32 + 1).clamp(0, 2) as u8;
    }
}
