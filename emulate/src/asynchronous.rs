//! Asynchronous copies and the transaction barriers that announce them.
//!
//! A copy takes effect at once, or as late as is legal: `cp.async` at its wait, bulk copies when nothing else can go on.
//! Either way, what it writes is ordered only behind that wait.

mod bulk;

pub(crate) use self::bulk::{Bulk, Pending, Way};

use crate::exec::Machine;
use crate::exec::state::{Wait, Warp};
use crate::fault::{Fault, FaultKind};
use crate::launch::Effects;
use crate::memory::locate;
use crate::op::{Copy16, Mbarrier as MbarrierOp, Place, Reg};
use crate::race::{Actor, Clock};

type Result<T> = std::result::Result<T, Fault>;

/// A transaction barrier's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mbarrier {
    /// Number of the running phase.
    pub phase: u64,
    /// Arrivals that a phase needs.
    pub count: u32,
    /// Arrivals still due.
    pub pending: u32,
    /// Bytes still due.
    pub transactions: i64,
    clock: Clock,
    released: Clock,
}

impl Mbarrier {
    fn settle(&mut self) -> bool {
        if self.pending > 0 || self.transactions != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.count;
        self.released = std::mem::take(&mut self.clock);
        true
    }
}

/// A `cp.async` that was issued and not waited for.
#[derive(Clone, Debug)]
pub(crate) struct CopyEntry {
    lane: usize,
    group: u32,
    to: (usize, usize),
    from: Option<(usize, usize)>,
    bytes: usize,
    source_bytes: usize,
    source: u32,
}

fn misuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Fault::new(FaultKind::Misuse, message))
}

