//! One decoder layer through a recipe: statistics, folding, codes, and on to the next site with what was made.
//!
//! ```text
//! residual ─ norm ─► q k v ─ attention ─► o ─ + ─ norm ─► gate up ─► down ─ +
//!               site 1            site 2              site 3      site 4
//! ```
//!
//! Always holds: each site's inputs are those that the matrices before it, already quantized, give.

use super::awq;
use super::gptq::Gptq;
use super::prompts::Residuals;
use super::smooth;
use super::stats::Stats;
use super::{clip, sizes_of};
use crate::engine::{Block, Executor, FloatCache, Site};
use crate::model::{Config, Floats, Layer, Linear, Mlp, Weight};
use crate::recipe::{LinearPlan, Method, Plan, RecipeFile, Smooth, preflight};
use bitsmith_compiler::format::{Format, Granularity, Quantized};
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happened to one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// The layer.
    pub name: String,
    /// Its size.
    pub n: usize,
    /// Its size.
    pub k: usize,
    /// Its format now.
    pub format: String,
    /// How its inputs are quantized.
    pub activation: Option<String>,
    /// How codes were found.
    pub method: Option<Method>,
    /// Signal to quantization noise of the weights, in decibels.
    pub weight_sqnr: Option<f64>,
    /// Signal to quantization noise of the outputs, by the second moments of the inputs, in decibels.
    pub output_sqnr: Option<f64>,
    /// Share of codes at either end of the range.
    pub saturation: Option<f64>,
    /// GPTQ's damping.
    pub damping: Option<f64>,
    /// What a user should know.
    pub note: Option<String>,
    /// Bytes before.
    pub bytes_before: usize,
    /// Bytes of codes, scales and zeros now.
    pub bytes_after: usize,
}

/// Takes layers through a recipe.
pub struct LayerQuantizer<'a> {
    /// The recipe.
    pub recipe: &'a RecipeFile,
    /// What it means for each matrix.
    pub plan: &'a Plan,
    /// The model.
    pub config: Config,
    /// Who multiplies.
    pub executor: &'a dyn Executor,
    /// What happened so far.
    pub reports: Vec<LinearReport>,
    /// Matrices as they were before codes were found, where the recipe has a budget.
    pub floats: BTreeMap<String, Linear>,
}

