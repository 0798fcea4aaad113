//! Queries as scores take them: the factors of keys, with a step for each group of channels that share a scale, and what offsets
//! and the bias of codes add to scores.
//!
//! Reads queries `[row, channel]`, or those of a page, times its scales. Always holds: where queries are multiples of a step, sums
//! are those of the multiples, so that a bias is taken off exactly.

use super::super::super::memory::{split, times};
use super::super::{codes, int, plus};
use super::factors::Factors;
use super::pace::Step;
use super::softmax::together;
use super::state::Slot;
use super::{Kernel, ROWS, Tile, across};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, UnOp, Value};
use crate::op::kv::LEAST;

/// What is done for the group of a row: with its first number, and how many it has; with the numbers of group and row.
type OfGroup<'a> = dyn Fn(&mut Builder, (Value, usize), (Value, Value)) + 'a;

impl Kernel<'_> {
    /// The factors of keys from queries, and sums of queries where scores ask for them.
    pub(super) fn query_factors(&self, b: &mut Builder, from: Slot) {
        match (self.query_steps(), self.arrays.q_factors) {
            (Some((factors, most)), _) if self.alone() => return self.round_queries(b, (factors, most)),
            (Some((factors, _)), _) => return self.round_groups(b, &factors, from),
            (None, Some(factors)) => {
                self.meet(b);
                let (end, k_dim) = (self.rows_value(b), self.op.layout.k.head_dim);
                let count = int(b, k_dim);
                self.each(b, end, 1, &mut |b, row| {
                    let line = times(b, row, k_dim);
                    self.pack(b, &factors, from, (line, count));
                });
            }
            (None, None) => {}
        }
        if !self.sums_queries() {
            return;
        }
        self.meet(b);
        self.each_group(b, &|b, (line, size), (group, row)| {
            let stop = plus(b, line, size);
            let none = b.f32(self.lanes, 0.0);
            let sum = b.for_loop(line, stop, i64::from(self.lanes), &[none], |b, c, sum| {
                let x = self.read(b, from, c, 0, self.lanes);
                vec![b.add(sum[0], x)]
            });
            let sum = across(b, BinOp::Add, sum[0]);
            let bias = if self.folds_keys() { -self.op.layout.k.codes.bias() } else { 1.0 };
            let sum = self.times_constant(b, sum, bias);
            self.write_of_group(b, self.arrays.q_sum, (group, row), sum);
        });
    }

    /// The factors of keys, where they are multiples of a step, and the largest multiple.
    pub(super) fn query_steps(&self) -> Option<(Factors, i32)> {
        let factors = self.arrays.q_factors?;
        Some((factors, factors.packing.steps()?))
    }

    /// Whether sums of queries are asked for: those of a page have its offsets already.
    fn sums_queries(&self) -> bool {
        self.arrays.q_sum.is_some() && !(self.folds_keys() && self.op.layout.k.codes.asymmetric)
    }

    /// Does something for each group of each row.
    fn each_group(&self, b: &mut Builder, body: &OfGroup<'_>) {
        let part = &self.op.layout.k;
        let (groups, size) = (part.codes.groups(part.head_dim), part.codes.group(part.head_dim));
        let end = int(b, self.rows * groups);
        self.each(b, end, 1, &mut |b, i| {
            let line = times(b, i, size);
            let (row, group) = split(b, i, groups);
            body(b, (line, size), (group, row));
        });
    }

    /// Keeps something of a group's rows from this one on, in `[group, padded]`, where it is asked for.
    fn write_of_group(&self, b: &mut Builder, slot: Option<Slot>, (group, row): (Value, Value), x: Value) {
        let Some(slot) = slot else { return };
        let index = times(b, group, self.padded);
        let index = b.add(index, row);
        self.write(b, slot, index, 0, x);
    }

    /// What is kept of the sum of a group's multiples: what their bias comes to, exactly, or the sum of the rounded queries.
    fn kept(&self, b: &mut Builder, sum: Value, step: Value) -> Value {
        let bias = self.op.layout.k.codes.bias();
        if bias == 0.0 {
            return b.mul(sum, step);
        }
        let sum = self.times_constant(b, sum, -bias);
        let whole = b.cast(CastOp::FloatToIntS, sum, Scalar::I32);
        b.bitcast(whole, b.ty(sum))
    }

    /// Queries become multiples of steps where threads share the work.
    fn round_groups(&self, b: &mut Builder, factors: &Factors, from: Slot) {
        self.meet(b);
        self.each_group(b, &|b, (line, size), (group, row)| {
            let count = int(b, size);
            let (sum, step) = self.quantize(b, &factors.packing, from, (line, count));
            self.pack(b, factors, from, (line, count));
            self.write_of_group(b, self.arrays.q_steps, (group, row), step);
            if self.sums_queries() {
                let sum = self.kept(b, sum, step);
                self.write_of_group(b, self.arrays.q_sum, (group, row), sum);
            }
        });
    }

    /// The same where one thread has vectors, four rows at a time. A NaN among queries is one among the steps.
    fn round_queries(&self, b: &mut Builder, (factors, most): (Factors, i32)) {
        let part = &self.op.layout.k;
        let (zero, groups) = (int(b, 0), part.codes.groups(part.head_dim));
        let round_group = |b: &mut Builder, group: Value| {
            self.four_rows(b, &|b, first, count| {
                let line = self.line_of(b, first, group);
                let none = b.f32(self.lanes, 0.0);
                let end = int(b, part.codes.group(part.head_dim));
                let tops = b.for_loop(zero, end, i64::from(self.lanes), &vec![none; count], |b, c, tops| {
                    let index = b.add(line, c);
                    let of_row = |(row, &top): (usize, &Value)| {
                        let x = self.read(b, self.arrays.q, index, row * part.head_dim, self.lanes);
                        let size = b.un(UnOp::Abs, x);
                        b.bin(BinOp::Max, top, size)
                    };
                    tops.iter().enumerate().map(of_row).collect()
                });
                let of_rows = (self.arrays.q, self.sums_queries());
                let (sum, step) = self.round_rows(b, (&factors, most), of_rows, &tops, (line, count));
                self.write_of_group(b, self.arrays.q_steps, (group, first), step);
                if let Some(sum) = sum {
                    let sum = self.kept(b, sum, step);
                    self.write_of_group(b, self.arrays.q_sum, (group, first), sum);
                }
            });
        };
        if groups == 1 {
            return round_group(b, zero);
        }
        let end = int(b, groups);
        b.for_loop(zero, end, 1, &[], |b, group, _| {
            round_group(b, group);
            Vec::new()
        });
    }

    /// The first number of a group of a row, in `[row, channel]`.
    fn line_of(&self, b: &mut Builder, row: Value, group: Value) -> Value {
        let part = &self.op.layout.k;
        let line = times(b, row, part.head_dim);
        let further = times(b, group, part.codes.group(part.head_dim));
        b.add(line, further)
    }

    /// Numbers of a group of `count` rows, of the first one from `line` on, become multiples of steps of which the largest
    /// numbers, one to each of `tops`, are the most that fit. Returns the sums of the multiples, where they are asked for, and
    /// the steps.
    fn round_rows(
        &self,
        b: &mut Builder,
        (factors, most): (&Factors, i32),
        (from, summed): (Slot, bool),
        tops: &[Value],
        (line, count): (Value, usize),
    ) -> (Option<Value>, Value) {
        let (part, lanes) = (&self.op.layout.k, self.lanes as usize);
        let larger = |b: &mut Builder, x, y| b.bin(BinOp::Max, x, y);
        let top = together(b, tops, &larger);
        let floor = b.f32(ROWS as u8, LEAST);
        let top = larger(b, top, floor);
        let most = b.f32(ROWS as u8, most as f32);
        let (step, inverse) = (b.bin(BinOp::Div, top, most), b.bin(BinOp::Div, most, top));
        let inverses = self.of_rows(b, inverse, count);
        let (zero, end, none) = (int(b, 0), int(b, part.codes.group(part.head_dim)), b.f32(self.lanes, 0.0));
        let sums = if summed { vec![none; count] } else { Vec::new() };
        let chunk = self.chunk();
        let sums = b.for_loop(zero, end, chunk as i64, &sums, |b, c, sums| {
            let mut sums = sums.to_vec();
            let index = b.add(line, c);
            let mut numbers = vec![Vec::new(); count];
            for (row, &inverse) in inverses.iter().enumerate() {
                for vector in (0..chunk).step_by(lanes) {
                    let x = self.read(b, from, index, row * part.head_dim + vector, self.lanes);
                    let (number, multiple) = self.rounded(b, (x, inverse), None, summed);
                    if let Some(multiple) = multiple {
                        sums[row] = b.add(sums[row], multiple);
                    }
                    numbers[row].push(number);
                }
            }
            self.write_factors(b, factors, index, &numbers);
            sums
        });
        (summed.then(|| together(b, &sums, &Builder::add)), step)
    }

    /// The queries of the page at `base`, with their factors, and what offsets add to every score, where one thread has vectors: of
    /// `count` rows from `first` on.
    pub(super) fn page_rows(
        &self,
        b: &mut Builder,
        (tile, base): (Tile, Value),
        (factors, most): (&Factors, i32),
        (first, count): (Value, usize),
    ) {
        let Some(memory) = self.arrays.q_page else { return };
        let part = &self.op.layout.k;
        let kind = part.codes;
        let centre = self.centre();
        let (zero, end, none) = (int(b, 0), int(b, part.head_dim), b.f32(self.lanes, 0.0));
        let line = times(b, first, part.head_dim);
        // The largest numbers, then what offsets add.
        let held = count * (1 + usize::from(kind.asymmetric));
        let state = b.for_loop(zero, end, i64::from(self.lanes), &vec![none; held], |b, c, state| {
            let mut state = state.to_vec();
            self.foresee_in(b, tile, Step::Fold, (c, self.lanes as usize));
            let place = times(b, c, 2);
            let place = b.add(base, place);
            let bf16 = |b: &mut Builder, section| codes::bf16(b, self.params.get("pool"), place, section, self.lanes);
            let scale = bf16(b, part.scale);
            let offset = kind.asymmetric.then(|| {
                let offset = bf16(b, part.offset);
                centre.map_or(offset, |centre| {
                    let centre = b.f32(self.lanes, centre);
                    b.fma(scale, centre, offset)
                })
            });
            let index = b.add(line, c);
            for row in 0..count {
                let x = self.read(b, self.arrays.q, index, row * part.head_dim, self.lanes);
                let y = b.mul(x, scale);
                self.write(b, memory, index, row * part.head_dim, y);
                let size = b.un(UnOp::Abs, y);
                state[row] = b.bin(BinOp::Max, state[row], size);
                if let Some(offset) = offset {
                    state[count + row] = b.fma(x, offset, state[count + row]);
                }
            }
            state
        });
        let (tops, offsets) = state.split_at(count);
        let of_rows = (memory, self.sums_queries() || centre.is_some());
        let (sum, step) = self.round_rows(b, (factors, most), of_rows, tops, (line, count));
        self.write_of_group(b, self.arrays.q_steps, (zero, first), step);
        let kept = match (kind.asymmetric, sum) {
            (false, None) => return,
            (false, Some(sum)) => self.kept(b, sum, step),
            (true, sum) => {
                let offsets = together(b, offsets, &Builder::add);
                sum.zip(centre).map_or(offsets, |(sum, centre)| {
                    let rounded = b.mul(sum, step);
                    let rounded = self.times_constant(b, rounded, centre);
                    b.bin(BinOp::Sub, offsets, rounded)
                })
            }
        };
        self.write_of_group(b, self.arrays.q_sum, (zero, first), kept);
    }

    /// The code that codes of a page are counted from, where rounding its queries loses something that shows: codes without a
    /// sign are above 0 on the whole, and what is lost with each query would add up. Steps of 16 bits lose nothing.
    fn centre(&self) -> Option<f32> {
        let kind = self.op.layout.k.codes;
        let short = self.op.steps(Side::K).is_some_and(|steps| steps < 128);
        (self.folds_keys() && kind.asymmetric && short).then(|| kind.top() / 2.0)
    }

    /// Number `row` of a group in all lanes, of what is kept `[group, row]`; of the only group where none is named.
    fn of_group(&self, b: &mut Builder, slot: Slot, (group, row): (Option<Value>, usize)) -> Value {
        let index = match group {
            Some(group) => times(b, group, self.padded),
            None => int(b, 0),
        };
        let x = self.read(b, slot, index, row, 1);
        b.splat(x, self.lanes)
    }

    /// The sum of a row's queries in a group, where scores ask for it: in its own units, or times the offsets of a page.
    pub(super) fn query_sum(&self, b: &mut Builder, group: Option<Value>, row: usize) -> Option<Value> {
        let memory = self.arrays.q_sum.filter(|_| !self.starts_biased())?;
        Some(self.of_group(b, memory, (group, row)))
    }

    /// The step of a row's queries in a group, where they have some.
    pub(super) fn query_step(&self, b: &mut Builder, group: Option<Value>, row: usize) -> Option<Value> {
        let memory = self.arrays.q_steps?;
        Some(self.of_group(b, memory, (group, row)))
    }

    /// Whether sums of integers start from what the bias of codes takes off.
    fn starts_biased(&self) -> bool {
        self.arrays.q_steps.is_some() && self.op.layout.k.codes.bias() != 0.0
    }

    /// What the sums of a row's products with keys of a group start from, where that is not nothing.
    pub(super) fn query_start(&self, b: &mut Builder, group: Option<Value>, row: usize) -> Option<Value> {
        let memory = self.arrays.q_sum.filter(|_| self.starts_biased())?;
        let start = self.of_group(b, memory, (group, row));
        Some(b.bitcast(start, Type::vector(Scalar::I32, self.lanes)))
    }
}
