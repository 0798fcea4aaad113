//! Workgroups that share all tiles of Y along N: each takes an equal run of the tiles' steps, cut wherever that falls.
//!
//! ```text
//! steps      tile 0 |-----------| tile 1 |-----------| tile 2 |-----------|
//! workgroup  |------ 0 ------||------ 1 ------||------ 2 ------||--- 3 ---|
//! workspace  [row of tiles][counter of each workgroup, to 512 bytes][workgroup][where it starts, where it ends][sum][lane]
//! ```
//!
//! Steps flow through the rings from one tile to the next, so that nothing waits where a tile ends. Whoever has a part of a
//! tile leaves its sums in the workspace and counts; the last to come adds up the sums of all, in the order of workgroups, and
//! stores. So nobody waits for anybody, workgroups may run in any order and number at a time, and a launch gives the same
//! bits every time. A tile that several share is counted by the counter of the one that starts it: it starts one such tile
//! at most. The last to come takes the counter back to zero. How they meet is said in `meeting`.

use super::stages::Find;
use super::walk::Walk;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, UnOp, Value};
use crate::lower::matmul::meeting::{self, Counter};
use crate::lower::memory::{Signature, at, byte_index, times};
use crate::lower::team::Team;
use crate::schedule::Schedule;

/// Bytes of a sum of a subgroup's lanes.
const SUM: usize = 512;

/// Most sums of a workgroup: those of results, and a tile of sums of activations.
fn sums(schedule: &Schedule) -> usize {
    (schedule.tile_n as usize / 16 + 1) * (schedule.tile_m as usize / 8)
}

/// Bytes of the counters of a row of tiles.
fn counters(schedule: &Schedule) -> usize {
    (4 * schedule.workgroups as usize).next_multiple_of(SUM)
}

/// Bytes of a row of tiles.
fn row(schedule: &Schedule) -> usize {
    counters(schedule) + 2 * schedule.workgroups as usize * sums(schedule) * SUM
}

/// The workspace of a schedule, enough for `ceil(m / tile_m)` rows of tiles; `None` where workgroups share nothing.
pub(in crate::lower) fn workspace(schedule: &Schedule) -> Option<Signature> {
    meeting::workspace(schedule, || row(schedule))
}

/// How workgroups share tiles, in a kernel under construction.
pub(super) struct Share {
    /// Steps of a tile, and of all tiles.
    steps: usize,
    total: usize,
    workgroups: usize,
    /// Columns of Y of a tile.
    columns: usize,
    /// Bytes of a place of sums.
    bytes: usize,
    memory: Memory,
    /// Where one thread tells its workgroup what it has counted.
    count: Memory,
    /// The workgroup, and its steps from the first to the one behind the last; `i64`.
    own: Value,
    first: Value,
    end: Value,
    /// Byte of the counters of this row of tiles, and of its sums for this lane; `i64`.
    counters: Value,
    place: Value,
    /// Bool: the thread that counts.
    counts: Value,
}

/// A tile, and the steps of it that a workgroup has.
pub(super) struct Part {
    /// Its first row of W, `i64`.
    pub start: Value,
    /// Its first step, `i64`.
    first: Value,
    from: Value,
    until: Value,
}

