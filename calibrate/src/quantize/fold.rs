//! Divisors of the inputs of matrices, folded into what comes before them: AWQ's at all four sites of a layer, SmoothQuant's
//! behind its norms.
//!
//! ```text
//! norm ─► q k v     v ─► attention ─► o     norm ─► gate up     up ─► silu(gate)·up ─► down
//!  /s      ·s      rows/s            ·s      /s       ·s       rows/s                   ·s
//! ```
//!
//! Reads a layer of floats and its inputs; changes its weights so that it computes the same. Always holds: heads of
//! queries that share a head of values share its scales, so that grouped attention can be folded too; matrices that the
//! recipe leaves out keep their inputs.

use super::layer::LayerQuantizer;
use super::prompts::Residuals;
use super::stats::Stats;
use super::{awq, smooth};
use crate::engine::{Block, Executor, FloatCache, Site};
use crate::model::{Floats, Gated, Layer, Linear, Mlp, Weight};
use crate::recipe::{LinearPlan, Method, Smooth};
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::{Error, Result};
use std::collections::BTreeMap;

impl LayerQuantizer<'_> {
    /// AWQ's scales at every site whose matrices all ask for them, by the inputs that the layer in floats has.
    pub(super) fn fold_awq(&self, layer: &mut Layer, streams: &mut Residuals) -> Result<()> {
        let all = |linears: &[&Linear]| {
            linears.iter().all(|l| self.plan.of(&l.name).is_some_and(|p| p.format.is_some() && p.method == Method::Awq))
        };
        if !layer.linears().iter().any(|linear| all(&[*linear])) {
            return Ok(());
        }
        let stats = self.inputs_of(layer, streams)?;
        let at = |site: Site| stats.get(&site).filter(|stats| stats.rows > 0);
        let a = &mut layer.attention;
        if let (Some(stats), true) = (at(Site::Attention), all(&[&a.q, &a.k, &a.v])) {
            let s = self.search(&[&a.q, &a.k, &a.v], stats, None)?;
            divide(&mut layer.input_norm, &s);
            [&mut a.q, &mut a.k, &mut a.v].into_iter().try_for_each(|linear| multiply(linear, &s))?;
        }
        if let (Some(stats), true) = (at(Site::Output), all(&[&a.v, &a.o])) {
            let shape = &self.config.shape;
            let (dim, sharing) = (shape.head_dim, shape.heads / shape.kv_heads);
            let value: Vec<usize> = (0..a.o.k).map(|c| c / dim / sharing * dim + c % dim).collect();
            let s = self.search(&[&a.o], stats, Some(&value))?;
            multiply(&mut a.o, &s)?;
            let mut rows = vec![1.0; a.v.n];
            value.iter().zip(&s).for_each(|(&row, s)| rows[row] = *s);
            divide_rows(&mut a.v, &rows)?;
        }
        let gates: Vec<&Linear> = match &layer.mlp {
            Mlp::Dense(gated) => vec![&gated.gate, &gated.up],
            Mlp::Experts { experts, .. } => experts.iter().flat_map(|g| [&g.gate, &g.up]).collect(),
        };
        if let (Some(stats), true) = (at(Site::Mlp), all(&gates)) {
            let s = self.search(&gates, stats, None)?;
            divide(&mut layer.post_norm, &s);
            if let Mlp::Experts { router, .. } = &mut layer.mlp {
                multiply(router, &s)?;
            }
            for gated in gated_mut(&mut layer.mlp) {
                multiply(&mut gated.gate, &s)?;
                multiply(&mut gated.up, &s)?;
            }
        }
        let mixture = matches!(layer.mlp, Mlp::Experts { .. });
        for (e, gated) in gated_mut(&mut layer.mlp).iter_mut().enumerate() {
            let site = if mixture { Site::ExpertDown(e as u32) } else { Site::Down };
            if let (Some(stats), true) = (at(site), all(&[&gated.up, &gated.down])) {
                let s = self.search(&[&gated.down], stats, None)?;
                multiply(&mut gated.down, &s)?;
                divide_rows(&mut gated.up, &s)?;
            }
        }
        Ok(())
    }

    /// Statistics with second moments of every site of the layer as it is.
    fn inputs_of(&self, layer: &Layer, streams: &mut Residuals) -> Result<BTreeMap<Site, Stats>> {
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        let mut stats: BTreeMap<Site, Stats> = BTreeMap::new();
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let m = x.len() / self.config.shape.hidden;
            block.forward(&mut x, m, &mut FloatCache::new(&self.config), &mut |site, x, m| {
                // Gate and up of an expert are scaled by what all experts see.
                if !matches!(site, Site::Expert(_)) {
                    let width = x.len() / m.max(1);
                    stats.entry(site).or_insert_with(|| Stats::new(width, true)).add(x);
                }
                Ok(())
            })?;
        }
        Ok(stats)
    }

    /// AWQ's scales for matrices that share an input; inputs of one number in `ties` share a scale.
    fn search(&self, linears: &[&Linear], stats: &Stats, ties: Option<&[usize]>) -> Result<Vec<f32>> {
        let weights: Vec<_> = linears.iter().map(|l| l.weight.values()).collect();
        let shared: Vec<awq::Matrix<'_>> = linears
            .iter()
            .zip(&weights)
            .filter_map(|(l, w)| Some((&w[..], l.n, self.plan.of(&l.name)?.format?)))
            .collect();
        Ok(awq::search(&shared, stats, ties)?.scales)
    }

    /// SmoothQuant's divisors of the inputs of matrices that share them; `None` where they are not asked for.
    pub(super) fn smooth(&self, linears: &[&Linear], stats: &Stats) -> Result<Option<Vec<f32>>> {
        let plans: Vec<&LinearPlan> = linears.iter().filter_map(|l| self.plan.of(&l.name)).collect();
        let coded = |p: &&LinearPlan| {
            p.format.is_some() && matches!(p.activation, Some(Activation::Int8(_) | Activation::Fp8(..)))
        };
        if plans.len() != linears.len() || !plans.iter().all(coded) || stats.rows == 0 {
            return Ok(None);
        }
        match self.recipe.smooth {
            Some(Smooth::Alpha(alpha)) => {
                let weights: Vec<_> = linears.iter().map(|l| l.weight.values()).collect();
                let columns = smooth::column_max(weights.iter().map(|w| &w[..]), stats.k);
                Ok(Some(smooth::scales(&stats.absmax, &columns, alpha)))
            }
            Some(Smooth::Auto(true)) => self.best_smooth(linears, &plans, stats).map(Some),
            Some(Smooth::Auto(false)) | None => Ok(None),
        }
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
}

