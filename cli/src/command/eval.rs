//! `eval`: perplexity of a model, alone or beside a reference, on the dense path or on a device's kernels.

use crate::kv::KvArgs;
use crate::place::Place;
use crate::table::Table;
use crate::{Io, Outcome};
use bitsmith_calibrate::engine::{Activations, Dense, Engine, Executor, Kernels, with_caches};
use bitsmith_calibrate::evaluate::{Windows, compare, perplexity, probe, read_probes};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::text::Tokenizer;
use bitsmith_compiler::Result;
use std::path::{Path, PathBuf};

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Eval {
    /// A model folder (safetensors with config.json) or a GGUF file
    model: PathBuf,
    /// Text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The tokenizer, where it does not lie with the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// A model to compare with: divergence and agreement of the next token are shown too
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows, from the start of the text
    #[arg(long, default_value_t = 12)]
    windows: usize,
    /// Who multiplies: weights dequantized and inputs left floats, inputs quantized in floats too, or the kernels
    #[arg(long, value_enum, default_value_t = Via::Dense)]
    via: Via,
    #[command(flatten)]
    kv: KvArgs,
    /// The device of the kernels
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Tasks: a file or folder of JSON lines with sentence_good and sentence_bad
    #[arg(long, value_name = "PATH")]
    probes: Option<PathBuf>,
    /// Pairs of each task
    #[arg(long, default_value_t = 80)]
    pairs: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Who multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Via {
    /// Weights dequantized, inputs floats
    Dense,
    /// Weights dequantized, inputs quantized and dequantized
    Simulated,
    /// Kernels on the device
    Kernels,
}

impl Via {
    /// What runs the matrices.
    pub fn executor(self, device: &str) -> Result<Box<dyn Executor>, crate::Failure> {
        Ok(match self {
            Via::Dense => Box::new(Dense { activations: Activations::Floats }),
            Via::Simulated => Box::new(Dense { activations: Activations::Quantized }),
            Via::Kernels => Box::new(Kernels::new(Place::running(device)?)),
        })
    }
}

/// The tokenizer of a model, or the one that was named.
pub(crate) fn tokenizer(named: Option<&Path>, folder: &Path) -> Result<Tokenizer> {
    Tokenizer::open(named.unwrap_or(folder))
}

/// A text file.
pub(crate) fn read_text(path: &Path) -> Result<String, crate::Failure> {
    std::fs::read_to_string(path).map_err(|error| crate::Failure::file(path, "read", &error))
}

impl Eval {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let checkpoint = Checkpoint::open(&self.model)?;
        let tokenizer = tokenizer(self.tokenizer.as_deref(), &checkpoint.folder)?;
        let ids = tokenizer.encode(&read_text(&self.text)?)?;
        let windows = Windows::new(&ids, checkpoint.config.bos, self.window, self.windows)?;
        let executor = self.via.executor(&self.device)?;
        let caches = self.kv.caches(&checkpoint, &checkpoint.folder, &self.device, self.window + 1)?;
        let mut json = serde_json::json!({
            "model": self.model, "kv": self.kv.name(), "scheme": checkpoint.scheme.describe(), "text": self.text,
        });
        if let Some(path) = &self.reference {
            let other = Checkpoint::open(path)?;
            let floats = Dense { activations: Activations::Floats };
            let found = with_caches(caches.as_ref(), |cache| {
                compare((&other, &floats), (&checkpoint, executor.as_ref()), &windows, cache)
            })?;
            json["comparison"] = serde_json::to_value(found).unwrap_or_default();
            if !self.json {
                let (r, m) = (found.reference, found.model);
                writeln!(
                    io.out,
                    "perplexity {:.4} (reference {:.4}, {:+.3} ± {:.3} %) over {} windows of {} tokens, keys and values in {}\n\
                     divergence from the reference: mean {:.3e} nats, 99.9 % of tokens below {:.3e}\n\
                     same most likely token: {:.2} %; largest difference of a logit: {:.3e}",
                    m.perplexity,
                    r.perplexity,
                    100.0 * found.increase,
                    100.0 * found.increase_error,
                    m.windows,
                    m.window,
                    self.kv.name(),
                    found.mean_divergence,
                    found.divergence_999,
                    100.0 * found.top_1,
                    found.max_logit_error
                )?;
            }
        } else {
            let found =
                with_caches(caches.as_ref(), |cache| perplexity((&checkpoint, executor.as_ref()), &windows, cache))?;
            json["perplexity"] = serde_json::to_value(found).unwrap_or_default();
            if !self.json {
                writeln!(
                    io.out,
                    "perplexity {:.4} over {} windows of {} tokens ({}; keys and values in {})",
                    found.perplexity,
                    found.windows,
                    found.window,
                    checkpoint.scheme.describe(),
                    self.kv.name()
                )?;
            }
        }
        if let Some(path) = &self.probes {
            let engine = Engine::new(&checkpoint, executor.as_ref())?;
            let mut table = Table::new(&["task", "pairs", "accuracy", "95 % interval"]);
            let mut results = Vec::new();
            for task in read_probes(path, self.pairs)? {
                let result = with_caches(caches.as_ref(), |cache| probe(&engine, &tokenizer, &task, cache))?;
                table.row(vec![
                    result.name.clone(),
                    result.pairs.to_string(),
                    format!("{:.3}", result.accuracy),
                    format!("{:.3} to {:.3}", result.low, result.high),
                ]);
                results.push(result);
            }
            json["probes"] = serde_json::to_value(&results).unwrap_or_default();
            if !self.json {
                write!(io.out, "{table}")?;
            }
        }
        // Quirks are met while layers are read.
        for note in checkpoint.notes() {
            writeln!(io.err, "note: {note}")?;
        }
        json["notes"] = serde_json::to_value(checkpoint.notes()).unwrap_or_default();
        if self.json {
            io.json(&json)?;
        }
        Ok(())
    }
}
