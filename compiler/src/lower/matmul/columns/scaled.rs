//! Blocks of columns for codes under two levels of scales, the inner ones whole numbers (K-quants): products of bytes are summed
//! in pairs of columns, and what multiplies and adds the two halves of a lane takes the inner scale in place of ones. A group of 16
//! columns then ends without leaving the integers, and 256 columns share one multiply-add of floats.
//!
//! ```text
//! weights        [quad][tile_n]       four bytes, codes less their offset
//! scales         [group][tile_n]      the inner scale, in both words of a lane
//! starts         [span][tile_n]       what sums of raised activations start from, `i32`
//! offsets        [two groups][tile_n] inner offsets, one in each word of a lane
//! activations    [row][column]        bytes, raised by 128 where codes are signed
//! sums           [row][group]         of activations as they were, `i16`
//! ```
//!
//! One side of the products is unsigned: codes where they are, otherwise activations, raised by 128. Those make each sum larger by
//! 128 times the sum of its weights, which does not depend on the activations: sums start that much lower.
//!
//! Always holds: sums are exact under an outer scale, which scales them.

mod decode;

use self::decode::Decode;
use super::super::Plan;
use super::super::spans::{Span, add_scaled, sums_pair};
use super::super::tile::Scratch;
use super::{Blocks, RowTile, Work, decode_segments, rows_at_once, vectors_of_results};
use crate::caps::Caps;
use crate::ir::{BinOp, Builder, CastOp, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::at;
use crate::lower::stage::Kept;
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Pos, each, repeat};
use crate::schedule::Schedule;

/// What raises a signed byte into an unsigned one.
const RAISE: i64 = 128;

/// Whether a tile fits: sums, as many vectors of weights as are summed in 16 bits, two products. Decoding holds words of all
/// planes for each vector, and sums beside them: two vectors fit.
pub(super) fn fits(span: &Span, tile_m: u32, vectors: u32, caps: &Caps) -> bool {
    vectors <= 2 && tile_m * vectors + span.quads as u32 + 2 <= caps.vector_registers
}

/// What offsets take: themselves, and sums of activations.
struct Offsets {
    inner: Scratch,
    sums: Memory,
}

/// Sums under two levels of scales.
pub(super) struct Scaled<'a> {
    plan: &'a Plan,
    how: &'a Integers,
    schedule: &'a Schedule,
    blocks: Blocks,
    span: Span,
    weights: Scratch,
    scales: Scratch,
    starts: Option<Scratch>,
    activations: Memory,
    offsets: Option<Offsets>,
    /// `[strip][row]`, tiles of rows side by side.
    results: Kept,
}

