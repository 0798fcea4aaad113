//! Tuned schedules against others, the chooser's for one, measured again side by side.
//!
//! Reads a table and its device; makes ratios. Always holds: both sides take turns, who goes first alternates, and what is
//! compared has been checked against the reference again.

use crate::key::Key;
use crate::measure::statistics::median;
use crate::measure::{Bench, Clock, DeviceBench, Slice, Verdict};
use crate::problem::Problem;
use crate::table::Entry;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::Device;
use serde::Serialize;

/// An entry, measured again.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// What it is about.
    pub key: Key,
    /// What was tuned.
    pub tuned: Schedule,
    /// What it is compared with: what the chooser takes, or another run found.
    pub other: Schedule,
    /// Seconds per launch as tuned, the median.
    pub seconds: f64,
    /// How many times as long the other's launch takes: the median over pairs; 1 where both are the same.
    pub ratio: f64,
    /// Pairs of samples.
    pub pairs: usize,
}

/// Measures each entry's schedule again beside another one, for about so many seconds and at least seven pairs. Where both are
/// the same nothing is measured.
pub fn compare(
    device: &dyn Device,
    clock: &dyn Clock,
    entries: &[(Entry, Schedule)],
    seconds: f64,
    cycle: usize,
    progress: &mut dyn FnMut(usize, &Key),
) -> Result<Vec<Compared>> {
    let mut list = Vec::new();
    let mut last: Option<Problem> = None;
    for (i, (entry, other)) in entries.iter().enumerate() {
        progress(i, &entry.key);
        let mut compared = Compared {
            key: entry.key.clone(),
            tuned: entry.schedule,
            other: *other,
            seconds: entry.seconds,
            ratio: 1.0,
            pairs: 0,
        };
        if entry.schedule != *other {
            let part = Slice { columns: entry.columns, cycle };
            let mut bench = DeviceBench::new(device, clock, &entry.key, part, last.take())?;
            for schedule in [&entry.schedule, other] {
                if let Verdict::Rejected(why) = bench.admit(schedule)? {
                    return Err(Error::invalid(format!("{}: {schedule:?}: {why}", entry.key)));
                }
            }
            let (mut ratios, mut own, mut spent) = (Vec::new(), Vec::new(), 0.0);
            // The first sample of each also finds out how many launches fill one.
            for schedule in [&entry.schedule, other] {
                bench.sample(schedule, 0)?;
            }
            while ratios.len() < 7 || spent < seconds {
                let at = 2 * ratios.len() as u64;
                let order = if ratios.len() % 2 == 0 { [0, 1] } else { [1, 0] };
                let mut times = [0.0; 2];
                for (turn, side) in order.into_iter().enumerate() {
                    let schedule = if side == 0 { &entry.schedule } else { other };
                    let sample = bench.sample(schedule, at + turn as u64)?;
                    times[side] = sample.seconds;
                    spent += sample.spent;
                }
                ratios.push(times[1] / times[0]);
                own.push(times[0]);
            }
            compared.ratio = median(&ratios);
            compared.seconds = median(&own);
            compared.pairs = ratios.len();
            last = Some(bench.into_problem());
        }
        list.push(compared);
    }
    Ok(list)
}
