//! Error bounds: standard rounding analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3).

use crate::dtype::DType;

/// A number that a kernel should return, and how far off it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The exact result, as far as `f64` goes.
    pub value: f64,
    /// Largest absolute difference that rounding can explain; infinite where the result may overflow its type.
    pub bound: f64,
}

impl Expected {
    /// Whether a kernel's number agrees.
    pub fn accepts(&self, got: f64) -> bool {
        (got - self.value).abs() <= self.bound || self.bound.is_infinite()
    }
}

/// Half a unit in the last place of 1 in `f32`.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// `γ_n = n·u / (1 - n·u)`: relative error of `n` roundings in `f32`, in any order.
pub fn gamma(n: usize) -> f64 {
    let nu = n as f64 * UNIT;
    nu / (1.0 - nu)
}

/// Adds the rounding of the result to its type, and the overflow that it can bring.
pub fn rounding(value: f64, bound: f64, out: DType) -> Expected {
    let (half_unit, tiny, max) = match out {
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25), 65504.0),
        DType::Bf16 => (1.0 / 256.0, 2f64.powi(-134), 3.38e38),
        _ => (0.0, 2f64.powi(-149), 3.4e38),
    };
    let bound = bound + half_unit * (value.abs() + bound) + tiny;
    if value.abs() + bound >= max { Expected { value, bound: f64::INFINITY } } else { Expected { value, bound } }
}
