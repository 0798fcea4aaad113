//! `inspect`: what a model file or a bundle holds. The hashes of a bundle are computed again.

use crate::failure::Failure;
use crate::stages::describe_schedule;
use crate::table::{Table, bytes};
use crate::{Io, Outcome};
use bitsmith_calibrate::file::ModelFile;
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_runtime::bundle::{Bundle, MANIFEST, TargetEntry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A GGUF or safetensors file, a folder of them, or a bundle
    path: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        if self.path.is_dir() && self.path.join(MANIFEST).is_file() {
            return self.bundle(io);
        }
        self.model(io)
    }

    fn bundle(&self, io: &mut Io<'_>) -> Outcome {
        let bundle = Bundle::open(&self.path)?;
        let (manifest, faults) = (bundle.manifest(), bundle.faults());
        if self.json {
            io.json(&serde_json::json!({ "kind": "bundle", "manifest": manifest, "faults": faults }))?;
        } else {
            let tool = &manifest.tool;
            writeln!(
                io.out,
                "bundle of bitsmith {} (Cranelift {}), schema {}\nrecipe {}, shapes {}, licence {}",
                tool.bitsmith, tool.cranelift, manifest.schema, manifest.recipe, manifest.model, manifest.licence
            )?;
            for target in &manifest.targets {
                writeln!(io.out, "\n{} ({}): needs {}", target.target, target.triple, target.needs)?;
                write!(io.out, "{}", kernels(target))?;
                for kernel in &target.kv {
                    writeln!(io.out, "{}: {}, {}", kernel.entry, kernel.op, kernel.spec)?;
                }
            }
            for packing in &manifest.packings {
                let planes = packing.planes.join("; ");
                writeln!(
                    io.out,
                    "{} in {}: {}; planes {planes}",
                    packing.format, packing.packing, packing.description
                )?;
            }
            if faults.is_empty() {
                writeln!(io.out, "every file has the hash that the manifest states")?;
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(Failure::Found(faults.join("\nerror: "))) }
    }

    /// What a checkpoint is and which quirks it has; nothing where it is none that the engine knows.
    fn checkpoint(&self) -> Vec<String> {
        let Ok(checkpoint) = Checkpoint::open(&self.path) else { return Vec::new() };
        let s = &checkpoint.config.shape;
        let mut lines = vec![
            format!(
                "{}: {} layers, width {}, {} heads over {} of {}, vocabulary {}",
                checkpoint.config.family.model_type(),
                s.layers,
                s.hidden,
                s.heads,
                s.kv_heads,
                s.head_dim,
                s.vocab
            ),
            format!("quantized: {}", checkpoint.scheme.describe()),
        ];
        // Quirks show when layers are read; one at a time, so that memory stays small.
        let fault = (0..s.layers).find_map(|layer| checkpoint.layer(layer).err());
        lines.extend(checkpoint.notes().into_iter().map(|note| format!("note: {note}")));
        lines.extend(fault.map(|fault| format!("cannot be run: {fault}")));
        lines
    }

    fn model(&self, io: &mut Io<'_>) -> Outcome {
        let file = ModelFile::open(&self.path)?;
        let tensors: Vec<TensorRow> = (file.tensors().iter())
            .map(|tensor| TensorRow {
                name: tensor.name.to_string(),
                dtype: tensor.dtype.name().into_owned(),
                shape: tensor.shape.to_vec(),
                bytes: tensor.data.len(),
            })
            .collect();
        let mut types: BTreeMap<&str, (usize, usize, u128)> = BTreeMap::new();
        for tensor in &tensors {
            let entry = types.entry(&tensor.dtype).or_default();
            let elements = tensor.shape.iter().map(|&dim| dim as u128).product::<u128>();
            *entry = (entry.0 + 1, entry.1 + tensor.bytes, entry.2 + elements);
        }
        let metadata = metadata(&file);
        if self.json {
            let kind = if matches!(file, ModelFile::Gguf(_)) { "gguf" } else { "safetensors" };
            let metadata: serde_json::Map<String, serde_json::Value> =
                metadata.into_iter().map(|(key, value)| (key, value.into())).collect();
            return io.json(&serde_json::json!({ "kind": kind, "metadata": metadata, "tensors": tensors }));
        }
        writeln!(io.out, "{}", file.name())?;
        for line in self.checkpoint() {
            writeln!(io.out, "  {line}")?;
        }
        for (key, value) in metadata {
            writeln!(io.out, "  {key} = {value}")?;
        }
        let mut table = Table::new(&["tensor", "type", "shape", "bytes"]);
        for tensor in &tensors {
            let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
            table.row(vec![tensor.name.clone(), tensor.dtype.clone(), shape.join("x"), tensor.bytes.to_string()]);
        }
        write!(io.out, "{table}")?;
        for (dtype, (count, size, elements)) in types {
            let bits = 8.0 * size as f64 / (elements.max(1)) as f64;
            writeln!(
                io.out,
                "{count} tensors of {dtype}: {elements} weights, {}, {bits:.2} bits each",
                bytes(size as f64)
            )?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

/// Metadata as text; long values are cut.
fn metadata(file: &ModelFile) -> Vec<(String, String)> {
    const LIMIT: usize = 100;
    let ModelFile::Gguf(file) = file else { return Vec::new() };
    let short = |text: String| -> String {
        if text.chars().count() <= LIMIT { text } else { text.chars().take(LIMIT).chain(['…']).collect() }
    };
    let own = [("GGUF version".to_string(), file.version().to_string())];
    let keys = file.metadata().iter().map(|(key, value)| (key.clone(), short(format!("{value:?}"))));
    own.into_iter().chain(keys).collect()
}

/// A line per kernel.
fn kernels(target: &TargetEntry) -> Table {
    let mut table =
        Table::new(&["op", "layers", "NxK", "weights", "activations", "schedule", "packed", "workgroups", "entry"]);
    for kernel in &target.kernels {
        table.row(vec![
            kernel.op.clone(),
            kernel.layers.clone(),
            kernel.n.map_or(format!("K={}", kernel.k), |n| format!("{n}x{}", kernel.k)),
            kernel.format.clone().unwrap_or("-".into()),
            kernel.activation.clone().unwrap_or("-".into()),
            describe_schedule(&kernel.schedule),
            kernel.packed_bytes.map_or("-".into(), |count| bytes(count as f64)),
            kernel.grid.rule.clone(),
            kernel.entry.clone(),
        ]);
    }
    table
}
