//! `pack`: a tensor of a model file in the layout that the kernels of a bundle take, as one file of raw bytes.

use crate::table::bytes;
use crate::{Io, Outcome, files, memory, weights};
use bitsmith_calibrate::file::ModelFile;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::Packing;
use std::path::PathBuf;

/// Arguments of `pack`.
#[derive(Debug, clap::Args)]
pub struct Pack {
    /// A GGUF or safetensors file, or a folder of them
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Name of the tensor; `bitsmith inspect FILE` lists them
    #[arg(long, value_name = "NAME")]
    tensor: String,
    /// Format to quantize a float tensor to; a quantized tensor has its own
    #[arg(long)]
    format: Option<String>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The layout, as the manifest of a bundle names it
    #[arg(long, value_name = "LAYOUT", default_value = "n16", value_parser = packing)]
    packing: Packing,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn packing(text: &str) -> Result<Packing, String> {
    let names = || Packing::ALL.map(Packing::name).join(", ");
    let found = Packing::ALL.into_iter().find(|packing| packing.name() == text);
    found.ok_or_else(|| format!("accepted: {}", names()))
}

impl Pack {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let format: Option<Format> = self.format.as_deref().map(str::parse).transpose()?;
        let file = ModelFile::open(&self.weights)?;
        let tensor = file.tensor(&self.tensor)?;
        let (n, k) = weights::matrix(&tensor)?;
        // Floats, codes, packed bytes.
        memory::check(&format!("packing `{}`", self.tensor), 8.0 * n as f64 * k as f64, "take a smaller tensor")?;
        let quantized = weights::load(&tensor, n, k, format)?;
        let packed = self.packing.pack(&quantized)?;
        let packing = self.packing.name();
        files::write(&self.out, &packed)?;
        let format = quantized.format.to_string();
        if self.json {
            return io.json(&serde_json::json!({
                "tensor": self.tensor, "n": n, "k": k, "format": format, "packing": packing,
                "bytes": packed.len(), "sha256": crate::bundle::sha256(&packed), "file": self.out,
            }));
        }
        let size = bytes(packed.len() as f64);
        writeln!(
            io.out,
            "{}: {n}x{k} in {format}, packed as {packing}: {size} in {}",
            self.tensor,
            self.out.display()
        )?;
        Ok(())
    }
}
