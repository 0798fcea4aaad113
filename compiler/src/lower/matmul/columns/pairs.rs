//! Blocks of columns by products of 16 bits in pairs: bytes of weights and activations are widened once, so that an
//! instruction multiplies and one adds what would take two of each from bytes.
//!
//! ```text
//! weights        [quad][even, odd][tile_n]     words of two columns of a row of W: 0 and 2 of a quad, then 1 and 3
//! activations    [row][even, odd][quad]        the same columns of a row of X
//! ```
//!
//! Always holds: sums are exact inside a segment, as those of [`IntegerSums`], which scales them.

use super::super::Plan;
use super::super::Tile;
use super::super::integer::{IntegerSums, Results};
use super::super::tile::Scratch;
use super::{Blocks, RowTile, Work, decode_segments, pair_products, rows_at_once, vectors_of_results};
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::at;
use crate::lower::stage::Kept;
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Pos, Step, Visit, repeat};
use crate::schedule::Schedule;

/// Whether a tile fits: sums in registers, a product, an activation, vectors of weights; the end of a segment takes scales, and
/// what is taken off.
pub(super) fn fits(tile_m: u32, vectors: u32, layout: &N16, caps: &Caps) -> bool {
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    tile_m * vectors + vectors.min(tile_m) * (1 + shifted) + 3 <= caps.vector_registers
}

/// Sums of pairs.
pub(super) struct Pairs<'a> {
    plan: &'a Plan,
    /// Without its offset, which words hold.
    how: Integers,
    /// What is taken off each byte.
    offset: i32,
    schedule: &'a Schedule,
    blocks: Blocks,
    scratch: Scratch,
    activations: Memory,
    /// `[strip][row]`, tiles of rows side by side: results, or the sums of the only segment.
    results: Kept,
}

impl<'a> Pairs<'a> {
    /// With scratch of its own.
    pub fn new(b: &mut Builder, plan: &'a Plan, how: &Integers, schedule: &'a Schedule, blocks: Blocks) -> Pairs<'a> {
        let scratch = Scratch::declare(b, "decoded", blocks.columns / 2, schedule, plan.lanes);
        let vectors = vectors_of_results(plan, schedule);
        let results = match whole(plan) {
            true => Kept::integers(b, "sums", vectors, plan.lanes),
            false => Kept::declare(b, "results", vectors, plan.lanes),
        };
        let activations = b.shared("staged", (rows_at_once(schedule) * blocks.columns * 2) as u32, 64);
        let (mut how, mut offset) = (*how, 0);
        if how.factor == 1 {
            offset = std::mem::take(&mut how.offset);
        }
        Pairs { plan, how, offset, schedule, blocks, scratch, activations, results }
    }

    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }

    fn words(&self) -> Type {
        Type::vector(Scalar::I16, 2 * self.plan.lanes)
    }

    /// Where the words of some columns of a row lie.
    fn place(&self, b: &mut Builder, tile: RowTile, row: usize, odd: usize, quad: Pos) -> Pos {
        let columns = self.blocks.columns;
        let start = tile.place.plus(row).times(b, 2 * columns);
        quad.times(b, 4).add(b, start).plus(odd * columns)
    }

    /// Products of some quads from one on, added to sums.
    fn products(&self, b: &mut Builder, tile: RowTile, (quad, count): (Pos, usize), sums: Vec<Value>) -> Vec<Value> {
        let step = (1..=8).rev().find(|step| count.is_multiple_of(*step)).unwrap_or(1);
        repeat(b, count / step, step, sums, |b, turn, mut sums| {
            let first = quad.add(b, turn);
            for i in 0..2 * step {
                let (quad, odd) = (first.plus(i / 2), i % 2);
                let line = first.times(b, 2).plus(i);
                let place = |b: &mut Builder, row: usize| self.place(b, tile, row, odd, quad);
                let (how, words) = ((self.plan, self.schedule), (self.activations, Scalar::I16));
                pair_products(b, how, (&self.scratch, line), words, &place, &mut sums);
            }
            sums
        })
    }

    /// Scales the sums of a segment into results.
    fn finish(
        &self,
        b: &mut Builder,
        (weights, rows): (&Weights<'_>, &Rows),
        segment: Pos,
        results: Results<'_>,
        sums: &[Value],
    ) -> Vec<Value> {
        let tile = Tile { weights, rows, vectors: self.plan.vectors, waits: false, team: None };
        let mut bytes = |b: &mut Builder, step: &Step, quad: usize, v: usize| {
            let words = weights.words(b, step.unit, step.first + quad, v);
            weights.bytes(b, &self.how, &words)
        };
        let outer = match results {
            Results::Registers => vec![b.f32(self.plan.lanes, 0.0); self.count()],
            Results::Scratch(..) => Vec::new(),
        };
        let scaled = IntegerSums {
            tile: &tile,
            how: &self.how,
            segment: self.plan.walk.segment,
            bytes: &mut bytes,
            late: true,
            quarters: false,
            results,
            sums: None,
        };
        scaled.finish(b, segment, outer, &mut |_, i| sums[i])
    }
}

