//! Quantizers, and the pass that takes a model through them layer by layer.
//!
//! Reads a checkpoint in floats, a recipe and calibration prompts; makes quantized layers, one after another. Always
//! holds: a layer's inputs come from the layers before it as they were quantized; the same seed and text give the same
//! codes; no more than one layer in floats is in memory.

pub mod awq;
mod budget;
pub mod clip;
pub mod gptq;
mod layer;
mod prompts;
pub mod rotate;
pub mod smooth;
mod stats;

pub use budget::{FallBack, Judge, Sensitivity, fall_back};
pub use layer::{LayerQuantizer, LinearReport};
pub use prompts::{Prompts, Residuals};
pub use stats::{Histogram, Stats};

use crate::engine::{Executor, embed};
use crate::import::Checkpoint;
use crate::model::{Layer, Linear, Model, Weight};
use crate::recipe::{Plan, RecipeFile, Sizes};
use bitsmith_compiler::Result;
use bitsmith_compiler::dtype::DType;
use std::collections::BTreeMap;

/// Where layers come from: a checkpoint, one by one, or a model in memory.
pub enum Source<'a> {
    /// A file.
    Checkpoint(&'a Checkpoint),
    /// A model, which is left as it is.
    Model(&'a Model),
}

impl Source<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.layer(index),
            Source::Model(model) => Ok(model.layers[index].clone()),
        }
    }

    /// A model without its decoder layers.
    fn frame(&self) -> Result<Model> {
        Ok(match self {
            Source::Checkpoint(checkpoint) => Model {
                config: checkpoint.config.clone(),
                embedding: checkpoint.embedding()?,
                layers: Vec::new(),
                norm: checkpoint.norm()?,
                head: checkpoint.head()?,
            },
            Source::Model(model) => Model {
                config: model.config.clone(),
                embedding: model.embedding.clone(),
                layers: Vec::new(),
                norm: model.norm.clone(),
                head: model.head.clone(),
            },
        })
    }
}

/// Names and sizes of the matrices of a model, the head last where it stands alone.
pub fn sizes(model: &Model) -> Vec<Sizes> {
    let of = |linear: &Linear| Sizes { name: linear.name.clone(), n: linear.n, k: linear.k };
    model.linears().into_iter().map(of).collect()
}

/// A quantized model and what happened to each matrix.
pub struct Quantization {
    /// The model.
    pub model: Model,
    /// One entry per matrix.
    pub reports: Vec<LinearReport>,
    /// Each quantized matrix as it was before codes were found, where the recipe has a budget.
    pub floats: BTreeMap<String, Linear>,
}

/// Takes a whole model through its recipe. `progress` hears how many layers are done, of how many.
pub fn quantize(
    source: &Source<'_>,
    recipe: &RecipeFile,
    plan: &Plan,
    prompts: Option<&Prompts>,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quantization> {
    let mut model = source.frame()?;
    let rotated;
    let source = if recipe.rotate {
        let mut whole = match source {
            Source::Checkpoint(checkpoint) => checkpoint.model()?,
            Source::Model(model) => (*model).clone(),
        };
        rotate::rotate(&mut whole, recipe.calibration.seed)?;
        rotated = whole;
        model = Source::Model(&rotated).frame()?;
        &Source::Model(&rotated)
    } else {
        source
    };
    let mut streams = match prompts {
        None => None,
        Some(prompts) => {
            let hidden = model.config.shape.hidden;
            let mut streams = Residuals::new(prompts.list.iter().map(|prompt| prompt.len() * hidden).collect())?;
            for (i, prompt) in prompts.list.iter().enumerate() {
                streams.set(i, embed(&model.embedding, prompt)?)?;
            }
            Some(streams)
        }
    };
    let mut quantizer = LayerQuantizer {
        recipe,
        plan,
        config: model.config.clone(),
        executor,
        reports: Vec::new(),
        floats: BTreeMap::new(),
    };
    let layers = model.config.shape.layers;
    for index in 0..layers {
        let mut layer = source.layer(index)?;
        quantizer.layer(&mut layer, streams.as_mut())?;
        model.layers.push(layer);
        progress(index + 1, layers);
    }
    if let Some(head) = &mut model.head {
        quantizer.plain(head)?;
    }
    Ok(Quantization { model, reports: quantizer.reports, floats: quantizer.floats })
}

/// Bytes that a matrix takes in a file: floats, or codes packed without gaps, scales and zeros.
pub fn sizes_of(linear: &Linear) -> usize {
    use bitsmith_compiler::format::Zero;
    match &linear.weight {
        Weight::Floats(floats) => floats.values.len() * floats.dtype.bits() as usize / 8,
        Weight::Quantized(q) => {
            let bits = |dtype: DType, count: usize| dtype.bits() as usize * count;
            let outer = q.format.scale.outer.map_or(0, |outer| bits(outer.dtype, q.outer.len()));
            let zeros = match q.format.zero {
                Zero::None | Zero::Bias(_) => 0,
                Zero::Int(width) => width as usize * q.zeros.len(),
                Zero::Float(dtype) => bits(dtype, q.zeros.len()),
                Zero::Offset { scale, .. } => {
                    bits(scale.dtype, q.zeros.len()) + scale.outer.map_or(0, |o| bits(o.dtype, q.zeros_outer.len()))
                }
            };
            let codes = q.codes.len() * q.format.code.bits() as usize;
            (codes + bits(q.format.scale.dtype, q.scales.len()) + outer + zeros).div_ceil(8)
        }
    }
}
