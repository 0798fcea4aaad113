//! Dynamic quantization of activations, row by row, with an optional RMSNorm and SmoothQuant vector in front.
//!
//! ```text
//! v[m, k] = x[m, k] · (r[m] · gamma[k]) · smooth[k]      r = 1 / sqrt(mean(x²) + eps), each factor if requested
//! a       = max |v| over the token or group              (fp8 per tensor: the scale is an input instead)
//! scale   = a / Q,  inverse = Q / a                      Q = 127 for int8, the largest finite number for fp8
//! code    = clamp(round_half_even(v · inverse), -127, 127), or fp8(v · inverse)
//! sum     = Σ code over each segment of K                int8 only
//! ```
//!
//! All of it in `f32`, in this order, so that the codes are the same on every device when there is no norm.
//! A row of zeros has scale 0 and codes 0. `smooth` holds the reciprocals of SmoothQuant's divisors.

use super::{Per, dim_fault, float_fault, gamma};
use crate::dtype::DType;

/// A quantization of X `[m, k]`; M is known at launch only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantize {
    /// Columns.
    pub k: usize,
    /// Type of X.
    pub input: DType,
    /// Type of the codes: `I8` or an fp8.
    pub code: DType,
    /// Which activations share a scale.
    pub per: Per,
    /// Columns per sum (the matmul's segment); 0 for no sums.
    pub sum_group: usize,
    /// RMSNorm in front.
    pub norm: Option<Norm>,
    /// Multiply by a vector `[k]` in front.
    pub smooth: bool,
}

/// An RMSNorm with a gain vector `[k]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Inputs of a quantization.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeInputs<'a> {
    /// X `[m, k]`, each number exact in the input type.
    pub x: &'a [f32],
    /// Gain of the norm `[k]`, if requested.
    pub gain: &'a [f32],
    /// Reciprocal smoothing `[k]`, if requested.
    pub smooth: &'a [f32],
    /// The scale for `Per::Tensor`.
    pub scale: f32,
}

/// One quantized row.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRows {
    /// Codes `[k]`: raw bits.
    pub codes: Vec<u8>,
    /// Scales of the row: one, or one per group; empty for `Per::Tensor`.
    pub scales: Vec<f32>,
    /// Sums of codes per segment.
    pub sums: Vec<i32>,
}

impl Quantize {
    /// Every fault of the description.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        dim_fault("K", self.k, &mut faults);
        float_fault("input type", self.input, &mut faults);
        match (self.code, self.per) {
            (DType::I8, Per::Tensor) => faults.push("int8 activations take a scale per token or group".into()),
            (DType::I8, Per::Group(g)) if g < 16 => {
                faults.push(format!("activation group is {g}; accepted: at least 16"))
            }
            (DType::I8, _) => {}
            (DType::E4m3fn | DType::E4m3fnuz | DType::E5m2 | DType::E5m2fnuz, Per::Group(_)) => {
                faults.push("fp8 activations take a scale per token or tensor".into());
            }
            (DType::E4m3fn | DType::E4m3fnuz | DType::E5m2 | DType::E5m2fnuz, _) => {}
            (other, _) => faults.push(format!("code type is {}; accepted: i8 and the four fp8 types", other.name())),
        }
        if self.sum_group != 0 && self.code != DType::I8 {
            faults.push("sums are for int8 codes only".into());
        }
        if let Per::Group(g) = self.per
            && self.sum_group != 0
            && !(g as usize).is_multiple_of(self.sum_group)
        {
            faults.push(format!(
                "sums over {} columns with scale groups of {g}: the first must divide the second",
                self.sum_group
            ));
        }
        faults
    }

    /// The largest code in numbers.
    pub fn top(&self) -> f32 {
        if self.code == DType::I8 { 127.0 } else { self.code.max_finite() as f32 }
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        match self.per {
            Per::Tensor | Per::Token => self.k,
            Per::Group(g) => (g as usize).min(self.k),
        }
    }

    /// Row `m` quantized as the module page says. With a norm, `r` comes from `f64`, and a kernel's may differ from it
    /// by [`Quantize::norm_error`], so that codes may differ by one where `v · inverse` is near a tie.
    pub fn reference(&self, inputs: &QuantizeInputs<'_>, m: usize) -> QuantizedRows {
        let x = &inputs.x[m * self.k..][..self.k];
        let r = self.norm.map(|norm| {
            let mean = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / self.k as f64;
            (1.0 / (mean + norm.eps as f64).sqrt()) as f32
        });
        let v: Vec<f32> = (0..self.k)
            .map(|c| {
                let normed = r.map_or(x[c], |r| x[c] * (r * inputs.gain[c]));
                if self.smooth { normed * inputs.smooth[c] } else { normed }
            })
            .collect();
        let mut rows = QuantizedRows { codes: Vec::new(), scales: Vec::new(), sums: Vec::new() };
        for group in v.chunks(self.group()) {
            let inverse = if self.per == Per::Tensor {
                1.0 / inputs.scale
            } else {
                let top = group.iter().fold(0.0f32, |a, v| if v.is_nan() { f32::NAN } else { a.max(v.abs()) });
                rows.scales.push(top / self.top());
                if top > 0.0 { self.top() / top } else { 0.0 }
            };
            rows.codes.extend(group.iter().map(|&v| self.encode(v * inverse)));
        }
        if self.sum_group != 0 {
            rows.sums = rows.codes.chunks(self.sum_group).map(|s| s.iter().map(|&c| c as i8 as i32).sum()).collect();
        }
        rows
    }

    fn encode(&self, scaled: f32) -> u8 {
        if self.code == DType::I8 {
            // A NaN converts to 0, as `as` does.
            scaled.round_ties_even().clamp(-127.0, 127.0) as i8 as u8
        } else {
            self.code.encode(scaled as f64) as u8
        }
    }

    /// Relative error of a kernel's `v` where there is a norm: the sum of squares, a root, a quotient, two products.
    pub fn norm_error(&self) -> f64 {
        gamma(self.k / 2 + 8)
    }
}
