//! Decoding of a whole weight matrix: `Y[n, k]`, row-major, in `F32`, `F16` or `Bf16`.

use super::{Expected, dim_fault, float_fault, gamma, rounding};
use crate::dtype::DType;
use crate::format::{Format, Quantized, Zero};

/// A decoding of W.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dequant {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Format of W.
    pub weight: Format,
    /// Type of the numbers.
    pub out: DType,
}

impl Dequant {
    /// Every fault of the description.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        dim_fault("N", self.n, &mut faults);
        dim_fault("K", self.k, &mut faults);
        float_fault("output type", self.out, &mut faults);
        if faults.is_empty() {
            faults.extend((self.weight.container.check)(&self.weight, self.n, self.k));
        }
        faults
    }

    /// What weight (`row`, `column`) should be. A kernel rounds the scale's two levels, the zero, the product, the sum.
    pub fn reference(&self, weights: &Quantized, row: usize, column: usize) -> Expected {
        let value = weights.value(row, column);
        let granule = weights.granule(row, column);
        let offset = match weights.format.zero {
            Zero::Offset { .. } => weights.offset(granule, row, column).abs(),
            _ => 0.0,
        };
        rounding(value, gamma(6) * (value.abs() + 2.0 * offset), self.out)
    }
}
