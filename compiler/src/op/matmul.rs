//! Quantized matrix multiplication with an epilogue, and its meaning.
//!
//! `Y[m, n] = epilogue(Σ_k X[m, k] · W[n, k])`, `epilogue(y) = act(y + bias[n]) + residual[m, n]`, where `act` is the
//! identity or `silu(y) · mul[m, n]` (the gate of a SwiGLU block, `mul` being the up projection's result).

use super::{Activation, Expected, Per, dim_fault, float_fault, gamma, rounding};
use crate::dtype::DType;
use crate::format::{Code, Format, Granularity, Quantized, Zero};

/// A matmul with weights in a format. M is known at launch only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Format of W.
    pub weight: Format,
    /// How X comes.
    pub activation: Activation,
    /// Type of Y, residual and mul: `F32`, `F16` or `Bf16`.
    pub out: DType,
    /// What is done to a sum before it is stored.
    pub epilogue: Epilogue,
}

/// What is done to a sum before it is stored, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Epilogue {
    /// Adds `bias[n]`, `f32`.
    pub bias: bool,
    /// Multiplies `silu(y)` by `mul[m, n]`.
    pub silu_mul: bool,
    /// Adds `residual[m, n]`.
    pub residual: bool,
}

/// Inputs of a matmul in numbers.
#[derive(Clone, Copy, Debug)]
pub struct MatmulInputs<'a> {
    /// Rows of X.
    pub m: usize,
    /// X `[m, k]`: the numbers, or the codes where the activation is quantized (then `scales` applies).
    pub x: &'a [f64],
    /// Activation scales: `[m, per_row]`, one for `Per::Tensor`, empty for floats.
    pub scales: &'a [f32],
    /// W.
    pub weights: &'a Quantized,
    /// `[n]` if the epilogue adds it.
    pub bias: &'a [f32],
    /// `[m, n]` if the epilogue multiplies by it.
    pub mul: &'a [f64],
    /// `[m, n]` if the epilogue adds it.
    pub residual: &'a [f64],
    /// What sums may lose beyond roundings of `f32`, relative to the sum of magnitudes: [`Matmul::matrix_loss`] for kernels that
    /// use matrix units, else 0.
    pub loss: f64,
}

