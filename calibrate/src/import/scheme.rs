//! `quantization_config`: which tool wrote a checkpoint, and how its matrices lie in it.
//!
//! Reads the JSON of `config.json` or `quantize_config.json`; makes a [`Scheme`]. Always holds: a scheme that is not
//! known, or a field that would change the meaning of codes, is refused by name.

use crate::file::clip;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Activation, Per};
use bitsmith_compiler::{Error, Result};
use regex::Regex;
use serde_json::Value;

/// How the matrices of a checkpoint are quantized.
#[derive(Clone, Debug)]
pub enum Scheme {
    /// Floats.
    None,
    /// GGUF says it per tensor.
    Gguf,
    /// GPTQ.
    Gptq {
        /// Bits of a code.
        bits: u8,
        /// Group size; `None` is a whole row.
        group: Option<u32>,
        /// Whether zeros are all in the middle.
        sym: bool,
        /// Whether zeros are stored as they are (version 2) rather than less one.
        v2: bool,
        /// Per layer: a pattern, bits, group; `None` leaves the layer in floats.
        dynamic: Vec<GptqRule>,
    },
    /// AWQ, the gemm version.
    Awq {
        /// Group size; `None` is a whole row.
        group: Option<u32>,
    },
    /// compressed-tensors.
    Ct {
        /// Groups of layers.
        groups: Vec<CtGroup>,
        /// Whether the KV cache is quantized.
        kv_cache: bool,
    },
    /// FP8 of Hugging Face and DeepSeek.
    Fp8 {
        /// Rows and columns of a block; `None` is one scale per tensor.
        block: Option<(u32, u32)>,
        /// How inputs are quantized.
        activation: Activation,
    },
    /// bitsandbytes, 4 bits.
    Bnb,
    /// HQQ.
    Hqq,
    /// bitsmith's own layout.
    Packed(crate::export::PackedFile),
}

/// A pattern of layer names; bits and group size of those that it matches, or `None` where they stay floats.
pub type GptqRule = (Regex, Option<(u8, Option<u32>)>);

/// One group of layers of compressed-tensors.
#[derive(Clone, Debug)]
pub struct CtGroup {
    /// `Linear`, exact names, or `re:` patterns.
    pub targets: Vec<String>,
    /// `pack-quantized` and so on.
    pub format: String,
    /// Bits of a code.
    pub bits: u8,
    /// Floats rather than integers.
    pub float: bool,
    /// No zero points.
    pub symmetric: bool,
    /// `tensor`, `channel`, `group`, `block`, `tensor_group`.
    pub strategy: String,
    /// Group size.
    pub group: Option<u32>,
    /// Rows and columns of a block.
    pub block: Option<(u32, u32)>,
    /// How inputs are quantized.
    pub activation: Option<Activation>,
    /// What inputs would need that kernels lack, in words.
    pub activation_note: Option<String>,
}

impl Scheme {
    /// Reads the configuration of a checkpoint.
    pub fn read(config: &Value, side: Option<&Value>, name: &str) -> Result<Scheme> {
        let Some(q) = config.get("quantization_config").or(config.get("compression_config")).or(side) else {
            return Ok(Scheme::None);
        };
        let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("gptq");
        let refuse = |what: String| Err(Error::Unsupported(format!("{name}: {what}")));
        match method {
            "gptq" => gptq(q, name),
            "awq" => {
                let version = q.get("version").and_then(Value::as_str).unwrap_or("gemm").to_ascii_lowercase();
                if version != "gemm" {
                    return refuse(format!("AWQ version `{}`; accepted: gemm", clip(&version)));
                }
                let bits = q.get("bits").or(q.get("w_bit")).and_then(Value::as_u64).unwrap_or(4);
                if bits != 4 || q.get("zero_point").and_then(Value::as_bool) == Some(false) {
                    return refuse(format!("AWQ of {bits} bits without zeros or not 4; accepted: 4 bits with zeros"));
                }
                Ok(Scheme::Awq { group: group_of(q.get("group_size").or(q.get("q_group_size")))? })
            }
            "compressed-tensors" => compressed_tensors(q, name),
            "fp8" | "fbgemm_fp8" => {
                let block = pair(q.get("weight_block_size"));
                let dynamic = q.get("activation_scheme").and_then(Value::as_str) != Some("static");
                let per = match (block, dynamic) {
                    (Some((_, k)), _) => Per::Group(k),
                    (None, true) => Per::Token,
                    (None, false) => Per::Tensor,
                };
                Ok(Scheme::Fp8 { block, activation: Activation::Fp8(DType::E4m3fn, per) })
            }
            "bitsandbytes" => match q.get("load_in_4bit").and_then(Value::as_bool) {
                Some(true) => Ok(Scheme::Bnb),
                _ => refuse("bitsandbytes of 8 bits; accepted: 4 bits (nf4)".into()),
            },
            "hqq" => Ok(Scheme::Hqq),
            other => refuse(format!(
                "quantization `{}`; accepted: gptq, awq, compressed-tensors, fp8, bitsandbytes, hqq",
                clip(other)
            )),
        }
    }

