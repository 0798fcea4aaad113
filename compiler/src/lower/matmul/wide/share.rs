//! Workgroups that share a tile: each sums an equal run of its blocks, and the last to come adds up what all have left.
//!
//! ```text
//! workspace  [row of tiles][counter of each tile, to 512 bytes][tile][workgroup][vector of four sums][thread]
//! ```
//!
//! Always holds: sums are added in the order of K, so a launch gives the same bits every time; counters are zero behind it.
//! How they meet is said in `meeting`.

use super::THREADS;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Value};
use crate::lower::matmul::meeting::{self, Counter};
use crate::lower::memory::{Signature, at, byte_index, times};
use crate::lower::walk::repeat;
use crate::op::Matmul;
use crate::schedule::Schedule;

/// Bytes of a vector of all threads.
const VECTOR: usize = 16 * THREADS as usize;

/// Bytes of a tile of one workgroup.
fn bytes(schedule: &Schedule) -> usize {
    schedule.tile_m as usize * schedule.tile_n as usize * 4
}

/// Bytes of the counters of a row of tiles.
fn counters(op: &Matmul, schedule: &Schedule) -> usize {
    (4 * op.n.div_ceil(schedule.tile_n.max(1) as usize)).next_multiple_of(512)
}

/// Bytes of a row of tiles.
fn row(op: &Matmul, schedule: &Schedule) -> usize {
    counters(op, schedule) + schedule.workgroups as usize * bytes(schedule)
}

/// The workspace of a schedule, enough for `ceil(m / tile_m)` rows of tiles; `None` where workgroups share nothing.
pub(in crate::lower) fn workspace(op: &Matmul, schedule: &Schedule) -> Option<Signature> {
    meeting::workspace(schedule, || row(op, schedule))
}

/// The place of a workgroup among those that share its tile.
pub(super) struct Share {
    memory: Memory,
    /// Where one thread tells its workgroup what it has counted.
    count: Memory,
    /// Workgroups of a tile, and which of them this is (`i64`).
    split: usize,
    part: Value,
    bytes: usize,
    /// Byte of the tile's counter, and of its first vector for this thread; `i64`.
    counter: Value,
    place: Value,
}

impl Share {
    /// For the tile at (`x`, `y`), and the workgroup's number `own` along N; `i32`.
    pub fn new(
        b: &mut Builder,
        (op, schedule): (&Matmul, &Schedule),
        split: usize,
        memory: Memory,
        (x, y, own): (Value, Value, Value),
    ) -> Share {
        let count = b.shared("count", 4, 4);
        let first = times(b, y, split);
        let part = b.bin(BinOp::Sub, own, first);
        let part = b.cast(CastOp::ExtendS, part, Scalar::I64);
        let here = byte_index(b, x, row(op, schedule));
        let counter = byte_index(b, y, 4);
        let counter = b.add(here, counter);
        let sums = byte_index(b, first, bytes(schedule));
        let thread = b.builtin(Builtin::LocalId(0));
        let thread = byte_index(b, thread, 16);
        let place = b.add(here, sums);
        let place = b.add(place, thread);
        let place = b.bin_imm(BinOp::Add, place, counters(op, schedule) as i64);
        Share { memory, count, split, part, bytes: bytes(schedule), counter, place }
    }

    /// The first block of this workgroup, which has so many, `i64`.
    pub fn first(&self, b: &mut Builder, blocks: usize) -> Value {
        times(b, self.part, blocks)
    }

    /// Leaves the sums of this workgroup; where it is the last, does something with those of all.
    pub fn meet(&self, b: &mut Builder, sums: &[Value], then: impl FnOnce(&mut Builder, &[Value])) {
        let own = times(b, self.part, self.bytes);
        let own = b.add(self.place, own);
        let lanes = b.ty(sums[0]).lanes;
        let vectors: Vec<(Value, u8)> =
            sums.iter().flat_map(|&sum| (0..lanes / 4).map(move |i| (sum, 4 * i))).collect();
        for (i, &(sum, first)) in vectors.iter().enumerate() {
            let four: Vec<Value> = (0..4).map(|lane| b.extract(sum, first + lane)).collect();
            let four = b.vector(&four);
            b.store(at(self.memory, Some(own), i * VECTOR), 16, four);
        }
        b.barrier();
        let thread = b.builtin(Builtin::LocalId(0));
        let zero = b.int(Scalar::I32, 0);
        let counts = b.cmp(CmpOp::Eq, thread, zero);
        let counter = Counter { address: at(self.memory, Some(self.counter), 0), told: self.count, counts };
        let before = counter.arrive(b);
        let others = b.int(Scalar::I32, self.split as i64 - 1);
        let last = b.cmp(CmpOp::Eq, before, others);
        b.if_then(last, |b| {
            counter.reset(b, |b| b.int(Scalar::I32, -(self.split as i64)));
            let ty = b.ty(sums[0]).with_lanes(4);
            let load = |b: &mut Builder, place: Value| -> Vec<Value> {
                let one = |i: usize| b.load(ty, at(self.memory, Some(place), i * VECTOR), 16);
                (0..vectors.len()).map(one).collect()
            };
            let first = load(b, self.place);
            let all = repeat(b, self.split - 1, 1, first, |b, turn, list| {
                let further = turn.plus(1).times(b, self.bytes);
                let nowhere = b.int(Scalar::I64, 0);
                let index = further.index.unwrap_or(nowhere);
                let place = b.bin_imm(BinOp::Add, index, further.fixed as i64);
                let place = b.add(self.place, place);
                let more = load(b, place);
                list.iter().zip(more).map(|(&sum, more)| b.add(sum, more)).collect()
            });
            let whole = |b: &mut Builder, vectors: &[Value]| {
                let lanes: Vec<Value> = vectors
                    .iter()
                    .flat_map(|&four| (0..4).map(move |lane| (four, lane)))
                    .map(|(four, lane)| b.extract(four, lane))
                    .collect();
                b.vector(&lanes)
            };
            let sums: Vec<Value> = all.chunks(lanes as usize / 4).map(|vectors| whole(b, vectors)).collect();
            then(b, &sums);
        });
    }
}
