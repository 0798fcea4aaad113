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
use crate::format::kv::{KvCode, KvLayout, KvPer, Side};
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
    /// How products are summed up.
    pub arithmetic: Arithmetic,
}

/// How products of codes are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Codes become `f32` numbers.
    Float,
    /// Codes of integers stay integers where whole rows of them share a scale: queries and the weights of a tile of tokens
    /// are rounded to multiples of a step, the largest of them over [`Attend::steps`], and the sums are exact. Other codes
    /// become `f32` numbers. It costs what the reference's bound says, for time where processors multiply integers faster.
    Integer,
    /// Codes of FP8 become bf16 numbers, which is exact, where whole rows of them share a scale: queries and weights are rounded
    /// to bf16, and products are summed in pairs. Other codes become `f32` numbers. It costs what the reference's bound says,
    /// a sixteenth of what a code of three bits of mantissa does. Devices that do not multiply bf16 in pairs refuse it.
    Bf16,
    /// Matrix instructions of a subgroup, with sums in `f32` in the order of the device: queries and codes are exact, and
    /// weights of tokens are rounded to [`Attend::weight_type`]. Devices that lack the instructions refuse it.
    Matrix,
}

/// Steps are not smaller than for a largest number of this.
pub const LEAST: f32 = 1e-30;

/// What rounding to bf16 changes a number by at most, as a share of it.
const BF16: f64 = 1.0 / 256.0;

/// Tokens that share the step of their weights, at most.
pub const MOST_TOKENS: usize = 256;

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

    /// The largest multiple of a step on a side that is summed up in integers: queries (`Side::K`) or weights. It has 16 bits,
    /// or less where sums would leave 32 bits: the error is that of a cache of 16 bits, far below that of any codes. Beside
    /// codes of 4 bits that share a scale with all of their row it has 8 bits, and still counts for little next to theirs.
    pub fn steps(&self, side: Side) -> Option<i32> {
        let part = self.layout.part(side);
        let largest = match part.codes.code {
            KvCode::Int8 if part.codes.asymmetric => 255,
            KvCode::Int8 => 128,
            KvCode::Int4 => 15,
            KvCode::F16 | KvCode::Bf16 | KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => return None,
        };
        let terms = match side {
            Side::K => part.head_dim,
            Side::V => MOST_TOKENS,
        };
        let most = match part.codes.code {
            KvCode::Int4 if side == Side::K => i32::from(i8::MAX),
            // What is carried from one weight to the next needs room.
            KvCode::Int4 => i32::from(i8::MAX) - 1,
            _ => i32::from(i16::MAX).min(i32::MAX / (terms as i32 * largest)),
        };
        (self.arithmetic == Arithmetic::Integer).then_some(most)
    }

    /// Whether a side's factors are bf16 numbers: queries (`Side::K`) or weights.
    pub fn takes_bf16(&self, side: Side) -> bool {
        let fp8 = matches!(self.layout.part(side).codes.code, KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2);
        fp8 && self.arithmetic == Arithmetic::Bf16
    }

    /// Whether [`Arithmetic::Bf16`] rounds anything to bf16 here.
    pub fn has_bf16(&self) -> bool {
        let rounded = Attend { arithmetic: Arithmetic::Bf16, ..*self };
        [Side::K, Side::V].into_iter().any(|side| rounded.takes_bf16(side))
    }

    /// Whether what is lost as weights become multiples of a step may be carried over to the next ones, so that few of many
    /// small weights stand for all of them: where steps are so large that small weights are none. An error is up to one step
    /// then, not half of one.
    pub fn carries(&self) -> bool {
        self.steps(Side::V).is_some_and(|steps| steps < 128)
    }

    /// Whether [`Arithmetic::Integer`] sums up anything in integers here.
    pub fn has_integers(&self) -> bool {
        let integer = Attend { arithmetic: Arithmetic::Integer, ..*self };
        [Side::K, Side::V].into_iter().any(|side| integer.steps(side).is_some())
    }

    /// The type of weights under [`Arithmetic::Matrix`]: that of plain values, bf16 where they carry scales of tokens, whose range
    /// f16 lacks, else f16. `None` for queries that are no 16-bit floats.
    pub fn weight_type(&self) -> Option<DType> {
        let codes = &self.layout.v.codes;
        match codes.code {
            _ if !matches!(self.input, DType::F16 | DType::Bf16) => None,
            KvCode::F16 => Some(DType::F16),
            KvCode::Bf16 => Some(DType::Bf16),
            _ => Some(if codes.is_static() { DType::F16 } else { DType::Bf16 }),
        }
    }

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
            // Of rows of queries that take over no scales, all tokens have the same steps.
            let rows =
                (pool.layout.k.codes.per != KvPer::Channel).then(|| self.query_errors(inputs.q, pool, steps, None));
            for t in (start..end).filter(|&t| self.sight.sees(inputs.position, t)) {
                let (page, token) = (pages[(t - start) / pool.layout.page], (t - start) % pool.layout.page);
                let own = (inputs.head, page);
                let errors = rows.clone().unwrap_or_else(|| self.query_errors(inputs.q, pool, steps, Some(own)));
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
                    all += errors[c] * (magnitude + middle) + share * (q as f64).abs() * magnitude;
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
            let near = (*segment, own.saturating_sub(1))..=(*segment, own + 1);
            let weight = tops.range(near.clone()).fold(0.0, |most: f64, (_, top)| most.max(top.0));
            for (c, (step, code)) in steps.iter_mut().zip(codes).enumerate() {
                let scale = tops.range(near.clone()).fold(0.0, |most: f64, (_, top)| most.max(top.1[c]));
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
