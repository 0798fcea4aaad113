//! Weights of a tile's tokens become factors of values, where one thread has vectors: multiples of a step, or bf16 numbers,
//! with the scales of the tokens, or of one group of their channels after the other.
//!
//! A weight is at most 1, so that a step of 16 bits follows from the largest scale of the tile before any weight is known, and
//! all rows share what is made of scales; one of 8 bits follows from each row's largest weight times scale, since a longer step
//! would show. Always holds: what lies in the place of scales past the last token counts for nothing, whatever it is.

use super::super::super::memory::times;
use super::super::{codes, int, plus};
use super::pace::Step;
use super::softmax::{larger, together};
use super::state::SHARE;
use super::values::scales_weights;
use super::{Kernel, ROWS, Tile};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CmpOp, UnOp, Value};
use crate::op::kv::LEAST;

/// How factors are made of weights.
pub(super) struct Making {
    /// Multiples of a step; `None` for bf16 numbers.
    unit: Option<Unit>,
    /// Whether weights times offsets are summed up.
    offsets: bool,
    /// Whether multiples are, which stand for the bias of codes.
    counts: bool,
    /// Whether what is lost goes to the next weights of the same lanes.
    carries: bool,
}

/// The step of weights, beside a largest one of 1.
struct Unit {
    /// The largest multiple.
    most: f32,
    /// That over the largest scale, in all lanes; over 1 where one scale serves all tokens; of each row where a row has its own.
    inverse: Vec<Value>,
    /// The step of weights times scale, in lanes of rows.
    step: Value,
    /// Whether one scale serves all tokens, and is no part of a weight.
    same: bool,
}

impl Unit {
    /// Whether each row has its own; of one row, what scales are multiplied by serves as well.
    fn of_rows(&self) -> bool {
        self.inverse.len() > 1
    }
}

impl Making {
    /// Lists of one vector per row that making factors goes on with: sums of offsets or multiples, then what is carried.
    pub fn lists(&self) -> usize {
        usize::from(self.middle()) + usize::from(self.carries)
    }

    fn middle(&self) -> bool {
        self.offsets || self.counts && !self.counts_at_end()
    }

    /// Whether all multiples are what they were made of but for what is left to carry: where that is summed up anyway.
    fn counts_at_end(&self) -> bool {
        self.counts && self.carries && self.unit.as_ref().is_some_and(|unit| unit.same)
    }

    /// What the weights of tokens with these scales are multiplied by first.
    pub fn by(&self, b: &mut Builder, scale: Option<Value>) -> Value {
        match (&self.unit, scale) {
            (Some(unit), Some(scale)) if unit.of_rows() => scale,
            (Some(unit), Some(scale)) if !unit.same => b.mul(scale, unit.inverse[0]),
            (Some(unit), _) => unit.inverse[0],
            (None, scale) => scale.expect("bf16 numbers are beside codes, which have scales"),
        }
    }
}

