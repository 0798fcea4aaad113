//! Asynchronous copies and the transaction barriers that announce them.
//!
//! A copy takes effect at once, or as late as is legal: `cp.async` at its wait, bulk copies when nothing else can go on.
//! Either way, what it writes is ordered only behind that wait.

use crate::exec::Machine;
use crate::exec::state::{Wait, Warp};
use crate::fault::{Fault, FaultKind};
use crate::launch::{Effects, TensorMap, map_index};
use crate::memory::locate;
use crate::op::{Copy16, Mbarrier as MbarrierOp, Place, Reg};
use crate::race::{Actor, Clock, join};

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

/// A bulk copy instruction.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    pub way: Way,
    /// Size register of a plain copy; tensor copies take it from the map.
    pub bytes: Option<Reg>,
    /// Address of the map and coordinates, for tensor copies.
    pub tensor: Option<(Reg, Vec<Reg>)>,
    /// Address in device memory.
    pub global: Option<Place>,
    pub shared: Place,
    /// Second shared address, for copies between blocks.
    pub other: Option<Place>,
    pub mbarrier: Option<Place>,
    /// Blocks of the cluster that all receive the copy.
    pub multicast: Option<Reg>,
}

/// Where a bulk copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Device memory to shared.
    Load,
    /// Shared to device memory.
    Store,
    /// Shared to another block's shared memory.
    Across,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// Into shared memory, from a segment, or zero where the tensor ends.
    In {
        to: (usize, usize),
        from: Option<(usize, usize)>,
        bytes: usize,
    },
    Out {
        to: (usize, usize),
        from: (usize, usize),
        bytes: usize,
    },
    Between {
        to: (usize, usize),
        from: (usize, usize),
        bytes: usize,
    },
}

