//! Candidates: the declared points of a space, with what is known of each before anything is measured.
//!
//! Reads the families' axes, their estimates and a device's ceilings; makes candidates, the promising ones first. Always
//! holds: every declared point is there, and one that will not be measured says why.

use crate::ceiling::Ceiling;
use crate::key::Key;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::lower;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::{Knob, Schedule};
use bitsmith_compiler::{Error, Result};
use std::collections::BTreeMap;

/// A point of the space.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The point.
    pub schedule: Schedule,
    /// Predicted seconds, on the roofline; comparable with each other only.
    pub prior: f64,
    /// Why it is not measured, where it is not.
    pub pruned: Option<String>,
}

/// Everything that can be tried for one entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Space {
    /// Declared points, the pruned ones among them: by prior, ties by schedule.
    pub candidates: Vec<Candidate>,
}

/// Registers beyond those of the device that an estimate may ask for: it counts, it does not allocate.
const SLACK: u32 = 2;

impl Space {
    /// The space of an operation with `m` rows. `points` are what [`points`] gives.
    pub fn new(
        key: &Key,
        op: &Op,
        caps: &Caps,
        ceiling: &Ceiling,
        threads: usize,
        points: &[(Schedule, Option<String>)],
    ) -> Space {
        let mut candidates: Vec<Candidate> = points
            .iter()
            .map(|(schedule, why)| {
                let (prior, crowded) = prior(key, op, caps, ceiling, threads, schedule);
                Candidate { schedule: *schedule, prior, pruned: why.clone().or(crowded) }
            })
            .collect();
        candidates.sort_by(|a, b| a.prior.total_cmp(&b.prior).then(a.schedule.cmp(&b.schedule)));
        Space { candidates }
    }

    /// Points that may be measured, promising ones first.
    pub fn open(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(|candidate| candidate.pruned.is_none())
    }

    /// The candidate of a schedule.
    pub fn of(&self, schedule: &Schedule) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.schedule == *schedule)
    }

    /// Open points that differ from one in a single knob.
    fn line(&self, of: &Schedule, knob: Knob) -> impl Iterator<Item = &Candidate> {
        self.open().filter(move |c| c.schedule != *of && knob.set(c.schedule, knob.of(of)) == *of)
    }

    /// Open points one step from another: the next value of a single knob, up or down, that the space holds, or the same
    /// numbers in another family.
    pub fn neighbours(&self, of: &Schedule) -> Vec<Schedule> {
        let mut list = Vec::new();
        for knob in Knob::ALL {
            let line = || self.line(of, knob).map(|c| c.schedule);
            list.extend(line().filter(|s| knob.of(s) > knob.of(of)).min_by_key(|s| knob.of(s)));
            list.extend(line().filter(|s| knob.of(s) < knob.of(of)).max_by_key(|s| knob.of(s)));
        }
        let twin = |c: &&Candidate| Schedule { family: of.family, ..c.schedule } == *of && c.schedule != *of;
        list.extend(self.open().filter(twin).map(|c| c.schedule));
        list
    }

    /// Open points that differ from one in a single knob by any number of steps, but for those whose prior is over `most`.
    pub fn lines(&self, of: &Schedule, most: f64) -> Vec<Schedule> {
        let lines = Knob::ALL.into_iter().flat_map(|knob| self.line(of, knob));
        lines.filter(|c| c.prior <= most).map(|c| c.schedule).collect()
    }
}

/// The roofline prior: the longer of moving the bytes and doing the work, in whole rounds of workgroups; and why the point
/// is out, where its estimate does not fit the device.
fn prior(
    key: &Key,
    op: &Op,
    caps: &Caps,
    ceiling: &Ceiling,
    threads: usize,
    schedule: &Schedule,
) -> (f64, Option<String>) {
    let bytes = match op {
        Op::Matmul(op) => {
            op.n as f64 * op.k as f64 * op.weight.code.bits() as f64 / 8.0 + key.m as f64 * (op.k + op.n) as f64 * 2.0
        }
        _ => 0.0,
    };
    let products = key.m as f64 * key.n as f64 * key.k as f64;
    let memory = bytes / ceiling.read_gbs / 1e9;
    let grid = lower::grid(op, schedule, key.m).iter().map(|&n| n as f64).product::<f64>();
    let parallel = threads.max(1) as f64;
    // Workgroups come in rounds; the last one may leave threads idle.
    let rounds = (grid / parallel).ceil() * parallel / grid.max(1.0);
    let Some(estimate) = lower::estimate(op, schedule, caps, key.m) else {
        return (memory.max(2.0 * products / ceiling.gops / 1e9) * rounds, None);
    };
    let lanes = (caps.vector_bytes / 4).max(1) as f64;
    // At best two operations per product and lane; an estimate of `1 / lanes` instructions is that best.
    let work = 2.0 * products * (estimate.work * lanes) / ceiling.gops / 1e9;
    let spilled = estimate.registers.saturating_sub(caps.vector_registers) as f64;
    let time = memory.max(work * (1.0 + 0.1 * spilled)) * rounds;
    let crowded = (estimate.registers > caps.vector_registers + SLACK).then(|| {
        format!("wants about {} vector registers; {} has {}", estimate.registers, caps.name, caps.vector_registers)
    });
    (time, crowded)
}

/// Declared points, or the reason why there is none.
pub fn points(op: &Op, caps: &Caps, m: usize) -> Result<Vec<(Schedule, Option<String>)>> {
    Refusals::default().points(op, caps, m)
}

/// Which schedules of an operation cannot be built, and why: found once, since the number of rows does not matter.
#[derive(Debug, Default)]
pub struct Refusals {
    op: Option<Op>,
    known: BTreeMap<Schedule, Option<String>>,
}

impl Refusals {
    /// [`points`], where those of the last operation are known already.
    pub fn points(&mut self, op: &Op, caps: &Caps, m: usize) -> Result<Vec<(Schedule, Option<String>)>> {
        if self.op != Some(*op) {
            *self = Refusals { op: Some(*op), known: BTreeMap::new() };
        }
        let mut points = Vec::new();
        for schedule in lower::points(op, caps, m)? {
            let why = match self.known.get(&schedule) {
                Some(why) => why.clone(),
                None => {
                    let why = lower::refusal(op, &schedule, caps)?;
                    self.known.entry(schedule).or_insert(why).clone()
                }
            };
            points.push((schedule, why));
        }
        if points.iter().all(|(_, why)| why.is_some()) {
            let why: Vec<String> = points.iter().filter_map(|(_, why)| why.clone()).take(3).collect();
            return Err(Error::Unsupported(format!(
                "no schedule of {} on {}: {}",
                op.name(),
                caps.name,
                why.join("; ")
            )));
        }
        Ok(points)
    }
}
