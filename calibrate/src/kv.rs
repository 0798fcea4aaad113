//! Formats of keys and values by the names of recipes, and the scales that some of them take from calibration.
//!
//! Reads names, models and prompts; makes [`KvFormat`]s and [`KvScales`]. Scales per token, group and channel (KIVI's keys)
//! are made by the cache as tokens come; scales per tensor and head come from here: the range that a layer's keys and values
//! reach over all prompts, for 4 bits cut where the squared error of a sample is least. Always holds: scales name the format that they
//! were found for, and are refused for another.

use crate::engine::{Block, Executor, FloatCache, KvCache};
use crate::file::clip;
use crate::model::{Config, Layers};
use crate::quantize::Prompts;
use bitsmith_compiler::format::kv::{KvCodes, KvFormat, KvPer, codes};
use bitsmith_compiler::op::kv::KvStatics;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file of scales beside a model or among statistics.
pub const FILE: &str = "kv_scales.json";

/// Rows of keys and values of a layer that are kept to try ranges on.
const SAMPLE: usize = 128;
/// Shares of the whole range that are tried: 1, 0.95 … 0.4.
const STEPS: usize = 13;

/// A format by its name in `docs/kv.md`, or by one of recipes: `int8-token-head` is `int8-token`, `fp8-…` is `fp8e4m3-…`, and
/// `int4-kivi` has keys per channel over 32 tokens, values in groups of 32 channels and the newest 64 tokens in f16. `f32` and
/// `none` are no format: keys and values stay floats.
pub fn format(name: &str) -> Result<Option<KvFormat>> {
    let text = name.trim().to_ascii_lowercase();
    let text = match text.as_str() {
        "f32" | "none" => return Ok(None),
        "int4-kivi" => "int4-channel-asym.int4-group32-asym+64".to_owned(),
        other => {
            let side = |side: &str| {
                let side = side.strip_prefix("fp8-").map_or_else(|| side.to_owned(), |rest| format!("fp8e4m3-{rest}"));
                side.replace("-token-head", "-token")
            };
            other.split('.').map(side).collect::<Vec<_>>().join(".")
        }
    };
    text.parse().map(Some).map_err(|error: Error| Error::invalid(format!("kv `{}`: {error}", clip(name))))
}

/// Scales of all layers of a model, for one format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvScales {
    /// Version of the file.
    pub schema: u32,
    /// The format that they were found for.
    pub format: String,
    /// Per layer, per KV head: scale and offset of keys, scale and offset of values.
    pub layers: Vec<Vec<[f32; 4]>>,
}

impl KvScales {
    /// One scale each for keys and values of each layer, as checkpoints carry them; `None` where a layer has none.
    pub fn of_checkpoint(model: &dyn Layers, format: &KvFormat) -> Result<Option<KvScales>> {
        let heads = model.config().shape.kv_heads;
        let mut layers = Vec::new();
        for index in 0..model.config().shape.layers {
            let Some((k, v)) = model.layer(index)?.kv_scales else { return Ok(None) };
            layers.push(vec![[k, 0.0, v, 0.0]; heads]);
        }
        Ok(Some(KvScales { schema: 1, format: format.to_string(), layers }))
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<KvScales> {
        let text = crate::file::safetensors::read_text(path)?;
        let found: KvScales =
            serde_json::from_str(&text).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
        let sound = |s: &[f32; 4]| s.iter().all(|x| x.is_finite()) && s[0] >= 0.0 && s[2] >= 0.0;
        if found.schema != 1 || !found.layers.iter().flatten().all(sound) {
            return Err(Error::invalid(format!(
                "{}: schema {} with scales that are {}; accepted: schema 1, finite scales that are not negative",
                path.display(),
                found.schema,
                if found.layers.iter().flatten().all(sound) { "sound" } else { "not" }
            )));
        }
        Ok(found)
    }

    /// Writes a file, beside its place first.
    pub fn write(&self, path: &Path) -> Result<()> {
        let fault = |error: &dyn std::fmt::Display| Error::invalid(format!("{}: {error}", path.display()));
        let text = serde_json::to_string(self).map_err(|error| fault(&error))?;
        let part = path.with_extension("part");
        std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).map_err(|error| fault(&error))
    }

    /// Refuses another format than the one they were found for.
    pub fn check(&self, format: &KvFormat) -> Result<()> {
        if self.format == format.to_string() {
            return Ok(());
        }
        Err(Error::invalid(format!("scales for KV format {}, asked for {format}", clip(&self.format))))
    }

