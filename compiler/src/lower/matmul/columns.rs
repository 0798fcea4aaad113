//! Family `tile` in blocks of columns: decoded weights of a block stay in the nearest cache while all rows pass over them, results
//! of a block wait in scratch for the next one, and activations are converted once for several strips of W.
//!
//! ```text
//! rows, up to `rows` at a time ─► blocks of columns: convert X ─► strips of W: decode ─► tiles of rows: sums, added to
//!                              │                                                       results in scratch
//!                              └► at the end: epilogue
//! ```

mod dots;
mod floats;
mod pairs;
mod scaled;

use self::scaled::Scaled;
use super::spans::Span;
use super::tile::Scratch;
use super::{Plan, epilogue, has_dot, integers_of};
use crate::caps::{Caps, Feature};
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, at};
use crate::lower::unpack::Weights;
use crate::lower::walk::{Pos, Visit, Walk, repeat};
use crate::op::Matmul;
use crate::schedule::Schedule;

/// Decoded weights of a block should leave half of a first-level cache of 32 KiB to what passes over them.
const BLOCK_BYTES: usize = 16 << 10;
/// Rows whose results wait in scratch, with their activations of a block: about a hundred KiB of each in the second cache.
const ROWS: usize = 192;

/// Strips of W that share converted activations. They are a fifth of the time of one strip, so that eight leave little; but
/// there should be 64 workgroups, for as many threads.
/// Dot products of bf16 have wider tiles, of which half as many must do.
pub(super) fn strips(op: &Matmul, tile_n: u32, blocks: &Blocks) -> u32 {
    let workgroups = if blocks.are_dots() { 32 } else { 64 };
    (op.n as u32 / (workgroups * tile_n)).clamp(1, MOST_STRIPS)
}

/// Most strips, whose results lie in scratch side by side.
pub(super) const MOST_STRIPS: u32 = 8;

/// What sums are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Multiply-adds of `f32` numbers.
    Floats,
    /// Products of 16 bits in pairs, for bytes of 8 bits where there is no instruction for four bytes: those that there are
    /// add two of their products in 16 bits, which do not hold them.
    Pairs,
    /// Products of bytes in pairs, times the inner of two scales.
    Scaled(Span),
    /// Dot products of bf16 in pairs.
    Dots,
}

impl Kind {
    /// Bytes of a decoded weight.
    fn bytes(self) -> usize {
        match self {
            Kind::Floats => 4,
            Kind::Pairs | Kind::Dots => 2,
            // With its share of the scales of short groups beside it.
            Kind::Scaled(_) => 2,
        }
    }
}

/// How columns are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    kind: Kind,
    /// Columns of a block.
    columns: usize,
    /// Columns that share scales of weights and activations, within a block.
    segment: usize,
}

impl Blocks {
    /// Whether sums are of dot products of floats.
    pub fn are_dots(&self) -> bool {
        self.kind == Kind::Dots
    }

    /// Whether integer sums meet the inner of two scales before they become floats.
    pub fn are_scaled(&self) -> bool {
        matches!(self.kind, Kind::Scaled(_))
    }
}

/// The blocks of a matmul; `None` where one block holds all columns, or segments do not fit: then rows pass over all of K.
/// Bytes of integer sums in dot instructions are a fourth of the size, and gain nothing by blocks.
pub(super) fn blocks(op: &Matmul, layout: &N16, tile_n: u32, caps: &Caps) -> Option<Blocks> {
    let mut group = op.segment();
    let kind = match integers_of(op, layout, caps) {
        None if dots::serves(op, layout, caps) => Kind::Dots,
        None => Kind::Floats,
        Some(how) if !has_dot(caps) && caps.features.has(Feature::Dot2) => match Span::of_signed(op, layout, &how) {
            Some(span) => {
                group = span.columns;
                Kind::Scaled(span)
            }
            None if how.bits < 8 => return None,
            None => Kind::Pairs,
        },
        Some(_) => return None,
    };
    let most = BLOCK_BYTES / (kind.bytes() * tile_n as usize);
    let lanes = (caps.vector_bytes / 4) as usize;
    // Columns that are converted at once.
    let together = match kind {
        Kind::Floats => lanes,
        Kind::Pairs | Kind::Scaled(_) => 4 * lanes,
        Kind::Dots => 2 * lanes,
    };
    let whole = |segment: usize, columns: usize| {
        op.k.is_multiple_of(segment)
            && segment.is_multiple_of(layout.unit)
            && segment.is_multiple_of(if kind == Kind::Dots && dots::wants_sums(layout) { together } else { lanes })
            && op.k.is_multiple_of(together)
            && columns.is_multiple_of(together)
            && layout.padded_group == layout.group
    };
    let segment = if group <= most {
        group
    } else if group.is_multiple_of(most) && (kind != Kind::Pairs || group == op.k) {
        most
    } else {
        return None;
    };
    let columns = most / segment * segment;
    (caps.vector_bytes >= 32 && whole(segment, columns) && columns < op.k).then_some(Blocks { kind, columns, segment })
}

