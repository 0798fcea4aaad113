//! `quantize`: a model through a recipe, to a folder that other tools read.

use super::eval::{Via, read_text, tokenizer};
use crate::place::Place;
use crate::table::{Table, bytes};
use crate::{Io, Outcome};
use bitsmith_calibrate::engine::{Activations, Dense, PagedCaches, Through, with_caches};
use bitsmith_calibrate::evaluate::{Windows, compare};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::kv;
use bitsmith_calibrate::model::Layers;
use bitsmith_calibrate::quantize::{FallBack, LinearReport, Prompts, Within, quantize, within_budget};
use bitsmith_calibrate::recipe::{Budget, OnIndivisible, Plan, RecipeFile};
use bitsmith_compiler::Error;
use std::path::PathBuf;

/// Arguments of `quantize`.
#[derive(Debug, clap::Args)]
pub struct Quantize {
    /// A model folder (safetensors with config.json) or a GGUF file, in floats
    model: PathBuf,
    /// A preset, or a recipe file (.toml, .yaml)
    #[arg(long)]
    recipe: String,
    /// Where to write: a new folder, or a new file for gguf
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// What to write: compressed-tensors, gptq, awq, gguf, packed
    #[arg(long, default_value = "compressed-tensors")]
    format: String,
    /// Text for calibration, and for the comparison with the model in floats; without it, rounding to nearest is what there is
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The tokenizer, where it does not lie with the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Calibration prompts; replaces the recipe's
    #[arg(long)]
    samples: Option<usize>,
    /// Tokens of a calibration prompt; replaces the recipe's
    #[arg(long)]
    length: Option<usize>,
    /// Which places of the text prompts are taken from; replaces the recipe's
    #[arg(long)]
    seed: Option<u64>,
    /// Where K is no multiple of the group; replaces the recipe's
    #[arg(long, value_enum)]
    on_indivisible: Option<Indivisible>,
    /// The rise of perplexity over the calibration prompts that is accepted, in per cent: the most sensitive matrices fall back
    /// to 8 bits, then to floats, until it is met. Replaces the recipe's
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_ppl_increase: Option<f64>,
    /// Windows at the start of the text that are kept for the comparison
    #[arg(long, default_value_t = 12)]
    windows: usize,
    /// Tokens of a window
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Who multiplies in the comparison
    #[arg(long, value_enum, default_value_t = Via::Kernels)]
    via: Via,
    /// The device of the kernels
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Look for faults only; write nothing
    #[arg(long)]
    check: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Indivisible {
    /// Leave the layer in floats
    Skip,
    /// Add columns of zeros
    Pad,
    /// Take the largest smaller group that divides
    SmallerGroup,
}

impl Quantize {
    fn recipe(&self) -> Result<RecipeFile, Error> {
        let mut recipe = RecipeFile::resolve(&self.recipe)?;
        let how = &mut recipe.calibration;
        how.samples = self.samples.unwrap_or(how.samples);
        how.length = self.length.unwrap_or(how.length);
        how.seed = self.seed.unwrap_or(how.seed);
        if let Some(share) = self.max_ppl_increase {
            match &mut recipe.budget {
                Some(budget) => budget.perplexity_increase = share,
                None => recipe.budget = Some(Budget::new(share)),
            }
        }
        if let Some(what) = self.on_indivisible {
            recipe.on_indivisible = Some(match what {
                Indivisible::Skip => OnIndivisible::Skip,
                Indivisible::Pad => OnIndivisible::Pad,
                Indivisible::SmallerGroup => OnIndivisible::SmallerGroup,
            });
        }
        Ok(recipe)
    }

    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let target = Target::by_name(&self.format)?;
        let recipe = self.recipe()?;
        if self.out.exists() {
            return Err(crate::Failure::invalid(format!("{}: is there already; name a new place", self.out.display())));
        }
        let checkpoint = Checkpoint::open(&self.model)?;
        let plan = Plan::new(&recipe, &checkpoint.sizes(), self.text.is_some())?;
        let ids = match &self.text {
            None => None,
            Some(path) => Some(tokenizer(self.tokenizer.as_deref(), &checkpoint.folder)?.encode(&read_text(path)?)?),
        };
        let bos = checkpoint.config.bos;
        let windows = match &ids {
            Some(ids) if self.windows > 0 => Some(Windows::new(ids, bos, self.window, self.windows)?),
            _ => None,
        };
        let prompts = match &ids {
            Some(ids) => Some(Prompts::new(ids, bos, &recipe.calibration, self.windows * self.window)?),
            None => None,
        };
        for linear in plan.linears.iter().filter(|linear| linear.note.is_some()) {
            writeln!(io.err, "note: {}: {}", linear.name, linear.note.as_deref().unwrap_or_default())?;
        }
        plan.check_weights(&checkpoint)?;
        if self.check {
            writeln!(io.out, "no fault: {} matrices, {} to quantize", plan.linears.len(), quantized(&plan))?;
            return Ok(());
        }
        let floats = Dense { activations: Activations::Floats };
        let started = std::time::Instant::now();
        let mut progress = |done: usize, of: usize| {
            let seconds = started.elapsed().as_secs_f64();
            // Nobody waits for a bar of a second; a layer that takes long says so.
            if seconds > 5.0 && !self.json {
                let _ = writeln!(io.err, "layer {done} of {of} done after {seconds:.0} s");
            }
        };
        let (done, recipe, fell) = match (&recipe.budget, &prompts) {
            (None, _) => {
                let done = quantize(&checkpoint, &recipe, &plan, prompts.as_ref(), &floats, &mut progress)?;
                (done, recipe, None)
            }
            (Some(_), None) => {
                return Err(crate::Failure::invalid(
                    "a budget is measured on calibration prompts; --text names a text",
                ));
            }
            (Some(_), Some(prompts)) => {
                let executor = self.via.executor(&self.device)?;
                let sizes = checkpoint.sizes();
                let Within { quantization, recipe, found } =
                    within_budget(&checkpoint, &recipe, &sizes, prompts, &floats, executor.as_ref(), &mut progress)?;
                if !self.json {
                    say(io, &found, prompts)?;
                }
                (quantization, recipe, Some(found))
            }
        };
        let model: &dyn Layers = &done.model;
        let kv_format = recipe.kv.as_deref().map(kv::format).transpose()?.flatten();
        let kv_static = kv_format.filter(|format| format.k.is_static() || format.v.is_static());
        let kv_scales = match (kv_static, &prompts) {
            (Some(format), Some(prompts)) => Some(kv::calibrate(model, prompts, &floats, &format)?),
            (Some(format), None) => {
                writeln!(io.err, "note: kv {format} takes scales from calibration; without --text there are none")?;
                None
            }
            (None, _) => None,
        };
        let written = export(model, target, &self.out, Some(&checkpoint.folder))?;
        if written.path.is_dir() {
            if let Some(scales) = &kv_scales {
                scales.write(&written.path.join(kv::FILE))?;
            }
            let path = written.path.join(super::report::NOTES);
            let notes = serde_json::to_string(&done.reports).map_err(|error| crate::Failure::Output(error.into()))?;
            crate::files::write(&path, notes)?;
            crate::files::write(&written.path.join(RECIPE), recipe.to_toml()?)?;
        }
        let before: usize = done.reports.iter().map(|r| r.bytes_before).sum();
        let after: usize = done.reports.iter().map(|r| r.bytes_after).sum();
        let mut json = serde_json::json!({
            "out": self.out, "bytes": written.bytes, "matrices_before": before, "matrices_after": after,
            "recipe": recipe, "layers": done.reports, "budget": fell,
        });
        if !self.json {
            write!(io.out, "{}", table(&done.reports))?;
            writeln!(
                io.out,
                "matrices: {} before, {} now; {} written to {}",
                bytes(before as f64),
                bytes(after as f64),
                bytes(written.bytes as f64),
                self.out.display()
            )?;
        }
        if let Some(windows) = &windows {
            let executor = self.via.executor(&self.device)?;
            let caches = match (kv_format, self.via) {
                (Some(format), Via::Kernels) => {
                    let device = Place::running(&self.device)?;
                    Some(PagedCaches::new(device, format, Through::Kernels, self.window + 1, kv_scales)?)
                }
                _ => None,
            };
            let found = with_caches(caches.as_ref(), |cache| {
                compare((&checkpoint, &floats), (model, executor.as_ref()), windows, cache)
            })?;
            json["comparison"] = serde_json::to_value(found).unwrap_or_default();
            if !self.json {
                writeln!(
                    io.out,
                    "perplexity {:.4} before, {:.4} now ({:+.3} ± {:.3} %) over {} windows of {} tokens; mean divergence {:.3e} nats; \
                     same most likely token {:.2} %",
                    found.reference.perplexity,
                    found.model.perplexity,
                    100.0 * found.increase,
                    100.0 * found.increase_error,
                    found.model.windows,
                    found.model.window,
                    found.mean_divergence,
                    100.0 * found.top_1
                )?;
            }
        }
        if self.json {
            io.json(&json)?;
        }
        Ok(())
    }
}

