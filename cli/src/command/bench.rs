//! `bench`: one matmul, timed for every number of rows and threads, against roofs measured in the same run.

mod attend;

use crate::failure::Failure;
use crate::forced;
use crate::measure::{self, Effort, Row, Subject};
use crate::place::Place;
use crate::plan::{DECODE_ROWS, Phase, quantize_for};
use crate::roofs::{self, Roofs};
use crate::stages::{self, Emit};
use crate::tuned::Tuned;
use crate::{Io, Outcome, memory};
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::Problem;
use bitsmith_autotune::table::DeviceName;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{compile, lower};
use bitsmith_runtime::DeviceInfo;
use bitsmith_runtime::roofs::Reader;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    other: Option<Other>,
    /// Format of the weights; `bitsmith list formats`
    #[arg(long, default_value = "int4-g32")]
    format: String,
    /// How activations come; `bitsmith list activations`
    #[arg(long, default_value = "int8-token")]
    activation: String,
    /// Type of results
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    result: super::Float,
    /// Output features
    #[arg(short, long, default_value_t = 4096)]
    n: usize,
    /// Input features
    #[arg(short, long, default_value_t = 4096)]
    k: usize,
    /// Numbers of rows (tokens)
    #[arg(short, long, value_delimiter = ',', default_values_t = [1, 128], value_parser = super::rows)]
    m: Vec<usize>,
    /// Numbers of threads [default: those of the device]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Where it runs
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Megabytes of weights to cycle through while decoding; 0 keeps them in the caches
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    cycle_mb: u64,
    /// Count the quantization of the activations into the time
    #[arg(long)]
    activation_quantization: bool,
    /// Milliseconds to sample each kernel for
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    budget_ms: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Measure this schedule instead of the one that is chosen: a family, then what is not 1, such as
    /// `panel tile_m=64,tile_n=128,unroll=4,threads=256`; several times for several
    #[arg(long, value_name = "FAMILY NAME=NUMBER,…")]
    schedule: Vec<String>,
    #[command(flatten)]
    tuned: Tuned,
    #[command(flatten)]
    emit: Emit,
}

/// What else can be timed.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Time attention over a quantized KV cache, decoding and prefill apart
    Attend(attend::BenchAttend),
}

#[derive(Serialize)]
struct Summary {
    op: String,
    activation_quantization: bool,
    device: DeviceInfo,
    roofs: Vec<Roofs>,
    measurements: Vec<Row>,
    /// Where schedules come from.
    chosen: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    stages: Map<String, Value>,
}