impl LayerQuantizer<'_> {
    /// Quantizes a layer; streams go in as its inputs and come out as its outputs.
    pub fn layer(&mut self, layer: &mut Layer, streams: Option<&mut Residuals>) -> Result<()> {
        let Some(streams) = streams else {
            for linear in layer.linears_mut() {
                self.plain(linear)?;
            }
            return Ok(());
        };
        let hidden = self.config.shape.hidden;
        let wants = |names: &[&str]| names.iter().any(|name| self.plan.of(name).is_some_and(|p| p.method.calibrated()));
        let names = |linears: &[&Linear]| -> Vec<String> { linears.iter().map(|l| l.name.clone()).collect() };
        // Site 1: what the first norm makes.
        let list = names(&[&layer.attention.q, &layer.attention.k, &layer.attention.v]);
        let moments = wants(&list.iter().map(String::as_str).collect::<Vec<_>>());
        let mut stats = Stats::new(hidden, moments);
        for i in 0..streams.len() {
            let x = streams.get(i)?;
            stats.add(&crate::engine::math::rms_norm(&x, &layer.input_norm.values, self.config.eps));
        }
        let a = &mut layer.attention;
        let mut group = [&mut a.q, &mut a.k, &mut a.v];
        let scales = self.scales(&group.each_ref().map(|l| &**l), &stats)?;
        if let Some(s) = &scales {
            divide(&mut layer.input_norm, s);
            group.iter_mut().try_for_each(|linear| multiply(linear, s))?;
            stats.divide(s);
        }
        for linear in group {
            self.linear(linear, Some(&stats))?;
        }
        // Site 2: what attention returns.
        let moments = wants(&[&layer.attention.o.name]);
        let mut stats = Stats::new(layer.attention.o.k, moments);
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let mut cache = FloatCache::new(&self.config);
            let m = x.len() / hidden;
            block.attention(&mut x, m, &mut cache, &mut |site, x, _| {
                if site == Site::Output {
                    stats.add(x);
                }
                Ok(())
            })?;
        }
        self.linear(&mut layer.attention.o, Some(&stats))?;
        // Site 3: what the second norm makes; streams move past attention.
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        let moments = wants(&gate_names(layer).iter().map(String::as_str).collect::<Vec<_>>());
        let mut stats = Stats::new(hidden, moments);
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let m = x.len() / hidden;
            block.attention(&mut x, m, &mut FloatCache::new(&self.config), &mut |_, _, _| Ok(()))?;
            stats.add(&crate::engine::math::rms_norm(&x, &layer.post_norm.values, self.config.eps));
            streams.set(i, x)?;
        }
        let gates: Vec<&Linear> = match &layer.mlp {
            Mlp::Dense(gated) => vec![&gated.gate, &gated.up],
            Mlp::Experts { experts, .. } => experts.iter().flat_map(|g| [&g.gate, &g.up]).collect(),
        };
        if let Some(s) = self.scales(&gates, &stats)? {
            divide(&mut layer.post_norm, &s);
            let experts = match &mut layer.mlp {
                Mlp::Dense(gated) => std::slice::from_mut(gated),
                Mlp::Experts { router, experts } => {
                    multiply(router, &s)?;
                    &mut experts[..]
                }
            };
            for gated in experts {
                multiply(&mut gated.gate, &s)?;
                multiply(&mut gated.up, &s)?;
            }
            stats.divide(&s);
        }
        let dense = matches!(layer.mlp, Mlp::Dense(_));
        let each = if dense { BTreeMap::new() } else { self.expert_stats(layer, streams, false)? };
        match &mut layer.mlp {
            Mlp::Dense(gated) => {
                self.linear(&mut gated.gate, Some(&stats))?;
                self.linear(&mut gated.up, Some(&stats))?;
            }
            Mlp::Experts { experts, .. } => {
                for (e, gated) in experts.iter_mut().enumerate() {
                    let own = each.get(&e);
                    self.linear(&mut gated.gate, own)?;
                    self.linear(&mut gated.up, own)?;
                }
            }
        }
        // Site 4: the product of gate and up.
        let each = self.expert_stats(layer, streams, true)?;
        match &mut layer.mlp {
            Mlp::Dense(gated) => self.linear(&mut gated.down, each.get(&0))?,
            Mlp::Experts { experts, .. } => {
                for (e, gated) in experts.iter_mut().enumerate() {
                    self.linear(&mut gated.down, each.get(&e))?;
                }
            }
        }
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let m = x.len() / hidden;
            block.feed_forward(&mut x, m, &mut |_, _, _| Ok(()))?;
            streams.set(i, x)?;
        }
        Ok(())
    }

    /// Statistics per expert (or of the one block) of the inputs of `gate` and `up`, or of `down`.
    fn expert_stats(&self, layer: &Layer, streams: &mut Residuals, down: bool) -> Result<BTreeMap<usize, Stats>> {
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        let (hidden, ffn) = (self.config.shape.hidden, self.config.shape.ffn);
        let linears = layer.linears();
        let moments = linears.iter().skip(4).any(|l| self.plan.of(&l.name).is_some_and(|p| p.method.calibrated()));
        let mut each: BTreeMap<usize, Stats> = BTreeMap::new();
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let m = x.len() / hidden;
            block.feed_forward(&mut x, m, &mut |site, x, _| {
                let index = match (site, down) {
                    (Site::Expert(e), false) | (Site::ExpertDown(e), true) => e as usize,
                    (Site::Down, true) => 0,
                    _ => return Ok(()),
                };
                each.entry(index).or_insert_with(|| Stats::new(if down { ffn } else { hidden }, moments)).add(x);
                Ok(())
            })?;
        }
        Ok(each)
    }

    /// Divisors of the inputs of matrices that share them: SmoothQuant's, or AWQ's; `None` where neither is asked for.
    fn scales(&self, linears: &[&Linear], stats: &Stats) -> Result<Option<Vec<f32>>> {
        let plans: Vec<&LinearPlan> = linears.iter().filter_map(|l| self.plan.of(&l.name)).collect();
        let quantized = plans.iter().all(|p| p.format.is_some()) && plans.len() == linears.len();
        if !quantized || stats.rows == 0 {
            return Ok(None);
        }
        let weights: Vec<_> = linears.iter().map(|l| l.weight.values()).collect();
        let integers = plans.iter().all(|p| matches!(p.activation, Some(Activation::Int8(_) | Activation::Fp8(..))));
        match self.recipe.smooth {
            Some(Smooth::Alpha(alpha)) if integers => {
                let columns = smooth::column_max(weights.iter().map(|w| &w[..]), stats.k);
                return Ok(Some(smooth::scales(&stats.absmax, &columns, alpha)));
            }
            Some(Smooth::Auto(true)) if integers => return self.best_smooth(linears, &plans, stats).map(Some),
            _ => {}
        }
        if plans.iter().all(|p| p.method == Method::Awq) {
            let shared: Vec<(&[f32], usize, Format)> = linears
                .iter()
                .zip(&plans)
                .zip(&weights)
                .filter_map(|((l, p), w)| Some((&w[..], l.n, p.format?)))
                .collect();
            return Ok(Some(awq::search(&shared, stats)?.scales));
        }
        Ok(None)
    }

    /// The α of 0.5 to 0.9 (or none at all) whose quantized outputs are nearest, on the sampled rows.
    fn best_smooth(&self, linears: &[&Linear], plans: &[&LinearPlan], stats: &Stats) -> Result<Vec<f32>> {
        use crate::engine::{Activations, Dense};
        let weights: Vec<_> = linears.iter().map(|l| l.weight.values()).collect();
        let columns = smooth::column_max(weights.iter().map(|w| &w[..]), stats.k);
        let rows = stats.sample.len() / stats.k;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for alpha in [None, Some(0.5), Some(0.6), Some(0.7), Some(0.8), Some(0.9f32)] {
            let s = alpha.map_or(vec![1.0; stats.k], |alpha| smooth::scales(&stats.absmax, &columns, alpha));
            let mut x = stats.sample.clone();
            smooth::scale_columns(&mut x, &s.iter().map(|s| 1.0 / s).collect::<Vec<_>>());
            let mut error = 0.0;
            for ((linear, plan), w) in linears.iter().zip(plans).zip(&weights) {
                let mut scaled = w.to_vec();
                smooth::scale_columns(&mut scaled, &s);
                let Some(format) = plan.format else { continue };
                let q = format.encode_nearest(&scaled, linear.n, linear.k, None)?;
                let trial = Linear {
                    activation: plan.activation,
                    bias: None,
                    weight: Weight::Quantized(q),
                    ..(*linear).clone()
                };
                let got = Dense { activations: Activations::Quantized }.prepare(&trial)?.apply(&x, rows)?;
                let exact = crate::engine::math::product(&stats.sample, w, rows, linear.n, linear.k);
                error += got.iter().zip(&exact).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
            }
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, s));
            }
        }
        Ok(best.map_or(vec![1.0; stats.k], |(_, s)| s))
    }

    /// Quantizes a matrix without statistics.
    pub fn plain(&mut self, linear: &mut Linear) -> Result<()> {
        self.linear(linear, None)
    }

    fn linear(&mut self, linear: &mut Linear, stats: Option<&Stats>) -> Result<()> {
        if self.recipe.budget.is_some() && self.plan.of(&linear.name).is_some_and(|plan| plan.format.is_some()) {
            self.floats.insert(linear.name.clone(), linear.clone());
        }
        let report = quantize_linear(linear, self.recipe, self.plan.of(&linear.name), stats)?;
        self.reports.push(report);
        Ok(())
    }
}

