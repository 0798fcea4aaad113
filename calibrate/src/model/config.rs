//! What the engine must know of a model beside its sizes: family, norms, rotary embedding, routing.
//!
//! Reads `config.json` or the metadata of a GGUF file; makes a [`Config`]. Always holds: a field that would change the
//! numbers and is not understood is refused by name, never ignored.

use super::{Rope, Scaling, scaling};
use crate::file::{Gguf, Value as GgufValue, clip};
use crate::shapes::ModelShape;
use bitsmith_compiler::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;

/// Which kind of decoder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama, Mistral.
    Llama,
    /// Qwen2: biases on query, key and value.
    Qwen2,
    /// Qwen3: norms over query and key heads.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// Mixtral: Llama with experts.
    Mixtral,
}

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes.
    pub shape: ModelShape,
    /// The kind.
    pub family: Family,
    /// Added to the mean of squares in norms.
    pub eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Attention looks back this far, where it is limited.
    pub window: Option<usize>,
    /// Whether the weights of the chosen experts are brought to sum 1.
    pub normalize_experts: bool,
    /// The token that opens a text.
    pub bos: Option<u32>,
    /// `config.json` as it was, where the model came with one.
    pub json: Option<Value>,
}

impl Family {
    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3_moe",
            Family::Mixtral => "mixtral",
        }
    }

    /// Whether layers have experts.
    pub fn is_mixture(self) -> bool {
        matches!(self, Family::Mixtral | Family::Qwen3Moe)
    }

    /// Where the feed-forward part of a layer lies in a checkpoint, and the names of its gate, up and down.
    pub fn expert_names(self) -> (&'static str, [&'static str; 3]) {
        match self {
            Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        }
    }

    /// Whether query and key heads have norms.
    pub fn head_norms(self) -> bool {
        matches!(self, Family::Qwen3 | Family::Qwen3Moe)
    }
}