impl<'a> Scaled<'a> {
    /// With scratch of its own.
    pub fn new(
        b: &mut Builder,
        plan: &'a Plan,
        how: &'a Integers,
        schedule: &'a Schedule,
        blocks: Blocks,
        span: Span,
    ) -> Scaled<'a> {
        let lines = |b: &mut Builder, name: &str, lines: usize| Scratch::declare(b, name, lines, schedule, plan.lanes);
        let weights = lines(b, "decoded", blocks.columns / 4);
        let scales = lines(b, "scales", blocks.columns / plan.layout.group);
        let starts = span.raised.then(|| lines(b, "starts", blocks.columns / span.columns));
        let activations = b.shared("staged", (rows_at_once(schedule) * blocks.columns) as u32, 64);
        let offsets = span.offsets.then(|| {
            let groups = blocks.columns / plan.layout.group;
            let inner = lines(b, "offsets", groups / 2);
            Offsets { inner, sums: b.shared("staged_sums", (rows_at_once(schedule) * groups * 2) as u32, 64) }
        });
        let results = Kept::declare(b, "results", vectors_of_results(plan, schedule), plan.lanes);
        Scaled { plan, how, schedule, blocks, span, weights, scales, starts, activations, offsets, results }
    }

    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }

    fn bytes(&self) -> Type {
        Type::vector(Scalar::I8, 4 * self.plan.lanes)
    }

    fn words(&self) -> Type {
        Type::vector(Scalar::I16, 2 * self.plan.lanes)
    }

    fn sums(&self) -> Type {
        Type::vector(Scalar::I32, self.plan.lanes)
    }

    /// A quad of activations of a row, in every lane.
    fn quad(&self, b: &mut Builder, tile: RowTile, row: usize, quad: Pos) -> Value {
        let start = tile.place.plus(row).times(b, self.blocks.columns);
        let place = quad.times(b, 4).add(b, start);
        let quad = b.load(Scalar::I32, at(self.activations, place.index, place.fixed), 4);
        let quad = b.splat(quad, self.plan.lanes);
        b.bitcast(quad, self.bytes())
    }

    /// Where the sum of a group's activations lies.
    fn sum_place(&self, b: &mut Builder, tile: RowTile, row: usize, group: Pos) -> Pos {
        let groups = self.blocks.columns / self.plan.layout.group;
        let start = tile.place.plus(row).times(b, 2 * groups);
        group.times(b, 2).add(b, start)
    }

    /// What the inner offsets of a span come to for a row, by vector: each times the sum of its group's activations.
    fn shifts(&self, b: &mut Builder, offsets: &Offsets, tile: RowTile, row: usize, turn: Pos) -> Vec<Value> {
        let groups = self.span.columns / self.plan.layout.group;
        let (first, first_line) = (turn.times(b, groups), turn.times(b, groups / 2));
        let mut shifts = vec![b.int(self.sums(), 0); self.plan.vectors];
        for pair in 0..groups / 2 {
            let place = self.sum_place(b, tile, row, first.plus(2 * pair));
            let sums = sums_pair(b, offsets.sums, place, self.plan.lanes);
            for (v, shift) in shifts.iter_mut().enumerate() {
                let inner = offsets.inner.load(b, self.words(), first_line.plus(pair), v);
                *shift = b.dot2(sums, inner, *shift);
            }
        }
        shifts
    }

    /// Adds the sums of a row and a span, times outer scales, to results.
    fn add_scaled(
        &self,
        b: &mut Builder,
        row: usize,
        sums: &[Value],
        (scales, scale_x): (&[Value], Option<Value>),
        at: Pos,
    ) {
        for (v, (&sum, &scale)) in sums.iter().zip(scales).enumerate() {
            add_scaled(b, (&self.results, at, row * self.plan.vectors + v), sum, (scale, scale_x));
        }
    }

    /// Scales the sums of a span, the how-manieth of the block and of all, into results.
    fn finish(
        &self,
        b: &mut Builder,
        (weights, rows, tile): (&Weights<'_>, &Rows, RowTile),
        (turn, span): (Pos, Pos),
        at: Pos,
        sums: &[Value],
    ) {
        let vectors = self.plan.vectors;
        let column = span.times(b, self.span.columns);
        let scales: Vec<Value> = (0..vectors).map(|v| weights.outer_scale(b, span, v)).collect();
        for (row, sums) in sums.chunks(vectors).enumerate() {
            let scale_x = rows.group_scale(b, row, column);
            self.add_scaled(b, row, sums, (&scales, scale_x), at);
        }
        // Afterwards, when no sums lie in registers any more.
        let Some(offsets) = &self.offsets else { return };
        let scales: Vec<Value> = (0..vectors).map(|v| weights.outer_offset(b, span, v)).collect();
        for row in 0..rows.count() {
            let shifts = self.shifts(b, offsets, tile, row, turn);
            let scale_x = rows.group_scale(b, row, column);
            self.add_scaled(b, row, &shifts, (&scales, scale_x), at);
        }
    }

    /// Products of the columns of a group, times its scale, added to sums `[row][vector]`.
    fn group(&self, b: &mut Builder, tile: RowTile, group: Pos, sums: &mut [Value]) {
        let quads = self.plan.layout.group / 4;
        let first = group.times(b, quads);
        let vectors = self.plan.vectors;
        for start in (0..quads).step_by(self.span.quads) {
            let together = self.span.quads.min(quads - start);
            for v in 0..vectors {
                let weights: Vec<Value> =
                    (0..together).map(|i| self.weights.load(b, self.bytes(), first.plus(start + i), v)).collect();
                for row in 0..self.schedule.tile_m as usize {
                    let mut pairs = b.int(self.words(), 0);
                    for (i, &w) in weights.iter().enumerate() {
                        let x = self.quad(b, tile, row, first.plus(start + i));
                        pairs = if self.span.raised { b.dot2(x, w, pairs) } else { b.dot2(w, x, pairs) };
                    }
                    let scale = self.scales.load(b, self.words(), group, v);
                    let sum = &mut sums[row * vectors + v];
                    *sum = b.dot2(pairs, scale, *sum);
                }
            }
        }
    }
}

