//! `generate`: the kernels that a model needs under a recipe, as a bundle, each checked and timed on this machine.

mod cache;

use crate::bundle::{self, MANIFEST, Part, Piece};
use crate::failure::Failure;
use crate::measure::{self, Effort, Row, Subject};
use crate::place::Place;
use crate::plan::{Phase, Plan, Planned, Request};
use crate::roofs::{self, Roofs};
use crate::stages::{self, Emit};
use crate::table::bytes;
use crate::tuned::Tuned;
use crate::{Io, Outcome, memory, shapes};
use bitsmith_autotune::table::DeviceName;
use bitsmith_calibrate::recipe::Recipe;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::lower::packing;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::{Compiled, compile};
use bitsmith_runtime::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of weights that decoding cycles through: far above any cache.
const CYCLE: usize = 256 << 20;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub struct Generate {
    /// What is done to the weights and activations; `bitsmith list recipes`
    #[arg(long, value_name = "NAME")]
    recipe: String,
    /// A model (`bitsmith list shapes`), the path of a config.json, or sizes NxK separated by commas
    #[arg(long, value_name = "SHAPES")]
    shapes: String,
    /// Where the kernels run: cpu, cpu:<threads>, vulkan:<index>, or what to make code for: a CPU level, an NVIDIA device (h200) or architecture
    /// (sm_90a), an AMD one (mi300x), vulkan, webgpu; several, separated by commas, make a bundle for all of them
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    device: Vec<String>,
    /// Folder of the bundle; an old bundle there is replaced
    #[arg(long, value_name = "FOLDER", default_value = "target/kernels")]
    out: PathBuf,
    /// Activations other than the recipe's: f16, f32, bf16, int8-token, int8-g128, fp8-token
    #[arg(long, value_name = "ACTIVATION")]
    activation: Option<String>,
    /// Type of results [default: that of the activations, f16 where they are quantized]
    #[arg(long, value_name = "TYPE")]
    result: Option<super::Float>,
    /// Numbers of rows (tokens) to choose schedules for and to measure
    #[arg(long, value_name = "M", value_delimiter = ',', default_values_t = [1, 128], value_parser = super::rows)]
    m: Vec<usize>,
    /// Make the kernels, run nothing
    #[arg(long)]
    no_measure: bool,
    /// Write what was measured to a JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "no_measure")]
    report: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: cache::Cache,
    #[command(flatten)]
    tuned: Tuned,
    #[command(flatten)]
    emit: Emit,
}

/// What `--json` prints and `--report` writes.
#[derive(Serialize)]
struct Summary<'a> {
    recipe: &'a str,
    model: &'a str,
    targets: Vec<&'a str>,
    bundle: String,
    files: usize,
    bytes: usize,
    kernels: Vec<&'a str>,
    /// Where schedules come from: how many kernels by which.
    chosen: &'a [String],
    notes: &'a [String],
    #[serde(skip_serializing_if = "Map::is_empty")]
    stages: Map<String, Value>,
    device: Option<bitsmith_runtime::DeviceInfo>,
    roofs: Option<&'a Roofs>,
    measurements: &'a [Row],
    seconds: f64,
}

