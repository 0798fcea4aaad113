//! One matrix out of GGUF.
//!
//! Reads a tensor by the name that Hugging Face gives it; makes a [`Linear`]. Always holds: query and key rows of the
//! `llama` architecture, which the file keeps in the interleaved order of rotary embedding, come back in halves, without
//! a code being changed.

use crate::file::{FileType, Gguf, GgufType, Tensor, clip};
use crate::model::{Floats, Linear, Weight, permute_rows};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{Format, Part, PartType};
use bitsmith_compiler::{Error, Result};

/// Names within a layer: Hugging Face's, GGUF's.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];
/// Experts lie in one tensor per part.
const EXPERTS: &[(&str, &str)] = &[
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
];

/// The file's name of a tensor, and which expert of it.
pub(crate) fn file_name(name: &str) -> Option<(String, Option<usize>)> {
    match name {
        "model.embed_tokens" => return Some(("token_embd.weight".into(), None)),
        "model.norm" => return Some(("output_norm.weight".into(), None)),
        "lm_head" => return Some(("output.weight".into(), None)),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if let Some((_, expert)) = part.split_once(".experts.") {
        let (index, which) = expert.split_once('.')?;
        let (_, own) = EXPERTS.iter().find(|(hf, _)| *hf == which)?;
        return Some((format!("blk.{layer}.{own}.weight"), index.parse().ok()));
    }
    let (_, own) = NAMES.iter().find(|(hf, _)| *hf == part)?;
    Some((format!("blk.{layer}.{own}.weight"), None))
}

/// A matrix; `order` puts its rows in another order.
pub(super) fn linear(file: &Gguf, name: &str, n: usize, k: usize, order: &Option<Vec<usize>>) -> Result<Linear> {
    let (own, expert) =
        file_name(name).ok_or_else(|| Error::invalid(format!("{}: no place for `{name}`", file.name())))?;
    let tensor = tensor(file, &own)?;
    let (shape, data) = match (tensor.shape, expert) {
        (&[experts, n, k], Some(expert)) if expert < experts => {
            let bytes = tensor.data.len() / experts;
            ([n, k], &tensor.data[expert * bytes..][..bytes])
        }
        (&[n, k], None) => ([n, k], tensor.data),
        (shape, _) => return Err(Error::invalid(format!("{}: tensor `{own}` has the shape {shape:?}", file.name()))),
    };
    if shape != [n, k] {
        return Err(Error::invalid(format!(
            "{}: tensor `{own}` is {shape:?}; the metadata means [{n}, {k}]",
            file.name()
        )));
    }
    let tensor = Tensor { data, shape: &shape, ..tensor };
    let mut linear = Linear::floats(name, n, k, Floats::f32(Vec::new()));
    linear.weight = match float_type(tensor.dtype) {
        Some(dtype) => Weight::Floats(Floats { values: tensor.to_f32()?, dtype }),
        None => Weight::Quantized(quantized(file, &tensor, n, k)?),
    };
    if let Some(order) = order {
        linear.weight = match linear.weight {
            Weight::Floats(floats) => {
                let values = order.iter().flat_map(|&row| floats.values[row * k..][..k].iter().copied()).collect();
                Weight::Floats(Floats { values, ..floats })
            }
            Weight::Quantized(q) => Weight::Quantized(permute_rows(&q, order)?),
        };
    }
    let bias = own.replace(".weight", ".bias");
    if file.tensor(&bias).is_some() {
        let mut floats = vector(file, &bias, n)?;
        if let Some(order) = order {
            floats.values = order.iter().map(|&row| floats.values[row]).collect();
        }
        linear.bias = Some(floats);
    }
    Ok(linear)
}

/// A vector by Hugging Face's name of it.
pub(super) fn floats(file: &Gguf, name: &str, length: usize) -> Result<Floats> {
    let own = file_name(name.strip_suffix(".weight").unwrap_or(name));
    let (own, _) = own.ok_or_else(|| Error::invalid(format!("{}: no place for `{}`", file.name(), clip(name))))?;
    vector(file, &own, length)
}

fn vector(file: &Gguf, own: &str, length: usize) -> Result<Floats> {
    let tensor = tensor(file, own)?;
    let dtype = float_type(tensor.dtype).unwrap_or(DType::F32);
    let values = tensor.to_f32()?;
    if values.len() != length {
        return Err(Error::invalid(format!(
            "{}: `{own}` has {} numbers; accepted: {length}",
            file.name(),
            values.len()
        )));
    }
    Ok(Floats { values, dtype })
}

fn tensor<'f>(file: &'f Gguf, name: &str) -> Result<Tensor<'f>> {
    let info =
        file.tensor(name).ok_or_else(|| Error::invalid(format!("{}: has no tensor `{}`", file.name(), clip(name))))?;
    Ok(Tensor {
        name: &info.name,
        dtype: FileType::Gguf(info.dtype),
        shape: &info.shape,
        data: file.data(info),
        shard: file.name(),
    })
}

fn float_type(dtype: FileType) -> Option<DType> {
    match dtype {
        FileType::Gguf(GgufType::F32 | GgufType::F64) => Some(DType::F32),
        FileType::Gguf(GgufType::F16) => Some(DType::F16),
        FileType::Gguf(GgufType::BF16) => Some(DType::Bf16),
        _ => None,
    }
}

fn quantized(file: &Gguf, tensor: &Tensor<'_>, n: usize, k: usize) -> Result<bitsmith_compiler::format::Quantized> {
    let kind = tensor.dtype.name();
    let named = Format::ALL.iter().find(|named| named.name.eq_ignore_ascii_case(&kind)).ok_or_else(|| {
        let known: Vec<&str> = GgufType::ALL
            .iter()
            .map(|kind| kind.name())
            .filter(|kind| Format::ALL.iter().any(|named| named.name.eq_ignore_ascii_case(kind)))
            .collect();
        Error::Unsupported(format!(
            "{}: tensor `{}` is {kind}; accepted: floats, {}",
            file.name(),
            tensor.name,
            known.join(", ")
        ))
    })?;
    let part = Part {
        name: "blocks",
        dtype: PartType::U8,
        shape: vec![n, tensor.data.len() / n],
        bytes: tensor.data.to_vec(),
    };
    (named.format.container.unpack)(&named.format, n, k, &[part]).map_err(|error| match error {
        Error::Invalid(faults) => {
            Error::Invalid(faults.iter().map(|fault| format!("{}: `{}`: {fault}", file.name(), tensor.name)).collect())
        }
        other => other,
    })
}