/// Whether a tile fits. Results wait in scratch.
pub(super) fn fits(blocks: &Blocks, tile_m: u32, vectors: u32, layout: &N16, caps: &Caps) -> bool {
    match blocks.kind {
        Kind::Floats => floats::fits(tile_m, vectors, layout, caps),
        Kind::Pairs => pairs::fits(tile_m, vectors, layout, caps),
        Kind::Scaled(span) => scaled::fits(&span, tile_m, vectors, caps),
        Kind::Dots => dots::fits(tile_m, vectors, layout, caps),
    }
}

/// What is done with a block and a tile of rows, for one kind of sums.
trait Work {
    /// Results of a tile before the first block.
    fn start(&self, b: &mut Builder, at: Pos);
    /// Makes `len` activations of a tile of rows ready, from a column on.
    fn stage(&self, b: &mut Builder, rows: &Rows, tile: RowTile, column: Pos, len: usize);
    /// Decodes `len` columns from segment `first` on.
    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize);
    /// Adds the products of these columns to the results at a place.
    fn add(&self, b: &mut Builder, weights: &Weights<'_>, tile: (&Rows, RowTile), part: (Pos, usize), at: Pos);
    /// The results `[row][vector]` after the last block.
    fn results(&self, b: &mut Builder, weights: &Weights<'_>, rows: &Rows, at: Pos) -> Vec<Value>;
}

/// What a kernel in blocks is made of.
struct Panel<'a> {
    plan: &'a Plan,
    params: &'a Params,
    caps: &'a Caps,
    blocks: Blocks,
    schedule: &'a Schedule,
    work: &'a dyn Work,
    /// First row of W, and the one behind the last.
    span: (Value, Value),
}

/// The kernel's body.
pub(super) fn build(b: &mut Builder, plan: &Plan, schedule: &Schedule, caps: &Caps, params: &Params, blocks: Blocks) {
    let width = i64::from(schedule.tile_n) * i64::from(schedule.strips);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, width);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let end = b.bin_imm(BinOp::Add, start, width);
    let last = b.int(Scalar::I64, plan.op.n as i64);
    let end = b.bin(BinOp::MinS, end, last);
    let (dots, floats, pairs, scaled);
    let work: &dyn Work = match (blocks.kind, &plan.integers) {
        (Kind::Pairs, Some(how)) => {
            pairs = pairs::Pairs::new(b, plan, how, schedule, blocks);
            &pairs
        }
        (Kind::Scaled(span), Some(how)) => {
            scaled = Scaled::new(b, plan, how, schedule, blocks, span);
            &scaled
        }
        (Kind::Dots, _) => {
            dots = dots::Dots::new(b, plan, schedule, blocks);
            &dots
        }
        _ => {
            floats = floats::Floats::new(b, plan, schedule, blocks);
            &floats
        }
    };
    let panel = Panel { plan, params, caps, blocks, schedule, work, span: (start, end) };
    let rows = rows_at_once(schedule);
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

/// Vectors of results of all strips.
fn vectors_of_results(plan: &Plan, schedule: &Schedule) -> usize {
    schedule.strips as usize * rows_at_once(schedule) * plan.vectors
}

/// Adds products of pairs of 16-bit words to sums `[row][vector]`: a line of weights in scratch, and for each row the pair of
/// activations that lies at a place.
fn pair_products(
    b: &mut Builder,
    (plan, schedule): (&Plan, &Schedule),
    (scratch, line): (&Scratch, Pos),
    (activations, word): (Memory, Scalar),
    place: &dyn Fn(&mut Builder, usize) -> Pos,
    sums: &mut [Value],
) {
    let words = Type::vector(word, 2 * plan.lanes);
    let load = |b: &mut Builder, row: usize| {
        let place = place(b, row);
        let words_of_row = b.load(Scalar::I32, at(activations, place.index, place.fixed), 4);
        let words_of_row = b.splat(words_of_row, plan.lanes);
        b.bitcast(words_of_row, words)
    };
    outer_product(
        b,
        (schedule.tile_m as usize, plan.vectors),
        &load,
        &|b, v| scratch.load(b, words, line, v),
        &|b, kept, read, sum| b.dot2(kept, read, sum),
        sums,
    );
}

