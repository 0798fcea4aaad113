//! `2^x` in two parts, from instructions that every target rounds alike: what its expansions build on.

use super::{BinOp, Builder, CastOp, Scalar, UnOp, Value};

/// Coefficients of `2^f`, of power 0 first. The second comes out as that of the Taylor series.
const SERIES: [f32; 7] =
    [1.0, std::f32::consts::LN_2, 0.240_226_46, 0.055_503_286, 0.009_618_489, 0.001_339_993_1, 0.000_153_458_12];

/// The same for the polynomial of degree 4 that is 1 at 0 and whose largest relative error on [-1/2, 1/2] is least, 2.9e-6.
const SHORT: [f32; 5] = [1.0, 0.693_124_2, 0.240_240_99, 0.055_906_426, 0.009_582_853];

/// `n`, the integer nearest to `x`, as `i32`, and `2^(x - n)` as `f32`.
///
/// The second is the polynomial of degree 6 whose largest relative error on [-1/2, 1/2] is least, 1.9e-9 (by Remez' exchange);
/// with its coefficients and sums in `f32` it is within 0.94 units in the last place, and exact where `x` is whole.
pub fn exp2_parts(b: &mut Builder, x: Value) -> (Value, Value) {
    let whole = b.un(UnOp::Nearest, x);
    let rest = b.bin(BinOp::Sub, x, whole);
    let sum = exp2_series(b, rest, 1.0);
    (b.cast(CastOp::FloatToIntS, whole, Scalar::I32), sum)
}

/// `factor · 2^rest` for `rest` in [-1/2, 1/2]; a power of two as factor changes no other bit of it.
pub fn exp2_series(b: &mut Builder, rest: Value, factor: f32) -> Value {
    polynomial(b, rest, factor, &SERIES)
}

/// The same to within 3e-6 of it, exact for a `rest` of 0.
pub fn exp2_short(b: &mut Builder, rest: Value, factor: f32) -> Value {
    polynomial(b, rest, factor, &SHORT)
}

fn polynomial(b: &mut Builder, rest: Value, factor: f32, series: &[f32]) -> Value {
    let lanes = b.ty(rest).lanes;
    let (highest, others) = series.split_last().expect("it has a degree");
    let mut sum = b.f32(lanes, factor * highest);
    for &coefficient in others.iter().rev() {
        let coefficient = b.f32(lanes, factor * coefficient);
        sum = b.fma(sum, rest, coefficient);
    }
    sum
}
