//! The picker: from a model, a machine and a goal to recipes, ranked, each with its reason.
//!
//! Reads the sizes of a model, a [`Machine`] and a [`Request`]; makes [`Pick`]s. Rules come first (what practice has shown
//! for a kind of machine and load), predictions rank the rest. Predictions are roofs times a stated share, not
//! measurements; typical rises of perplexity are those of models of about 7 billion weights, and `bitsmith report` says
//! what yours is.

mod candidate;
mod machine;
mod memory;
mod predict;
mod rules;

use candidate::{Arithmetic, CANDIDATES, kv_increase, recipe};
pub use machine::Machine;
pub use memory::{Kv, Memory, kv, linears, matrix_bytes, model_bytes, weights, workspace};

use crate::recipe::{Method, Plan, RecipeFile};
use crate::shapes::ModelShape;
use bitsmith_compiler::{Error, Result};
use predict::{predict, score};
use rules::{reason, rule};
use serde::{Deserialize, Serialize};

/// What matters most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Tokens per second over all sequences.
    Throughput,
    /// Time per token of few sequences.
    Latency,
    /// Long contexts and small machines.
    Memory,
    /// The least loss that fits.
    Quality,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Request {
    /// What matters most.
    pub goal: Goal,
    /// Sequences at once.
    pub batch: usize,
    /// Tokens of each, prompt and answer.
    pub context: usize,
    /// The rise of perplexity that is accepted, as a share.
    pub max_increase: Option<f64>,
    /// Whether there is text to calibrate with.
    pub calibration: bool,
}

/// A recipe that was considered.
#[derive(Clone, Debug, Serialize)]
pub struct Pick {
    /// Preset of the weights.
    pub weights: &'static str,
    /// How codes are found.
    pub method: Method,
    /// Keys and values.
    pub kv: Kv,
    /// Why it stands where it stands, in a sentence.
    pub reason: String,
    /// Memory at the batch and context that were asked for.
    pub memory: Memory,
    /// Whether that fits, with a tenth of the memory kept free.
    pub fits: bool,
    /// The largest batch that fits at the context.
    pub max_batch: usize,
    /// The longest context that fits at the batch.
    pub max_context: usize,
    /// Predicted seconds of the prompts of the whole batch (half of the context each).
    pub prefill_seconds: f64,
    /// Predicted seconds of a step that gives every sequence a token, at half of the context.
    pub decode_seconds: f64,
    /// Typical rise of perplexity, as a share.
    pub typical_increase: f64,
    /// What may go wrong.
    pub risks: Vec<String>,
    /// The recipe.
    #[serde(skip)]
    pub recipe: RecipeFile,
}

/// Shares of the peaks that predictions take: of bandwidth, of arithmetic.
pub const SHARES: (f64, f64) = (0.8, 0.6);
/// A typical rise of perplexity beyond which a model is of no use.
const BROKEN: f64 = 0.3;
/// Share of a machine's memory that is filled.
const FILL: f64 = 0.9;

/// Ranks recipes for a model on a machine.
pub fn pick(shape: &ModelShape, machine: &Machine, request: &Request) -> Result<Vec<Pick>> {
    if request.batch == 0 || request.context == 0 || request.batch > 1 << 20 || request.context > 1 << 26 {
        return Err(Error::invalid(format!(
            "batch {} and context {}; accepted: 1 to 2^20, 1 to 2^26",
            request.batch, request.context
        )));
    }
    let sizes = linears(shape);
    let mut picks = Vec::new();
    for candidate in CANDIDATES {
        let absent = candidate.calibrated && !request.calibration
            || candidate.kind == Arithmetic::Fp8 && machine.fp8.is_none()
            || candidate.kind == Arithmetic::Fp4 && machine.fp4.is_none()
            || candidate.kind == Arithmetic::Int8 && machine.int8.is_none();
        if absent {
            continue;
        }
        for kind in Kv::ALL {
            if kind == Kv::Fp8Tensor && (machine.fp8.is_none() || !request.calibration) {
                continue;
            }
            let recipe = recipe(candidate, kind);
            let Ok(plan) = Plan::new(&recipe, &sizes, request.calibration) else { continue };
            let increase = candidate.increase + kv_increase(kind);
            if request.max_increase.is_some_and(|most| increase > most) {
                continue;
            }
            picks.push(predict(
                shape,
                machine,
                request,
                candidate,
                kind,
                recipe,
                weights(shape, &plan, &sizes),
                increase,
            ));
        }
    }
    if picks.is_empty() {
        return Err(Error::invalid(format!(
            "no recipe for {} keeps perplexity within {:.2} % on {}; accept a larger rise, or keep floats",
            shape.name,
            100.0 * request.max_increase.unwrap_or(0.0),
            machine.name
        )));
    }
    let wanted = rule(machine, request, &picks);
    picks.sort_by(|a, b| {
        let ruled = |p: &Pick| !wanted.iter().any(|w| (p.weights, p.kv) == (w.0, w.1));
        let place = |p: &Pick| wanted.iter().position(|w| (p.weights, p.kv) == (w.0, w.1)).unwrap_or(usize::MAX);
        let broken = |p: &Pick| p.typical_increase > BROKEN;
        (!a.fits)
            .cmp(&!b.fits)
            // What breaks most models stands last, however little it takes.
            .then(broken(a).cmp(&broken(b)))
            .then(ruled(a).cmp(&ruled(b)))
            .then(place(a).cmp(&place(b)))
            .then(score(request, a).total_cmp(&score(request, b)))
            .then(a.typical_increase.total_cmp(&b.typical_increase))
    });
    for (at, pick) in picks.iter_mut().enumerate() {
        let ruled = wanted.iter().find(|w| (pick.weights, pick.kv) == (w.0, w.1)).map(|w| w.2.clone());
        pick.reason = reason(request, machine, pick, ruled.filter(|_| pick.fits), at == 0);
    }
    Ok(picks)
}

/// The commands that make a pick.
pub fn commands(model: &str, recipe_file: &str) -> Vec<String> {
    vec![
        format!("bitsmith quantize {model} --recipe {recipe_file} --text calibration.txt --out quantized"),
        format!("bitsmith report quantized --reference {model} --text held-out.txt --out report"),
        format!("bitsmith eval quantized --text held-out.txt --via kernels"),
    ]
}
