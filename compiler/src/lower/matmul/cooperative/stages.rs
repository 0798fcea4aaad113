//! Shared memory of family `cooperative`, and what each thread puts there.
//!
//! ```text
//! x, w       [row][columns] f16, a line 16 bytes longer than its columns, so that rows lie in different banks
//! scales     [row of W] f32, of the current segment; offsets alike
//! results    [row][column] f32, lines 16 bytes longer too
//! ```

use super::{F16X4, PIECE, folds_zero, has_offset};
use crate::format::Zero;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Type, UnOp, Value};
use crate::lower::memory::{alignment, at, byte_index, scalar_of, split, times};
use crate::lower::unpack::Weights;
use crate::lower::walk::{Piece, Pos, Split, Step, Visit};
use crate::op::{Activation, Matmul};
use crate::schedule::Schedule;

/// Bytes between lines.
const GAP: usize = 16;

/// Shared memory.
pub(super) struct Stages {
    pub x: Memory,
    pub w: Memory,
    pub scales: Memory,
    /// Where something is added to `scale · code` for each activation.
    pub offsets: Option<Memory>,
    pub results: Memory,
    /// Columns of a full piece.
    pub columns: usize,
    /// Bytes of a line of `x` and `w`.
    pub line: usize,
    /// Bytes of a line of results.
    pub result_line: usize,
}

impl Stages {
    fn columns(schedule: &Schedule) -> usize {
        PIECE * schedule.unroll as usize
    }

    fn sizes(op: &Matmul, schedule: &Schedule, result_rows: u32) -> [usize; 5] {
        let line = 2 * Stages::columns(schedule) + GAP;
        let (m, n) = (schedule.tile_m as usize, schedule.tile_n as usize);
        let offsets = if has_offset(&op.weight) { 4 * n } else { 0 };
        [m * line, n * line, 4 * n, offsets, result_rows as usize * (4 * n + GAP)]
    }

    /// Bytes that a schedule takes, with so many rows of results at a time.
    pub fn bytes(op: &Matmul, schedule: &Schedule, result_rows: u32) -> u32 {
        Stages::sizes(op, schedule, result_rows).iter().sum::<usize>() as u32
    }

    /// Declares it.
    pub fn declare(b: &mut Builder, op: &Matmul, schedule: &Schedule, result_rows: u32) -> Stages {
        let [x, w, scales, offsets, results] = Stages::sizes(op, schedule, result_rows);
        let columns = Stages::columns(schedule);
        let mut shared = |name: &str, bytes: usize| b.shared(name, bytes as u32, 16);
        Stages {
            x: shared("staged_x", x),
            w: shared("staged_w", w),
            scales: shared("scales", scales),
            offsets: (offsets > 0).then(|| shared("offsets", offsets)),
            results: shared("results", results),
            columns,
            line: 2 * columns + GAP,
            result_line: 4 * schedule.tile_n as usize + GAP,
        }
    }

    /// Four results from a line and column (`i32`) on.
    pub fn results(&self, b: &mut Builder, line: Value, column: Value) -> Value {
        let line = times(b, line, self.result_line);
        let column = times(b, column, 4);
        let place = b.add(line, column);
        b.load(Type::vector(Scalar::F32, 4), at(self.results, Some(place), 0), 16)
    }
}

/// The tile of a workgroup, and this thread among the decoders of W.
pub(super) struct Tile {
    /// The thread, `i32`.
    pub id: Value,
    /// First row of X, `i32`.
    pub first: Value,
    /// First row of W, `i64`.
    pub start: Value,
    /// The row of W that this thread decodes, `i64`; it may lie past the last one.
    pub row: Value,
    /// The same, counted from the tile's first one, `i32`.
    own: Value,
    /// Which units of it.
    pub split: Split,
    /// Bool: whether these are the first ones.
    leads: Value,
}

