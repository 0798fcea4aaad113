//! Softmax of a tile where one thread has vectors: scores become weights, four rows at a time.
//!
//! Reads scores `[row, tile]`; makes weights in the form in which values are weighted (numbers, or multiples of a step), the
//! largest scores, corrections, sums and sums of offsets. The state of four rows lies in the lanes of one vector, so that
//! what happens once a tile is done for all four at once: rows of lanes are reduced to it by halves, like a transposition.
//! Always holds: a NaN among scores is a NaN among weights, though the largest score passes it over.

use super::super::{codes, int};
use super::rounded::Short;
use super::values::{grouped, has_offsets, scales_weights};
use super::{Kernel, LOWEST, Tile};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CmpOp, UnOp, Value};
use crate::op::kv::LEAST;

/// Rows whose state is a vector.
pub(super) const ROWS: usize = 4;

/// The larger of two numbers where order matters for NaNs alone: a new one that is NaN is passed over.
fn larger(b: &mut Builder, old: Value, new: Value) -> Value {
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

    /// Weights of `blocks` tokens from `start` on, and the state after them.
    pub(super) fn softmax(&self, b: &mut Builder, tile: Tile, blocks: Value) {
        self.four_rows(b, &|b, first, count| self.softmax_of(b, (tile, blocks), first, count));
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
        self.write(b, stat, first, 0, now);

        let integers = self.has_steps(Side::V);
        let rounds = self.arrays.p_factors.is_some() && !integers;
        let offset = kind.asymmetric && !grouped(&kind);
        let biased = !integers && !kind.asymmetric && kind.bias() != 0.0 && !grouped(&kind);
        // One scale for all tokens: the largest weight of the tile is that of its largest score, so that weights become multiples
        // of a step as they are made. They are taken beside that score, not the largest so far: then neither the step nor its
        // inverse waits for anything.
        let most = self.known_steps();
        let inverse = most.map(|most| b.f32(lanes, most));
        let rows_tops: Vec<Value> = match most {
            Some(_) => self.of_rows(b, top, count),
            None => (0..count)
                .map(|row| {
                    let top = self.read(b, stat, first, row, 1);
                    b.splat(top, lanes)
                })
                .collect(),
        };
        let none = b.f32(lanes, 0.0);
        // Sums, then sums of offsets, then the largest weights or what is carried.
        let middle = offset || biased;
        let carries = most.is_some() && self.op.carries();
        // Weights become multiples of a step once the largest is known, or factors as they are made.
        let (later, packs) = (integers && most.is_none(), rounds || most.is_some());
        let lists = 1 + usize::from(middle) + usize::from(later || carries);
        let power = if rounds || carries { codes::power_of_two_about } else { codes::power_of_two_here };
        let width = if packs { self.chunk() } else { lanes as usize };
        let state = b.for_loop(zero, blocks, width as i64, &vec![none; lists * count], |b, t, state| {
            let mut state = state.to_vec();
            let index = b.add(line, t);
            self.foresee_between(b, here, t, width);
            let mut numbers = vec![Vec::new(); count];
            for vector in 0..width / lanes as usize {
                let t = super::plus(b, t, vector * lanes as usize);
                let (scale, offsets) = self.of_values(b, (here, t), (most.is_none(), offset));
                for row in 0..count {
                    let place = row * tile + vector * lanes as usize;
                    let s = self.read(b, self.arrays.s, index, place, lanes);
                    let x = b.bin(BinOp::Sub, s, rows_tops[row]);
                    let p = power(b, x);
                    state[row] = b.add(state[row], p);
                    let mut weight = p;
                    match (self.arrays.p, scale, inverse) {
                        (_, Some(scale), None) if rounds => {
                            let scaled = b.mul(p, scale);
                            let scaled = if kind.is_static() { scaled } else { self.where_seen(b, p, scaled) };
                            numbers[row].push(codes::nearest_bf16(b, scaled));
                        }
                        (_, _, Some(inverse)) => {
                            let carried = carries.then(|| &mut state[(lists - 1) * count + row]);
                            numbers[row].push(self.rounded(b, (p, inverse), carried, false).0);
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
                    if later {
                        let at = (lists - 1) * count + row;
                        let size = b.un(UnOp::Abs, weight);
                        state[at] = larger(b, state[at], size);
                    }
                }
            }
            if let Some(factors) = self.arrays.p_factors.as_ref().filter(|_| packs) {
                self.write_factors(b, factors, (first, t), &numbers);
            }
            state
        });
        let difference = b.bin(BinOp::Sub, before, now);
        let correction = codes::power_of_two_here(b, difference);
        self.write(b, stat, first, padded, correction);
        let mut sum = together(b, &state[..count], &Builder::add);
        let mut offsets = middle.then(|| together(b, &state[count..2 * count], &Builder::add));
        let last = &state[(lists - 1) * count..];
        if let Some(most) = most {
            let difference = b.bin(BinOp::Sub, top, now);
            let share = codes::power_of_two_here(b, difference);
            let step = self.steps_of_weights(b, first, share, most);
            if carries && self.sums_multiples() {
                // All multiples are what they were made of but for what is left to carry.
                let left = together(b, last, &Builder::add);
                let all = self.times_constant(b, sum, most);
                let multiples = b.bin(BinOp::Sub, all, left);
                offsets = Some(b.mul(multiples, step));
            } else {
                offsets = offsets.map(|offsets| b.mul(offsets, share));
            }
            sum = b.mul(sum, share);
        } else if let (Some(factors), Some(from)) = (self.arrays.p_factors, self.arrays.p)
            && let Some(most) = factors.packing.steps()
        {
            let (carries, summed) = (self.op.carries(), self.sums_multiples());
            let short = Short { side: Side::V, factors, most, from, carries, summed };
            let top = together(b, last, &larger);
            let floor = b.f32(ROWS as u8, LEAST);
            let top = larger(b, floor, top);
            let (sum, step) = self.round_rows(b, &short, (line, first, blocks), (top, count));
            offsets = offsets.or(sum.map(|sum| b.mul(sum, step)));
        }
        let earlier = self.read(b, stat, first, 2 * padded, ROWS as u8);
        let total = b.fma(earlier, correction, sum);
        self.write(b, stat, first, 2 * padded, total);
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

    /// The largest multiple of the step of weights that become such as they are made: where one scale serves all values.
    fn known_steps(&self) -> Option<f32> {
        let factors = self.arrays.p_factors.as_ref()?;
        let most = factors.packing.steps()?;
        self.op.layout.v.codes.is_static().then_some(most as f32)
    }

    /// Stores the steps of weights times scale of four rows from `first` on, whose largest weight is `largest`.
    fn steps_of_weights(&self, b: &mut Builder, first: Value, largest: Value, most: f32) -> Value {
        let (scale, _) = self.scales(Side::V).given(b, &self.op.layout.v, self.head);
        let scale = self.times_constant(b, scale, 1.0 / most);
        let scale = b.splat(scale, ROWS as u8);
        let step = b.mul(largest, scale);
        if let Some(steps) = self.arrays.steps {
            self.write(b, steps, first, self.padded, step);
        }
        step
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
}
