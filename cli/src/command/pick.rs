//! `pick`: which recipe for a model on a machine, and why.

use crate::failure::Failure;
use crate::table::{Table, bytes, time};
use crate::{Io, Outcome};
use bitsmith_calibrate::pick::{Goal, Machine, Request, SHARES, commands, pick};
use bitsmith_calibrate::shapes::ModelShape;
use std::path::{Path, PathBuf};

/// Arguments of `pick`.
#[derive(Debug, clap::Args)]
pub struct Pick {
    /// A known model (`bitsmith list shapes`), a config.json, or a folder with one
    #[arg(long)]
    model: String,
    /// A machine: h100, mi300x, a100, l4, rtx4090, epyc-9654 …
    #[arg(long)]
    device: String,
    /// Memory of the machine in GB, where it differs from the data sheet
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// What matters most
    #[arg(long, value_enum)]
    goal: GoalName,
    /// Sequences at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens of each, prompt and answer
    #[arg(long, default_value_t = 4096)]
    context: usize,
    /// The rise of perplexity that is accepted, in per cent
    #[arg(long, value_name = "PERCENT")]
    max_ppl_increase: Option<f64>,
    /// There is no text to calibrate with
    #[arg(long)]
    no_calibration: bool,
    /// Recipes to show
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Write the recipe of the first place here
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum GoalName {
    /// Tokens per second over all sequences
    Throughput,
    /// Time per token of few sequences
    Latency,
    /// Long contexts and small machines
    Memory,
    /// The least loss that fits
    Quality,
}

impl Pick {
    /// Where the weights would lie: beside the config.json, or wherever the user keeps those of a known model.
    fn weights(&self) -> String {
        let path = Path::new(&self.model);
        match path.file_name() {
            Some(name) if name == "config.json" => match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.display().to_string(),
                _ => ".".into(),
            },
            _ if path.exists() => self.model.clone(),
            _ => format!("path/to/{}", self.model),
        }
    }

    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let shape = ModelShape::resolve(&self.model)?;
        let mut machine = Machine::by_name(&self.device)?;
        if let Some(memory) = self.memory {
            if !(memory.is_finite() && memory > 0.0) {
                return Err(Failure::invalid(format!("--memory {memory}; accepted: GB above 0")));
            }
            machine = machine.with_memory(memory * 1e9);
        }
        let request = Request {
            goal: match self.goal {
                GoalName::Throughput => Goal::Throughput,
                GoalName::Latency => Goal::Latency,
                GoalName::Memory => Goal::Memory,
                GoalName::Quality => Goal::Quality,
            },
            batch: self.batch,
            context: self.context,
            max_increase: self.max_ppl_increase.map(|percent| percent / 100.0),
            calibration: !self.no_calibration,
        };
        let picks = pick(&shape, &machine, &request)?;
        let recipe = picks[0].recipe.to_toml()?;
        let file = self.write.as_ref().map_or("recipe.toml".into(), |path| path.display().to_string());
        if let Some(path) = &self.write {
            std::fs::write(path, &recipe).map_err(|error| Failure::file(path, "written", &error))?;
        }
        let commands = commands(&self.weights(), &file);
        if self.json {
            let shown: Vec<_> = picks.iter().take(self.top.max(1)).collect();
            return io.json(&serde_json::json!({
                "machine": machine, "request": request, "picks": shown, "recipe": recipe, "commands": commands,
            }));
        }
        let mut table = Table::new(&[
            "recipe",
            "kv",
            "weights",
            "kv bytes",
            "work",
            "fits",
            "max batch",
            "max context",
            "prefill",
            "per step",
            "typical loss",
        ]);
        for p in picks.iter().take(self.top.max(1)) {
            table.row(vec![
                p.weights.to_string(),
                p.kv.name().to_string(),
                bytes(p.memory.weights),
                bytes(p.memory.kv),
                bytes(p.memory.workspace),
                if p.fits { "yes" } else { "no" }.to_string(),
                p.max_batch.to_string(),
                p.max_context.to_string(),
                time(p.prefill_seconds),
                time(p.decode_seconds),
                format!("{:.2} %", 100.0 * p.typical_increase),
            ]);
        }
        write!(io.out, "{table}")?;
        let first = &picks[0];
        writeln!(
            io.out,
            "\n{} with {} keys and values on {}: {}.",
            first.weights,
            first.kv.name(),
            machine.model,
            first.reason
        )?;
        for risk in &first.risks {
            writeln!(io.out, "risk: {risk}")?;
        }
        writeln!(
            io.out,
            "times are {:.0} % of the memory peak or {:.0} % of the arithmetic peak, not measurements; losses are typical of 7 billion weights",
            100.0 * SHARES.0,
            100.0 * SHARES.1
        )?;
        writeln!(io.out, "\n{file}:\n{recipe}")?;
        for command in commands {
            writeln!(io.out, "{command}")?;
        }
        Ok(())
    }
}
