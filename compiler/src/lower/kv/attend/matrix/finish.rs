//! The end of a work item: what its subgroups have found becomes one result, through shared memory.

use super::super::super::codes;
use super::{CHUNK, COLUMNS, Matrix, State};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, Value};
use crate::lower::memory::{at, times};

/// Largest score, sum of weights, sum of weights times offsets; padded.
pub(super) const STATS: usize = 4;

impl Matrix<'_> {
    pub(super) fn finish(&self, b: &mut Builder, state: &State) {
        let v_dim = self.op.layout.v.head_dim;
        let sum = state.sum.map(|sum| self.over_tokens(b, BinOp::Add, sum));
        let offset = state.offset.map(|offset| offset.map(|offset| self.over_tokens(b, BinOp::Add, offset)));
        let none = b.f32(1, 0.0);
        let column = times(b, self.t, 2);
        let line = times(b, self.subgroup, COLUMNS);
        let line = b.add(line, column);
        let zero = b.int(Scalar::I32, 0);
        let first = b.cmp(CmpOp::Eq, self.g, zero);
        b.if_then(first, |b| {
            for e in 0..2 {
                let own = b.vector(&[state.top[e], sum[e], offset.map_or(none, |offset| offset[e]), none]);
                let place = times(b, line, STATS * 4);
                b.store(at(self.stats, Some(place), e * STATS * 4), 16, own);
            }
        });
        b.barrier();
        let factors = [0, 1].map(|e| {
            let row = b.bin_imm(BinOp::Add, column, e);
            let (top, _) = self.tops(b, row);
            let x = b.bin(BinOp::Sub, state.top[e as usize], top);
            codes::power_of_two(b, x)
        });
        let quad = b.bin_imm(BinOp::And, self.g, 3);
        for pair in 0..self.value_pairs() {
            let lone = self.is_half(pair);
            let store = |b: &mut Builder| {
                for (e, &factor) in factors.iter().enumerate() {
                    let own: Vec<Value> = (0..4)
                        .map(|i: usize| {
                            let x = b.extract(state.outputs[2 * pair + i / 2], (2 * (i % 2) + e) as u8);
                            b.mul(x, factor)
                        })
                        .collect();
                    let own = b.vector(&own);
                    let line = times(b, line, v_dim * 4);
                    // Channels in blocks of 16: `g` counts quads.
                    let quad = if lone { quad } else { self.g };
                    let quad = times(b, quad, 16);
                    let place = b.add(line, quad);
                    let fixed = (e * v_dim + pair * CHUNK) * 4;
                    b.store(at(self.sums, Some(place), fixed), 16, own);
                }
            };
            if lone {
                let four = b.int(Scalar::I32, 4);
                let there = b.cmp(CmpOp::LtS, self.g, four);
                b.if_then(there, store);
            } else {
                store(b);
            }
        }
        b.barrier();
        self.write(b);
    }

    /// The largest of all subgroups' largest scores of a row, and each of them less that.
    fn tops(&self, b: &mut Builder, row: Value) -> (Value, Vec<Value>) {
        let place = times(b, row, STATS * 4);
        let all: Vec<Value> = (0..self.subgroups)
            .map(|subgroup| b.load(Scalar::F32, at(self.stats, Some(place), subgroup * COLUMNS * STATS * 4), 4))
            .collect();
        let top = all[1..].iter().fold(all[0], |top, &other| b.bin(BinOp::Max, top, other));
        let below = all.iter().map(|&own| b.bin(BinOp::Sub, own, top)).collect();
        (top, below)
    }

    /// Sums over subgroups into the item's slot.
    fn write(&self, b: &mut Builder) {
        let (op, part) = (self.op, &self.op.layout.v);
        let (rows, v_dim) = (op.rows(), part.head_dim);
        let slot = b.cast(CastOp::ExtendS, self.item[6], Scalar::I64);
        let slot = times(b, slot, op.layout.heads);
        let slot = b.add(slot, self.head);
        let thread = b.builtin(crate::ir::Builtin::LocalId(0));
        let given = (part.codes.is_static() && !part.codes.code.is_plain())
            .then(|| self.scales(Side::V).given(b, part, self.head));
        let offsets = part.codes.asymmetric;
        let out = times(b, slot, rows * v_dim * 4);
        let end = b.int(Scalar::I32, (rows * v_dim / 4) as i64);
        let threads = (self.subgroups * 32) as i64;
        b.for_loop(thread, end, threads, &[], |b, quad, _| {
            let place = times(b, quad, 16);
            let four = Type::vector(Scalar::F32, 4);
            let all: Vec<Value> = (0..self.subgroups)
                .map(|subgroup| b.load(four, at(self.sums, Some(place), subgroup * COLUMNS * v_dim * 4), 16))
                .collect();
            let mut sum = all[1..].iter().fold(all[0], |sum, &other| b.add(sum, other));
            if let Some((scale, _)) = given {
                let unit = b.f32(1, self.values.unit());
                let scale = b.mul(scale, unit);
                let scale = b.splat(scale, 4);
                sum = b.mul(sum, scale);
            }
            if offsets {
                let (row, _) = crate::lower::memory::split(b, quad, v_dim / 4);
                let which = if given.is_some() { 1 } else { 2 };
                let mut added = self.total(b, row, which);
                if let Some((_, offset)) = given {
                    added = b.mul(added, offset);
                }
                let added = b.splat(added, 4);
                sum = b.add(sum, added);
            }
            let place = b.cast(CastOp::ExtendS, place, Scalar::I64);
            let place = b.add(out, place);
            b.store(at(self.params.get("o"), Some(place), 0), 16, sum);
            Vec::new()
        });
        let out = times(b, slot, rows * 8);
        let end = b.int(Scalar::I32, rows as i64);
        b.for_loop(thread, end, threads, &[], |b, row, _| {
            let (top, _) = self.tops(b, row);
            let sum = self.total(b, row, 1);
            let both = b.vector(&[top, sum]);
            let place = times(b, row, 8);
            let place = b.cast(CastOp::ExtendS, place, Scalar::I64);
            let place = b.add(out, place);
            b.store(at(self.params.get("ml"), Some(place), 0), 8, both);
            Vec::new()
        });
    }

    /// A row's statistic summed up over subgroups, each from its own largest score.
    fn total(&self, b: &mut Builder, row: Value, which: usize) -> Value {
        let (_, below) = self.tops(b, row);
        let place = times(b, row, STATS * 4);
        let none = b.f32(1, 0.0);
        below.into_iter().enumerate().fold(none, |total, (subgroup, x)| {
            let factor = codes::power_of_two(b, x);
            let fixed = (subgroup * COLUMNS * STATS + which) * 4;
            let own = b.load(Scalar::F32, at(self.stats, Some(place), fixed), 4);
            b.fma(own, factor, total)
        })
    }
}
