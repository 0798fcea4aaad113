//! Queries and weights become multiples of a step, four rows at a time, where one thread has vectors.
//!
//! Reads rows of numbers; stores the steps of rows and packs the multiples as factors of codes. Always holds: the largest number of
//! a row is as many steps as its factors have room for.

use super::super::{codes, int};
use super::Kernel;
use super::factors::Factors;
use super::softmax::{ROWS, together};
use super::state::Slot;
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, Scalar, UnOp, Value};
use crate::op::kv::LEAST;

/// Numbers that become multiples of a step.
pub(super) struct Short {
    pub side: Side,
    pub factors: Factors,
    /// The largest multiple.
    pub most: i32,
    /// `[row, number]`.
    pub from: Slot,
    /// Whether what is lost goes to the next numbers of the same lanes.
    pub carries: bool,
    /// Whether the sums of multiples are asked for.
    pub summed: bool,
}

impl Kernel<'_> {
    /// Whether queries that have steps become multiples of them here: their sums are those of whole rows.
    pub(super) fn rounds_queries(&self) -> bool {
        let part = &self.op.layout.k;
        self.alone() && part.codes.groups(part.head_dim) == 1
    }

    /// Queries become multiples of a step, with sums where those are asked for. A NaN among them is one among the steps.
    pub(super) fn round_queries(&self, b: &mut Builder, factors: Factors, most: i32) {
        let (from, summed) = (self.arrays.q, self.arrays.q_sum.is_some());
        let short = Short { side: Side::K, factors, most, from, carries: false, summed };
        let k_dim = self.op.layout.k.head_dim;
        let larger = |b: &mut Builder, x, y| b.bin(BinOp::Max, x, y);
        self.four_rows(b, &|b, first, count| {
            let line = super::times(b, first, k_dim);
            let (zero, end, none) = (int(b, 0), int(b, k_dim), b.f32(self.lanes, 0.0));
            let tops = b.for_loop(zero, end, i64::from(self.lanes), &vec![none; count], |b, c, tops| {
                let index = b.add(line, c);
                let of_row = |(row, &top): (usize, &Value)| {
                    let x = self.read(b, short.from, index, row * k_dim, self.lanes);
                    let size = b.un(UnOp::Abs, x);
                    larger(b, top, size)
                };
                tops.iter().enumerate().map(of_row).collect()
            });
            let top = together(b, &tops, &larger);
            let floor = b.f32(ROWS as u8, LEAST);
            let top = larger(b, top, floor);
            let (sum, _) = self.round_rows(b, &short, (line, first, end), (top, count));
            if let (Some(sum), Some(memory)) = (sum, self.arrays.q_sum) {
                self.write(b, memory, first, 0, sum);
            }
        });
    }

    /// Does something for all rows, four or fewer at a time: from the first of them on, and how many.
    pub(super) fn four_rows(&self, b: &mut Builder, body: &dyn Fn(&mut Builder, Value, usize)) {
        let (whole, rest) = (self.rows / ROWS * ROWS, self.rows % ROWS);
        if whole > 0 {
            let (zero, end) = (int(b, 0), int(b, whole));
            b.for_loop(zero, end, ROWS as i64, &[], |b, first, _| {
                body(b, first, ROWS);
                Vec::new()
            });
        }
        if rest > 0 {
            let first = int(b, whole);
            body(b, first, rest);
        }
    }

    /// Numbers before `end` of `count` rows from `first` on, whose own start at `line`, become multiples of steps of which the
    /// `largest` (lanes are rows) are the most that fit. Returns the sums of the multiples, where they are asked for, and the steps.
    pub(super) fn round_rows(
        &self,
        b: &mut Builder,
        short: &Short,
        (line, first, end): (Value, Value, Value),
        (largest, count): (Value, usize),
    ) -> (Option<Value>, Value) {
        let &Short { side, ref factors, most, from, carries, summed } = short;
        let most = b.f32(ROWS as u8, most as f32);
        let (step, inverse) = (b.bin(BinOp::Div, largest, most), b.bin(BinOp::Div, most, largest));
        if let Some(steps) = self.arrays.steps {
            self.write(b, steps, first, if side == Side::K { 0 } else { self.padded }, step);
        }
        let inverses = self.of_rows(b, inverse, count);
        let (zero, none, lanes) = (int(b, 0), b.f32(self.lanes, 0.0), self.lanes as usize);
        let chunk = self.chunk();
        // Sums, then what is carried.
        let held = (usize::from(summed) + usize::from(carries)) * count;
        let sums = b.for_loop(zero, end, chunk as i64, &vec![none; held], |b, t, sums| {
            let mut sums = sums.to_vec();
            let index = b.add(line, t);
            let numbers: Vec<Vec<Value>> = inverses
                .iter()
                .enumerate()
                .map(|(row, &inverse)| {
                    (0..chunk / lanes)
                        .map(|v| {
                            let x = self.read(b, from, index, row * factors.packing.row + v * lanes, self.lanes);
                            let carried = carries.then(|| &mut sums[held - count + row]);
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
        (summed.then(|| together(b, &sums[..count], &Builder::add)), step)
    }

    /// Each of the first `count` lanes of the state of four rows, in all lanes.
    pub(super) fn of_rows(&self, b: &mut Builder, state: Value, count: usize) -> Vec<Value> {
        (0..count)
            .map(|row| {
                let value = b.extract(state, row as u8);
                b.splat(value, self.lanes)
            })
            .collect()
    }

    /// Numbers as multiples of a step: whole numbers in the low bits, and as floats where they are `summed`. What is lost goes
    /// to what is `carried` to the next ones of the same lanes, where something is.
    pub(super) fn rounded(
        &self,
        b: &mut Builder,
        (number, inverse): (Value, Value),
        carried: Option<&mut Value>,
        summed: bool,
    ) -> (Value, Option<Value>) {
        let shift = b.f32(self.lanes, codes::SHIFT);
        let (moved, multiple) = match carried {
            None => {
                let moved = b.fma(number, inverse, shift);
                (moved, summed.then(|| b.bin(BinOp::Sub, moved, shift)))
            }
            Some(carried) => {
                let exact = b.fma(number, inverse, *carried);
                let moved = b.add(exact, shift);
                let multiple = b.bin(BinOp::Sub, moved, shift);
                *carried = b.bin(BinOp::Sub, exact, multiple);
                (moved, summed.then_some(multiple))
            }
        };
        (b.bitcast(moved, b.ty(moved).with_scalar(Scalar::I32)), multiple)
    }

    /// Writes the factors of a chunk of numbers from `t` on, for rows from `first` on.
    pub(super) fn write_factors(
        &self,
        b: &mut Builder,
        factors: &Factors,
        (first, t): (Value, Value),
        numbers: &[Vec<Value>],
    ) {
        let own = super::times(b, first, factors.packing.words(1));
        let further = factors.packing.word_of(b, t);
        let place = b.add(own, further);
        for (row, numbers) in numbers.iter().enumerate() {
            let word = factors.packing.joined(b, numbers);
            self.write(b, factors.memory, place, row * factors.packing.words(1), word);
        }
    }
}
