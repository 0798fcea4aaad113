//! The search: from a space to a schedule, by successive halving with interleaved samples.
//!
//! Reads a [`Space`] and a [`Bench`]; makes an [`Outcome`]. Rounds go from many candidates and few samples to few
//! candidates and many; within a round candidates take turns, and the incumbent (what the chooser takes) is measured again
//! and again, so that the drift of the machine is known and taken out. A last race goes on until the leader is faster than
//! each rival for sure, or as good as equal. A second look, some time later, meets the machine in another state, perhaps: what
//! is taken is what did best by both ([`again`]). Always holds: decisions depend on samples and on the seed alone, so that a
//! record of the samples gives the same outcome again; the incumbent is replaced only by what beat it beyond doubt.

mod again;
mod candidates;
mod run;

pub use again::again;

pub use candidates::{Candidate, Refusals, Space, points};

use crate::measure::{Bench, Verdict};
use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use run::Run;

/// How much is searched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Seconds of samples for the entry; the search ends early where they are used up.
    pub seconds: f64,
    /// Most candidates of the first round.
    pub width: usize,
    /// A candidate whose prior is so many times the best prior is not tried.
    pub reach: f64,
    /// Samples per candidate of the last race.
    pub race: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { seconds: f64::INFINITY, width: 48, reach: 3.0, race: 24 }
    }
}

/// A candidate that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Its schedule.
    pub schedule: Schedule,
    /// Seconds per launch: its level, drift taken out.
    pub seconds: f64,
    /// Samples taken.
    pub samples: usize,
    /// The round that it left in; 0 is the first.
    pub left: usize,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The schedule to take.
    pub best: Schedule,
    /// Its seconds per launch.
    pub seconds: f64,
    /// Seconds per launch of the incumbent, in the same samples.
    pub incumbent_seconds: f64,
    /// Candidates that were measured, fastest first.
    pub measured: Vec<Measured>,
    /// Candidates that were not measured, or refused: schedule and reason.
    pub dropped: Vec<(Schedule, String)>,
    /// Samples taken in all.
    pub samples: usize,
    /// Seconds that they took.
    pub spent: f64,
    /// Whether the time was used up before the search was over.
    pub cut: bool,
}

/// Most steps from leader to leader, and looks along their axes.
const CLIMB: usize = 10;

/// Says how a search goes, for people.
pub trait Watch {
    /// A sample was taken: the best so far, its seconds, and the incumbent's.
    fn best(&mut self, best: &Schedule, seconds: f64, incumbent: f64);
}

/// Nobody watches.
impl Watch for () {
    fn best(&mut self, _best: &Schedule, _seconds: f64, _incumbent: f64) {}
}

/// Searches a space. `incumbent` is what would be taken without tuning, `warm` what did well for neighbours, the best first.
pub fn search(
    space: &Space,
    incumbent: &Schedule,
    warm: &[Schedule],
    bench: &mut dyn Bench,
    effort: Effort,
    seed: u64,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let mut run = Run::new(bench, incumbent, effort.seconds, watch);
    if let Verdict::Rejected(why) = run.bench.admit(incumbent)? {
        return Err(bitsmith_compiler::Error::Bug {
            message: format!("the schedule that would be taken without tuning fails: {why}"),
            text: format!("{incumbent:?}"),
        });
    }
    // Warm candidates and the most promising points, in an order that favours nobody.
    let best_prior = space.open().map(|c| c.prior).fold(f64::INFINITY, f64::min);
    let mut pool: Vec<Schedule> = Vec::new();
    for schedule in warm.iter().filter(|s| space.of(s).is_some_and(|c| c.pruned.is_none())) {
        if schedule != incumbent && !pool.contains(schedule) {
            pool.push(*schedule);
        }
    }
    // At most half of a small space: the neighbours of the leaders come later.
    let width = effort.width.min(space.open().count().div_ceil(2).max(12));
    let mut far = Vec::new();
    for candidate in space.open().filter(|c| c.schedule != *incumbent) {
        if pool.contains(&candidate.schedule) {
            continue;
        }
        if candidate.prior > effort.reach * best_prior || pool.len() >= width {
            far.push(candidate);
        } else {
            pool.push(candidate.schedule);
        }
    }
    // Three samples of the incumbent say how long a sample is, and so how many candidates the time is enough for.
    for _ in 0..3 {
        run.sample(incumbent)?;
    }
    let affordable = (effort.seconds * 0.4 / (run.spent / 3.0).max(1e-9) / 2.2) as usize;
    let cut = pool.len() > affordable.max(3);
    pool.truncate(affordable.max(3));
    fastrand::Rng::with_seed(seed).shuffle(&mut pool);
    let first = run.round(&pool, 2)?;
    let kept: Vec<Schedule> = run.ranked(&first).into_iter().take(first.len().div_ceil(5).clamp(4, 8)).collect();
    run.leave(&first, &kept, 0);
    // Around the leaders the space is looked at whatever the prior said, as long as that leads on; where it does not, along
    // every axis through the best, since a step may cost what the next ones bring.
    let mut second = kept;
    let mut far_along = false;
    for _ in 0..CLIMB {
        let leaders: Vec<Schedule> = run.ranked(&second).into_iter().take(2).collect();
        let Some(&leader) = leaders.first() else { break };
        let mut near: Vec<Schedule> = if far_along {
            space.lines(&leader, effort.reach * best_prior)
        } else {
            leaders.iter().flat_map(|leader| space.neighbours(leader)).collect()
        };
        near.retain(|s| !run.samples.contains_key(s) && !run.dropped.contains_key(s));
        near.sort();
        near.dedup();
        second.extend(run.round(&near, 2)?);
        if run.ranked(&second).first() != Some(&leader) {
            far_along = false;
        } else if far_along {
            break;
        } else {
            far_along = true;
        }
    }
    let kept: Vec<Schedule> = run.ranked(&second).into_iter().take(8).collect();
    run.leave(&second, &kept, 1);
    let third = run.round(&kept, 3)?;
    let third = if third.is_empty() { kept } else { third };
    let finalists: Vec<Schedule> = run.ranked(&third).into_iter().take(4).collect();
    run.leave(&third, &finalists, 2);
    let best = run.race(finalists, effort.race, &|schedule| space.of(schedule).map_or(f64::INFINITY, |c| c.prior))?;

    let mut dropped: Vec<(Schedule, String)> = Vec::new();
    for candidate in far {
        let times = candidate.prior / best_prior;
        let why = if times > effort.reach {
            format!("predicted to take {times:.1} times as long as the best")
        } else {
            "behind the others by its prediction".to_string()
        };
        dropped.push((candidate.schedule, why));
    }
    Ok(run.outcome(space, best, dropped, cut))
}

/// Measures every candidate that can be made, with as many samples as a finalist gets.
pub fn exhaustive(
    space: &Space,
    incumbent: &Schedule,
    bench: &mut dyn Bench,
    effort: Effort,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let mut run = Run::new(bench, incumbent, f64::INFINITY, watch);
    let every: Vec<Schedule> = space.open().map(|c| c.schedule).filter(|s| s != incumbent).collect();
    let alive = run.round(&every, effort.race + 4)?;
    let mut all = alive;
    all.push(*incumbent);
    let best = run.ranked(&all)[0];
    Ok(run.outcome(space, best, Vec::new(), false))
}
