//! How good a model is: perplexity, and how far its next-token distributions are from a reference's.
//!
//! Reads token ids cut into windows; makes numbers that name their windows. Always holds: one layer of a model is in memory
//! at a time; logits are looked at one window at a time and one row at a time, so that memory grows with the vocabulary, not
//! with the text.

mod probe;

pub use probe::{Probe, ProbeResult, probe, read_probes};

use crate::engine::math::{log_sum_exp, rms_norm};
use crate::engine::{Apply, Block, Executor, FloatCache, NewCache};
use crate::model::Layers;
use crate::quantize::{Prompts, Residuals};
use bitsmith_compiler::{Error, Result};
use serde::Serialize;

/// A text in windows: each is run on its own, after the token that opens a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The token before each window, if there is one.
    pub bos: Option<u32>,
    /// The windows, all of one length.
    pub list: Vec<Vec<u32>>,
}

impl Windows {
    /// The first `count` windows of `length` tokens; refuses a text that is shorter than one.
    pub fn new(ids: &[u32], bos: Option<u32>, length: usize, count: usize) -> Result<Windows> {
        if length < 2 || count == 0 || ids.len() < length {
            return Err(Error::invalid(format!(
                "{count} windows of {length} tokens from a text of {}; accepted: at least one window of 2 tokens or more",
                ids.len()
            )));
        }
        Ok(Windows { bos, list: ids.chunks_exact(length).take(count).map(<[u32]>::to_vec).collect() })
    }

    /// Calibration prompts as windows: the first token of each opens its text already.
    pub fn of_prompts(prompts: &Prompts) -> Windows {
        Windows { bos: None, list: prompts.list.clone() }
    }

    /// Tokens whose probability is asked for.
    pub fn tokens(&self) -> usize {
        self.list.iter().map(|window| window.len() - usize::from(self.bos.is_none())).sum()
    }

    /// What is run for a window, and what should come after each of its tokens.
    fn inputs(&self, window: &[u32]) -> (Vec<u32>, Vec<u32>) {
        match self.bos {
            Some(bos) => {
                let inputs = std::iter::once(bos).chain(window[..window.len() - 1].iter().copied()).collect();
                (inputs, window.to_vec())
            }
            None => (window[..window.len() - 1].to_vec(), window[1..].to_vec()),
        }
    }
}

/// Perplexity and what it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of the mean negative log-likelihood, over windows.
    pub standard_error: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
}

/// A model and who multiplies for it.
pub type Runner<'a> = (&'a dyn Layers, &'a dyn Executor);

/// Perplexity over windows, of a model that is read layer by layer.
pub fn perplexity(model: Runner<'_>, windows: &Windows, cache: NewCache<'_>) -> Result<Perplexity> {
    let mut run = Run::new(model, windows, cache)?;
    let mut sums = Vec::new();
    for (index, window) in windows.list.iter().enumerate() {
        let (_, targets) = windows.inputs(window);
        let mut sum = 0.0;
        run.logits(index, &mut |at, logits| {
            sum += log_sum_exp(logits) - logits[targets[at] as usize % logits.len()] as f64;
        })?;
        sums.push((sum, targets.len()));
    }
    Ok(summary(&sums))
}

/// Windows behind the last layer of a model, ready for its head.
struct Run {
    streams: Residuals,
    norm: Vec<f32>,
    eps: f64,
    head: Box<dyn Apply>,
}

/// Rows of logits that are made at once: it bounds the memory of a large vocabulary.
const ROWS: usize = 64;

impl Run {
    /// Takes all windows through one layer after another: in memory are one layer and the caches of one window.
    fn new((model, executor): Runner<'_>, windows: &Windows, cache: NewCache<'_>) -> Result<Run> {
        let config = model.config();
        let inputs: Vec<Vec<u32>> = windows.list.iter().map(|window| windows.inputs(window).0).collect();
        let mut streams = Prompts { list: inputs }.embedded(&*model.embedding()?)?;
        for index in 0..config.shape.layers {
            let block = Block::new(config, model.layer(index)?.into_owned(), executor)?;
            for at in 0..streams.len() {
                let mut x = streams.get(at)?;
                let m = x.len() / config.shape.hidden;
                block.forward(&mut x, m, cache(config, index)?.as_mut(), &mut |_, _, _| Ok(()))?;
                streams.set(at, x)?;
            }
        }
        let norm = model.norm()?.into_owned().values;
        Ok(Run { streams, norm, eps: config.eps, head: executor.prepare(&*model.logits()?)? })
    }

    /// The logits of a window, row by row.
    fn logits(&mut self, window: usize, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let x = self.streams.get(window)?;
        let width = self.norm.len();
        for (chunk, rows) in x.chunks(ROWS * width).enumerate() {
            let m = rows.len() / width;
            let logits = self.head.apply(&rms_norm(rows, &self.norm, self.eps), m)?;
            for (i, logits) in logits.chunks_exact(logits.len() / m).enumerate() {
                each(chunk * ROWS + i, logits);
            }
        }
        Ok(())
    }
}

fn summary(sums: &[(f64, usize)]) -> Perplexity {
    let tokens: usize = sums.iter().map(|(_, count)| count).sum();
    let mean = sums.iter().map(|(sum, _)| sum).sum::<f64>() / tokens.max(1) as f64;
    let windows = sums.len() as f64;
    let spread: f64 = sums.iter().map(|(sum, count)| (sum / *count as f64 - mean).powi(2)).sum();
    Perplexity {
        perplexity: mean.exp(),
        standard_error: (spread / (windows - 1.0).max(1.0) / windows).sqrt(),
        tokens,
        windows: sums.len(),
        window: sums.first().map_or(0, |(_, count)| *count),
    }
}