impl Bench {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        if let Some(Other::Attend(attend)) = &self.other {
            return attend.run(io);
        }
        let weight: Format = self.format.parse()?;
        let activation: Activation = self.activation.parse()?;
        let result = self.result.dtype();
        let matmul = Matmul { n: self.n, k: self.k, weight, activation, out: result, epilogue: Epilogue::default() };
        let op = Op::Matmul(matmul).checked()?;
        let cycle = (self.cycle_mb as usize) << 20;
        for &m in &self.m {
            let what = format!("{} with {m} rows", stages::describe(&op));
            memory::check(&what, measure::memory(&op, m, cycle), "take smaller sizes or --cycle-mb")?;
        }
        let quantize = quantize_for(&matmul, result).map(Op::Quantize);
        if self.activation_quantization && quantize.is_none() {
            return Err(Failure::invalid(format!(
                "--activation-quantization: activations are {activation}; accepted: int8 and fp8 activations"
            )));
        }
        let devices = devices(&self.device, &self.threads)?;
        io.notes(&devices[0].info())?;
        let mut summary = Summary {
            op: stages::describe(&op),
            activation_quantization: self.activation_quantization,
            device: devices[0].info(),
            roofs: Vec::new(),
            measurements: Vec::new(),
            chosen: Vec::new(),
            stages: Map::new(),
        };
        let effort = Effort { budget: Duration::from_millis(self.budget_ms), cycle };
        let mut last = None;
        let tables = self.tuned.tables()?;
        let forced = self.schedule.iter().map(|text| forced::schedule(text)).collect::<Result<Vec<_>, _>>()?;
        let forced: Vec<Option<Schedule>> =
            if forced.is_empty() { vec![None] } else { forced.into_iter().map(Some).collect() };
        for device in &devices {
            let footprint = cycle.max(256 << 20);
            let (roofs_before, first) = (roofs::measure(&**device, footprint)?, summary.measurements.len());
            // A plain reading beside what memory bounds, where weights come from memory.
            let decodes = self.m.iter().any(|&m| m <= DECODE_ROWS);
            let reads = cycle > 0 && decodes && takes_threads(&self.device);
            let reader = reads.then(|| Reader::new(footprint, footprint, device.info().threads));
            let mut reader = reader.transpose()?;
            for (&m, &forced) in self.m.iter().flat_map(|m| forced.iter().map(move |forced| (m, forced))) {
                let name = DeviceName::of(&device.info());
                let (schedule, source) = match forced {
                    Some(schedule) => (schedule, "--schedule".to_string()),
                    None => {
                        let (schedule, source) = tables.choose(&op, device.caps(), Some(&name), m)?;
                        (schedule, source.to_string())
                    }
                };
                let line = format!("M={m}, {} threads: {source}", name.threads);
                summary.chosen.push(line);
                let made = compile(&op, &schedule, device.target())?;
                if let Some(emitted) = self.emit.of(&op, &schedule, &made, device.target())?
                    && !summary.stages.contains_key(&made.artifact.entry)
                {
                    if !self.json {
                        stages::print(io, &made.artifact.entry, &emitted)?;
                    }
                    summary.stages.insert(made.artifact.entry.clone(), Value::Object(emitted));
                }
                let before = match &quantize {
                    Some(op) if self.activation_quantization => {
                        let schedule = lower::choose(op, device.caps(), m)?;
                        let made = compile(op, &schedule, device.target())?;
                        let problem = Problem::random(op, m, self.seed)?;
                        Some(Prepared::new(&**device, &problem, &made.artifact, &schedule, 1)?)
                    }
                    _ => None,
                };
                let layers = if before.is_some() { "quantize+matmul" } else { "matmul" };
                let artifact = &made.artifact;
                let subject = Subject { op: &op, schedule: &schedule, artifact, layers, m, seed: self.seed };
                let row = measure::measure(&**device, &subject, &mut last, before.as_ref(), reader.as_mut(), effort)?;
                summary.measurements.push(row);
            }
            if let (Some(before), Some(after)) = (roofs_before, roofs::measure(&**device, footprint)?) {
                let roofs = before.higher(&after);
                measure::set_roofs(&mut summary.measurements[first..], |_| Some(op), &roofs);
                summary.roofs.push(roofs);
            }
        }
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        match summary.measurements.iter().find(|row| !row.check.passed()) {
            None => Ok(()),
            Some(row) => Err(Failure::Found(format!(
                "{} with {} rows is out of bounds: {}",
                row.entry,
                row.m,
                row.check.first_wrong.as_deref().unwrap_or("nothing was compared")
            ))),
        }
    }
}

/// Whether a device is this machine's processor, with as many threads as are asked for.
fn takes_threads(device: &str) -> bool {
    matches!(device, "cpu" | "cpu+clif")
}

/// A device, once for each number of threads where any is given.
fn devices(device: &str, threads: &[u32]) -> Result<Vec<std::sync::Arc<dyn bitsmith_runtime::Device>>, Failure> {
    if threads.is_empty() {
        return Ok(vec![Place::running(device)?]);
    }
    if !takes_threads(device) {
        return Err(Failure::invalid(format!("--threads with device `{device}`; accepted: cpu, cpu+clif")));
    }
    threads.iter().map(|threads| Place::running(&format!("{device}:{threads}"))).collect()
}

fn print(io: &mut Io<'_>, summary: &Summary) -> Outcome {
    writeln!(io.out, "{}\n{} ({})", summary.op, summary.device.model, summary.device.target)?;
    for roofs in &summary.roofs {
        writeln!(io.out, "{}", roofs.describe())?;
    }
    for (phase, title) in [(Phase::Prefill, "Prefill"), (Phase::Decode, "Decode")] {
        let table = measure::table(summary.measurements.iter(), phase);
        if !table.is_empty() {
            writeln!(io.out, "\n{title}\n{}", table.to_string().trim_end())?;
        }
    }
    for line in summary.chosen.iter().filter(|line| !line.ends_with(": chooser")) {
        writeln!(io.out, "{line}")?;
    }
    Ok(())
}
