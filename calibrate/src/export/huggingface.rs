//! Folders in the manner of Hugging Face: compressed-tensors, GPTQ, AWQ.
//!
//! Reads a model; makes `config.json` with its `quantization_config`, and safetensors. Always holds: layers of equal
//! format stand in one group; where there is more than one, groups name their layers.

use super::Target;
use super::reframe::{needs_gptq_v2, reframe};
use super::shards::Shards;
use crate::model::{Floats, Layer, Layers, Linear, Mlp, Weight};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{AWQ, CT_PACK, CT_PLAIN, Code, Format, GPTQ_V1, GPTQ_V2, Granularity, Quantized, Zero};
use bitsmith_compiler::op::{Activation, Per};
use bitsmith_compiler::{Error, Result};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::Path;

/// What the configuration says of a matrix.
struct Entry {
    name: String,
    /// Columns.
    k: usize,
    format: Format,
    activation: Option<Activation>,
}

/// What a first look at the whole model finds, before anything is written.
#[derive(Default)]
struct Survey {
    quantized: Vec<Entry>,
    floats: Vec<String>,
    faults: Vec<String>,
}

pub(super) fn write(model: &dyn Layers, target: Target, folder: &Path) -> Result<u64> {
    let mut v2 = false;
    if target == Target::Gptq {
        model.each_linear(&mut |linear| {
            v2 |= linear.weight.quantized().is_some_and(needs_gptq_v2);
            Ok(())
        })?;
    }
    let mut survey = survey(model, target, v2)?;
    let config = match target {
        Target::Gptq => survey.uniform().map(|f| gptq_config(&f, v2, &survey.floats)),
        Target::Awq => survey.uniform().map(|f| awq_config(&f, &survey.floats)),
        _ => Some(ct_config(&survey.quantized, &survey.floats)),
    };
    if !survey.faults.is_empty() {
        return Err(Error::Invalid(survey.faults));
    }
    let mut shards = Shards::new(folder);
    tensors(model, target, v2, &mut shards)?;
    let bytes = shards.finish()?;
    let mut json = model.config().to_json();
    if let Some(object) = json.as_object_mut() {
        object.remove("compression_config");
        object.remove("quantization_config");
    }
    if !survey.quantized.is_empty() {
        json["quantization_config"] = config.unwrap_or(Value::Null);
    }
    let path = folder.join("config.json");
    std::fs::write(&path, format!("{json:#}\n")).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
    Ok(bytes)
}

fn survey(model: &dyn Layers, target: Target, v2: bool) -> Result<Survey> {
    let mut found = Survey::default();
    let mut see = |linear: &Linear| -> Result<()> {
        let Some(q) = linear.weight.quantized() else {
            found.floats.push(linear.name.clone());
            return Ok(());
        };
        let moved = if linear.gather.is_some() {
            Err(Error::invalid("split or padded columns have no place in this target; `packed` holds them"))
        } else {
            frame(q, linear, target, v2)
        };
        match moved {
            Ok(q) => found.quantized.push(Entry {
                name: linear.name.clone(),
                k: q.k,
                format: q.format,
                activation: linear.activation.filter(|a| !matches!(a, Activation::Float(_))),
            }),
            Err(Error::Invalid(more)) => found.faults.extend(more.into_iter().map(|f| format!("{}: {f}", linear.name))),
            Err(other) => return Err(other),
        }
        Ok(())
    };
    for index in 0..model.config().shape.layers {
        let layer = model.layer(index)?;
        layer.linears().into_iter().try_for_each(&mut see)?;
        if let Mlp::Experts { router, .. } = &layer.mlp {
            see(router)?;
        }
    }
    match model.head()? {
        Some(head) => see(&head)?,
        None => found.floats.push("lm_head".into()),
    }
    if let Some(q) = model.embedding()?.weight.quantized() {
        found.faults.push(format!("the embedding is {}, which has no place in this target", q.format));
    }
    if model.config().rope.factors.is_some() {
        found.faults.push(
            "rotary frequencies come as a tensor (`rope_freqs`), which config.json has no field for; `gguf` holds it"
                .into(),
        );
    }
    Ok(found)
}

