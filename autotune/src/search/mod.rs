//! The search: from a space to a schedule, by successive halving with interleaved samples.
//!
//! Reads a [`Space`] and a [`Bench`]; makes an [`Outcome`]. Rounds go from many candidates and few samples to few
//! candidates and many; within a round candidates take turns, and the incumbent (what the chooser takes) is measured again
//! and again, so that the drift of the machine is known and taken out. A last race goes on until the leader is faster than
//! each rival for sure, or as good as equal. Always holds: decisions depend on samples and on the seed alone, so that a
//! record of the samples gives the same outcome again; the incumbent is replaced only by what beat it beyond doubt.

mod candidates;

pub use candidates::{Candidate, Space, points};

use crate::measure::statistics::{faster, level, median};
use crate::measure::{Bench, Verdict};
use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use std::collections::BTreeMap;

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
        Effort { seconds: f64::INFINITY, width: 48, reach: 3.0, race: 10 }
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
    /// Whether the time was used up before the search was over.
    pub cut: bool,
}

/// A rival that is this close counts as equal.
const EQUAL: f64 = 0.01;
/// What replaces the incumbent must be faster by this.
const WORTH: f64 = 0.015;
/// Most steps from leader to leader.
const CLIMB: usize = 5;
/// Between how many samples the incumbent is measured again.
const AGAIN: usize = 6;

/// Says how a search goes, for people.
pub trait Watch {
    /// A sample was taken: the best so far, its seconds, and the incumbent's.
    fn best(&mut self, best: &Schedule, seconds: f64, incumbent: f64);
}

/// Nobody watches.
impl Watch for () {
    fn best(&mut self, _best: &Schedule, _seconds: f64, _incumbent: f64) {}
}

struct Run<'a> {
    bench: &'a mut dyn Bench,
    incumbent: Schedule,
    samples: BTreeMap<Schedule, Vec<(u64, f64)>>,
    ordinal: u64,
    spent: f64,
    seconds: f64,
    dropped: BTreeMap<Schedule, String>,
    left: BTreeMap<Schedule, usize>,
    watch: &'a mut dyn Watch,
}

