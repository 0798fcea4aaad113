//! `export`: a model as it is, in the files of another tool. No code is rounded again.

use crate::table::bytes;
use crate::{Io, Outcome};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::Linear;
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
        let written = export(&checkpoint, target, &self.out, Some(&checkpoint.folder))?;
        for note in checkpoint.notes() {
            writeln!(io.err, "note: {note}")?;
        }
        // What was written is read again, and every number compared, layer by layer.
        let again = Checkpoint::open(&written.path)?;
        let (mut count, mut differ) = (0, Vec::new());
        let mut compare = |a: &Linear, b: &Linear| {
            count += 1;
            // The packed layout multiplies by NVFP4's second scale where files divide: two roundings of f32.
            let close = |(x, y): (&f32, &f32)| x == y || target == Target::Packed && (x - y).abs() <= 2.4e-7 * x.abs();
            let (x, y) = (a.weight.values(), b.weight.values());
            if a.name != b.name || x.len() != y.len() || !x.iter().zip(y.iter()).all(close) {
                differ.push(a.name.clone());
            }
        };
        for index in 0..checkpoint.config.shape.layers {
            let (a, b) = (checkpoint.layer(index)?, again.layer(index)?);
            a.linears().into_iter().zip(b.linears()).for_each(|(a, b)| compare(a, b));
        }
        compare(&checkpoint.embedding()?, &again.embedding()?);
        if let (Some(a), Some(b)) = (checkpoint.head()?, again.head()?) {
            compare(&a, &b);
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
