//! `tune groups`: speed against error over group sizes and symmetry, per layer of a model, and the group size to take.

use super::Timed;
use crate::failure::Failure;
use crate::stages::describe_schedule;
use crate::table::{Table as Columns, time};
use crate::{Io, Outcome};
use bitsmith_autotune::ceiling::Ceiling;
use bitsmith_autotune::groups::{Point, front, recommend};
use bitsmith_autotune::key::Key;
use bitsmith_autotune::measure::{DeviceBench, Slice};
use bitsmith_autotune::report::{Page, svg};
use bitsmith_autotune::search::{self, Effort, Space};
use bitsmith_calibrate::collect::read_layer;
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::{Linear, Weight};
use bitsmith_compiler::format::{Format, Quantized};
use bitsmith_compiler::lower;
use bitsmith_compiler::schedule::Schedule;
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `tune groups`.
#[derive(Debug, clap::Args)]
pub struct Groups {
    /// A model folder or a GGUF file, with weights in floats
    model: PathBuf,
    /// Statistics of `bitsmith calibrate`: errors count by how much flows through their column
    #[arg(long, value_name = "FOLDER")]
    statistics: Option<PathBuf>,
    /// Code of the weights: int2 to int8, nf4 …
    #[arg(long, default_value = "int4")]
    code: String,
    /// Group sizes; `channel` for one per row
    #[arg(long, value_delimiter = ',', default_values_t = ["16", "32", "64", "128", "256", "channel"].map(String::from))]
    groups: Vec<String>,
    /// What follows the group in the format's name, such as `asym` or `fp8`; an empty word for nothing
    #[arg(long, value_delimiter = ',', default_values_t = ["", "asym"].map(String::from))]
    modifiers: Vec<String>,
    /// How activations come
    #[arg(long, default_value = "f16")]
    activation: String,
    /// Rows (tokens) that speed is measured with
    #[arg(short, long, default_value_t = 1, value_parser = super::super::rows)]
    m: usize,
    /// Largest relative error of a layer's weights (root mean square) that is accepted
    #[arg(long, default_value_t = 0.1)]
    max_error: f64,
    /// Only layers whose name holds this
    #[arg(long, value_name = "SUBSTRING")]
    only: Option<String>,
    /// Where speed is measured
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Seconds of measuring per format and size
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Write a page with a plot per layer
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What was found for a layer.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    n: usize,
    k: usize,
    points: Vec<Point>,
    /// Format to take under the budget; absent where none is good enough.
    recommended: Option<String>,
}

impl Groups {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        if !(self.max_error > 0.0 && self.max_error.is_finite() && self.seconds > 0.0 && self.seconds <= 3600.0) {
            return Err(Failure::invalid("--max-error and --seconds; accepted: above 0, seconds up to 3600"));
        }
        let checkpoint = Checkpoint::open(&self.model)?;
        let model = checkpoint.model()?;
        let linears: Vec<&Linear> = model
            .linears()
            .into_iter()
            .filter(|linear| self.only.as_ref().is_none_or(|only| linear.name.contains(only.as_str())))
            .collect();
        if linears.is_empty() {
            return Err(Failure::invalid(format!("{}: no layer is wanted", self.model.display())));
        }
        let timed = Timed::open(&self.device)?;
        let bar = ProgressBar::new(linears.len() as u64);
        let mut speeds: BTreeMap<(String, usize, usize), (f64, Schedule)> = BTreeMap::new();
        let mut layers = Vec::new();
        for linear in linears {
            bar.set_message(linear.name.clone());
            let Weight::Floats(floats) = &linear.weight else {
                return Err(Failure::invalid(format!(
                    "layer {}: its weights are quantized already; accepted: a model in floats",
                    linear.name
                )));
            };
            let importance = match &self.statistics {
                Some(folder) => Some(importance(folder, linear)?),
                None => None,
            };
            let values = &floats.values;
            let mut points = Vec::new();
            for (text, format) in self.formats(linear.k)? {
                let quantized = format.encode(values, linear.n, linear.k, importance.as_deref())?;
                let error = relative_error(&quantized, values, importance.as_deref());
                let key = (text.clone(), linear.n, linear.k);
                let speed = match speeds.get(&key) {
                    Some(speed) => *speed,
                    None => {
                        let speed = self.speed(&timed, &text, linear)?;
                        speeds.insert(key, speed);
                        speed
                    }
                };
                let bits = quantized_bits(&quantized);
                points.push(Point {
                    format: text,
                    error,
                    seconds: speed.0,
                    schedule: speed.1,
                    bits_per_weight: bits,
                    front: false,
                });
            }
            if points.is_empty() {
                return Err(Failure::invalid(format!(
                    "layer {}: none of the group sizes {} divides its {} columns; accepted: others in --groups",
                    linear.name,
                    self.groups.join(", "),
                    linear.k
                )));
            }
            front(&mut points);
            let recommended = recommend(&points, self.max_error).map(|p| p.format.clone());
            layers.push(Layer { name: linear.name.clone(), n: linear.n, k: linear.k, points, recommended });
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(path) = &self.report {
            crate::files::write(path, &self.page(&layers, checkpoint.name()).html()?)?;
        }
        if self.json { io.json(&layers) } else { self.print(io, &layers) }
    }

