//! Floats of 8 bits, converted both ways.

use super::{f, h};
use crate::common;
use half::f16;

/// Every pattern of the 8-bit floats, by the definition of the formats (OCP OFP8: bias 7 and 15).
#[test]
fn byte_floats_convert_by_their_definition() {
    fn value(bits: u32, exponent_bits: u32, fraction_bits: u32, bias: i32) -> f64 {
        let sign = if bits >> 7 & 1 == 1 { -1.0 } else { 1.0 };
        let exponent = (bits >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
        let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        if exponent == 0 {
            sign * fraction * 2f64.powi(1 - bias)
        } else {
            sign * (1.0 + fraction) * 2f64.powi(exponent - bias)
        }
    }
    let text = common::around(
        "sm_89",
        &[
            "cvt.rn.f16x2.e4m3x2 %r0, %h1;",
            "cvt.rn.f16x2.e5m2x2 %r0, %h1;",
            "cvt.rn.satfinite.e4m3x2.f32 %h0, %r2, %r3;",
            "cvt.rn.satfinite.e5m2x2.f32 %h0, %r2, %r3;",
            "cvt.rn.satfinite.e4m3x2.f16x2 %h0, %r1;",
        ],
    );
    common::assembles("byte floats", &text);
    let mut random = fastrand::Rng::with_seed(9);
    let mut inputs: Vec<[u64; 3]> = (0..256).map(|i| [i | (255 - i) << 8, 0, 0]).collect();
    for _ in 0..4096 {
        let one = |r: &mut fastrand::Rng| u64::from(((r.f32() - 0.5) * 2f32.powi(r.i32(-12..18))).to_bits());
        inputs.push([random.u64(..1 << 16), one(&mut random), one(&mut random)]);
    }
    for special in [
        f32::NAN,
        f32::INFINITY,
        -f32::INFINITY,
        448.0,
        464.0,
        465.0,
        57344.0,
        61440.0,
        1e9,
        0.0,
        -0.0,
        0.001953125,
        0.0009765625,
    ] {
        inputs.push([0, u64::from(special.to_bits()), u64::from((-special).to_bits())]);
    }
    let nearest = |x: f64, exponent_bits: u32, fraction_bits: u32, bias: i32, largest: u32| -> u32 {
        let sign = u32::from(x.is_sign_negative()) << 7;
        let x = if x.is_infinite() { 1e9f64.copysign(x) } else { x };
        if x.is_nan() {
            return 0x7f;
        }
        // The nearest of all magnitudes; a tie goes to the even pattern; beyond the largest is the largest.
        let best = (0..=largest).min_by(|p, q| {
            let distance = |b: u32| (value(b, exponent_bits, fraction_bits, bias) - x.abs()).abs();
            distance(*p).total_cmp(&distance(*q)).then((p & 1).cmp(&(q & 1)))
        });
        best.unwrap() | sign
    };
    for (input, row) in inputs.iter().zip(common::evaluate(&text, &inputs, 5)) {
        for half_at in [0, 8] {
            let byte = (input[0] >> half_at) as u32 & 0xff;
            let found = |i: usize| f16::from_bits((row[i] >> (2 * half_at)) as u16);
            if byte & 0x7f == 0x7f {
                assert!(found(0).is_nan());
            } else {
                assert_eq!(found(0).to_f64(), value(byte, 4, 3, 7), "e4m3 {byte:#x}");
            }
            if byte & 0x7f > 0x7c {
                assert!(found(1).is_nan());
            } else if byte & 0x7f == 0x7c {
                assert!(found(1).is_infinite());
            } else {
                assert_eq!(found(1).to_f64(), value(byte, 5, 2, 15), "e5m2 {byte:#x}");
            }
        }
        let (high, low) = (f64::from(f(input[1])), f64::from(f(input[2])));
        let e4m3 = nearest(high, 4, 3, 7, 0x7e) << 8 | nearest(low, 4, 3, 7, 0x7e);
        let e5m2 = nearest(high, 5, 2, 15, 0x7b) << 8 | nearest(low, 5, 2, 15, 0x7b);
        assert_eq!(row[2], u64::from(e4m3), "e4m3 of {high}, {low}");
        assert_eq!(row[3], u64::from(e5m2), "e5m2 of {high}, {low}");
        let halves = [h(input[0] >> 16).to_f64(), h(input[0]).to_f64()];
        let packed = nearest(halves[0], 4, 3, 7, 0x7e) << 8 | nearest(halves[1], 4, 3, 7, 0x7e);
        assert_eq!(row[4], u64::from(packed), "e4m3 of halves {halves:?}");
    }
}