impl Config {
    /// Reads `config.json`; errors call it `name`.
    pub fn from_json(json: &Value, name: &str) -> Result<Config> {
        let shape = ModelShape::parse_config(&json.to_string(), name)?;
        let fault = |field: &str, found: String| Error::invalid(format!("{name}: `{field}` {found}"));
        let number = |value: &Value, field: &str| {
            value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| fault(field, format!("is {}; accepted: a number above 0", clip(&value.to_string()))))
        };
        let optional = |field: &str| json.get(field).filter(|value| !value.is_null());
        let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = match kind {
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "qwen3_moe" => Family::Qwen3Moe,
            "mixtral" => Family::Mixtral,
            _ => Family::Llama,
        };
        if let Some(act) = optional("hidden_act").and_then(Value::as_str)
            && !matches!(act, "silu" | "swish")
        {
            return Err(Error::Unsupported(format!("{name}: `hidden_act` is `{}`; accepted: silu", clip(act))));
        }
        let eps = optional("rms_norm_eps").map_or(Ok(1e-6), |value| number(value, "rms_norm_eps"))?;
        let parameters = optional("rope_parameters");
        let theta = optional("rope_theta").or_else(|| parameters.and_then(|p| p.get("rope_theta")));
        let theta = theta.map_or(Ok(10000.0), |value| number(value, "rope_theta"))?;
        let scaling = match optional("rope_scaling").or(parameters) {
            None => Scaling::None,
            Some(value) => scaling::from_json(value, optional("max_position_embeddings"), name)?,
        };
        let uses_window = json.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(kind == "mistral");
        let window = optional("sliding_window").filter(|_| uses_window).and_then(Value::as_u64).map(|w| w as usize);
        let bos = match optional("bos_token_id") {
            Some(Value::Array(list)) => list.first().and_then(Value::as_u64),
            Some(value) => value.as_u64(),
            None => None,
        };
        // Mixtral always normalizes; Qwen3 says whether it does.
        let normalize_experts =
            family == Family::Mixtral || json.get("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false);
        Ok(Config {
            shape,
            family,
            eps,
            rope: Rope { scaling, ..Rope::new(theta) },
            window,
            normalize_experts,
            bos: bos.and_then(|id| u32::try_from(id).ok()),
            json: Some(json.clone()),
        })
    }

    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(file: &Gguf) -> Result<Config> {
        let name = file.name();
        let architecture = file.get("general.architecture").and_then(GgufValue::as_str).unwrap_or_default();
        let experts = file.get(&format!("{architecture}.expert_count")).and_then(GgufValue::as_u64).unwrap_or(0);
        let family = match (architecture, experts > 0) {
            ("llama", false) => Family::Llama,
            ("llama", true) => Family::Mixtral,
            ("qwen2", false) => Family::Qwen2,
            ("qwen3", false) => Family::Qwen3,
            ("qwen3moe", true) => Family::Qwen3Moe,
            _ => {
                return Err(Error::Unsupported(format!(
                    "{name}: `general.architecture` is `{}`; accepted: llama, qwen2, qwen3, qwen3moe",
                    clip(architecture)
                )));
            }
        };
        let mut faults = Vec::new();
        let key = |key: &str| file.get(&format!("{architecture}.{key}"));
        let mut size = |what: &str, default: Option<usize>| -> usize {
            let found = key(what).and_then(GgufValue::as_u64).map(|x| x as usize).or(default);
            match found {
                Some(x) if (1..=1 << 24).contains(&x) => x,
                found => {
                    faults.push(format!("{name}: key `{architecture}.{what}` is {found:?}; accepted: 1 to 2^24"));
                    1
                }
            }
        };
        let hidden = size("embedding_length", None);
        let heads = size("attention.head_count", None);
        let kv_heads = size("attention.head_count_kv", Some(heads));
        let layers = size("block_count", None);
        let mixture = experts > 0;
        let ffn = if mixture && key("expert_feed_forward_length").is_some() {
            size("expert_feed_forward_length", None)
        } else {
            size("feed_forward_length", None)
        };
        let head_dim = size("attention.key_length", Some((hidden / heads).max(1)));
        let used = if mixture { size("expert_used_count", None) } else { 1 };
        let embedding = file.tensor("token_embd.weight").map(|tensor| tensor.shape.clone()).unwrap_or_default();
        let vocab = match embedding[..] {
            [vocab, width] if width == hidden => vocab,
            _ => {
                faults.push(format!("{name}: `token_embd.weight` is {embedding:?}; accepted: [vocabulary, {hidden}]"));
                1
            }
        };
        if !heads.is_multiple_of(kv_heads) {
            faults.push(format!("{name}: {heads} query heads over {kv_heads} key heads; the second must divide"));
        }
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        let theta = key("rope.freq_base").and_then(GgufValue::as_f64).unwrap_or(10000.0);
        let scaling = scaling::from_gguf(file, architecture)?;
        let bos = file.get("tokenizer.ggml.bos_token_id").and_then(GgufValue::as_u64);
        let shape = ModelShape {
            name: Cow::Owned(name.to_owned()),
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            experts: if mixture { experts as usize } else { 1 },
            experts_per_token: used,
            tied: file.tensor("output.weight").is_none(),
        };
        Ok(Config {
            shape,
            family,
            eps: key("attention.layer_norm_rms_epsilon").and_then(GgufValue::as_f64).unwrap_or(1e-6),
            rope: Rope { scaling, ..Rope::new(theta) },
            window: None,
            normalize_experts: true,
            bos: bos.and_then(|id| u32::try_from(id).ok()),
            json: None,
        })
    }

