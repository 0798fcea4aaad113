//! Blocks of columns by multiply-adds of `f32` numbers.

use super::super::Plan;
use super::super::tile::{Decode, Scratch};
use super::{Blocks, RowTile, Work, decode_segments, outer_product, rows_at_once, vectors_of_results};
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{Builder, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::stage::{Content, Kept, Staged};
use crate::lower::unpack::Weights;
use crate::lower::walk::{Pos, each};
use crate::schedule::Schedule;

/// Whether a tile fits: sums in registers, vectors of weights, one activation; decoding joins planes and holds scales and
/// zero points of each vector.
pub(super) fn fits(tile_m: u32, vectors: u32, layout: &N16, caps: &Caps) -> bool {
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    let sums = (tile_m * vectors).max((layout.planes.len() as u32 + shifted) * vectors + 8);
    sums + 1 + vectors.min(tile_m) <= caps.vector_registers
}

/// Sums of floats.
pub(super) struct Floats<'a> {
    plan: &'a Plan,
    schedule: &'a Schedule,
    blocks: Blocks,
    scratch: Scratch,
    /// `[strip][row]`, tiles of rows side by side.
    results: Kept,
    staged: Staged,
}

/// Activations as they are.
fn content(columns: usize, factors: &[f32]) -> Content<'_> {
    Content { k: columns, segment: columns, factors, sum_factor: None }
}

impl<'a> Floats<'a> {
    /// With scratch of its own.
    pub fn new(b: &mut Builder, plan: &'a Plan, schedule: &'a Schedule, blocks: Blocks) -> Floats<'a> {
        let scratch = Scratch::declare(b, "decoded", blocks.columns, schedule, plan.lanes);
        let results = Kept::declare(b, "results", vectors_of_results(plan, schedule), plan.lanes);
        let factors = vec![1.0; plan.lanes as usize];
        let staged = Staged::declare(b, rows_at_once(schedule), &content(blocks.columns, &factors), plan.lanes);
        Floats { plan, schedule, blocks, scratch, results, staged }
    }

    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }
}

impl Work for Floats<'_> {
    fn start(&self, b: &mut Builder, at: Pos) {
        let nothing = b.f32(self.plan.lanes, 0.0);
        self.results.fill(b, at, self.count(), nothing);
    }

    fn stage(&self, b: &mut Builder, rows: &Rows, tile: RowTile, column: Pos, len: usize) {
        let factors = vec![1.0; self.plan.lanes as usize];
        self.staged.starting_at(b, tile.place).fill(b, rows, column, &content(len, &factors));
    }

    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize) {
        let Blocks { segment, .. } = self.blocks;
        let scratch = (self.scratch, segment * self.scratch.line);
        decode_segments(b, (&self.plan.layout, segment), (first, len), scratch, |scratch, _| Decode {
            weights,
            how: None,
            vectors: self.plan.vectors,
            scratch,
            group: segment,
            piecewise: true,
        });
    }

    fn add(
        &self,
        b: &mut Builder,
        _weights: &Weights<'_>,
        (_, tile): (&Rows, RowTile),
        (_, len): (Pos, usize),
        at: Pos,
    ) {
        let (plan, tile_m) = (self.plan, self.schedule.tile_m as usize);
        let staged = self.staged.starting_at(b, tile.place);
        let ty = Type::vector(Scalar::F32, plan.lanes);
        let step = 4 * self.schedule.unroll as usize;
        let one = |b: &mut Builder, column: Pos, state: &mut [Value]| {
            outer_product(
                b,
                (tile_m, plan.vectors),
                &|b, row| staged.number(b, row, column),
                &|b, v| self.scratch.load(b, ty, column, v),
                &|b, kept, read, sum| b.fma(kept, read, sum),
                state,
            );
        };
        let start = self.results.load_all(b, at, self.count());
        let state = each(b, (len, step), start, &one);
        for (i, value) in state.into_iter().enumerate() {
            self.results.store(b, at, i, value);
        }
    }

    fn results(&self, b: &mut Builder, _weights: &Weights<'_>, _rows: &Rows, at: Pos) -> Vec<Value> {
        self.results.load_all(b, at, self.count())
    }
}
