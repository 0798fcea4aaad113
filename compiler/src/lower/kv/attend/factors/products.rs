//! What a kernel does with factors: makes them, and multiplies codes by them.

use super::super::place::Hint;
use super::super::state::Slot;
use super::super::{Kernel, STEP, Tile, across, chained, unchained};
use super::{Factors, Packing};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, UnOp, Value};
use crate::lower::kv::codes::{self, Opened};
use crate::lower::kv::{int, plus};
use crate::lower::memory::{at, times};
use crate::op::kv::LEAST;

impl Kernel<'_> {
    /// Numbers that are packed at once: whole units of either code.
    pub(in super::super) fn chunk(&self) -> usize {
        (self.lanes as usize).max(8)
    }

    /// The numbers `[line, line + count)` of a shared array become multiples of a step; `count` is a multiple of 16. Returns the
    /// sum of the multiples, and the step.
    pub(in super::super) fn quantize(
        &self,
        b: &mut Builder,
        packing: &Packing,
        from: Slot,
        (line, count): (Value, Value),
    ) -> (Value, Value) {
        let wide = self.wide();
        let most = packing.steps.unwrap_or(1);
        let (zero, none) = (int(b, 0), b.f32(wide, 0.0));
        let top = b.for_loop(zero, count, wide as i64, &[none], |b, i, top| {
            let index = b.add(line, i);
            let x = self.read(b, from, index, 0, wide);
            let x = b.un(UnOp::Abs, x);
            vec![b.bin(BinOp::Max, top[0], x)]
        });
        let top = across(b, BinOp::Max, top[0]);
        let floor = b.f32(1, LEAST);
        let top = b.bin(BinOp::Max, top, floor);
        let most = b.f32(1, most as f32);
        let step = b.bin(BinOp::Div, top, most);
        let inverse = b.bin(BinOp::Div, most, top);
        let inverse = b.splat(inverse, wide);
        let sum = b.for_loop(zero, count, wide as i64, &[none], |b, i, sum| {
            let index = b.add(line, i);
            let x = self.read(b, from, index, 0, wide);
            let x = b.mul(x, inverse);
            let n = b.un(UnOp::Nearest, x);
            self.write(b, from, index, 0, n);
            vec![b.add(sum[0], n)]
        });
        (across(b, BinOp::Add, sum[0]), step)
    }

    /// Packs the multiples `[line, line + count)`.
    pub(in super::super) fn pack(&self, b: &mut Builder, factors: &Factors, from: Slot, (line, count): (Value, Value)) {
        let packing = factors.packing;
        let (chunk, lanes) = (self.chunk(), self.lanes as usize);
        let zero = int(b, 0);
        b.for_loop(zero, count, chunk as i64, &[], |b, i, _| {
            let index = b.add(line, i);
            let place = packing.word_of(b, index);
            if lanes >= 8 || lanes >= 4 && packing.bits == 16 {
                let numbers: Vec<Value> = (0..chunk / lanes)
                    .map(|v| {
                        let x = self.read(b, from, index, v * lanes, self.lanes);
                        match packing.steps {
                            Some(_) => b.cast(CastOp::FloatToIntS, x, Scalar::I32),
                            None => codes::nearest_bf16(b, x),
                        }
                    })
                    .collect();
                let word = packing.joined(b, &numbers);
                self.write(b, factors.memory, place, 0, word);
            } else {
                for (w, word) in packing.held(chunk).iter().enumerate() {
                    let parts = word
                        .iter()
                        .map(|&member| {
                            let x = self.read(b, from, index, member, 1);
                            b.cast(CastOp::FloatToIntS, x, Scalar::I32)
                        })
                        .collect();
                    let word = packing.word(b, parts);
                    self.write(b, factors.memory, place, w, word);
                }
            }
            Vec::new()
        });
    }

    /// Keeps the steps of weights of rows from this one on.
    pub(in super::super) fn write_weight_step(&self, b: &mut Builder, row: Value, step: Value) {
        if let Some(steps) = self.arrays.p_steps {
            self.write(b, steps, row, 0, step);
        }
    }

    /// The step of a row's weights in all lanes, where they have some.
    fn weight_step(&self, b: &mut Builder, row: usize) -> Option<Value> {
        let steps = self.arrays.p_steps?;
        let index = int(b, row);
        let step = self.read(b, steps, index, 0, 1);
        Some(b.splat(step, self.lanes))
    }

    /// Adds the products of units `first..end` of codes to sums `[row][vector][part]`. Unit `i` lies a block's words behind
    /// unit `i - 1`, and unit 0 at `place`; its factors are those of unit `i + skipped`. The hint says which codes are asked for.
    pub(in super::super) fn products(
        &self,
        b: &mut Builder,
        (side, factors): (Side, &Factors),
        (place, skipped, hint): (Value, Option<Value>, Option<Hint>),
        (first, end, turn): (Value, Value, usize),
        rows: std::ops::Range<usize>,
        state: &[Value],
    ) -> Vec<Value> {
        let packing = factors.packing;
        let (pool, lanes) = (self.params.get("pool"), self.lanes);
        let decoder = if side == Side::K { self.keys } else { self.values };
        let (parts, loaded) = (packing.parts(), packing.loaded());
        let vectors = state.len() / rows.len() / parts;
        let ty = Type::vector(Scalar::I32, lanes);
        let align = ty.bytes().min(32);
        let stride = self.op.layout.part(side).stride();
        let line = packing.row * packing.bits / 32;
        let nothing = packing.none(b, lanes);
        let chains = self.chains(state.len(), turn, packing.cycles());
        let count = state.len();
        let sums = b.for_loop(first, end, turn as i64, &chained(state, nothing, chains), |b, unit, state| {
            let mut state = state.to_vec();
            let further = times(b, unit, stride);
            let place = b.add(place, further);
            let own = match skipped {
                Some(skipped) => b.add(unit, skipped),
                None => unit,
            };
            let index = times(b, own, packing.fields());
            self.foresee(b, side, hint, unit, turn);
            for i in 0..turn {
                let units: Vec<Opened> = (0..vectors)
                    .map(|v| {
                        let offset = i * stride + self.vector_offset(side, v);
                        let unit = b.load(ty, at(pool, Some(place), offset), align);
                        decoder.open(b, unit)
                    })
                    .collect();
                for first in (0..packing.fields()).step_by(parts) {
                    let fields: Vec<Value> = (units.iter())
                        .flat_map(|&unit| (first..first + parts).map(move |field| (unit, field)))
                        .map(|(unit, field)| packing.field(b, unit, field))
                        .collect();
                    for (r, row) in rows.clone().enumerate() {
                        let offset = row * line + i * packing.fields() + first;
                        let word = self.place(b, factors.memory, index, offset);
                        let x = b.load(loaded, word, loaded.bytes());
                        let x = b.splat(x, (4 * u32::from(lanes) / loaded.bytes()) as u8);
                        let x = b.bitcast(x, packing.part(lanes));
                        for (f, &field) in fields.iter().enumerate() {
                            let sum = &mut state[i % chains * count + r * vectors * parts + f];
                            *sum = packing.dot(b, field, x, *sum);
                        }
                    }
                }
            }
            state
        });
        unchained(b, &sums, count)
    }

    /// Products of rows of queries with `count` channels of keys from unit `first` on, those of a group, in steps of the queries.
    pub(in super::super) fn key_products(
        &self,
        b: &mut Builder,
        factors: &Factors,
        (keys, hint): (Value, Option<Hint>),
        (group, first, count): (Option<Value>, Value, usize),
        rows: std::ops::Range<usize>,
    ) -> Vec<Value> {
        let vectors = self.vectors(Side::K);
        let units = count / factors.packing.code.per_unit();
        // Sums of bytes stay in 16 bits for a turn where there is no instruction for more; so long ones pay.
        let most = if factors.packing.bits == 8 { 4 } else { 2 };
        let turn = [4, 2, 1].into_iter().find(|&turn| turn <= most && units.is_multiple_of(turn)).unwrap_or(1);
        let end = plus(b, first, units);
        let nothing = factors.packing.none(b, self.lanes);
        let starts: Vec<Value> = (rows.clone())
            .flat_map(|row| {
                let start = self.query_start(b, group, row).unwrap_or(nothing);
                vec![start; vectors * factors.packing.parts()]
            })
            .collect();
        let sums = self.products(b, (Side::K, factors), (keys, None, hint), (first, end, turn), rows, &starts);
        let sums = factors.packing.whole(b, &sums);
        sums.into_iter().map(|sum| factors.packing.number(b, sum)).collect()
    }

    /// Products of weights with the values of a tile, in steps of the weights: sums `[row][vector]`.
    pub(in super::super) fn weighted_codes(
        &self,
        b: &mut Builder,
        factors: &Factors,
        (tile, channel): (Tile, Value),
        rows: std::ops::Range<usize>,
        vectors: usize,
    ) -> Vec<Value> {
        let per = factors.packing.code.per_unit();
        let page = self.op.layout.page;
        let nothing = factors.packing.none(b, self.lanes);
        let zeros = vec![nothing; rows.len() * vectors * factors.packing.parts()];
        let zero = int(b, 0);
        let sums = self.by_page(b, tile, &zeros, &mut |b, done, left, sums| {
            let (base, within) = self.page_of(b, tile, done);
            // Whole steps: weights of tokens past the last are 0, and so is any code times 0.
            let units = plus(b, left, STEP - 1);
            let units = b.bin_imm(BinOp::And, units, -(STEP as i64));
            let units = b.bin_imm(BinOp::ShrU, units, per.trailing_zeros() as i64);
            let place = codes::unit_place(b, &self.op.layout, Side::V, within, channel);
            let hint = if rows.start == 0 { self.hint(b, tile, done, (base, within), Some(channel)) } else { None };
            let place = b.add(base, place);
            let skipped = b.bin_imm(BinOp::ShrU, done, per.trailing_zeros() as i64);
            // Of 8 bits and 8 bits, sums stay in 16 bits for a turn.
            let turn = if factors.packing.bits == 8 && page.min(self.tile).is_multiple_of(4 * per) { 4 } else { 2 };
            let most = b.bin_imm(BinOp::And, units, -(turn as i64));
            let at = (place, Some(skipped), hint);
            let sums = self.products(b, (Side::V, factors), at, (zero, most, turn), rows.clone(), sums);
            // A step has two units of nibbles, four of bytes.
            if turn > 2 {
                self.products(b, (Side::V, factors), at, (most, units, 2), rows.clone(), &sums)
            } else {
                sums
            }
        });
        factors.packing.whole(b, &sums)
    }

    /// Adds sums of [`Kernel::weighted_codes`] to what is `before` them.
    pub(in super::super) fn with_steps(
        &self,
        b: &mut Builder,
        factors: &Factors,
        rows: std::ops::Range<usize>,
        sums: &[Value],
        before: &[Value],
    ) -> Vec<Value> {
        let vectors = sums.len() / rows.len();
        let mut out = Vec::new();
        for (r, row) in rows.enumerate() {
            let step = self.weight_step(b, row);
            for i in r * vectors..(r + 1) * vectors {
                let sum = factors.packing.number(b, sums[i]);
                out.push(match step {
                    Some(step) => b.fma(sum, step, before[i]),
                    None => b.add(before[i], sum),
                });
            }
        }
        out
    }
}