impl Kernel<'_> {
    /// How the weights of a tile become factors of values, of all channels or of a group; of `count` rows from `first` on, where
    /// their weights are known.
    pub(super) fn making(
        &self,
        b: &mut Builder,
        (tile, group): (Tile, Option<Value>),
        known: Option<(Value, usize)>,
    ) -> Making {
        let kind = self.op.layout.v.codes;
        let unit = self.op.steps(Side::V).map(|most| match known.filter(|_| self.op.carries()) {
            Some(rows) => self.unit_of_rows(b, (tile, group), most as f32, rows),
            None => self.unit(b, tile, group, most as f32),
        });
        let counts = unit.is_some() && !kind.asymmetric && kind.bias() != 0.0;
        Making { unit, offsets: kind.asymmetric, counts, carries: self.op.carries() }
    }

    /// The unit of all rows, beside the largest scale.
    fn unit(&self, b: &mut Builder, tile: Tile, group: Option<Value>, most: f32) -> Unit {
        if self.op.layout.v.codes.is_static() {
            let (scale, _) = self.scales(Side::V).given(b, &self.op.layout.v, self.head);
            let scale = self.times_constant(b, scale, 1.0 / most);
            let inverse = vec![b.f32(self.lanes, most)];
            return Unit { most, inverse, step: b.splat(scale, ROWS as u8), same: true };
        }
        let (zero, none) = (int(b, 0), b.f32(self.lanes, 0.0));
        let top = b.for_loop(zero, tile.blocks, i64::from(self.lanes), &[none], |b, t, top| {
            let (scale, _) = self.of_values(b, tile, t, group);
            let size = scale.map_or(none, |scale| b.un(UnOp::Abs, scale));
            vec![larger(b, top[0], size)]
        });
        let top = together(b, &top, &larger);
        self.unit_beside(b, most, top, 1)
    }

    /// The unit of `count` rows from `first` on, beside their largest weights times scale.
    fn unit_of_rows(
        &self,
        b: &mut Builder,
        (tile, group): (Tile, Option<Value>),
        most: f32,
        (first, count): (Value, usize),
    ) -> Unit {
        let line = times(b, first, self.tile);
        let (zero, none) = (int(b, 0), b.f32(self.lanes, 0.0));
        let tops = b.for_loop(zero, tile.blocks, i64::from(self.lanes), &vec![none; count], |b, t, tops| {
            let index = b.add(line, t);
            let (scale, _) = self.of_values(b, tile, t, group);
            let size = scale.map_or(none, |scale| b.un(UnOp::Abs, scale));
            let of_row = |(row, &top): (usize, &Value)| {
                let p = self.read(b, self.arrays.s, index, row * self.tile, self.lanes);
                let weight = b.mul(p, size);
                larger(b, top, weight)
            };
            tops.iter().enumerate().map(of_row).collect()
        });
        let top = together(b, &tops, &larger);
        self.unit_beside(b, most, top, count)
    }

    fn unit_beside(&self, b: &mut Builder, most: f32, top: Value, count: usize) -> Unit {
        let floor = b.f32(ROWS as u8, LEAST);
        let top = larger(b, floor, top);
        let whole = b.f32(ROWS as u8, most);
        let (step, inverse) = (b.bin(BinOp::Div, top, whole), b.bin(BinOp::Div, whole, top));
        Unit { most, inverse: self.of_rows(b, inverse, count), step, same: false }
    }

    /// The factor that a vector of weights becomes, for a row of `count`.
    pub(super) fn made(
        &self,
        b: &mut Builder,
        making: &Making,
        (weight, by, offsets): (Value, Value, Option<Value>),
        (lists, row, count): (&mut [Value], usize, usize),
    ) -> Value {
        if let (Some(offsets), true) = (offsets, making.offsets) {
            lists[row] = b.fma(weight, offsets, lists[row]);
        }
        if making.unit.is_none() {
            let scaled = b.mul(weight, by);
            return codes::nearest_bf16(b, scaled);
        }
        let (weight, by) = match &making.unit {
            Some(unit) if unit.of_rows() => (b.mul(weight, by), unit.inverse[row]),
            _ => (weight, by),
        };
        let counted = making.middle() && !making.offsets;
        let carried = making.carries.then(|| &mut lists[(making.lists() - 1) * count + row]);
        let (number, multiple) = self.rounded(b, (weight, by), carried, counted);
        if let Some(multiple) = multiple {
            lists[row] = b.add(lists[row], multiple);
        }
        number
    }

    /// Keeps the steps of weights whose largest one is a `share` of 1, and returns what offsets or the bias of codes add to
    /// outputs, from sums of weights and the lists of [`Making::lists`].
    pub(super) fn steps_and_offsets(
        &self,
        b: &mut Builder,
        making: &Making,
        (first, count): (Value, usize),
        share: Option<Value>,
        (sum, lists): (Option<Value>, &[Value]),
    ) -> Option<Value> {
        let step = making.unit.as_ref().map(|unit| share.map_or(unit.step, |share| b.mul(share, unit.step)));
        if let Some(step) = step {
            self.write_weight_step(b, first, step);
        }
        if making.offsets {
            let offsets = together(b, &lists[..count], &Builder::add);
            return Some(share.map_or(offsets, |share| b.mul(offsets, share)));
        }
        let (Some(unit), Some(step), true) = (&making.unit, step, making.counts) else { return None };
        let multiples = match sum {
            Some(sum) if making.counts_at_end() => {
                let left = together(b, &lists[(making.lists() - 1) * count..], &Builder::add);
                let all = self.times_constant(b, sum, unit.most);
                b.bin(BinOp::Sub, all, left)
            }
            _ => together(b, &lists[..count], &Builder::add),
        };
        let sum = b.mul(multiples, step);
        Some(self.times_constant(b, sum, -self.op.layout.v.codes.bias()))
    }

    /// Factors of values, of a group of channels or all, where one thread has vectors and weights are known: of `count` rows from
    /// `first` on.
    pub(super) fn later_rows(
        &self,
        b: &mut Builder,
        (tile, group): (Tile, Option<Value>),
        (first, count): (Value, usize),
    ) {
        let Some(factors) = self.arrays.p_factors else { return };
        let making = self.making(b, (tile, group), Some((first, count)));
        let (lanes, stat) = (self.lanes as usize, self.arrays.stat);
        let (line, width) = (times(b, first, self.tile), self.chunk());
        let (zero, none) = (int(b, 0), b.f32(self.lanes, 0.0));
        let state = b.for_loop(zero, tile.blocks, width as i64, &vec![none; making.lists() * count], |b, t, state| {
            let mut state = state.to_vec();
            let index = b.add(line, t);
            if let Some(group) = group {
                self.foresee_in(b, tile, Step::Group(group), (t, width));
            }
            let mut numbers = vec![Vec::new(); count];
            for vector in (0..width).step_by(lanes) {
                let t = plus(b, t, vector);
                let (scale, offsets) = self.of_values(b, tile, t, group);
                let by = making.by(b, scale);
                for (row, numbers) in numbers.iter_mut().enumerate() {
                    let p = self.read(b, self.arrays.s, index, row * self.tile + vector, self.lanes);
                    numbers.push(self.made(b, &making, (p, by, offsets), (&mut state, row, count)));
                }
            }
            self.write_factors(b, &factors, index, &numbers);
            state
        });
        let share = making.unit.is_some().then(|| self.read(b, stat, first, SHARE * self.padded, ROWS as u8));
        if let Some(offsets) = self.steps_and_offsets(b, &making, (first, count), share, (None, &state)) {
            self.write(b, stat, first, 3 * self.padded, offsets);
        }
    }

    /// Scales and offsets of the values of a vector of tokens, or of a group of their channels, where they have some: 0 past the
    /// last token.
    pub(super) fn of_values(
        &self,
        b: &mut Builder,
        tile: Tile,
        t: Value,
        group: Option<Value>,
    ) -> (Option<Value>, Option<Value>) {
        let part = &self.op.layout.v;
        if group.is_none() && !scales_weights(&part.codes) {
            return (None, None);
        }
        let (scale, offset) = self.scales_of_values(b, (tile, t), group, self.lanes);
        if part.codes.is_static() {
            return (Some(scale), offset);
        }
        let lane = self.lane_numbers(b);
        let left = b.bin(BinOp::Sub, tile.count, t);
        let inside = self.lanes_before(b, lane, left);
        let none = b.f32(self.lanes, 0.0);
        (Some(b.select(inside, scale, none)), offset.map(|offset| b.select(inside, offset, none)))
    }

    /// The same, whatever lies there: with the decoder's factor, and where a group has two levels, both of them.
    pub(super) fn scales_of_values(
        &self,
        b: &mut Builder,
        (tile, t): (Tile, Value),
        group: Option<Value>,
        lanes: u8,
    ) -> (Value, Option<Value>) {
        let (part, pool) = (&self.op.layout.v, self.params.get("pool"));
        if part.codes.is_static() {
            let (scale, offset) = self.scales(Side::V).given(b, part, self.head);
            let scale = self.times_constant(b, scale, self.values.factors().0);
            let offset = part.codes.asymmetric.then(|| b.splat(offset, lanes));
            return (b.splat(scale, lanes), offset);
        }
        let (base, within) = self.page_of(b, tile, t);
        let bf16 = |b: &mut Builder, index: Value, section: usize| {
            let place = times(b, index, 2);
            let place = b.add(base, place);
            codes::bf16(b, pool, place, section, lanes)
        };
        let index = match group {
            Some(group) => codes::index(b, &self.op.layout, Side::V, within, group, false),
            None => within,
        };
        let scale = match group {
            Some(_) if part.codes.two_level => {
                let outer = bf16(b, within, part.scale);
                let inner = b.add(base, index);
                let inner = codes::bytes(b, pool, inner, part.inner, lanes);
                b.mul(outer, inner)
            }
            _ => bf16(b, index, part.scale),
        };
        let offset = part.codes.asymmetric.then(|| bf16(b, index, part.offset));
        (self.times_constant(b, scale, self.values.factors().0), offset)
    }
}

/// What is made of a token's scale or offset, 0 where the token weighs nothing: what lies in the place of an unseen one's is
/// anything.
pub(super) fn where_seen(b: &mut Builder, weight: Value, value: Value) -> Value {
    let none = b.f32(b.ty(weight).lanes, 0.0);
    let some = b.cmp(CmpOp::Lt, none, weight);
    b.select(some, value, none)
}
