//! `run`: one operation on a tensor of a model file, compared with the reference.

use crate::failure::Failure;
use crate::measure;
use crate::place::Place;
use crate::plan::quantize_for;
use crate::stages::{self, Emit};
use crate::table::Table;
use crate::{Io, Outcome, memory};
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Report};
use bitsmith_calibrate::file::{FileType, GgufType, ModelFile, Tensor};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{Format, Part, PartType, Quantized, Scale, Zero};
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Op};
use bitsmith_compiler::{Error, compile, lower};
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
        let file = ModelFile::open(&self.weights)?;
        let tensor = file.tensor(&self.tensor)?;
        let (n, k) = matrix(&tensor)?;
        let plan = self.operation(n, k, weight(&tensor, format)?, activation)?;
        for &m in &self.m {
            let needed = measure::memory(&plan, m, 0) + 8.0 * n as f64 * k as f64;
            memory::check(&stages::describe(&plan), needed, "take a smaller tensor or --m")?;
        }
        let weights = if self.op == Which::Quantize { None } else { Some(load(&tensor, n, k, format)?) };
        let stored_as = tensor.dtype.name().into_owned();
        let format = weight(&tensor, format)?.to_string();
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

/// The sizes of a tensor, which must be a matrix.
fn matrix(tensor: &Tensor<'_>) -> Result<(usize, usize), Failure> {
    match tensor.shape {
        &[n, k] => Ok((n, k)),
        shape => Err(Failure::invalid(format!("tensor `{}` has the shape {shape:?}; accepted: [N, K]", tensor.name))),
    }
}

/// The GGUF type of a tensor that is quantized in its file.
fn blocks(tensor: &Tensor<'_>) -> Option<GgufType> {
    match tensor.dtype {
        FileType::Gguf(GgufType::F32 | GgufType::F16 | GgufType::BF16 | GgufType::F64) => None,
        FileType::Gguf(kind) => Some(kind),
        FileType::SafeTensors(_) => None,
    }
}

/// The format of a tensor: its own, or the one to quantize it to.
fn weight(tensor: &Tensor<'_>, format: Option<Format>) -> Result<Format, Failure> {
    let Some(kind) = blocks(tensor) else {
        return format.ok_or_else(|| {
            Failure::invalid(format!(
                "tensor `{}` is {}; --format says what to quantize it to, int4-g32 for instance",
                tensor.name,
                tensor.dtype.name()
            ))
        });
    };
    let own = Format::ALL.iter().find(|named| named.name.eq_ignore_ascii_case(kind.name())).ok_or_else(|| {
        let known = |kind: &&GgufType| Format::ALL.iter().any(|named| named.name.eq_ignore_ascii_case(kind.name()));
        let names: Vec<&str> = GgufType::ALL.iter().filter(known).map(|kind| kind.name()).collect();
        Error::Unsupported(format!(
            "tensor `{}` is {kind}; accepted: F32, F16, BF16, {}",
            tensor.name,
            names.join(", ")
        ))
    })?;
    match format {
        Some(format) if format != own.format => Err(Failure::invalid(format!(
            "tensor `{}` is {kind} already; --format {format} is for float tensors",
            tensor.name
        ))),
        _ => Ok(own.format),
    }
}

/// The weights of a tensor, quantized now if its file has floats.
fn load(tensor: &Tensor<'_>, n: usize, k: usize, format: Option<Format>) -> Result<Quantized, Failure> {
    let format = weight(tensor, format)?;
    let named = |error: Error| match error {
        Error::Invalid(faults) => {
            Error::Invalid(faults.iter().map(|fault| format!("tensor `{}`: {fault}", tensor.name)).collect())
        }
        other => other,
    };
    if blocks(tensor).is_none() {
        return Ok(format.encode(&tensor.to_f32()?, n, k, None).map_err(named)?);
    }
    let part = Part {
        name: "blocks",
        dtype: PartType::U8,
        shape: vec![n, tensor.data.len() / n],
        bytes: tensor.data.to_vec(),
    };
    let weights = (format.container.unpack)(&format, n, k, &[part]).map_err(named)?;
    finite(&weights)
        .then_some(weights)
        .ok_or_else(|| Failure::invalid(format!("tensor `{}`: a scale is not a finite number", tensor.name)))
}

/// Whether every scale is a number that a sum can take.
fn finite(weights: &Quantized) -> bool {
    let all = |dtype: DType, raw: &[u32]| raw.iter().all(|&raw| dtype.decode(raw).is_finite());
    let level = |scale: &Scale, inner: &[u32], outer: &[u32]| {
        all(scale.dtype, inner) && scale.outer.is_none_or(|level| all(level.dtype, outer))
    };
    let zeros = match &weights.format.zero {
        Zero::Offset { scale, .. } => level(scale, &weights.zeros, &weights.zeros_outer),
        Zero::Float(dtype) => all(*dtype, &weights.zeros),
        Zero::None | Zero::Bias(_) | Zero::Int(_) => true,
    };
    zeros && level(&weights.format.scale, &weights.scales, &weights.outer)
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
            format!("{:.3}", result.check.worst_ratio),
            if result.passed { "ok".into() } else { "WRONG".into() },
            result.entry.clone(),
        ]);
    }
    write!(io.out, "{table}")?;
    Ok(())
}