impl Tile {
    /// Threads stand side by side along the rows of W.
    pub fn new(b: &mut Builder, schedule: &Schedule) -> Tile {
        let id = b.builtin(Builtin::LocalId(0));
        let (tile_x, tile_y) = (b.builtin(Builtin::WorkgroupId(0)), b.builtin(Builtin::WorkgroupId(1)));
        let first = times(b, tile_x, schedule.tile_m as usize);
        let start = times(b, tile_y, schedule.tile_n as usize);
        let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
        let (slice, own) = split(b, id, schedule.tile_n as usize);
        let wide = b.cast(CastOp::ExtendS, own, Scalar::I64);
        let row = b.add(start, wide);
        let zero = b.int(Scalar::I32, 0);
        let leads = b.cmp(CmpOp::Eq, slice, zero);
        let index = b.cast(CastOp::ExtendS, slice, Scalar::I64);
        let split = Split { index, count: (schedule.threads / schedule.tile_n) as usize };
        Tile { id, first, start, row, own, split, leads }
    }
}

/// Decodes codes to f16, without scales. The state of a segment holds the row's integer zero point, where it has one.
pub(super) struct Decode<'a> {
    pub weights: &'a Weights<'a>,
    pub stages: &'a Stages,
    pub tile: &'a Tile,
    /// Columns of a segment.
    pub segment: usize,
}

impl Decode<'_> {
    /// Four numbers from a column on.
    fn store(&self, b: &mut Builder, column: Pos, four: Value) {
        let line = byte_index(b, self.tile.own, self.stages.line);
        let place = column.times(b, 2).add(b, Pos::of(line));
        b.store(at(self.stages.w, place.index, place.fixed), 8, four);
    }

    /// Zeros behind the last column of a piece.
    pub fn pad(&self, b: &mut Builder, columns: usize, padded: usize) {
        let from = columns.next_multiple_of(4);
        if from >= padded {
            return;
        }
        b.if_then(self.tile.leads, |b| {
            let nothing = b.int(F16X4, 0);
            for column in (from..padded).step_by(4) {
                self.store(b, Pos::fixed(column), nothing);
            }
        });
    }
}

impl Visit for Decode<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        if !folds_zero(&self.weights.layout.format) {
            return Vec::new();
        }
        let column = segment.times(b, self.segment);
        let group = column.divide(b, self.weights.layout.group);
        self.weights.float_zero(b, group, 0).into_iter().collect()
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, state: Vec<Value>) -> Vec<Value> {
        for (i, &valid) in step.quads.iter().enumerate() {
            let words = self.weights.words(b, step.unit, step.first + i, 0);
            let numbers: Vec<Value> = (0..4)
                .map(|byte| {
                    if byte >= valid {
                        return b.f32(1, 0.0);
                    }
                    let code = self.weights.floats(b, &words, byte);
                    state.first().map_or(code, |&zero| b.bin(BinOp::Sub, code, zero))
                })
                .collect();
            let four = b.vector(&numbers);
            let four = b.cast(CastOp::Float, four, Scalar::F16);
            let column = step.local.plus(i).times(b, 4);
            self.store(b, column, four);
        }
        state
    }

    fn end(&mut self, _b: &mut Builder, _segment: Pos, _inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        outer
    }
}

/// Scales and offsets of a segment.
pub(super) struct Factors<'a> {
    pub weights: &'a Weights<'a>,
    /// Columns of a segment.
    pub segment: usize,
}

impl Factors<'_> {
    /// Each row's by one thread.
    pub fn stage(&self, b: &mut Builder, stages: &Stages, tile: &Tile, segment: &Piece) {
        let column = segment.segment.times(b, self.segment);
        let group = column.divide(b, self.weights.layout.group);
        let place = times(b, tile.own, 4);
        b.if_then(tile.leads, |b| {
            let scale = self.weights.scale(b, group, 0);
            b.store(at(stages.scales, Some(place), 0), 4, scale);
            let Some(memory) = stages.offsets else { return };
            let offset = match self.weights.layout.format.zero {
                Zero::Offset { .. } => self.weights.offset(b, group, 0),
                _ => self.weights.float_zero(b, group, 0).map(|zero| {
                    let product = b.mul(zero, scale);
                    b.un(UnOp::Neg, product)
                }),
            };
            b.store(at(memory, Some(place), 0), 4, offset.expect("the format has zero points or offsets"));
        });
    }
}

