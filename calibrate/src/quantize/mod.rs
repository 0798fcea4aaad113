//! Quantizers, and the pass that takes a model through them layer by layer.
//!
//! Reads a checkpoint in floats, a recipe and calibration prompts; makes quantized layers, one after another. Always
//! holds: a layer's inputs come from the layers before it as they were quantized; the same seed and text give the same
//! codes; no more than one layer is in memory, what is done waits in a temporary file ([`Spill`]).

pub mod awq;
mod budget;
pub mod clip;
mod fold;
pub mod gptq;
mod layer;
mod linear;
mod prompts;
pub mod rotate;
pub mod smooth;
mod stats;

pub use budget::{FallBack, Sensitivity, Within, within_budget};
pub use layer::LayerQuantizer;
pub use linear::LinearReport;
pub use prompts::{Prompts, Residuals};
pub use stats::{Histogram, Stats};

use crate::engine::Executor;
use crate::model::{Layers, Linear, Model, Spill, Weight};
use crate::recipe::{Plan, RecipeFile, Sizes};
use bitsmith_compiler::Result;
use bitsmith_compiler::dtype::DType;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Names and sizes of the matrices of a model, the head last where it stands alone.
pub fn sizes(model: &Model) -> Vec<Sizes> {
    let of = |linear: &Linear| Sizes { name: linear.name.clone(), n: linear.n, k: linear.k };
    model.linears().into_iter().map(of).collect()
}

/// A quantized model and what happened to each matrix.
pub struct Quantization {
    /// The model, in a temporary file.
    pub model: Spill,
    /// One entry per matrix.
    pub reports: Vec<LinearReport>,
    /// Each quantized matrix as it was before codes were found, where the recipe has a budget.
    pub floats: BTreeMap<String, Linear>,
}

/// Takes a whole model through its recipe. `progress` hears how many layers are done, of how many.
pub fn quantize(
    source: &dyn Layers,
    recipe: &RecipeFile,
    plan: &Plan,
    prompts: Option<&Prompts>,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quantization> {
    if recipe.rotate {
        let rotated = rotate::Rotated::new(source, recipe.calibration.seed);
        return walk(&rotated, recipe, plan, prompts, executor, progress);
    }
    walk(source, recipe, plan, prompts, executor, progress)
}

fn walk(
    source: &dyn Layers,
    recipe: &RecipeFile,
    plan: &Plan,
    prompts: Option<&Prompts>,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quantization> {
    let mut streams = match prompts {
        None => None,
        Some(prompts) => Some(prompts.embedded(&*source.embedding()?)?),
    };
    let mut quantizer = LayerQuantizer {
        recipe,
        plan,
        config: source.config().clone(),
        executor,
        reports: Vec::new(),
        floats: BTreeMap::new(),
    };
    let layers = source.config().shape.layers;
    let mut model = Spill::new(source.config())?;
    for index in 0..layers {
        let mut layer = source.layer(index)?.into_owned();
        quantizer.layer(&mut layer, streams.as_mut())?;
        model.push(layer)?;
        progress(index + 1, layers);
    }
    let mut head = source.head()?.map(Cow::into_owned);
    if let Some(head) = &mut head {
        quantizer.plain(head)?;
    }
    model.finish(source.embedding()?.into_owned(), source.norm()?.into_owned(), head)?;
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
