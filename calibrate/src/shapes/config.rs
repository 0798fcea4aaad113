//! `config.json` of the Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Mixtral families.
//!
//! Reads the text, makes a [`ModelShape`]. Always holds: all faults are listed at once, each with its field; a missing
//! field is only filled in where the family's own definition makes the value plain.

use super::ModelShape;
use bitsmith_compiler::{Error, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Per family: `model_type`, the field of the feed-forward width, the field of the number of experts.
const FAMILIES: &[(&str, &str, Option<&str>)] = &[
    ("llama", "intermediate_size", None),
    ("mistral", "intermediate_size", None),
    ("qwen2", "intermediate_size", None),
    ("qwen3", "intermediate_size", None),
    ("qwen3_moe", "moe_intermediate_size", Some("num_experts")),
    ("mixtral", "intermediate_size", Some("num_local_experts")),
];

// Upper limits, an order of magnitude beyond any model; together they keep n * k * count below 2^62.
const MAX_HIDDEN: usize = 1 << 18;
const MAX_FFN: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 12;
const MAX_EXPERTS: usize = 1 << 12;

pub(super) fn parse(text: &str, name: &str) -> Result<ModelShape> {
    let config = crate::file::safetensors::parse_json(text, name)?;
    let Value::Object(config) = config else {
        return Err(Error::invalid(format!("{name}: is not a JSON object")));
    };
    let (ffn_field, experts_field) = family(&config, name)?;
    let mut fields = Fields { config: &config, name, faults: Vec::new() };
    let hidden = fields.size("hidden_size", MAX_HIDDEN, None);
    let layers = fields.size("num_hidden_layers", MAX_LAYERS, None);
    let heads = fields.size("num_attention_heads", MAX_HEADS, None);
    // Only Llama defines a missing count of key heads as the count of query heads.
    let same = (config.get("model_type").and_then(Value::as_str) == Some("llama")).then_some(heads);
    let kv_heads = fields.size("num_key_value_heads", MAX_HEADS, same);
    let head_dim = fields.head_dim(hidden, heads);
    let ffn = fields.size(ffn_field, MAX_FFN, None);
    let vocab = fields.size("vocab_size", MAX_VOCAB, None);
    let (mut experts, mut experts_per_token) = (1, 1);
    if let Some(field) = experts_field {
        experts = fields.size(field, MAX_EXPERTS, None);
        experts_per_token = fields.size("num_experts_per_tok", MAX_EXPERTS, None);
        if experts_per_token > experts {
            fields.fault("num_experts_per_tok", &format!("{experts_per_token} is more than `{field}` {experts}"));
        }
        fields.only_experts();
    }
    if !heads.is_multiple_of(kv_heads) {
        fields.fault("num_key_value_heads", &format!("{kv_heads} does not divide `num_attention_heads` {heads}"));
    }
    let tied = fields.flag("tie_word_embeddings");
    if !fields.faults.is_empty() {
        return Err(Error::Invalid(fields.faults));
    }
    let name = Cow::Owned(name.to_owned());
    Ok(ModelShape { name, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, experts, experts_per_token, tied })
}

fn family(config: &Map<String, Value>, name: &str) -> Result<(&'static str, Option<&'static str>)> {
    let names: Vec<_> = FAMILIES.iter().map(|family| family.0).collect();
    let accepted = names.join(", ");
    let found = match config.get("model_type") {
        Some(Value::String(found)) => found,
        Some(other) => {
            let kind = kind(other);
            return Err(Error::invalid(format!("{name}: `model_type` is {kind}; accepted: {accepted}")));
        }
        None => return Err(Error::invalid(format!("{name}: `model_type` is missing; accepted: {accepted}"))),
    };
    match FAMILIES.iter().find(|family| family.0 == found) {
        Some((_, ffn, experts)) => Ok((ffn, *experts)),
        None => Err(Error::Unsupported(format!(
            "{name}: `model_type` is `{}`; accepted: {accepted}",
            crate::file::clip(found)
        ))),
    }
}

/// Reads fields and collects what is wrong with them.
struct Fields<'a> {
    config: &'a Map<String, Value>,
    name: &'a str,
    faults: Vec<String>,
}

impl Fields<'_> {
    fn fault(&mut self, field: &str, message: &str) {
        self.faults.push(format!("{}: `{field}` {message}", self.name));
    }

    /// A size from 1 to `limit`; 1 after a fault, so that reading goes on to the next one.
    fn size(&mut self, field: &str, limit: usize, default: Option<usize>) -> usize {
        let accepted = format!("accepted: an integer from 1 to {limit}");
        let message = match self.config.get(field) {
            None | Some(Value::Null) => match default {
                Some(value) => return value,
                None => format!("is missing; {accepted}"),
            },
            Some(Value::Number(number)) => match number.as_u64().and_then(|value| usize::try_from(value).ok()) {
                Some(value) if (1..=limit).contains(&value) => return value,
                _ => format!("is {number}; {accepted}"),
            },
            Some(other) => format!("is {}; {accepted}", kind(other)),
        };
        self.fault(field, &message);
        1
    }

    /// The width of a head: given, or hidden / heads where the family says so.
    fn head_dim(&mut self, hidden: usize, heads: usize) -> usize {
        let qwen3 = self.config.get("model_type").and_then(Value::as_str).is_some_and(|name| name.starts_with("qwen3"));
        let absent = matches!(self.config.get("head_dim"), None | Some(Value::Null));
        // Qwen3 widens its heads beyond hidden / heads, so there a missing field has no plain value.
        if absent && !qwen3 && self.faults.is_empty() && !hidden.is_multiple_of(heads) {
            let message = format!("is missing, and `hidden_size` {hidden} is not a multiple of {heads} heads");
            self.fault("head_dim", &message);
        }
        self.size("head_dim", MAX_HEADS, (!qwen3).then_some((hidden / heads).max(1)))
    }

    fn flag(&mut self, field: &str) -> bool {
        match self.config.get(field) {
            // All families here leave the head untied unless they say otherwise.
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                self.fault(field, &format!("is {}; accepted: true, false", kind(other)));
                false
            }
        }
    }

    /// A layer without experts among layers with them is a model that this description cannot hold.
    fn only_experts(&mut self) {
        if !matches!(self.config.get("decoder_sparse_step").map(Value::as_u64), None | Some(Some(1))) {
            self.fault("decoder_sparse_step", "must be 1 or absent: every layer must have experts");
        }
        let dense = self.config.get("mlp_only_layers");
        if !matches!(dense, None | Some(Value::Null)) && dense.and_then(Value::as_array).is_none_or(|l| !l.is_empty()) {
            self.fault("mlp_only_layers", "must be empty or absent: every layer must have experts");
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
