//! Family `tile` in blocks of columns: decoded weights of a block stay in the nearest cache while all rows pass over
//! them, and results of a block wait in scratch for the next one.
//!
//! ```text
//! rows, up to `rows` at a time ─► blocks of columns: decode ─► tiles of rows: sums, added to results in scratch
//!                                                     └────► at the end: epilogue
//! ```

use super::integer::{IntegerSums, Results};
use super::tile::{Decode, Scratch};
use super::{Plan, Tile, epilogue, has_dot};
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, split};
use crate::lower::stage::{Content, Kept, Staged};
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Piece, Pos, Step, Visit, Walk, repeat};
use crate::op::Matmul;
use crate::schedule::Schedule;

/// Decoded weights of a block should leave half of a first-level cache of 32 KiB to what passes over them.
const BLOCK_BYTES: usize = 16 << 10;
/// Columns of straight code, at most.
const STRAIGHT: usize = 128;
/// Tiles of rows whose results wait in scratch.
const TILES: usize = 32;

/// How columns are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Columns of a block.
    columns: usize,
    /// Columns that share scales of weights and activations, within a block.
    segment: usize,
}

/// The blocks of a matmul; `None` where one block holds all columns, or segments do not fit: then rows pass over all of K.
pub(super) fn blocks(
    op: &Matmul,
    layout: &N16,
    integers: Option<&Integers>,
    tile_n: u32,
    caps: &Caps,
) -> Option<Blocks> {
    let per_line = if integers.is_some() { 4 } else { 1 };
    let most = BLOCK_BYTES / (4 * tile_n as usize) * per_line;
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
    } else if integers.is_none() && group.is_multiple_of(most) {
        most
    } else {
        return None;
    };
    let columns = most / segment * segment;
    (caps.vector_bytes >= 32 && whole(segment) && columns < op.k).then_some(Blocks { columns, segment })
}

/// Whether a tile fits: sums in registers, vectors of weights, one activation. Results wait in scratch.
pub(super) fn fits(tile_m: u32, vectors: u32, layout: &N16, integers: Option<&Integers>, caps: &Caps) -> bool {
    let sums = tile_m * vectors;
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    let needed = match integers {
        // Sums in 16 bits, a product, and what the end of a segment takes: scales, sums of activations, zero points.
        Some(how) if !has_dot(caps) && how.bits <= 4 => sums + 4 + 2 * shifted,
        // 16 bits hold so few products that both kinds of sums are in use all the time.
        Some(how) if !has_dot(caps) && how.bits < 8 => 2 * sums + 4 + 2 * shifted,
        // Even and odd bytes of both sides.
        Some(_) if !has_dot(caps) => sums + 7,
        Some(_) => sums + 3 + shifted,
        // Decoding joins planes and holds scales and zero points of each vector.
        None => sums.max((layout.planes.len() as u32 + shifted) * vectors + 8) + 1,
    };
    // At the end of a segment: what scales and shifts the sums of each vector.
    let ends = match integers {
        Some(how) => sums + vectors * (1 + shifted.max(u32::from(how.has_table()))) + 4,
        None => 0,
    };
    (needed + vectors.min(tile_m)).max(ends) <= caps.vector_registers
}

/// What a kernel in blocks is made of.
struct Panel<'a> {
    plan: &'a Plan,
    params: &'a Params,
    weights: &'a Weights<'a>,
    blocks: Blocks,
    schedule: &'a Schedule,
    scratch: Scratch,
    results: Kept,
    /// Sums in 32 bits of a tile, where a segment is longer than 16 bits can add up.
    long: Option<Kept>,
    staged: Option<Staged>,
    /// Columns whose products add up in 16 bits; a whole segment where there is a dot instruction.
    burst: usize,
    late: bool,
}

