//! GGUF MXFP4: blocks of 32 FP4 weights, one power of two, 17 bytes; `w = 2^(e - 127) * e2m1`.
//!
//! ```text
//! byte 0      e, E8M0
//! byte 1..17  nibbles; byte j holds weight j (low) and weight j + 16 (high)
//! ```
//!
//! ggml writes the FP4 numbers doubled and halves the power; the product is the same. Other tools order the nibbles
//! even and odd: see `ct_mxfp4`. Source: ggml `block_mxfp4`.

use super::{Block, Fields, Weights, container, simple};
use crate::dtype::DType;
use crate::format::{Code, Container, Format, Granularity, Scale, Zero};

static CONTAINER: Container = container::<Mxfp4>("gguf-mxfp4");

/// The type.
pub(in crate::format) struct Mxfp4;

impl Block for Mxfp4 {
    const NAME: &'static str = "mxfp4";
    const SUMMARY: &'static str = "GGUF MXFP4: FP4, 32 weights, power-of-two scale, 4.25 bits";
    const WEIGHTS: usize = 32;
    const BYTES: usize = 17;
    const FORMAT: Format = Format {
        code: Code::Float(DType::E2m1),
        granularity: Granularity::Group(32),
        zero: Zero::None,
        scale: Scale::of(DType::E8m0),
        container: &CONTAINER,
    };
    const SCALE_BITS: u32 = 8;

    fn write(fields: &Fields, bytes: &mut [u8]) {
        bytes[0] = fields.scales[0] as u8;
        simple::put_halves(&mut bytes[1..], &fields.codes);
    }

    fn read(bytes: &[u8], fields: &mut Fields) {
        fields.scales[0] = bytes[0] as u32;
        simple::get_halves(&bytes[1..], &mut fields.codes);
    }

    fn quantize(weights: &Weights<'_>, fields: &mut Fields) {
        let most = weights.x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // ggml takes the logarithm in f32, where it may round up to the next power: so do we.
        let exponent = if most > 0.0 { (most as f64).log2() as f32 } else { f32::MIN };
        let power = (exponent.floor() as i32).saturating_add(125).clamp(0, 254);
        fields.scales[0] = power as u32;
        // Half the power, for the doubled numbers.
        let half = ((power - 128) as f64).exp2() as f32;
        for (code, x) in fields.codes.iter_mut().zip(weights.x) {
            let mut least = f32::INFINITY;
            for (candidate, doubled) in DOUBLED.iter().enumerate() {
                let error = (doubled * half - x).abs();
                if error < least {
                    least = error;
                    *code = candidate as u8;
                }
            }
        }
    }
}

/// FP4 numbers, doubled, in the order of their codes.
const DOUBLED: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
