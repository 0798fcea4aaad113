//! Keys and values of the tokens so far, and attention over them.
//!
//! [`KvCache`] is the seam for quantized caches: a cache takes keys and values after rotation and answers queries, and
//! how it keeps them is its own affair. [`FloatCache`] keeps `f32`.

use super::gemm::{Threads, View, multiply};
use super::math::softmax;
use crate::model::Config;
use bitsmith_compiler::{Error, Result};
use rayon::prelude::*;

/// The cache of one layer and one sequence.
pub trait KvCache: Send {
    /// Tokens so far.
    fn tokens(&self) -> usize;

    /// Takes the keys and values of more tokens, each `[tokens, kv_heads · head_dim]`, keys rotated already.
    fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<()>;

    /// What the queries `[m, heads · head_dim]` of the last `m` tokens see, causally.
    fn attend(&mut self, queries: &[f32], m: usize) -> Result<Vec<f32>>;
}

/// Makes an empty cache for the layer of a number.
pub type NewCache<'a> = &'a (dyn Fn(&Config, usize) -> Result<Box<dyn KvCache>> + Sync);

/// Keys and values as `f32`.
#[derive(Clone, Debug)]
pub struct FloatCache {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl FloatCache {
    /// An empty cache for the layers of a model.
    pub fn new(config: &Config) -> FloatCache {
        let s = &config.shape;
        FloatCache {
            heads: s.heads,
            kv_heads: s.kv_heads,
            dim: s.head_dim,
            window: config.window,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// [`FloatCache::new`] as a [`NewCache`].
    pub fn boxed(config: &Config, _layer: usize) -> Result<Box<dyn KvCache>> {
        Ok(Box::new(FloatCache::new(config)))
    }
}

impl KvCache for FloatCache {
    fn tokens(&self) -> usize {
        self.keys.len() / (self.kv_heads * self.dim)
    }

    fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<()> {
        if keys.len() != values.len() || !keys.len().is_multiple_of(self.kv_heads * self.dim) {
            return Err(Error::invalid(format!("{} keys beside {} values", keys.len(), values.len())));
        }
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
        Ok(())
    }

    fn attend(&mut self, queries: &[f32], m: usize) -> Result<Vec<f32>> {
        let (dim, total) = (self.dim, self.tokens());
        let (width, kv_width) = (self.heads * dim, self.kv_heads * dim);
        if queries.len() != m * width || m > total || m == 0 {
            return Err(Error::invalid(format!("{} queries of {m} tokens over {total}", queries.len())));
        }
        let first = total - m;
        let scale = 1.0 / (dim as f32).sqrt();
        let heads: Vec<Vec<f32>> = (0..self.heads)
            .into_par_iter()
            .map(|head| {
                let kv = head / (self.heads / self.kv_heads) * dim;
                let view = |all: &'_ [f32], at: usize, rows: usize, stride: usize| -> Vec<f32> {
                    (0..rows).flat_map(|row| all[row * stride + at..][..dim].iter().copied()).collect()
                };
                let q = view(queries, head * dim, m, width);
                let (keys, values) = (view(&self.keys, kv, total, kv_width), view(&self.values, kv, total, kv_width));
                let mut scores = vec![0.0f32; m * total];
                let (left, right) = (View::rows(&q, m, dim, dim), View::rows(&keys, total, dim, dim).transposed());
                multiply(&mut scores, total, false, scale, left, right, Threads::One);
                for (i, row) in scores.chunks_exact_mut(total).enumerate() {
                    let end = first + i + 1;
                    let start = self.window.map_or(0, |window| end.saturating_sub(window));
                    softmax(&mut row[start..end]);
                    row[..start].fill(0.0);
                    row[end..].fill(0.0);
                }
                let mut out = vec![0.0f32; m * dim];
                let (left, right) = (View::rows(&scores, m, total, total), View::rows(&values, total, dim, dim));
                multiply(&mut out, dim, false, 1.0, left, right, Threads::One);
                out
            })
            .collect();
        let mut out = vec![0.0; m * width];
        for (head, part) in heads.iter().enumerate() {
            for (row, numbers) in part.chunks_exact(dim).enumerate() {
                out[row * width + head * dim..][..dim].copy_from_slice(numbers);
            }
        }
        Ok(out)
    }
}