    /// Those of a layer, as caches take them.
    pub fn of(&self, layer: usize, heads: usize) -> Result<Vec<KvStatics>> {
        let list = self.layers.get(layer).filter(|list| list.len() == heads).ok_or_else(|| {
            Error::invalid(format!(
                "KV scales of {} layers, {} heads in layer {layer}; the model has {heads}",
                self.layers.len(),
                self.layers.get(layer).map_or(0, Vec::len)
            ))
        })?;
        Ok(list.iter().map(|s| KvStatics { k: (s[0], s[1]), v: (s[2], s[3]) }).collect())
    }
}

/// Runs prompts through a model and finds the scales of a format whose scales are the caller's.
pub fn calibrate(
    model: &dyn Layers,
    prompts: &Prompts,
    executor: &dyn Executor,
    format: &KvFormat,
) -> Result<KvScales> {
    let config = model.config();
    let embedding = model.embedding()?;
    let mut streams = prompts.embedded(&embedding)?;
    let mut layers = Vec::new();
    for index in 0..config.shape.layers {
        let block = Block::new(config, model.layer(index)?.into_owned(), executor)?;
        let mut watch = Watch::new(config);
        for at in 0..streams.len() {
            let mut x = streams.get(at)?;
            let m = x.len() / config.shape.hidden;
            block.forward(&mut x, m, &mut watch.cache(), &mut |_, _, _| Ok(()))?;
            streams.set(at, x)?;
        }
        layers.push(watch.scales(format));
    }
    Ok(KvScales { schema: 1, format: format.to_string(), layers })
}

/// What the keys, or values, of a layer reach.
struct Ranges {
    dim: usize,
    /// Least and largest of each KV head.
    ends: Vec<(f32, f32)>,
    /// Some rows as they were, every `stride`-th.
    sample: Vec<f32>,
    rows: usize,
    stride: usize,
}

/// Watches what is appended to the caches of a layer.
struct Watch {
    config: Config,
    k: Ranges,
    v: Ranges,
}

struct Watched<'a> {
    inner: FloatCache,
    watch: &'a mut Watch,
}

impl Watch {
    fn new(config: &Config) -> Watch {
        let ranges = || Ranges {
            dim: config.shape.head_dim,
            ends: vec![(f32::INFINITY, f32::NEG_INFINITY); config.shape.kv_heads],
            sample: Vec::new(),
            rows: 0,
            stride: 1,
        };
        Watch { config: config.clone(), k: ranges(), v: ranges() }
    }

    fn cache(&mut self) -> Watched<'_> {
        Watched { inner: FloatCache::new(&self.config), watch: self }
    }

    fn scales(&self, format: &KvFormat) -> Vec<[f32; 4]> {
        let (k, v) = (self.k.scales(&format.k), self.v.scales(&format.v));
        k.into_iter().zip(v).map(|(k, v)| [k.0, k.1, v.0, v.1]).collect()
    }
}

impl KvCache for Watched<'_> {
    fn tokens(&self) -> usize {
        self.inner.tokens()
    }

    fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<()> {
        self.watch.k.add(keys);
        self.watch.v.add(values);
        self.inner.append(keys, values)
    }

    fn attend(&mut self, queries: &[f32], m: usize) -> Result<Vec<f32>> {
        self.inner.attend(queries, m)
    }
}

impl Ranges {
    fn add(&mut self, x: &[f32]) {
        let width = self.dim * self.ends.len();
        for row in x.chunks_exact(width) {
            for (head, ends) in row.chunks_exact(self.dim).zip(&mut self.ends) {
                let finite = || head.iter().copied().filter(|x| x.is_finite());
                *ends = (finite().fold(ends.0, f32::min), finite().fold(ends.1, f32::max));
            }
            if self.rows.is_multiple_of(self.stride) {
                self.sample.extend_from_slice(row);
                if self.sample.len() == 2 * SAMPLE * width {
                    self.stride *= 2;
                    let kept: Vec<f32> =
                        self.sample.chunks_exact(2 * width).flat_map(|two| two[..width].to_vec()).collect();
                    self.sample = kept;
                }
            }
            self.rows += 1;
        }
    }

    /// Scale and offset of each head; (1, 0) where the cache makes them itself.
    fn scales(&self, kind: &KvCodes) -> Vec<(f32, f32)> {
        let heads = self.ends.len();
        if !kind.is_static() {
            return vec![(1.0, 0.0); heads];
        }
        let rows = || self.sample.chunks_exact(self.dim).enumerate();
        if kind.per == KvPer::Tensor {
            let whole = self.ends.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |a, e| (a.0.min(e.0), a.1.max(e.1)));
            return vec![best(kind, whole, &self.sample); heads];
        }
        let of = |head: usize| -> Vec<f32> {
            rows().filter(|(i, _)| i % heads == head).flat_map(|(_, x)| x.iter().copied()).collect()
        };
        (0..heads).map(|head| best(kind, self.ends[head], &of(head))).collect()
    }
}