fn frame(q: &Quantized, linear: &Linear, target: Target, v2: bool) -> Result<Quantized> {
    match target {
        Target::Gptq => reframe(q, if v2 { &GPTQ_V2 } else { &GPTQ_V1 }),
        Target::Awq => reframe(q, &AWQ),
        _ => {
            let own = q.format.container.name;
            if matches!(own, "ct-nvfp4-pack-quantized" | "ct-mxfp4-pack-quantized") {
                return Ok(q.clone());
            }
            let bytes = matches!(q.format.code, Code::Float(_))
                || matches!(q.format.code, Code::Int { bits: 8, .. })
                    && matches!(linear.activation, Some(Activation::Int8(_)));
            reframe(q, if bytes { &CT_PLAIN } else { &CT_PACK })
        }
    }
}

impl Survey {
    /// The one format of all matrices; others are faults. Rows that are no longer than a group are one group of it.
    fn uniform(&mut self) -> Option<Format> {
        let first = self.quantized.first()?.format;
        let size = |entry: &Entry| match entry.format.granularity {
            Granularity::Group(group) if group as usize <= entry.k => Some(group),
            _ => None,
        };
        let group = self.quantized.iter().filter_map(size).max();
        let grouped = |entry: &Entry| match (group, entry.format.granularity) {
            (Some(group), Granularity::Channel | Granularity::Group(_)) if entry.k <= group as usize => {
                Format { granularity: Granularity::Group(group), ..entry.format }
            }
            _ => entry.format,
        };
        let wanted = grouped(&self.quantized[0]);
        for other in self.quantized.iter().filter(|other| grouped(other) != wanted) {
            self.faults.push(format!(
                "{}: is {}, the first layer is {first}; this target holds one format",
                other.name, other.format
            ));
        }
        Some(wanted)
    }
}

fn group_size(format: &Format) -> i64 {
    match format.granularity {
        Granularity::Group(g) => g as i64,
        _ => -1,
    }
}

fn gptq_config(format: &Format, v2: bool, ignored: &[String]) -> Value {
    let dynamic: serde_json::Map<String, Value> =
        ignored.iter().map(|name| (format!("-:{}", regex::escape(name)), json!({}))).collect();
    json!({
        "quant_method": "gptq", "bits": format.code.bits(), "group_size": group_size(format),
        "sym": matches!(format.zero, Zero::Bias(_)), "desc_act": false, "static_groups": false, "true_sequential": true,
        "checkpoint_format": if v2 { "gptq_v2" } else { "gptq" }, "dynamic": dynamic,
        "lm_head": !ignored.iter().any(|name| name == "lm_head"),
    })
}

fn awq_config(format: &Format, ignored: &[String]) -> Value {
    json!({
        "quant_method": "awq", "bits": 4, "group_size": group_size(format), "zero_point": true, "version": "gemm",
        "modules_to_not_convert": ignored,
    })
}

fn ct_config(entries: &[Entry], ignored: &[String]) -> Value {
    let mut groups: Vec<(Format, Option<Activation>, Vec<&str>)> = Vec::new();
    for one in entries {
        match groups.iter_mut().find(|(f, a, _)| *f == one.format && *a == one.activation) {
            Some((.., names)) => names.push(&one.name),
            None => groups.push((one.format, one.activation, vec![&one.name])),
        }
    }
    let single = groups.len() == 1;
    let mut entries = serde_json::Map::new();
    for (i, (format, activation, names)) in groups.iter().enumerate() {
        let targets: Vec<&str> = if single { vec!["Linear"] } else { names.clone() };
        entries.insert(
            format!("group_{i}"),
            json!({
                "targets": targets, "weights": ct_weights(format), "input_activations": activation.map(ct_activation),
                "output_activations": null, "format": ct_format(format),
            }),
        );
    }
    let overall = match &groups[..] {
        [(format, ..)] => ct_format(format),
        _ => "mixed-precision",
    };
    json!({
        "quant_method": "compressed-tensors", "format": overall, "quantization_status": "compressed",
        "config_groups": entries, "ignore": ignored, "kv_cache_scheme": null, "global_compression_ratio": null,
    })
}

fn ct_format(format: &Format) -> &'static str {
    match (format.container.name, format.code) {
        ("ct-pack-quantized", _) => "pack-quantized",
        ("ct-nvfp4-pack-quantized", _) => "nvfp4-pack-quantized",
        ("ct-mxfp4-pack-quantized", _) => "mxfp4-pack-quantized",
        (_, Code::Float(_)) => "float-quantized",
        _ => "int-quantized",
    }
}

