//! GGUF IQ4_NL: blocks of 32 weights, one f16 scale, a code book, 18 bytes; `w = d * book[q]`.
//!
//! ```text
//! byte 0..2   d, f16
//! byte 2..18  nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! Source: ggml `block_iq4_nl`, `kvalues_iq4nl`.

use super::{Block, Fields, HALF, Weights, container, get_half, half_bits, put_half, search, simple};
use crate::format::{Code, Container, Format, Granularity, Zero, tables};

static CONTAINER: Container = container::<Iq4Nl>("gguf-iq4_nl");

/// The type.
pub(in crate::format) struct Iq4Nl;

impl Block for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const SUMMARY: &'static str = "GGUF IQ4_NL: 32 weights, f16 scale, code book, 4.5 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 18;
    const FORMAT: Format = Format {
        code: Code::Table(&tables::IQ4_NL),
        granularity: Granularity::Group(32),
        zero: Zero::None,
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
        let x = weights.x;
        let extreme = search::extreme(x);
        if extreme.abs() < search::TINY {
            // ggml looks its zeros up in the book like any other number.
            fields.codes[..32].fill(nearest(0.0));
            return;
        }
        let variance = x.iter().fold(0.0f32, |sum, x| sum + x * x) * (2.0 / 32.0);
        let weight = |i: usize| match weights.importance {
            Some(importance) => importance[i] * (variance + x[i] * x[i]).sqrt(),
            None => x[i] * x[i],
        };
        let sums = |inverse: f32| {
            let (mut along, mut square) = (0.0f32, 0.0f32);
            for (i, x) in x.iter().enumerate() {
                let (q, w) = (tables::IQ4_NL.values[nearest(inverse * x) as usize], weight(i));
                along += w * q * x;
                square += w * q * q;
            }
            (along, square)
        };
        let first = tables::IQ4_NL.values[0];
        let (along, square) = sums(1.0 / (-extreme / first));
        let mut scale = if square > 0.0 { along / square } else { 0.0 };
        let mut best = scale * along;
        for step in -7..=7 {
            let (along, square) = sums((step as f32 + first) / extreme);
            if square > 0.0 && along * along > best * square {
                scale = along / square;
                best = scale * along;
            }
        }
        fields.scales[0] = half_bits(scale);
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        for (code, x) in fields.codes.iter_mut().zip(x) {
            *code = nearest(inverse * x);
        }
    }
}

/// The code whose number is nearest; a tie takes the greater one.
fn nearest(x: f32) -> u8 {
    let book = &tables::IQ4_NL.values;
    (1..16).take_while(|i| x + x >= book[i - 1] + book[*i]).count() as u8
}
