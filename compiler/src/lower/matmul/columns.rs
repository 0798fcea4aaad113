//! Family `tile` for float sums, in blocks of columns: decoded weights of a block stay in the nearest cache while all rows pass over
//! them, results of a block wait in scratch for the next one, and activations are converted once for several strips of W.
//!
//! ```text
//! rows, up to `rows` at a time ─► blocks of columns: convert X ─► strips of W: decode ─► tiles of rows: sums, added to
//!                              │                                                       results in scratch
//!                              └► at the end: epilogue
//! ```

use super::tile::{Decode, Scratch};
use super::{Plan, epilogue, integers_of};
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role};
use crate::lower::stage::{Content, Kept, Staged};
use crate::lower::unpack::Weights;
use crate::lower::walk::{Pos, Visit, Walk, repeat};
use crate::op::Matmul;
use crate::schedule::Schedule;

/// Decoded weights of a block should leave half of a first-level cache of 32 KiB to what passes over them.
const BLOCK_BYTES: usize = 16 << 10;
/// Rows whose results wait in scratch, with their activations of a block: about a hundred KiB of each in the second cache.
const ROWS: usize = 192;

/// Strips of W that share converted activations. They are a fifth of the time of one strip, so that eight leave little; but there
/// should be workgroups for many threads.
pub(super) fn strips(op: &Matmul, tile_n: u32) -> u32 {
    (op.n as u32 / (32 * tile_n)).clamp(1, MOST_STRIPS)
}

/// Most strips, whose results lie in scratch side by side.
pub(super) const MOST_STRIPS: u32 = 8;

/// How columns are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Columns of a block.
    columns: usize,
    /// Columns that share scales of weights and activations, within a block.
    segment: usize,
}

/// The blocks of a matmul whose sums are floats; `None` where one block holds all columns, or segments do not fit: then
/// rows pass over all of K. Bytes for integer sums are a fourth of the size, and gain nothing by blocks.
pub(super) fn blocks(op: &Matmul, layout: &N16, tile_n: u32, caps: &Caps) -> Option<Blocks> {
    let most = BLOCK_BYTES / (4 * tile_n as usize);
    let lanes = (caps.vector_bytes / 4) as usize;
    let whole = |segment: usize| {
        op.k.is_multiple_of(segment)
            && segment.is_multiple_of(layout.unit)
            && segment.is_multiple_of(lanes)
            && layout.padded_group == layout.group
    };
    let group = op.segment();
    let segment = if group <= most {
        group
    } else if group.is_multiple_of(most) {
        most
    } else {
        return None;
    };
    let columns = most / segment * segment;
    let floats = caps.vector_bytes >= 32 && integers_of(op, layout, caps).is_none();
    (floats && whole(segment) && columns < op.k).then_some(Blocks { columns, segment })
}

/// Whether a tile fits: sums in registers, vectors of weights, one activation; decoding joins planes and holds scales and
/// zero points of each vector. Results wait in scratch.
pub(super) fn fits(tile_m: u32, vectors: u32, layout: &N16, caps: &Caps) -> bool {
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    let sums = (tile_m * vectors).max((layout.planes.len() as u32 + shifted) * vectors + 8);
    sums + 1 + vectors.min(tile_m) <= caps.vector_registers
}

/// What a kernel in blocks is made of.
struct Panel<'a> {
    plan: &'a Plan,
    params: &'a Params,
    caps: &'a Caps,
    blocks: Blocks,
    schedule: &'a Schedule,
    scratch: Scratch,
    /// `[strip][row]`, tiles of rows side by side.
    results: Kept,
    staged: Staged,
    /// First row of W, and the one behind the last.
    span: (Value, Value),
}

