//! Order between warps, and the accesses to shared memory that lack it.
//!
//! Every warp has a vector clock; barriers and transaction barriers join clocks. A cell of four bytes remembers its last
//! write and two of its last readers. An access is a race when a remembered access of another warp did not happen before
//! it. The lanes of one warp run in lockstep here, so they are one thread to this check, but for two lanes of one
//! instruction that write different values to one place.

use std::collections::HashMap;

/// A vector clock: one entry per warp, one for the block's asynchronous copies, one per warpgroup's matrix unit.
pub(crate) type Clock = Vec<u32>;

pub(crate) fn join(into: &mut Clock, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

/// Who accesses, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    pub warp: usize,
    /// Index of the source line.
    pub source: u32,
    /// Number of the instruction in this run, to tell lanes of one instruction.
    pub sequence: u32,
    /// Atomics and volatile accesses do not race with each other.
    pub atomic: bool,
    /// Through the asynchronous proxy: sees generic writes only after a proxy fence.
    pub proxy: bool,
    /// Read as this unit at this clock, and not as the warp: matrix reads belong to the whole warpgroup.
    pub unit: Option<(usize, u32)>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Cell {
    writer: u16,
    bytes: u8,
    atomic: bool,
    proxy: bool,
    clock: u32,
    source: u32,
    sequence: u32,
    readers: [u16; 2],
    read_clocks: [u32; 2],
    read_source: u32,
    read_bytes: u8,
}

/// What an unordered access collided with.
pub(crate) struct Collision {
    pub warp: usize,
    pub source: u32,
    pub wrote: bool,
    /// Ordered, but without the proxy fence it needs.
    pub proxy: bool,
}

/// Clocks and cells of one block.
#[derive(Default)]
pub(crate) struct Races {
    cells: Vec<Cell>,
    pub clocks: Vec<Clock>,
    /// Clock of each warp's last proxy fence.
    proxied: Vec<u32>,
    sync: HashMap<u32, Clock>,
}

impl Races {
    pub(crate) fn new(bytes: usize, warps: usize) -> Races {
        let units = warps + 1 + warps.div_ceil(4);
        let clocks = (0..=warps).map(|w| (0..units).map(|i| u32::from(i == w)).collect()).collect();
        Races {
            cells: vec![Cell::default(); bytes.div_ceil(4)],
            clocks,
            proxied: vec![0; warps + 1],
            sync: HashMap::new(),
        }
    }

    /// The pseudo warp of asynchronous copies.
    pub(crate) fn copier(&self) -> usize {
        self.clocks.len() - 1
    }

    /// The unit of the warpgroup of a warp.
    pub(crate) fn unit(&self, warp: usize) -> usize {
        self.clocks.len() + warp / 4
    }

    /// Who an entry of a clock stands for.
    pub(crate) fn name(&self, entry: usize) -> String {
        match entry.checked_sub(self.copier()) {
            None => format!("warp {entry}"),
            Some(0) => "an asynchronous copy".into(),
            Some(unit) => format!("warpgroup {}", unit - 1),
        }
    }

    /// Publishes what `warp` did so far into `clock`.
    pub(crate) fn release(&mut self, warp: usize, clock: &mut Clock) {
        join(clock, &self.clocks[warp]);
        self.clocks[warp][warp] += 1;
    }

    /// Takes over what others published.
    pub(crate) fn acquire(&mut self, warp: usize, clock: &[u32]) {
        join(&mut self.clocks[warp], clock);
    }

    /// An atomic or volatile access orders like a lock would.
    pub(crate) fn synchronise(&mut self, warp: usize, at: usize, write: bool) {
        let mut clock = self.sync.remove(&(at as u32)).unwrap_or_default();
        self.acquire(warp, &clock);
        if write {
            self.release(warp, &mut clock);
        }
        if !clock.is_empty() {
            self.sync.insert(at as u32, clock);
        }
    }

    pub(crate) fn proxy_fence(&mut self, warp: usize) {
        self.proxied[warp] = self.clocks[warp][warp];
        self.clocks[warp][warp] += 1;
    }

    fn pieces(at: usize, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
        let end = at + bytes;
        (at / 4..end.div_ceil(4)).map(move |cell| {
            let low = at.saturating_sub(cell * 4).min(4);
            let high = (end - cell * 4).min(4);
            (cell, (((1u16 << high) - 1) & !((1u16 << low) - 1)) as u8)
        })
    }

    #[inline]
    pub(crate) fn read(&mut self, actor: Actor, at: usize, bytes: usize) -> Result<(), Collision> {
        let clock = &self.clocks[actor.warp];
        let (reader, now) = actor.unit.unwrap_or((actor.warp, clock[actor.warp]));
        let own = reader as u16 + 1;
        for (index, mask) in Self::pieces(at, bytes) {
            let cell = &mut self.cells[index];
            if cell.writer != 0 && cell.bytes & mask != 0 && !(cell.atomic && actor.atomic) {
                let writer = usize::from(cell.writer) - 1;
                let ordered = writer == actor.warp || clock[writer] >= cell.clock;
                let fenced = !actor.proxy || cell.proxy || self.proxied[writer] >= cell.clock;
                if !ordered || !fenced {
                    return Err(Collision { warp: writer, source: cell.source, wrote: true, proxy: ordered });
                }
            }
            if cell.readers[0] != own {
                cell.readers[1] = cell.readers[0];
                cell.read_clocks[1] = cell.read_clocks[0];
                cell.readers[0] = own;
                cell.read_bytes = 0;
            }
            cell.read_clocks[0] = now;
            cell.read_source = actor.source;
            cell.read_bytes |= mask;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn write(&mut self, actor: Actor, at: usize, bytes: usize) -> Result<(), Collision> {
        self.write_with(actor, at, bytes, true)
    }

    /// Checks a write, and remembers it where `keep`.
    pub(crate) fn write_with(&mut self, actor: Actor, at: usize, bytes: usize, keep: bool) -> Result<(), Collision> {
        let clock = &self.clocks[actor.warp];
        for (index, mask) in Self::pieces(at, bytes) {
            let cell = &mut self.cells[index];
            if cell.writer != 0 && cell.bytes & mask != 0 && !(cell.atomic && actor.atomic) {
                let writer = usize::from(cell.writer) - 1;
                if writer != actor.warp && clock[writer] < cell.clock {
                    return Err(Collision { warp: writer, source: cell.source, wrote: true, proxy: false });
                }
            }
            for slot in 0..2 {
                if cell.readers[slot] != 0 && (slot == 1 || cell.read_bytes & mask != 0) && !actor.atomic {
                    let reader = usize::from(cell.readers[slot]) - 1;
                    if reader != actor.warp && clock[reader] < cell.read_clocks[slot] {
                        return Err(Collision { warp: reader, source: cell.read_source, wrote: false, proxy: false });
                    }
                }
            }
            if !keep {
                continue;
            }
            let own = actor.warp as u16 + 1;
            let same = cell.writer == own && cell.sequence == actor.sequence;
            *cell = Cell {
                writer: own,
                bytes: if same { cell.bytes | mask } else { mask },
                atomic: actor.atomic,
                proxy: actor.proxy,
                clock: clock[actor.warp],
                source: actor.source,
                sequence: actor.sequence,
                ..Cell::default()
            };
        }
        Ok(())
    }

    /// Whether another lane of the same instruction wrote these bytes just before.
    pub(crate) fn same_instruction(&self, actor: Actor, at: usize, bytes: usize) -> bool {
        Self::pieces(at, bytes).any(|(index, mask)| {
            let cell = &self.cells[index];
            usize::from(cell.writer) == actor.warp + 1 && cell.sequence == actor.sequence && cell.bytes & mask != 0
        })
    }
}