/// The gated blocks of a layer: one, or one per expert.
pub(super) fn gated_mut(mlp: &mut Mlp) -> &mut [Gated] {
    match mlp {
        Mlp::Dense(gated) => std::slice::from_mut(gated),
        Mlp::Experts { experts, .. } => experts,
    }
}

/// `gain /= s`. The result needs more bits than a 16-bit file gave it.
pub(super) fn divide(gain: &mut Floats, s: &[f32]) {
    gain.values.iter_mut().zip(s).for_each(|(g, s)| *g /= s);
    gain.dtype = bitsmith_compiler::dtype::DType::F32;
}

/// Columns of a matrix of floats times `s`.
pub(super) fn multiply(linear: &mut Linear, s: &[f32]) -> Result<()> {
    match &mut linear.weight {
        Weight::Floats(floats) => {
            smooth::scale_columns(&mut floats.values, s);
            floats.dtype = bitsmith_compiler::dtype::DType::F32;
            Ok(())
        }
        Weight::Quantized(q) => Err(Error::invalid(format!("{}: is {} already", linear.name, q.format))),
    }
}

/// Outputs of a matrix of floats, and its bias, divided by `s`.
fn divide_rows(linear: &mut Linear, s: &[f32]) -> Result<()> {
    let k = linear.k;
    match &mut linear.weight {
        Weight::Floats(floats) => {
            floats.values.chunks_exact_mut(k).zip(s).for_each(|(row, s)| row.iter_mut().for_each(|w| *w /= s));
            floats.dtype = bitsmith_compiler::dtype::DType::F32;
        }
        Weight::Quantized(q) => return Err(Error::invalid(format!("{}: is {} already", linear.name, q.format))),
    }
    if let Some(bias) = &mut linear.bias {
        divide(bias, s);
    }
    Ok(())
}
