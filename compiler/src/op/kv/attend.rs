//! Attention over a paged cache, for decoding and for prefill: scores, softmax, weighted values, in ranges that merge.
//!
//! ```text
//! s[t] = cap · tanh(scale · Σ_c q[c] k[t, c] / cap) + slope · (t - position)       each part if requested
//! y    = Σ_t 2^(s[t] - m) v[t] / (Σ_t 2^(s[t] - m) + 2^(sink - m))                  s, sink in units of ln 2
//! ```
//!
//! A query at `position` sees token `t` if `t <= position`, `t` is in the item's range, and, under a sliding window, it is
//! one of the last `window` tokens or one of the first `first` ones.

use crate::dtype::DType;
use crate::format::kv::{KvCode, KvLayout, Side};

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