/// The kernel's body.
pub(super) fn build(b: &mut Builder, plan: &Plan, schedule: &Schedule, caps: &Caps, params: &Params, blocks: Blocks) {
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_n = schedule.tile_n as usize;
    let weights = Weights::new(&plan.layout, params.get(Role::Weights), start, plan.op.n, tile_n, caps);
    let line = tile_n * 4;
    let lines = if plan.integers.is_some() { blocks.columns / 4 } else { blocks.columns };
    let scratch = Scratch {
        memory: b.shared("decoded", (lines * line) as u32, 64),
        line,
        vector: plan.lanes as usize * 4,
        base: Pos::fixed(0),
    };
    let (rows, count) = (schedule.tile_m as usize * TILES, schedule.tile_m as usize * plan.vectors);
    let results = Kept::declare(b, "results", rows * plan.vectors, plan.lanes);
    let late = plan.integers.is_some() && !has_dot(caps);
    // Pairs of products of codes below 2^bits by bytes, as many as 16 bits hold.
    let burst = match &plan.integers {
        Some(how) if late => 4 * (32767 / (((1usize << how.bits) - 1) * 256)).max(1),
        _ => blocks.segment,
    };
    let unit = plan.layout.unit;
    let burst = (burst / unit * unit).clamp(unit, STRAIGHT).min(blocks.segment);
    let burst = if late { burst } else { blocks.segment };
    let long = (burst < blocks.segment).then(|| Kept::declare(b, "sums", count, plan.lanes));
    let staged = plan.integers.is_none().then(|| {
        let factors = vec![1.0; plan.lanes as usize];
        let content = content(blocks.columns, &factors);
        Staged::declare(b, schedule.tile_m as usize, &content, plan.lanes)
    });
    let panel =
        Panel { plan, params, weights: &weights, blocks, schedule, scratch, results, long, staged, burst, late };
    let zero = b.int(Scalar::I32, 0);
    b.for_loop(zero, params.m, rows as i64, &[], |b, first, _| {
        let end = b.bin_imm(BinOp::Add, first, rows as i64);
        let end = b.bin(BinOp::MinS, end, params.m);
        panel.rows(b, (first, end), start);
        Vec::new()
    });
}

/// Activations as they are.
fn content(columns: usize, factors: &[f32]) -> Content<'_> {
    Content { k: columns, segment: columns, factors, sum_factor: None }
}

