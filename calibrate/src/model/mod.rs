//! A decoder model in memory: typed layers whose weights are floats or quantized matrices.
//!
//! Reads nothing by itself (`import` fills it); makes what the engine runs, the quantizers change and `export` writes.
//! Always holds: names are those of Hugging Face checkpoints, query and key rows lie in the half-split order of rotary
//! embedding, and every matrix has the size that the configuration states.

mod config;
mod dequantize;
mod layers;
mod rope;
mod scaling;
mod spill;

pub use config::{Config, Family};
pub use dequantize::{dequantize, permute_rows, row};
pub use layers::Layers;
pub use rope::{Rope, Scaling};
pub use spill::Spill;

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Quantized;
use bitsmith_compiler::op::Activation;
use std::borrow::Cow;

/// A whole model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Sizes and constants.
    pub config: Config,
    /// The embedding, `[vocab, hidden]`.
    pub embedding: Linear,
    /// The decoder layers.
    pub layers: Vec<Layer>,
    /// Gain of the last norm.
    pub norm: Floats,
    /// The output head; `None` where it is the embedding.
    pub head: Option<Linear>,
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Gain of the norm in front of attention.
    pub input_norm: Floats,
    /// Query, key, value and output.
    pub attention: Attention,
    /// Gain of the norm in front of the feed-forward part.
    pub post_norm: Floats,
    /// The feed-forward part.
    pub mlp: Mlp,
    /// Static scales of keys and values, where the checkpoint has them.
    pub kv_scales: Option<(f32, f32)>,
}

/// The attention part of a layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    /// Output.
    pub o: Linear,
    /// Gain of the norm over each query head (Qwen3).
    pub q_norm: Option<Floats>,
    /// Gain of the norm over each key head (Qwen3).
    pub k_norm: Option<Floats>,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // There is one per layer, beside matrices of megabytes.
pub enum Mlp {
    /// One gated block.
    Dense(Gated),
    /// A router and its experts.
    Experts {
        /// `[experts, hidden]`, always in floats.
        router: Linear,
        /// One gated block each.
        experts: Vec<Gated>,
    },
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Gated {
    /// The gate.
    pub gate: Linear,
    /// What it is multiplied with.
    pub up: Linear,
    /// Back to the residual stream.
    pub down: Linear,
}

/// A matrix `[n, k]` that maps `k` inputs to `n` outputs.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Name in the checkpoint, without `.weight`.
    pub name: String,
    /// Outputs.
    pub n: usize,
    /// Inputs, of the weight as it is stored.
    pub k: usize,
    /// The numbers.
    pub weight: Weight,
    /// Added to the outputs.
    pub bias: Option<Floats>,
    /// How inputs are quantized while the model runs; `None` leaves them floats.
    pub activation: Option<Activation>,
    /// The scale of inputs that are quantized with one static scale.
    pub input_scale: Option<f32>,
    /// Which input each column of the weight takes, where that is not its own place (split outlier channels).
    pub gather: Option<Vec<u32>>,
}

/// The numbers of a matrix.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // There is one per matrix of megabytes.
pub enum Weight {
    /// Floats.
    Floats(Floats),
    /// Codes and scales, exactly as the file has them.
    Quantized(Quantized),
}

/// Floats, and the type in which their file holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct Floats {
    /// The values; each is exact in `dtype`.
    pub values: Vec<f32>,
    /// `F32`, `F16` or `Bf16`.
    pub dtype: DType,
}

impl Floats {
    /// Values of `f32`.
    pub fn f32(values: Vec<f32>) -> Floats {
        Floats { values, dtype: DType::F32 }
    }

    /// The values rounded to a type.
    pub fn rounded(values: &[f32], dtype: DType) -> Floats {
        let round = |x: &f32| if dtype == DType::F32 { *x } else { dtype.decode(dtype.encode(*x as f64)) as f32 };
        Floats { values: values.iter().map(round).collect(), dtype }
    }

    /// Little-endian bytes in the file's type.
    pub fn bytes(&self) -> Vec<u8> {
        let size = self.dtype.bits() as usize / 8;
        let raw = |x: &f32| if self.dtype == DType::F32 { x.to_bits() } else { self.dtype.encode(*x as f64) };
        self.values.iter().flat_map(|x| raw(x).to_le_bytes().into_iter().take(size)).collect()
    }
}

impl Weight {
    /// All numbers, row-major, each rounded once to `f32`.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Weight::Floats(floats) => Cow::Borrowed(&floats.values),
            Weight::Quantized(q) => Cow::Owned(dequantize(q)),
        }
    }

    /// The name of the format, or of the float type.
    pub fn format_name(&self) -> String {
        match self {
            Weight::Floats(floats) => floats.dtype.name().to_string(),
            Weight::Quantized(q) => q.format.to_string(),
        }
    }

    /// The quantized matrix, if it is one.
    pub fn quantized(&self) -> Option<&Quantized> {
        match self {
            Weight::Quantized(q) => Some(q),
            Weight::Floats(_) => None,
        }
    }
}

impl Linear {
    /// A matrix of floats.
    pub fn floats(name: impl Into<String>, n: usize, k: usize, weight: Floats) -> Linear {
        Linear {
            name: name.into(),
            n,
            k,
            weight: Weight::Floats(weight),
            bias: None,
            activation: None,
            input_scale: None,
            gather: None,
        }
    }

    /// Inputs that the layer takes: those of the weight, or fewer where some columns share one.
    pub fn inputs(&self) -> usize {
        match &self.gather {
            Some(gather) => gather.iter().max().map_or(0, |&last| last as usize + 1),
            None => self.k,
        }
    }
}

impl Gated {
    /// The three matrices.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// The three matrices.
    pub fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}

impl Layer {
    /// Every matrix that recipes speak of, in the order of execution; routers are left out.
    pub fn linears(&self) -> Vec<&Linear> {
        let a = &self.attention;
        let mut list = vec![&a.q, &a.k, &a.v, &a.o];
        match &self.mlp {
            Mlp::Dense(gated) => list.extend(gated.linears()),
            Mlp::Experts { experts, .. } => experts.iter().for_each(|gated| list.extend(gated.linears())),
        }
        list
    }

    /// Every matrix that recipes speak of, in the order of execution; routers are left out.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let a = &mut self.attention;
        let mut list = vec![&mut a.q, &mut a.k, &mut a.v, &mut a.o];
        match &mut self.mlp {
            Mlp::Dense(gated) => list.extend(gated.linears_mut()),
            Mlp::Experts { experts, .. } => experts.iter_mut().for_each(|gated| list.extend(gated.linears_mut())),
        }
        list
    }
}

impl Model {
    /// The matrix that makes logits.
    pub fn head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix of the decoder layers and, where it stands alone, the head.
    pub fn linears(&self) -> Vec<&Linear> {
        self.layers.iter().flat_map(Layer::linears).chain(&self.head).collect()
    }

    /// Every matrix of the decoder layers and, where it stands alone, the head.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers.iter_mut().flat_map(Layer::linears_mut).chain(&mut self.head).collect()
    }
}
