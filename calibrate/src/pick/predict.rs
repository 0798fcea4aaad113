//! Memory and time of a candidate: roofs of bandwidth and arithmetic, times the shares of them that kernels reach.

use super::candidate::{Arithmetic, Candidate};
use super::{FILL, Goal, Kv, Machine, Memory, Pick, Request, SHARES, kv, workspace};
use crate::recipe::RecipeFile;
use crate::shapes::ModelShape;

#[allow(clippy::too_many_arguments)] // One call, whose arguments are all different things.
pub(super) fn predict(
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
        Arithmetic::Floats => machine.f16,
        Arithmetic::Int8 => machine.int8.unwrap_or(machine.f16),
        Arithmetic::Fp8 => machine.fp8.unwrap_or(machine.f16),
        Arithmetic::Fp4 => machine.fp4.unwrap_or(machine.f16),
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
    if machine.fnuz && candidate.kind == Arithmetic::Fp8 {
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
pub(super) fn score(request: &Request, pick: &Pick) -> f64 {
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
