//! Sums of spans where weights are decoded in registers (family `stream`).
//!
//! Codes are the unsigned side of products as they are stored. What is to be taken off them, and offsets that are added to weights,
//! meet sums of activations at the end of a span: two groups a product.

use super::super::Tile;
use super::{Span, add_scaled, sums_pair};
use crate::ir::{BinOp, Builder, CastOp, Memory, Scalar, Type, Value};
use crate::lower::memory::at;
use crate::lower::stage::Kept;
use crate::lower::unpack::Integers;
use crate::lower::walk::{Pos, Step, Visit};

/// Bytes that codes, scales and offsets are asked for ahead. A quarter of a chunk of Q2_K is scales and offsets, which no processor
/// foresees between its codes: on Zen 3 one thread reads 1.5 times as fast with hints for both as with hints for codes.
const AHEAD: usize = 4096;

/// Visits a walk whose segments are spans. Inner state: `i32` sums `[row][vector]`; results are in scratch.
pub(in super::super) struct SpanSums<'a> {
    tile: &'a Tile<'a>,
    how: &'a Integers,
    span: Span,
    results: Kept,
    /// Sums of the activations of a span's groups, `i16` `[row][group]`, where something meets them.
    sums: Option<Memory>,
}

impl<'a> SpanSums<'a> {
    /// With scratch of its own, and results of nothing.
    pub fn new(b: &mut Builder, tile: &'a Tile<'a>, how: &'a Integers, span: Span) -> SpanSums<'a> {
        let (layout, lanes) = (&tile.weights.layout, tile.weights.lanes);
        let meets_sums = how.offset != 0 || span.offsets;
        let bytes = tile.rows.count() * span.columns / layout.group * 2;
        let sums = meets_sums.then(|| b.shared("span_sums", bytes as u32, 64));
        let results = Kept::declare(b, "results", tile.sums(), lanes);
        let nothing = b.f32(lanes, 0.0);
        results.fill(b, Pos::fixed(0), tile.sums(), nothing);
        SpanSums { tile, how, span, results, sums }
    }

    /// The results `[row][vector]` after the walk.
    pub fn results(&self, b: &mut Builder) -> Vec<Value> {
        self.results.load_all(b, Pos::fixed(0), self.tile.sums())
    }

    /// The first vector of each block of rows.
    fn blocks(&self) -> impl Iterator<Item = usize> {
        (0..self.tile.vectors).filter(|&v| self.tile.weights.starts_block(v))
    }

    fn groups(&self) -> usize {
        self.span.columns / self.tile.weights.layout.group
    }

    fn lanes(&self) -> u8 {
        self.tile.weights.lanes
    }

    fn words(&self) -> Type {
        Type::vector(Scalar::I16, 2 * self.lanes())
    }

    /// Writes down the sums of the activations of a span's groups.
    fn stage(&self, b: &mut Builder, first: Pos) {
        let Some(memory) = self.sums else { return };
        let groups = self.groups();
        let together = groups.min(self.lanes() as usize);
        for row in 0..self.tile.rows.count() {
            for from in (0..groups).step_by(together) {
                let sums = self.tile.rows.sums(b, row, first.plus(from), together as u8);
                let sums = b.cast(CastOp::Truncate, sums, Scalar::I16);
                b.store(at(memory, None, 2 * (row * groups + from)), 2 * together as u32, sums);
            }
        }
    }

    /// Sums of activations times `numbers` of the groups of a span, two at a time, by row.
    fn shifts(
        &self,
        b: &mut Builder,
        memory: Memory,
        numbers: &mut dyn FnMut(&mut Builder, usize) -> Value,
    ) -> Vec<Value> {
        let rows = self.tile.rows.count();
        let mut shifts = vec![b.int(Type::vector(Scalar::I32, self.lanes()), 0); rows];
        for group in (0..self.groups()).step_by(2) {
            let numbers = numbers(b, group);
            for (row, shift) in shifts.iter_mut().enumerate() {
                let place = Pos::fixed(2 * (row * self.groups() + group));
                let sums = sums_pair(b, memory, place, self.lanes());
                *shift = b.dot2(sums, numbers, *shift);
            }
        }
        shifts
    }

    /// Adds the sum of a row and a vector, scaled, to its result.
    fn add_scaled(&self, b: &mut Builder, (row, v): (usize, usize), sum: Value, scale: Value, column: Pos) {
        let scale_x = self.tile.rows.group_scale(b, row, column);
        let result = (&self.results, Pos::fixed(0), row * self.tile.vectors + v);
        add_scaled(b, result, sum, (scale, scale_x));
    }
}

impl Visit for SpanSums<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let first = segment.times(b, self.groups());
        self.stage(b, first);
        for v in self.blocks() {
            self.tile.weights.ask_groups(b, first, self.groups(), v, AHEAD);
        }
        let nothing = b.int(Type::vector(Scalar::I32, self.lanes()), 0);
        vec![nothing; self.tile.sums()]
    }

    fn step(&mut self, b: &mut Builder, segment: Pos, step: &Step, mut inner: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = *self.tile;
        let quads = weights.layout.group / 4;
        let first_group = segment.times(b, self.groups());
        self.blocks().for_each(|v| weights.ask_words(b, step.unit, v, AHEAD));
        let mut first = 0;
        while first < step.quads.len() {
            // Quads of one group, as many as 16 bits hold.
            let rest = step.quads.len().min(first / quads * quads + quads) - first;
            let run = first..first + rest.min(self.span.quads);
            let group = step.local.plus(first).times(b, 4).divide(b, weights.layout.group).add(b, first_group);
            let mut pairs = vec![b.int(self.words(), 0); self.tile.sums()];
            for quad in run.clone() {
                let x: Vec<Value> =
                    (0..rows.count()).map(|row| rows.quad_bytes(b, row, step.column.plus(4 * quad), 4)).collect();
                for v in 0..vectors {
                    let words = weights.words(b, step.unit, step.first + quad, v);
                    let w = weights.bytes(b, self.how, &words);
                    for (row, &x) in x.iter().enumerate() {
                        let pairs = &mut pairs[row * vectors + v];
                        *pairs = b.dot2(w, x, *pairs);
                    }
                }
            }
            for v in 0..vectors {
                let scale = weights.inner_scale(b, group, v);
                for row in 0..rows.count() {
                    let sum = &mut inner[row * vectors + v];
                    *sum = b.dot2(pairs[row * vectors + v], scale, *sum);
                }
            }
            first = run.end;
        }
        inner
    }

    fn end(&mut self, b: &mut Builder, segment: Pos, inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = *self.tile;
        let column = segment.times(b, self.span.columns);
        let first = segment.times(b, self.groups());
        for v in 0..vectors {
            let scale = weights.outer_scale(b, segment, v);
            let taken = match self.sums {
                Some(memory) if self.how.offset != 0 => {
                    Some(self.shifts(b, memory, &mut |b, group| weights.inner_scales(b, first.plus(group), v)))
                }
                _ => None,
            };
            for row in 0..rows.count() {
                let mut sum = inner[row * vectors + v];
                if let Some(taken) = &taken {
                    let taken = b.bin_imm(BinOp::Mul, taken[row], i64::from(self.how.offset));
                    sum = b.bin(BinOp::Sub, sum, taken);
                }
                self.add_scaled(b, (row, v), sum, scale, column);
            }
            let Some(memory) = self.sums.filter(|_| self.span.offsets) else { continue };
            let scale = weights.outer_offset(b, segment, v);
            let shifts = self.shifts(b, memory, &mut |b, group| weights.inner_offsets(b, first.plus(group), v));
            for (row, shift) in shifts.into_iter().enumerate() {
                self.add_scaled(b, (row, v), shift, scale, column);
            }
        }
        outer
    }
}