/// The recipe that made a model, beside it.
const RECIPE: &str = "recipe.toml";

/// Per cent, with or without the sign, as a share.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim_end().parse::<f64>();
    match number {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number / 100.0),
        _ => Err("accepted: per cent of perplexity from 0 on, as 0.5 or 0.5%".into()),
    }
}

/// What a budget cost.
fn say(io: &mut Io<'_>, found: &FallBack, prompts: &Prompts) -> Outcome {
    let rise = |c: &bitsmith_calibrate::evaluate::Comparison| {
        format!("{:+.3} ± {:.3} %", 100.0 * c.increase, 100.0 * c.increase_error)
    };
    let (fallen, all) = (found.fallen().len(), found.sweep.iter().map(|s| s.names.len()).sum::<usize>());
    writeln!(
        io.out,
        "budget {:.2} % over {} calibration prompts: {} by the recipe",
        100.0 * found.budget,
        prompts.list.len(),
        rise(&found.before)
    )?;
    if found.fallen().is_empty() {
        writeln!(
            io.out,
            "{}",
            if found.met { "it is met" } else { "it is not met, and nothing is left to fall back to" }
        )?;
        return Ok(());
    }
    let mut table = Table::new(&["most sensitive first", "divergence it costs", "weights", "now"]);
    for entry in &found.sweep {
        let now = if entry.steps > 0 { format!("{}, inputs in floats", entry.format) } else { "by the recipe".into() };
        table.row(vec![entry.names.join(" "), format!("{:.2e}", entry.gain), entry.weights.to_string(), now]);
    }
    write!(io.out, "{table}")?;
    writeln!(
        io.out,
        "{fallen} of {all} matrices fell back: {} with them, for {} instead of {}{}",
        rise(&found.now),
        bytes(found.bytes_now as f64),
        bytes(found.bytes_before as f64),
        if found.met { "" } else { "; the budget is not met, and nothing is left to fall back to" }
    )?;
    Ok(())
}

fn quantized(plan: &Plan) -> usize {
    plan.linears.iter().filter(|linear| linear.format.is_some()).count()
}

fn table(reports: &[LinearReport]) -> Table {
    let mut table = Table::new(&["layer", "NxK", "format", "activations", "method", "weights dB", "outputs dB"]);
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.1}"));
    for r in reports {
        table.row(vec![
            r.name.clone(),
            format!("{}x{}", r.n, r.k),
            r.format.clone(),
            r.activation.clone().unwrap_or("-".into()),
            r.method.map_or("-".into(), |m| format!("{m:?}").to_lowercase()),
            number(r.weight_sqnr),
            number(r.output_sqnr),
        ]);
    }
    table
}
