//! Order between blocks, and the accesses to device memory that lack it.
//!
//! A byte of a writable buffer remembers who wrote it last. What a block wrote is known to another one after a fence of the
//! device (or of the system) and an access that may synchronise, by the writer; an access that finds that one, and a fence, by
//! the reader. Inside a block barriers hand on what a fence covers and brings, by the clocks of its warps. A plain read of what
//! another block wrote without being known is a race, and so is a plain write of another value over it. Not looked at: order
//! inside a block, blocks of clusters, reads that come after the fact (a write over what another block has read), copies.

use crate::race::{Clock, join};
use std::collections::HashMap;

/// What is known of other blocks: for each one, the clocks of its warps.
pub(crate) type Known = HashMap<u32, Clock>;

fn raise(known: &mut Known, by: &Known) {
    for (&block, clock) in by {
        join(known.entry(block).or_default(), clock);
    }
}

/// What an access to device memory orders.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    /// It may synchronise with other blocks.
    pub device: bool,
    /// A fence stands before it.
    pub release: bool,
    /// A fence stands behind it.
    pub acquire: bool,
}

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// Number of its block in the grid.
    pub block: u32,
    pub warp: usize,
    /// Of the warp, when it wrote.
    clock: u32,
    /// Index of the source line.
    pub source: u32,
}

/// What fences brought a block: by which warp, at which of its clocks, and what.
pub(crate) type Acquired = Vec<(usize, u32, Known)>;

/// What a warp's fences have covered and are going to bring.
#[derive(Default)]
pub(crate) struct Fences {
    covered: Option<Known>,
    found: Known,
}

/// A warp in its block: the block's number, the warp, the clocks of the block's warps, what its fences brought.
pub(crate) struct View<'a> {
    pub block: u32,
    pub warp: usize,
    pub clocks: &'a [Clock],
    pub acquired: &'a Acquired,
}

impl View<'_> {
    /// What fences have brought this warp.
    fn known(&self) -> impl Iterator<Item = &Known> {
        let own = &self.clocks[self.warp];
        self.acquired.iter().filter(move |(warp, clock, _)| *warp == self.warp || own[*warp] >= *clock).map(|(.., k)| k)
    }

    fn knows(&self, writer: &Writer) -> bool {
        let seen = |known: &Known| known.get(&writer.block).is_some_and(|clock| clock[writer.warp] >= writer.clock);
        writer.block == self.block || self.known().any(seen)
    }
}

/// Who wrote what, and what has been made known where.
#[derive(Default)]
pub(crate) struct Order {
    writers: Vec<Writer>,
    /// By segment: for each byte the number of its last writer, from 1.
    bytes: HashMap<usize, Vec<u32>>,
    released: HashMap<(usize, usize), Known>,
}

impl Order {
    /// A fence of a warp: what it covers from now on. The caller moves the warp's clock on.
    pub(crate) fn cover(view: &View<'_>, fences: &mut Fences) {
        let mut covered = Known::new();
        view.known().for_each(|known| raise(&mut covered, known));
        covered.insert(view.block, view.clocks[view.warp].clone());
        fences.covered = Some(covered);
    }

    /// A fence of a warp: what it brings the block, from this clock of the warp on.
    pub(crate) fn bring(warp: usize, clock: u32, acquired: &mut Acquired, fences: &mut Fences) {
        let found = std::mem::take(&mut fences.found);
        if !found.is_empty() {
            acquired.push((warp, clock, found));
        }
    }

    /// An access that may synchronise.
    pub(crate) fn meet(&mut self, place: (usize, usize), fences: &mut Fences, (reads, writes): (bool, bool)) {
        let released = self.released.entry(place).or_default();
        if reads {
            raise(&mut fences.found, released);
        }
        if let (true, Some(covered)) = (writes, &fences.covered) {
            raise(released, covered);
        }
    }

    /// A write that a warp does not know of, among some bytes; the byte, from the first of them.
    pub(crate) fn unknown(
        &self,
        (segment, at): (usize, usize),
        bytes: usize,
        view: &View<'_>,
    ) -> Option<(usize, Writer)> {
        let cells = &self.bytes.get(&segment)?[at..at + bytes];
        let mut last = 0;
        for (byte, &number) in cells.iter().enumerate() {
            if number != 0 && number != last {
                let writer = &self.writers[number as usize - 1];
                if !view.knows(writer) {
                    return Some((byte, *writer));
                }
                last = number;
            }
        }
        None
    }

    /// A write to a segment of some size.
    pub(crate) fn wrote(
        &mut self,
        (segment, size): (usize, usize),
        at: std::ops::Range<usize>,
        view: &View<'_>,
        source: u32,
    ) {
        let clock = view.clocks[view.warp][view.warp];
        let writer = Writer { block: view.block, warp: view.warp, clock, source };
        if self.writers.last() != Some(&writer) {
            self.writers.push(writer);
        }
        let cells = self.bytes.entry(segment).or_insert_with(|| vec![0; size]);
        cells[at].fill(self.writers.len() as u32);
    }
}