/// A bulk copy that was issued.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub id: u64,
    clock: Clock,
    source: u32,
    pieces: Vec<Piece>,
    announce: Vec<(usize, u32, u64)>,
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

    pub(crate) fn bulk(&mut self, warp: &mut Warp, active: u32, bulk: &Bulk, source: u32) -> Result<()> {
        for lane in Self::lanes_of(active) {
            let pending = self.plan(warp, lane, bulk, source).map_err(|f| Fault { lane: Some(lane as u32), ..f })?;
            if bulk.way == Way::Store {
                warp.bulk_open.push(pending.id);
            }
            let block = warp.block;
            if self.schedule.effects == Effects::Early {
                self.complete_bulk(block, pending)?;
            } else {
                self.blocks[block].pending.push(pending);
            }
        }
        Ok(())
    }

    fn plan(&mut self, warp: &Warp, lane: usize, bulk: &Bulk, source: u32) -> Result<Pending> {
        let bit = 1u32 << lane;
        let registers = [Some(bulk.shared.base), bulk.bytes, bulk.multicast, bulk.global.map(|p| p.base)];
        let more = [bulk.other.map(|p| p.base), bulk.mbarrier.map(|p| p.base), bulk.tensor.as_ref().map(|t| t.0)];
        for register in registers.into_iter().chain(more).flatten() {
            self.need(warp, bit, register)?;
        }
        let own = warp.block;
        let shared = self.shared_address(warp, lane, bulk.shared);
        let mut pieces = Vec::new();
        let bytes = match (&bulk.tensor, bulk.bytes) {
            (Some((map, coordinates)), _) => {
                let mut at = Vec::new();
                for register in coordinates {
                    self.need(warp, bit, *register)?;
                    at.push(i64::from(warp.registers[*register as usize][lane] as u32 as i32));
                }
                let map = self.map(warp.registers[*map as usize][lane])?;
                self.tile(own, shared, &map, &at, bulk.way, &mut pieces)?
            }
            (None, Some(bytes)) => {
                let bytes = warp.registers[bytes as usize][lane] as u32 as usize;
                if bytes == 0 || !bytes.is_multiple_of(16) {
                    return misuse(format!("a bulk copy of {bytes} bytes; accepted: multiples of 16"));
                }
                let near = self.shared_spot(own, shared, bytes, 16)?;
                match (bulk.way, bulk.global, bulk.other) {
                    (Way::Across, _, Some(other)) => {
                        let from = self.shared_spot(own, self.shared_address(warp, lane, other), bytes, 16)?;
                        pieces.push(Piece::Between { to: near, from, bytes });
                    }
                    (way, Some(global), _) => {
                        let address = warp.registers[global.base as usize][lane].wrapping_add_signed(global.offset);
                        if way == Way::Load {
                            let from = Some(self.memory.find(address, bytes, 16)?);
                            pieces.push(Piece::In { to: near, from, bytes });
                        } else {
                            let to = self.memory.find_writable(address, bytes, 16)?;
                            pieces.push(Piece::Out { to, from: near, bytes });
                        }
                    }
                    _ => return misuse("a bulk copy without its addresses"),
                }
                bytes
            }
            (None, None) => return misuse("a bulk copy without a size"),
        };
        let mut announce = Vec::new();
        if let Some(place) = bulk.mbarrier {
            let (slot, at) = self.shared_spot(own, self.shared_address(warp, lane, place), 8, 8)?;
            announce.push((slot, at as u32, bytes as u64));
        }
        if let Some(register) = bulk.multicast {
            let mask = warp.registers[register as usize][lane] as u32 & 0xffff;
            let size = self.cluster.iter().product::<u32>();
            if mask == 0 || mask >> size != 0 {
                return misuse(format!("multicast to blocks {mask:#x} of a cluster of {size}"));
            }
            let first = self.blocks[own].first;
            let ranks: Vec<usize> = (0..size as usize).filter(|r| mask >> r & 1 == 1).collect();
            let all: Vec<Piece> = ranks
                .iter()
                .flat_map(|rank| {
                    pieces.iter().map(move |piece| match *piece {
                        Piece::In { to, from, bytes } => Piece::In { to: (first + rank, to.1), from, bytes },
                        other => other,
                    })
                })
                .collect();
            pieces = all;
            announce = announce.iter().flat_map(|a| ranks.iter().map(move |r| (first + r, a.1, a.2))).collect();
        }
        for (slot, key, _) in &announce {
            if !self.blocks[*slot].mbarriers.contains_key(key) {
                return misuse(format!("no mbarrier was initialised at shared address {key:#x}"));
            }
        }
        self.next_copy += 1;
        // The copy happens after what its issuer knew when it issued it.
        let races = &mut self.blocks[own].races;
        let mut clock = races.clocks[warp.index].clone();
        let copier = races.copier();
        clock[copier] = self.next_copy as u32;
        races.clocks[warp.index][warp.index] += 1;
        let pending = Pending { id: self.next_copy, clock, source, pieces, announce };
        self.check_pieces(own, &pending, false)?;
        Ok(pending)
    }

    /// The tensor map behind an address.
    fn map(&self, address: u64) -> Result<TensorMap> {
        let bytes = match locate(address) {
            (crate::ast::Space::Param, at) => self.parameters.data.get(at as usize..at as usize + 128),
            _ => {
                let (segment, at) = self.memory.find(address, 128, 64)?;
                self.memory.segments[segment].bytes.data.get(at..at + 128)
            }
        };
        match bytes.and_then(map_index).and_then(|index| self.maps.get(index)) {
            Some(map) => Ok(map.clone()),
            None => misuse(format!("no tensor map at address {address:#x}")),
        }
    }

    /// The pieces of a tensor copy, 16 bytes of shared memory each; its size comes back.
    fn tile(
        &self,
        own: usize,
        shared: u64,
        map: &TensorMap,
        at: &[i64],
        way: Way,
        pieces: &mut Vec<Piece>,
    ) -> Result<usize> {
        let rank = map.sizes.len();
        if at.len() != rank {
            return misuse(format!("{} coordinates into a tensor of {rank} dimensions", at.len()));
        }
        let element = map.element_bytes as usize;
        let row = map.box_sizes[0] as usize * element;
        let rows: usize = map.box_sizes[1..].iter().map(|n| *n as usize).product();
        let total = row * rows;
        self.shared_spot(own, shared, total, 128)?;
        let base = crate::memory::segment_base(self.first_buffer + map.buffer) + map.offset;
        // With a swizzle, a row takes its whole span.
        for r in 0..rows {
            let (mut rest, mut offset, mut inside) = (r as u64, 0i64, true);
            for d in 1..rank {
                let n = u64::from(map.box_sizes[d]);
                let c = at[d] + (rest % n) as i64;
                rest /= n;
                inside &= c >= 0 && (c as u64) < map.sizes[d];
                offset += c * map.strides[d - 1] as i64;
            }
            for chunk in (0..row).step_by(16) {
                let address = map.swizzle.apply(shared + (r * row + chunk) as u64);
                let near = self.shared_spot(own, address, 16, 16)?;
                let c = at[0] + (chunk / element) as i64;
                let whole = inside && c >= 0 && c as u64 + (16 / element) as u64 <= map.sizes[0];
                if whole {
                    // Sixteen bytes at once, where all of them are in the tensor.
                    let far = base.wrapping_add_signed(offset + c * element as i64);
                    pieces.push(if way == Way::Load {
                        Piece::In { to: near, from: Some(self.memory.find(far, 16, 1)?), bytes: 16 }
                    } else {
                        Piece::Out { to: self.memory.find_writable(far, 16, 1)?, from: near, bytes: 16 }
                    });
                    continue;
                }
                for piece in 0..16 / element {
                    let c = at[0] + ((chunk / element) + piece) as i64;
                    let near = (near.0, near.1 + piece * element);
                    let valid = inside && c >= 0 && (c as u64) < map.sizes[0];
                    let far = base.wrapping_add_signed(offset + c * element as i64);
                    match (way, valid) {
                        (Way::Load, true) => {
                            let from = Some(self.memory.find(far, element, 1)?);
                            pieces.push(Piece::In { to: near, from, bytes: element });
                        }
                        (Way::Load, false) => pieces.push(Piece::In { to: near, from: None, bytes: element }),
                        (_, true) => {
                            let to = self.memory.find_writable(far, element, 1)?;
                            pieces.push(Piece::Out { to, from: near, bytes: element });
                        }
                        // What lies outside the tensor is not written.
                        (_, false) => {}
                    }
                }
            }
        }
        Ok(total)
    }

    fn check_pieces(&mut self, own: usize, pending: &Pending, keep: bool) -> Result<()> {
        let races = &mut self.blocks[own].races;
        let copier = races.copier();
        let before = std::mem::replace(&mut races.clocks[copier], pending.clock.clone());
        let actor = Actor {
            warp: copier,
            source: pending.source,
            sequence: pending.id as u32,
            atomic: false,
            proxy: true,
            unit: None,
        };
        let mut found = Ok(());
        for piece in &pending.pieces {
            let (result, write, at) = match *piece {
                Piece::In { to, bytes, .. } if to.0 == own => {
                    (self.blocks[own].races.write_with(actor, to.1, bytes, keep), true, to.1)
                }
                Piece::Out { from, bytes, .. } | Piece::Between { from, bytes, .. } if from.0 == own => {
                    (self.blocks[own].races.read(actor, from.1, bytes), false, from.1)
                }
                _ => continue,
            };
            if let Err(collision) = result {
                found = Err(self.race(own, collision, write, at as u64));
                break;
            }
        }
        self.blocks[own].races.clocks[copier] = before;
        found.map_err(|fault| {
            let (line, text) = &self.program.sources[pending.source as usize];
            Fault { line: *line, instruction: text.clone(), ..fault }
        })
    }

    pub(crate) fn complete_bulk(&mut self, own: usize, pending: Pending) -> Result<()> {
        for piece in &pending.pieces {
            match *piece {
                Piece::In { to, from, bytes } => {
                    let shared = &mut self.blocks[to.0].shared;
                    match from {
                        Some((segment, at)) => {
                            let from = &self.memory.segments[segment].bytes;
                            shared.data[to.1..to.1 + bytes].copy_from_slice(&from.data[at..at + bytes]);
                            shared.valid[to.1..to.1 + bytes].copy_from_slice(&from.valid[at..at + bytes]);
                        }
                        None => {
                            shared.data[to.1..to.1 + bytes].fill(0);
                            shared.valid[to.1..to.1 + bytes].fill(1);
                        }
                    }
                }
                Piece::Out { to, from, bytes } => {
                    let shared = &self.blocks[from.0].shared;
                    if shared.valid[from.1..from.1 + bytes].contains(&0) {
                        let (line, text) = &self.program.sources[pending.source as usize];
                        let fault = Fault::new(
                            FaultKind::Uninitialised,
                            format!("a bulk copy of shared address {:#x}, which nothing wrote", from.1),
                        );
                        return Err(Fault { line: *line, instruction: text.clone(), ..fault });
                    }
                    let target = &mut self.memory.segments[to.0].bytes;
                    target.data[to.1..to.1 + bytes].copy_from_slice(&shared.data[from.1..from.1 + bytes]);
                    target.valid[to.1..to.1 + bytes].fill(1);
                }
                Piece::Between { to, from, bytes } => {
                    let data = self.blocks[from.0].shared.data[from.1..from.1 + bytes].to_vec();
                    let valid = self.blocks[from.0].shared.valid[from.1..from.1 + bytes].to_vec();
                    self.blocks[to.0].shared.data[to.1..to.1 + bytes].copy_from_slice(&data);
                    self.blocks[to.0].shared.valid[to.1..to.1 + bytes].copy_from_slice(&valid);
                }
            }
        }
        self.check_pieces(own, &pending, true)?;
        for (slot, key, bytes) in &pending.announce {
            if let Some(barrier) = self.blocks[*slot].mbarriers.get_mut(key) {
                if *slot == own {
                    join(&mut barrier.clock, &pending.clock);
                }
                barrier.transactions -= *bytes as i64;
                barrier.settle();
            }
        }
        self.progress += 1;
        Ok(())
    }

    pub(crate) fn bulk_commit(&self, warp: &mut Warp) {
        let group = std::mem::take(&mut warp.bulk_open);
        warp.bulk_groups.push(group);
    }

    /// Waits until at most `left` groups are unfinished.
    pub(crate) fn bulk_wait(&mut self, warp: &mut Warp, left: u32) -> Result<()> {
        let done = warp.bulk_groups.len().saturating_sub(left as usize);
        let ids: Vec<u64> = warp.bulk_groups.drain(..done).flatten().collect();
        let own = warp.block;
        while let Some(at) = self.blocks[own].pending.iter().position(|p| ids.contains(&p.id)) {
            let pending = self.blocks[own].pending.remove(at);
            self.complete_bulk(own, pending)?;
        }
        if let Some(last) = ids.iter().max() {
            // The issuer now knows that the copies have read their sources.
            let races = &mut self.blocks[own].races;
            let copier = races.copier();
            let known = &mut races.clocks[warp.index][copier];
            *known = (*known).max(*last as u32);
        }
        Ok(())
    }
}
