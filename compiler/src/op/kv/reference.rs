//! What attention should give, in `f64`, and how far kernels may be off.
//!
//! Exact but for `f64`: numbers are taken from the cache as they are stored. Bounds cover every order of sums, any splits into
//! work items, and what rounding queries and weights to steps or bf16 may change.

use super::Pool;
use super::attend::{Arithmetic, Attend, LEAST, MOST_TOKENS};
use crate::dtype::DType;
use crate::format::kv::{KvPer, Side};
use crate::op::{Expected, gamma, rounding};

/// What rounding to bf16 changes a number by at most, as a share of it.
const BF16: f64 = 1.0 / 256.0;

/// One query of one head.
#[derive(Clone, Copy, Debug)]
pub struct AttendInputs<'a> {
    /// The query `[k_dim]`.
    pub q: &'a [f32],
    /// Its KV head.
    pub head: usize,
    /// Its position.
    pub position: usize,
    /// Slope of the bias.
    pub slope: f32,
    /// Score of the sink.
    pub sink: Option<f32>,
}

impl Attend {
    /// What rounding a weight to a shorter float changes it by, as a share of it, and what is added for small ones, as a share of
    /// the largest. Weights go up to 2^15 under [`Arithmetic::Matrix`], f16 has numbers from 2^-24 on.
    fn weight_rounding(&self) -> (f64, f64) {
        match (self.arithmetic, self.weight_type()) {
            (Arithmetic::Matrix, Some(DType::Bf16)) => (BF16, 0.0),
            (Arithmetic::Matrix, _) => (1.0 / 2048.0, 1.0 / (1u64 << 40) as f64),
            (Arithmetic::Bf16, _) if self.takes_bf16(Side::V) => (BF16, 0.0),
            _ => (0.0, 0.0),
        }
    }

    /// What rounding queries to steps may change each of them by, where they have some: queries times the scales of the channels of
    /// a head's page, where channels have some. A group of channels that share a scale has a step, for its largest query.
    fn query_errors(&self, q: &[f32], pool: &Pool<'_>, steps: Option<i32>, page: Option<(usize, usize)>) -> Vec<f64> {
        let Some(steps) = steps else { return vec![0.0; q.len()] };
        let scale = |c: usize| page.map_or(1.0, |(head, page)| (pool.scale(Side::K, page, head, 0, c).0 as f64).abs());
        let sizes: Vec<f64> = q.iter().enumerate().map(|(c, &q)| (q as f64).abs() * scale(c)).collect();
        // Half a step, and what rounding quotients and products adds to it.
        let least = LEAST as f64 / self.scale as f64;
        let of_group = |(g, group): (usize, &[f64])| {
            let step = 0.51 * group.iter().fold(least, |top, &size| top.max(size)) / f64::from(steps);
            let first = g * group.len();
            (0..group.len()).map(|i| (scale(first + i), step)).collect::<Vec<_>>()
        };
        let errors = sizes.chunks(pool.layout.k.codes.group(q.len())).enumerate().flat_map(of_group);
        // As changes of the queries themselves; where a scale is 0, so are the codes' products.
        errors.map(|(scale, step)| if scale > 0.0 { step / scale } else { 0.0 }).collect()
    }

