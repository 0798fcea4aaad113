//! The engine of calibration and evaluation: a decoder's forward pass over whoever multiplies its matrices.
//!
//! Reads a model and token ids; makes logits, and on the way shows the inputs of every matrix to whoever asks. Always
//! holds: there is one forward pass; dense floats ([`Dense`]) and bitsmith's own kernels ([`Kernels`]) differ in how one
//! matrix is applied, and caches in how keys and values are kept.

mod block;
mod cache;
mod dense;
pub mod gemm;
mod kernels;
pub mod math;
mod paged;

pub use block::{Block, Site};
pub use cache::{FloatCache, KvCache, NewCache};
pub use dense::{Activations, Dense};
pub use kernels::Kernels;
pub use paged::{PagedCaches, Through, with_caches};

use crate::model::{Config, Layers, Linear, Weight, row};
use bitsmith_compiler::{Error, Result};

/// Applies one matrix.
pub trait Apply: Send + Sync {
    /// `x[m, inputs] · Wᵀ + bias`, `[m, n]`.
    fn apply(&self, x: &[f32], m: usize) -> Result<Vec<f32>>;
}

/// Makes matrices ready.
pub trait Executor: Sync {
    /// Takes a copy of a matrix in the form in which it runs.
    fn prepare(&self, linear: &Linear) -> Result<Box<dyn Apply>>;

    /// Takes a matrix over, without a copy where its form allows.
    fn take(&self, linear: Linear) -> Result<Box<dyn Apply>> {
        self.prepare(&linear)
    }
}

/// A model that is ready to run.
pub struct Engine {
    config: Config,
    embedding: Linear,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: Box<dyn Apply>,
}

/// Rows of logits that are made at once: it bounds the memory of a large vocabulary.
const HEAD_ROWS: usize = 64;

impl Engine {
    /// Makes a model ready.
    pub fn new(model: &dyn Layers, executor: &dyn Executor) -> Result<Engine> {
        let config = model.config().clone();
        let block = |index| Block::new(&config, model.layer(index)?.into_owned(), executor);
        Ok(Engine {
            embedding: model.embedding()?.into_owned(),
            blocks: (0..config.shape.layers).map(block).collect::<Result<_>>()?,
            norm: model.norm()?.into_owned().values,
            head: executor.prepare(&*model.logits()?)?,
            config,
        })
    }

    /// Sizes and constants of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Empty caches for one sequence.
    pub fn caches(&self, new: NewCache<'_>) -> Result<Vec<Box<dyn KvCache>>> {
        (0..self.blocks.len()).map(|layer| new(&self.config, layer)).collect()
    }

    /// Runs tokens that follow those in the caches; calls `each` with the place of a token among them and its logits, for
    /// the last `wanted` tokens.
    pub fn forward(
        &self,
        ids: &[u32],
        caches: &mut [Box<dyn KvCache>],
        wanted: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let hidden = self.config.shape.hidden;
        let mut x = embed(&self.embedding, ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            block.forward(&mut x, ids.len(), cache.as_mut(), &mut |_, _, _| Ok(()))?;
        }
        let first = ids.len() - wanted.min(ids.len());
        for (chunk, rows) in x[first * hidden..].chunks(HEAD_ROWS * hidden).enumerate() {
            let normed = math::rms_norm(rows, &self.norm, self.config.eps);
            let m = rows.len() / hidden;
            let logits = self.head.apply(&normed, m)?;
            for (i, logits) in logits.chunks_exact(logits.len() / m).enumerate() {
                each(first + chunk * HEAD_ROWS + i, logits);
            }
        }
        Ok(())
    }

    /// All logits of a text, `[ids, vocab]`, from empty float caches.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut caches = self.caches(&FloatCache::boxed)?;
        let mut all = Vec::with_capacity(ids.len() * self.config.shape.vocab);
        self.forward(ids, &mut caches, ids.len(), |_, logits| all.extend_from_slice(logits))?;
        Ok(all)
    }
}

/// Rows of the embedding.
pub fn embed(embedding: &Linear, ids: &[u32]) -> Result<Vec<f32>> {
    let mut x = Vec::with_capacity(ids.len() * embedding.k);
    for &id in ids {
        if id as usize >= embedding.n {
            return Err(Error::invalid(format!("token {id}; the vocabulary has {}", embedding.n)));
        }
        match &embedding.weight {
            Weight::Floats(floats) => x.extend_from_slice(&floats.values[id as usize * embedding.k..][..embedding.k]),
            Weight::Quantized(q) => x.extend(row(q, id as usize)),
        }
    }
    Ok(x)
}