fn gate_names(layer: &Layer) -> Vec<String> {
    layer.linears().iter().skip(4).map(|linear| linear.name.clone()).collect()
}

/// `gain /= s`. The result needs more bits than a 16-bit file gave it.
fn divide(gain: &mut Floats, s: &[f32]) {
    gain.values.iter_mut().zip(s).for_each(|(g, s)| *g /= s);
    gain.dtype = bitsmith_compiler::dtype::DType::F32;
}

/// Columns of a matrix of floats times `s`.
fn multiply(linear: &mut Linear, s: &[f32]) -> Result<()> {
    match &mut linear.weight {
        Weight::Floats(floats) => {
            smooth::scale_columns(&mut floats.values, s);
            floats.dtype = bitsmith_compiler::dtype::DType::F32;
            Ok(())
        }
        Weight::Quantized(q) => Err(Error::invalid(format!("{}: is {} already", linear.name, q.format))),
    }
}

/// Quantizes one matrix as its plan says.
pub(super) fn quantize_linear(
    linear: &mut Linear,
    recipe: &RecipeFile,
    plan: Option<&LinearPlan>,
    stats: Option<&Stats>,
) -> Result<LinearReport> {
    let mut report = LinearReport {
        name: linear.name.clone(),
        n: linear.n,
        k: linear.k,
        format: linear.weight.format_name(),
        activation: None,
        method: None,
        weight_sqnr: None,
        output_sqnr: None,
        saturation: None,
        damping: None,
        note: plan.and_then(|plan| plan.note.clone()),
        bytes_before: sizes_of(linear),
        bytes_after: sizes_of(linear),
    };
    let Some((plan, mut format)) = plan.and_then(|plan| plan.format.map(|format| (plan, format))) else {
        return Ok(report);
    };
    let Weight::Floats(floats) = &linear.weight else {
        return Err(Error::invalid(format!(
            "{}: is {} already; quantizing starts from floats",
            linear.name,
            linear.weight.format_name()
        )));
    };
    let faults = preflight(&linear.name, &floats.values, linear.k);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (mut w, mut k) = (floats.values.clone(), linear.k);
    let stats = stats.filter(|stats| stats.rows > 0);
    let mut widened = None;
    if let (Some(share), Some(stats)) = (recipe.split.filter(|share| *share > 0.0), stats) {
        let multiple = if let Granularity::Group(g) = format.granularity { g as usize } else { 16 };
        let extra = (share as f64 * k as f64).ceil() as usize;
        let (wide, gather) = smooth::split(&w, k, &stats.absmax, extra, multiple);
        (w, k) = (wide, gather.len());
        widened = Some(stats.gather(&gather));
        linear.gather = Some(gather);
    } else if plan.pad > 0 {
        w = w.chunks_exact(k).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, plan.pad))).collect();
        let gather: Vec<u32> = (0..k as u32).chain(std::iter::repeat_n(0, plan.pad)).collect();
        k += plan.pad;
        widened = stats.map(|stats| stats.gather(&gather));
        linear.gather = Some(gather);
    }
    let stats = widened.as_ref().or(stats);
    if !recipe.group_sizes.is_empty() {
        format = best_group(&format, &recipe.group_sizes, &w, linear.n, k, stats)?;
    }
    let n = linear.n;
    let clip = recipe.clip.unwrap_or(false);
    let q = match (plan.method, stats) {
        (Method::Gptq, Some(stats)) => {
            let how = Gptq { damping: recipe.damping.unwrap_or(0.01), act_order: recipe.act_order, clip };
            let found = how.quantize(&w, n, k, &format, stats)?;
            report.damping = found.damping;
            if found.damping.is_none() {
                report.note = Some("moments are not positive definite under any damping: rounded to nearest".into());
            }
            found.quantized
        }
        (Method::Awq, Some(stats)) if recipe.clip.unwrap_or(true) && !skips_clip(&linear.name) => {
            let group = if let Granularity::Group(g) = format.granularity { g as usize } else { k };
            let most = awq::clip(&w, n, k, &format, stats)?;
            format.encode_nearest(&awq::clamped(&w, k, group, &most), n, k, None)?
        }
        (Method::Mse, _) => clip::mse(&format, &w, n, k)?,
        (Method::Percentile, _) => clip::percentile(&format, &w, n, k, recipe.percentile.unwrap_or(0.999))?,
        (Method::Rtn | Method::Awq | Method::Gptq, _) => format.encode(&w, n, k, None)?,
    };
    if matches!(plan.method, Method::Gptq | Method::Awq) && stats.is_none() {
        report.note = Some("no token of the calibration reached it: rounded to nearest".into());
    }
    describe(&mut report, &q, &w, stats);
    linear.activation = plan.activation;
    if let (Some(Activation::Fp8(dtype, bitsmith_compiler::op::Per::Tensor)), Some(stats)) = (plan.activation, stats) {
        let top = stats.absmax.iter().copied().fold(0.0f32, f32::max);
        linear.input_scale = Some(if top > 0.0 { top / dtype.max_finite() as f32 } else { 1.0 });
    }
    report.method = Some(plan.method);
    report.activation = plan.activation.map(|a| a.to_string());
    linear.k = k;
    linear.weight = Weight::Quantized(q);
    report.format = linear.weight.format_name();
    report.bytes_after = sizes_of(linear);
    Ok(report)
}