    /// Whether the checkpoint asks for a quantized KV cache.
    pub fn kv_cache(&self) -> bool {
        matches!(self, Scheme::Ct { kv_cache: true, .. })
    }

    /// What it is, in a few words.
    pub fn describe(&self) -> String {
        let group = |group: &Option<u32>| group.map_or("a row".to_string(), |g| format!("groups of {g}"));
        match self {
            Scheme::None => "floats".into(),
            Scheme::Gguf => "GGUF".into(),
            Scheme::Gptq { bits, group: g, sym, v2, .. } => format!(
                "GPTQ{} {bits} bits, {}, {}",
                if *v2 { " v2" } else { "" },
                group(g),
                if *sym { "symmetric" } else { "with zeros" }
            ),
            Scheme::Awq { group: g } => format!("AWQ gemm 4 bits, {}", group(g)),
            Scheme::Ct { groups, .. } => {
                let list: Vec<String> =
                    groups.iter().map(|g| format!("{} {} bits per {}", g.format, g.bits, g.strategy)).collect();
                format!("compressed-tensors {}", list.join("; "))
            }
            Scheme::Fp8 { block: Some((n, k)), .. } => format!("FP8 in blocks of {n}x{k}"),
            Scheme::Fp8 { block: None, .. } => "FP8 per tensor".into(),
            Scheme::Bnb => "bitsandbytes 4 bits".into(),
            Scheme::Hqq => "HQQ".into(),
            Scheme::Packed(packed) => format!("packed for bitsmith's kernels ({} matrices)", packed.matrices.len()),
        }
    }
}

impl CtGroup {
    /// Whether the group holds a layer.
    pub fn holds(&self, layer: &str) -> bool {
        self.targets.iter().any(|target| match target.strip_prefix("re:") {
            // `re.match` anchors at the start.
            Some(pattern) => Regex::new(&format!("^(?:{pattern})")).is_ok_and(|regex| regex.is_match(layer)),
            None => target == "Linear" || target == layer,
        })
    }
}

fn group_of(value: Option<&Value>) -> Result<Option<u32>> {
    match value.and_then(Value::as_i64) {
        None | Some(-1) => Ok(None),
        Some(g) if (1..=1 << 20).contains(&g) => Ok(Some(g as u32)),
        Some(g) => Err(Error::invalid(format!("group size {g}; accepted: -1, or 1 to 2^20"))),
    }
}

fn pair(value: Option<&Value>) -> Option<(u32, u32)> {
    let list = value?.as_array()?;
    let size = |i: usize| list.get(i).and_then(Value::as_u64).and_then(|x| u32::try_from(x).ok()).filter(|x| *x > 0);
    Some((size(0)?, size(1)?))
}

