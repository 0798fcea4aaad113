//! What a model writes and how well it foretells a text.

use crate::engine::Engine;

/// A greedy continuation.
#[derive(Debug, Default)]
pub struct Continuation {
    /// Its tokens.
    pub tokens: Vec<i32>,
    /// How far the logit of each, and of the end if it came, was ahead of the next likeliest one.
    pub leads: Vec<f32>,
}

/// The likeliest continuation of a prompt, token by token, until the text ends or there are `count` tokens.
pub fn continuation(engine: &mut Engine<'_>, prompt: &[i32], count: usize) -> Result<Continuation, String> {
    engine.forget();
    engine.read(prompt, false)?;
    let Continuation { mut tokens, mut leads } = Continuation::default();
    while tokens.len() < count {
        let logits = engine.logits(-1)?;
        // The first of equals, as llama.cpp's greedy sampler takes.
        let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as i32;
        let others = logits.iter().enumerate().filter(|&(token, _)| token != best as usize).map(|(_, &logit)| logit);
        leads.push(logits[best as usize] - others.fold(f32::MIN, f32::max));
        if engine.ends(best) {
            break;
        }
        tokens.push(best);
        if tokens.len() < count {
            engine.read(&[best], false)?;
        }
    }
    Ok(Continuation { tokens, leads })
}

/// Tokens of a window.
pub const WINDOW: usize = 256;

/// Perplexity over the first `windows` windows of [`WINDOW`] tokens, each read after the token that starts a text.
pub fn perplexity(engine: &mut Engine<'_>, tokens: &[i32], windows: usize) -> Result<f64, String> {
    let start = engine.start().ok_or("the model has no token that starts a text")?;
    let (mut sum, mut count) = (0.0, 0usize);
    for window in tokens.chunks_exact(WINDOW).take(windows) {
        engine.forget();
        let mut read = vec![start];
        read.extend_from_slice(&window[..WINDOW - 1]);
        engine.read(&read, true)?;
        for (place, &token) in window.iter().enumerate() {
            let logits = engine.logits(place as i32)?;
            let top = logits.iter().fold(f32::MIN, |a, &b| a.max(b)) as f64;
            let total: f64 = logits.iter().map(|&x| (x as f64 - top).exp()).sum();
            sum += total.ln() + top - logits[token as usize] as f64;
            count += 1;
        }
    }
    if count == 0 {
        return Err(format!("the text has {} tokens; accepted: at least {WINDOW}", tokens.len()));
    }
    Ok((sum / count as f64).exp())
}