impl Share {
    /// For tiles of so many steps; `x` is the row of tiles (`i32`).
    pub fn new(
        b: &mut Builder,
        schedule: &Schedule,
        (tiles, steps): (usize, usize),
        memory: Memory,
        (x, lane): (Value, Value),
        team: &Team,
    ) -> Share {
        let (total, workgroups) = (tiles * steps, schedule.workgroups as usize);
        let count = b.shared("count", 4, 4);
        let own = b.builtin(Builtin::WorkgroupId(1));
        let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
        let next = b.bin_imm(BinOp::Add, own, 1);
        let [first, end] = [own, next].map(|workgroup| {
            let steps = b.bin_imm(BinOp::Mul, workgroup, total as i64);
            b.bin_imm(BinOp::DivS, steps, workgroups as i64)
        });
        let counters_here = byte_index(b, x, row(schedule));
        let place = b.bin_imm(BinOp::Add, counters_here, counters(schedule) as i64);
        let mine = byte_index(b, lane, 16);
        let place = b.add(place, mine);
        let zero = b.int(Scalar::I32, 0);
        let lowest = b.cmp(CmpOp::Eq, lane, zero);
        let counts = b.bin(BinOp::And, lowest, team.leader);
        Share {
            steps,
            total,
            workgroups,
            columns: schedule.tile_n as usize,
            bytes: sums(schedule) * SUM,
            memory,
            count,
            own,
            first,
            end,
            counters: counters_here,
            place,
            counts,
        }
    }

    /// The step behind the last one of this workgroup, `i64`.
    pub fn end(&self) -> Value {
        self.end
    }

    /// The first step of a subgroup, `i64`.
    pub fn first(&self, b: &mut Builder, team: &Team) -> Value {
        let subgroup = team.split(b).index;
        b.add(self.first, subgroup)
    }

    /// Of a step: the first row of W of its tile, and its number in the tile; `i64`.
    pub fn find(&self, b: &mut Builder, step: Value) -> (Value, Value) {
        let tile = b.bin_imm(BinOp::DivS, step, self.steps as i64);
        let first = times(b, tile, self.steps);
        (times(b, tile, self.columns), b.bin(BinOp::Sub, step, first))
    }

    /// Does something for each tile of this workgroup, with the stages and the next step of the subgroup before it; gives
    /// them behind it.
    pub fn each_tile(
        &self,
        b: &mut Builder,
        (index, stages): (Value, [Value; 3]),
        split: usize,
        mut body: impl FnMut(&mut Builder, &Part, (Value, [Value; 3])) -> [Value; 3],
    ) {
        let tile = b.bin_imm(BinOp::DivS, self.first, self.steps as i64);
        let last = b.bin_imm(BinOp::Sub, self.end, 1);
        let last = b.bin_imm(BinOp::DivS, last, self.steps as i64);
        let end = b.bin_imm(BinOp::Add, last, 1);
        let state: Vec<Value> = [index].into_iter().chain(stages).collect();
        b.for_loop(tile, end, 1, &state, |b, tile, state| {
            let first = times(b, tile, self.steps);
            let behind = b.bin_imm(BinOp::Add, first, self.steps as i64);
            let from = b.bin(BinOp::MaxS, self.first, first);
            let until = b.bin(BinOp::MinS, self.end, behind);
            let part = Part { start: times(b, tile, self.columns), first, from, until };
            let index = state[0];
            let stages = body(b, &part, (index, [state[1], state[2], state[3]]));
            // The subgroup's first step at or behind the end of the tile.
            let left = b.bin(BinOp::Sub, until, index);
            let none = b.int(Scalar::I64, 0);
            let left = b.bin(BinOp::MaxS, left, none);
            let turns = b.bin_imm(BinOp::Add, left, split as i64 - 1);
            let turns = b.bin_imm(BinOp::ShrU, turns, split.trailing_zeros() as i64);
            let taken = times(b, turns, split);
            let index = b.add(index, taken);
            [index].into_iter().chain(stages).collect()
        });
    }

    /// The sums of all of a tile, from those of this workgroup's part, and whether they are here (`i32`, not 0): in the
    /// workgroup that has all of it, or is the last to come.
    pub fn complete(&self, b: &mut Builder, part: &Part, team: &Team, sums: &[Value]) -> (Vec<Value>, Value) {
        let steps = b.bin(BinOp::Sub, part.until, part.from);
        let all = b.int(Scalar::I64, self.steps as i64);
        let whole = b.cmp(CmpOp::Eq, steps, all);
        let mut list = b.if_else(
            whole,
            |b| {
                let here = b.int(Scalar::I32, 1);
                sums.iter().copied().chain([here]).collect()
            },
            |b| self.meet(b, part, team, sums),
        );
        let here = list.pop().expect("the last one says whether they are here");
        (list, here)
    }

