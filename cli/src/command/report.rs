//! `report`: what quantizing cost and brought, as JSON, Markdown and an HTML page.

use super::eval::{Via, read_text, tokenizer};
use crate::failure::Failure;
use crate::kv::KvArgs;
use crate::{Io, Outcome};
use bitsmith_calibrate::engine::{Activations, Dense, with_caches};
use bitsmith_calibrate::evaluate::{Windows, read_probes};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::quantize::LinearReport;
use bitsmith_calibrate::report::{Subject, html, markdown, report};
use std::path::{Path, PathBuf};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The quantized model
    model: PathBuf,
    /// The model in floats
    #[arg(long, value_name = "MODEL")]
    reference: PathBuf,
    /// Text that calibration did not see
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder for report.json, report.md and report.html
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The tokenizer, where it does not lie with the reference
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows, from the start of the text
    #[arg(long, default_value_t = 12)]
    windows: usize,
    /// Tasks: a file or folder of JSON lines with sentence_good and sentence_bad
    #[arg(long, value_name = "PATH")]
    probes: Option<PathBuf>,
    /// Pairs of each task
    #[arg(long, default_value_t = 80)]
    pairs: usize,
    /// Who multiplies for the quantized model
    #[arg(long, value_enum, default_value_t = Via::Kernels)]
    via: Via,
    #[command(flatten)]
    kv: KvArgs,
    /// The device of the kernels
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

/// What `quantize` leaves beside the weights for reports.
pub(crate) const NOTES: &str = "quantization.json";

impl Report {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let (reference, model) = (Checkpoint::open(&self.reference)?, Checkpoint::open(&self.model)?);
        let tokenizer = tokenizer(self.tokenizer.as_deref(), &reference.folder)?;
        let ids = tokenizer.encode(&read_text(&self.text)?)?;
        let windows = Windows::new(&ids, reference.config.bos, self.window, self.windows)?;
        let tasks = self.probes.as_deref().map(|path| read_probes(path, self.pairs)).transpose()?;
        let executor = self.via.executor(&self.device)?;
        let (floats, quantized) = (reference.model()?, model.model()?);
        let noted = notes(&model.folder)?;
        let caches = self.kv.caches(&model, &model.folder, &self.device, self.window + 1)?;
        let made = with_caches(caches.as_ref(), |cache| {
            report(&Subject {
                reference: &floats,
                model: &quantized,
                floats: &Dense { activations: Activations::Floats },
                executor: executor.as_ref(),
                cache,
                windows: &windows,
                probes: tasks.as_deref().map(|tasks| (tasks, &tokenizer)),
                noted: &noted,
                names: [
                    name(&self.model),
                    name(&self.reference),
                    model.scheme.describe(),
                    name(&self.text),
                    match self.via {
                        Via::Dense => "floats, weights dequantized".into(),
                        Via::Simulated => "floats, weights and inputs dequantized".into(),
                        Via::Kernels => format!("bitsmith's kernels on {}", self.device),
                    },
                    self.kv.name().to_owned(),
                ],
            })
        })?;
        std::fs::create_dir_all(&self.out).map_err(|error| Failure::file(&self.out, "made", &error))?;
        let json = serde_json::to_string_pretty(&made).map_err(|error| Failure::Output(error.into()))?;
        for (file, text) in [("report.json", json), ("report.md", markdown(&made)), ("report.html", html(&made)?)] {
            let path = self.out.join(file);
            std::fs::write(&path, text).map_err(|error| Failure::file(&path, "written", &error))?;
        }
        if self.json {
            return io.json(&made);
        }
        writeln!(io.out, "{}", made.verdict)?;
        for s in &made.performance {
            writeln!(
                io.out,
                "{}: {:.1} tokens per second, {:.1} in f32 ({} at once)",
                s.phase, s.model, s.reference, s.tokens
            )?;
        }
        writeln!(io.out, "report.json, report.md and report.html are in {}", self.out.display())?;
        Ok(())
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// What `quantize` noted, where it is there.
fn notes(folder: &Path) -> Result<Vec<LinearReport>, Failure> {
    let path = folder.join(NOTES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::file(&path, "read", &error))?;
    serde_json::from_str(&text).map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))
}
