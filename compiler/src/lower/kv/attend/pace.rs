//! How much of the next records each step of a tile asks for, where a CPU reads them in the order of memory: codes and scales
//! alike.
//!
//! Always holds: the steps of one head's tile ask for as many bytes as its record has, in their order.

use super::super::plus;
use super::{Kernel, Tile};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, Value};
use crate::lower::memory::{at, split, times};

/// A step of a tile that reads no codes.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Queries take over the scales of the channels of a page.
    Fold,
    /// Scores become weights.
    Softmax,
    /// Weights take over the scales of this group of channels of values.
    Group(Value),
}

/// Bytes of a record that the steps of a tile ask for, one after the other: memory delivers at its own pace, so that each
/// asks for as many as its time allows, codes and scales alike.
#[derive(Clone, Copy)]
struct Pace {
    /// While queries take over the scales of a page.
    fold: usize,
    /// While keys are read.
    keys: usize,
    /// Between scores and outputs.
    between: usize,
    /// While weights of values take over the scales of a group of channels.
    weights: usize,
    /// While the values of such a group are read, or all.
    outputs: usize,
}

impl Pace {
    /// Where what is asked for from outputs on starts.
    fn values(self) -> usize {
        self.fold + self.keys + self.between
    }

    /// What is asked for while so many bytes of codes of a side are read.
    fn of(self, side: Side, kernel: &Kernel<'_>) -> (usize, usize) {
        let part = &kernel.op.layout.v;
        let groups = if kernel.weighs_groups() { part.codes.groups(part.head_dim) } else { 1 };
        match side {
            Side::K => (self.keys, kernel.code_bytes(side)),
            Side::V => (self.outputs, kernel.code_bytes(side) / groups),
        }
    }
}

/// Quarters of a cycle that a query takes for a channel of a page.
const FOLD: usize = 3;

/// Parts of what is read, in which a place to ask for is known.
const SHARES: usize = 64;

/// Quarters of a cycle that softmax takes for a token and a row.
const SOFTMAX: usize = 3;

/// Quarters of a cycle that the weight of a token takes for a row and a group of channels.
const GROUP: usize = 2;

impl Kernel<'_> {
    /// Bytes of codes of one head of a page.
    fn code_bytes(&self, side: Side) -> usize {
        let part = self.op.layout.part(side);
        self.op.layout.page * part.head_dim * part.codes.code.bits() / 8
    }

    /// What each step of a tile asks for.
    fn pace(&self) -> Pace {
        let (keys, values) = (&self.op.layout.k, &self.op.layout.v);
        let groups = if self.weighs_groups() { values.codes.groups(values.head_dim) } else { 0 };
        let times = [
            if self.folds_keys() { FOLD * self.rows * keys.head_dim / self.tile } else { 0 },
            self.quarter_cycles(Side::K),
            SOFTMAX * self.rows,
            GROUP * self.rows * groups,
            self.quarter_cycles(Side::V),
        ];
        let all: usize = times.iter().sum();
        let lines = self.op.layout.record.div_ceil(64);
        let share = |time: usize| 64 * (lines * time).div_ceil(all);
        let [fold, keys, between] = [0, 1, 2].map(|step| share(times[step]));
        let weights = if groups == 0 { 0 } else { share(times[3].div_ceil(groups)) };
        let left = (64 * lines).saturating_sub(fold + keys + between);
        let outputs = (left / groups.max(1)).saturating_sub(weights).next_multiple_of(64);
        Pace { fold, keys, between, weights, outputs }
    }

    /// About how long the products of a token take on a side, in quarters of a cycle: two instructions start in each, of vectors of
    /// 64 bytes, and opening codes takes some.
    fn quarter_cycles(&self, side: Side) -> usize {
        let factors = if side == Side::K { &self.arrays.q_factors } else { &self.arrays.p_factors };
        let together = factors.as_ref().map_or(1, |factors| factors.packing.together());
        (4 * self.rows / together + 1) * self.op.layout.part(side).head_dim.div_ceil(32)
    }

    /// How far into what is asked for while codes of a side are read it is after so many bytes of those.
    pub(super) fn paced(&self, b: &mut Builder, side: Side, read: Value) -> Value {
        let (asked, all) = self.pace().of(side, self);
        let read = times(b, read, (asked * SHARES).div_ceil(all));
        b.bin_imm(BinOp::ShrU, read, SHARES.trailing_zeros() as i64)
    }

    /// Asks for what comes next in a step that reads no codes, while numbers `i` to `i + count` of its own are made.
    pub(super) fn foresee_in(&self, b: &mut Builder, tile: Tile, step: Step, (i, count): (Value, usize)) {
        let Some((base, line)) = self.in_line(tile) else {
            return self.foresee_scales(b, tile, step, (i, count));
        };
        let pace = self.pace();
        let (asked, first, all) = match step {
            Step::Fold => (pace.fold, 0, self.op.layout.k.head_dim),
            Step::Softmax => (pace.between, pace.fold + pace.keys, self.tile),
            Step::Group(_) => (pace.weights, pace.values(), self.tile),
        };
        let each = asked / all;
        let place = times(b, i, each);
        let mut place = plus(b, place, first);
        if let Step::Group(group) = step {
            let before = times(b, group, pace.weights + pace.outputs);
            place = b.add(place, before);
        }
        let place = self.line_later(b, base, line, place);
        for line in (0..each * count).step_by(64) {
            b.prefetch(at(self.params.get("pool"), Some(place), line));
        }
    }

    /// Asks for the scales of the next page's record in a tile's softmax, where codes are asked for as those of this one are read.
    fn foresee_scales(&self, b: &mut Builder, tile: Tile, step: Step, (i, count): (Value, usize)) {
        let layout = &self.op.layout;
        let first = layout.v.code + self.code_bytes(Side::V);
        if first == layout.record {
            return;
        }
        let (Some(next), Step::Softmax) = (self.next_record(b, tile), step) else { return };
        let each = (layout.record - first).div_ceil(self.tile);
        let place = times(b, i, each);
        let place = b.add(next, place);
        for line in (0..each * count).step_by(64) {
            b.prefetch(at(self.params.get("pool"), Some(place), first + line));
        }
    }

    /// The byte of a record that is asked for when the codes of a lane are, `done` bytes of codes after the side's first ones.
    pub(super) fn place_of_share(&self, b: &mut Builder, side: Side, (lane, done): (Value, Value)) -> Value {
        let pace = self.pace();
        if side == Side::K {
            let place = self.paced(b, side, done);
            return plus(b, place, pace.fold);
        }
        if !self.weighs_groups() {
            let place = self.paced(b, side, done);
            return plus(b, place, pace.values());
        }
        let part = &self.op.layout.v;
        let (group, _) = split(b, lane, part.codes.group(part.head_dim));
        let before = times(b, group, pace.of(side, self).1);
        let done = b.bin(BinOp::Sub, done, before);
        let place = self.paced(b, side, done);
        let before = times(b, group, pace.weights + pace.outputs);
        let place = b.add(place, before);
        plus(b, place, pace.values() + pace.weights)
    }
}
