//! `calibrate`: statistics of what flows through a model, layer by layer, into a folder that can be gone on with.

use super::eval::{Via, read_text, tokenizer};
use crate::table::{Table, bytes};
use crate::{Io, Outcome};
use bitsmith_calibrate::collect::{collect, read_layer};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::kv;
use bitsmith_calibrate::quantize::Prompts;
use bitsmith_calibrate::recipe;
use std::path::PathBuf;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct Calibrate {
    /// A model folder or a GGUF file
    model: PathBuf,
    /// Text to take prompts from
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder for the statistics; one that was begun is gone on with
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The tokenizer, where it does not lie with the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Prompts: 128 to 512 are usual
    #[arg(long, default_value_t = 128)]
    samples: usize,
    /// Tokens of each
    #[arg(long, default_value_t = 512)]
    length: usize,
    /// Which places of the text they are taken from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens at the start of the text to leave alone
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Who multiplies
    #[arg(long, value_enum, default_value_t = Via::Dense)]
    via: Via,
    /// The device of the kernels
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Find the scales of keys and values for a KV format with scales per tensor or head; they go to kv_scales.json
    #[arg(long, value_name = "FORMAT")]
    kv: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let checkpoint = Checkpoint::open(&self.model)?;
        let ids = tokenizer(self.tokenizer.as_deref(), &checkpoint.folder)?.encode(&read_text(&self.text)?)?;
        let how = recipe::Calibration { samples: self.samples, length: self.length, seed: self.seed };
        let prompts = Prompts::new(&ids, checkpoint.config.bos, &how, self.skip)?;
        let executor = self.via.executor(&self.device)?;
        let format = self.kv.as_deref().map(kv::format).transpose()?.flatten();
        if let Some(format) = format.filter(|format| !(format.k.is_static() || format.v.is_static())) {
            return Err(crate::Failure::invalid(format!(
                "--kv {format}: the cache makes these scales itself as tokens come; accepted: formats with scales per tensor or head"
            )));
        }
        let mut done = Vec::new();
        let manifest = collect(&checkpoint, &prompts, &how, executor.as_ref(), &self.out, &mut |at, _| done.push(at))?;
        let mut scales = None;
        if let Some(format) = format {
            let found = kv::calibrate(&checkpoint, &prompts, executor.as_ref(), &format)?;
            found.write(&self.out.join(kv::FILE))?;
            scales = Some(found);
        }
        let peak = crate::memory::peak();
        if self.json {
            return io.json(&serde_json::json!({
                "manifest": manifest, "layers_now": done.len(), "peak_memory": peak, "folder": self.out,
                "kv_scales": scales,
            }));
        }
        let mut table = Table::new(&["layer", "site", "rows", "largest", "99.9 %", "outlier channels"]);
        for layer in 0..manifest.layers {
            for site in read_layer(&self.out, layer)? {
                let largest = site.absmax.iter().copied().fold(0.0f32, f32::max);
                table.row(vec![
                    layer.to_string(),
                    site.site,
                    site.rows.to_string(),
                    format!("{largest:.3}"),
                    format!("{:.3}", site.percentiles[1]),
                    site.outliers.len().to_string(),
                ]);
            }
        }
        write!(io.out, "{table}")?;
        if let Some(scales) = &scales {
            writeln!(
                io.out,
                "scales of keys and values in {} for {} layers: {}",
                scales.format,
                scales.layers.len(),
                self.out.join(kv::FILE).display()
            )?;
        }
        writeln!(
            io.out,
            "{} prompts, {} tokens; {} of {} layers now, the others were there; statistics in {}{}",
            manifest.prompts,
            manifest.tokens,
            done.len(),
            manifest.layers,
            self.out.display(),
            peak.map_or(String::new(), |peak| format!("; {} of memory at most", bytes(peak as f64)))
        )?;
        Ok(())
    }
}