impl Generate {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let start = Instant::now();
        let recipe = Recipe::by_name(&self.recipe)?;
        let model = shapes::resolve(&self.shapes)?;
        let places = self.device.iter().map(|name| Place::open(name)).collect::<Result<Vec<Place>, Failure>>()?;
        if let Some(twice) = places.iter().enumerate().find_map(|(i, place)| {
            places[..i].iter().any(|other| other.maker.name() == place.maker.name()).then(|| place.maker.name())
        }) {
            return Err(Failure::invalid(format!("--device names {twice} twice; accepted: each target once")));
        }
        for device in places.iter().filter_map(|place| place.device.as_ref()) {
            io.notes(&device.info())?;
        }
        bundle::check(&self.out)?;
        let mut rows = self.m.clone();
        rows.sort_unstable();
        rows.dedup();
        let tables = self.tuned.tables()?;
        let request = Request {
            recipe,
            model: &model,
            activation: self.activation.as_deref(),
            result: self.result.map(super::Float::dtype),
            rows: &rows,
            tables: &tables,
            device: None,
        };
        let mut sides = Vec::new();
        for (name, place) in self.device.iter().zip(&places) {
            sides.push(self.side(name, place, &request)?);
        }
        let parts: Vec<Part<'_>> = sides
            .iter()
            .map(|side| Part {
                maker: &side.place.maker,
                pieces: side
                    .plan
                    .kernels
                    .iter()
                    .zip(&side.compiled)
                    .map(|(kernel, made)| piece(kernel, made, side.place.target().caps()))
                    .collect(),
                kv: &side.kv.pieces,
            })
            .collect();
        let files = bundle::files(&parts, recipe.name, &model.name)?;
        let mut emitted = Map::new();
        let mut entries = Vec::new();
        for side in &sides {
            for (kernel, made) in side.plan.kernels.iter().zip(&side.compiled) {
                let entry = match sides.len() {
                    1 => made.artifact.entry.clone(),
                    _ => format!("{}/{}", side.place.maker.name(), made.artifact.entry),
                };
                if let Some(stages) = self.emit.of(&kernel.op, &kernel.schedule, made, side.place.target())? {
                    if !self.json {
                        stages::print(io, &entry, &stages)?;
                    }
                    emitted.insert(entry.clone(), Value::Object(stages));
                }
                entries.push(entry);
            }
        }
        for side in &sides {
            for (entry, stages) in &side.kv.stages {
                let entry = match sides.len() {
                    1 => entry.clone(),
                    _ => format!("{}/{entry}", side.place.maker.name()),
                };
                if !self.json {
                    stages::print(io, &entry, stages)?;
                }
                emitted.insert(entry, Value::Object(stages.clone()));
            }
            entries.extend(side.kv.pieces.iter().map(|piece| match sides.len() {
                1 => piece.artifact.entry.clone(),
                _ => format!("{}/{}", side.place.maker.name(), piece.artifact.entry),
            }));
        }
        if let (Some(only), true) = (&self.emit.only, emitted.is_empty()) {
            return Err(Failure::invalid(format!(
                "--only {only}: no kernel has it in its name; there are {}",
                entries.join(", ")
            )));
        }
        // Of several places, at most one is here.
        let here = sides.iter().find_map(|side| Some((side, side.device.as_deref()?)));
        let measured = match here {
            Some((side, device)) => Some(measure_all(device, &side.plan, &side.compiled)?),
            None => None,
        };
        bundle::write(&self.out, &files)?;
        let (roofs, rows) = match &measured {
            Some((roofs, rows)) => (roofs.as_ref(), rows.as_slice()),
            None => (None, [].as_slice()),
        };
        let mut notes: Vec<String> = Vec::new();
        for note in sides.iter().flat_map(|side| &side.plan.notes) {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        let summary = Summary {
            recipe: recipe.name,
            model: &model.name,
            targets: sides.iter().map(|side| side.place.maker.name()).collect(),
            bundle: self.out.display().to_string(),
            files: files.len(),
            bytes: files.iter().map(|(_, bytes)| bytes.len()).sum(),
            kernels: entries.iter().map(String::as_str).collect(),
            chosen: &chosen(&sides),
            notes: &notes,
            stages: emitted,
            device: here.map(|(_, device)| device.info()),
            roofs,
            measurements: rows,
            seconds: start.elapsed().as_secs_f64(),
        };
        if let Some(path) = &self.report {
            write_report(path, &summary)?;
        }
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        let wrong: Vec<&str> = rows.iter().filter(|row| !row.check.passed()).map(|row| row.entry.as_str()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(Failure::Found(format!("out of bounds: {}", wrong.join(", ")))) }
    }
}

/// What is made for one of the devices.
struct Side<'a> {
    place: &'a Place,
    plan: Plan,
    compiled: Vec<Compiled>,
    /// Kernels of KV caches.
    kv: cache::Kernels,
    /// Where it is measured.
    device: Option<Arc<dyn Device>>,
}

impl Generate {
    /// Plans and compiles for one device, and makes sure that there is memory to measure with.
    fn side<'a>(&self, name: &str, place: &'a Place, request: &Request<'_>) -> Result<Side<'a>, Failure> {
        let device = place.device.as_ref().map(|device| DeviceName::of(&device.info()));
        let mut plan = Plan::new(&Request { device, ..request.clone() }, place.target().caps())?;
        let device = if self.no_measure { None } else { place.device.clone() };
        if device.is_some() {
            for kernel in plan.kernels.iter().filter(|kernel| worth_measuring(kernel, &plan)) {
                let needed = kernel.rows.iter().map(|&m| measure::memory(&kernel.op, m, CYCLE)).fold(0.0, f64::max);
                let what = format!("measuring {} of {}", stages::describe(&kernel.op), kernel.layers);
                memory::check(&what, needed, "take smaller --shapes or --m, or pass --no-measure")?;
            }
        } else if !self.no_measure {
            plan.notes.push(format!("{name} is generated for, not run on: nothing is measured"));
        }
        let compiled = plan
            .kernels
            .iter()
            .map(|kernel| Ok(compile(&kernel.op, &kernel.schedule, place.target())?))
            .collect::<Result<Vec<Compiled>, Failure>>()?;
        let result = self.result.map_or(DType::F16, super::Float::dtype);
        let kv = self.cache.kernels(request.model, result, place.target(), &self.emit)?;
        if !kv.pieces.is_empty() && device.is_some() {
            plan.notes.push("kernels of the KV cache are not measured here; `bench attend` does it".into());
        }
        Ok(Side { place, plan, compiled, kv, device })
    }
}

/// Where the schedules of matmuls come from, in lines.
fn chosen(sides: &[Side<'_>]) -> Vec<String> {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for kernel in sides.iter().flat_map(|side| &side.plan.kernels) {
        if matches!(kernel.op, Op::Matmul(_)) {
            *counts.entry(&kernel.chosen_by).or_default() += 1;
        }
    }
    counts.iter().map(|(by, count)| format!("{count} matmuls scheduled by: {by}")).collect()
}

