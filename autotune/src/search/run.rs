//! A search under way: its samples, what they come to with the drift of the machine taken out, rounds and the last race.
//!
//! Reads a [`Bench`]; makes levels and ranks. Always holds: the incumbent is measured again and again among the others, and
//! gives way only to what beat it beyond doubt.

use super::{Measured, Outcome, Space, Watch};
use crate::measure::statistics::{faster, level, median};
use crate::measure::{Bench, Verdict};
use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use std::collections::BTreeMap;

/// A rival that is this close counts as equal: two runs shall not part over less.
pub(super) const EQUAL: f64 = 0.015;
/// What replaces the incumbent must be faster by this.
pub(super) const WORTH: f64 = 0.02;
/// Laps of a race before anybody leaves it: so many wins of as many are beyond doubt.
const PAIRS: usize = 6;
/// Between how many samples the incumbent is measured again.
const AGAIN: usize = 6;

/// A search under way.
pub(super) struct Run<'a> {
    pub(super) bench: &'a mut dyn Bench,
    incumbent: Schedule,
    pub(super) samples: BTreeMap<Schedule, Vec<(u64, f64)>>,
    ordinal: u64,
    pub(super) spent: f64,
    seconds: f64,
    pub(super) dropped: BTreeMap<Schedule, String>,
    left: BTreeMap<Schedule, usize>,
    watch: &'a mut dyn Watch,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        bench: &'a mut dyn Bench,
        incumbent: &Schedule,
        seconds: f64,
        watch: &'a mut dyn Watch,
    ) -> Run<'a> {
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
    pub(super) fn outcome(
        self,
        space: &Space,
        best: Schedule,
        unlikely: Vec<(Schedule, String)>,
        cut: bool,
    ) -> Outcome {
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
            spent: self.spent,
            cut: cut || self.over(),
        }
    }

    /// Numbers samples from here on.
    pub(super) fn going_on(mut self, ordinal: usize) -> Run<'a> {
        self.ordinal = ordinal as u64;
        self
    }

    fn over(&self) -> bool {
        self.spent >= self.seconds
    }

    /// Takes a sample, of a sound candidate.
    pub(super) fn sample(&mut self, schedule: &Schedule) -> Result<f64> {
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

    /// How slow the machine was at a sample, against its usual: the median of the incumbent's nearest five samples over
    /// the median of all of them.
    fn drift(&self, ordinal: u64) -> f64 {
        let Some(own) = self.samples.get(&self.incumbent) else { return 1.0 };
        let mut near: Vec<(u64, f64)> = own.iter().map(|(at, s)| (at.abs_diff(ordinal), *s)).collect();
        near.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let near: Vec<f64> = near.into_iter().take(5).map(|(_, s)| s).collect();
        let all: Vec<f64> = own.iter().map(|(_, s)| *s).collect();
        if near.len() < 3 { 1.0 } else { median(&near) / median(&all) }
    }

    /// What a candidate stands for.
    pub(super) fn level(&self, schedule: &Schedule) -> f64 {
        let Some(own) = self.samples.get(schedule) else { return f64::INFINITY };
        level(&own.iter().map(|(at, s)| s / self.drift(*at)).collect::<Vec<_>>())
    }

    pub(super) fn ranked(&self, list: &[Schedule]) -> Vec<Schedule> {
        let mut ranked: Vec<(f64, Schedule)> = list.iter().map(|s| (self.level(s), *s)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        ranked.dedup();
        ranked.into_iter().map(|(_, s)| s).collect()
    }

    /// Some samples of each candidate, in turn. Candidates that are refused, or not reached in time, fall out.
    pub(super) fn round(&mut self, list: &[Schedule], samples: usize) -> Result<Vec<Schedule>> {
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

    pub(super) fn leave(&mut self, before: &[Schedule], after: &[Schedule], round: usize) {
        for schedule in before.iter().filter(|s| !after.contains(s)) {
            self.left.insert(*schedule, round);
        }
    }

    /// Races a few candidates, the incumbent among them, until the leader is ahead of each for sure or equal to it. Of equals
    /// the one with the least prior wins, which does not depend on samples. Where the time is used up, the best and the
    /// incumbent still meet: nothing takes its place without pairs of samples.
    pub(super) fn race(
        &mut self,
        list: Vec<Schedule>,
        samples: usize,
        prior: &dyn Fn(&Schedule) -> f64,
    ) -> Result<Schedule> {
        let mut paired: BTreeMap<Schedule, Vec<f64>> = BTreeMap::new();
        let mut alive = list;
        if !alive.contains(&self.incumbent) {
            alive.push(self.incumbent);
        }
        for lap in 0..samples {
            if self.over() {
                if lap >= PAIRS {
                    break;
                }
                let best = self.ranked(&alive)[0];
                alive.retain(|s| *s == best || *s == self.incumbent);
            }
            // Everybody goes first now and then.
            alive.rotate_left(1);
            for schedule in alive.clone() {
                let seconds = self.sample(&schedule)?;
                paired.entry(schedule).or_default().push(seconds);
            }
            self.tell(&alive);
            if lap + 1 < PAIRS {
                continue;
            }
            let leader = self.ranked(&alive)[0];
            let incumbent = self.incumbent;
            let beaten = |s: &Schedule| *s != leader && *s != incumbent && faster(&paired[&leader], &paired[s], 0.0);
            let (out, rest): (Vec<Schedule>, Vec<Schedule>) = alive.iter().partition(|s| beaten(s));
            self.leave(&out, &[], 3);
            // Pairs must come from the same laps: who is out stays out.
            alive = rest;
            if alive.iter().all(|s| {
                *s == leader
                    || beaten(s)
                    || *s == incumbent && decided(&paired, &leader, s)
                    || lap + 1 >= 2 * PAIRS && equal(&paired, &leader, s)
            }) {
                break;
            }
        }
        let leader = self.ranked(&alive)[0];
        if leader == self.incumbent {
            return Ok(leader);
        }
        let rivals = alive.iter().filter(|s| **s != leader && **s != self.incumbent && equal(&paired, &leader, s));
        let leader = rivals
            .copied()
            .chain([leader])
            .min_by(|a, b| prior(a).total_cmp(&prior(b)).then(a.cmp(b)))
            .expect("the leader is among them");
        // The incumbent gives way to what won the samples that both took turns in, by more than noise makes.
        let worth = self.level(&leader) * (1.0 + WORTH) < self.level(&self.incumbent);
        let (own, old) = (&paired[&leader], &paired[&self.incumbent]);
        let ratio: Vec<f64> = old.iter().zip(own).map(|(old, own)| old / own).collect();
        let sure = median(&ratio) > 1.0 + WORTH && faster(own, old, 0.0);
        Ok(if worth && sure { leader } else { self.incumbent })
    }
}

/// Whether a rival of the leader is as good.
fn equal(paired: &BTreeMap<Schedule, Vec<f64>>, leader: &Schedule, rival: &Schedule) -> bool {
    let ratio: Vec<f64> = paired[rival].iter().zip(&paired[leader]).map(|(a, b)| a / b).collect();
    (median(&ratio) - 1.0).abs() < EQUAL
}

/// Whether the leader and the incumbent are told apart, one way or the other.
fn decided(paired: &BTreeMap<Schedule, Vec<f64>>, leader: &Schedule, incumbent: &Schedule) -> bool {
    faster(&paired[leader], &paired[incumbent], WORTH) || faster(&paired[incumbent], &paired[leader], 0.0)
}