    /// The formats that fit `k` columns.
    fn formats(&self, k: usize) -> Result<Vec<(String, Format)>, Failure> {
        let mut list = Vec::new();
        for modifier in &self.modifiers {
            for group in &self.groups {
                let size = match group.as_str() {
                    "channel" => k,
                    digits => digits.parse().ok().filter(|g| (1..=1 << 20).contains(g)).ok_or_else(|| {
                        Failure::invalid(format!("group size `{group}`; accepted: a number or `channel`"))
                    })?,
                };
                // A group as wide as the row is the channel itself.
                if !k.is_multiple_of(size) || size == k && group != "channel" {
                    continue;
                }
                let granularity = if group == "channel" { "channel".to_string() } else { format!("g{group}") };
                let hyphen = if modifier.is_empty() { "" } else { "-" };
                let text = format!("{}-{granularity}{hyphen}{modifier}", self.code);
                let format = text.parse()?;
                list.push((text, format));
            }
        }
        Ok(list)
    }

    /// Seconds of the best schedule for a format and a layer's size.
    fn speed(&self, timed: &Timed, format: &str, linear: &Linear) -> Result<(f64, Schedule), Failure> {
        let activation = self.activation.clone();
        let out = if activation.starts_with("f16") || activation.starts_with("bf16") || activation.starts_with("f32") {
            activation.clone()
        } else {
            "f16".into()
        };
        let key = Key {
            weight: format.into(),
            activation,
            out,
            epilogue: String::new(),
            k: linear.k,
            n: linear.n,
            m: self.m,
        };
        let (device, op) = (&*timed.device, key.op()?);
        let points = search::points(&op, device.caps(), key.m)?;
        let ceiling = Ceiling::guess().over(&op);
        let space = Space::new(&key, &op, device.caps(), &ceiling, device.info().threads, &points);
        let chooser = lower::choose(&op, device.caps(), key.m)?;
        let slice = Slice { columns: key.n, rows: key.m, cycle: 64 << 20 };
        let mut bench = DeviceBench::new(device, &*timed.clock, &key, slice, None)?;
        let effort = Effort { seconds: self.seconds, ..Effort::default() };
        let outcome = search::search(&space, &chooser, &[], &mut bench, effort, 1, &mut ())?;
        Ok((outcome.seconds, outcome.best))
    }

    fn print(&self, io: &mut Io<'_>, layers: &[Layer]) -> Outcome {
        let mut columns = Columns::new(&["layer", "NxK", "format", "bits", "error", "time", "schedule", ""]);
        for layer in layers {
            for point in &layer.points {
                let mark = match (layer.recommended.as_ref() == Some(&point.format), point.front) {
                    (true, _) => "recommended",
                    (false, true) => "front",
                    (false, false) => "",
                };
                columns.row(vec![
                    layer.name.clone(),
                    format!("{}x{}", layer.n, layer.k),
                    point.format.clone(),
                    format!("{:.2}", point.bits_per_weight),
                    format!("{:.4}", point.error),
                    time(point.seconds),
                    describe_schedule(&point.schedule),
                    mark.into(),
                ]);
            }
        }
        writeln!(io.out, "{columns}")?;
        let none: Vec<&str> = layers.iter().filter(|l| l.recommended.is_none()).map(|l| l.name.as_str()).collect();
        if !none.is_empty() {
            writeln!(io.out, "no format stays below {}: {}", self.max_error, none.join(", "))?;
        }
        Ok(())
    }

