//! What practice has shown for a kind of machine and load, and the sentence that says so.

use super::{FILL, Goal, Kv, Machine, Pick, Request};

/// What a rule wants, best first: preset, keys and values, why.
pub(super) fn rule(machine: &Machine, request: &Request, picks: &[Pick]) -> Vec<(&'static str, Kv, String)> {
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

/// Why a pick stands where it stands.
pub(super) fn reason(request: &Request, machine: &Machine, pick: &Pick, ruled: Option<String>, first: bool) -> String {
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
