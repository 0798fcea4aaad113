//! Traps of other tools' files: each has broken someone's checkpoint, and each is a file made here by hand whose numbers are
//! worked out here by hand.
//!
//! Names say the trap. Sources are those that the containers name.

mod files;
mod floats;
mod integers;
mod packings;

use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::Linear;
use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;

/// A tensor: name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
}

fn singles(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model of one layer whose query matrix is `n x k`; everything else are ones in floats.
fn config(n: usize, k: usize) -> Value {
    json!({ "model_type": "llama", "hidden_size": k, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": n, "vocab_size": 4, "tie_word_embeddings": true })
}

fn floats(n: usize, k: usize) -> Vec<Tensor> {
    let mut list = vec![("model.embed_tokens", vec![4, k]), ("model.norm", vec![k])];
    list.extend([("model.layers.0.input_layernorm", vec![k]), ("model.layers.0.post_attention_layernorm", vec![k])]);
    for (name, rows, columns) in [("k", n, k), ("v", n, k), ("o", k, n)] {
        let name = if name == "k" {
            "k_proj"
        } else if name == "v" {
            "v_proj"
        } else {
            "o_proj"
        };
        list.push((["model.layers.0.self_attn.", name].concat().leak(), vec![rows, columns]));
    }
    for (name, rows, columns) in [("gate_proj", 16, k), ("up_proj", 16, k), ("down_proj", k, 16)] {
        list.push((["model.layers.0.mlp.", name].concat().leak(), vec![rows, columns]));
    }
    list.into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            (format!("{name}.weight"), Dtype::F32, shape, singles(&vec![1.0; count]))
        })
        .collect()
}

const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn folder(n: usize, k: usize, quantization: Value, parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(n, k);
    if !quantization.is_null() {
        config["quantization_config"] = quantization;
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = floats(n, k);
    for (name, dtype, shape, bytes) in parts {
        let name =
            if name.starts_with("self_attn") { format!("model.layers.0.{name}") } else { format!("{QUERY}.{name}") };
        tensors.push((name, *dtype, shape.clone(), bytes.clone()));
    }
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// The query matrix and the notes, or the error.
fn read(
    n: usize,
    k: usize,
    quantization: Value,
    parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)],
) -> Result<(Linear, Vec<String>), String> {
    let folder = folder(n, k, quantization, parts);
    let checkpoint = Checkpoint::open(folder.path()).map_err(|e| e.to_string())?;
    let layer = checkpoint.layer(0).map_err(|e| e.to_string())?;
    Ok((layer.attention.q, checkpoint.notes()))
}

fn values(n: usize, k: usize, quantization: Value, parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<f32> {
    read(n, k, quantization, parts).unwrap().0.weight.values().into_owned()
}
