//! The quality report: what quantizing cost, layer by layer and as a whole, and what it brought.
//!
//! Reads a quantized model, its reference in floats, text and task probes; makes a [`Report`], and from it JSON, Markdown
//! and an HTML page with plots. Always holds: windows, tokens and intervals stand beside every figure.

mod html;
mod markdown;
mod plot;

pub use html::html;
pub use markdown::markdown;

use crate::engine::{Engine, Executor, FloatCache, NewCache};
use crate::evaluate::{Comparison, Probe, ProbeResult, Windows, compare, probe};
use crate::model::Model;
use crate::quantize::{LinearReport, sizes_of};
use crate::text::Tokenizer;
use bitsmith_compiler::{Error, Result};
use serde::Serialize;
use std::time::Instant;

/// Everything that a report says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// What it was compared with.
    pub reference: String,
    /// How its matrices are quantized.
    pub scheme: String,
    /// The text.
    pub text: String,
    /// Who multiplied.
    pub path: String,
    /// How keys and values were kept.
    pub kv: String,
    /// In a sentence.
    pub verdict: String,
    /// Perplexity, divergence, agreement.
    pub comparison: Comparison,
    /// Task by task, reference beside model.
    pub probes: Vec<ProbePair>,
    /// Matrix by matrix.
    pub layers: Vec<LayerRow>,
    /// The five matrices with the most noise.
    pub worst: Vec<String>,
    /// Bytes of the matrices and the embedding in the reference's own types.
    pub bytes_before: usize,
    /// The same now.
    pub bytes_after: usize,
    /// Prefill and decode, apart.
    pub performance: Vec<Speed>,
}

/// A task.
#[derive(Clone, Debug, Serialize)]
pub struct ProbePair {
    /// The reference.
    pub reference: ProbeResult,
    /// The model.
    pub model: ProbeResult,
    /// Pairs that only the reference gets right, and only the model.
    pub lost_and_won: (usize, usize),
    /// Chance of so lopsided a change if there were none (sign test).
    pub p_value: f64,
}

/// A matrix.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// The layer.
    pub name: String,
    /// Its format.
    pub format: String,
    /// How its inputs are quantized.
    pub activation: Option<String>,
    /// Signal to noise of the weights in decibels.
    pub weight_sqnr: Option<f64>,
    /// Signal to noise of the outputs in decibels, where calibration saw them.
    pub output_sqnr: Option<f64>,
    /// Share of codes at either end of the range.
    pub saturation: Option<f64>,
    /// Bytes.
    pub bytes: usize,
}

/// How fast one model is in one phase.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// `prefill` or `decode`.
    pub phase: &'static str,
    /// Tokens at once.
    pub tokens: usize,
    /// Tokens per second in floats.
    pub reference: f64,
    /// Tokens per second quantized.
    pub model: f64,
}

/// What a report is made from.
pub struct Subject<'a> {
    /// The reference in floats.
    pub reference: &'a Model,
    /// The quantized model.
    pub model: &'a Model,
    /// Who multiplies for the reference.
    pub floats: &'a dyn Executor,
    /// Who multiplies for the model.
    pub executor: &'a dyn Executor,
    /// How the model keeps keys and values; the reference keeps floats.
    pub cache: NewCache<'a>,
    /// Text.
    pub windows: &'a Windows,
    /// Tasks, and the tokenizer for them.
    pub probes: Option<(&'a [Probe], &'a Tokenizer)>,
    /// What `quantize` noted of each matrix.
    pub noted: &'a [LinearReport],
    /// Names of the model, its reference, its scheme, the text, the path, the KV format.
    pub names: [String; 6],
}

/// Measures and writes down.
pub fn report(subject: &Subject<'_>) -> Result<Report> {
    let reference = Engine::new(subject.reference, subject.floats)?;
    let model = Engine::new(subject.model, subject.executor)?;
    let comparison = compare(
        (subject.reference, subject.floats),
        (subject.model, subject.executor),
        subject.windows,
        subject.cache,
    )?;
    let mut probes = Vec::new();
    if let Some((tasks, tokenizer)) = subject.probes {
        for task in tasks {
            probes.push(pair(
                probe(&reference, tokenizer, task, &FloatCache::boxed)?,
                probe(&model, tokenizer, task, subject.cache)?,
            ));
        }
    }
    let layers = rows(subject);
    let mut order: Vec<&LayerRow> = layers.iter().filter(|row| noise(row).is_some()).collect();
    order.sort_by(|a, b| noise(a).unwrap_or(f64::MAX).total_cmp(&noise(b).unwrap_or(f64::MAX)));
    let worst = order.iter().take(5).map(|row| row.name.clone()).collect();
    let bytes = |model: &Model| model.linears().into_iter().chain([&model.embedding]).map(sizes_of).sum();
    let [name, of, scheme, text, path, kv] = subject.names.clone();
    Ok(Report {
        model: name,
        reference: of,
        scheme,
        text,
        path,
        kv,
        verdict: verdict(&comparison, &probes),
        comparison,
        probes,
        layers,
        worst,
        bytes_before: bytes(subject.reference),
        bytes_after: bytes(subject.model),
        performance: performance(&reference, (&model, subject.cache), subject.windows)?,
    })
}

/// Noise of a matrix: of its outputs, else of its weights.
fn noise(row: &LayerRow) -> Option<f64> {
    row.output_sqnr.or(row.weight_sqnr)
}

