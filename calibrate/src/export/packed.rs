//! bitsmith's own layout: every quantized matrix as its kernels take it, floats in safetensors, one manifest.
//!
//! ```text
//! bitsmith.json        schema, config, and per matrix: format, sizes, activation, input scale, gather
//! model.safetensors    <name>.n16: u8 records of 16 rows; everything else as in other checkpoints
//! ```
//!
//! It is the one target that holds every format, split and padded columns, and columns in another order. Always holds:
//! what is read back is the canonical form of what was written, number for number.

use super::huggingface::{norms, push};
use super::shards::Shards;
use crate::file::{SafeTensorsFile, clip};
use crate::model::{Layers, Linear, Mlp, Weight};
use bitsmith_compiler::format::Format;
use bitsmith_compiler::format::canonical::sort_groups;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::{Error, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The manifest's name.
pub const MANIFEST: &str = "bitsmith.json";
const SCHEMA: u32 = 2;

/// The manifest of a packed model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedFile {
    /// Version of the manifest.
    pub schema: u32,
    /// Layout of the matrices: `n16`.
    pub packing: String,
    /// The matrices.
    pub matrices: Vec<Matrix>,
}

/// One matrix of a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// The layer.
    pub name: String,
    /// Outputs.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// The format, in the format grammar.
    pub format: String,
    /// How inputs are quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// The one scale of inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_scale: Option<f32>,
    /// Which input each column takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather: Option<Vec<u32>>,
}

pub(super) fn write(model: &dyn Layers, folder: &Path) -> Result<u64> {
    let (mut matrices, mut faults) = (Vec::new(), Vec::new());
    let mut shards = Shards::new(folder);
    let mut linear = |linear: &Linear, shards: &mut Shards| -> Result<()> {
        if let Some(bias) = &linear.bias {
            push(shards, format!("{}.bias", linear.name), vec![linear.n], bias)?;
        }
        let q = match &linear.weight {
            Weight::Floats(floats) => {
                return push(shards, format!("{}.weight", linear.name), vec![linear.n, linear.k], floats);
            }
            Weight::Quantized(q) => q,
        };
        let format = q.format.to_string();
        if format.parse::<Format>().ok() != Some(q.format) {
            faults.push(format!("{}: format {format} has no name to read it back by", linear.name));
            return Ok(());
        }
        let (sorted, order) = sort_groups(q)?;
        let gather = match (&linear.gather, order) {
            (None, order) => order,
            (Some(outer), None) => Some(outer.clone()),
            (Some(outer), Some(order)) => Some(order.iter().map(|&c| outer[c as usize]).collect()),
        };
        let (_, bytes) = N16::pack(&sorted)?;
        shards.push(format!("{}.n16", linear.name), Dtype::U8, vec![bytes.len()], bytes)?;
        matrices.push(Matrix {
            name: linear.name.clone(),
            n: linear.n,
            k: linear.k,
            format,
            activation: linear.activation.map(|a| a.to_string()),
            input_scale: linear.input_scale,
            gather,
        });
        Ok(())
    };
    linear(&*model.embedding()?, &mut shards)?;
    for i in 0..model.config().shape.layers {
        let layer = model.layer(i)?;
        norms(&format!("model.layers.{i}"), &layer, &mut shards)?;
        if let Mlp::Experts { router, .. } = &layer.mlp {
            linear(router, &mut shards)?;
        }
        layer.linears().into_iter().try_for_each(|l| linear(l, &mut shards))?;
    }
    let norm = model.norm()?;
    push(&mut shards, "model.norm.weight".into(), vec![norm.values.len()], &norm)?;
    if let Some(head) = model.head()? {
        linear(&head, &mut shards)?;
    }
    if model.config().rope.factors.is_some() {
        faults.push(
            "rotary frequencies come as a tensor (`rope_freqs`), which config.json has no field for; `gguf` holds it"
                .into(),
        );
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let bytes = shards.finish()?;
    let manifest = PackedFile { schema: SCHEMA, packing: "n16".into(), matrices };
    let mut config = model.config().to_json();
    if let Some(object) = config.as_object_mut() {
        object.remove("quantization_config");
    }
    for (name, text) in [
        (MANIFEST, serde_json::to_string_pretty(&manifest).map_err(|e| Error::invalid(e.to_string()))?),
        ("config.json", format!("{config:#}")),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text + "\n").map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
    }
    Ok(bytes)
}

/// Reads the manifest of a folder; `None` where there is none.
pub fn open(folder: &Path) -> Result<Option<PackedFile>> {
    let path = folder.join(MANIFEST);
    if !path.is_file() {
        return Ok(None);
    }
    let text = crate::file::safetensors::read_text(&path)?;
    let manifest: PackedFile =
        serde_json::from_str(&text).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
    if manifest.schema != SCHEMA || manifest.packing != "n16" {
        return Err(Error::Unsupported(format!(
            "{}: schema {}, packing `{}`; accepted: schema {SCHEMA}, packing `n16`",
            path.display(),
            manifest.schema,
            clip(&manifest.packing)
        )));
    }
    Ok(Some(manifest))
}

impl PackedFile {
    /// A matrix, if it is one of the packed ones.
    pub(crate) fn linear(&self, file: &SafeTensorsFile, name: &str, n: usize, k: usize) -> Result<Option<Linear>> {
        let Some(matrix) = self.matrices.iter().find(|m| m.name == name) else { return Ok(None) };
        let fault = |what: String| Error::invalid(format!("{}: {}: {what}", file.name(), clip(name)));
        let inputs_fit = match &matrix.gather {
            Some(gather) => gather.len() == matrix.k && gather.iter().all(|&c| (c as usize) < k),
            None => matrix.k == k,
        };
        if matrix.n != n || !inputs_fit {
            return Err(fault(format!("is {}x{}; the configuration means {n}x{k}", matrix.n, matrix.k)));
        }
        let format: Format = matrix.format.parse()?;
        let layout = N16::of(&format, matrix.k)?;
        let tensor = file.tensor(&format!("{name}.n16")).ok_or_else(|| fault("its tensor is missing".into()))?;
        let q = layout.unpack(n, file.data(tensor))?;
        q.check().map_err(|error| fault(error.to_string()))?;
        let mut linear = Linear::floats(name, n, matrix.k, crate::model::Floats::f32(Vec::new()));
        linear.weight = Weight::Quantized(q);
        linear.activation = matrix.activation.as_deref().map(str::parse).transpose()?;
        linear.input_scale = matrix.input_scale;
        linear.gather = matrix.gather.clone();
        Ok(Some(linear))
    }
}
