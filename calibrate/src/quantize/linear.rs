//! One matrix through its plan: split or padded columns, codes by the plan's method, and what that did.
//!
//! Reads a matrix of floats, its plan and statistics of its inputs; makes codes in place and a [`LinearReport`]. Always
//! holds: weights that are not finite are refused with their place; a method that lacks its statistics says so.

use super::awq;
use super::gptq::Gptq;
use super::smooth;
use super::stats::Stats;
use super::{clip, sizes_of};
use crate::model::{Linear, Weight};
use crate::recipe::{LinearPlan, Method, RecipeFile, preflight};
use bitsmith_compiler::format::{Format, Granularity, Quantized};
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};

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
            awq::clipped(&w, n, k, &format, stats)?
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