fn ct_weights(format: &Format) -> Value {
    let (strategy, group, block) = match format.granularity {
        Granularity::Tensor => ("tensor", Value::Null, Value::Null),
        Granularity::Channel => ("channel", Value::Null, Value::Null),
        Granularity::Group(g) if format.scale.outer.is_some() => ("tensor_group", json!(g), Value::Null),
        Granularity::Group(g) => ("group", json!(g), Value::Null),
        Granularity::Block { n, k } => ("block", Value::Null, json!([n, k])),
    };
    json!({
        "num_bits": format.code.bits(), "type": if matches!(format.code, Code::Float(_)) { "float" } else { "int" },
        "symmetric": !matches!(format.zero, Zero::Int(_)), "strategy": strategy, "group_size": group,
        "block_structure": block, "dynamic": false, "actorder": null,
    })
}

fn ct_activation(activation: Activation) -> Value {
    let (kind, per) = match activation {
        Activation::Float(_) => return Value::Null,
        Activation::Int8(per) => ("int", per),
        Activation::Fp8(_, per) => ("float", per),
    };
    let (strategy, group) = match per {
        Per::Tensor => ("tensor", Value::Null),
        Per::Token => ("token", Value::Null),
        Per::Group(g) => ("group", json!(g)),
    };
    json!({
        "num_bits": 8, "type": kind, "symmetric": true, "strategy": strategy, "group_size": group,
        "dynamic": per != Per::Tensor,
    })
}

/// Every tensor, in the order of the model.
fn tensors(model: &dyn Layers, target: Target, v2: bool, shards: &mut Shards) -> Result<()> {
    let linear = |linear: &Linear, shards: &mut Shards| -> Result<()> {
        match &linear.weight {
            Weight::Quantized(q) => {
                let q = frame(q, linear, target, v2)?;
                for part in (q.format.container.pack)(&q)? {
                    shards.part(&linear.name, part)?;
                }
            }
            Weight::Floats(floats) => {
                push(shards, format!("{}.weight", linear.name), vec![linear.n, linear.k], floats)?;
            }
        }
        if let Some(bias) = &linear.bias {
            push(shards, format!("{}.bias", linear.name), vec![linear.n], bias)?;
        }
        if let Some(scale) = linear.input_scale {
            push(shards, format!("{}.input_scale", linear.name), vec![1], &Floats::f32(vec![scale]))?;
        }
        Ok(())
    };
    linear(&*model.embedding()?, shards)?;
    for i in 0..model.config().shape.layers {
        let layer = model.layer(i)?;
        let prefix = format!("model.layers.{i}");
        norms(&prefix, &layer, shards)?;
        if let Mlp::Experts { router, .. } = &layer.mlp {
            linear(router, shards)?;
        }
        layer.linears().into_iter().try_for_each(|l| linear(l, shards))?;
        if let Some((k, v)) = layer.kv_scales {
            push(shards, format!("{prefix}.self_attn.k_scale"), vec![1], &Floats::f32(vec![k]))?;
            push(shards, format!("{prefix}.self_attn.v_scale"), vec![1], &Floats::f32(vec![v]))?;
        }
    }
    let norm = model.norm()?;
    push(shards, "model.norm.weight".into(), vec![norm.values.len()], &norm)?;
    model.head()?.map_or(Ok(()), |head| linear(&head, shards))
}

/// The norms of a layer under its prefix.
pub(super) fn norms(prefix: &str, layer: &Layer, shards: &mut Shards) -> Result<()> {
    let a = &layer.attention;
    for (name, floats) in [
        ("input_layernorm", Some(&layer.input_norm)),
        ("post_attention_layernorm", Some(&layer.post_norm)),
        ("self_attn.q_norm", a.q_norm.as_ref()),
        ("self_attn.k_norm", a.k_norm.as_ref()),
    ] {
        if let Some(floats) = floats {
            push(shards, format!("{prefix}.{name}.weight"), vec![floats.values.len()], floats)?;
        }
    }
    Ok(())
}

/// A tensor of floats in its own type.
pub(super) fn push(shards: &mut Shards, name: String, shape: Vec<usize>, floats: &Floats) -> Result<()> {
    let dtype = match floats.dtype {
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    shards.push(name, dtype, shape, floats.bytes())
}
