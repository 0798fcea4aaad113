//! A look at an entry: its space, its bench, and what did well nearby go into a search or into a second look.
//!
//! Reads a [`Group`], schedules that are worth a try and the journal; makes a [`Found`]. Always holds: samples come through
//! the journal, so that a look that is had again is the same.

use crate::journal::Journal;
use crate::key::Key;
use crate::measure::{Clock, DeviceBench, Slice};
use crate::problem::Problem;
use crate::search::{self, Effort, Outcome, Space};
use crate::table::{DeviceName, Provenance, Table};
use crate::tune::{Options, Progress};
use bitsmith_compiler::Result;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_runtime::Device;

/// Keys that are measured as one.
pub(crate) struct Group {
    pub(crate) keys: Vec<Key>,
    pub(crate) op: Op,
    pub(crate) chooser: Schedule,
    pub(crate) part: Slice,
}

/// What the looks of a run share.
pub(crate) struct Work<'w> {
    pub(crate) device: &'w dyn Device,
    pub(crate) clock: &'w dyn Clock,
    pub(crate) options: &'w Options,
    pub(crate) provenance: &'w Provenance,
    /// The problem of the last look.
    pub(crate) last: Option<Problem>,
    pub(crate) refusals: search::Refusals,
}

/// An entry that was looked at.
pub(crate) struct Found {
    pub(crate) outcome: Outcome,
    /// Points of its space.
    pub(crate) declared: usize,
    /// Bytes that an ideal kernel moves, and operations.
    pub(crate) ideal: (f64, f64),
}

impl Work<'_> {
    /// Looks at an entry for so many seconds, where some schedules did well nearby; again, where so many looks were had `before`.
    pub(crate) fn look(
        &mut self,
        group: &Group,
        (near, seconds, before): (&[Schedule], f64, Option<(Outcome, usize)>),
        journal: &mut Journal,
        progress: &mut dyn Progress,
    ) -> Result<Found> {
        let (device, options, key) = (self.device, self.options, &group.keys[0]);
        let points = self.refusals.points(&group.op, device.caps(), group.part.rows)?;
        let ceiling = self.provenance.ceiling.over(&group.op);
        let sliced = Key { n: group.part.columns, m: group.part.rows, ..key.clone() };
        let space = Space::new(&sliced, &group.op, device.caps(), &ceiling, device.info().threads, &points);
        let mut bench = DeviceBench::new(device, self.clock, key, group.part, self.last.take())?;
        let ideal = bench.ideal();
        let outcome = {
            let mut recorded = journal.record(key, &mut bench);
            let effort = Effort { seconds, ..Effort::default() };
            let seed = self.provenance.seed ^ crate::hash(key);
            let chooser = &group.chooser;
            match before {
                Some(before) => search::again(&space, chooser, before, near, &mut recorded, effort, progress)?,
                None if options.exhaustive => search::exhaustive(&space, chooser, &mut recorded, effort, progress)?,
                None => search::search(&space, chooser, near, &mut recorded, effort, seed, progress)?,
            }
        };
        self.last = Some(bench.into_problem());
        Ok(Found { outcome, declared: space.candidates.len(), ideal })
    }
}

/// Entries of a chain that give a second look what did best for them.
pub(crate) const NEIGHBOURS: usize = 6;

/// Looks at each entry of a chain, from the second on in what time the first one left.
pub(crate) const LOOKS: usize = 3;

/// What looks left of their time, for others at all entries of a chain: as many samples for each.
pub(crate) fn left(found: &[Found], each: f64) -> Vec<f64> {
    let left: f64 = found.iter().map(|found| (each - found.outcome.spent).max(0.0)).sum();
    let sample = |found: &Found| found.outcome.spent / found.outcome.samples.max(1) as f64;
    let all: f64 = found.iter().map(sample).sum();
    found.iter().map(|found| left * sample(found) / all.max(1e-9)).collect()
}

/// The other entries of a chain that were looked at, nearest first.
pub(crate) fn nearest<'f>(key: &Key, chain: &[Group], found: &'f [Found]) -> impl Iterator<Item = &'f Found> {
    let others = chain.iter().zip(found).enumerate().filter(|(_, (group, _))| group.keys[0] != *key);
    let mut near: Vec<(f64, usize)> = others.map(|(i, (group, _))| (key.distance(&group.keys[0]), i)).collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    near.into_iter().map(|(_, i)| &found[i])
}

/// What did well nearby: in this chain, nearest first, then in tables of this device and of others with its target.
pub(crate) fn warm(key: &Key, chain: &[Group], found: &[Found], tables: &[Table], name: &DeviceName) -> Vec<Schedule> {
    let best = |found: &Found| found.outcome.measured.iter().take(3).map(|m| m.schedule).collect::<Vec<_>>();
    let mut list: Vec<Schedule> = nearest(key, chain, found).take(2).flat_map(best).collect();
    let mut tables: Vec<&Table> = tables.iter().filter(|t| t.device.target == name.target).collect();
    tables.sort_by_key(|t| (t.device != *name, t.device.clone()));
    for table in tables {
        let nearest = table.entries.iter().filter(|e| key.distance(&e.key) <= 3.0);
        list.extend(nearest.min_by(|a, b| key.distance(&a.key).total_cmp(&key.distance(&b.key))).map(|e| e.schedule));
    }
    list
}