    /// A `config.json` for the model: its own, or one written from what is known.
    pub fn to_json(&self) -> Value {
        if let Some(json) = &self.json {
            return json.clone();
        }
        let s = &self.shape;
        let scaling = match self.rope.scaling {
            Scaling::None => Value::Null,
            Scaling::Linear(factor) => serde_json::json!({ "rope_type": "linear", "factor": factor }),
            Scaling::Llama3 { factor, low, high, original } => serde_json::json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            }),
            Scaling::Dynamic { factor, .. } => serde_json::json!({ "rope_type": "dynamic", "factor": factor }),
            Scaling::Yarn { factor, original, fast, slow, whole, attention } => serde_json::json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original as u64,
                "beta_fast": fast, "beta_slow": slow, "truncate": whole, "attention_factor": attention,
            }),
        };
        let mut json = serde_json::json!({
            "model_type": self.family.model_type(),
            "hidden_size": s.hidden,
            "intermediate_size": s.ffn,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "vocab_size": s.vocab,
            "tie_word_embeddings": s.tied,
            "hidden_act": "silu",
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
            "bos_token_id": self.bos,
        });
        if let Scaling::Dynamic { trained, .. } = self.rope.scaling {
            json["max_position_embeddings"] = (trained as u64).into();
        }
        if s.is_mixture() {
            let count = if self.family == Family::Mixtral { "num_local_experts" } else { "num_experts" };
            json[count] = s.experts.into();
            json["num_experts_per_tok"] = s.experts_per_token.into();
            json["norm_topk_prob"] = self.normalize_experts.into();
            if self.family == Family::Qwen3Moe {
                json["moe_intermediate_size"] = s.ffn.into();
            }
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 32, "bos_token_id": 1
        })
    }

    #[test]
    fn scaling_is_read_or_refused_by_name() {
        let mut json = base();
        json["rope_scaling"] = serde_json::json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
        let config = Config::from_json(&json, "c").unwrap();
        assert_eq!(config.rope.scaling, Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
        json["rope_scaling"] = serde_json::json!({ "rope_type": "longrope", "factor": 8.0 });
        assert!(Config::from_json(&json, "c").unwrap_err().to_string().contains("longrope"));
        json["rope_scaling"] = serde_json::json!({ "rope_type": "dynamic", "factor": 2.0 });
        assert!(Config::from_json(&json, "c").unwrap_err().to_string().contains("max_position_embeddings"));
        json["max_position_embeddings"] = 2048.into();
        let dynamic = Scaling::Dynamic { factor: 2.0, trained: 2048.0 };
        assert_eq!(Config::from_json(&json, "c").unwrap().rope.scaling, dynamic);
        json["rope_scaling"] = serde_json::json!({ "rope_type": "yarn", "factor": 4.0, "beta_slow": null });
        let yarn =
            |attention| Scaling::Yarn { factor: 4.0, original: 2048.0, fast: 32.0, slow: 1.0, whole: true, attention };
        assert_eq!(Config::from_json(&json, "c").unwrap().rope.scaling, yarn(0.1 * 4.0f64.ln() + 1.0));
        json["rope_scaling"]["attention_factor"] = 1.5.into();
        assert_eq!(Config::from_json(&json, "c").unwrap().rope.scaling, yarn(1.5));
        json["rope_scaling"] = serde_json::json!({ "type": "linear" });
        assert!(Config::from_json(&json, "c").unwrap_err().to_string().contains("factor"));
    }

    #[test]
    fn activations_that_are_not_silu_are_refused() {
        let mut json = base();
        json["hidden_act"] = "gelu".into();
        assert!(Config::from_json(&json, "c").unwrap_err().to_string().contains("gelu"));
    }

    #[test]
    fn what_is_written_reads_back() {
        for scaling in [
            serde_json::json!(null),
            serde_json::json!({ "rope_type": "dynamic", "factor": 2.0 }),
            serde_json::json!({ "rope_type": "yarn", "factor": 4.0, "truncate": false }),
        ] {
            let mut json = base();
            (json["rope_scaling"], json["max_position_embeddings"]) = (scaling, 512.into());
            let config = Config { json: None, ..Config::from_json(&json, "c").unwrap() };
            let again = Config { json: None, ..Config::from_json(&config.to_json(), "c").unwrap() };
            assert_eq!(config, again);
        }
    }
}