/// Whether all of K is one segment, whose sums go on from block to block.
fn whole(plan: &Plan) -> bool {
    plan.walk.segment >= plan.op.k
}

impl Work for Pairs<'_> {
    fn start(&self, b: &mut Builder, at: Pos) {
        let nothing = match whole(self.plan) {
            true => b.int(Type::vector(Scalar::I32, self.plan.lanes), 0),
            false => b.f32(self.plan.lanes, 0.0),
        };
        self.results.fill(b, at, self.count(), nothing);
    }

    fn stage(&self, b: &mut Builder, rows: &Rows, tile: RowTile, column: Pos, len: usize) {
        let lanes = self.plan.lanes;
        let bytes = 4 * lanes as usize;
        for row in 0..rows.count() {
            repeat(b, len / bytes, bytes, Vec::new(), |b, here, _| {
                let from = column.add(b, here);
                let x = rows.bytes(b, row, from, 4 * lanes);
                let x = b.bitcast(x, self.words());
                let up = b.bin_imm(BinOp::Shl, x, 8);
                let even = b.bin_imm(BinOp::ShrS, up, 8);
                let odd = b.bin_imm(BinOp::ShrS, x, 8);
                // As many bytes as columns: a word of 32 bits for each quad.
                let start = tile.place.plus(row).times(b, 2 * self.blocks.columns);
                let place = here.add(b, start);
                for (part, words) in [even, odd].into_iter().enumerate() {
                    let fixed = place.fixed + part * self.blocks.columns;
                    b.store(at(self.activations, place.index, fixed), bytes as u32, words);
                }
                Vec::new()
            });
        }
    }

    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize) {
        let Blocks { segment, .. } = self.blocks;
        let scratch = (self.scratch, segment / 2 * self.scratch.line);
        decode_segments(b, (&self.plan.layout, segment), (first, len), scratch, |scratch, _| Widen {
            weights,
            pairs: self,
            scratch,
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
        if whole(self.plan) {
            let sums = self.results.load_all(b, at, self.count());
            let sums = self.products(b, tile, (Pos::fixed(0), len / 4), sums);
            sums.into_iter().enumerate().for_each(|(i, sum)| self.results.store(b, at, i, sum));
            return;
        }
        let Blocks { segment, .. } = self.blocks;
        repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
            let nothing = b.int(Type::vector(Scalar::I32, self.plan.lanes), 0);
            let quad = turn.times(b, segment / 4);
            let sums = self.products(b, tile, (quad, segment / 4), vec![nothing; self.count()]);
            let segment = first.add(b, turn);
            self.finish(b, (weights, rows), segment, Results::Scratch(&self.results, at), &sums)
        });
    }

    fn results(&self, b: &mut Builder, weights: &Weights<'_>, rows: &Rows, at: Pos) -> Vec<Value> {
        let kept = self.results.load_all(b, at, self.count());
        match whole(self.plan) {
            true => self.finish(b, (weights, rows), Pos::fixed(0), Results::Registers, &kept),
            false => kept,
        }
    }
}

/// Decodes every quad into scratch, widened.
struct Widen<'a> {
    weights: &'a Weights<'a>,
    pairs: &'a Pairs<'a>,
    scratch: Scratch,
}

impl Visit for Widen<'_> {
    fn begin(&mut self, _b: &mut Builder, _segment: Pos) -> Vec<Value> {
        Vec::new()
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, state: Vec<Value>) -> Vec<Value> {
        for i in 0..step.quads.len() {
            let line = step.local.plus(i).times(b, 2);
            for v in 0..self.pairs.plan.vectors {
                let words = self.weights.words(b, step.unit, step.first + i, v);
                let bytes = self.weights.bytes(b, &self.pairs.how, &words);
                let bytes = b.bitcast(bytes, self.pairs.words());
                let even = b.bin_imm(BinOp::And, bytes, 0xff);
                let odd = b.bin_imm(BinOp::ShrU, bytes, 8);
                for (part, mut words) in [even, odd].into_iter().enumerate() {
                    if self.pairs.offset != 0 {
                        words = b.bin_imm(BinOp::Sub, words, i64::from(self.pairs.offset));
                    }
                    self.scratch.store(b, words, line.plus(part), v);
                }
            }
        }
        state
    }

    fn end(&mut self, _b: &mut Builder, _segment: Pos, _inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        outer
    }
}