impl Panel<'_> {
    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }

    /// Does something for each tile of some rows: with its first row and where its results lie.
    fn tiles(&self, b: &mut Builder, (from, to): (Value, Value), mut body: impl FnMut(&mut Builder, Value, Pos)) {
        b.for_loop(from, to, i64::from(self.schedule.tile_m), &[], |b, first, _| {
            let within = b.bin(BinOp::Sub, first, from);
            let within = b.cast(CastOp::ExtendS, within, Scalar::I64);
            let at = Pos { index: Some(within), fixed: 0 }.times(b, self.plan.vectors);
            body(b, first, at);
            Vec::new()
        });
    }

    /// All columns for the rows `span`.
    fn rows(&self, b: &mut Builder, span: (Value, Value), start: Value) {
        let lanes = self.plan.lanes;
        self.tiles(b, span, |b, _, at| {
            let nothing = b.f32(lanes, 0.0);
            (0..self.count()).for_each(|i| self.results.store(b, at, i, nothing));
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
        self.tiles(b, span, |b, first, at| {
            let rows = self.rows_of(b, first);
            let results = (0..self.count()).map(|i| self.results.load(b, at, i)).collect();
            epilogue::store(b, self.plan, self.params, &rows, (first, self.schedule.tile_m == 1), start, results);
        });
    }

    fn rows_of(&self, b: &mut Builder, first: Value) -> Rows {
        Rows::new(b, &self.plan.op, self.params, first, self.schedule.tile_m as usize, self.plan.lanes)
    }

    /// `len` columns of a block.
    fn block(&self, b: &mut Builder, span: (Value, Value), block: Pos, len: usize) {
        let Blocks { columns, segment } = self.blocks;
        let first = block.times(b, columns / segment);
        self.decode(b, first, len);
        let column = block.times(b, columns);
        self.tiles(b, span, |b, row, at| {
            let rows = self.rows_of(b, row);
            match (&self.plan.integers, &self.staged) {
                (Some(how), _) => self.integers(b, &rows, how, first, len, at),
                (None, Some(staged)) => self.floats(b, &rows, staged, column, len, at),
                (None, None) => unreachable!("activations are staged where codes are no integers"),
            }
        });
    }

    fn decode(&self, b: &mut Builder, first: Pos, len: usize) {
        let Blocks { segment, .. } = self.blocks;
        let walk = Walk::new(&self.plan.layout, segment, 1).expect("blocks are cut in segments that a walk takes");
        let bytes = if self.plan.integers.is_some() { segment / 4 } else { segment } * self.scratch.line;
        repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
            let scratch = Scratch { base: turn.times(b, bytes), ..self.scratch };
            let mut decode = Decode {
                weights: self.weights,
                how: self.plan.integers.as_ref(),
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

    /// Integer sums of a tile over the segments of a block.
    fn integers(&self, b: &mut Builder, rows: &Rows, how: &Integers, first: Pos, len: usize, at: Pos) {
        let (plan, segment) = (self.plan, self.blocks.segment);
        let tile = Tile { weights: self.weights, rows, vectors: plan.vectors, waits: plan.waits, team: None };
        // What adds up in 16 bits is straight code.
        let walk = if self.late { plan.walk.unrolled(self.burst / plan.layout.unit) } else { plan.walk.clone() };
        let int = Type::vector(Scalar::I32, plan.lanes);
        repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
            let at_segment = first.add(b, turn);
            let whole = walk.whole(b, at_segment);
            let base = turn.times(b, segment / 4);
            let sums_of = |b: &mut Builder, piece: &Piece, line: Pos, inner: Option<Vec<Value>>| {
                let mut bytes = |b: &mut Builder, step: &Step, quad: usize, v: usize| {
                    let line = line.add(b, step.local).plus(quad);
                    self.scratch.load(b, Type::vector(Scalar::I8, 4 * plan.lanes), line, v)
                };
                let results = Results::Scratch(&self.results, at);
                let mut sums = IntegerSums {
                    tile: &tile,
                    how,
                    segment,
                    bytes: &mut bytes,
                    late: self.late,
                    quarters: false,
                    results,
                };
                let inner = inner.unwrap_or_else(|| sums.begin(b, piece.segment));
                let inner = walk.piece(b, &mut sums, piece, None, inner);
                tile.folded(b, &inner)
            };
            let finish = |b: &mut Builder, sum: &mut dyn FnMut(&mut Builder, usize) -> Value| {
                let mut none = |_: &mut Builder, _: &Step, _: usize, _: usize| -> Value {
                    unreachable!("the end of a segment reads no codes")
                };
                let results = Results::Scratch(&self.results, at);
                let sums = IntegerSums {
                    tile: &tile,
                    how,
                    segment,
                    bytes: &mut none,
                    late: self.late,
                    quarters: false,
                    results,
                };
                sums.finish(b, at_segment, Vec::new(), sum);
            };
            let Some(long) = &self.long else {
                let sums = sums_of(b, &whole, base, None);
                finish(b, &mut |_, i| sums[i]);
                return Vec::new();
            };
            let nothing = b.f32(plan.lanes, 0.0);
            (0..self.count()).for_each(|i| long.store(b, Pos::fixed(0), i, nothing));
            let part = |b: &mut Builder, column: Pos, len: usize| {
                let piece = walk.part(b, &whole, column, len);
                let lines = Pos { index: column.index.map(|i| split(b, i, 4).0), fixed: column.fixed / 4 };
                let line = base.add(b, lines);
                let zero = b.int(int, 0);
                let inner = vec![zero; tile.chains() * tile.sums()];
                for (i, sum) in sums_of(b, &piece, line, Some(inner)).into_iter().enumerate() {
                    let before = long.load(b, Pos::fixed(0), i);
                    let before = b.bitcast(before, int);
                    let sum = b.add(sum, before);
                    let sum = b.bitcast(sum, int.with_scalar(Scalar::F32));
                    long.store(b, Pos::fixed(0), i, sum);
                }
                Vec::new()
            };
            repeat(b, segment / self.burst, self.burst, Vec::new(), |b, column, _| part(b, column, self.burst));
            if !segment.is_multiple_of(self.burst) {
                part(b, Pos::fixed(segment / self.burst * self.burst), segment % self.burst);
            }
            finish(b, &mut |b, i| {
                let sum = long.load(b, Pos::fixed(0), i);
                b.bitcast(sum, int)
            });
            Vec::new()
        });
    }

    /// Multiply-adds of a tile over the columns of a block.
    fn floats(&self, b: &mut Builder, rows: &Rows, staged: &Staged, column: Pos, len: usize, at: Pos) {
        let plan = self.plan;
        let factors = vec![1.0; plan.lanes as usize];
        staged.fill(b, rows, column, &content(len, &factors));
        let ty = Type::vector(Scalar::F32, plan.lanes);
        let step = 4 * self.schedule.unroll as usize;
        let one = |b: &mut Builder, column: Pos, state: &mut [Value]| {
            let mut add = |b: &mut Builder, row: usize, v: usize, w: Value, x: Value| {
                let sum = &mut state[row * plan.vectors + v];
                *sum = b.fma(w, x, *sum);
            };
            // What there are fewer of stays in registers.
            if rows.count() > plan.vectors {
                let w: Vec<Value> = (0..plan.vectors).map(|v| self.scratch.load(b, ty, column, v)).collect();
                for row in 0..rows.count() {
                    let x = staged.number(b, row, column);
                    w.iter().enumerate().for_each(|(v, &w)| add(b, row, v, w, x));
                }
                return;
            }
            let x: Vec<Value> = (0..rows.count()).map(|row| staged.number(b, row, column)).collect();
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
