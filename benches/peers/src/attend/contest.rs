//! A contest: one format of ggml's cache, those of ours that are as large, one context; everyone in turn.

use super::ours::Ours;
use super::report::Row;
use crate::ggml::{self, Ggml};
use crate::subject::{Subject, interleave, nmse};
use bitsmith_compiler::op::kv::Arithmetic;
use std::time::Duration;

/// A format of ggml's cache, and ours beside it.
pub struct Contest {
    pub kv: &'static str,
    /// Formats, each summed up as a cache does by itself (`None`) or as it is told to.
    ours: &'static [(&'static str, Option<Arithmetic>)],
}

/// Everything there is.
pub const CONTESTS: &[Contest] = &[
    Contest { kv: "f16", ours: &[("f16", None)] },
    Contest {
        kv: "q8_0",
        ours: &[
            ("int8-token", Some(Arithmetic::Float)),
            ("int8-token", None),
            ("int8-group32", None),
            ("fp8e4m3-token", Some(Arithmetic::Float)),
            ("fp8e4m3-token", None),
        ],
    },
    // ggml has a scale for 32 channels, as our groups have.
    Contest {
        kv: "q4_0",
        ours: &[("int4-token", Some(Arithmetic::Float)), ("int4-token", None), ("int4-group32", None)],
    },
];

/// Largest error, squared and relative to the squared result, that ggml's own tests accept of attention.
const TOLERANCE: f64 = 5e-4;

/// Heads and tokens of a contest.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub page: usize,
    pub tokens: usize,
}

/// How long, how much, on how many threads.
pub struct Effort {
    pub threads: usize,
    /// Bytes of cache to cycle through.
    pub cycle: usize,
    /// Per subject.
    pub budget: Duration,
}

/// What everyone attends to.
pub struct Numbers {
    pub shape: Shape,
    /// `[head, channel]`
    pub q: Vec<f32>,
    /// `[kv head, token, channel]`
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Numbers {
    /// Random numbers of a bell's shape; scores spread by about 2, so that some tokens weigh more than others.
    pub fn new(shape: Shape) -> Numbers {
        let mut random = fastrand::Rng::with_seed(3);
        let mut bell = |count: usize, size: f32| -> Vec<f32> {
            (0..count).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * size).collect()
        };
        let cache = shape.kv_heads * shape.tokens * shape.dim;
        Numbers { shape, q: bell(shape.heads * shape.dim, 6.0), k: bell(cache, 1.0), v: bell(cache, 1.0) }
    }
}

/// The attention of a query head over keys and values `[token, channel]`, in `f64`.
pub fn attention(q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let dim = q.len();
    let scale = 1.0 / (dim as f64).sqrt();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| q as f64 * k as f64).sum::<f64>() * scale;
    let scores: Vec<f64> = k.chunks(dim).map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut below, mut sums) = (0.0, vec![0f64; dim]);
    for (score, v) in scores.iter().zip(v.chunks(dim)) {
        let p = (score - top).exp();
        below += p;
        sums.iter_mut().zip(v).for_each(|(sum, &v)| *sum += p * v as f64);
    }
    sums.into_iter().map(|sum| (sum / below) as f32).collect()
}

impl Contest {
    /// Holds it; a row per subject.
    pub fn hold(&self, numbers: &Numbers, effort: &Effort) -> Result<Vec<Row>, String> {
        let Shape { heads, kv_heads, dim, tokens, .. } = numbers.shape;
        eprintln!("{} over {tokens} tokens, {} threads", self.kv, effort.threads);
        let kind = ggml::kind(self.kv).ok_or_else(|| format!("ggml has no {}", self.kv))?;
        let lines = kv_heads * tokens;
        let sides = [&numbers.k, &numbers.v].map(|side| ggml::quantize(kind, side, lines, dim));
        let copies = |bytes: usize| effort.cycle.div_ceil(bytes).max(1);
        let all = sides[0].len() + sides[1].len();
        let shape = (heads, kv_heads, tokens, dim);
        let peer = Ggml::attention(kind, (&sides[0], &sides[1]), &numbers.q, shape, copies(all), effort.threads)?;
        // The last query head, and the first, over what ggml stored of their keys and values.
        let line = tokens * dim;
        let of_head = |head: usize| -> Result<Vec<f32>, String> {
            let kv = head / (heads / kv_heads);
            let [k, v] = [0, 1].map(|side| {
                let bytes = sides[side].len() / kv_heads;
                ggml::dequantize(kind, &sides[side][kv * bytes..][..bytes], line)
            });
            Ok(attention(&numbers.q[head * dim..][..dim], &k?, &v?))
        };
        let mut expected = vec![[of_head(0)?, of_head(heads - 1)?]];
        let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(peer)];
        for &(format, arithmetic) in self.ours {
            let ours = Ours::new(format, arithmetic, numbers, effort).map_err(|error| format!("{format}: {error}"))?;
            expected.push(ours.expected(numbers).map_err(|error| format!("{format}: {error}"))?);
            subjects.push(Box::new(ours));
        }
        let mut errors = Vec::new();
        for (subject, expected) in subjects.iter_mut().zip(&expected) {
            let got = subject.result()?.ok_or_else(|| format!("{} has no result", subject.name()))?;
            let heads = [&got[..dim], &got[(heads - 1) * dim..]].concat();
            let error = nmse(&heads, &expected.concat());
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("{}: {} over {tokens} tokens: an error of {error}", self.kv, subject.name()));
            }
            errors.push(error);
        }
        let times = interleave(&mut subjects, effort.budget)?;
        let rows = subjects.iter().zip(times).zip(errors).map(|((subject, seconds), nmse)| Row {
            kv: self.kv.into(),
            tokens,
            threads: effort.threads,
            who: subject.name(),
            ours: subject.name().starts_with("bitsmith"),
            seconds,
            bytes: subject.weight_bytes(),
            gbs: subject.weight_bytes() / seconds.median / 1e9,
            read_gbs: f64::NAN,
            share: f64::NAN,
            nmse,
        });
        Ok(rows.collect())
    }
}
