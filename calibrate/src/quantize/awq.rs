//! AWQ: input channels that matter are scaled up before weights are rounded, and scaled back in front (Lin et al. 2023).
//!
//! Reads the matrices that share an input, and statistics of it; makes the scales `s` with `W·s` to be quantized and
//! `x/s` to be folded into what comes before. The loss is the mean squared error of outputs, taken through the second
//! moments of the inputs: `tr(D H Dᵀ)` with `D = Q(W·s)/s − W`. Both rules of AutoAWQ are tried, with weights (duo) and
//! without.

use super::stats::Stats;
use crate::engine::math::product;
use bitsmith_compiler::Result;
use bitsmith_compiler::format::{Format, Granularity, Quantized};
use rayon::prelude::*;

/// Ratios that are tried: 0, 1/20 … 19/20.
const RATIOS: usize = 20;

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// One per input; all 1 where nothing helped.
    pub scales: Vec<f32>,
    /// Mean squared error of an output at each ratio.
    pub losses: Vec<f64>,
    /// Which ratio was best.
    pub best: usize,
    /// Whether weights entered the rule.
    pub duo: bool,
}

/// One of the matrices that share an input: weights `[n, k]`, `n`, and the format that it gets.
pub type Matrix<'a> = (&'a [f32], usize, Format);

