//! Softmax of a tile where one thread has vectors: scores become weights, four rows at a time.
//!
//! Reads scores `[row, tile]`; makes weights in the form in which values are weighted (numbers, or multiples of a step), the
//! largest scores, corrections, sums and sums of offsets. The state of four rows lies in the lanes of one vector, so that
//! what happens once a tile is done for all four at once: rows of lanes are reduced to it by halves, like a transposition.
//! Always holds: a NaN among scores is a NaN among weights, though the largest score passes it over.

use super::super::{codes, int};
use super::values::{grouped, has_offsets};
use super::{Kernel, LOWEST};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CmpOp, Scalar, UnOp, Value};
use crate::op::kv::LEAST;

/// Rows whose state is a vector.
pub(super) const ROWS: usize = 4;

/// Added to a number of at most 22 bits, it leaves no room for a fraction: the low bits of the sum are the nearest integer.
const SHIFT: f32 = 12_582_912.0;

/// The larger of two numbers where order matters for NaNs alone: a new one that is NaN is passed over.
fn larger(b: &mut Builder, old: Value, new: Value) -> Value {
    let less = b.cmp(CmpOp::Lt, old, new);
    b.select(less, new, old)
}

/// One to four vectors of one length, each reduced to one number: lanes of a vector of four, the last one repeated.
fn together(b: &mut Builder, values: &[Value], combine: &dyn Fn(&mut Builder, Value, Value) -> Value) -> Value {
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

    /// Weights of `blocks` tokens from `start` on, and the state after them.
    pub(super) fn softmax(&self, b: &mut Builder, start: Value, blocks: Value) {
        let (whole, rest) = (self.rows / ROWS * ROWS, self.rows % ROWS);
        if whole > 0 {
            let (zero, end) = (int(b, 0), int(b, whole));
            b.for_loop(zero, end, ROWS as i64, &[], |b, first, _| {
                self.softmax_of(b, (start, blocks), first, ROWS);
                Vec::new()
            });
        }
        if rest > 0 {
            let first = int(b, whole);
            self.softmax_of(b, (start, blocks), first, rest);
        }
    }

    /// The same for `count` rows from `first` on.
    fn softmax_of(&self, b: &mut Builder, (start, blocks): (Value, Value), first: Value, count: usize) {
        let kind = self.op.layout.v.codes;
        let (lanes, step) = (self.lanes, i64::from(self.lanes));
        let (stat, padded, tile) = (self.arrays.stat, self.padded, self.tile);
        let line = super::times(b, first, tile);
        let zero = int(b, 0);
        let lowest = b.f32(lanes, LOWEST);
        let tops = b.for_loop(zero, blocks, step, &vec![lowest; count], |b, t, tops| {
            let index = b.add(line, t);
            let of_row = |(row, &top): (usize, &Value)| {
                let s = self.read(b, self.arrays.s, index, row * tile, lanes);
                larger(b, top, s)
            };
            tops.iter().enumerate().map(of_row).collect()
        });
        let top = together(b, &tops, &larger);
        let before = self.read(b, stat, first, 0, ROWS as u8);
        let now = larger(b, before, top);
        let difference = b.bin(BinOp::Sub, before, now);
        let correction = codes::power_of_two_here(b, difference);
        self.write(b, stat, first, 0, now);
        self.write(b, stat, first, padded, correction);

        let integers = self.arrays.p_factors.is_some();
        let offset = kind.asymmetric && !grouped(&kind);
        let biased = !integers && !kind.asymmetric && kind.bias() != 0.0 && !grouped(&kind);
        let none = b.f32(lanes, 0.0);
        // Sums, then sums of offsets, then the largest weights.
        let lists = 1 + usize::from(offset || biased) + usize::from(integers);
        let rows_tops: Vec<Value> = (0..count)
            .map(|row| {
                let top = self.read(b, stat, first, row, 1);
                b.splat(top, lanes)
            })
            .collect();
        let state = b.for_loop(zero, blocks, step, &vec![none; lists * count], |b, t, state| {
            let mut state = state.to_vec();
            let index = b.add(line, t);
            let (scale, offsets) = self.of_values(b, (start, t), offset);
            for row in 0..count {
                let s = self.read(b, self.arrays.s, index, row * tile, lanes);
                let x = b.bin(BinOp::Sub, s, rows_tops[row]);
                let p = codes::power_of_two_here(b, x);
                state[row] = b.add(state[row], p);
                let mut weight = p;
                match (self.arrays.p, scale) {
                    (Some(memory), Some(scale)) => {
                        // What lies in the place of an unseen token's scale is anything.
                        let scaled = b.mul(p, scale);
                        let some = b.cmp(CmpOp::Lt, none, p);
                        weight = b.select(some, scaled, none);
                        self.write(b, memory, index, row * tile, weight);
                    }
                    _ => self.write(b, self.arrays.s, index, row * tile, p),
                }
                if let Some(offsets) = offsets {
                    let some = b.cmp(CmpOp::Lt, none, p);
                    let offsets = b.select(some, offsets, none);
                    state[count + row] = b.fma(p, offsets, state[count + row]);
                } else if biased {
                    state[count + row] = b.add(state[count + row], weight);
                }
                if integers {
                    let at = (lists - 1) * count + row;
                    let size = b.un(UnOp::Abs, weight);
                    state[at] = larger(b, state[at], size);
                }
            }
            state
        });
        let sum = together(b, &state[..count], &Builder::add);
        let earlier = self.read(b, stat, first, 2 * padded, ROWS as u8);
        let total = b.fma(earlier, correction, sum);
        self.write(b, stat, first, 2 * padded, total);
        let mut offsets = (offset || biased).then(|| together(b, &state[count..2 * count], &Builder::add));
        if integers {
            let tops = &state[(lists - 1) * count..];
            let rounded = self.round_weights(b, (line, first, blocks), tops);
            offsets = offsets.or(rounded);
        }
        if has_offsets(&kind)
            && let Some(sum) = offsets
        {
            let sum = if kind.asymmetric { sum } else { self.times_constant(b, sum, -kind.bias()) };
            self.write(b, stat, first, 3 * padded, sum);
        }
    }

    /// Scales and offsets of a vector of tokens, where tokens have some.
    fn of_values(&self, b: &mut Builder, (start, t): (Value, Value), offset: bool) -> (Option<Value>, Option<Value>) {
        let part = &self.op.layout.v;
        if self.arrays.p.is_none() && !offset {
            return (None, None);
        }
        let token = b.add(start, t);
        let (base, within) = self.page_of(b, token);
        let scale = self.arrays.p.map(|_| self.value_scale(b, base, within, self.lanes));
        let offset = offset.then(|| {
            if part.codes.is_static() {
                let (_, offset) = self.scales(Side::V).given(b, part, self.head);
                return b.splat(offset, self.lanes);
            }
            let place = super::times(b, within, 2);
            let place = b.add(base, place);
            codes::bf16(b, self.params.get("pool"), place, part.offset, self.lanes)
        });
        (scale, offset)
    }

    /// Weights become multiples of a step, the largest one over the most that fit; returns the sums of what they stand for,
    /// where someone asks for it.
    fn round_weights(
        &self,
        b: &mut Builder,
        (line, first, blocks): (Value, Value, Value),
        tops: &[Value],
    ) -> Option<Value> {
        let (Some(factors), Some(weights), Some(steps)) = (&self.arrays.p_factors, self.arrays.p, self.arrays.steps)
        else {
            return None;
        };
        let kind = self.op.layout.v.codes;
        let summed = !kind.asymmetric && kind.bias() != 0.0;
        let (lanes, rows) = (self.lanes, ROWS as u8);
        let top = together(b, tops, &larger);
        let floor = b.f32(rows, LEAST);
        let top = larger(b, floor, top);
        let most = b.f32(rows, factors.packing.steps() as f32);
        let step = b.bin(BinOp::Div, top, most);
        self.write(b, steps, first, self.padded, step);
        let inverse = b.bin(BinOp::Div, most, top);
        let inverses: Vec<Value> = (0..tops.len())
            .map(|row| {
                let inverse = b.extract(inverse, row as u8);
                b.splat(inverse, lanes)
            })
            .collect();
        let (zero, none, shift) = (int(b, 0), b.f32(lanes, 0.0), b.f32(lanes, SHIFT));
        let chunk = self.chunk();
        let own = super::times(b, first, factors.packing.words(1));
        let sums = if summed { vec![none; tops.len()] } else { Vec::new() };
        let sums = b.for_loop(zero, blocks, chunk as i64, &sums, |b, t, sums| {
            let mut sums = sums.to_vec();
            let index = b.add(line, t);
            let further = factors.packing.word_of(b, t);
            let place = b.add(own, further);
            for (row, &inverse) in inverses.iter().enumerate() {
                let numbers: Vec<Value> = (0..chunk / lanes as usize)
                    .map(|v| {
                        let x = self.read(b, weights, index, row * self.tile + v * lanes as usize, lanes);
                        let moved = b.fma(x, inverse, shift);
                        if summed {
                            let n = b.bin(BinOp::Sub, moved, shift);
                            sums[row] = b.add(sums[row], n);
                        }
                        b.bitcast(moved, b.ty(moved).with_scalar(Scalar::I32))
                    })
                    .collect();
                let word = factors.packing.joined(b, &numbers);
                self.write(b, factors.memory, place, row * factors.packing.words(1), word);
            }
            sums
        });
        summed.then(|| {
            let sum = together(b, &sums, &Builder::add);
            b.mul(sum, step)
        })
    }
}
