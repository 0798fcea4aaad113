//! GGUF, for llama.cpp.
//!
//! Reads a model whose matrices are floats, or have a format that GGUF holds; makes one file. Always holds: rows of queries
//! and keys of the `llama` architecture are written in the interleaved order, experts as one tensor per part.

use super::reframe::reframe_as;
use crate::file::{GgufType, GgufWriter, Value};
use crate::import::gguf_name;
use crate::model::{Config, Family, Floats, Layers, Linear, Mlp, Rope, Scaling, Weight, permute_rows};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor on its way: type, rows and columns, bytes.
type Encoded = (GgufType, [usize; 2], Vec<u8>);

pub(super) fn write(model: &dyn Layers, out: &Path, side: Option<&Path>) -> Result<()> {
    let mut writer = GgufWriter::spooled()?;
    metadata(model, &mut writer)?;
    if let Some(side) = side.map(|side| side.join("tokenizer.json")).filter(|side| side.is_file()) {
        tokenizer(&side, &mut writer)?;
    }
    let mut faults = Vec::new();
    let config = model.config();
    matrices(config, &[&*model.embedding()?], &mut writer, &mut faults)?;
    for index in 0..config.shape.layers {
        let layer = model.layer(index)?;
        let a = &layer.attention;
        for (name, norm) in [
            ("attn_norm", Some(&layer.input_norm)),
            ("ffn_norm", Some(&layer.post_norm)),
            ("attn_q_norm", a.q_norm.as_ref()),
            ("attn_k_norm", a.k_norm.as_ref()),
        ] {
            if let Some(norm) = norm {
                floats(&mut writer, format!("blk.{index}.{name}.weight"), norm)?;
            }
        }
        let mut linears = layer.linears();
        if let Mlp::Experts { router, .. } = &layer.mlp {
            linears.push(router);
        }
        matrices(config, &linears, &mut writer, &mut faults)?;
    }
    floats(&mut writer, "output_norm.weight".into(), &*model.norm()?)?;
    if let Some(head) = model.head()? {
        matrices(config, &[&*head], &mut writer, &mut faults)?;
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    writer.write(out)
}

/// llama.cpp wants one-dimensional tensors in f32.
fn floats(writer: &mut GgufWriter<'_>, name: String, floats: &Floats) -> Result<()> {
    let bytes = Floats { dtype: DType::F32, ..floats.clone() }.bytes();
    writer.tensor(&name, GgufType::F32, &[floats.values.len()], bytes).map(|_| ())
}

/// Matrices of one layer: experts become one tensor per part.
fn matrices(config: &Config, linears: &[&Linear], writer: &mut GgufWriter<'_>, faults: &mut Vec<String>) -> Result<()> {
    let mut experts: BTreeMap<String, Vec<Encoded>> = BTreeMap::new();
    for linear in linears {
        let Some((name, expert)) = gguf_name(&linear.name) else {
            faults.push(format!("{}: GGUF has no place for it", linear.name));
            continue;
        };
        match encode(config, linear) {
            Err(Error::Invalid(more)) => faults.extend(more.into_iter().map(|f| format!("{}: {f}", linear.name))),
            Err(other) => return Err(other),
            Ok(encoded) if expert.is_some() => experts.entry(name).or_default().push(encoded),
            Ok((kind, shape, bytes)) => {
                writer.tensor(&name, kind, &shape, bytes)?;
                if let Some(bias) = &linear.bias {
                    let order = order(config, &linear.name);
                    let bias = Floats { values: ordered(&bias.values, order.as_deref()), ..bias.clone() };
                    floats(writer, name.replace(".weight", ".bias"), &bias)?;
                }
            }
        }
    }
    for (name, list) in experts {
        let (kind, [n, k], _) = list[0];
        if list.iter().any(|(other, ..)| *other != kind) {
            faults.push(format!("{name}: experts differ in format; GGUF holds them as one tensor"));
            continue;
        }
        let count = list.len();
        let bytes: Vec<u8> = list.into_iter().flat_map(|(.., bytes)| bytes).collect();
        writer.tensor(&name, kind, &[count, n, k], bytes)?;
    }
    Ok(())
}

fn ordered(values: &[f32], order: Option<&[usize]>) -> Vec<f32> {
    match order {
        Some(order) => order.iter().map(|&i| values[i]).collect(),
        None => values.to_vec(),
    }
}

fn order(config: &Config, name: &str) -> Option<Vec<usize>> {
    let s = &config.shape;
    if !matches!(config.family, Family::Llama | Family::Mixtral) {
        return None;
    }
    if name.ends_with("q_proj") {
        Some(Rope::interleaved_order(s.heads, s.head_dim))
    } else if name.ends_with("k_proj") {
        Some(Rope::interleaved_order(s.kv_heads, s.head_dim))
    } else {
        None
    }
}

fn encode(config: &Config, linear: &Linear) -> Result<Encoded> {
    if linear.gather.is_some() {
        return Err(Error::invalid("split or padded columns have no place in GGUF; `packed` holds them"));
    }
    let order = order(config, &linear.name);
    let shape = [linear.n, linear.k];
    match &linear.weight {
        Weight::Floats(floats) => {
            let values = match &order {
                Some(order) => {
                    order.iter().flat_map(|&row| floats.values[row * linear.k..][..linear.k].iter().copied()).collect()
                }
                None => floats.values.clone(),
            };
            let kind = match floats.dtype {
                DType::F16 => GgufType::F16,
                DType::Bf16 => GgufType::BF16,
                _ => GgufType::F32,
            };
            Ok((kind, shape, Floats { values, dtype: floats.dtype }.bytes()))
        }
        Weight::Quantized(q) => {
            let own = GgufType::from_name(&q.format.to_string());
            let (kind, q) = match own {
                Some(kind) => (kind, q.clone()),
                None => [GgufType::Q4_0, GgufType::Q8_0]
                    .into_iter()
                    .find_map(|kind| {
                        let format: Format = kind.name().to_ascii_lowercase().parse().ok()?;
                        Some((kind, reframe_as(q, &format).ok()?))
                    })
                    .ok_or_else(|| {
                        Error::invalid(format!(
                            "{} is not a format of GGUF; accepted without rounding again: GGUF's own formats, int4-g32 and \
                             int8-g32 with f16 scales; a recipe with `weight = \"q4_k\"` quantizes for GGUF",
                            q.format
                        ))
                    })?,
            };
            let q = match &order {
                Some(order) => permute_rows(&q, order)?,
                None => q,
            };
            let parts = (q.format.container.pack)(&q)?;
            let bytes = parts.into_iter().next().map(|part| part.bytes).unwrap_or_default();
            Ok((kind, shape, bytes))
        }
    }
}

fn metadata(model: &dyn Layers, writer: &mut GgufWriter<'_>) -> Result<()> {
    let config = model.config();
    let s = &config.shape;
    let architecture = match config.family {
        Family::Llama | Family::Mixtral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe => "qwen3moe",
    };
    if let Scaling::Llama3 { .. } = config.rope.scaling {
        let divisors: Vec<f32> = Rope::new(config.rope.theta)
            .frequencies(s.head_dim)
            .iter()
            .zip(config.rope.frequencies(s.head_dim))
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect();
        writer.tensor("rope_freqs.weight", GgufType::F32, &[divisors.len()], Floats::f32(divisors).bytes())?;
    } else if let Some(factors) = &config.rope.factors {
        writer.tensor("rope_freqs.weight", GgufType::F32, &[factors.len()], Floats::f32(factors.clone()).bytes())?;
    }
    let number = |x: usize| Value::U32(x as u32);
    writer.key("general.architecture", Value::String(architecture.into()))?;
    let context = config.json.as_ref().and_then(|j| j.get("max_position_embeddings")).and_then(|x| x.as_u64());
    let mut keys = vec![
        ("context_length", Value::U32(context.unwrap_or(2048) as u32)),
        ("embedding_length", number(s.hidden)),
        ("block_count", number(s.layers)),
        ("feed_forward_length", number(s.ffn)),
        ("attention.head_count", number(s.heads)),
        ("attention.head_count_kv", number(s.kv_heads)),
        ("attention.key_length", number(s.head_dim)),
        ("attention.value_length", number(s.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.eps as f32)),
        ("rope.freq_base", Value::F32(config.rope.theta as f32)),
        ("rope.dimension_count", number(s.head_dim)),
        ("vocab_size", number(s.vocab)),
    ];
    match config.rope.scaling {
        // Llama 3's is the tensor of divisors above.
        Scaling::None | Scaling::Llama3 { .. } => {}
        Scaling::Linear(factor) => {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
        }
        Scaling::Yarn { factor, original, fast, slow, whole: true, attention } => {
            let times = attention / Scaling::yarn_attention(factor);
            keys.push(("rope.scaling.type", Value::String("yarn".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
            keys.push(("rope.scaling.original_context_length", Value::U32(original as u32)));
            keys.push(("rope.scaling.attn_factor", Value::F32(times as f32)));
            keys.push(("rope.scaling.yarn_beta_fast", Value::F32(fast as f32)));
            keys.push(("rope.scaling.yarn_beta_slow", Value::F32(slow as f32)));
        }
        Scaling::Dynamic { .. } | Scaling::Yarn { .. } => {
            return Err(Error::invalid(
                "rotary scaling: GGUF has no place for `dynamic`, nor for `yarn` with `truncate` off",
            ));
        }
    }
    if s.is_mixture() {
        keys.push(("expert_count", number(s.experts)));
        keys.push(("expert_used_count", number(s.experts_per_token)));
        keys.push(("expert_feed_forward_length", number(s.ffn)));
    }
    for (key, value) in keys {
        writer.key(&format!("{architecture}.{key}"), value)?;
    }
    if let Some(bos) = config.bos {
        writer.key("tokenizer.ggml.bos_token_id", Value::U32(bos))?;
    }
    Ok(())
}

/// The tokens and merges of a byte-pair tokenizer; other kinds are left out.
fn tokenizer(path: &Path, writer: &mut GgufWriter<'_>) -> Result<()> {
    use crate::file::Array;
    let text = crate::file::safetensors::read_text(path)?;
    let json = crate::file::safetensors::parse_json(&text, &path.display().to_string())?;
    let Some(vocab) = json.pointer("/model/vocab").and_then(|v| v.as_object()) else { return Ok(()) };
    let mut tokens: Vec<(u64, &String)> = vocab.iter().filter_map(|(t, id)| Some((id.as_u64()?, t))).collect();
    tokens.sort();
    let tokens: Vec<String> = tokens.into_iter().map(|(_, token)| token.clone()).collect();
    let special = |token: &String| {
        json.get("added_tokens").and_then(|a| a.as_array()).into_iter().flatten().any(|a| {
            a.get("content").and_then(|c| c.as_str()) == Some(token)
                && a.get("special").and_then(|s| s.as_bool()) == Some(true)
        })
    };
    // 1 is a normal token, 3 a control token.
    let types: Vec<i32> = tokens.iter().map(|token| if special(token) { 3 } else { 1 }).collect();
    let merges: Vec<String> = json
        .pointer("/model/merges")
        .and_then(|m| m.as_array())
        .into_iter()
        .flatten()
        .filter_map(|m| match m {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        })
        .collect();
    writer.key("tokenizer.ggml.model", Value::String("gpt2".into()))?;
    writer.key("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))?;
    writer.key("tokenizer.ggml.token_type", Value::Array(Array::I32(types)))?;
    writer.key("tokenizer.ggml.merges", Value::Array(Array::String(merges)))?;
    Ok(())
}