fn gptq(q: &Value, name: &str) -> Result<Scheme> {
    let bits = q.get("bits").and_then(Value::as_u64).unwrap_or(0);
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(Error::Unsupported(format!("{name}: GPTQ of {bits} bits; accepted: 2, 3, 4, 8")));
    }
    let format = q.get("checkpoint_format").or(q.get("format")).and_then(Value::as_str).unwrap_or("gptq");
    let v2 = match format {
        "gptq" => false,
        "gptq_v2" => true,
        other => {
            return Err(Error::Unsupported(format!(
                "{name}: GPTQ checkpoint format `{}`; accepted: gptq, gptq_v2",
                clip(other)
            )));
        }
    };
    let group = group_of(q.get("group_size"))?;
    let mut dynamic = Vec::new();
    for (pattern, value) in q.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
        let (skip, pattern) = match pattern.strip_prefix("-:") {
            Some(rest) => (true, rest),
            None => (false, pattern.strip_prefix("+:").unwrap_or(pattern)),
        };
        let regex = Regex::new(&format!("^(?:{pattern})"))
            .map_err(|_| Error::invalid(format!("{name}: pattern `{}` is no regular expression", clip(pattern))))?;
        let own = || -> Result<(u8, Option<u32>)> {
            let own_bits = value.get("bits").and_then(Value::as_u64).unwrap_or(bits) as u8;
            let own_group = value.get("group_size").map_or(Ok(group), |g| group_of(Some(g)))?;
            Ok((own_bits, own_group))
        };
        dynamic.push((regex, if skip { None } else { Some(own()?) }));
    }
    let sym = q.get("sym").and_then(Value::as_bool).unwrap_or(true);
    Ok(Scheme::Gptq { bits: bits as u8, group, sym, v2, dynamic })
}

fn compressed_tensors(q: &Value, name: &str) -> Result<Scheme> {
    let overall = q.get("format").and_then(Value::as_str).unwrap_or("");
    let groups = q.get("config_groups").and_then(Value::as_object);
    let mut list = Vec::new();
    for (key, group) in groups.into_iter().flatten() {
        let Some(weights) = group.get("weights").filter(|w| !w.is_null()) else { continue };
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let bits = weights.get("num_bits").and_then(Value::as_u64).unwrap_or(0);
        if !(2..=8).contains(&bits) {
            return Err(Error::Unsupported(format!("{name}: `{}` has {bits} bits; accepted: 2 to 8", clip(key))));
        }
        let targets = group.get("targets").and_then(Value::as_array);
        let (activation, activation_note) = activation(group.get("input_activations"));
        let size = group_of(weights.get("group_size").filter(|g| !g.is_null()))?;
        list.push(CtGroup {
            targets: targets.into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
            format: text(group, "format").unwrap_or_else(|| overall.to_owned()),
            bits: bits as u8,
            float: weights.get("type").and_then(Value::as_str) == Some("float"),
            symmetric: weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true),
            strategy: text(weights, "strategy").unwrap_or_else(|| match size {
                Some(_) => "group".into(),
                None => "tensor".into(),
            }),
            group: size,
            block: pair(weights.get("block_structure")),
            activation,
            activation_note,
        });
    }
    // Exact names and patterns stand before the class of all.
    list.sort_by_key(|group| group.targets.iter().any(|target| target == "Linear"));
    let kv_cache = q.get("kv_cache_scheme").is_some_and(|scheme| !scheme.is_null());
    Ok(Scheme::Ct { groups: list, kv_cache })
}

fn activation(value: Option<&Value>) -> (Option<Activation>, Option<String>) {
    let Some(value) = value.filter(|value| !value.is_null()) else { return (None, None) };
    let bits = value.get("num_bits").and_then(Value::as_u64);
    let float = value.get("type").and_then(Value::as_str) == Some("float");
    let size = value.get("group_size").and_then(Value::as_u64).and_then(|g| u32::try_from(g).ok());
    let per = match value.get("strategy").and_then(Value::as_str).unwrap_or("tensor") {
        "token" | "channel" => Some(Per::Token),
        "tensor" => Some(Per::Tensor),
        "group" => size.filter(|g| *g >= 16).map(Per::Group),
        _ => None,
    };
    match (bits, float, per) {
        (Some(8), true, Some(per)) => (Some(Activation::Fp8(DType::E4m3fn, per)), None),
        (Some(8), false, Some(per)) if per != Per::Tensor => (Some(Activation::Int8(per)), None),
        _ => (None, Some(format!("inputs quantized as {} stay floats here", clip(&value.to_string())))),
    }
}
