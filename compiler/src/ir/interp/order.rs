//! Order between workgroups: what fences and atomics make of accesses to buffers.
//!
//! Reads atomics on buffers and fences of the device, in the order in which the interpreter runs them; says whether an access
//! of another workgroup comes before one of this workgroup. Always holds: it errs on the side of no order. A fence covers what
//! the workgroup did before its last barrier, and what it brings counts for the workgroup behind its next barrier.

use super::memory::Who;
use crate::ir::types::Memory;
use std::collections::{BTreeMap, HashMap};

/// For each workgroup: how many of its intervals are known.
type Known = BTreeMap<u32, u32>;

/// What is ordered so far in a launch.
#[derive(Debug, Default)]
pub struct Order {
    /// What has been made known through each place that atomics have touched.
    released: HashMap<(Memory, i64), Known>,
    /// Of the workgroup that runs: for each thread, the interval of its last fence.
    fences: HashMap<u32, u32>,
    /// For each thread, what its atomics have found since its last fence.
    found: HashMap<u32, Known>,
    /// What fences have brought: for each workgroup, how many of its intervals, and in which interval of this one.
    seen: BTreeMap<u32, (u32, u32)>,
}

impl Order {
    /// Forgets what belongs to the workgroup that has run.
    pub fn enter_workgroup(&mut self) {
        self.fences.clear();
        self.found.clear();
        self.seen.clear();
    }

    /// An atomic on a buffer: it finds what others have released there, and releases what its last fence covers.
    pub fn atomic(&mut self, memory: Memory, at: i64, who: Who) {
        let released = self.released.entry((memory, at)).or_default();
        raise(self.found.entry(who.thread).or_default(), released);
        if let Some(&interval) = self.fences.get(&who.thread) {
            let mut known: Known =
                self.seen.iter().filter(|(_, seen)| seen.1 < interval).map(|(&other, seen)| (other, seen.0)).collect();
            known.insert(who.workgroup, interval);
            raise(released, &known);
        }
    }

    /// A fence of a thread.
    pub fn fence(&mut self, who: Who) {
        self.fences.insert(who.thread, who.interval);
        for (other, intervals) in self.found.remove(&who.thread).unwrap_or_default() {
            let seen = self.seen.entry(other).or_insert((intervals, who.interval));
            if seen.0 < intervals {
                *seen = (intervals, who.interval);
            }
        }
    }

    /// Whether what a workgroup did in an interval comes before an access.
    pub fn is_before(&self, workgroup: u32, interval: u32, who: Who) -> bool {
        self.seen.get(&workgroup).is_some_and(|&(intervals, since)| interval < intervals && since < who.interval)
    }
}

fn raise(known: &mut Known, by: &Known) {
    for (&workgroup, &intervals) in by {
        let slot = known.entry(workgroup).or_insert(intervals);
        *slot = intervals.max(*slot);
    }
}