/// Shares of tokens whose divergence a comparison tells.
pub const DIVERGENCE_SHARES: [f64; 6] = [0.1, 0.5, 0.9, 0.99, 0.999, 1.0];

/// A model beside a reference, over the same windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The reference.
    pub reference: Perplexity,
    /// The model.
    pub model: Perplexity,
    /// Relative change of perplexity.
    pub increase: f64,
    /// Its standard error, over windows in pairs.
    pub increase_error: f64,
    /// Mean Kullback-Leibler divergence of the model's distribution from the reference's, in nats.
    pub mean_divergence: f64,
    /// Divergences below which the shares of tokens of [`DIVERGENCE_SHARES`] lie.
    pub divergences: [f64; DIVERGENCE_SHARES.len()],
    /// 99.9 % of tokens diverge less.
    pub divergence_999: f64,
    /// Share of tokens where both think the same one most likely.
    pub top_1: f64,
    /// Largest absolute difference of logits.
    pub max_logit_error: f64,
}

/// A reference that went through its layers once, to be compared with any number of models.
pub struct Reference(Run);

impl Reference {
    /// Takes all windows through the layers of a reference, which keeps its keys and values in floats.
    pub fn new(reference: Runner<'_>, windows: &Windows) -> Result<Reference> {
        Ok(Reference(Run::new(reference, windows, &FloatCache::boxed)?))
    }
}

/// Compares a model with a reference, both read layer by layer; the cache is the model's, the reference keeps floats.
pub fn compare(reference: Runner<'_>, model: Runner<'_>, windows: &Windows, cache: NewCache<'_>) -> Result<Comparison> {
    compare_with(&mut Reference::new(reference, windows)?, model, windows, cache)
}

/// Compares a model with a reference that has run over the same windows.
pub fn compare_with(
    reference: &mut Reference,
    model: Runner<'_>,
    windows: &Windows,
    cache: NewCache<'_>,
) -> Result<Comparison> {
    let first = &mut reference.0;
    let mut second = Run::new(model, windows, cache)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut divergences, mut agree, mut worst) = (Vec::new(), 0usize, 0.0f64);
    for (index, window) in windows.list.iter().enumerate() {
        let (_, targets) = windows.inputs(window);
        let mut rows: Vec<Vec<f32>> = Vec::with_capacity(targets.len());
        first.logits(index, &mut |_, logits| rows.push(logits.to_vec()))?;
        let (mut own, mut other) = (0.0, 0.0);
        second.logits(index, &mut |at, logits| {
            let expected = &rows[at];
            let (a, b) = (log_sum_exp(expected), log_sum_exp(logits));
            let target = targets[at] as usize % logits.len();
            other += a - expected[target] as f64;
            own += b - logits[target] as f64;
            let divergence: f64 = expected
                .iter()
                .zip(logits)
                .map(|(&p, &q)| (p as f64 - a).exp() * ((p as f64 - a) - (q as f64 - b)))
                .sum();
            divergences.push(divergence.max(0.0));
            agree += usize::from(top(expected) == top(logits));
            for (p, q) in expected.iter().zip(logits) {
                worst = worst.max((p - q).abs() as f64);
            }
        })?;
        ours.push((own, targets.len()));
        theirs.push((other, targets.len()));
    }
    let (reference, model) = (summary(&theirs), summary(&ours));
    let count = divergences.len().max(1);
    let mean_divergence = divergences.iter().sum::<f64>() / count as f64;
    divergences.sort_by(f64::total_cmp);
    let below = |share: f64| divergences.get(((count as f64 * share) as usize).min(count - 1)).copied().unwrap_or(0.0);
    Ok(Comparison {
        reference,
        model,
        increase: model.perplexity / reference.perplexity - 1.0,
        increase_error: paired_error(&ours, &theirs),
        mean_divergence,
        divergences: DIVERGENCE_SHARES.map(below),
        divergence_999: below(0.999),
        top_1: agree as f64 / count as f64,
        max_logit_error: worst,
    })
}

/// Standard error of the relative change of perplexity: windows are compared in pairs, so that what makes a window hard for
/// both falls out.
fn paired_error(ours: &[(f64, usize)], theirs: &[(f64, usize)]) -> f64 {
    let changes: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| (a.0 - b.0) / a.1.max(1) as f64).collect();
    let n = changes.len() as f64;
    let mean = changes.iter().sum::<f64>() / n.max(1.0);
    let spread: f64 = changes.iter().map(|c| (c - mean).powi(2)).sum();
    mean.exp() * (spread / (n - 1.0).max(1.0) / n.max(1.0)).sqrt()
}

/// The most likely token; the first of equals.
pub fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_and_refused() {
        let ids: Vec<u32> = (0..10).collect();
        let windows = Windows::new(&ids, Some(99), 4, 5).unwrap();
        assert_eq!(windows.list, [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(windows.inputs(&windows.list[1]), (vec![99, 4, 5, 6], vec![4, 5, 6, 7]));
        assert_eq!(windows.tokens(), 8);
        let plain = Windows { bos: None, ..windows };
        assert_eq!(plain.inputs(&plain.list[0]), (vec![0, 1, 2], vec![1, 2, 3]));
        assert_eq!(plain.tokens(), 6);
        assert!(Windows::new(&ids, None, 11, 1).unwrap_err().to_string().contains("text of 10"));
    }
}