/// Adds the products of `rows` activations and `vectors` vectors of weights to sums `[row][vector]`. What there are fewer of is
/// read first and stays in registers; `multiply` takes what stays, what is read beside it, and the sum.
fn outer_product(
    b: &mut Builder,
    (rows, vectors): (usize, usize),
    activation: &dyn Fn(&mut Builder, usize) -> Value,
    weight: &dyn Fn(&mut Builder, usize) -> Value,
    multiply: &dyn Fn(&mut Builder, Value, Value, Value) -> Value,
    sums: &mut [Value],
) {
    if rows > vectors {
        let w: Vec<Value> = (0..vectors).map(|v| weight(b, v)).collect();
        for row in 0..rows {
            let x = activation(b, row);
            for (v, &w) in w.iter().enumerate() {
                let sum = &mut sums[row * vectors + v];
                *sum = multiply(b, w, x, *sum);
            }
        }
        return;
    }
    let x: Vec<Value> = (0..rows).map(|row| activation(b, row)).collect();
    for v in 0..vectors {
        let w = weight(b, v);
        for (row, &x) in x.iter().enumerate() {
            let sum = &mut sums[row * vectors + v];
            *sum = multiply(b, x, w, *sum);
        }
    }
}

/// Decodes `len` columns from segment `first` on: `visitor` makes what decodes a segment, the how-manieth of the block it takes,
/// into its lines of scratch.
fn decode_segments<V: Visit>(
    b: &mut Builder,
    (layout, segment): (&N16, usize),
    (first, len): (Pos, usize),
    (scratch, bytes): (Scratch, usize),
    visitor: impl Fn(Scratch, Pos) -> V,
) {
    let walk = Walk::new(layout, segment, 1).expect("blocks are cut in segments that a walk takes");
    repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
        let mut visit = visitor(Scratch { base: turn.times(b, bytes), ..scratch }, turn);
        let at = first.add(b, turn);
        let piece = walk.whole(b, at);
        let state = visit.begin(b, piece.segment);
        let state = walk.piece(b, &mut visit, &piece, None, state);
        visit.end(b, piece.segment, state, Vec::new())
    });
}

/// A tile of rows: its first one, and its place among those that are worked on.
#[derive(Clone, Copy)]
struct RowTile {
    first: Value,
    place: Pos,
}

impl Panel<'_> {
    /// Does something for each tile of some rows.
    fn tiles(&self, b: &mut Builder, (from, to): (Value, Value), mut body: impl FnMut(&mut Builder, RowTile)) {
        b.for_loop(from, to, i64::from(self.schedule.tile_m), &[], |b, first, _| {
            let within = b.bin(BinOp::Sub, first, from);
            let within = b.cast(CastOp::ExtendS, within, Scalar::I64);
            body(b, RowTile { first, place: Pos::of(within) });
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
            let at = Pos::of(within);
            let at = at.divide(b, self.plan.lanes as usize).times(b, rows_at_once(self.schedule));
            body(b, row, at);
            Vec::new()
        });
    }

    /// Where the results of a tile of rows lie in a strip.
    fn results_of(&self, b: &mut Builder, strip: Pos, tile: RowTile) -> Pos {
        tile.place.times(b, self.plan.vectors).add(b, strip)
    }

    fn weights_of(&self, start: Value) -> Weights<'_> {
        let memory = self.params.get(Role::Weights);
        let tile_n = self.schedule.tile_n as usize;
        Weights::new(&self.plan.layout, memory, start, self.plan.op.n, tile_n, self.caps)
    }

    /// All columns for the rows `span`.
    fn rows(&self, b: &mut Builder, span: (Value, Value)) {
        self.strips(b, |b, _, strip| {
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                self.work.start(b, at);
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
            let weights = self.weights_of(start);
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                let rows = self.rows_of(b, tile.first);
                let results = self.work.results(b, &weights, &rows, at);
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
        let Blocks { columns, segment, .. } = self.blocks;
        let first = block.times(b, columns / segment);
        let column = block.times(b, columns);
        self.tiles(b, span, |b, tile| {
            let rows = self.rows_of(b, tile.first);
            self.work.stage(b, &rows, tile, column, len);
        });
        self.strips(b, |b, start, strip| {
            let weights = self.weights_of(start);
            self.work.decode(b, &weights, first, len);
            self.tiles(b, span, |b, tile| {
                let at = self.results_of(b, strip, tile);
                let rows = self.rows_of(b, tile.first);
                self.work.add(b, &weights, (&rows, tile), (first, len), at);
            });
        });
    }
}
