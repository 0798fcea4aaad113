//! Bytes: weights, keys and values, workspace.
//!
//! Reads the sizes of a model and what a recipe makes of each matrix; makes byte counts. Always holds: weights are counted
//! format by format with scales and zeros as files hold them, so that the sum is that of the files within a per cent.

use crate::quantize::sizes_of;
use crate::recipe::{Plan, Sizes};
use crate::shapes::ModelShape;
use bitsmith_compiler::format::{Format, Granularity, Zero};
use serde::{Deserialize, Serialize};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kv {
    /// 16-bit floats.
    F16,
    /// FP8 with one static scale each for keys and values.
    Fp8Tensor,
    /// 8-bit integers, a scale per token and head.
    Int8TokenHead,
    /// 4-bit integers: keys per channel, values per token, groups of 32, the newest tokens in floats.
    Int4Kivi,
}

impl Kv {
    /// Every kind.
    pub const ALL: [Kv; 4] = [Kv::F16, Kv::Fp8Tensor, Kv::Int8TokenHead, Kv::Int4Kivi];

    /// Name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Kv::F16 => "f16",
            Kv::Fp8Tensor => "fp8-tensor",
            Kv::Int8TokenHead => "int8-token-head",
            Kv::Int4Kivi => "int4-kivi",
        }
    }

    /// Bytes of one token over all layers.
    pub fn bytes_per_token(self, shape: &ModelShape) -> f64 {
        let numbers = 2.0 * (shape.kv_heads * shape.head_dim) as f64;
        let one = match self {
            Kv::F16 => 2.0 * numbers,
            Kv::Fp8Tensor => numbers,
            Kv::Int8TokenHead => numbers + 2.0 * 2.0 * shape.kv_heads as f64,
            // Half a byte, and two f16 per group of 32.
            Kv::Int4Kivi => numbers * (0.5 + 4.0 / 32.0),
        };
        one * shape.layers as f64
    }
}

/// Tokens of a page.
const PAGE: usize = 16;
/// Tokens that a prefill takes at once.
const CHUNK: usize = 2048;

/// Where memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Matrices, embeddings, norms.
    pub weights: f64,
    /// Keys and values of all sequences at full context.
    pub kv: f64,
    /// Activations and logits.
    pub workspace: f64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.weights + self.kv + self.workspace
    }
}

/// The matrices of a model by name, as `quantize` would find them.
pub fn linears(shape: &ModelShape) -> Vec<Sizes> {
    let mut list = Vec::new();
    for layer in 0..shape.layers {
        for linear in shape.linears().iter().filter(|l| l.name != "lm_head") {
            let attention =
                linear.name.ends_with("_proj") && !matches!(linear.name, "gate_proj" | "up_proj" | "down_proj");
            let copies = if attention { 1 } else { shape.experts };
            for expert in 0..copies {
                let name = match (attention, shape.is_mixture()) {
                    (true, _) => format!("model.layers.{layer}.self_attn.{}", linear.name),
                    (false, false) => format!("model.layers.{layer}.mlp.{}", linear.name),
                    (false, true) => format!("model.layers.{layer}.mlp.experts.{expert}.{}", linear.name),
                };
                list.push(Sizes { name, n: linear.n, k: linear.k });
            }
        }
    }
    if !shape.tied {
        list.push(Sizes { name: "lm_head".into(), n: shape.vocab, k: shape.hidden });
    }
    list
}

/// Bytes of a matrix in a format.
pub fn matrix_bytes(format: &Format, n: usize, k: usize) -> f64 {
    let (rows, columns) = format.granularity.grid(n, k);
    let granules = (rows * columns) as f64;
    let zeros = match format.zero {
        Zero::None | Zero::Bias(_) => 0.0,
        Zero::Int(bits) => bits as f64,
        Zero::Float(dtype) => dtype.bits() as f64,
        Zero::Offset { scale, .. } => scale.dtype.bits() as f64,
    };
    let outer = match (format.scale.outer, format.granularity) {
        (None, _) => 0.0,
        (Some(outer), Granularity::Group(_)) => {
            use bitsmith_compiler::format::Span;
            let count = match outer.span {
                Span::Tensor => 1.0,
                Span::Row => n as f64,
                Span::Weights(w) => (n * k.div_ceil(w as usize)) as f64,
                Span::Flat(s) => (granules / s as f64).ceil(),
            };
            count * outer.dtype.bits() as f64
        }
        (Some(outer), _) => outer.dtype.bits() as f64,
    };
    ((n * k) as f64 * format.code.bits() as f64 + granules * (format.scale.dtype.bits() as f64 + zeros) + outer) / 8.0
}

/// Bytes of the weights under a plan; what is left in floats takes two bytes per number.
pub fn weights(shape: &ModelShape, plan: &Plan, sizes: &[Sizes]) -> f64 {
    let matrices: f64 = sizes
        .iter()
        .zip(&plan.linears)
        .map(|(s, plan)| match &plan.format {
            Some(format) => matrix_bytes(format, s.n, s.k + plan.pad),
            None => 2.0 * (s.n * s.k) as f64,
        })
        .sum();
    let routers = if shape.is_mixture() { shape.layers * shape.experts * shape.hidden } else { 0 };
    let norms = (2 * shape.layers + 1) * shape.hidden;
    matrices + 2.0 * (shape.vocab * shape.hidden + routers + norms) as f64
}

/// Bytes of keys and values of `batch` sequences of `context` tokens, in whole pages.
pub fn kv(shape: &ModelShape, kind: Kv, batch: usize, context: usize) -> f64 {
    kind.bytes_per_token(shape) * (batch * context.next_multiple_of(PAGE)) as f64
}

/// Bytes of activations and logits.
pub fn workspace(shape: &ModelShape, batch: usize, context: usize) -> f64 {
    let tokens = batch.max(context.min(CHUNK)) as f64;
    let queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    let per_token = 2.0 * (4 * shape.hidden + queries + 3 * shape.ffn * shape.experts_per_token) as f64;
    tokens * per_token + 4.0 * (batch * shape.vocab) as f64
}

/// Bytes of a model in memory as files would hold it, for comparisons.
pub fn model_bytes(model: &crate::model::Model) -> f64 {
    let linears: usize = model.linears().into_iter().map(sizes_of).sum();
    let norms: usize = model.layers.iter().map(|l| l.input_norm.values.len() + l.post_norm.values.len()).sum::<usize>()
        + model.norm.values.len();
    (linears + sizes_of(&model.embedding) + 2 * norms) as f64
}
