//! One decoder layer, ready to run: as a whole, or in the stages between which quantizers look at inputs.

use super::math::{add, product, rms_norm, rms_norm_in_place, silu_mul, softmax};
use super::{Apply, Executor, KvCache};
use crate::model::{Config, Gated, Layer, Mlp};
use bitsmith_compiler::Result;
use std::borrow::Cow;

/// Where inputs of matrices are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// After the first norm: query, key and value.
    Attention,
    /// What attention returns: the output projection.
    Output,
    /// After the second norm: gate and up, of every expert too.
    Mlp,
    /// The product of gate and up: down.
    Down,
    /// Inputs that reach one expert: its gate and up.
    Expert(u32),
    /// The product of gate and up of one expert.
    ExpertDown(u32),
}

impl Site {
    /// The name in files and reports.
    pub fn name(self) -> String {
        match self {
            Site::Attention => "attention".into(),
            Site::Output => "output".into(),
            Site::Mlp => "mlp".into(),
            Site::Down => "down".into(),
            Site::Expert(e) => format!("expert.{e}"),
            Site::ExpertDown(e) => format!("expert_down.{e}"),
        }
    }
}

/// Called with a site, the inputs there and their number of rows.
pub type Look<'a> = &'a mut dyn FnMut(Site, &[f32], usize) -> Result<()>;

struct Gate {
    gate: Box<dyn Apply>,
    up: Box<dyn Apply>,
    down: Box<dyn Apply>,
}

enum Part {
    Dense(Gate),
    Experts { router: Vec<f32>, experts: Vec<Gate>, per_token: usize, normalize: bool },
}

/// A decoder layer that is ready to run.
pub struct Block {
    config: Config,
    input_norm: Vec<f32>,
    q: Box<dyn Apply>,
    k: Box<dyn Apply>,
    v: Box<dyn Apply>,
    o: Box<dyn Apply>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    post_norm: Vec<f32>,
    mlp: Part,
    frequencies: Vec<f64>,
}

impl Block {
    /// Makes a layer ready; it is taken over matrix by matrix, so that no second copy of it stands in memory.
    pub fn new(config: &Config, layer: Layer, executor: &dyn Executor) -> Result<Block> {
        let gated = |gated: Gated| -> Result<Gate> {
            Ok(Gate {
                gate: executor.take(gated.gate)?,
                up: executor.take(gated.up)?,
                down: executor.take(gated.down)?,
            })
        };
        let a = layer.attention;
        Ok(Block {
            config: config.clone(),
            input_norm: layer.input_norm.values,
            q: executor.take(a.q)?,
            k: executor.take(a.k)?,
            v: executor.take(a.v)?,
            o: executor.take(a.o)?,
            q_norm: a.q_norm.map(|norm| norm.values),
            k_norm: a.k_norm.map(|norm| norm.values),
            post_norm: layer.post_norm.values,
            mlp: match layer.mlp {
                Mlp::Dense(one) => Part::Dense(gated(one)?),
                Mlp::Experts { router, experts } => Part::Experts {
                    router: router.weight.values().into_owned(),
                    experts: experts.into_iter().map(gated).collect::<Result<_>>()?,
                    per_token: config.shape.experts_per_token,
                    normalize: config.normalize_experts,
                },
            },
            frequencies: config.rope.frequencies(config.shape.head_dim),
        })
    }

    /// The whole layer: `x`, the residual stream of `m` tokens, is changed in place.
    pub fn forward(&self, x: &mut [f32], m: usize, cache: &mut dyn KvCache, look: Look<'_>) -> Result<()> {
        self.attention(x, m, cache, look)?;
        self.feed_forward(x, m, look)
    }

    /// The first half of the layer.
    pub fn attention(&self, x: &mut [f32], m: usize, cache: &mut dyn KvCache, look: Look<'_>) -> Result<()> {
        let normed = rms_norm(x, &self.input_norm, self.config.eps);
        look(Site::Attention, &normed, m)?;
        let seen = self.heads(&normed, m, cache)?;
        look(Site::Output, &seen, m)?;
        add(x, &self.o.apply(&seen, m)?);
        Ok(())
    }