impl Machine<'_> {
    fn lanes_of(active: u32) -> impl Iterator<Item = usize> {
        (0..32).filter(move |lane| active >> lane & 1 == 1)
    }

    fn shared_address(&self, warp: &Warp, lane: usize, place: Place) -> u64 {
        let address = warp.registers[place.base as usize][lane].wrapping_add_signed(place.offset);
        match locate(address) {
            (crate::ast::Space::Shared, inside) => inside,
            _ => address & 0xffff_ffff,
        }
    }

    pub(crate) fn copy16(&mut self, warp: &mut Warp, active: u32, copy: &Copy16, source: u32) -> Result<()> {
        self.need(warp, active, copy.to.base)?;
        self.need(warp, active, copy.from.base)?;
        if let Some(register) = copy.source_bytes {
            self.need(warp, active, register)?;
        }
        let ignore = match copy.ignore {
            Some(test) => self.test(warp, active, test)?,
            None => 0,
        };
        let bytes = copy.bytes as usize;
        for lane in Self::lanes_of(active) {
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let to =
                self.shared_spot(warp.block, self.shared_address(warp, lane, copy.to), bytes, bytes).map_err(blame)?;
            let size = copy.source_bytes.map_or(bytes, |r| warp.registers[r as usize][lane] as u32 as usize);
            let size = if ignore >> lane & 1 == 1 { 0 } else { size };
            if size > bytes {
                return misuse(format!("a copy of {bytes} bytes with a source of {size}")).map_err(blame);
            }
            let address = warp.registers[copy.from.base as usize][lane].wrapping_add_signed(copy.from.offset);
            let from = if size == 0 { None } else { Some(self.memory.find(address, size, 1).map_err(blame)?) };
            if !address.is_multiple_of(bytes as u64) {
                return Err(Fault::lane(
                    FaultKind::Misaligned,
                    lane,
                    format!("source address {address:#x} is no multiple of {bytes}"),
                ));
            }
            let actor = self.actor(warp, source);
            let races = &mut self.blocks[to.0].races;
            races.write_with(actor, to.1, bytes, false).map_err(|c| blame(self.race(to.0, c, true, to.1 as u64)))?;
            let entry = CopyEntry { lane, group: warp.commits[lane], to, from, bytes, source_bytes: size, source };
            if self.schedule.effects == Effects::Early {
                self.apply_copy(&entry)?;
            }
            warp.copies.push(entry);
        }
        Ok(())
    }

    fn apply_copy(&mut self, entry: &CopyEntry) -> Result<()> {
        let shared = &mut self.blocks[entry.to.0].shared;
        let at = entry.to.1;
        if let Some((segment, from)) = entry.from {
            let bytes = &self.memory.segments[segment].bytes;
            let size = entry.source_bytes;
            shared.data[at..at + size].copy_from_slice(&bytes.data[from..from + size]);
            shared.valid[at..at + size].copy_from_slice(&bytes.valid[from..from + size]);
        }
        shared.data[at + entry.source_bytes..at + entry.bytes].fill(0);
        shared.valid[at + entry.source_bytes..at + entry.bytes].fill(1);
        Ok(())
    }

    fn finish_copies(&mut self, warp: &mut Warp, done: impl Fn(&CopyEntry) -> bool) -> Result<()> {
        let (finished, left) = std::mem::take(&mut warp.copies).into_iter().partition(|e| done(e));
        warp.copies = left;
        let finished: Vec<CopyEntry> = finished;
        for entry in finished {
            if self.schedule.effects == Effects::Late {
                self.apply_copy(&entry)?;
            }
            let actor = Actor { source: entry.source, ..self.actor(warp, entry.source) };
            self.check_write(warp.block, entry.to, entry.bytes, actor)
                .map_err(|f| Fault { lane: Some(entry.lane as u32), ..f })?;
        }
        Ok(())
    }

    pub(crate) fn copy_commit(&self, warp: &mut Warp, active: u32) {
        for lane in Self::lanes_of(active) {
            warp.commits[lane] += 1;
        }
    }

    /// Waits until at most `left` of each lane's groups are unfinished; `u32::MAX` waits for everything.
    pub(crate) fn copy_wait(&mut self, warp: &mut Warp, active: u32, left: u32) -> Result<()> {
        let commits = warp.commits;
        self.finish_copies(warp, |e| {
            active >> e.lane & 1 == 1 && (left == u32::MAX || e.group + left < commits[e.lane])
        })
    }

    pub(crate) fn mbarrier(
        &mut self,
        warp: &mut Warp,
        active: u32,
        place: Place,
        op: &MbarrierOp,
        source: u32,
    ) -> Result<Option<Wait>> {
        if !matches!(op, MbarrierOp::Pending { .. }) {
            self.need(warp, active, place.base)?;
        }
        let registers = match op {
            MbarrierOp::Init { count } => [Some(*count), None],
            MbarrierOp::Arrive { count, bytes, .. } => [*count, *bytes],
            MbarrierOp::Expect { bytes } | MbarrierOp::Complete { bytes } => [Some(*bytes), None],
            MbarrierOp::Wait { state, .. } | MbarrierOp::Pending { state, .. } => [Some(*state), None],
            MbarrierOp::Invalidate | MbarrierOp::CopyArrive { .. } => [None, None],
        };
        for register in registers.into_iter().flatten() {
            self.need(warp, active, register)?;
        }
        let mut done = 0u32;
        let mut waits = None;
        for lane in Self::lanes_of(active) {
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let value = |register: Reg| warp.registers[register as usize][lane];
            if let MbarrierOp::Pending { out, state } = *op {
                // The token carries the count that was pending above the phase.
                let pending = value(state) >> 40;
                warp.registers[out as usize][lane] = pending;
                warp.defined[out as usize] |= 1 << lane;
                continue;
            }
            let (slot, at) =
                self.shared_spot(warp.block, self.shared_address(warp, lane, place), 8, 8).map_err(blame)?;
            let key = at as u32;
            let own = slot == warp.block;
            let mut actor = self.actor(warp, source);
            if let MbarrierOp::Init { count } = op {
                let count = value(*count) as u32;
                if count == 0 || count > (1 << 20) - 1 {
                    return misuse(format!("an mbarrier of {count} arrivals")).map_err(blame);
                }
                if self.blocks[slot].mbarriers.contains_key(&key) {
                    return misuse(format!("an mbarrier at {at:#x} is initialised again")).map_err(blame);
                }
                self.check_write(warp.block, (slot, at), 8, actor).map_err(blame)?;
                let barrier = Mbarrier { count, pending: count, ..Mbarrier::default() };
                self.blocks[slot].mbarriers.insert(key, barrier);
                let span = &mut self.blocks[slot].mbarrier_span;
                let start = if span.end == 0 { at } else { span.start.min(at) };
                *span = start..span.end.max(at + 8);
                continue;
            }
            if own {
                actor.atomic = true;
                let races = &mut self.blocks[slot].races;
                races.read(actor, at, 8).map_err(|c| blame(self.race(slot, c, false, at as u64)))?;
            }
            if !self.blocks[slot].mbarriers.contains_key(&key) {
                return misuse(format!("no mbarrier was initialised at shared address {at:#x}")).map_err(blame);
            }
            match *op {
                MbarrierOp::Invalidate => {
                    self.blocks[slot].mbarriers.remove(&key);
                    self.blocks[slot].shared.valid[at..at + 8].fill(0);
                }
                MbarrierOp::CopyArrive { raise } => {
                    let mut copies = std::mem::take(&mut warp.copies);
                    let (mine, others): (Vec<_>, Vec<_>) = copies.drain(..).partition(|e| e.lane == lane);
                    warp.copies = mine;
                    self.finish_copies(warp, |_| true)?;
                    warp.copies = others;
                    // Without `.noinc` the arrival raises the count that it then lowers.
                    if !raise {
                        self.arrive(warp, slot, key, 1, false).map_err(blame)?;
                    }
                }
                MbarrierOp::Arrive { state, count, bytes, drop } => {
                    if let Some(bytes) = bytes {
                        self.transactions(slot, key, value(bytes) as u32 as i64);
                    }
                    let barrier = &self.blocks[slot].mbarriers[&key];
                    let token = barrier.phase & 0xff_ffff_ffff | u64::from(barrier.pending) << 40;
                    let count = count.map_or(1, |c| value(c) as u32);
                    self.arrive(warp, slot, key, count, drop).map_err(blame)?;
                    if let Some(state) = state {
                        warp.registers[state as usize][lane] = token;
                        warp.defined[state as usize] |= 1 << lane;
                    }
                }
                MbarrierOp::Expect { bytes } => self.transactions(slot, key, value(bytes) as u32 as i64),
                MbarrierOp::Complete { bytes } => self.transactions(slot, key, -i64::from(value(bytes) as u32)),
                MbarrierOp::Wait { state, parity, .. } => {
                    let barrier = &self.blocks[slot].mbarriers[&key];
                    let value = value(state);
                    let over = if parity {
                        barrier.phase & 1 != value & 1
                    } else {
                        barrier.phase & 0xff_ffff_ffff != value & 0xff_ffff_ffff
                    };
                    if over {
                        done |= 1 << lane;
                        let released = barrier.released.clone();
                        if own {
                            self.blocks[slot].races.acquire(warp.index, &released);
                        }
                    } else {
                        waits = Some(Wait::Mbarrier { block: slot, at: key, phase: barrier.phase });
                    }
                }
                MbarrierOp::Init { .. } | MbarrierOp::Pending { .. } => {}
            }
        }
        if let MbarrierOp::Wait { out, .. } = *op {
            // It may return without success, and does so only when nobody else can go on.
            if waits.is_some() && !std::mem::take(&mut warp.give_up) {
                return Ok(waits);
            }
            self.set_pred(warp, active, out, done);
        }
        Ok(None)
    }

    fn arrive(&mut self, warp: &Warp, slot: usize, key: u32, count: u32, drop: bool) -> Result<()> {
        let own = slot == warp.block;
        let block = &mut self.blocks[slot];
        let Some(barrier) = block.mbarriers.get_mut(&key) else { return Ok(()) };
        if count > barrier.pending {
            return misuse(format!(
                "{count} arrivals at the mbarrier at {key:#x}, which waits for {} of {}",
                barrier.pending, barrier.count
            ));
        }
        if own {
            let mut clock = std::mem::take(&mut barrier.clock);
            block.races.release(warp.index, &mut clock);
            barrier.clock = clock;
        }
        barrier.pending -= count;
        barrier.count -= if drop { count } else { 0 };
        barrier.settle();
        self.progress += 1;
        Ok(())
    }

    /// Expects more bytes, or fewer where some came.
    fn transactions(&mut self, slot: usize, key: u32, bytes: i64) {
        if let Some(barrier) = self.blocks[slot].mbarriers.get_mut(&key) {
            barrier.transactions += bytes;
            // Only what completes bytes can end a phase, and only when every arrival came.
            if bytes < 0 {
                barrier.settle();
            }
        }
        self.progress += 1;
    }
}
