//! The linear layers of models: how large, how many, and of which class.
//!
//! Reads a known name or a `config.json`; makes a [`ModelShape`] and from it the linear layers. Always holds: every
//! size is at least 1 and small enough that all products here fit 64 bits.

mod config;

use bitsmith_compiler::{Error, Result};
use std::borrow::Cow;
use std::path::Path;

/// The sizes of a decoder model of the Llama kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// The name.
    pub name: Cow<'static, str>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layer, of one expert where there are experts.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Experts per layer; 1 in a dense model.
    pub experts: usize,
    /// Experts that one token uses; 1 in a dense model.
    pub experts_per_token: usize,
    /// Whether the output head shares the embedding matrix.
    pub tied: bool,
}

/// What a linear layer is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Query, key, value and output projections.
    Attention,
    /// The feed-forward layers of a dense model.
    Mlp,
    /// The feed-forward layers of the experts.
    Expert,
    /// The output head.
    LmHead,
}

/// One kind of linear layer: weights `[n, k]`, `count` of them in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The name of the layer in a checkpoint, without its path.
    pub name: &'static str,
    /// Outputs.
    pub n: usize,
    /// Inputs, the contiguous dimension.
    pub k: usize,
    /// How many the model holds.
    pub count: usize,
    /// What it is part of.
    pub class: Class,
}

/// All linear layers of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distinct {
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// How many the model holds.
    pub count: usize,
    /// The layers of this size.
    pub names: Vec<&'static str>,
}

/// Known models. Sources: the `config.json` of each model's page; tests compare the parameter counts that the
/// publishers state.
#[rustfmt::skip]
pub const MODELS: &[ModelShape] = &[
    //          name              hidden layers heads kv head_dim ffn  vocab  tied
    dense("llama-2-7b",            4096, 32, 32, 32, 128, 11008,  32000, false),
    dense("llama-2-13b",           5120, 40, 40, 40, 128, 13824,  32000, false),
    dense("llama-2-70b",           8192, 80, 64,  8, 128, 28672,  32000, false),
    dense("llama-3-8b",            4096, 32, 32,  8, 128, 14336, 128256, false),
    dense("llama-3-70b",           8192, 80, 64,  8, 128, 28672, 128256, false),
    dense("qwen3-0.6b",            1024, 28, 16,  8, 128,  3072, 151936, true),
    dense("qwen3-1.7b",            2048, 28, 16,  8, 128,  6144, 151936, true),
    dense("qwen3-4b",              2560, 36, 32,  8, 128,  9728, 151936, true),
    dense("qwen3-8b",              4096, 36, 32,  8, 128, 12288, 151936, false),
    dense("qwen3-14b",             5120, 40, 40,  8, 128, 17408, 151936, false),
    dense("qwen3-32b",             5120, 64, 64,  8, 128, 25600, 151936, false),
    experts(dense("qwen3-30b-a3b", 2048, 48, 32,  4, 128,   768, 151936, false), 128, 8),
    experts(dense("mixtral-8x7b",  4096, 32, 32,  8, 128, 14336,  32000, false), 8, 2),
    experts(dense("mixtral-8x22b", 6144, 56, 48,  8, 128, 16384,  32000, false), 8, 2),
];

#[allow(clippy::too_many_arguments)] // The table above is this function's only reader, and shows every column.
const fn dense(
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tied: bool,
) -> ModelShape {
    let name = Cow::Borrowed(name);
    ModelShape { name, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, experts: 1, experts_per_token: 1, tied }
}

const fn experts(mut shape: ModelShape, experts: usize, experts_per_token: usize) -> ModelShape {
    shape.experts = experts;
    shape.experts_per_token = experts_per_token;
    shape
}

impl ModelShape {
    /// A known model by its name; case does not matter.
    pub fn by_name(name: &str) -> Result<ModelShape> {
        MODELS.iter().find(|shape| shape.name.eq_ignore_ascii_case(name)).cloned().ok_or_else(|| {
            let names: Vec<_> = MODELS.iter().map(|shape| &*shape.name).collect();
            let name = crate::file::clip(name);
            Error::invalid(format!(
                "model `{name}` is unknown; accepted: {}, or the path of a config.json or its folder",
                names.join(", ")
            ))
        })
    }

    /// The sizes that a `config.json`, or the one in a folder, describes.
    pub fn from_config(path: impl AsRef<Path>) -> Result<ModelShape> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let text = crate::file::safetensors::read_text(&file)?;
        ModelShape::parse_config(&text, &file.display().to_string())
    }

    /// The sizes in the text of a `config.json`; errors and the shape call it `name`.
    pub fn parse_config(text: &str, name: &str) -> Result<ModelShape> {
        config::parse(text, name)
    }

    /// A known name, or else a path: what a command line takes.
    pub fn resolve(name_or_path: &str) -> Result<ModelShape> {
        ModelShape::by_name(name_or_path).or_else(|unknown| {
            if Path::new(name_or_path).exists() { ModelShape::from_config(name_or_path) } else { Err(unknown) }
        })
    }

    /// Whether the feed-forward layers are experts.
    pub fn is_mixture(&self) -> bool {
        self.experts > 1
    }

    /// Every linear layer that is worth quantizing, the head last. Routers are left out: they stay in full precision.
    /// A tied head is listed too, since it is computed all the same.
    pub fn linears(&self) -> Vec<Linear> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let ffn = if self.is_mixture() { Class::Expert } else { Class::Mlp };
        let (layers, experts) = (self.layers, self.layers * self.experts);
        let linear = |name, n, k, count, class| Linear { name, n, k, count, class };
        vec![
            linear("q_proj", queries, self.hidden, layers, Class::Attention),
            linear("k_proj", keys, self.hidden, layers, Class::Attention),
            linear("v_proj", keys, self.hidden, layers, Class::Attention),
            linear("o_proj", self.hidden, queries, layers, Class::Attention),
            linear("gate_proj", self.ffn, self.hidden, experts, ffn),
            linear("up_proj", self.ffn, self.hidden, experts, ffn),
            linear("down_proj", self.hidden, self.ffn, experts, ffn),
            linear("lm_head", self.vocab, self.hidden, 1, Class::LmHead),
        ]
    }

    /// The linear layers merged by size, in the order of their first layer.
    pub fn distinct(&self) -> Vec<Distinct> {
        let mut merged: Vec<Distinct> = Vec::new();
        for Linear { name, n, k, count, .. } in self.linears() {
            match merged.iter_mut().find(|shape| (shape.n, shape.k) == (n, k)) {
                Some(shape) => {
                    shape.count += count;
                    shape.names.push(name);
                }
                None => merged.push(Distinct { n, k, count, names: vec![name] }),
            }
        }
        merged
    }

    /// Weights of all linear layers, routers and embeddings; norms and biases, below a thousandth, are left out.
    pub fn parameters(&self) -> u64 {
        let linears: u64 = self.linears().iter().map(|linear| (linear.n * linear.k * linear.count) as u64).sum();
        let routers = if self.is_mixture() { (self.layers * self.experts * self.hidden) as u64 } else { 0 };
        let embeddings = if self.tied { 0 } else { (self.vocab * self.hidden) as u64 };
        linears + routers + embeddings
    }
}

#[cfg(test)]
mod tests;