/// AWQ leaves queries and keys unclipped: their errors meet in a product.
fn skips_clip(name: &str) -> bool {
    name.ends_with("q_proj") || name.ends_with("k_proj")
}

fn describe(report: &mut LinearReport, q: &Quantized, w: &[f32], stats: Option<&Stats>) {
    let values = crate::model::dequantize(q);
    let difference: Vec<f32> = values.iter().zip(w).map(|(a, b)| a - b).collect();
    let power = |x: &[f32]| x.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
    let decibels = |signal: f64, noise: f64| if noise > 0.0 { 10.0 * (signal / noise).log10() } else { 200.0 };
    report.weight_sqnr = Some(decibels(power(w), power(&difference)));
    if let Some(stats) = stats {
        let moments = stats.full_moments();
        let (signal, noise) = (awq::quadratic(w, &moments, q.n, q.k), awq::quadratic(&difference, &moments, q.n, q.k));
        report.output_sqnr = Some(decibels(signal, noise.max(0.0)));
    }
    let (low, high) = ends(q);
    let hits = q.codes.iter().filter(|code| **code == low || **code == high).count();
    report.saturation = Some(hits as f64 / q.codes.len().max(1) as f64);
}

/// The codes of the least and the greatest number.
fn ends(q: &Quantized) -> (u8, u8) {
    let code = q.format.code;
    let all = (0..=(((1u16 << code.bits()) - 1) as u8)).filter(|c| code.valid(*c) && code.decode(*c).is_finite());
    let key = |c: &u8| code.decode(*c);
    let list: Vec<u8> = all.collect();
    let least = list.iter().copied().min_by(|a, b| key(a).total_cmp(&key(b))).unwrap_or(0);
    let most = list.iter().copied().max_by(|a, b| key(a).total_cmp(&key(b))).unwrap_or(0);
    (least, most)
}

