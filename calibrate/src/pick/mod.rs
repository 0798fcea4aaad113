//! The picker: from a model, a machine and a goal to recipes, ranked, each with its reason.
//!
//! Reads the sizes of a model, a [`Machine`] and a [`Request`]; makes [`Pick`]s. Rules come first (what practice has shown
//! for a kind of machine and load), predictions rank the rest. Predictions are roofs times a stated share, not
//! measurements; typical rises of perplexity are those of models of about 7 billion weights, and `bitsmith report` says
//! what yours is.

mod machine;
mod memory;

pub use machine::Machine;
pub use memory::{Kv, Memory, kv, linears, matrix_bytes, model_bytes, weights, workspace};

use crate::recipe::{Calibration, Method, Plan, RecipeFile, Smooth};
use crate::shapes::ModelShape;
use bitsmith_compiler::{Error, Result};
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
/// Share of a machine's memory that is filled.
const FILL: f64 = 0.9;

struct Candidate {
    preset: &'static str,
    method: Method,
    calibrated: bool,
    /// Rise of perplexity that is typical, as a share.
    increase: f64,
    kind: Arithmetic,
    risk: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
enum Arithmetic {
    Floats,
    Int8,
    Fp8,
    Fp4,
}

use Arithmetic::{Floats, Fp4, Fp8, Int8};

const fn candidate(
    preset: &'static str,
    method: Method,
    increase: f64,
    kind: Arithmetic,
    risk: Option<&'static str>,
) -> Candidate {
    let calibrated = matches!(method, Method::Gptq | Method::Awq);
    Candidate { preset, method, calibrated, increase, kind, risk }
}

/// Everything that is considered. Rises are typical of 7 to 8 billion weights and 2048 tokens of web text.
const CANDIDATES: &[Candidate] = &[
    candidate("W8A16", Method::Rtn, 0.001, Floats, None),
    Candidate {
        calibrated: true,
        ..candidate(
            "FP8",
            Method::Rtn,
            0.004,
            Fp8,
            Some("one static scale per tensor: outliers of inputs that calibration did not show are cut"),
        )
    },
    candidate("FP8_DYNAMIC", Method::Rtn, 0.003, Fp8, None),
    Candidate {
        calibrated: true,
        ..candidate(
            "W8A8",
            Method::Rtn,
            0.006,
            Int8,
            Some("outlier channels of inputs: SmoothQuant moves them into the weights"),
        )
    },
    candidate("W4A16", Method::Gptq, 0.02, Floats, Some("small models lose more")),
    candidate(
        "W4A16_ASYM",
        Method::Rtn,
        0.035,
        Floats,
        Some("rounded to nearest, since there is no text to calibrate with"),
    ),
    candidate("W4A8", Method::Gptq, 0.03, Int8, Some("both weights and inputs lose bits")),
    candidate("NVFP4", Method::Rtn, 0.03, Fp4, Some("few tools read it yet")),
    candidate("W3A16", Method::Gptq, 0.09, Floats, Some("three bits: check the report before use")),
    candidate("W2A16", Method::Gptq, 0.6, Floats, Some("two bits break most models")),
];

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
            || candidate.kind == Fp8 && machine.fp8.is_none()
            || candidate.kind == Fp4 && machine.fp4.is_none()
            || candidate.kind == Int8 && machine.int8.is_none();
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
        (!a.fits)
            .cmp(&!b.fits)
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

/// What a rule wants, best first: preset, keys and values, why.
fn rule(machine: &Machine, request: &Request, picks: &[Pick]) -> Vec<(&'static str, Kv, String)> {
    let has = |weights: &str, kv: Kv| picks.iter().any(|p| p.weights == weights && p.kv == kv && p.fits);
    let mut list: Vec<(&'static str, Kv, String)> = Vec::new();
    let mut want = |weights: &'static str, kv: Kv, why: &str| {
        if has(weights, kv) {
            list.push((weights, kv, why.to_owned()));
        }
    };
    match request.goal {
        Goal::Throughput if machine.fp8.is_some() => {
            let why = "many tokens at once are bound by arithmetic, and FP8 units do twice the work of 16-bit ones";
            want("FP8", Kv::Fp8Tensor, why);
            want("FP8", Kv::Int8TokenHead, why);
            want(
                "FP8_DYNAMIC",
                Kv::Int8TokenHead,
                "without calibration scales are taken per token; FP8 units do twice the work of 16-bit ones",
            );
        }
        Goal::Throughput if machine.int8.is_some() => {
            let why = "this machine has no FP8 units; 8-bit integers do the most work, with outliers smoothed into the weights";
            want("W8A8", Kv::Int8TokenHead, why);
        }
        Goal::Latency => {
            want(
                "W8A16",
                Kv::Int8TokenHead,
                "few sequences are bound by reading weights: half of the bytes, and hardly a loss",
            );
            want(
                "W4A16",
                Kv::Int8TokenHead,
                "memory is tight, and few sequences are bound by reading weights: a quarter of the bytes",
            );
            want(
                "W4A16_ASYM",
                Kv::Int8TokenHead,
                "memory is tight and there is no calibration text: 4 bits with zeros, rounded to nearest",
            );
        }
        Goal::Memory => {
            let long = request.context >= 32768;
            let (first, second) =
                if long { (Kv::Int4Kivi, Kv::Int8TokenHead) } else { (Kv::Int8TokenHead, Kv::Int4Kivi) };
            let why = if long {
                "at this length keys and values outweigh everything: 4 bits for both, paged"
            } else {
                "a quarter of the bytes for weights, half for keys and values, paged"
            };
            want("W4A16", first, why);
            want("W4A16", second, why);
            want("W4A16_ASYM", first, why);
        }
        Goal::Quality => {
            want("W8A16", Kv::F16, "8 bits per weight and floats elsewhere: the least loss");
            want("W8A16", Kv::Int8TokenHead, "8 bits per weight; keys and values in 8 bits, since floats do not fit");
        }
        Goal::Throughput => {}
    }
    list
}

fn kv_increase(kind: Kv) -> f64 {
    match kind {
        Kv::F16 => 0.0,
        Kv::Fp8Tensor => 0.001,
        Kv::Int8TokenHead => 0.0005,
        Kv::Int4Kivi => 0.005,
    }
}

fn recipe(candidate: &Candidate, kind: Kv) -> RecipeFile {
    RecipeFile {
        base: Some(candidate.preset.to_owned()),
        method: Some(candidate.method),
        kv: Some(kind.name().to_owned()),
        smooth: (candidate.preset == "W8A8").then_some(Smooth::Auto(true)),
        on_indivisible: Some(crate::recipe::OnIndivisible::SmallerGroup),
        calibration: Calibration::default(),
        ..RecipeFile::default()
    }
}

#[allow(clippy::too_many_arguments)] // One call, whose arguments are all different things.
fn predict(
    shape: &ModelShape,
    machine: &Machine,
    request: &Request,
    candidate: &Candidate,
    kind: Kv,
    recipe: RecipeFile,
    weights: f64,
    increase: f64,
) -> Pick {
    let of = |batch: usize, context: usize| Memory {
        weights,
        kv: kv(shape, kind, batch, context),
        workspace: workspace(shape, batch, context),
    };
    let room = FILL * machine.memory;
    let most = |fits: &dyn Fn(usize) -> bool, limit: usize| -> usize {
        if !fits(1) {
            return 0;
        }
        let (mut low, mut high) = (1, limit);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    };
    let memory = of(request.batch, request.context);
    let peak = match candidate.kind {
        Floats => machine.f16,
        Int8 => machine.int8.unwrap_or(machine.f16),
        Fp8 => machine.fp8.unwrap_or(machine.f16),
        Fp4 => machine.fp4.unwrap_or(machine.f16),
    };
    let active = active_parameters(shape);
    let prompt = (request.context / 2).max(1) as f64;
    let batch = request.batch as f64;
    let attention = |tokens: f64| 2.0 * 2.0 * (shape.heads * shape.head_dim * shape.layers) as f64 * tokens;
    let prefill_operations = batch * prompt * (2.0 * active + attention(prompt / 2.0));
    let read = weights * active_share(shape, batch) + batch * prompt * kind.bytes_per_token(shape);
    let decode_operations = batch * (2.0 * active + attention(prompt));
    let roof =
        |operations: f64, bytes: f64| (operations / (peak * SHARES.1)).max(bytes / (machine.bandwidth * SHARES.0));
    let mut risks: Vec<String> = candidate.risk.into_iter().map(str::to_owned).collect();
    if kind == Kv::Int4Kivi {
        risks.push("keys and values in 4 bits: check long contexts".into());
    }
    if machine.fnuz && candidate.kind == Fp8 {
        risks.push("this machine has fnuz FP8: scales are doubled on load, NaN codes are refused".into());
    }
    Pick {
        weights: candidate.preset,
        method: candidate.method,
        kv: kind,
        reason: String::new(),
        fits: memory.total() <= room,
        max_batch: most(&|b| of(b, request.context).total() <= room, 1 << 16),
        max_context: most(&|c| of(request.batch, c).total() <= room, 1 << 24),
        memory,
        prefill_seconds: roof(prefill_operations, weights),
        decode_seconds: roof(decode_operations, read),
        typical_increase: increase,
        risks,
        recipe,
    }
}

/// Weights that one token meets.
fn active_parameters(shape: &ModelShape) -> f64 {
    use crate::shapes::Class;
    let of = |l: &crate::shapes::Linear| {
        let share = if l.class == Class::Expert { shape.experts_per_token as f64 / shape.experts as f64 } else { 1.0 };
        (l.n * l.k * l.count) as f64 * share
    };
    shape.linears().iter().map(of).sum()
}

/// Share of the weights that a step reads: of experts, those that some sequence chose, taken at random.
fn active_share(shape: &ModelShape, batch: f64) -> f64 {
    if !shape.is_mixture() {
        return 1.0;
    }
    let missed = (1.0 - shape.experts_per_token as f64 / shape.experts as f64).powf(batch);
    let experts: f64 = shape
        .linears()
        .iter()
        .filter(|l| l.class == crate::shapes::Class::Expert)
        .map(|l| (l.n * l.k * l.count) as f64)
        .sum();
    1.0 - missed * experts / shape.parameters() as f64
}

/// Lower is better.
fn score(request: &Request, pick: &Pick) -> f64 {
    match request.goal {
        Goal::Throughput => {
            // A prompt and as many steps as it has tokens, over all sequences.
            let steps = (request.context / 2).max(1) as f64;
            (pick.prefill_seconds + steps * pick.decode_seconds) / request.batch as f64
        }
        Goal::Latency => pick.decode_seconds,
        Goal::Memory => pick.memory.total(),
        Goal::Quality => pick.typical_increase,
    }
}

fn reason(request: &Request, machine: &Machine, pick: &Pick, ruled: Option<String>, first: bool) -> String {
    if !pick.fits {
        return format!(
            "needs {:.1} GB of the {:.1} GB that {} leaves at batch {} and context {}",
            pick.memory.total() / 1e9,
            FILL * machine.memory / 1e9,
            machine.name,
            request.batch,
            request.context
        );
    }
    if let Some(why) = ruled {
        return why;
    }
    let what = match request.goal {
        Goal::Throughput => "by predicted tokens per second",
        Goal::Latency => "by predicted time per token",
        Goal::Memory => "by memory",
        Goal::Quality => "by typical loss",
    };
    if first { format!("the first that fits, {what}") } else { format!("ranked {what}") }
}

/// The commands that make a pick.
pub fn commands(model: &str, recipe_file: &str) -> Vec<String> {
    vec![
        format!("bitsmith quantize {model} --recipe {recipe_file} --text calibration.txt --out quantized"),
        format!("bitsmith report quantized --reference {model} --text held-out.txt --out report"),
        format!("bitsmith eval quantized --text held-out.txt --via kernels"),
    ]
}