fn piece<'a>(kernel: &'a Planned, made: &'a Compiled, caps: &Caps) -> Piece<'a> {
    Piece {
        op: &kernel.op,
        schedule: &kernel.schedule,
        packing: packing(&kernel.op, &kernel.schedule, caps),
        artifact: &made.artifact,
        layers: &kernel.layers,
        rows: &kernel.rows,
        chosen_by: &kernel.chosen_by,
    }
}

/// Measures every kernel with every number of rows that it was chosen for, kernels of the same operation one after the
/// other, since they share the weights.
fn measure_all(device: &dyn Device, plan: &Plan, compiled: &[Compiled]) -> Result<(Option<Roofs>, Vec<Row>), Failure> {
    let before = roofs::measure(device, CYCLE)?;
    let mut jobs: Vec<(&Planned, &Compiled, usize)> = plan
        .kernels
        .iter()
        .zip(compiled)
        .filter(|(kernel, _)| worth_measuring(kernel, plan))
        .flat_map(|(kernel, made)| kernel.rows.iter().map(move |&m| (kernel, made, m)))
        .collect();
    let first = |op: &Op| plan.kernels.iter().position(|kernel| kernel.op == *op);
    jobs.sort_by_key(|(kernel, ..)| first(&kernel.op));
    let bar = ProgressBar::new(jobs.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    let (mut rows, mut last) = (Vec::new(), None);
    // A model of many sizes should not take minutes.
    let budget = Duration::from_millis(if jobs.len() > 20 { 100 } else { 250 });
    for (seed, (kernel, made, m)) in jobs.into_iter().enumerate() {
        bar.set_message(format!("{} m={m}", kernel.layers));
        let subject = Subject {
            op: &kernel.op,
            schedule: &kernel.schedule,
            artifact: &made.artifact,
            layers: &kernel.layers,
            m,
            seed: seed as u64,
        };
        rows.push(measure::measure(device, &subject, &mut last, None, None, Effort { budget, cycle: CYCLE })?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    rows.sort_by_key(|row| row.phase);
    let after = roofs::measure(device, CYCLE)?;
    let roofs = before.zip(after).map(|(before, after)| before.higher(&after));
    let op = |row: &Row| {
        let at = compiled.iter().position(|made| made.artifact.entry == row.entry)?;
        plan.kernels.get(at).map(|kernel| kernel.op)
    };
    if let Some(roofs) = &roofs {
        measure::set_roofs(&mut rows, op, roofs);
    }
    Ok((roofs, rows))
}

/// Largest matrix whose decoding is measured.
const DEQUANT_MOST: usize = 1 << 27;

/// The decoding of whole matrices is for checks and conversions, not for inference: it is measured on the smallest matrix
/// of each format, and on none that takes gigabytes.
fn worth_measuring(kernel: &Planned, plan: &Plan) -> bool {
    let Op::Dequant(own) = &kernel.op else { return true };
    let smallest = plan.kernels.iter().all(|other| match &other.op {
        Op::Dequant(other) => other.weight != own.weight || other.n * other.k >= own.n * own.k,
        _ => true,
    });
    smallest && own.n * own.k <= DEQUANT_MOST
}

fn write_report(path: &Path, summary: &Summary<'_>) -> Outcome {
    let text = serde_json::to_string_pretty(summary).map_err(|error| Failure::Output(error.into()))?;
    std::fs::write(path, text + "\n").map_err(|error| Failure::file(path, "written", &error))
}

fn print(io: &mut Io<'_>, summary: &Summary<'_>) -> Outcome {
    for (phase, title) in [
        (Phase::Prefill, "Prefill (many rows; roof: arithmetic on 128-bit registers)"),
        (Phase::Decode, "Decode (few rows, cold weights; roof: memory reads)"),
        (Phase::Quantize, "Quantization of activations"),
        (Phase::Dequant, "Decoding of weights (smallest matrix of a format)"),
    ] {
        let table = measure::table(summary.measurements.iter(), phase);
        if !table.is_empty() {
            writeln!(io.out, "{title}\n{table}")?;
        }
    }
    match (&summary.device, &summary.roofs) {
        (Some(device), Some(roofs)) => writeln!(io.out, "{}; {}", device.model, roofs.describe())?,
        (Some(device), None) => writeln!(io.out, "{} ({}); its roofs are not measured", device.model, device.target)?,
        (None, _) => {}
    }
    for line in summary.chosen {
        writeln!(io.out, "{line}")?;
    }
    for note in summary.notes {
        writeln!(io.out, "note: {note}")?;
    }
    writeln!(
        io.out,
        "{} kernels for {} in {}: {} files, {}, described by {MANIFEST}; {:.1} s",
        summary.kernels.len(),
        summary.targets.join(", "),
        summary.bundle,
        summary.files,
        bytes(summary.bytes as f64),
        summary.seconds
    )?;
    Ok(())
}