impl Work for Scaled<'_> {
    fn start(&self, b: &mut Builder, at: Pos) {
        let nothing = b.f32(self.plan.lanes, 0.0);
        self.results.fill(b, at, self.count(), nothing);
    }

    fn stage(&self, b: &mut Builder, rows: &Rows, tile: RowTile, column: Pos, len: usize) {
        let lanes = self.plan.lanes;
        let bytes = 4 * lanes as usize;
        for row in 0..rows.count() {
            repeat(b, len / bytes, bytes, Vec::new(), |b, here, _| {
                let from = column.add(b, here);
                let x = rows.bytes(b, row, from, 4 * lanes);
                let x = if self.span.raised { b.bin_imm(BinOp::Xor, x, RAISE) } else { x };
                let start = tile.place.plus(row).times(b, self.blocks.columns);
                let place = here.add(b, start);
                b.store(at(self.activations, place.index, place.fixed), bytes as u32, x);
                Vec::new()
            });
        }
        let Some(offsets) = &self.offsets else { return };
        let group = self.plan.layout.group;
        let first = column.divide(b, group);
        let count = (self.span.columns / group).min(lanes as usize);
        for row in 0..rows.count() {
            repeat(b, len / group / count, count, Vec::new(), |b, here, _| {
                let from = first.add(b, here);
                let sums = rows.sums(b, row, from, count as u8);
                let sums = b.cast(CastOp::Truncate, sums, Scalar::I16);
                let place = self.sum_place(b, tile, row, here);
                b.store(at(offsets.sums, place.index, place.fixed), 2 * count as u32, sums);
                Vec::new()
            });
        }
    }

    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize) {
        let columns = self.span.columns;
        let scratch = (self.weights, columns / 4 * self.weights.line);
        decode_segments(b, (&self.plan.layout, columns), (first, len), scratch, |scratch, turn| Decode {
            weights,
            scaled: self,
            scratch,
            turn,
        });
    }

    fn add(
        &self,
        b: &mut Builder,
        weights: &Weights<'_>,
        (rows, tile): (&Rows, RowTile),
        (first, len): (Pos, usize),
        at: Pos,
    ) {
        let columns = self.span.columns;
        let (vectors, groups) = (self.plan.vectors, columns / self.plan.layout.group);
        repeat(b, len / columns, 1, Vec::new(), |b, turn, _| {
            let starts: Vec<Value> = (0..vectors)
                .map(|v| match &self.starts {
                    Some(starts) => starts.load(b, self.sums(), turn, v),
                    None => b.int(self.sums(), 0),
                })
                .collect();
            let sums = (0..self.count()).map(|i| starts[i % vectors]).collect();
            let first_group = turn.times(b, groups);
            let step = (self.schedule.unroll as usize).min(groups);
            let sums = each(b, (groups, step), sums, &|b, group, sums| {
                let group = first_group.add(b, group);
                self.group(b, tile, group, sums);
            });
            let span = first.add(b, turn);
            self.finish(b, (weights, rows, tile), (turn, span), at, &sums);
            Vec::new()
        });
    }

    fn results(&self, b: &mut Builder, _weights: &Weights<'_>, _rows: &Rows, at: Pos) -> Vec<Value> {
        self.results.load_all(b, at, self.count())
    }
}
