//! Tuned schedules against others, the chooser's for one, measured again side by side.
//!
//! Reads a table and its device; makes ratios. Every entry is visited some times, a round of all entries apart and in buffers
//! of its own: how buffers lie, and what neighbours do to memory, shifts all pairs of one visit alike. Always holds: both sides
//! take turns, who goes first alternates, and what is compared has been checked against the reference again.

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
    /// Seconds per launch as tuned, the median over visits of their medians.
    pub seconds: f64,
    /// How many times as long the other's launch takes: the median over visits of their medians over pairs; 1 where both are the
    /// same.
    pub ratio: f64,
    /// Pairs of samples, of all visits.
    pub pairs: usize,
}

/// Visits to an entry.
const VISITS: usize = 5;

/// Least pairs of a visit.
const PAIRS: usize = 3;

/// Measures each entry's schedule again beside another one, for about so many seconds and at least fifteen pairs. Where both
/// are the same nothing is measured. `progress` hears how many visits are done, and of how many.
pub fn compare(
    device: &dyn Device,
    clock: &dyn Clock,
    entries: &[(Entry, Schedule)],
    seconds: f64,
    cycle: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Compared>> {
    let mut visits: Vec<Vec<Visit>> = entries.iter().map(|_| Vec::new()).collect();
    let mut last: Option<Problem> = None;
    for turn in 0..VISITS {
        for (i, (entry, other)) in entries.iter().enumerate() {
            progress(turn * entries.len() + i, VISITS * entries.len());
            if entry.schedule == *other {
                continue;
            }
            // All rows, also where fewer were measured: what those say about the rest shows here.
            let part = Slice { columns: entry.columns, rows: entry.key.m, cycle };
            let mut bench = DeviceBench::new(device, clock, &entry.key, part, last.take())?;
            visits[i].push(visit(&mut bench, entry, other, (turn, seconds / VISITS as f64))?);
            last = Some(bench.into_problem());
        }
    }
    let of = |((entry, other), visits): (&(Entry, Schedule), Vec<Visit>)| {
        let over = |of: &dyn Fn(&Visit) -> f64| median(&visits.iter().map(of).collect::<Vec<_>>());
        Compared {
            key: entry.key.clone(),
            tuned: entry.schedule,
            other: *other,
            seconds: if visits.is_empty() { entry.of_all_rows() } else { over(&|visit| visit.seconds) },
            ratio: if visits.is_empty() { 1.0 } else { over(&|visit| visit.ratio) },
            pairs: visits.iter().map(|visit| visit.pairs).sum(),
        }
    };
    Ok(entries.iter().zip(visits).map(of).collect())
}

/// What one visit came to.
struct Visit {
    seconds: f64,
    ratio: f64,
    pairs: usize,
}

/// Pairs of samples of an entry's schedule and another one, for so many seconds.
fn visit(bench: &mut DeviceBench<'_>, entry: &Entry, other: &Schedule, (turn, seconds): (usize, f64)) -> Result<Visit> {
    let sides = [&entry.schedule, other];
    for schedule in sides {
        if let Verdict::Rejected(why) = bench.admit(schedule)? {
            return Err(Error::invalid(format!("{}: {schedule:?}: {why}", entry.key)));
        }
    }
    let (mut ratios, mut own, mut spent) = (Vec::new(), Vec::new(), 0.0);
    // Samples of a visit are numbered from a thousand of its own on.
    let mut ordinal = 1000 * turn as u64;
    // The first sample of each also finds out how many launches fill one.
    for schedule in sides {
        bench.sample(schedule, ordinal)?;
    }
    while ratios.len() < PAIRS || spent < seconds {
        let order = if (turn + ratios.len()) % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut times = [0.0; 2];
        for side in order {
            let sample = bench.sample(sides[side], ordinal)?;
            times[side] = sample.seconds;
            spent += sample.spent;
            ordinal += 1;
        }
        ratios.push(times[1] / times[0]);
        own.push(times[0]);
    }
    Ok(Visit { seconds: median(&own), ratio: median(&ratios), pairs: ratios.len() })
}