    fn page(&self, layers: &[Layer], model: &str) -> Page {
        let series: Vec<String> = self
            .modifiers
            .iter()
            .map(|m| if m.is_empty() { format!("{}, symmetric", self.code) } else { format!("{}, {m}", self.code) })
            .collect();
        let plot = |layer: &Layer| {
            let dots: Vec<svg::Dot> = layer
                .points
                .iter()
                .map(|p| {
                    let modifier = self.modifiers.iter().rposition(|m| m.is_empty() || p.format.ends_with(m.as_str()));
                    let words: Vec<&str> = p.format.split('-').collect();
                    svg::Dot {
                        x: p.seconds * 1e6,
                        y: p.error,
                        label: words.get(1).copied().unwrap_or_default().to_string(),
                        series: modifier.unwrap_or(0),
                        front: p.front,
                        chosen: layer.recommended.as_ref() == Some(&p.format),
                    }
                })
                .collect();
            let axes = ("microseconds per launch", "relative error of the weights");
            svg::pareto(
                &format!("{} ({}x{})", layer.name, layer.n, layer.k),
                axes,
                &series,
                &dots,
                Some(self.max_error),
            )
        };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in layers {
            *counts.entry(layer.recommended.as_deref().unwrap_or("none is good enough")).or_default() += 1;
        }
        Page {
            title: format!("Group sizes for {model}"),
            verdict: counts.iter().map(|(f, n)| format!("{f} for {n} layers")).collect::<Vec<_>>().join(", "),
            about: format!(
                "Each point is a format: its error on the layer's own weights{} against the time of the best schedule found \
                 for it with M={} on {}. Recommended is the fastest within the error budget of {}.",
                if self.statistics.is_some() { ", weighed by what flows through each column" } else { "" },
                self.m,
                self.device,
                self.max_error
            ),
            facts: Vec::new(),
            pictures: layers.iter().map(plot).collect(),
            head: ["layer", "format", "bits per weight", "error", "microseconds", "schedule", ""]
                .map(String::from)
                .to_vec(),
            rows: layers
                .iter()
                .flat_map(|layer| {
                    layer.points.iter().map(|p| {
                        vec![
                            layer.name.clone(),
                            p.format.clone(),
                            format!("{:.2}", p.bits_per_weight),
                            format!("{:.4}", p.error),
                            format!("{:.2}", p.seconds * 1e6),
                            describe_schedule(&p.schedule),
                            if layer.recommended.as_ref() == Some(&p.format) {
                                "recommended".into()
                            } else {
                                String::new()
                            },
                        ]
                    })
                })
                .collect(),
        }
    }
}

/// Root of the squared error over the squared weights, each column by its importance.
fn relative_error(q: &Quantized, values: &[f32], importance: Option<&[f32]>) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for (i, (&w, made)) in values.iter().zip(q.dequantize()).enumerate() {
        let weight = importance.map_or(1.0, |list| f64::from(list[i % q.k]));
        error += weight * f64::from(w - made).powi(2);
        signal += weight * f64::from(w).powi(2);
    }
    if signal > 0.0 { (error / signal).sqrt() } else { 0.0 }
}

/// Bits of codes, scales and zeros per weight.
fn quantized_bits(q: &Quantized) -> f64 {
    use bitsmith_compiler::format::Zero;
    let code = q.codes.len() * q.format.code.bits() as usize;
    let scale = q.scales.len() * q.format.scale.dtype.bits() as usize;
    let outer = q.format.scale.outer.map_or(0, |outer| q.outer.len() * outer.dtype.bits() as usize);
    let zero = match q.format.zero {
        Zero::None | Zero::Bias(_) => 0,
        Zero::Int(bits) => q.zeros.len() * bits as usize,
        Zero::Float(dtype) => q.zeros.len() * dtype.bits() as usize,
        Zero::Offset { scale, .. } => q.zeros.len() * scale.dtype.bits() as usize,
    };
    (code + scale + outer + zero) as f64 / (q.n * q.k) as f64
}

/// How much each column counts: the square of the mean magnitude of what flows into it.
fn importance(folder: &Path, linear: &Linear) -> Result<Vec<f32>, Failure> {
    let number = linear.name.split('.').find_map(|part| part.parse::<usize>().ok()).ok_or_else(|| {
        Failure::invalid(format!("layer {}: no number of a layer in its name, and no statistics", linear.name))
    })?;
    let site = [("q_proj", "attention"), ("k_proj", "attention"), ("v_proj", "attention"), ("o_proj", "output")]
        .into_iter()
        .chain([("gate_proj", "mlp"), ("up_proj", "mlp"), ("down_proj", "down")])
        .find(|(part, _)| linear.name.contains(part))
        .map(|(_, site)| site);
    let stats = read_layer(folder, number)?;
    let found = stats.iter().find(|s| Some(s.site.as_str()) == site && s.mean_abs.len() == linear.k);
    let found = found.ok_or_else(|| {
        Failure::invalid(format!("{}: no statistics of {} inputs for {}", folder.display(), linear.k, linear.name))
    })?;
    Ok(found.mean_abs.iter().map(|x| x * x).collect())
}
