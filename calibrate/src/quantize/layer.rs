//! One decoder layer through a recipe: statistics, folding, codes, and on to the next site with what was made.
//!
//! ```text
//! residual ─ norm ─► q k v ─ attention ─► o ─ + ─ norm ─► gate up ─► down ─ +
//!               site 1            site 2              site 3      site 4
//! ```
//!
//! Always holds: each site's inputs are those that the matrices before it, already quantized, give.

use super::fold::{divide, gated_mut, multiply};
use super::linear::{LinearReport, quantize_linear};
use super::prompts::Residuals;
use super::stats::Stats;
use crate::engine::math::rms_norm;
use crate::engine::{Block, Executor, FloatCache, Site};
use crate::model::{Config, Layer, Linear, Mlp};
use crate::recipe::{Plan, RecipeFile};
use bitsmith_compiler::Result;
use std::collections::BTreeMap;

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
        self.fold_awq(layer, streams)?;
        let hidden = self.config.shape.hidden;
        let wants = |names: &[&str]| names.iter().any(|name| self.plan.of(name).is_some_and(|p| p.method.calibrated()));
        let names = |linears: &[&Linear]| -> Vec<String> { linears.iter().map(|l| l.name.clone()).collect() };
        // Site 1: what the first norm makes.
        let list = names(&[&layer.attention.q, &layer.attention.k, &layer.attention.v]);
        let moments = wants(&list.iter().map(String::as_str).collect::<Vec<_>>());
        let mut stats = Stats::new(hidden, moments);
        for i in 0..streams.len() {
            let x = streams.get(i)?;
            stats.add(&rms_norm(&x, &layer.input_norm.values, self.config.eps));
        }
        let a = &mut layer.attention;
        let mut group = [&mut a.q, &mut a.k, &mut a.v];
        let scales = self.smooth(&group.each_ref().map(|l| &**l), &stats)?;
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
        // A layer that runs is as large as the layer: none stays longer than it is needed.
        drop(block);
        self.linear(&mut layer.attention.o, Some(&stats))?;
        // Site 3: what the second norm makes; streams move past attention.
        let block = Block::new(&self.config, layer.clone(), self.executor)?;
        let moments = wants(&gate_names(layer).iter().map(String::as_str).collect::<Vec<_>>());
        let mut stats = Stats::new(hidden, moments);
        for i in 0..streams.len() {
            let mut x = streams.get(i)?;
            let m = x.len() / hidden;
            block.attention(&mut x, m, &mut FloatCache::new(&self.config), &mut |_, _, _| Ok(()))?;
            stats.add(&rms_norm(&x, &layer.post_norm.values, self.config.eps));
            streams.set(i, x)?;
        }
        drop(block);
        let gates: Vec<&Linear> = match &layer.mlp {
            Mlp::Dense(gated) => vec![&gated.gate, &gated.up],
            Mlp::Experts { experts, .. } => experts.iter().flat_map(|g| [&g.gate, &g.up]).collect(),
        };
        if let Some(s) = self.smooth(&gates, &stats)? {
            divide(&mut layer.post_norm, &s);
            if let Mlp::Experts { router, .. } = &mut layer.mlp {
                multiply(router, &s)?;
            }
            for gated in gated_mut(&mut layer.mlp) {
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
