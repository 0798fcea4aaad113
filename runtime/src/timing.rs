//! Times: medians of interleaved samples, since machines are noisy and drift.

use bitsmith_compiler::Result;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// What many timings of one thing came to, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The middle one.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
    /// How many.
    pub samples: usize,
}

impl Measurement {
    /// Sums up samples in seconds. Of no samples, everything is NaN.
    pub fn of(mut samples: Vec<f64>) -> Measurement {
        samples.sort_by(f64::total_cmp);
        let at = |i: usize| samples.get(i).copied().unwrap_or(f64::NAN);
        let n = samples.len();
        let median = if n.is_multiple_of(2) && n > 0 { (at(n / 2 - 1) + at(n / 2)) / 2.0 } else { at(n / 2) };
        Measurement { median, min: at(0), max: at(n.saturating_sub(1)), samples: n }
    }
}

/// Seconds that something takes.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Launches that a device repeats and times by its own clock.
pub trait Recording {
    /// Runs all of them once and waits; the seconds from the first one's start to the last one's end.
    fn run(&mut self) -> Result<f64>;
}

/// Something to be timed: runs itself a number of times.
pub type Subject<'a> = &'a mut dyn FnMut(usize);

/// Times subjects in turn, round after round, so that drift and neighbours hit all alike. A sample is as many runs as fill
/// `sample` (at least one); sampling goes on until `budget` is used up, and every subject has at least three samples.
/// Returns seconds per run.
pub fn interleave(subjects: &mut [Subject<'_>], sample: Duration, budget: Duration) -> Vec<Measurement> {
    let runs: Vec<usize> = subjects
        .iter_mut()
        .map(|subject| {
            subject(1);
            let once = seconds(|| subject(1)).max(1e-9);
            ((sample.as_secs_f64() / once).ceil() as usize).clamp(1, 1_000_000)
        })
        .collect();
    let mut samples = vec![Vec::new(); subjects.len()];
    let start = Instant::now();
    while samples.iter().any(|s| s.len() < 3) || start.elapsed() < budget {
        for ((subject, &runs), samples) in subjects.iter_mut().zip(&runs).zip(&mut samples) {
            samples.push(seconds(|| subject(runs)) / runs as f64);
        }
    }
    samples.into_iter().map(Measurement::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Measurement::of(vec![3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Measurement::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Measurement::of(Vec::new()).median.is_nan());
    }

    #[test]
    fn subjects_take_turns() {
        let order = std::cell::RefCell::new(Vec::new());
        let mut a = |_: usize| order.borrow_mut().push('a');
        let mut b = |_: usize| order.borrow_mut().push('b');
        let times = interleave(&mut [&mut a, &mut b], Duration::ZERO, Duration::ZERO);
        assert_eq!(times.len(), 2);
        assert_eq!(order.borrow()[4..].iter().collect::<String>(), "ababab");
    }
}
