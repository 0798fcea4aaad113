//! `2^x` in two parts, from instructions that every target rounds alike: what its expansions build on.

use super::{BinOp, Builder, CastOp, Scalar, UnOp, Value};

/// `n`, the integer nearest to `x`, as `i32`, and `2^(x - n)` as `f32`.
///
/// The second is the Taylor series of `2^f` on [-1/2, 1/2], whose rest after the seventh power is 5.3e-9, a twentieth of a
/// unit in the last place.
pub fn exp2_parts(b: &mut Builder, x: Value) -> (Value, Value) {
    let whole = b.un(UnOp::Nearest, x);
    let rest = b.bin(BinOp::Sub, x, whole);
    let sum = exp2_series(b, rest, 1.0);
    (b.cast(CastOp::FloatToIntS, whole, Scalar::I32), sum)
}

/// `factor · 2^rest` for `rest` in [-1/2, 1/2]; a power of two as factor changes no other bit of it.
pub fn exp2_series(b: &mut Builder, rest: Value, factor: f32) -> Value {
    let lanes = b.ty(rest).lanes;
    let mut coefficient = 1.0f64;
    let mut series = vec![1.0f32];
    for power in 1..=7 {
        coefficient *= std::f64::consts::LN_2 / power as f64;
        series.push(coefficient as f32);
    }
    let mut sum = b.f32(lanes, factor * series[7]);
    for &coefficient in series[..7].iter().rev() {
        let coefficient = b.f32(lanes, factor * coefficient);
        sum = b.fma(sum, rest, coefficient);
    }
    sum
}
