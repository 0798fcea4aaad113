//! Bulk copies: plain ones, tiles of tensors, copies between blocks and to several of them.

use super::{Result, misuse};
use crate::exec::Machine;
use crate::exec::state::Warp;
use crate::fault::{Fault, FaultKind};
use crate::launch::{Effects, TensorMap, map_index};
use crate::memory::locate;
use crate::op::{Place, Reg};
use crate::race::{Actor, Clock, join};

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

impl Machine<'_> {
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
