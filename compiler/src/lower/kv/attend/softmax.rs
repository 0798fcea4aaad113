//! Softmax of a tile where one thread has vectors: scores become weights, four rows at a time.
//!
//! Reads scores `[row, tile]`; makes weights in the form in which values are weighted (numbers, or multiples of a step), the
//! largest scores, corrections, sums and sums of offsets. The state of four rows lies in the lanes of one vector, so that
//! what happens once a tile is done for all four at once: rows of lanes are reduced to it by halves, like a transposition.
//! Always holds: a NaN among scores is a NaN among weights, though the largest score passes it over.

use super::super::super::memory::times;
use super::super::{codes, int, plus};
use super::pace::Step;
use super::state::SHARE;
use super::values::grouped;
use super::{Kernel, LOWEST, Tile};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CmpOp, Value};

/// Rows whose state is a vector.
pub(super) const ROWS: usize = 4;

/// The larger of two numbers where order matters for NaNs alone: a new one that is NaN is passed over.
pub(super) fn larger(b: &mut Builder, old: Value, new: Value) -> Value {
    let less = b.cmp(CmpOp::Lt, old, new);
    b.select(less, new, old)
}

/// One to four vectors of one length, each reduced to one number: lanes of a vector of four, the last one repeated.
pub(super) fn together(
    b: &mut Builder,
    values: &[Value],
    combine: &dyn Fn(&mut Builder, Value, Value) -> Value,
) -> Value {
    let narrow: Vec<Value> = values
        .iter()
        .map(|&value| {
            let mut value = value;
            while b.ty(value).lanes > ROWS as u8 {
                let lanes = b.ty(value).lanes;
                let (low, high): (Vec<u8>, Vec<u8>) = ((0..lanes / 2).collect(), (lanes / 2..lanes).collect());
                let (low, high) = (b.swizzle(value, value, &low), b.swizzle(value, value, &high));
                value = combine(b, low, high);
            }
            value
        })
        .collect();
    let row = |i: usize| narrow[i.min(narrow.len() - 1)];
    let halves = |b: &mut Builder, x: Value, y: Value, [low, high]: [[u8; 4]; 2]| {
        let (low, high) = (b.swizzle(x, y, &low), b.swizzle(x, y, &high));
        combine(b, low, high)
    };
    let pairs = [[0, 1, 4, 5], [2, 3, 6, 7]];
    let (first, last) = (halves(b, row(0), row(1), pairs), halves(b, row(2), row(3), pairs));
    halves(b, first, last, [[0, 2, 4, 6], [1, 3, 5, 7]])
}

