//! Task probes: pairs of sentences of which a model should find the good one more likely (the shape of BLiMP).
//!
//! Reads JSON lines with `sentence_good` and `sentence_bad`; makes accuracies with confidence intervals.

use crate::engine::math::log_sum_exp;
use crate::engine::{Engine, NewCache};
use crate::file::clip;
use crate::text::Tokenizer;
use bitsmith_compiler::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// One task.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// Good and bad sentence.
    pub pairs: Vec<(String, String)>,
}

/// How a model did on a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeResult {
    /// The task.
    pub name: String,
    /// Pairs.
    pub pairs: usize,
    /// Share of pairs whose good sentence is more likely as a whole.
    pub accuracy: f64,
    /// 95 % confidence interval (Wilson).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Which pairs were right, for paired comparisons.
    #[serde(skip)]
    pub right: Vec<bool>,
}

/// Reads a `.jsonl` file, or all of a folder, sorted by name; at most `limit` pairs of each.
pub fn read_probes(path: &Path, limit: usize) -> Result<Vec<Probe>> {
    let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be read: {error}", path.display()));
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(fault)? {
            let file = entry.map_err(fault)?.path();
            if file.extension().is_some_and(|extension| extension == "jsonl") {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("{}: holds no .jsonl file", path.display())));
    }
    files.iter().map(|file| read(file, limit)).collect()
}

fn read(file: &Path, limit: usize) -> Result<Probe> {
    let text = crate::file::safetensors::read_text(file)?;
    let pair = |(number, line): (usize, &str)| -> Result<(String, String)> {
        let value = crate::file::safetensors::parse_json(line, &format!("{}:{}", file.display(), number + 1))?;
        let field = |name: &str| {
            value
                .get(name)
                .and_then(serde_json::Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| Error::invalid(format!("{}:{}: `{name}` is missing", file.display(), number + 1)))
        };
        Ok((field("sentence_good")?, field("sentence_bad")?))
    };
    let pairs = text.lines().filter(|line| !line.trim().is_empty()).take(limit).enumerate().map(pair);
    let name = file.file_stem().map(|stem| clip(&stem.to_string_lossy())).unwrap_or_default();
    Ok(Probe { name, pairs: pairs.collect::<Result<_>>()? })
}

/// Runs a task; each sentence gets caches of its own.
pub fn probe(engine: &Engine, tokenizer: &Tokenizer, probe: &Probe, cache: NewCache<'_>) -> Result<ProbeResult> {
    let likelihood = |text: &str| -> Result<f64> {
        let ids = tokenizer.encode(text)?;
        let ids: Vec<u32> = engine.config().bos.into_iter().chain(ids).collect();
        if ids.len() < 2 {
            return Ok(0.0);
        }
        let mut sum = 0.0;
        let mut caches = engine.caches(cache)?;
        engine.forward(&ids[..ids.len() - 1], &mut caches, ids.len() - 1, |at, logits| {
            sum += logits[ids[at + 1] as usize % logits.len()] as f64 - log_sum_exp(logits);
        })?;
        Ok(sum)
    };
    let mut right = Vec::new();
    for (good, bad) in &probe.pairs {
        right.push(likelihood(good)? > likelihood(bad)?);
    }
    let hits = right.iter().filter(|hit| **hit).count();
    let (low, high) = wilson(hits, right.len());
    Ok(ProbeResult {
        name: probe.name.clone(),
        pairs: right.len(),
        accuracy: hits as f64 / right.len().max(1) as f64,
        low,
        high,
        right,
    })
}

/// The 95 % interval of a share (Wilson 1927), which stays inside 0 to 1.
fn wilson(hits: usize, count: usize) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (count as f64, 1.959964);
    let p = hits as f64 / n;
    let center = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    (center - half, center + half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The interval of 8 of 10, from Wilson's formula worked out by hand.
    #[test]
    fn intervals() {
        let (low, high) = wilson(8, 10);
        assert!((low - 0.4902).abs() < 1e-3 && (high - 0.9433).abs() < 1e-3, "{low} {high}");
        assert_eq!(wilson(0, 0), (0.0, 1.0));
        assert!(wilson(10, 10).1 <= 1.0);
    }
}
