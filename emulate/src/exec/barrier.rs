//! Barriers of a block and of a cluster, and the end of a warp.

use super::state::{Wait, Warp};
use super::{Machine, Next, Result, write};
use crate::fault::{Fault, FaultKind};
use crate::op::{Bar, Barrier, Op};
use crate::race::join;

impl Machine<'_> {
    pub(super) fn barrier(&mut self, warp: &mut Warp, active: u32, group: u32, barrier: &Barrier) -> Result<Next> {
        if active != group || active != warp.live {
            if active != group && barrier.aligned {
                return Err(Fault::new(
                    FaultKind::Divergence,
                    "an aligned barrier whose guard holds for a part of the warp".to_string(),
                ));
            }
            return Ok(Next::Wait(Wait::Converge));
        }
        let id = self.uniform(warp, active, barrier.id, "the barrier's number")? as usize;
        if id >= 16 {
            return Err(Fault::new(FaultKind::Misuse, format!("barrier {id}; accepted: 0 to 15")));
        }
        let expected = match barrier.threads {
            None => None,
            Some(threads) => {
                let count = self.uniform(warp, active, threads, "the barrier's thread count")? as u32;
                if count == 0 || !count.is_multiple_of(32) {
                    return Err(Fault::new(
                        FaultKind::Misuse,
                        format!("a barrier of {count} threads; accepted: multiples of 32"),
                    ));
                }
                Some(count)
            }
        };
        let votes = match barrier.test {
            Some(test) => (self.test(warp, active, test)? & active).count_ones(),
            None => 0,
        };
        let slot = warp.block;
        let live_warps = self.blocks[slot].live_warps;
        let block = &mut self.blocks[slot];
        let gate = &mut block.gates[id];
        if gate.arrived > 0 && gate.expected != expected {
            return Err(Fault::new(
                FaultKind::Misuse,
                format!("barrier {id} with {expected:?} threads, where others came with {:?}", gate.expected),
            ));
        }
        if barrier.how != Bar::Arrive && gate.arrivals.contains(&warp.index) {
            return Err(Fault::new(FaultKind::Misuse, format!("a second arrival at barrier {id} in one phase")));
        }
        gate.expected = expected;
        gate.arrived += 32;
        gate.arrivals.push(warp.index);
        gate.votes.0 += votes;
        gate.votes.1 += active.count_ones();
        let generation = gate.generation;
        let mut clock = std::mem::take(&mut gate.clock);
        block.races.release(warp.index, &mut clock);
        block.gates[id].clock = clock;
        if let Some(expected) = expected
            && block.gates[id].arrived > expected
        {
            let arrived = block.gates[id].arrived;
            return Err(Fault::new(FaultKind::Misuse, format!("{arrived} threads at barrier {id} of {expected}")));
        }
        self.settle(slot, id, live_warps);
        self.progress += 1;
        Ok(if barrier.how == Bar::Arrive { Next::Advance } else { Next::Wait(Wait::Barrier { id, generation }) })
    }

    /// Opens a barrier that everyone reached.
    fn settle(&mut self, slot: usize, id: usize, live_warps: u32) {
        let gate = &mut self.blocks[slot].gates[id];
        if gate.arrived == 0 || gate.arrived < gate.expected.unwrap_or(32 * live_warps) {
            return;
        }
        gate.generation += 1;
        gate.arrived = 0;
        gate.arrivals.clear();
        gate.released = std::mem::take(&mut gate.clock);
        gate.result = std::mem::take(&mut gate.votes);
    }

    /// A wait that is over: its effects on the waiting lanes.
    pub(super) fn resume(&mut self, warp: &mut Warp, index: usize) {
        let slot = warp.block;
        let group = warp.groups[index];
        match group.wait {
            Wait::Barrier { id, .. } => {
                let released = self.blocks[slot].gates[id].released.clone();
                let (yes, all) = self.blocks[slot].gates[id].result;
                self.blocks[slot].races.acquire(warp.index, &released);
                if let Op::Barrier(barrier) = &self.program.insts[group.pc as usize].op {
                    if let Some(out) = barrier.out {
                        write(warp, group.mask, out, &[u64::from(yes); 32]);
                    }
                    if let Some(out) = barrier.out_pred {
                        let value = if barrier.how == Bar::All { yes == all } else { yes > 0 };
                        self.set_pred(warp, group.mask, out, if value { !0 } else { 0 });
                    }
                }
                warp.groups[index].pc += 1;
            }
            Wait::Cluster { .. } => {
                warp.groups[index].pc += 1;
            }
            Wait::No | Wait::Converge | Wait::Mbarrier { .. } | Wait::Warpgroup { .. } => {}
        }
        warp.groups[index].wait = Wait::No;
    }

    pub(super) fn finish_warp(&mut self, warp: &mut Warp) -> Result<()> {
        let slot = warp.block;
        if !warp.flights.is_empty() {
            return Err(Fault::new(FaultKind::Misuse, "the warp ends while a wgmma is in flight".to_string()));
        }
        self.blocks[slot].live_warps -= 1;
        let live = self.blocks[slot].live_warps;
        // A barrier without a count needs those that are left.
        for id in 0..16 {
            if self.blocks[slot].gates[id].expected.is_none() {
                self.settle(slot, id, live);
            }
        }
        self.settle_cluster(self.blocks[slot].first);
        self.progress += 1;
        Ok(())
    }

    pub(super) fn cluster_arrive(&mut self, warp: &mut Warp, active: u32) -> Result<Next> {
        if active != warp.live {
            return Ok(Next::Wait(Wait::Converge));
        }
        let slot = warp.block;
        let first = self.blocks[slot].first;
        // Clocks are per block; a cluster barrier orders the block's own warps through its gate.
        let mut clock = std::mem::take(&mut self.blocks[slot].cluster.clock);
        self.blocks[slot].races.release(warp.index, &mut clock);
        self.blocks[slot].cluster.clock = clock;
        warp.cluster_generation = self.blocks[first].cluster.generation;
        self.blocks[first].cluster.arrived += 1;
        self.settle_cluster(first);
        self.progress += 1;
        Ok(Next::Advance)
    }

    fn settle_cluster(&mut self, first: usize) {
        let size = self.cluster.iter().product::<u32>() as usize;
        let live: u32 = self.blocks[first..first + size].iter().map(|b| b.live_warps).sum();
        if self.blocks[first].cluster.arrived == 0 || self.blocks[first].cluster.arrived < live {
            return;
        }
        let gate = &mut self.blocks[first].cluster;
        gate.generation += 1;
        gate.arrived = 0;
        for block in &mut self.blocks[first..first + size] {
            let clock = block.cluster.clock.clone();
            for warp in 0..block.warps.len() {
                join(&mut block.races.clocks[warp], &clock);
            }
        }
    }

    pub(super) fn cluster_wait(&mut self, warp: &mut Warp) -> Next {
        let first = self.blocks[warp.block].first;
        let generation = warp.cluster_generation;
        if self.blocks[first].cluster.generation != generation {
            return Next::Advance;
        }
        Next::Wait(Wait::Cluster { generation })
    }
}