fn rows(subject: &Subject<'_>) -> Vec<LayerRow> {
    let floats = subject.reference.linears();
    subject
        .model
        .linears()
        .into_iter()
        .map(|linear| {
            let noted = subject.noted.iter().find(|note| note.name == linear.name);
            // Where nothing was noted, weights are compared as they are: foldings would show as noise.
            let direct = || {
                let other = floats.iter().find(|other| other.name == linear.name && other.k == linear.k)?;
                linear.weight.quantized()?;
                let (a, b) = (other.weight.values(), linear.weight.values());
                let signal: f64 = a.iter().map(|&a| a as f64 * a as f64).sum();
                let error: f64 = a.iter().zip(b.iter()).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
                Some(if error > 0.0 { 10.0 * (signal / error).log10() } else { 200.0 })
            };
            LayerRow {
                name: linear.name.clone(),
                format: linear.weight.format_name(),
                activation: linear.activation.map(|a| a.to_string()),
                weight_sqnr: noted.map_or_else(direct, |note| note.weight_sqnr),
                output_sqnr: noted.and_then(|note| note.output_sqnr),
                saturation: noted.and_then(|note| note.saturation),
                bytes: sizes_of(linear),
            }
        })
        .collect()
}

fn pair(reference: ProbeResult, model: ProbeResult) -> ProbePair {
    let (mut lost, mut won) = (0, 0);
    for (a, b) in reference.right.iter().zip(&model.right) {
        lost += usize::from(*a && !*b);
        won += usize::from(!*a && *b);
    }
    ProbePair { reference, model, lost_and_won: (lost, won), p_value: sign_test(lost, won) }
}

/// Two-sided sign test: the chance that a fair coin is at least as lopsided.
fn sign_test(lost: usize, won: usize) -> f64 {
    let (count, least) = (lost + won, lost.min(won));
    let mut term = 0.5f64.powi(count as i32);
    let mut sum = 0.0;
    for i in 0..=least {
        sum += term;
        term *= (count - i) as f64 / (i + 1) as f64;
    }
    (2.0 * sum).min(1.0)
}

/// What the figures mean, in a sentence.
fn verdict(c: &Comparison, probes: &[ProbePair]) -> String {
    let worse: Vec<&str> = probes
        .iter()
        .filter(|p| p.p_value < 0.05 && p.lost_and_won.0 > p.lost_and_won.1)
        .map(|p| p.model.name.as_str())
        .collect();
    let rise = 100.0 * c.increase;
    let grade = match (c.increase, c.mean_divergence) {
        (i, _) if i > 0.3 => "broken: the model does not predict this text any more; use more bits",
        (i, d) if i > 0.1 || d > 0.1 => "poor: clearly worse than the reference; try more bits, smaller groups or GPTQ",
        (i, d) if i > 0.02 || d > 0.02 => "fair: a loss that tasks may show; check those that matter to you",
        (i, d) if i > 0.005 || d > 0.005 => "good: a small loss",
        _ => "excellent: hardly to be told from the reference",
    };
    let tasks = match worse[..] {
        [] if probes.is_empty() => String::new(),
        [] => "; no task is significantly worse".into(),
        _ => format!("; significantly worse at {}", worse.join(", ")),
    };
    format!("{grade} (perplexity {rise:+.2} %, mean divergence {:.2e} nats){tasks}", c.mean_divergence)
}

/// Tokens per second: a window at once, and one token at a time behind half a window.
fn performance(reference: &Engine, model: (&Engine, NewCache<'_>), windows: &Windows) -> Result<Vec<Speed>> {
    let window = windows.list.first().ok_or_else(|| Error::invalid("no window"))?;
    let prefill = |(engine, cache): (&Engine, NewCache<'_>)| -> Result<f64> {
        best(3, || {
            let mut caches = engine.caches(cache)?;
            engine.forward(window, &mut caches, 1, |_, _| {})
        })
        .map(|seconds| window.len() as f64 / seconds)
    };
    let reference = (reference, &FloatCache::boxed as NewCache<'_>);
    let half = window.len() / 2;
    let steps = (window.len() - half).min(32);
    let decode = |(engine, cache): (&Engine, NewCache<'_>)| -> Result<f64> {
        let mut caches = engine.caches(cache)?;
        engine.forward(&window[..half], &mut caches, 1, |_, _| {})?;
        // The first step makes programs and buffers for one row.
        engine.forward(&window[half..=half.min(window.len() - 1)], &mut caches, 1, |_, _| {})?;
        let start = Instant::now();
        for i in 1..steps {
            engine.forward(&window[half + i..=half + i], &mut caches, 1, |_, _| {})?;
        }
        Ok((steps - 1) as f64 / start.elapsed().as_secs_f64())
    };
    Ok(vec![
        Speed { phase: "prefill", tokens: window.len(), reference: prefill(reference)?, model: prefill(model)? },
        Speed { phase: "decode", tokens: 1, reference: decode(reference)?, model: decode(model)? },
    ])
}

fn best(times: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut least = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        run()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 + 8 + 28 of 256 outcomes of eight throws have at most two heads, and as many at most two tails.
    #[test]
    fn sign_tests() {
        assert!((sign_test(6, 2) - 2.0 * 37.0 / 256.0).abs() < 1e-12);
        assert_eq!((sign_test(0, 0), sign_test(3, 3)), (1.0, 1.0));
    }
}
