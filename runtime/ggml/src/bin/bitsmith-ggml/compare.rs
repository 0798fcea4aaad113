//! One model with the backend and without it: what it writes, and how well it foretells a text.
//!
//! Prints what it found and returns what differs by more than is allowed.

use crate::engine::{BATCH, Engine, How, Threads};
use crate::text::{Continuation, WINDOW, continuation, perplexity};
use std::path::Path;

/// What is compared, and how closely.
pub struct Effort<'a> {
    pub text: &'a str,
    /// Windows of a perplexity.
    pub windows: usize,
    /// Tokens of a continuation.
    pub tokens: usize,
    /// Largest difference of perplexities.
    pub percent: f64,
    pub threads: usize,
}

/// Tokens of a prompt.
const PROMPT: usize = 16;
/// Continuations.
const TEXTS: usize = 8;
/// How far apart two logits may be and still count as even. Sums in another order move activations by 1e-7 of themselves; where
/// that takes one across a rounding edge of its 8 bits, it moves by a hundredth, and everything after it a little. What this
/// decides, ggml decides one way or the other by its own choice of layout and batch.
const EVEN: f32 = 0.05;

/// What one of the two made of it.
struct Found {
    perplexity: f64,
    texts: Vec<Continuation>,
}

/// Compares; the faults are empty where all is the same.
pub fn hold(model: &Path, effort: &Effort<'_>, pool: &Threads) -> Result<Vec<String>, String> {
    let room = (PROMPT + 1 + effort.tokens).max(WINDOW).next_multiple_of(BATCH as usize) as u32;
    let name = model.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let mut found = Vec::new();
    let mut faults = Vec::new();
    // ggml's other layout sums in another order too: what that changes is the measure of what may differ.
    for how in [How::Ggml, How::Bitsmith, How::GgmlPlain] {
        let mut engine = Engine::open(model, how, room, pool)?;
        engine.set_threads(effort.threads);
        let tokens = engine.tokens(effort.text)?;
        let perplexity = perplexity(&mut engine, &tokens, effort.windows)?;
        let mut texts = Vec::new();
        if tokens.len() < TEXTS * WINDOW {
            return Err(format!("the text has {} tokens; accepted: at least {}", tokens.len(), TEXTS * WINDOW));
        }
        for window in tokens.chunks_exact(WINDOW).take(TEXTS) {
            let mut prompt: Vec<i32> = engine.start().into_iter().collect();
            prompt.extend_from_slice(&window[..PROMPT]);
            texts.push(continuation(&mut engine, &prompt, effort.tokens)?);
        }
        println!("{name}, {}: perplexity {perplexity:.4}; {:?}", how.name(), engine.text(&texts[0].tokens));
        found.push(Found { perplexity, texts });
    }
    let [without, with, plain] = &found[..] else { unreachable!("three were opened") };
    let (percent, partings) = differences(&name, How::Bitsmith, with, without);
    if percent.is_nan() || percent.abs() > effort.percent {
        faults.push(format!("{name}: perplexity differs by {percent:+.4} %; accepted: {} %", effort.percent));
    }
    for (told, lead) in partings {
        if lead.is_nan() || lead > EVEN {
            faults.push(format!("{told}; accepted: {EVEN}"));
        }
    }
    differences(&name, How::GgmlPlain, plain, without);
    Ok(faults)
}

/// Tells in what one differs from ggml with its preferred layouts: the perplexity in percent, and where texts part and how far
/// the likeliest token is ahead there.
fn differences(name: &str, how: How, found: &Found, without: &Found) -> (f64, Vec<(String, f32)>) {
    let percent = (found.perplexity / without.perplexity - 1.0) * 100.0;
    let pairs = || found.texts.iter().zip(&without.texts);
    let same = pairs().filter(|(a, b)| a.tokens == b.tokens).count();
    let written: usize = without.texts.iter().map(|text| text.tokens.len()).sum();
    let who = format!("{name}, {} beside {}", how.name(), How::Ggml.name());
    println!("{who}: perplexity differs by {percent:+.4} %; {same} of {TEXTS} texts the same, {written} tokens in all");
    let mut partings = Vec::new();
    for (index, (a, b)) in pairs().enumerate().filter(|(_, (a, b))| a.tokens != b.tokens) {
        let parting = a.tokens.iter().zip(&b.tokens).position(|(a, b)| a != b);
        let place = parting.unwrap_or(a.tokens.len().min(b.tokens.len()));
        let lead = a.leads[place].max(b.leads[place]);
        let told = format!("{who}: text {index} parts at token {place}, where the likeliest is ahead by {lead:.4}");
        println!("{told}");
        partings.push((told, lead));
    }
    (percent, partings)
}