    /// The output for one query over `segments`: each a pool with the pages of tokens `start..end` in order (page `i` holds
    /// the tokens from `start + i · page` on). Exact but for `f64`; the bound covers every order of sums and any splits.
    pub fn reference(&self, inputs: &AttendInputs<'_>, segments: &[(&Pool<'_>, &[usize], usize, usize)]) -> Reference {
        let mut tokens: Vec<(f64, f64, Vec<f64>, Vec<f64>)> = Vec::new();
        let mut roundings = Vec::new();
        let mut rounded: Vec<Option<Rounded>> = Vec::new();
        // Units that multiply matrices may cut digits off where `f32` rounds.
        let loose = if self.arithmetic == Arithmetic::Matrix { 4 } else { 1 };
        for (segment, &(pool, pages, start, end)) in segments.iter().enumerate() {
            let here = Attend { layout: pool.layout, ..*self };
            let share = if here.takes_bf16(Side::K) { BF16 } else { 0.0 };
            let steps = here.steps(Side::K);
            // The tokens of a page have the same steps, and all have where queries take over no scales.
            let mut errors = (None, Vec::new());
            for t in (start..end).filter(|&t| self.sight.sees(inputs.position, t)) {
                let (page, token) = (pages[(t - start) / pool.layout.page], (t - start) % pool.layout.page);
                if errors.0 != Some(page) {
                    let own = (pool.layout.k.codes.per == KvPer::Channel).then_some((inputs.head, page));
                    errors = (Some(page), self.query_errors(inputs.q, pool, steps, own));
                }
                let (mut dot, mut size, mut all) = (0.0, 0.0, 0.0);
                for (c, &q) in inputs.q.iter().enumerate() {
                    dot += q as f64 * pool.value(Side::K, page, inputs.head, token, c);
                    let magnitude = pool.magnitude(Side::K, page, inputs.head, token, c);
                    size += (q as f64).abs() * magnitude;
                    // Kernels may count codes of channels from the middle of their range.
                    let middle = match pool.layout.k.codes.per {
                        KvPer::Channel => pool.layout.k.codes.top() as f64 / 2.0,
                        _ => 0.0,
                    };
                    let middle = middle * (pool.scale(Side::K, page, inputs.head, token, c).0 as f64).abs();
                    all += errors.1[c] * (magnitude + middle) + share * (q as f64).abs() * magnitude;
                }
                let mut score = dot * self.scale as f64;
                size *= self.scale as f64;
                all *= self.scale as f64;
                let mut slack = gamma(loose * (inputs.q.len() + 16)) * (size + all) + all;
                if let Some(cap) = self.softcap {
                    score = cap as f64 * (score / cap as f64).tanh();
                    slack += cap as f64 * gamma(32);
                }
                let bias = inputs.slope as f64 * (t as f64 - inputs.position as f64);
                if self.alibi {
                    score += bias;
                    slack += gamma(8) * (bias.abs() + score.abs());
                }
                let dim = pool.layout.v.head_dim;
                let v = (0..dim).map(|c| pool.value(Side::V, page, inputs.head, token, c)).collect();
                let sizes: Vec<f64> = (0..dim).map(|c| pool.magnitude(Side::V, page, inputs.head, token, c)).collect();
                rounded.push(here.steps(Side::V).map(|steps| {
                    let share = if here.carries() { 1.02 } else { 0.51 } / f64::from(steps);
                    let scales: Vec<(f64, f64)> = (0..dim)
                        .map(|c| pool.scale(Side::V, page, inputs.head, token, c))
                        .map(|(scale, offset)| ((scale as f64).abs(), (offset as f64).abs()))
                        .collect();
                    let part = |size: f64, (scale, offset)| if scale > 0.0 { (size - offset) / scale } else { 255.0 };
                    let codes = sizes.iter().zip(&scales).map(|(&size, &scale)| share * part(size, scale)).collect();
                    Rounded {
                        run: (segment, t / MOST_TOKENS),
                        scales: scales.iter().map(|scale| scale.0).collect(),
                        codes,
                    }
                }));
                roundings.push(here.weight_rounding());
                tokens.push((score, slack + gamma(8) * score.abs(), v, sizes));
            }
        }
        let dim = segments.first().map_or(0, |segment| segment.0.layout.v.head_dim);
        let sink = inputs.sink.map_or(f64::NEG_INFINITY, |sink| sink as f64);
        let top = tokens.iter().fold(sink, |top, token| top.max(token.0));
        let slack = tokens.iter().fold(0.0f64, |a, token| a.max(token.1));
        let mut below = if sink.is_finite() { (sink - top).exp() } else { 0.0 };
        let (mut sums, mut sizes, mut steps) = (vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]);
        // The largest weight and the largest scales by channel among the tokens that may share a token's step: they are in the
        // same run of tokens or the next. A step is no more than their product asks for.
        let mut tops: std::collections::BTreeMap<(usize, usize), (f64, Vec<f64>)> = std::collections::BTreeMap::new();
        for ((score, ..), rounded) in tokens.iter().zip(&rounded) {
            if let Some(rounded) = rounded {
                let (weight, scales) = tops.entry(rounded.run).or_insert((0.0, vec![0.0; dim]));
                *weight = weight.max((score - top).exp());
                scales.iter_mut().zip(&rounded.scales).for_each(|(most, &scale)| *most = most.max(scale));
            }
        }
        for Rounded { run: (segment, own), codes, .. } in rounded.iter().flatten() {
            let near = tops.range((*segment, own.saturating_sub(1))..=(*segment, own + 1)).map(|(_, top)| top);
            let near: Vec<&(f64, Vec<f64>)> = near.collect();
            let weight = near.iter().fold(0.0, |most: f64, top| most.max(top.0));
            for (c, (step, code)) in steps.iter_mut().zip(codes).enumerate() {
                let scale = near.iter().fold(0.0, |most: f64, top| most.max(top.1[c]));
                *step += (weight * scale).max(LEAST as f64) * code;
            }
        }
        for ((score, _, v, size), (share, least)) in tokens.iter().zip(&roundings) {
            let p = (score - top).exp();
            below += p;
            let rounding = share * p + least;
            steps.iter_mut().zip(size).for_each(|(step, size)| *step += rounding * size);
            sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += p * v);
            sizes.iter_mut().zip(size).for_each(|(sum, size)| *sum += p * size);
        }
        // Each weight: the errors of its score and of the largest one, of 2^x (some units in the last place), of one rescaling
        // for each tile; then sums over the tokens, above and below the line.
        let weight = (2.0 * slack).exp_m1() + gamma(24 * (tokens.len() / 16 + 4));
        let relative = 2.0 * (weight + gamma(tokens.len() + 32)) * (1.0 + weight);
        Reference { sums, sizes, steps, below, relative }
    }
}

/// A token whose weights are rounded to a step.
struct Rounded {
    /// Its segment, and which run of so many tokens as may share a step it is in.
    run: (usize, usize),
    /// Sizes of its scales by channel.
    scales: Vec<f64>,
    /// What its weights may be off by, as a share of the largest one, times its codes by channel.
    codes: Vec<f64>,
}

/// What an output should be, before it is rounded.
#[derive(Clone, Debug)]
pub struct Reference {
    sums: Vec<f64>,
    sizes: Vec<f64>,
    /// What rounding weights to steps may change the sums by.
    steps: Vec<f64>,
    below: f64,
    relative: f64,
}

impl Reference {
    /// The output of a channel in a type. Without tokens it is 0.
    pub fn expected(&self, channel: usize, out: DType) -> Expected {
        if self.below == 0.0 {
            return Expected { value: 0.0, bound: 0.0 };
        }
        let (value, size) = (self.sums[channel] / self.below, self.sizes[channel] / self.below);
        let steps = self.steps[channel] / self.below * (1.0 + self.relative);
        rounding(value, self.relative * (size + steps) + steps + 1e-30 * size, out)
    }
}
