//! `export`: a model as it is, in the files of another tool. No code is rounded again.

use crate::table::bytes;
use crate::{Io, Outcome};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// A model folder (safetensors with config.json, or packed) or a GGUF file
    model: PathBuf,
    /// What to write: compressed-tensors, gptq, awq, gguf, packed
    #[arg(long, default_value = "compressed-tensors")]
    format: String,
    /// Where to write: a new folder, or a new file for gguf
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Export {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let target = Target::by_name(&self.format)?;
        let checkpoint = Checkpoint::open(&self.model)?;
        let model = checkpoint.model()?;
        for note in checkpoint.notes() {
            writeln!(io.err, "note: {note}")?;
        }
        let written = export(&model, target, &self.out, Some(&checkpoint.folder))?;
        // What was written is read again, and every number compared.
        let again = Checkpoint::open(&written.path)?.model()?;
        let (mut count, mut differ) = (0, Vec::new());
        for (a, b) in model.linears().into_iter().zip(again.linears()) {
            count += 1;
            if a.name != b.name || a.weight.values() != b.weight.values() {
                differ.push(a.name.clone());
            }
        }
        if !differ.is_empty() {
            return Err(crate::Failure::Found(format!("{} read back differently", differ.join(", "))));
        }
        if self.json {
            return io.json(&serde_json::json!({
                "out": self.out, "format": self.format, "from": checkpoint.scheme.describe(), "bytes": written.bytes,
                "matrices_compared": count,
            }));
        }
        writeln!(
            io.out,
            "{}: {} written to {}; {count} matrices read back with the same numbers",
            checkpoint.scheme.describe(),
            bytes(written.bytes as f64),
            self.out.display()
        )?;
        Ok(())
    }
}