    /// Queries, keys, values and what the queries see.
    fn heads(&self, normed: &[f32], m: usize, cache: &mut dyn KvCache) -> Result<Vec<f32>> {
        let s = &self.config.shape;
        let (mut q, mut k) = (self.q.apply(normed, m)?, self.k.apply(normed, m)?);
        let v = self.v.apply(normed, m)?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            rms_norm_in_place(&mut q, q_norm, self.config.eps);
            rms_norm_in_place(&mut k, k_norm, self.config.eps);
        }
        let first = cache.tokens();
        let rope = &self.config.rope;
        let frequencies = match rope.grows() {
            true => Cow::Owned(rope.frequencies_at(s.head_dim, first + m)),
            false => Cow::Borrowed(&self.frequencies[..]),
        };
        for (i, (q, k)) in q.chunks_mut(s.heads * s.head_dim).zip(k.chunks_mut(s.kv_heads * s.head_dim)).enumerate() {
            rope.rotate(q, s.head_dim, &frequencies, first + i);
            rope.rotate(k, s.head_dim, &frequencies, first + i);
        }
        cache.append(&k, &v)?;
        cache.attend(&q, m)
    }

    /// The second half of the layer.
    pub fn feed_forward(&self, x: &mut [f32], m: usize, look: Look<'_>) -> Result<()> {
        let normed = rms_norm(x, &self.post_norm, self.config.eps);
        look(Site::Mlp, &normed, m)?;
        match &self.mlp {
            Part::Dense(gate) => {
                let middle = gate.middle(&normed, m)?;
                look(Site::Down, &middle, m)?;
                add(x, &gate.down.apply(&middle, m)?);
            }
            Part::Experts { router, experts, per_token, normalize } => {
                let hidden = self.config.shape.hidden;
                let chosen =
                    route(&product(&normed, router, m, experts.len(), hidden), experts.len(), *per_token, *normalize);
                for (e, expert) in experts.iter().enumerate() {
                    let mine: Vec<(usize, f32)> = chosen
                        .iter()
                        .filter(|(_, index, _)| *index == e)
                        .map(|&(row, _, weight)| (row, weight))
                        .collect();
                    if mine.is_empty() {
                        continue;
                    }
                    let rows: Vec<f32> =
                        mine.iter().flat_map(|(row, _)| normed[row * hidden..][..hidden].iter().copied()).collect();
                    look(Site::Expert(e as u32), &rows, mine.len())?;
                    let middle = expert.middle(&rows, mine.len())?;
                    look(Site::ExpertDown(e as u32), &middle, mine.len())?;
                    let out = expert.down.apply(&middle, mine.len())?;
                    for (&(row, weight), out) in mine.iter().zip(out.chunks_exact(hidden)) {
                        x[row * hidden..][..hidden].iter_mut().zip(out).for_each(|(x, y)| *x += weight * y);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Gate {
    fn middle(&self, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let mut gate = self.gate.apply(x, m)?;
        silu_mul(&mut gate, &self.up.apply(x, m)?);
        Ok(gate)
    }
}

/// The experts of each token: (row, expert, weight). Ties go to the lower expert.
fn route(logits: &[f32], experts: usize, per_token: usize, normalize: bool) -> Vec<(usize, usize, f32)> {
    let mut chosen = Vec::new();
    for (row, logits) in logits.chunks_exact(experts).enumerate() {
        let mut weights = logits.to_vec();
        softmax(&mut weights);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        order.truncate(per_token);
        let sum: f32 = if normalize { order.iter().map(|&e| weights[e]).sum() } else { 1.0 };
        chosen.extend(order.into_iter().map(|e| (row, e, weights[e] / sum)));
    }
    chosen
}
