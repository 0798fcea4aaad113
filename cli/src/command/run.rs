//! `run`: one operation on a tensor of a model file, compared with the reference.

use crate::failure::Failure;
use crate::measure;
use crate::place::Place;
use crate::plan::quantize_for;
use crate::stages::{self, Emit};
use crate::table::{Table, ratio};
use crate::{Io, Outcome, memory, weights};
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Report};
use bitsmith_calibrate::file::ModelFile;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Op};
use bitsmith_compiler::{compile, lower};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// What to run
    op: Which,
    /// A GGUF or safetensors file, or a folder of them
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Name of the tensor; `bitsmith inspect FILE` lists them
    #[arg(long, value_name = "NAME")]
    tensor: String,
    /// Format to quantize a float tensor to; a quantized tensor has its own
    #[arg(long)]
    format: Option<String>,
    /// How activations come
    #[arg(long, default_value = "f32")]
    activation: String,
    /// Type of results, and of activations before they are quantized
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    result: super::Float,
    /// Numbers of rows
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_parser = super::rows)]
    m: Vec<usize>,
    /// Where it runs
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seed of the activations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    emit: Emit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Activations times the tensor
    Matmul,
    /// The tensor in numbers
    Dequant,
    /// The quantization of activations that a matmul with the tensor needs
    Quantize,
}

#[derive(Serialize)]
struct Summary {
    op: String,
    tensor: String,
    stored_as: String,
    format: String,
    device: String,
    results: Vec<Verdict>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    stages: Map<String, Value>,
}

/// The verdict for one number of rows.
#[derive(Serialize)]
struct Verdict {
    m: usize,
    entry: String,
    check: Report,
    passed: bool,
}

impl Run {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let activation: Activation = self.activation.parse()?;
        let format: Option<Format> = self.format.as_deref().map(str::parse).transpose()?;
        let device = Place::running(&self.device)?;
        io.notes(&device.info())?;
        let file = ModelFile::open(&self.weights)?;
        let tensor = file.tensor(&self.tensor)?;
        let (n, k) = weights::matrix(&tensor)?;
        let plan = self.operation(n, k, weights::format(&tensor, format)?, activation)?;
        for &m in &self.m {
            let needed = measure::memory(&plan, m, 0) + 8.0 * n as f64 * k as f64;
            memory::check(&stages::describe(&plan), needed, "take a smaller tensor or --m")?;
        }
        let weights = if self.op == Which::Quantize { None } else { Some(weights::load(&tensor, n, k, format)?) };
        let stored_as = tensor.dtype.name().into_owned();
        let format = weights::format(&tensor, format)?.to_string();
        let mut summary = Summary {
            op: stages::describe(&plan),
            tensor: self.tensor.clone(),
            stored_as,
            format,
            device: device.info().target,
            results: Vec::new(),
            stages: Map::new(),
        };
        // A whole matrix is decoded once, whatever the number of rows.
        let rows = if self.op == Which::Dequant { &[1][..] } else { &self.m[..] };
        for &m in rows {
            let schedule = lower::choose(&plan, device.caps(), m)?;
            let made = compile(&plan, &schedule, device.target())?;
            let entry = made.artifact.entry.clone();
            if let Some(emitted) = self.emit.of(&plan, &schedule, &made, device.target())?
                && !summary.stages.contains_key(&entry)
            {
                if !self.json {
                    stages::print(io, &entry, &emitted)?;
                }
                summary.stages.insert(entry.clone(), Value::Object(emitted));
            }
            let problem = Problem::with_weights(&plan, m, weights.clone(), self.seed)?;
            let prepared = Prepared::new(&*device, &problem, &made.artifact, &schedule, 1)?;
            let check = measure::checked(&prepared, &problem)?;
            summary.results.push(Verdict { m, entry, passed: check.passed(), check });
        }
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        match summary.results.iter().find(|result| !result.passed) {
            None => Ok(()),
            Some(result) => Err(Failure::Found(format!(
                "{} with {} rows is out of bounds: {}",
                result.entry,
                result.m,
                result.check.first_wrong.as_deref().unwrap_or("nothing was compared")
            ))),
        }
    }

    fn operation(&self, n: usize, k: usize, weight: Format, activation: Activation) -> Result<Op, Failure> {
        let out = self.result.dtype();
        let matmul = Matmul { n, k, weight, activation, out, epilogue: Epilogue::default() };
        let op = match self.op {
            Which::Matmul => Op::Matmul(matmul),
            Which::Dequant => Op::Dequant(Dequant { n, k, weight, out }),
            Which::Quantize => {
                Op::Matmul(matmul).checked()?;
                Op::Quantize(quantize_for(&matmul, out).ok_or_else(|| {
                    Failure::invalid(format!(
                        "--activation {activation}: nothing to quantize; accepted: int8 and fp8 activations"
                    ))
                })?)
            }
        };
        Ok(op.checked()?)
    }
}

fn print(io: &mut Io<'_>, summary: &Summary) -> Outcome {
    writeln!(io.out, "{} ({}) on {}\n{}", summary.tensor, summary.stored_as, summary.device, summary.op)?;
    let mut table = Table::new(&["M", "compared", "max error", "bound", "error/bound", "verdict", "kernel"]);
    for result in &summary.results {
        table.row(vec![
            result.m.to_string(),
            result.check.compared.to_string(),
            format!("{:.2e}", result.check.max_error),
            format!("{:.2e}", result.check.bound),
            ratio(result.check.worst_ratio),
            if result.passed { "ok".into() } else { "WRONG".into() },
            result.entry.clone(),
        ]);
    }
    write!(io.out, "{table}")?;
    Ok(())
}