/// The kernel's body.
pub(super) fn build(b: &mut Builder, plan: &Plan, schedule: &Schedule, caps: &Caps, params: &Params, blocks: Blocks) {
    let tile_n = schedule.tile_n as usize;
    let width = i64::from(schedule.tile_n) * i64::from(schedule.strips);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, width);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let end = b.bin_imm(BinOp::Add, start, width);
    let last = b.int(Scalar::I64, plan.op.n as i64);
    let end = b.bin(BinOp::MinS, end, last);
    let line = tile_n * 4;
    let scratch = Scratch {
        memory: b.shared("decoded", (blocks.columns * line) as u32, 64),
        line,
        vector: plan.lanes as usize * 4,
        base: Pos::fixed(0),
    };
    let rows = rows_at_once(schedule);
    let results = Kept::declare(b, "results", schedule.strips as usize * rows * plan.vectors, plan.lanes);
    let factors = vec![1.0; plan.lanes as usize];
    let staged = Staged::declare(b, rows, &content(blocks.columns, &factors), plan.lanes);
    let panel = Panel { plan, params, caps, blocks, schedule, scratch, results, staged, span: (start, end) };
    let zero = b.int(Scalar::I32, 0);
    b.for_loop(zero, params.m, rows as i64, &[], |b, first, _| {
        let end = b.bin_imm(BinOp::Add, first, rows as i64);
        let end = b.bin(BinOp::MinS, end, params.m);
        panel.rows(b, (first, end));
        Vec::new()
    });
}

/// Whole tiles of rows.
fn rows_at_once(schedule: &Schedule) -> usize {
    ROWS / schedule.tile_m as usize * schedule.tile_m as usize
}

/// Activations as they are.
fn content(columns: usize, factors: &[f32]) -> Content<'_> {
    Content { k: columns, segment: columns, factors, sum_factor: None }
}

/// A tile of rows: its first one, and its place among those that are worked on.
#[derive(Clone, Copy)]
struct RowTile {
    first: Value,
    place: Pos,
}

