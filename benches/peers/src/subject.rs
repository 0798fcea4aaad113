//! What is timed: anything that multiplies activations by weights, and how several of them take turns.

use bitsmith_runtime::timing::Measurement;
use std::time::{Duration, Instant};

/// Someone who multiplies `[m, k]` floats by quantized weights, quantizing the activations each time if it does so at all.
pub trait Subject {
    /// Who it is.
    fn name(&self) -> String;
    /// Bytes of weights, scales included, that one run reads.
    fn weight_bytes(&self) -> f64;
    /// Runs so many times, each with the next copy of the weights; seconds per run.
    fn run(&mut self, runs: usize) -> Result<f64, String>;
    /// The first rows of the result over the first copy of the weights; `None` where it has weights of its own.
    fn result(&mut self) -> Result<Option<Vec<f32>>, String>;
    /// What it found when it compared its own result, where it has weights of its own.
    fn own_error(&self) -> Option<f64> {
        None
    }
}

/// The threads of a subject that ran before may still be looking out for work; they are given time to fall asleep.
const SETTLE: Duration = Duration::from_millis(3);
/// What a sample should take, so that turning over weighs nothing.
const SAMPLE: f64 = 0.020;

/// Times subjects in turn until each has had `budget`, at least five samples each; seconds per run.
pub fn interleave(subjects: &mut [Box<dyn Subject>], budget: Duration) -> Result<Vec<Measurement>, String> {
    let mut runs = Vec::new();
    for subject in subjects.iter_mut() {
        subject.run(1)?;
        let once = subject.run(1)?.max(1e-9);
        runs.push(((SAMPLE / once).ceil() as usize).clamp(1, 100_000));
    }
    let mut samples = vec![Vec::new(); subjects.len()];
    let start = Instant::now();
    let budget = budget * subjects.len() as u32;
    while samples.iter().any(|s| s.len() < 5) || start.elapsed() < budget {
        for ((subject, &runs), samples) in subjects.iter_mut().zip(&runs).zip(&mut samples) {
            std::thread::sleep(SETTLE);
            samples.push(subject.run(runs)?);
        }
    }
    Ok(samples.into_iter().map(Measurement::of).collect())
}

/// Squared error over squared reference: how ggml's own tests judge a product.
pub fn nmse(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(expected).map(|(&g, &e)| square(g as f64 - e as f64)).sum();
    error / expected.iter().map(|&e| square(e as f64)).sum::<f64>()
}
