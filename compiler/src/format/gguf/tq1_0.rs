//! GGUF TQ1_0: blocks of 256 ternary weights, five to a byte, one f16 scale, 54 bytes; `w = d * (q - 1)`.
//!
//! ```text
//! byte 0..32   byte j holds weights j, j+32, … j+128, the first as the highest digit
//! byte 32..48  byte j holds weights 160 + j, j+16, … j+64 likewise
//! byte 48..52  byte j holds weights 240 + j, j+4, j+8, j+12 likewise, and a last digit 0
//! byte 52..54  d, f16
//! ```
//!
//! Five digits are the number `v = sum q 3^(4-i)`, stored as `ceil(256 v / 243)`: the fraction `v / 243` in 8 bits. So
//! digit i is the top of `(byte * 3^i mod 256) * 3 / 256`, without a division. Source: ggml `block_tq1_0`.

use super::{Block, Fields, HALF, Weights, container, get_half, put_half, tq2_0};
use crate::format::{Code, Container, Format, Granularity, Zero};

static CONTAINER: Container = container::<Tq1_0>("gguf-tq1_0");

/// The type.
pub(in crate::format) struct Tq1_0;

impl Block for Tq1_0 {
    const NAME: &'static str = "tq1_0";
    const SUMMARY: &'static str = "GGUF TQ1_0: ternary, 256 weights, f16 scale, 1.6875 bits";
    const WEIGHTS: usize = 256;
    const BYTES: usize = 54;
    const FORMAT: Format = Format {
        code: Code::Ternary,
        granularity: Granularity::Group(256),
        zero: Zero::None,
        scale: HALF,
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 16;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        for (j, byte) in bytes[..52].iter_mut().enumerate() {
            let (first, stride, count) = digits(j);
            let value = (0..5)
                .fold(0u16, |value, i| value * 3 + if i < count { fields.codes[first + i * stride] as u16 } else { 0 });
            *byte = (value * 256).div_ceil(243) as u8;
        }
        put_half(&mut bytes[52..], fields.scales[0]);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        for (j, byte) in bytes[..52].iter().enumerate() {
            let (first, stride, count) = digits(j);
            let mut fraction = *byte;
            for i in 0..count {
                fields.codes[first + i * stride] = ((fraction as u16 * 3) >> 8) as u8;
                fraction = fraction.wrapping_mul(3);
            }
        }
        fields.scales[0] = get_half(&bytes[52..]);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        tq2_0::by_magnitude(weights, fields);
    }
}

/// Where the digits of a byte lie: first weight, distance, number.
fn digits(byte: usize) -> (usize, usize, usize) {
    match byte {
        0..32 => (byte, 32, 5),
        32..48 => (160 + byte - 32, 16, 5),
        _ => (240 + byte - 48, 4, 4),
    }
}