impl Panel<'_> {
    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }

    /// Does something for each tile of some rows.
    fn tiles(&self, b: &mut Builder, (from, to): (Value, Value), mut body: impl FnMut(&mut Builder, RowTile)) {
        b.for_loop(from, to, i64::from(self.schedule.tile_m), &[], |b, first, _| {
            let within = b.bin(BinOp::Sub, first, from);
            let within = b.cast(CastOp::ExtendS, within, Scalar::I64);
            body(b, RowTile { first, place: Pos { index: Some(within), fixed: 0 } });
            Vec::new()
        });
    }

    /// Does something for each strip of W: with its first row, and where its results start, in vectors.
    fn strips(&self, b: &mut Builder, mut body: impl FnMut(&mut Builder, Value, Pos)) {
        let (start, end) = self.span;
        if self.schedule.strips == 1 {
            return body(b, start, Pos::fixed(0));
        }
        b.for_loop(start, end, i64::from(self.schedule.tile_n), &[], |b, row, _| {
            let within = b.bin(BinOp::Sub, row, start);
            // A strip is `vectors` vectors of `lanes` rows of W wide, and has results of as many vectors per row of X.
            let at = Pos { index: Some(within), fixed: 0 };
            let at = at.divide(b, self.plan.lanes as usize).times(b, rows_at_once(self.schedule));
            body(b, row, at);
            Vec::new()
        });
    }

    /// Where the results of a tile of rows lie in a strip.
    fn results_of(&self, b: &mut Builder, strip: Pos, tile: RowTile) -> Pos {
        tile.place.times(b, self.plan.vectors).add(b, strip)
    }

    /// All columns for the rows `span`.
    fn rows(&self, b: &mut Builder, span: (Value, Value)) {
        let lanes = self.plan.lanes;
        self.strips(b, |b, _, strip| {
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                let nothing = b.f32(lanes, 0.0);
                (0..self.count()).for_each(|i| self.results.store(b, at, i, nothing));
            });
        });
        let Blocks { columns, .. } = self.blocks;
        let full = self.plan.op.k / columns;
        repeat(b, full, 1, Vec::new(), |b, block, _| {
            self.block(b, span, block, columns);
            Vec::new()
        });
        let rest = self.plan.op.k % columns;
        if rest > 0 {
            self.block(b, span, Pos::fixed(full), rest);
        }
        self.strips(b, |b, start, strip| {
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                let rows = self.rows_of(b, tile.first);
                let results = (0..self.count()).map(|i| self.results.load(b, at, i)).collect();
                let exact = self.schedule.tile_m == 1;
                epilogue::store(b, self.plan, self.params, &rows, (tile.first, exact), start, results);
            });
        });
    }

    fn rows_of(&self, b: &mut Builder, first: Value) -> Rows {
        Rows::new(b, &self.plan.op, self.params, first, self.schedule.tile_m as usize, self.plan.lanes)
    }

    /// `len` columns of a block.
    fn block(&self, b: &mut Builder, span: (Value, Value), block: Pos, len: usize) {
        let Blocks { columns, segment } = self.blocks;
        let first = block.times(b, columns / segment);
        let column = block.times(b, columns);
        let factors = vec![1.0; self.plan.lanes as usize];
        self.tiles(b, span, |b, tile| {
            let rows = self.rows_of(b, tile.first);
            self.staged.from_row(b, tile.place).fill(b, &rows, column, &content(len, &factors));
        });
        let (op, tile_n) = (&self.plan.op, self.schedule.tile_n as usize);
        self.strips(b, |b, start, strip| {
            let memory = self.params.get(Role::Weights);
            let weights = Weights::new(&self.plan.layout, memory, start, op.n, tile_n, self.caps);
            self.decode(b, &weights, first, len);
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                let staged = self.staged.from_row(b, tile.place);
                self.floats(b, &staged, len, at);
            });
        });
    }

    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize) {
        let Blocks { segment, .. } = self.blocks;
        let walk = Walk::new(&self.plan.layout, segment, 1).expect("blocks are cut in segments that a walk takes");
        let bytes = segment * self.scratch.line;
        repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
            let scratch = Scratch { base: turn.times(b, bytes), ..self.scratch };
            let mut decode = Decode {
                weights,
                how: None,
                vectors: self.plan.vectors,
                scratch: &scratch,
                group: segment,
                piecewise: true,
            };
            let at = first.add(b, turn);
            let piece = walk.whole(b, at);
            let state = decode.begin(b, piece.segment);
            walk.piece(b, &mut decode, &piece, None, state);
            Vec::new()
        });
    }

    /// Multiply-adds of a tile over the columns of a block.
    fn floats(&self, b: &mut Builder, staged: &Staged, len: usize, at: Pos) {
        let (plan, tile_m) = (self.plan, self.schedule.tile_m as usize);
        let ty = Type::vector(Scalar::F32, plan.lanes);
        let step = 4 * self.schedule.unroll as usize;
        let one = |b: &mut Builder, column: Pos, state: &mut [Value]| {
            let mut add = |b: &mut Builder, row: usize, v: usize, w: Value, x: Value| {
                let sum = &mut state[row * plan.vectors + v];
                *sum = b.fma(w, x, *sum);
            };
            // What there are fewer of stays in registers.
            if tile_m > plan.vectors {
                let w: Vec<Value> = (0..plan.vectors).map(|v| self.scratch.load(b, ty, column, v)).collect();
                for row in 0..tile_m {
                    let x = staged.number(b, row, column);
                    w.iter().enumerate().for_each(|(v, &w)| add(b, row, v, w, x));
                }
                return;
            }
            let x: Vec<Value> = (0..tile_m).map(|row| staged.number(b, row, column)).collect();
            for v in 0..plan.vectors {
                let w = self.scratch.load(b, ty, column, v);
                x.iter().enumerate().for_each(|(row, &x)| add(b, row, v, w, x));
            }
        };
        let start: Vec<Value> = (0..self.count()).map(|i| self.results.load(b, at, i)).collect();
        let mut state = repeat(b, len / step, step, start, |b, turn, mut state| {
            (0..step).for_each(|i| one(b, turn.plus(i), &mut state));
            state
        });
        (len / step * step..len).for_each(|column| one(b, Pos::fixed(column), &mut state));
        for (i, value) in state.into_iter().enumerate() {
            self.results.store(b, at, i, value);
        }
    }
}
