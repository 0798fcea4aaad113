//! Attention over a paged cache, for decoding and for prefill: scores, softmax, weighted values, in ranges that merge.
//!
//! ```text
//! s[t] = cap · tanh(scale · Σ_c q[c] k[t, c] / cap) + slope · (t - position)       each part if requested
//! y    = Σ_t 2^(s[t] - m) v[t] / (Σ_t 2^(s[t] - m) + 2^(sink - m))                  s, sink in units of ln 2
//! ```
//!
//! A query at `position` sees token `t` if `t <= position`, `t` is in the item's range, and, under a sliding window, it is
//! one of the last `window` tokens or one of the first `first` ones.

use super::Pool;
use crate::dtype::DType;
use crate::format::kv::{KvLayout, Side};
use crate::op::{Expected, gamma, rounding};

/// Attention of work items over ranges of tokens. Work: [`ITEM`] records; output: `o [slot, kv head, row, v_dim]` (not
/// divided) and `ml [slot, kv head, row, 2]` (largest score in units of ln 2, sum), where `row = query · group + head of the
/// group`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// The cache.
    pub layout: KvLayout,
    /// Query heads: a multiple of the KV heads.
    pub heads: usize,
    /// Query tokens of an item: 1 to decode, more for speculative decoding and prefill.
    pub queries: usize,
    /// Type of the queries `[rows, heads, k_dim]`.
    pub input: DType,
    /// Multiplies scores; `1 / sqrt(k_dim)` as a rule.
    pub scale: f32,
    /// Soft cap of scores, as Gemma 2 has it.
    pub softcap: Option<f32>,
    /// A bias per query head and distance (ALiBi): the caller gives the slopes.
    pub alibi: bool,
    /// What a query sees.
    pub sight: Sight,
}

/// Which of the tokens before it a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All.
    All,
    /// The last `window` ones, itself included, and the first `first` ones of the request.
    Window {
        /// Tokens.
        window: u32,
        /// Tokens that are always seen (attention sinks of StreamingLLM).
        first: u32,
    },
}

/// `i32` fields of a work item: `{first query row, queries, first entry in the block table minus the first page's number,
/// first token, end, position of the first query, slot, 0}`. The first token starts a page.
pub const ITEM: usize = 8;

/// Merges slots into outputs `[rows, heads, v_dim]`. Work: [`ROW`] records, one for each query row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query tokens of an item.
    pub queries: usize,
    /// Channels of values.
    pub dim: usize,
    /// Type of the outputs.
    pub out: DType,
    /// An extra score per query head in the denominator (a learned attention sink): the caller gives them.
    pub sinks: bool,
}

/// `i32` fields of a merge record: `{first slot, slots, query within its item, 0}`.
pub const ROW: usize = 4;

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

impl Sight {
    /// Whether a query at `position` sees token `t`.
    pub fn sees(self, position: usize, t: usize) -> bool {
        t <= position
            && match self {
                Sight::All => true,
                Sight::Window { window, first } => t + window as usize > position || t < first as usize,
            }
    }
}

impl Attend {
    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.layout.heads.max(1)
    }

    /// Rows of an item.
    pub fn rows(&self) -> usize {
        self.queries * self.group()
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        super::super::float_fault("query type", self.input, &mut faults);
        if self.heads == 0 || !self.heads.is_multiple_of(self.layout.heads) {
            faults.push(format!(
                "{} query heads over {} KV heads; accepted: multiples of the latter",
                self.heads, self.layout.heads
            ));
        } else if !(1..=64).contains(&self.rows()) {
            faults.push(format!(
                "{} query tokens of {} heads per KV head; accepted: 1 to 64 together",
                self.queries,
                self.group()
            ));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            faults.push(format!("a scale of {}; accepted: positive", self.scale));
        }
        if self.softcap.is_some_and(|cap| !(1e-3..=1e6).contains(&cap)) {
            faults.push(format!("a soft cap of {:?}; accepted: 0.001 to 1000000", self.softcap));
        }
        if let Sight::Window { window, first } = self.sight
            && (window == 0 || window > 1 << 30 || first > 1 << 30)
        {
            faults.push(format!("a window of {window} tokens after the first {first}; accepted: 1 to 2^30"));
        }
        faults
    }

    /// The output for one query over `segments`: each a pool with the pages of tokens `start..end` in order (page `i` holds
    /// the tokens from `start + i · page` on). Exact but for `f64`; the bound covers every order of sums and any splits.
    pub fn reference(&self, inputs: &AttendInputs<'_>, segments: &[(&Pool<'_>, &[usize], usize, usize)]) -> Reference {
        let mut tokens: Vec<(f64, f64, Vec<f64>, Vec<f64>)> = Vec::new();
        for &(pool, pages, start, end) in segments {
            for t in (start..end).filter(|&t| self.sight.sees(inputs.position, t)) {
                let (page, token) = (pages[(t - start) / pool.layout.page], (t - start) % pool.layout.page);
                let (mut dot, mut size) = (0.0, 0.0);
                for (c, &q) in inputs.q.iter().enumerate() {
                    dot += q as f64 * pool.value(Side::K, page, inputs.head, token, c);
                    size += (q as f64).abs() * pool.magnitude(Side::K, page, inputs.head, token, c);
                }
                let mut score = dot * self.scale as f64;
                size *= self.scale as f64;
                let mut slack = gamma(inputs.q.len() + 16) * size;
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
                let sizes = (0..dim).map(|c| pool.magnitude(Side::V, page, inputs.head, token, c)).collect();
                tokens.push((score, slack + gamma(8) * score.abs(), v, sizes));
            }
        }
        let dim = segments.first().map_or(0, |segment| segment.0.layout.v.head_dim);
        let sink = inputs.sink.map_or(f64::NEG_INFINITY, |sink| sink as f64);
        let top = tokens.iter().fold(sink, |top, token| top.max(token.0));
        let slack = tokens.iter().fold(0.0f64, |a, token| a.max(token.1));
        let mut below = if sink.is_finite() { (sink - top).exp() } else { 0.0 };
        let (mut sums, mut sizes) = (vec![0.0; dim], vec![0.0; dim]);
        for (score, _, v, size) in &tokens {
            let p = (score - top).exp();
            below += p;
            sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += p * v);
            sizes.iter_mut().zip(size).for_each(|(sum, size)| *sum += p * size);
        }
        // Each weight: the errors of its score and of the largest one, of 2^x (some units in the last place), of one rescaling
        // for each tile; then sums over the tokens, above and below the line.
        let weight = (2.0 * slack).exp_m1() + gamma(24 * (tokens.len() / 16 + 4));
        let relative = 2.0 * (weight + gamma(tokens.len() + 32)) * (1.0 + weight);
        Reference { sums, sizes, below, relative }
    }
}

/// What an output should be, before it is rounded.
#[derive(Clone, Debug)]
pub struct Reference {
    sums: Vec<f64>,
    sizes: Vec<f64>,
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
        rounding(value, self.relative * size + 1e-30 * size, out)
    }
}

impl Merge {
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        super::super::float_fault("output type", self.out, &mut faults);
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || self.heads == 0 {
            faults.push(format!("{} query heads over {} KV heads; accepted: multiples", self.heads, self.kv_heads));
        }
        if !self.dim.is_multiple_of(16) || !(16..=512).contains(&self.dim) {
            faults.push(format!("values of {} channels; accepted: multiples of 16 up to 512", self.dim));
        }
        if self.queries == 0 {
            faults.push("no query tokens; accepted: at least 1".into());
        }
        faults
    }
}