/// Searches both rules and keeps the better. Inputs of one number in `ties` share a scale.
///
/// Both go by the mean of the inputs. Their root mean square as a third and fourth rule gained 3 % of the divergence and lost
/// perplexity (43 instead of 52 % of the gap at `int4-g64`).
pub fn search(shared: &[Matrix<'_>], stats: &Stats, ties: Option<&[usize]>) -> Result<Scales> {
    let plain = search_rule(shared, stats, false, ties)?;
    let duo = search_rule(shared, stats, true, ties)?;
    Ok(if duo.losses[duo.best] < plain.losses[plain.best] { duo } else { plain })
}

/// Searches one rule, as AutoAWQ does.
pub fn search_rule(shared: &[Matrix<'_>], stats: &Stats, duo: bool, ties: Option<&[usize]>) -> Result<Scales> {
    let k = stats.k;
    let moments = stats.full_moments();
    let (mut x_mean, mut w_mean) = (stats.mean_abs(), weight_means(shared, k));
    if let Some(ties) = ties {
        (x_mean, w_mean) = (tied(&x_mean, ties), tied(&w_mean, ties));
    }
    let outputs: usize = shared.iter().map(|(_, n, _)| n).sum();
    let (mut losses, mut best, mut kept) = (Vec::new(), 0, vec![1.0; k]);
    for step in 0..RATIOS {
        let ratio = step as f32 / RATIOS as f32;
        let scales = scales(&x_mean, duo.then_some(&w_mean[..]), ratio);
        let mut loss = 0.0;
        for (w, n, format) in shared {
            let scaled: Vec<f32> =
                w.chunks_exact(k).flat_map(|row| row.iter().zip(&scales).map(|(w, s)| w * s)).collect();
            let q = format.encode_nearest(&scaled, *n, k, None)?;
            let mut difference = crate::model::dequantize(&q);
            difference.par_chunks_exact_mut(k).zip(w.par_chunks_exact(k)).for_each(|(d, w)| {
                d.iter_mut().zip(w).zip(&scales).for_each(|((d, w), s)| *d = *d / s - w);
            });
            loss += quadratic(&difference, &moments, *n, k);
        }
        losses.push(loss / (stats.moment_rows() * outputs as f64));
        if losses[step] < losses[best] || step == 0 {
            (best, kept) = (step, scales);
        }
    }
    Ok(Scales { scales: kept, losses, best, duo })
}

/// `tr(D H Dᵀ)`.
pub fn quadratic(difference: &[f32], moments: &[f32], n: usize, k: usize) -> f64 {
    let through = product(difference, moments, n, k, k);
    through.iter().zip(difference).map(|(a, b)| *a as f64 * *b as f64).sum()
}

/// Scales by a rule: `x̄^r`, or `x̄^r / w̄^(1−r)` where weights enter; the geometric middle of the largest and the least is 1.
pub fn scales(x_mean: &[f32], w_mean: Option<&[f32]>, ratio: f32) -> Vec<f32> {
    let rule = |c: usize| {
        let x = x_mean[c].powf(ratio);
        let s = w_mean.map_or(x, |w| x / (w[c].powf(1.0 - ratio) + 1e-4));
        if s.is_finite() { s.max(1e-4) } else { 1.0 }
    };
    let mut list: Vec<f32> = (0..x_mean.len()).map(rule).collect();
    let (most, least) = list.iter().fold((0.0f32, f32::INFINITY), |(a, b), &s| (a.max(s), b.min(s)));
    let middle = (most * least).sqrt();
    list.iter_mut().for_each(|s| *s /= middle);
    list
}

/// Each number replaced by the mean of those that are tied to it.
fn tied(values: &[f32], ties: &[usize]) -> Vec<f32> {
    let mut sums = vec![(0.0f64, 0u32); ties.iter().max().map_or(0, |most| most + 1)];
    for (value, &tie) in values.iter().zip(ties) {
        sums[tie].0 += *value as f64;
        sums[tie].1 += 1;
    }
    ties.iter().map(|&tie| (sums[tie].0 / sums[tie].1 as f64) as f32).collect()
}

/// Mean over rows of each weight's share of the largest of its group.
pub fn weight_means(shared: &[Matrix<'_>], k: usize) -> Vec<f32> {
    let (mut sums, mut rows) = (vec![0.0f64; k], 0);
    for (w, n, format) in shared {
        let group = match format.granularity {
            Granularity::Group(g) => g as usize,
            Granularity::Block { k, .. } => k as usize,
            Granularity::Tensor | Granularity::Channel => k,
        };
        rows += n;
        for row in w.chunks_exact(k) {
            for (g, part) in row.chunks(group).enumerate() {
                let most = part.iter().fold(0.0f32, |a, w| a.max(w.abs())) + 1e-6;
                part.iter().enumerate().for_each(|(i, w)| sums[g * group + i] += (w.abs() / most) as f64);
            }
        }
    }
    sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
}

/// The largest magnitude that each group of each row should keep, so that outputs move least: ten steps down to half.
pub fn clip(w: &[f32], n: usize, k: usize, format: &Format, stats: &Stats) -> Result<Vec<f32>> {
    let group = match format.granularity {
        Granularity::Group(g) => g as usize,
        Granularity::Block { .. } | Granularity::Tensor | Granularity::Channel => k,
    };
    let groups = k.div_ceil(group);
    let moments = stats.full_moments();
    let most: Vec<f32> = w
        .chunks_exact(k)
        .flat_map(|row| row.chunks(group).map(|g| g.iter().fold(0.0f32, |a, w| a.max(w.abs()))))
        .collect();
    let (mut best, mut least) = (most.clone(), vec![f64::INFINITY; n * groups]);
    for step in 0..10 {
        let share = 1.0 - step as f32 / 20.0;
        let cut = clamped(w, k, group, &most.iter().map(|m| m * share).collect::<Vec<_>>());
        let values = crate::model::dequantize(&format.encode_nearest(&cut, n, k, None)?);
        let errors: Vec<f64> = (0..n * groups)
            .into_par_iter()
            .map(|i| {
                let (row, start) = (i / groups, i % groups * group);
                let width = group.min(k - start);
                let d: Vec<f32> = (0..width).map(|c| values[row * k + start + c] - w[row * k + start + c]).collect();
                (0..width)
                    .map(|a| {
                        let line = &moments[(start + a) * k + start..][..width];
                        let through: f32 = line.iter().zip(&d).map(|(h, d)| h * d).sum();
                        d[a] as f64 * through as f64
                    })
                    .sum()
            })
            .collect();
        for (i, error) in errors.into_iter().enumerate() {
            if error < least[i] {
                (least[i], best[i]) = (error, most[i] * share);
            }
        }
    }
    Ok(best)
}

/// The matrix with its ranges cut where that serves its outputs as a whole: the search looks at each group alone, and what it
/// finds is kept only where the groups together gain by it.
pub fn clipped(w: &[f32], n: usize, k: usize, format: &Format, stats: &Stats) -> Result<Quantized> {
    let group = if let Granularity::Group(g) = format.granularity { g as usize } else { k };
    let moments = stats.full_moments();
    let loss = |q: &Quantized| {
        let mut difference = crate::model::dequantize(q);
        difference.iter_mut().zip(w).for_each(|(d, w)| *d -= w);
        quadratic(&difference, &moments, n, k)
    };
    let whole = format.encode_nearest(w, n, k, None)?;
    let cut = format.encode_nearest(&clamped(w, k, group, &clip(w, n, k, format, stats)?), n, k, None)?;
    Ok(if loss(&cut) < loss(&whole) { cut } else { whole })
}

/// Weights cut to a largest magnitude per group of a row.
pub fn clamped(w: &[f32], k: usize, group: usize, most: &[f32]) -> Vec<f32> {
    let groups = k.div_ceil(group);
    w.iter()
        .enumerate()
        .map(|(i, w)| {
            let most = most[i / k * groups + i % k / group];
            w.clamp(-most, most)
        })
        .collect()
}
