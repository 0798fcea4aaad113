//! Matrices as floats: the reference.

use super::math::product;
use super::{Apply, Executor};
use crate::model::{Linear, Weight, dequantize};
use bitsmith_compiler::Result;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Activation, Per, Quantize, QuantizeInputs};

/// What is done to inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Nothing: weights are dequantized, inputs stay floats.
    Floats,
    /// They are quantized as the recipe says, and dequantized, by the compiler's reference.
    Quantized,
}

/// Executes in `f32`.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// What is done to inputs.
    pub activations: Activations,
}

struct DenseLinear {
    n: usize,
    k: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    gather: Option<Vec<u32>>,
    activation: Option<Activation>,
    input_scale: Option<f32>,
}

impl Executor for Dense {
    fn prepare(&self, linear: &Linear) -> Result<Box<dyn Apply>> {
        self.take(linear.clone())
    }

    fn take(&self, linear: Linear) -> Result<Box<dyn Apply>> {
        let simulated = self.activations == Activations::Quantized && linear.weight.quantized().is_some();
        Ok(Box::new(DenseLinear {
            n: linear.n,
            k: linear.k,
            weight: match linear.weight {
                Weight::Floats(floats) => floats.values,
                Weight::Quantized(q) => dequantize(&q),
            },
            bias: linear.bias.map(|bias| bias.values),
            gather: linear.gather,
            activation: linear.activation.filter(|_| simulated),
            input_scale: linear.input_scale,
        }))
    }
}

impl Apply for DenseLinear {
    fn apply(&self, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let gathered = self.gather.as_ref().map(|order| gather(x, m, order));
        let x = gathered.as_deref().unwrap_or(x);
        let coded = self.activation.map(|activation| simulate(x, self.k, activation, self.input_scale));
        let mut out = product(coded.as_deref().unwrap_or(x), &self.weight, m, self.n, self.k);
        if let Some(bias) = &self.bias {
            out.chunks_exact_mut(self.n).for_each(|row| super::math::add(row, bias));
        }
        Ok(out)
    }
}

/// Columns of `x` in another order.
pub(super) fn gather(x: &[f32], m: usize, order: &[u32]) -> Vec<f32> {
    let width = x.len() / m.max(1);
    x.chunks_exact(width.max(1)).flat_map(|row| order.iter().map(|&column| row[column as usize])).collect()
}

/// Inputs through their codes and back.
fn simulate(x: &[f32], k: usize, activation: Activation, input_scale: Option<f32>) -> Vec<f32> {
    let (code, per) = match activation {
        Activation::Float(DType::F32) => return x.to_vec(),
        Activation::Float(dtype) => return x.iter().map(|&v| dtype.decode(dtype.encode(v as f64)) as f32).collect(),
        Activation::Int8(per) => (DType::I8, per),
        Activation::Fp8(dtype, per) => (dtype, per),
    };
    let quantize = Quantize { k, input: DType::F32, code, per, sum_group: 0, norm: None, smooth: false };
    let scale = static_scale(x, &quantize, input_scale);
    let inputs = QuantizeInputs { x, gain: &[], smooth: &[], scale };
    let group = quantize.group();
    let mut out = Vec::with_capacity(x.len());
    for m in 0..x.len() / k {
        let row = quantize.reference(&inputs, m);
        out.extend(row.codes.iter().enumerate().map(|(c, &code_bits)| {
            let scale = if per == Per::Tensor { scale } else { row.scales[c / group] };
            code.decode(code_bits as u32) as f32 * scale
        }));
    }
    out
}

/// The scale of inputs with one scale: the calibrated one, else that of these very inputs.
pub(super) fn static_scale(x: &[f32], quantize: &Quantize, given: Option<f32>) -> f32 {
    given.unwrap_or_else(|| {
        let top = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        if top > 0.0 { top / quantize.top() } else { 1.0 }
    })
}