/// The largest group whose error is within a tenth of that of the smallest.
fn best_group(format: &Format, groups: &[u32], w: &[f32], n: usize, k: usize, stats: Option<&Stats>) -> Result<Format> {
    let moments = stats.map(Stats::full_moments);
    let mut tried = Vec::new();
    for &g in groups {
        let trial = Format {
            granularity: if g as usize >= k { Granularity::Channel } else { Granularity::Group(g) },
            ..*format
        };
        if !(trial.container.check)(&trial, n, k).is_empty() || !k.is_multiple_of(g as usize) && (g as usize) < k {
            continue;
        }
        let values = crate::model::dequantize(&trial.encode_nearest(w, n, k, None)?);
        let d: Vec<f32> = values.iter().zip(w).map(|(a, b)| a - b).collect();
        let error = match &moments {
            Some(moments) => awq::quadratic(&d, moments, n, k),
            None => d.iter().map(|d| *d as f64 * *d as f64).sum(),
        };
        tried.push((g, error, trial));
    }
    tried.sort_by_key(|(g, ..)| *g);
    let Some(least) = tried.first().map(|(_, error, _)| *error) else { return Ok(*format) };
    Ok(tried.iter().rev().find(|(_, error, _)| *error <= 1.1 * least).map_or(*format, |(.., trial)| *trial))
}