impl Kernel<'_> {
    /// Whether one thread with vectors does everything.
    pub(super) fn alone(&self) -> bool {
        self.schedule.threads == 1 && self.lanes as usize >= ROWS
    }

    /// Weights of a tile, and the state after them.
    pub(super) fn softmax(&self, b: &mut Builder, tile: Tile) {
        self.four_rows(b, &|b, first, count| {
            self.softmax_of(b, tile, (first, count));
            if self.makes_later() && !self.weighs_groups() {
                self.later_rows(b, (tile, None), (first, count));
            }
        });
    }

    /// The same for `count` rows from `first` on.
    fn softmax_of(&self, b: &mut Builder, here: Tile, (first, count): (Value, usize)) {
        let kind = self.op.layout.v.codes;
        let (lanes, stat, padded) = (self.lanes, self.arrays.stat, self.padded);
        let line = times(b, first, self.tile);
        let top = self.tops(b, here, (line, count));
        let before = self.read(b, stat, first, 0, ROWS as u8);
        let now = larger(b, before, top);
        self.write(b, stat, first, 0, now);

        // Scales of tokens or groups may come in later, for one group after the other.
        let later = self.makes_later();
        let short = self.arrays.p_factors.filter(|_| !later);
        let making = short.map(|_| self.making(b, (here, None), None));
        // What becomes multiples of a step is taken beside the tile's largest score, not the largest so far: then the largest
        // weight is 1, and neither the step nor its inverse waits for anything.
        let beside = self.has_steps(Side::V);
        let tops: Vec<Value> = match beside {
            true => self.of_rows(b, top, count),
            false => (0..count)
                .map(|row| {
                    let top = self.read(b, stat, first, row, 1);
                    b.splat(top, lanes)
                })
                .collect(),
        };
        let offset = kind.asymmetric && !later && !grouped(&kind);
        let biased = making.is_none() && !later && !kind.asymmetric && kind.bias() != 0.0 && !grouped(&kind);
        // What becomes a factor of 8 bits of precision needs no more of a weight.
        let power = match self.op.takes_bf16(Side::V) || self.op.carries() {
            true => codes::power_of_two_about,
            false => codes::power_of_two_here,
        };
        let width = if making.is_some() { self.chunk() } else { lanes as usize };
        let none = b.f32(lanes, 0.0);
        // Sums, then what is made of them.
        let lists = 1 + making.as_ref().map_or(usize::from(offset || biased), |making| making.lists());
        let (zero, end) = (int(b, 0), here.blocks);
        let state = b.for_loop(zero, end, width as i64, &vec![none; lists * count], |b, t, state| {
            let mut state = state.to_vec();
            let (sums, more) = state.split_at_mut(count);
            let index = b.add(line, t);
            self.foresee_in(b, here, Step::Softmax, (t, width));
            let mut numbers = vec![Vec::new(); count];
            for vector in (0..width).step_by(lanes as usize) {
                let t = plus(b, t, vector);
                let (scale, offsets) = match later {
                    true => (None, None),
                    false => self.of_values(b, here, t, None),
                };
                let by = making.as_ref().map(|making| making.by(b, scale));
                for (row, &top) in tops.iter().enumerate() {
                    let place = row * self.tile + vector;
                    let s = self.read(b, self.arrays.s, index, place, lanes);
                    let x = b.bin(BinOp::Sub, s, top);
                    let p = power(b, x);
                    sums[row] = b.add(sums[row], p);
                    if let (Some(making), Some(by)) = (&making, by) {
                        numbers[row].push(self.made(b, making, (p, by, offsets), (&mut *more, row, count)));
                        continue;
                    }
                    let mut weight = p;
                    match (self.arrays.p.filter(|_| !later), scale) {
                        (Some(memory), Some(scale)) => {
                            weight = b.mul(p, scale);
                            self.write(b, memory, index, place, weight);
                        }
                        _ => self.write(b, self.arrays.s, index, place, p),
                    }
                    if let Some(offsets) = offsets {
                        more[row] = b.fma(p, offsets, more[row]);
                    } else if biased {
                        more[row] = b.add(more[row], weight);
                    }
                }
            }
            if let Some(factors) = &short {
                self.write_factors(b, factors, index, &numbers);
            }
            state
        });
        let difference = b.bin(BinOp::Sub, before, now);
        let correction = codes::power_of_two_here(b, difference);
        self.write(b, stat, first, padded, correction);
        let mut sum = together(b, &state[..count], &Builder::add);
        let share = beside.then(|| {
            let difference = b.bin(BinOp::Sub, top, now);
            codes::power_of_two_here(b, difference)
        });
        let offsets = match &making {
            Some(making) => self.steps_and_offsets(b, making, (first, count), share, (Some(sum), &state[count..])),
            None if offset => Some(together(b, &state[count..], &Builder::add)),
            None if biased => {
                let sum = together(b, &state[count..], &Builder::add);
                Some(self.times_constant(b, sum, -kind.bias()))
            }
            None => None,
        };
        if let Some(share) = share {
            sum = b.mul(sum, share);
            if later {
                self.write(b, stat, first, SHARE * padded, share);
            }
        }
        let earlier = self.read(b, stat, first, 2 * padded, ROWS as u8);
        let total = b.fma(earlier, correction, sum);
        self.write(b, stat, first, 2 * padded, total);
        if let Some(offsets) = offsets {
            self.write(b, stat, first, 3 * padded, offsets);
        }
    }

    /// The largest scores of a tile, of `count` rows that start at `line`.
    fn tops(&self, b: &mut Builder, tile: Tile, (line, count): (Value, usize)) -> Value {
        let lowest = b.f32(self.lanes, LOWEST);
        let zero = int(b, 0);
        let tops = b.for_loop(zero, tile.blocks, i64::from(self.lanes), &vec![lowest; count], |b, t, tops| {
            let index = b.add(line, t);
            let of_row = |(row, &top): (usize, &Value)| {
                let s = self.read(b, self.arrays.s, index, row * self.tile, self.lanes);
                larger(b, top, s)
            };
            tops.iter().enumerate().map(of_row).collect()
        });
        together(b, &tops, &larger)
    }
}