impl<'a> Run<'a> {
    fn new(bench: &'a mut dyn Bench, incumbent: &Schedule, seconds: f64, watch: &'a mut dyn Watch) -> Run<'a> {
        Run {
            bench,
            incumbent: *incumbent,
            samples: BTreeMap::new(),
            ordinal: 0,
            spent: 0.0,
            seconds,
            dropped: BTreeMap::new(),
            left: BTreeMap::new(),
            watch,
        }
    }

    /// Sums up. `unlikely` are points that were not tried, with the reason; it counts where no other does.
    fn outcome(self, space: &Space, best: Schedule, unlikely: Vec<(Schedule, String)>, cut: bool) -> Outcome {
        let mut dropped = self.dropped.clone();
        let pruned = space.candidates.iter().filter_map(|c| Some((c.schedule, c.pruned.clone()?)));
        let late = space.open().map(|c| (c.schedule, "the time was used up".to_string()));
        for (schedule, why) in pruned.chain(unlikely).chain(late) {
            if !self.samples.contains_key(&schedule) {
                dropped.entry(schedule).or_insert(why);
            }
        }
        let all: Vec<Schedule> = self.samples.keys().copied().collect();
        let measured = self
            .ranked(&all)
            .into_iter()
            .map(|schedule| Measured {
                schedule,
                seconds: self.level(&schedule),
                samples: self.samples[&schedule].len(),
                left: self.left.get(&schedule).copied().unwrap_or(4),
            })
            .collect();
        Outcome {
            best,
            seconds: self.level(&best),
            incumbent_seconds: self.level(&self.incumbent),
            measured,
            dropped: dropped.into_iter().collect(),
            samples: self.samples.values().map(Vec::len).sum(),
            cut: cut || self.over(),
        }
    }

    fn over(&self) -> bool {
        self.spent >= self.seconds
    }

    /// Takes a sample, of a sound candidate.
    fn sample(&mut self, schedule: &Schedule) -> Result<f64> {
        let sample = self.bench.sample(schedule, self.ordinal)?;
        self.samples.entry(*schedule).or_default().push((self.ordinal, sample.seconds));
        self.ordinal += 1;
        self.spent += sample.spent;
        Ok(sample.seconds)
    }

    /// Whether a candidate computes what it should; if not, it is dropped.
    fn sound(&mut self, schedule: &Schedule) -> Result<bool> {
        if self.samples.contains_key(schedule) {
            return Ok(true);
        }
        if self.dropped.contains_key(schedule) {
            return Ok(false);
        }
        match self.bench.admit(schedule)? {
            Verdict::Sound => Ok(true),
            Verdict::Rejected(why) => {
                self.dropped.insert(*schedule, why);
                Ok(false)
            }
        }
    }

    /// How slow the machine was at a sample, against its usual: the median of the incumbent's nearest three samples over
    /// the median of all of them.
    fn drift(&self, ordinal: u64) -> f64 {
        let Some(own) = self.samples.get(&self.incumbent) else { return 1.0 };
        let mut near: Vec<(u64, f64)> = own.iter().map(|(at, s)| (at.abs_diff(ordinal), *s)).collect();
        near.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let near: Vec<f64> = near.into_iter().take(3).map(|(_, s)| s).collect();
        let all: Vec<f64> = own.iter().map(|(_, s)| *s).collect();
        if near.len() < 3 { 1.0 } else { median(&near) / median(&all) }
    }

    /// What a candidate stands for.
    fn level(&self, schedule: &Schedule) -> f64 {
        let Some(own) = self.samples.get(schedule) else { return f64::INFINITY };
        level(&own.iter().map(|(at, s)| s / self.drift(*at)).collect::<Vec<_>>())
    }

    fn ranked(&self, list: &[Schedule]) -> Vec<Schedule> {
        let mut ranked: Vec<(f64, Schedule)> = list.iter().map(|s| (self.level(s), *s)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        ranked.dedup();
        ranked.into_iter().map(|(_, s)| s).collect()
    }

    /// Some samples of each candidate, in turn. Candidates that are refused, or not reached in time, fall out.
    fn round(&mut self, list: &[Schedule], samples: usize) -> Result<Vec<Schedule>> {
        let mut alive: Vec<Schedule> = Vec::new();
        for pass in 0..samples {
            let turn: Vec<Schedule> = if pass == 0 { list.to_vec() } else { alive.clone() };
            for (i, schedule) in turn.iter().enumerate() {
                if self.over() {
                    return Ok(alive);
                }
                if i % AGAIN == 0 {
                    self.sample(&self.incumbent.clone())?;
                }
                if pass == 0 {
                    if !self.sound(schedule)? {
                        continue;
                    }
                    alive.push(*schedule);
                }
                self.sample(schedule)?;
            }
            self.tell(&alive);
        }
        Ok(alive)
    }

    fn tell(&mut self, alive: &[Schedule]) {
        let mut all = alive.to_vec();
        all.push(self.incumbent);
        if let Some(best) = self.ranked(&all).first() {
            let (seconds, incumbent) = (self.level(best), self.level(&self.incumbent));
            self.watch.best(best, seconds, incumbent);
        }
    }

    fn leave(&mut self, before: &[Schedule], after: &[Schedule], round: usize) {
        for schedule in before.iter().filter(|s| !after.contains(s)) {
            self.left.insert(*schedule, round);
        }
    }

    /// Races a few candidates, the incumbent among them, until the leader is ahead of each for sure or equal to it.
    fn race(&mut self, list: Vec<Schedule>, samples: usize) -> Result<Schedule> {
        let mut paired: BTreeMap<Schedule, Vec<f64>> = BTreeMap::new();
        let mut alive = list;
        if !alive.contains(&self.incumbent) {
            alive.push(self.incumbent);
        }
        for lap in 0..samples {
            if self.over() {
                break;
            }
            // Everybody goes first now and then.
            alive.rotate_left(1);
            for schedule in alive.clone() {
                let seconds = self.sample(&schedule)?;
                paired.entry(schedule).or_default().push(seconds);
            }
            self.tell(&alive);
            if lap + 1 < 6 {
                continue;
            }
            let leader = self.ranked(&alive)[0];
            let incumbent = self.incumbent;
            let beaten = |s: &Schedule| *s != leader && *s != incumbent && faster(&paired[&leader], &paired[s], 0.0);
            let (out, rest): (Vec<Schedule>, Vec<Schedule>) = alive.iter().partition(|s| beaten(s));
            self.leave(&out, &[], 3);
            // Pairs must come from the same laps: who is out stays out.
            alive = rest;
            let equal = |s: &Schedule| {
                let ratio: Vec<f64> = paired[s].iter().zip(&paired[&leader]).map(|(a, b)| a / b).collect();
                (median(&ratio) - 1.0).abs() < EQUAL
            };
            if alive
                .iter()
                .all(|s| *s == leader || beaten(s) || *s == incumbent && decided(&paired, &leader, s) || equal(s))
            {
                break;
            }
        }
        let leader = self.ranked(&alive)[0];
        if leader == self.incumbent {
            return Ok(leader);
        }
        // The incumbent gives way to what won the samples that both took turns in, by more than noise makes.
        let worth = self.level(&leader) * (1.0 + WORTH) < self.level(&self.incumbent);
        let ratio: Vec<f64> = paired
            .get(&self.incumbent)
            .into_iter()
            .flatten()
            .zip(paired.get(&leader).into_iter().flatten())
            .map(|(a, b)| a / b)
            .collect();
        let sure = ratio.is_empty() || median(&ratio) > 1.0 + WORTH;
        Ok(if worth && sure { leader } else { self.incumbent })
    }
}

/// Whether the leader and the incumbent are told apart, one way or the other.
fn decided(paired: &BTreeMap<Schedule, Vec<f64>>, leader: &Schedule, incumbent: &Schedule) -> bool {
    faster(&paired[leader], &paired[incumbent], WORTH) || faster(&paired[incumbent], &paired[leader], 0.0)
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
    // Around the leaders the space is looked at whatever the prior said, as long as that leads on.
    let mut second = kept;
    for _ in 0..CLIMB {
        let leaders: Vec<Schedule> = run.ranked(&second).into_iter().take(2).collect();
        let mut near: Vec<Schedule> = leaders.iter().flat_map(|leader| space.neighbours(leader)).collect();
        near.retain(|s| !run.samples.contains_key(s) && !run.dropped.contains_key(s));
        near.sort();
        near.dedup();
        if near.is_empty() {
            break;
        }
        second.extend(run.round(&near, 2)?);
        if run.ranked(&second).first() == leaders.first() {
            break;
        }
    }
    let kept: Vec<Schedule> = run.ranked(&second).into_iter().take(6).collect();
    run.leave(&second, &kept, 1);
    let third = run.round(&kept, 2)?;
    let third = if third.is_empty() { kept } else { third };
    let finalists: Vec<Schedule> = run.ranked(&third).into_iter().take(3).collect();
    run.leave(&third, &finalists, 2);
    let best = run.race(finalists, effort.race)?;

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