    /// The workgroup that has a step, `i64`.
    fn owner(&self, b: &mut Builder, step: Value) -> Value {
        let next = b.bin_imm(BinOp::Add, step, 1);
        let share = b.bin_imm(BinOp::Mul, next, self.workgroups as i64);
        let share = b.bin_imm(BinOp::Sub, share, 1);
        b.bin_imm(BinOp::DivS, share, self.total as i64)
    }

    /// Where a workgroup's sums of a tile lie, which `starts` starts; for this lane, `i64`.
    fn place(&self, b: &mut Builder, workgroup: Value, starts: Value) -> Value {
        let twice = times(b, workgroup, 2);
        let is_first = b.cmp(CmpOp::Eq, workgroup, starts);
        let (one, zero) = (b.int(Scalar::I64, 1), b.int(Scalar::I64, 0));
        let second = b.select(is_first, one, zero);
        let number = b.add(twice, second);
        let byte = times(b, number, self.bytes);
        b.add(self.place, byte)
    }

    /// Leaves the sums of a part, and adds up all parts where this workgroup is the last.
    fn meet(&self, b: &mut Builder, part: &Part, team: &Team, sums: &[Value]) -> Vec<Value> {
        let starts = self.owner(b, part.first);
        let behind = b.bin_imm(BinOp::Add, part.first, self.steps as i64 - 1);
        let ends = self.owner(b, behind);
        let others = b.bin(BinOp::Sub, ends, starts);
        let others = b.cast(CastOp::Truncate, others, Scalar::I32);
        let place = self.place(b, self.own, starts);
        for (i, &sum) in sums.iter().enumerate() {
            team.on_slice(b, i, |b| b.store(at(self.memory, Some(place), i * SUM), 16, sum));
        }
        b.barrier();
        let counter = times(b, starts, 4);
        let counter = b.add(self.counters, counter);
        let address = at(self.memory, Some(counter), 0);
        let counter = Counter { address, told: self.count, counts: self.counts };
        let before = counter.arrive(b);
        let last = b.cmp(CmpOp::Eq, before, others);
        b.if_else(
            last,
            |b| {
                counter.reset(b, |b| {
                    let all = b.bin_imm(BinOp::Add, others, 1);
                    b.un(UnOp::Neg, all)
                });
                let load = |b: &mut Builder, workgroup: Value| -> Vec<Value> {
                    let place = self.place(b, workgroup, starts);
                    let one = |(i, &sum): (usize, &Value)| b.load(b.ty(sum), at(self.memory, Some(place), i * SUM), 16);
                    sums.iter().enumerate().map(one).collect()
                };
                let first = load(b, starts);
                let second = b.bin_imm(BinOp::Add, starts, 1);
                let end = b.bin_imm(BinOp::Add, ends, 1);
                let mut list = b.for_loop(second, end, 1, &first, |b, workgroup, list| {
                    let more = load(b, workgroup);
                    list.iter().zip(more).map(|(&sum, more)| b.add(sum, more)).collect()
                });
                list.push(b.int(Scalar::I32, 1));
                list
            },
            |b| {
                let nothing = b.int(Scalar::I32, 0);
                sums.iter().copied().chain([nothing]).collect()
            },
        )
    }
}

impl Part {
    /// The walk of a subgroup over its steps of the part, from its step `index` on: the sums, and the stages behind them.
    pub fn walk(
        &self,
        b: &mut Builder,
        walk: &Walk<'_>,
        (index, stages): (Value, [Value; 3]),
        find: &Find<'_, '_>,
    ) -> ([Value; 3], Vec<Value>) {
        walk.steps(b, (index, |_: &mut Builder| self.until), stages, Some(self.first), find)
    }
}