/// Fetches X: chunks of a row, neighbouring threads along the columns.
pub(super) struct Fetch {
    memory: Memory,
    element: Scalar,
    k: usize,
    /// Neighbours that are fetched at once.
    chunk: usize,
    /// What the address of each chunk is a multiple of.
    align: u32,
    rows: usize,
    threads: usize,
    id: Value,
    first: Value,
    /// The last row of X, `i32`.
    last: Value,
}

impl Fetch {
    /// From `x`, which has `m` rows (`i32`) and starts at a multiple of `align`.
    pub fn new(b: &mut Builder, op: &Matmul, schedule: &Schedule, tile: &Tile, x: (Memory, Value, u32)) -> Fetch {
        let (memory, m, align) = x;
        let dtype = match op.activation {
            Activation::Float(dtype) | Activation::Fp8(dtype, _) => dtype,
            Activation::Int8(_) => crate::dtype::DType::I8,
        };
        let element = scalar_of(dtype);
        let size = element.bytes() as usize;
        let segment = if op.segment() < op.k { op.segment() } else { 0 };
        // Rows, segments and pieces start at whole chunks; a chunk has 16 bytes at most, and 8 numbers.
        let chunk = alignment(&[op.k, segment, 8]) as usize;
        let align = alignment(&[chunk * size, align as usize]).max(size as u32);
        let last = b.bin_imm(BinOp::Sub, m, 1);
        let (rows, threads) = (schedule.tile_m as usize, schedule.threads as usize);
        Fetch { memory, element, k: op.k, chunk, align, rows, threads, id: tile.id, first: tile.first, last }
    }

    /// The rows of a piece, and zeros up to `padded` columns. Rows past the last one repeat it; nobody stores what is made of
    /// them.
    pub fn stage(&self, b: &mut Builder, stages: &Stages, piece: &Piece, padded: usize) {
        let (whole, across) = (piece.len / self.chunk, padded / self.chunk);
        let total = self.rows * across;
        for turn in 0..total.div_ceil(self.threads) {
            let number = b.bin_imm(BinOp::Add, self.id, (turn * self.threads) as i64);
            if (turn + 1) * self.threads > total {
                let end = b.int(Scalar::I32, total as i64);
                let mine = b.cmp(CmpOp::LtS, number, end);
                b.if_then(mine, |b| self.one(b, stages, piece, number, whole, across));
            } else {
                self.one(b, stages, piece, number, whole, across);
            }
        }
    }

    fn one(&self, b: &mut Builder, stages: &Stages, piece: &Piece, number: Value, whole: usize, across: usize) {
        let (row, chunk) = split(b, number, across);
        let numbers = if whole < across {
            let end = b.int(Scalar::I32, whole as i64);
            let inside = b.cmp(CmpOp::LtS, chunk, end);
            let ty = Type::vector(Scalar::F16, self.chunk as u8);
            b.if_else(inside, |b| vec![self.numbers(b, piece, row, chunk)], |b| vec![b.int(ty, 0)])[0]
        } else {
            self.numbers(b, piece, row, chunk)
        };
        let line = times(b, row, stages.line);
        let column = times(b, chunk, 2 * self.chunk);
        let place = b.add(line, column);
        b.store(at(stages.x, Some(place), 0), 2 * self.chunk as u32, numbers);
    }

    /// A chunk as f16.
    fn numbers(&self, b: &mut Builder, piece: &Piece, row: Value, chunk: Value) -> Value {
        let size = self.element.bytes() as usize;
        let row = b.add(self.first, row);
        let row = b.bin(BinOp::MinS, row, self.last);
        let start = byte_index(b, row, self.k * size);
        let within = byte_index(b, chunk, self.chunk * size);
        let start = b.add(start, within);
        let place = piece.column.times(b, size).add(b, Pos::of(start));
        let ty = Type::vector(self.element, self.chunk as u8);
        let raw = b.load(ty, at(self.memory, place.index, place.fixed), self.align);
        if self.element == Scalar::F16 {
            return raw;
        }
        let wide = b.cast(CastOp::Float, raw, Scalar::F32);
        b.cast(CastOp::Float, wide, Scalar::F16)
    }
}
