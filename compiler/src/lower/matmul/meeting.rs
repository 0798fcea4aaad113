//! Workgroups that share sums meet in a workspace: each leaves its own and counts, and the last to come takes those of all.
//!
//! What makes the sums of others visible: all threads store theirs; a barrier of the workgroup; then one thread's fence, its
//! count, its fence; a barrier; then the loads. A fence covers what the barrier has put before it, as in PTX, section
//! "Causality order".

use crate::dtype::DType;
use crate::ir::{Address, Asynchronous, Builder, Inst, Memory, Scalar, Value};
use crate::lower::memory::{Role, Signature, at};
use crate::schedule::Schedule;

/// The workspace of a schedule whose rows of tiles take so many bytes each, enough for `ceil(m / tile_m)` of them; `None` where
/// workgroups share nothing.
pub(super) fn workspace(schedule: &Schedule, row: impl FnOnce() -> usize) -> Option<Signature> {
    if schedule.workgroups <= 1 {
        return None;
    }
    let (words, tokens) = (row() / 4, schedule.tile_m.max(1) as usize);
    let per_row = words.div_ceil(tokens);
    let (role, dtype) = (Role::Workspace, DType::I32);
    Some(Signature { role, name: "workspace", dtype, fixed: per_row * (tokens - 1), per_row, written: false })
}

/// A counter in the workspace, `i32`, zero before the first comes.
pub(super) struct Counter {
    /// Where it lies.
    pub address: Address,
    /// Where one thread tells its workgroup what it has counted.
    pub told: Memory,
    /// Bool: the thread that counts.
    pub counts: Value,
}

impl Counter {
    fn add(&self, b: &mut Builder, value: Value) -> Value {
        b.push(Scalar::I32.into(), Inst::AtomicAdd { address: self.address, value })
    }

    /// Counts this workgroup, which has passed a barrier behind its stores; how many came before it, `i32`, for all threads.
    pub fn arrive(&self, b: &mut Builder) -> Value {
        b.if_then(self.counts, |b| {
            b.asynchronous(Asynchronous::DeviceFence);
            let one = b.int(Scalar::I32, 1);
            let before = self.add(b, one);
            b.asynchronous(Asynchronous::DeviceFence);
            b.store(at(self.told, None, 0), 4, before);
        });
        // Nobody writes this place again before all have come to the barrier before another count.
        b.barrier();
        b.load(Scalar::I32, at(self.told, None, 0), 4)
    }

    /// Takes it back to zero; `back` makes what is added.
    pub fn reset(&self, b: &mut Builder, back: impl FnOnce(&mut Builder) -> Value) {
        b.if_then(self.counts, |b| {
            let back = back(b);
            self.add(b, back);
        });
    }
}
