//! Which group of a warp, which warp of the blocks that are resident, and what happens when nobody can go on.

use super::state::{Block, Gate, Group, Wait, Warp};
use super::{Machine, Result};
use crate::decode::Special;
use crate::fault::{Fault, FaultKind};
use crate::launch::Effects;
use crate::memory::{Bytes, SHARED_START};
use crate::race::Races;
use std::collections::HashMap;

impl Machine<'_> {
    /// Picks the group to run; false when none can.
    pub(super) fn choose(&mut self, warp: &mut Warp) -> Result<bool> {
        let kept = if std::mem::take(&mut warp.rotated) { warp.groups.get(warp.current).map(|g| g.pc) } else { None };
        for index in 0..warp.groups.len() {
            if self.resolved(warp, &warp.groups[index]) {
                self.resume(warp, index);
            }
        }
        let joins = |wait: Wait| matches!(wait, Wait::No | Wait::Converge);
        let mut index = 0;
        while index < warp.groups.len() {
            let group = warp.groups[index];
            let twin = (index + 1..warp.groups.len())
                .find(|i| warp.groups[*i].pc == group.pc && joins(group.wait) && joins(warp.groups[*i].wait));
            match twin {
                Some(twin) => {
                    let other = warp.groups.remove(twin);
                    warp.groups[index].mask |= other.mask;
                    warp.groups[index].wait = Wait::No;
                }
                None => index += 1,
            }
        }
        let running = warp.groups.iter().enumerate().filter(|(_, g)| g.wait == Wait::No);
        let chosen = running.min_by_key(|(_, g)| if Some(g.pc) == kept { 0 } else { g.pc + 1 });
        if let Some((index, _)) = chosen {
            warp.current = index;
            return Ok(true);
        }
        if !warp.groups.is_empty() && warp.groups.iter().all(|g| g.wait == Wait::Converge) {
            warp.current = 0;
            let program = self.program;
            let at = |g: &Group| {
                let (line, text) = &program.sources[program.insts[g.pc as usize].source as usize];
                format!("lanes {:#010x} at line {line} (`{text}`)", g.mask)
            };
            let places: Vec<_> = warp.groups.iter().map(at).collect();
            return Err(Fault::new(
                FaultKind::Divergence,
                format!("the warp's lanes wait for each other at different places: {}", places.join(", ")),
            ));
        }
        Ok(false)
    }

    fn resolved(&self, warp: &Warp, group: &Group) -> bool {
        let block = &self.blocks[warp.block];
        match group.wait {
            Wait::No | Wait::Converge => false,
            Wait::Barrier { id, generation } => block.gates[id].generation != generation,
            Wait::Mbarrier { block, at, phase } => {
                warp.give_up || self.blocks[block].mbarriers.get(&at).is_none_or(|b| b.phase != phase)
            }
            Wait::Warpgroup { issued } => self.warpgroup(warp).all(|i| self.warps[i].wgmma_issued >= issued),
            Wait::Cluster { generation } => self.blocks[block.first].cluster.generation != generation,
        }
    }

    fn runnable(&self, index: usize) -> bool {
        let warp = &self.warps[index];
        warp.groups.iter().any(|g| g.wait == Wait::No || self.resolved(warp, g))
    }

    /// Runs the whole grid.
    pub(crate) fn run_grid(&mut self) -> Result<()> {
        let clusters: Vec<u32> = (0..3).map(|i| self.grid[i] / self.cluster[i]).collect();
        let total = u64::from(clusters[0]) * u64::from(clusters[1]) * u64::from(clusters[2]);
        let size = self.cluster.iter().product::<u32>() as usize;
        let resident = (self.schedule.resident_blocks.max(1) as usize / size).max(1) as u64;
        let mut next = 0;
        while next < total {
            let end = total.min(next + resident);
            self.blocks.clear();
            self.warps.clear();
            self.operand_cache.clear();
            for cluster in next..end {
                let at = [
                    (cluster % u64::from(clusters[0])) as u32,
                    (cluster / u64::from(clusters[0]) % u64::from(clusters[1])) as u32,
                    (cluster / u64::from(clusters[0]) / u64::from(clusters[1])) as u32,
                ];
                self.open_cluster(at);
            }
            self.run_resident()?;
            next = end;
        }
        Ok(())
    }

    fn open_cluster(&mut self, at: [u32; 3]) {
        let first = self.blocks.len();
        let [cx, cy, cz] = self.cluster;
        let threads = self.block.iter().product::<u32>();
        let count = threads.div_ceil(32) as usize;
        let shared = self.program.shared as usize + self.dynamic_shared as usize;
        for rank in 0..cx * cy * cz {
            let inside = [rank % cx, rank / cx % cy, rank / cx / cy];
            let index = std::array::from_fn(|i| at[i] * self.cluster[i] + inside[i]);
            let slot = self.blocks.len();
            let warps = self.warps.len()..self.warps.len() + count;
            self.blocks.push(Block {
                index,
                first,
                rank,
                threads,
                warps,
                shared: Bytes::poisoned(shared),
                races: Races::new(shared, count),
                gates: (0..16).map(|_| Gate::default()).collect(),
                mbarriers: HashMap::new(),
                mbarrier_span: 0..0,
                pending: Vec::new(),
                cluster: Gate::default(),
                live_warps: count as u32,
                number: index[0] + self.grid[0] * (index[1] + self.grid[1] * index[2]),
                acquired: Vec::new(),
            });
            for warp in 0..count {
                let warp = self.open_warp(slot, warp, at, inside, rank);
                self.warps.push(warp);
            }
        }
    }

    fn open_warp(&self, slot: usize, index: usize, cluster: [u32; 3], inside: [u32; 3], rank: u32) -> Warp {
        let program = self.program;
        let block = &self.blocks[slot];
        let live = (block.threads - 32 * index as u32).min(32);
        let mask = if live == 32 { !0 } else { (1u32 << live) - 1 };
        let mut warp = Warp {
            block: slot,
            index,
            registers: vec![[0xcbcb_cbcb_cbcb_cbcb; 32]; program.registers as usize],
            defined: vec![0; program.registers as usize],
            preds: vec![0; program.predicates as usize],
            pred_defined: vec![0; program.predicates as usize],
            groups: vec![Group { pc: 0, mask, wait: Wait::No }],
            live: mask,
            local: Bytes::poisoned(program.local as usize * 32),
            local_size: program.local as usize,
            stamps: vec![0; program.registers as usize],
            ..Warp::default()
        };
        for (register, value) in &program.constants {
            warp.registers[*register as usize] = [*value; 32];
            warp.defined[*register as usize] = !0;
        }
        let [bx, by, _] = self.block;
        let count = block.warps.len() as u64;
        for (register, special) in &program.specials {
            let lanes = &mut warp.registers[*register as usize];
            warp.defined[*register as usize] = !0;
            for (lane, out) in lanes.iter_mut().enumerate() {
                let thread = 32 * index as u32 + lane as u32;
                let bit = 1u64 << lane;
                *out = match *special {
                    Special::Tid(0) => u64::from(thread % bx),
                    Special::Tid(1) => u64::from(thread / bx % by),
                    Special::Tid(_) => u64::from(thread / bx / by),
                    Special::Ntid(a) => u64::from(self.block[a]),
                    Special::Ctaid(a) => u64::from(block.index[a]),
                    Special::Nctaid(a) => u64::from(self.grid[a]),
                    Special::Clusterid(a) => u64::from(cluster[a]),
                    Special::Nclusterid(a) => u64::from(self.grid[a] / self.cluster[a]),
                    Special::ClusterCtaid(a) => u64::from(inside[a]),
                    Special::ClusterNctaid(a) => u64::from(self.cluster[a]),
                    Special::ClusterCtarank => u64::from(rank),
                    Special::ClusterNctarank => u64::from(self.cluster.iter().product::<u32>()),
                    Special::ExplicitCluster => u64::from(self.cluster != [1; 3]),
                    Special::Laneid => lane as u64,
                    Special::Warpid => index as u64,
                    Special::Nwarpid => count,
                    Special::Smid => slot as u64,
                    Special::Nsmid => self.blocks.len() as u64,
                    Special::Gridid | Special::Zero => 0,
                    Special::MaskEq => bit,
                    Special::MaskLt => bit - 1,
                    Special::MaskLe => (bit - 1) | bit,
                    Special::MaskGe => !(bit - 1) & 0xffff_ffff,
                    Special::MaskGt => !((bit - 1) | bit) & 0xffff_ffff,
                    Special::DynamicShared => self.dynamic_shared,
                    Special::TotalShared => program.shared + self.dynamic_shared - SHARED_START,
                    Special::WarpSize => 32,
                };
            }
        }
        warp
    }

    fn run_resident(&mut self) -> Result<()> {
        let mut at = 0;
        let mut stuck_at = None;
        loop {
            let count = self.warps.len();
            if self.schedule.seed.is_some() {
                at = self.random.usize(..count);
                if self.random.u32(..8) == 0 {
                    let block = self.random.usize(..self.blocks.len());
                    self.deliver(block, true)?;
                }
            }
            match (0..count).map(|i| (at + i) % count).find(|i| self.runnable(*i)) {
                Some(index) => {
                    let quantum = match (self.schedule.seed, self.schedule.quantum) {
                        (Some(_), quantum) => self.random.u64(1..=u64::from(quantum.unwrap_or(64).max(1))),
                        (None, Some(quantum)) => u64::from(quantum.max(1)),
                        (None, None) => 1 << 22,
                    };
                    self.turn(index, quantum)?;
                    at = index + 1;
                    if self.lane_instructions > self.budget {
                        let message = format!("more than {} instructions: {}", self.budget, self.whereabouts());
                        return Err(self.place_fault(Fault::new(FaultKind::Budget, message)));
                    }
                }
                None if self.warps.iter().all(|w| w.groups.is_empty()) => {
                    return self.finish_resident();
                }
                None => {
                    let blocks = self.blocks.len();
                    let mut delivered = false;
                    for block in 0..blocks {
                        delivered |= self.deliver(block, false)?;
                    }
                    if delivered {
                        continue;
                    }
                    if stuck_at == Some(self.progress) {
                        return Err(self.deadlock());
                    }
                    // A waiting instruction may return without success: let each do so once.
                    stuck_at = Some(self.progress);
                    for warp in &mut self.warps {
                        warp.give_up = warp.groups.iter().any(|g| matches!(g.wait, Wait::Mbarrier { .. }));
                    }
                    if !self.warps.iter().any(|w| w.give_up) {
                        return Err(self.deadlock());
                    }
                }
            }
        }
    }

    /// Completes copies that nobody waited for.
    fn finish_resident(&mut self) -> Result<()> {
        for block in 0..self.blocks.len() {
            while self.deliver(block, false)? {}
        }
        Ok(())
    }

    /// Applies pending asynchronous effects of a block; all of them, or one by chance.
    fn deliver(&mut self, block: usize, one: bool) -> Result<bool> {
        if self.blocks[block].pending.is_empty() {
            return Ok(false);
        }
        let at = if self.schedule.seed.is_some() && self.schedule.effects == Effects::Late {
            self.random.usize(..self.blocks[block].pending.len())
        } else {
            0
        };
        let _ = one;
        let pending = self.blocks[block].pending.remove(at);
        self.complete_bulk(block, pending)?;
        self.progress += 1;
        Ok(true)
    }

    fn whereabouts(&self) -> String {
        let mut places: Vec<String> = Vec::new();
        for warp in self.warps.iter().filter(|w| !w.groups.is_empty()) {
            for group in &warp.groups {
                let (line, text) = &self.program.sources[self.program.insts[group.pc as usize].source as usize];
                let [x, y, z] = self.blocks[warp.block].index;
                let why = match group.wait {
                    Wait::No => "runs".to_string(),
                    Wait::Converge => "waits for other lanes".into(),
                    Wait::Barrier { id, .. } => {
                        let gate = &self.blocks[warp.block].gates[id];
                        let expected = gate.expected.map_or("all".to_string(), |n| n.to_string());
                        format!("waits at barrier {id}, {} of {expected} threads arrived", gate.arrived)
                    }
                    Wait::Mbarrier { block, at, .. } => match self.blocks[block].mbarriers.get(&at) {
                        Some(b) => format!(
                            "waits for the mbarrier at {at:#x}: {} arrivals and {} bytes outstanding",
                            b.pending, b.transactions
                        ),
                        None => format!("waits for an mbarrier at {at:#x} that is gone"),
                    },
                    Wait::Warpgroup { issued } => {
                        format!("waits for its warpgroup to issue {issued} `wgmma` instructions")
                    }
                    Wait::Cluster { .. } => "waits for the cluster".into(),
                };
                if places.len() < 8 {
                    places.push(format!("block ({x}, {y}, {z}) warp {} {why} at line {line} (`{text}`)", warp.index));
                }
            }
        }
        places.join("; ")
    }

    fn deadlock(&self) -> Fault {
        self.place_fault(Fault::new(FaultKind::Deadlock, format!("nobody can go on: {}", self.whereabouts())))
    }

    /// Names the first warp that is left as the place of a fault that belongs to all.
    fn place_fault(&self, mut fault: Fault) -> Fault {
        if let Some((warp, group)) = self.warps.iter().find_map(|w| w.groups.first().map(|g| (w, g))) {
            let (line, text) = &self.program.sources[self.program.insts[group.pc as usize].source as usize];
            (fault.line, fault.instruction) = (*line, text.clone());
            fault.block = self.blocks[warp.block].index;
            fault.warp = warp.index as u32;
        }
        fault
    }
}
