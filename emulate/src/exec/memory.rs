//! Loads, stores and atomics.

use super::state::{Block, Warp};
use super::{Machine, Result};
use crate::ast::Space;
use crate::fault::{Fault, FaultKind};
use crate::memory::{Bytes, RANK_SHIFT, SHARED_START, locate};
use crate::op::{Access, Atomic, Place};
use crate::order::{Order, View};
use crate::race::Actor;

/// Where an access lands, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot {
    Segment(usize, usize),
    Shared(usize, usize),
    Local(usize),
    Parameter(usize),
}

impl Machine<'_> {
    /// The block and offset of a shared address.
    pub(crate) fn shared_spot(&self, own: usize, address: u64, bytes: usize, align: usize) -> Result<(usize, usize)> {
        let address = address as u32;
        let (rank, at) = (address >> RANK_SHIFT, (address & ((1 << RANK_SHIFT) - 1)) as usize);
        let slot = if rank == 0 { own } else { self.blocks[own].first + rank as usize - 1 };
        let size = self.cluster.iter().product::<u32>();
        if rank > size {
            return Err(Fault::new(
                FaultKind::OutOfBounds,
                format!("shared memory of block {} in a cluster of {size}", rank - 1),
            ));
        }
        let block = &self.blocks[slot];
        if at < SHARED_START as usize || at + bytes > block.shared.data.len() {
            return Err(Fault::new(
                FaultKind::OutOfBounds,
                format!(
                    "{bytes} bytes at shared address {at:#x}; the block has {SHARED_START:#x} to {:#x}",
                    block.shared.data.len()
                ),
            ));
        }
        if at & (align - 1) != 0 {
            return Err(Fault::new(FaultKind::Misaligned, format!("shared address {at:#x} is no multiple of {align}")));
        }
        if slot != own && block.live_warps == 0 {
            return Err(Fault::new(FaultKind::Misuse, "shared memory of a block that has ended".to_string()));
        }
        Ok((slot, at))
    }

    fn spot(&self, warp: &Warp, lane: usize, place: Place, bytes: usize, writes: bool) -> Result<Spot> {
        let address = warp.registers[place.base as usize][lane].wrapping_add_signed(place.offset);
        let (space, address) = if place.space == Space::Generic { locate(address) } else { (place.space, address) };
        let window = |size: usize, name: &str| {
            let at = address as usize;
            if address > size as u64 || at + bytes > size {
                return Err(Fault::new(
                    FaultKind::OutOfBounds,
                    format!("{bytes} bytes at {name} address {address:#x} of {size}"),
                ));
            }
            if at & (bytes - 1) != 0 {
                return Err(Fault::new(
                    FaultKind::Misaligned,
                    format!("{name} address {at:#x} is no multiple of {bytes}"),
                ));
            }
            Ok(at)
        };
        match space {
            Space::Shared => {
                self.shared_spot(warp.block, address, bytes, bytes).map(|(slot, at)| Spot::Shared(slot, at))
            }
            Space::Local => Ok(Spot::Local(lane * warp.local_size + window(warp.local_size, "local")?)),
            Space::Param if writes => Err(Fault::new(FaultKind::ReadOnly, "a write to a kernel parameter".to_string())),
            Space::Param => Ok(Spot::Parameter(window(self.parameters.data.len(), "parameter")?)),
            Space::Generic | Space::Global | Space::Const => {
                let found = if writes {
                    self.memory.find_writable(address, bytes, bytes)?
                } else {
                    self.memory.find(address, bytes, bytes)?
                };
                Ok(Spot::Segment(found.0, found.1))
            }
        }
    }

    fn bytes<'a>(&'a self, warp: &'a Warp, spot: Spot) -> (&'a Bytes, usize) {
        match spot {
            Spot::Segment(index, at) => (&self.memory.segments[index].bytes, at),
            Spot::Shared(slot, at) => (&self.blocks[slot].shared, at),
            Spot::Local(at) => (&warp.local, at),
            Spot::Parameter(at) => (&self.parameters, at),
        }
    }

    fn bytes_mut<'a>(&'a mut self, warp: &'a mut Warp, spot: Spot) -> (&'a mut Bytes, usize) {
        match spot {
            Spot::Segment(index, at) => (&mut self.memory.segments[index].bytes, at),
            Spot::Shared(slot, at) => (&mut self.blocks[slot].shared, at),
            Spot::Local(at) => (&mut warp.local, at),
            Spot::Parameter(at) => (&mut self.parameters, at),
        }
    }

    /// Race and mbarrier checks of a read of shared memory.
    pub(crate) fn check_read(&mut self, own: usize, spot: (usize, usize), bytes: usize, actor: Actor) -> Result<()> {
        if spot.0 != own {
            return Ok(());
        }
        self.no_mbarrier(spot, bytes)?;
        let races = &mut self.blocks[own].races;
        let found = races.read(actor, spot.1, bytes);
        found.map_err(|c| self.race(own, c, false, spot.1 as u64))
    }

    /// Race and mbarrier checks of a write to shared memory.
    pub(crate) fn check_write(&mut self, own: usize, spot: (usize, usize), bytes: usize, actor: Actor) -> Result<()> {
        if spot.0 != own {
            return Ok(());
        }
        self.no_mbarrier(spot, bytes)?;
        let races = &mut self.blocks[own].races;
        let found = races.write(actor, spot.1, bytes);
        found.map_err(|c| self.race(own, c, true, spot.1 as u64))
    }

    fn no_mbarrier(&self, (slot, at): (usize, usize), bytes: usize) -> Result<()> {
        let Block { mbarriers: barriers, mbarrier_span: span, .. } = &self.blocks[slot];
        if at >= span.end || at + bytes <= span.start {
            return Ok(());
        }
        let first = at & !7;
        if (first..at + bytes).step_by(8).any(|a| barriers.contains_key(&(a as u32))) {
            return Err(Fault::new(
                FaultKind::Misuse,
                format!("a plain access to the mbarrier at shared address {at:#x}"),
            ));
        }
        Ok(())
    }

    /// A warp, as the order between blocks sees it.
    fn view<'a>(&'a self, warp: &Warp) -> View<'a> {
        let block = &self.blocks[warp.block];
        View { block: block.number, warp: warp.index, clocks: &block.races.clocks, acquired: &block.acquired }
    }

    /// A fence between blocks: for what comes before it, and for what others have made known.
    pub(super) fn device_fence(&mut self, warp: &mut Warp, release: bool, acquire: bool) {
        if release {
            let mut fences = std::mem::take(&mut warp.fences);
            Order::cover(&self.view(warp), &mut fences);
            warp.fences = fences;
        }
        let block = &mut self.blocks[warp.block];
        let clock = &mut block.races.clocks[warp.index][warp.index];
        *clock += 1;
        if acquire {
            Order::bring(warp.index, *clock, &mut block.acquired, &mut warp.fences);
        }
    }

    /// Whether the order between blocks is looked at.
    fn alone(&self) -> bool {
        self.cluster == [1; 3] && self.grid != [1; 3]
    }

    /// A plain access of device memory that another block has written, without order.
    fn unordered(&self, (segment, at): (usize, usize), bytes: usize, view: &View<'_>, write: bool) -> Result<()> {
        let Some((byte, writer)) = self.order.unknown((segment, at), bytes, view) else { return Ok(()) };
        let (line, text) = &self.program.sources[writer.source as usize];
        let [x, y, z] = [
            writer.block % self.grid[0],
            writer.block / self.grid[0] % self.grid[1],
            writer.block / self.grid[0] / self.grid[1],
        ];
        let how = if write { "a write of another value to" } else { "a read of" };
        Err(Fault::new(
            FaultKind::Race,
            format!(
                "{how} byte {} of `{}` is not ordered with the write by block ({x}, {y}, {z}) warp {} at line {line} (`{text}`)",
                at + byte,
                self.memory.segments[segment].name,
                writer.warp
            ),
        ))
    }

    pub(super) fn load(&mut self, warp: &mut Warp, active: u32, access: &Access, source: u32) -> Result<()> {
        self.need(warp, active, access.place.base)?;
        let size = access.bytes as usize;
        let total = size * access.values.len();
        let mut actor = self.actor(warp, source);
        actor.atomic = access.strong;
        for lane in 0..32 {
            if active >> lane & 1 == 0 {
                continue;
            }
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let spot = self.spot(warp, lane, access.place, total, false).map_err(blame)?;
            if let Spot::Shared(slot, at) = spot {
                if access.strong && slot == warp.block {
                    self.blocks[slot].races.synchronise(warp.index, at, false);
                }
                self.check_read(warp.block, (slot, at), total, actor).map_err(blame)?;
            }
            if let Spot::Segment(segment, at) = spot
                && self.alone()
            {
                if access.orders.device {
                    self.order.meet((segment, at), &mut warp.fences, (true, false));
                } else if !access.strong {
                    self.unordered((segment, at), total, &self.view(warp), false).map_err(blame)?;
                }
            }
            for (i, value) in access.values.iter().enumerate() {
                let Some(value) = value else { continue };
                let (bytes, at) = self.bytes(warp, spot);
                let (mut bits, valid) = bytes.read(at + i * size, size);
                if access.signed && size < 8 {
                    let unused = 64 - 8 * size as u32;
                    bits = ((bits << unused) as i64 >> unused) as u64;
                }
                let value = *value as usize;
                warp.registers[value][lane] = bits;
                warp.stamps[value] = warp.now;
                warp.defined[value] = warp.defined[value] & !(1 << lane) | u32::from(valid) << lane;
            }
        }
        if access.orders.acquire {
            self.device_fence(warp, false, true);
        }
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, active: u32, access: &Access, source: u32) -> Result<()> {
        self.need(warp, active, access.place.base)?;
        if access.orders.release {
            self.device_fence(warp, true, false);
        }
        let size = access.bytes as usize;
        let total = size * access.values.len();
        let mut actor = self.actor(warp, source);
        actor.atomic = access.strong;
        for lane in 0..32 {
            if active >> lane & 1 == 0 {
                continue;
            }
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let spot = self.spot(warp, lane, access.place, total, true).map_err(blame)?;
            let mut collides = false;
            if let Spot::Shared(slot, at) = spot {
                if access.strong && slot == warp.block {
                    self.blocks[slot].races.synchronise(warp.index, at, true);
                }
                collides = slot == warp.block && self.blocks[slot].races.same_instruction(actor, at, total);
                self.check_write(warp.block, (slot, at), total, actor).map_err(blame)?;
            }
            for (i, value) in access.values.iter().enumerate() {
                let Some(value) = value else { continue };
                let bits = warp.registers[*value as usize][lane];
                let valid = warp.defined[*value as usize] >> lane & 1 == 1;
                if !valid && matches!(spot, Spot::Segment(..)) {
                    return Err(Fault::lane(
                        FaultKind::Uninitialised,
                        lane,
                        "a value that nothing wrote goes to device memory",
                    ));
                }
                if let Spot::Segment(segment, at) = spot
                    && self.alone()
                    && !access.strong
                    && self.memory.segments[segment].bytes.read(at + i * size, size).0 != bits & ones(size)
                {
                    self.unordered((segment, at + i * size), size, &self.view(warp), true).map_err(blame)?;
                }
                let (bytes, at) = self.bytes_mut(warp, spot);
                let at = at + i * size;
                if collides && bytes.data[at..at + size] != bits.to_le_bytes()[..size] {
                    return Err(Fault::lane(
                        FaultKind::Race,
                        lane,
                        format!("two lanes of one instruction write different values to shared address {at:#x}"),
                    ));
                }
                bytes.write(at, size, bits, valid);
            }
            self.note(warp, spot, total, source, (access.orders.device, false));
        }
        // Somebody may poll for what was written.
        self.progress += u64::from(access.strong);
        Ok(())
    }

    /// Remembers a write to device memory, and what it orders.
    fn note(&mut self, warp: &mut Warp, spot: Spot, bytes: usize, source: u32, (device, reads): (bool, bool)) {
        if let Spot::Segment(segment, at) = spot
            && self.alone()
        {
            if device {
                self.order.meet((segment, at), &mut warp.fences, (reads, true));
            }
            let mut order = std::mem::take(&mut self.order);
            let size = self.memory.segments[segment].bytes.data.len();
            order.wrote((segment, size), at..at + bytes, &self.view(warp), source);
            self.order = order;
        }
    }

    pub(super) fn atomic(&mut self, warp: &mut Warp, active: u32, atomic: &Atomic, source: u32) -> Result<()> {
        self.need(warp, active, atomic.place.base)?;
        for value in atomic.values.iter().chain(&atomic.swap) {
            self.need(warp, active, *value)?;
        }
        let size = atomic.bytes as usize;
        let total = size * atomic.values.len();
        let mask = ones(size);
        if atomic.orders.release {
            self.device_fence(warp, true, false);
        }
        let actor = Actor { atomic: true, ..self.actor(warp, source) };
        for lane in 0..32 {
            if active >> lane & 1 == 0 {
                continue;
            }
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let spot = self.spot(warp, lane, atomic.place, total, true).map_err(blame)?;
            if let Spot::Shared(slot, at) = spot
                && slot == warp.block
            {
                self.blocks[slot].races.synchronise(warp.index, at, true);
                self.check_write(warp.block, (slot, at), total, actor).map_err(blame)?;
            }
            for (i, value) in atomic.values.iter().enumerate() {
                let operand = warp.registers[*value as usize][lane] & mask;
                let swap = atomic.swap.map_or(0, |s| warp.registers[s as usize][lane] & mask);
                let (bytes, at) = self.bytes_mut(warp, spot);
                let (old, valid) = bytes.read(at + i * size, size);
                if !valid {
                    return Err(Fault::lane(FaultKind::Uninitialised, lane, "an atomic on memory that nothing wrote"));
                }
                bytes.write(at + i * size, size, (atomic.function)(old, operand, swap) & mask, true);
                if let Some(Some(out)) = atomic.out.get(i) {
                    warp.registers[*out as usize][lane] = old;
                    warp.defined[*out as usize] |= 1 << lane;
                }
            }
            self.note(warp, spot, total, source, (atomic.orders.device, true));
        }
        if atomic.orders.acquire {
            self.device_fence(warp, false, true);
        }
        Ok(())
    }
}

/// All bits of so many bytes.
fn ones(bytes: usize) -> u64 {
    u64::MAX >> (64 - 8 * bytes.min(8))
}