impl Matmul {
    /// Every fault of the description.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        dim_fault("N", self.n, &mut faults);
        dim_fault("K", self.k, &mut faults);
        float_fault("output type", self.out, &mut faults);
        match self.activation {
            Activation::Float(dtype) => float_fault("activation type", dtype, &mut faults),
            Activation::Int8(Per::Tensor) => faults.push("int8 activations take a scale per token or group".into()),
            _ => {}
        }
        if faults.is_empty() {
            faults.extend((self.weight.container.check)(&self.weight, self.n, self.k));
        }
        faults
    }

    /// Neighbours along K that share a weight scale and an activation scale: integer sums are exact inside one.
    /// Activation sums come per segment.
    pub fn segment(&self) -> usize {
        let group = match self.weight.granularity {
            Granularity::Tensor | Granularity::Channel => self.k,
            Granularity::Group(g) => g as usize,
            Granularity::Block { k, .. } => k as usize,
        };
        match self.activation {
            Activation::Int8(Per::Group(g)) | Activation::Fp8(_, Per::Group(g)) => group.min(g as usize).min(self.k),
            _ => group.min(self.k),
        }
    }

    /// What the outputs of the given rows of X and rows of W should be, `[rows, columns]`.
    pub fn reference(&self, inputs: &MatmulInputs<'_>, rows: &[usize], columns: &[usize]) -> Vec<Expected> {
        let k = self.k;
        let (mut values, mut sizes) = (vec![0.0; columns.len() * k], vec![0.0; columns.len() * k]);
        let (mut flushed, flush) = (vec![0.0; columns.len() * k], self.flush());
        for (i, &n) in columns.iter().enumerate() {
            for c in 0..k {
                values[i * k + c] = inputs.weights.value(n, c);
                sizes[i * k + c] = magnitude(inputs.weights, n, c);
                let scale = inputs.weights.scale(inputs.weights.granule(n, c), n, c);
                flushed[i * k + c] = flush * (sizes[i * k + c] + scale.abs());
            }
        }
        let mut expected = Vec::with_capacity(rows.len() * columns.len());
        for &m in rows {
            let scales: Vec<f64> = (0..k).map(|c| self.activation_scale(inputs, m, c)).collect();
            let x: Vec<f64> = scales.iter().enumerate().map(|(c, scale)| inputs.x[m * k + c] * scale).collect();
            for (i, &n) in columns.iter().enumerate() {
                let (w, size) = (&values[i * k..][..k], &sizes[i * k..][..k]);
                let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                let total: f64 = x.iter().zip(size).map(|(x, s)| x.abs() * s).sum();
                let lost: f64 = scales.iter().zip(&flushed[i * k..][..k]).map(|(scale, lost)| scale.abs() * lost).sum();
                expected.push(self.finish(inputs, (m, n), (sum, total), lost));
            }
        }
        expected
    }

    /// What matrix units may lose of a sum, relative to the sum of magnitudes: bits of sums of 8-bit floats, and those of a book's
    /// numbers that 16-bit floats have no room for.
    pub fn matrix_loss(&self) -> f64 {
        match (self.weight.code, self.activation) {
            (_, Activation::Fp8(..)) => FLOAT8_SUMS,
            (Code::Table(table), Activation::Float(dtype @ (DType::F16 | DType::Bf16))) => table.rounding(dtype),
            _ => 0.0,
        }
    }

    /// What weights lose by being rounded to the type of X, relative to their size: its unit
    /// roundoff. A product of two such numbers is exact in `f32`.
    pub fn decoding_loss(&self) -> f64 {
        match self.activation {
            Activation::Float(DType::F16) => 2f64.powi(-11),
            Activation::Float(DType::Bf16) => 2f64.powi(-8),
            _ => 0.0,
        }
    }

    /// What dot products of bf16 may lose of a product, relative to the code of its weight and one more: they take subnormal
    /// activations for zeros, and so they do with each of two sums, that of products and that of activations.
    fn flush(&self) -> f64 {
        match self.activation {
            Activation::Float(DType::Bf16) | Activation::Int8(_) | Activation::Fp8(..) => 2f64.powi(-125),
            Activation::Float(_) => 0.0,
        }
    }

    fn activation_scale(&self, inputs: &MatmulInputs<'_>, m: usize, column: usize) -> f64 {
        match self.activation {
            Activation::Float(_) => 1.0,
            Activation::Int8(per) | Activation::Fp8(_, per) => match per {
                Per::Tensor => inputs.scales[0] as f64,
                Per::Token => inputs.scales[m] as f64,
                Per::Group(g) => inputs.scales[m * per.per_row(self.k) + column / g as usize] as f64,
            },
        }
    }

    /// Any schedule makes at most K additions, and fewer than 16 further roundings, on the way of a product to its sum:
    /// scale of two levels, zero, activation scale, conversions.
    fn finish(
        &self,
        inputs: &MatmulInputs<'_>,
        (m, n): (usize, usize),
        (sum, total): (f64, f64),
        lost: f64,
    ) -> Expected {
        let mut value = sum;
        let mut bound = (gamma(self.k + 16) + inputs.loss) * total + lost;
        if self.epilogue.bias {
            value += inputs.bias[n] as f64;
            bound += gamma(2) * (value.abs() + bound);
        }
        if self.epilogue.silu_mul {
            let mul = inputs.mul[m * self.n + n];
            let sigmoid = 1.0 / (1.0 + (-value).exp());
            // |silu'| < 1.1. exp2 is off by at most 4 units, its argument by 2 relative, which moves exp2 by 2·|y|.
            let silu = value * sigmoid;
            bound = mul.abs() * (1.1 * bound + gamma(16 + 4 * value.abs().min(1e4) as usize) * silu.abs());
            value = silu * mul;
        }
        if self.epilogue.residual {
            value += inputs.residual[m * self.n + n];
            bound += gamma(2) * (value.abs() + bound);
        }
        rounding(value, bound, self.out)
    }
}

/// What matrix units may lose of sums of 8-bit floats, relative to the sum of magnitudes. They line up 32 products and the
/// sum before on the largest of them and keep about 14 bits (DeepSeek-V3 Technical Report, section 3.3.2), so a block of
/// 128 columns, after which kernels go on in `f32`, loses about √132 · 2⁻¹⁴ of its largest number where signs are mixed;
/// this is three times as much.
const FLOAT8_SUMS: f64 = 1.0 / 512.0;

/// |scale| · (|code| + |zero|) + |offset|: what bounds every intermediate of a weight's way into a sum.
/// Signed codes are counted with the bias that makes them unsigned, since kernels carry them so and take the bias off sums.
fn magnitude(w: &Quantized, row: usize, column: usize) -> f64 {
    let granule = w.granule(row, column);
    let carried = match w.format.code {
        Code::Int { bits, signed: true } => (1u32 << (bits - 1)) as f64,
        Code::Ternary | Code::Binary => 1.0,
        _ => 0.0,
    };
    let code = w.format.code.decode(w.codes[row * w.k + column]).abs() + carried;
    let zero = match w.format.zero {
        Zero::None => 0.0,
        Zero::Bias(bias) => bias.unsigned_abs() as f64,
        Zero::Int(_) => w.zeros[granule] as f64,
        Zero::Float(dtype) => dtype.decode(w.zeros[granule]).abs(),
        Zero::Offset { .. } => {
            return w.scale(granule, row, column).abs() * code + w.offset(granule, row, column).abs();
        }
    };
    w.scale(granule, row, column).abs() * (code + zero)
}
