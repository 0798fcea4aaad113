//! A subgroup's ring of stages: who fetches a step of weights, and how its lanes learn that it has come.
//!
//! Always holds: each lane reads what one of its own copies brought, or what a barrier object has counted in.

use crate::caps::{Caps, Feature};
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CmpOp, Memory, Scalar, Type, Value};
use crate::lower::memory::{at, times};
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::Pos;
use crate::schedule::Schedule;

/// Where a step is: the tile of W that it is of, and its number there.
pub(super) type Find<'a, 'f> = dyn Fn(&mut Builder, Value) -> (Fragments<'f>, Value) + 'a;

/// A subgroup's ring.
pub(super) struct Ring {
    memory: Memory,
    /// Barrier objects, one per stage, where copies are bulk copies.
    pub barriers: Option<Memory>,
    /// Byte of the subgroup's first stage, for its lane 0 and for this lane; of its first barrier object. `i32`.
    base: Value,
    mine: Value,
    barrier: Value,
    /// Bool: lane 0.
    leader: Value,
    pub stages: usize,
    pub strips: usize,
    tiles: usize,
    /// Of 16 bytes that a lane has of a tile of a strip.
    chunks: Vec<(usize, usize)>,
    /// Steps of all subgroups, from which on none is fetched: a number, or the first that is not this workgroup's (`i64`).
    pub steps: usize,
    end: Option<Value>,
    pub split: usize,
}

impl Ring {
    /// Declares it, for `steps` steps of all subgroups.
    pub fn new(
        b: &mut Builder,
        schedule: &Schedule,
        (strips, fragments): (usize, &Fragments<'_>),
        steps: usize,
        lane: Value,
        caps: &Caps,
    ) -> Ring {
        let (stages, split) = (schedule.unroll as usize, schedule.split as usize);
        let (tiles, chunks) = (fragments.blocks, fragments.chunks());
        let bytes = strips * chunks.len() * tiles * 512;
        let memory = b.shared("ring", (split * stages * bytes) as u32, 128);
        let bulk = caps.features.has(Feature::BulkCopy);
        let barriers = bulk.then(|| b.shared("arrived", (split * stages * 8) as u32, 8));
        let subgroup = b.builtin(Builtin::Subgroup);
        let base = times(b, subgroup, stages * bytes);
        let chunk = times(b, lane, 16);
        let mine = b.add(base, chunk);
        let barrier = times(b, subgroup, stages * 8);
        let zero = b.int(Scalar::I32, 0);
        let leader = b.cmp(CmpOp::Eq, lane, zero);
        Ring { memory, barriers, base, mine, barrier, leader, stages, strips, tiles, chunks, steps, end: None, split }
    }

    /// The same ring for the steps before another one, `i64`.
    pub fn ending(self, end: Value) -> Ring {
        Ring { end: Some(end), ..self }
    }

    /// Bytes of a stage.
    fn bytes(&self) -> usize {
        self.strips * self.chunks.len() * self.tiles * 512
    }

    /// The strips and chunks of a step that starts at a strip, in the ring's order.
    fn places(&self, strip: Pos) -> Vec<(Pos, (usize, usize))> {
        (0..self.strips).flat_map(|i| self.chunks.iter().map(move |&chunk| (strip.plus(i), chunk))).collect()
    }

    /// Makes the barrier objects.
    pub fn prepare(&self, b: &mut Builder) {
        let Some(barriers) = self.barriers else { return };
        b.if_then(self.leader, |b| {
            for stage in 0..self.stages {
                let barrier = at(barriers, Some(self.barrier), 8 * stage);
                b.asynchronous(Asynchronous::BarrierInit { barrier, arrivals: 1 });
            }
            b.asynchronous(Asynchronous::Fence);
        });
        b.barrier();
    }

    /// Starts to fetch a step, if there is one, to a stage (its number, `i32`).
    pub fn fetch(&self, b: &mut Builder, find: &Find<'_, '_>, step: Value, stage: Value) {
        let end = self.end.unwrap_or_else(|| b.int(Scalar::I64, self.steps as i64));
        let exists = b.cmp(CmpOp::LtS, step, end);
        let offset = times(b, stage, self.bytes());
        match self.barriers {
            Some(barriers) => {
                let fetches = b.bin(BinOp::And, exists, self.leader);
                let to = b.add(self.base, offset);
                let barrier = times(b, stage, 8);
                let barrier = b.add(barrier, self.barrier);
                let barrier = at(barriers, Some(barrier), 0);
                b.if_then(fetches, |b| {
                    let (fragments, strip) = self.source(b, find, step);
                    b.asynchronous(Asynchronous::BarrierExpect { barrier, bytes: self.bytes() as u32 });
                    let bytes = 512 * self.tiles;
                    for (i, (strip, chunk)) in self.places(strip).into_iter().enumerate() {
                        let to = at(self.memory, Some(to), i * bytes);
                        let from = fragments.chunk(b, strip, chunk, 0);
                        b.asynchronous(Asynchronous::BulkCopy { to, from, bytes: bytes as u32, barrier });
                    }
                });
            }
            None => {
                let to = b.add(self.mine, offset);
                b.if_then(exists, |b| {
                    let (fragments, strip) = self.source(b, find, step);
                    for (i, (strip, chunk)) in self.places(strip).into_iter().enumerate() {
                        for tile in 0..self.tiles {
                            let to = at(self.memory, Some(to), (i * self.tiles + tile) * 512);
                            let from = fragments.chunk(b, strip, chunk, tile);
                            b.async_copy(to, from, 16);
                        }
                    }
                });
                b.async_commit();
            }
        }
    }

    /// The tile of a step, and its first strip there.
    fn source<'f>(&self, b: &mut Builder, find: &Find<'_, 'f>, step: Value) -> (Fragments<'f>, Pos) {
        let (fragments, step) = find(b, step);
        (fragments, Pos::of(step).times(b, self.strips))
    }

    /// The words of the step in a stage once they have come, `[strip][tile][chunk]`.
    pub fn words(&self, b: &mut Builder, stage: Value, parity: Value) -> Vec<Vec<Vec<Value>>> {
        match self.barriers {
            Some(barriers) => {
                let barrier = times(b, stage, 8);
                let barrier = b.add(barrier, self.barrier);
                b.asynchronous(Asynchronous::BarrierWait { barrier: at(barriers, Some(barrier), 0), parity });
            }
            None => b.async_wait(self.stages as u8 - 1),
        }
        let offset = times(b, stage, self.bytes());
        let from = b.add(self.mine, offset);
        let chunks = self.chunks.len();
        let mut word = |strip: usize, chunk: usize, tile: usize| {
            let place = (strip * chunks + chunk) * self.tiles + tile;
            b.load(Type::vector(Scalar::I32, 4), at(self.memory, Some(from), place * 512), 16)
        };
        let mut words = Vec::new();
        for strip in 0..self.strips {
            let tile = |tile| (0..chunks).map(|chunk| word(strip, chunk, tile)).collect();
            words.push((0..self.tiles).map(tile).collect());
        }
        words
    }
}
