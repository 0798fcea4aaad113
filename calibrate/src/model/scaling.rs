//! How rotary frequencies are stretched, as files say it.
//!
//! Reads `rope_scaling` of a `config.json`, or the `rope.scaling` keys of GGUF; makes a [`Scaling`]. Always holds: a kind
//! that is not known, or a number that is missing, is refused by name.

use super::Scaling;
use crate::file::{Gguf, Value as GgufValue, clip};
use bitsmith_compiler::{Error, Result};
use serde_json::Value;

/// Reads `rope_scaling` of `config.json`; `trained` is the context that the model itself states.
pub(super) fn from_json(value: &Value, trained: Option<&Value>, name: &str) -> Result<Scaling> {
    let kind = value.get("rope_type").or(value.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |field: &str| {
        value.get(field).and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| {
            let found = value.get(field).map_or("missing".into(), ToString::to_string);
            Error::invalid(format!("{name}: `rope_scaling.{field}` is {}; accepted: a number above 0", clip(&found)))
        })
    };
    let optional = |field: &str| value.get(field).filter(|v| !v.is_null()).map(|_| number(field)).transpose();
    let context = || {
        trained.and_then(Value::as_f64).filter(|x| x.is_finite() && *x >= 1.0).ok_or_else(|| {
            Error::invalid(format!("{name}: `max_position_embeddings` is missing, which rotary scaling `{kind}` takes"))
        })
    };
    match kind {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear(number("factor")?)),
        "llama3" => Ok(Scaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        }),
        "dynamic" => Ok(Scaling::Dynamic { factor: number("factor")?, trained: context()? }),
        "yarn" => {
            let factor = number("factor")?;
            let attention = match (optional("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
                (Some(given), ..) => given,
                (None, Some(one), Some(all)) => {
                    // As Scaling::yarn_attention, with the logarithm weighed.
                    let weighed = |by: f64| 1.0 + by * (Scaling::yarn_attention(factor) - 1.0);
                    weighed(one) / weighed(all)
                }
                _ => Scaling::yarn_attention(factor),
            };
            Ok(Scaling::Yarn {
                factor,
                original: optional("original_max_position_embeddings")?.map_or_else(context, Ok)?,
                fast: optional("beta_fast")?.unwrap_or(32.0),
                slow: optional("beta_slow")?.unwrap_or(1.0),
                whole: value.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                attention,
            })
        }
        other => Err(Error::Unsupported(format!(
            "{name}: rotary scaling `{}`; accepted: default, linear, dynamic, llama3, yarn",
            clip(other)
        ))),
    }
}

/// Reads the keys of a GGUF file. Divisors that come as a tensor (`rope_freqs`) are no scaling.
pub(super) fn from_gguf(file: &Gguf, architecture: &str) -> Result<Scaling> {
    let name = file.name();
    let float = |key: &str| {
        let value = file.get(&format!("{architecture}.rope.scaling.{key}"))?;
        value.as_f64().or(value.as_u64().map(|x| x as f64)).filter(|x| x.is_finite() && *x > 0.0)
    };
    let number = |key: &str| {
        float(key).ok_or_else(|| {
            let key = format!("{architecture}.rope.scaling.{key}");
            Error::invalid(format!("{name}: key `{key}` is missing or no number above 0"))
        })
    };
    match file.get(&format!("{architecture}.rope.scaling.type")).and_then(GgufValue::as_str) {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear(float("factor").unwrap_or(1.0))),
        Some("yarn") => {
            let factor = number("factor")?;
            Ok(Scaling::Yarn {
                factor,
                original: number("original_context_length")?,
                fast: float("yarn_beta_fast").unwrap_or(32.0),
                slow: float("yarn_beta_slow").unwrap_or(1.0),
                whole: true,
                // llama.cpp multiplies the file's factor with YaRN's own.
                attention: float("attn_factor").unwrap_or(1.0) * Scaling::yarn_attention(factor),
            })
        }
        Some(other) => Err(Error::Unsupported(format!(
            "{name}: rotary scaling `{}`; accepted: none, linear, yarn, rope_freqs",
            clip(other)
        ))),
    }
}
