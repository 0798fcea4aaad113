//! Softmax of a tile where one thread has vectors: scores become weights, four rows at a time.
//!
//! Reads scores `[row, tile]`; makes weights in the form in which values are weighted (numbers, or multiples of a step), the
//! largest scores, corrections, sums and sums of offsets. The state of four rows lies in the lanes of one vector, so that
//! what happens once a tile is done for all four at once: rows of lanes are reduced to it by halves, like a transposition.
//! Always holds: a NaN among scores is a NaN among weights, though the largest score passes it over.

use super::super::{codes, int};
use super::factors::Factors;
use super::values::{grouped, has_offsets, scales_weights};
use super::{Kernel, LOWEST, Tile};
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
    pub(super) fn softmax(&self, b: &mut Builder, tile: Tile, blocks: Value) {
        let (whole, rest) = (self.rows / ROWS * ROWS, self.rows % ROWS);
        if whole > 0 {
            let (zero, end) = (int(b, 0), int(b, whole));
            b.for_loop(zero, end, ROWS as i64, &[], |b, first, _| {
                self.softmax_of(b, (tile, blocks), first, ROWS);
                Vec::new()
            });
        }
        if rest > 0 {
            let first = int(b, whole);
            self.softmax_of(b, (tile, blocks), first, rest);
        }
    }

    /// The same for `count` rows from `first` on.
    fn softmax_of(&self, b: &mut Builder, (here, blocks): (Tile, Value), first: Value, count: usize) {
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

        let integers = self.has_steps(Side::V);
        let rounds = self.arrays.p_factors.is_some() && !integers;
        let offset = kind.asymmetric && !grouped(&kind);
        let biased = !integers && !kind.asymmetric && kind.bias() != 0.0 && !grouped(&kind);
        // One scale for all tokens: the largest weight of the tile is that of the largest score, so that weights become
        // multiples of a step as they are made.
        let steps = self.known_steps(b, (first, count), top, now);
        let none = b.f32(lanes, 0.0);
        // Sums, then sums of offsets or of multiples, then the largest weights or what is carried.
        let multiples = steps.is_some() && self.sums_multiples();
        let middle = offset || biased || multiples;
        let carries = steps.is_some() && self.op.carries();
        let lists = 1 + usize::from(middle) + usize::from(integers && steps.is_none() || carries);
        let rows_tops: Vec<Value> = (0..count)
            .map(|row| {
                let top = self.read(b, stat, first, row, 1);
                b.splat(top, lanes)
            })
            .collect();
        let width = if rounds || steps.is_some() { self.chunk() } else { lanes as usize };
        let state = b.for_loop(zero, blocks, width as i64, &vec![none; lists * count], |b, t, state| {
            let mut state = state.to_vec();
            let index = b.add(line, t);
            self.foresee_between(b, here, t, width);
            let mut numbers = vec![Vec::new(); count];
            for vector in 0..width / lanes as usize {
                let t = super::plus(b, t, vector * lanes as usize);
                let (scale, offsets) = self.of_values(b, (here, t), (steps.is_none(), offset));
                for row in 0..count {
                    let place = row * tile + vector * lanes as usize;
                    let s = self.read(b, self.arrays.s, index, place, lanes);
                    let x = b.bin(BinOp::Sub, s, rows_tops[row]);
                    let p = codes::power_of_two_here(b, x);
                    state[row] = b.add(state[row], p);
                    let mut weight = p;
                    match (self.arrays.p, scale, &steps) {
                        (_, Some(scale), None) if rounds => {
                            let scaled = b.mul(p, scale);
                            let scaled = if kind.is_static() { scaled } else { self.where_seen(b, p, scaled) };
                            numbers[row].push(codes::nearest_bf16(b, scaled));
                        }
                        (_, _, Some(inverses)) => {
                            let carried = carries.then(|| &mut state[(lists - 1) * count + row]);
                            let (number, multiple) = self.rounded(b, (p, inverses[row]), carried, multiples);
                            numbers[row].push(number);
                            if let Some(multiple) = multiple {
                                state[count + row] = b.add(state[count + row], multiple);
                            }
                        }
                        (Some(memory), Some(scale), None) => {
                            let scaled = b.mul(p, scale);
                            weight = self.where_seen(b, p, scaled);
                            self.write(b, memory, index, place, weight);
                        }
                        _ => self.write(b, self.arrays.s, index, place, p),
                    }
                    if let Some(offsets) = offsets {
                        let offsets = self.where_seen(b, p, offsets);
                        state[count + row] = b.fma(p, offsets, state[count + row]);
                    } else if biased {
                        state[count + row] = b.add(state[count + row], weight);
                    }
                    if integers && steps.is_none() {
                        let at = (lists - 1) * count + row;
                        let size = b.un(UnOp::Abs, weight);
                        state[at] = larger(b, state[at], size);
                    }
                }
            }
            if let Some(factors) = &self.arrays.p_factors
                && (rounds || steps.is_some())
            {
                self.write_factors(b, factors, (first, t), &numbers);
            }
            state
        });
        let sum = together(b, &state[..count], &Builder::add);
        let earlier = self.read(b, stat, first, 2 * padded, ROWS as u8);
        let total = b.fma(earlier, correction, sum);
        self.write(b, stat, first, 2 * padded, total);
        let mut offsets = middle.then(|| together(b, &state[count..2 * count], &Builder::add));
        if multiples {
            // What the multiples stand for.
            offsets = offsets.zip(self.arrays.steps).map(|(sum, steps)| {
                let step = self.read(b, steps, first, padded, ROWS as u8);
                b.mul(sum, step)
            });
        }
        if integers && steps.is_none() {
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

    /// What is made of a token's scale or offset, 0 where the token weighs nothing: what lies in the place of an unseen one's is
    /// anything.
    fn where_seen(&self, b: &mut Builder, weight: Value, value: Value) -> Value {
        let none = b.f32(self.lanes, 0.0);
        let some = b.cmp(CmpOp::Lt, none, weight);
        b.select(some, value, none)
    }

    /// Whether sums of multiples are asked for: they stand for the bias of codes.
    fn sums_multiples(&self) -> bool {
        let kind = self.op.layout.v.codes;
        !kind.asymmetric && kind.bias() != 0.0
    }

    /// The inverse steps of the weights of `count` rows from `first` on, where one scale serves all values: the largest weight
    /// of the tile is `2^(top - now)`. The steps of weights times scale are stored.
    fn known_steps(
        &self,
        b: &mut Builder,
        (first, count): (Value, usize),
        top: Value,
        now: Value,
    ) -> Option<Vec<Value>> {
        let part = &self.op.layout.v;
        let (Some(factors), Some(steps)) = (&self.arrays.p_factors, self.arrays.steps) else { return None };
        let most = factors.packing.steps()?;
        if !part.codes.is_static() {
            return None;
        }
        let difference = b.bin(BinOp::Sub, top, now);
        let largest = codes::power_of_two_here(b, difference);
        let (step, inverse) = step_of(b, most, largest);
        let (scale, _) = self.scales(Side::V).given(b, part, self.head);
        let scale = b.splat(scale, ROWS as u8);
        let step = b.mul(step, scale);
        self.write(b, steps, first, self.padded, step);
        Some(self.of_rows(b, inverse, count))
    }

    /// Each of the first `count` lanes of the state of four rows, in all lanes.
    fn of_rows(&self, b: &mut Builder, state: Value, count: usize) -> Vec<Value> {
        (0..count)
            .map(|row| {
                let value = b.extract(state, row as u8);
                b.splat(value, self.lanes)
            })
            .collect()
    }

    /// Weights as multiples of a step: whole numbers in the low bits, and as floats where they are `summed`. What is lost goes
    /// to what is `carried` to the next ones of the same lanes, where something is.
    fn rounded(
        &self,
        b: &mut Builder,
        (weight, inverse): (Value, Value),
        carried: Option<&mut Value>,
        summed: bool,
    ) -> (Value, Option<Value>) {
        let shift = b.f32(self.lanes, SHIFT);
        let (moved, multiple) = match carried {
            None => {
                let moved = b.fma(weight, inverse, shift);
                (moved, summed.then(|| b.bin(BinOp::Sub, moved, shift)))
            }
            Some(carried) => {
                let exact = b.fma(weight, inverse, *carried);
                let moved = b.add(exact, shift);
                let multiple = b.bin(BinOp::Sub, moved, shift);
                *carried = b.bin(BinOp::Sub, exact, multiple);
                (moved, summed.then_some(multiple))
            }
        };
        (b.bitcast(moved, b.ty(moved).with_scalar(Scalar::I32)), multiple)
    }

    /// Writes the multiples of a chunk of tokens from `t` on, for rows from `first` on.
    fn write_factors(&self, b: &mut Builder, factors: &Factors, (first, t): (Value, Value), numbers: &[Vec<Value>]) {
        let own = super::times(b, first, factors.packing.words(1));
        let further = factors.packing.word_of(b, t);
        let place = b.add(own, further);
        for (row, numbers) in numbers.iter().enumerate() {
            let word = factors.packing.joined(b, numbers);
            self.write(b, factors.memory, place, row * factors.packing.words(1), word);
        }
    }

    /// Scales and offsets of a vector of tokens, where tokens have some and they are asked for.
    fn of_values(
        &self,
        b: &mut Builder,
        (tile, t): (Tile, Value),
        (scale, offset): (bool, bool),
    ) -> (Option<Value>, Option<Value>) {
        let part = &self.op.layout.v;
        let scale = scale && scales_weights(&part.codes);
        if !scale && !offset {
            return (None, None);
        }
        let (base, within) = self.page_of(b, tile, t);
        let scale = scale.then(|| self.value_scale(b, base, within, self.lanes));
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
        let (lanes, most) = (self.lanes, factors.packing.steps()?);
        let top = together(b, tops, &larger);
        let (step, inverse) = step_of(b, most, top);
        self.write(b, steps, first, self.padded, step);
        let inverses = self.of_rows(b, inverse, tops.len());
        let (zero, none) = (int(b, 0), b.f32(lanes, 0.0));
        let chunk = self.chunk();
        let (summed, carries) = (self.sums_multiples(), self.op.carries());
        // Sums, then what is carried.
        let held = (usize::from(summed) + usize::from(carries)) * tops.len();
        let sums = b.for_loop(zero, blocks, chunk as i64, &vec![none; held], |b, t, sums| {
            let mut sums = sums.to_vec();
            let index = b.add(line, t);
            let numbers: Vec<Vec<Value>> = inverses
                .iter()
                .enumerate()
                .map(|(row, &inverse)| {
                    (0..chunk / lanes as usize)
                        .map(|v| {
                            let x = self.read(b, weights, index, row * self.tile + v * lanes as usize, lanes);
                            let carried = carries.then(|| &mut sums[held - tops.len() + row]);
                            let (number, multiple) = self.rounded(b, (x, inverse), carried, summed);
                            if let Some(multiple) = multiple {
                                sums[row] = b.add(sums[row], multiple);
                            }
                            number
                        })
                        .collect()
                })
                .collect();
            self.write_factors(b, factors, (first, t), &numbers);
            sums
        });
        summed.then(|| {
            let sum = together(b, &sums[..tops.len()], &Builder::add);
            b.mul(sum, step)
        })
    }
}

/// The steps of which the largest weights of four rows are `most`, and their inverses.
fn step_of(b: &mut Builder, most: i32, largest: Value) -> (Value, Value) {
    let floor = b.f32(ROWS as u8, LEAST);
    let largest = larger(b, floor, largest);
    let most = b.f32(ROWS as u8, most as f32);
    (b.bin(BinOp::Div, largest, most), b.bin(BinOp::Div, most, largest))
}