/// The whole range; of codes of 4 bits, the share of it whose codes have the least squared error on a sample.
fn best(kind: &KvCodes, (low, high): (f32, f32), sample: &[f32]) -> (f32, f32) {
    // Nothing but zeros, or nothing at all.
    if low > high || (low == 0.0 && high == 0.0) {
        return (1.0, 0.0);
    }
    let trial = |step: usize| -> (f32, f32) {
        let share = 1.0 - 0.05 * step as f32;
        if kind.asymmetric {
            // Towards the middle of the range, from both ends.
            let (middle, half) = ((low + high) / 2.0, (high - low) / 2.0 * share);
            ((2.0 * half / kind.top()).max(f32::MIN_POSITIVE), middle - half)
        } else {
            ((low.abs().max(high.abs()) * share / kind.top()).max(f32::MIN_POSITIVE), 0.0)
        }
    };
    let error = |given: (f32, f32)| -> f64 {
        let (list, ..) = codes::encode_granule(kind, sample, Some(given));
        let back = |code: u32| codes::decode(kind, code) * given.0 as f64 + given.1 as f64;
        list.into_iter().zip(sample).map(|(code, x)| (back(code) - *x as f64).powi(2)).sum()
    };
    let mut found = (f64::INFINITY, trial(0));
    // With 8 bits a step is small beside what a cut does to the few keys that reach far, and attention leans on those.
    let steps = if kind.code.bits() < 8 { STEPS } else { 1 };
    for step in 0..steps {
        let given = trial(step);
        let error = error(given);
        if error < found.0 {
            found = (error, given);
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_recipes_are_formats() {
        let shown = |name: &str| format(name).unwrap().map(|f| f.to_string());
        assert_eq!(shown("int8-token-head").unwrap(), "int8-token");
        assert_eq!(shown("fp8-tensor").unwrap(), "fp8e4m3-tensor");
        assert_eq!(shown("int4-kivi").unwrap(), "int4-channel-asym.int4-group32-asym+64");
        assert_eq!(shown("fp8-head.int8-token-head").unwrap(), "fp8e4m3-head.int8-token");
        assert_eq!((shown("f16").unwrap().as_str(), shown("f32"), shown("none")), ("f16", None, None));
        assert!(format("int9-head").unwrap_err().to_string().contains("`int9` is no code"));
        for kind in crate::pick::Kv::ALL {
            assert!(format(kind.name()).is_ok(), "{}", kind.name());
        }
    }

    /// One number in ten thousand far out: four bits serve the others better without it, eight bits keep it.
    #[test]
    fn ranges_are_cut_where_that_serves_the_sample() {
        let mut rng = fastrand::Rng::with_seed(8);
        let mut x: Vec<f32> = (0..4096).map(|_| rng.f32() - 0.5).collect();
        x[77] = 2.0;
        let of = |name: &str| format(name).unwrap().unwrap().k;
        let error = |kind: &KvCodes, given: (f32, f32)| -> f64 {
            let (list, ..) = codes::encode_granule(kind, &x, Some(given));
            let each = |(code, x): (u32, &f32)| codes::decode(kind, code) * given.0 as f64 + given.1 as f64 - *x as f64;
            list.into_iter().zip(&x).map(each).map(|d| d * d).sum()
        };
        let four = best(&of("int4-head"), (-0.5, 2.0), &x);
        assert!(
            four.0 < 0.9 * 2.0 / 7.0 && error(&of("int4-head"), four) < 0.8 * error(&of("int4-head"), (2.0 / 7.0, 0.0))
        );
        let eight = best(&of("int8-head"), (-0.5, 2.0), &x);
        assert_eq!(eight, (2.0 / 127.0, 0.0));
        let (scale, offset) = best(&of("int8-head-asym"), (1.0, 3.0), &[1.0, 2.0, 3.0]);
        assert!((offset - 1.0).abs() < 1e-6 && (scale - 2.0 / 255.0).abs() < 1e-6, "{scale} {offset}");
        assert_eq!(best(&of("int8-head"), (f32::INFINITY, f32::NEG_INFINITY), &[]), (1.0, 0.0));
    }
}
