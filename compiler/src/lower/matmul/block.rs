//! Family `block`: many rows, on workgroups of many threads. A workgroup decodes a piece of its weights into shared memory
//! and uses it for a tile of rows, piece after piece.
//!
//! A thread makes `tile_m` rows by 4 columns of Y, a workgroup `block_rows` by `tile_n`. Shared memory holds the piece as in
//! family `tile`: bytes for an integer dot product, or finished `f32` weights. Serves every format, activation and shape.
//! Grid: x over blocks of rows, y over tiles of columns.

use super::epilogue;
use super::integer::{IntegerSums, Results};
use super::tile::{Decode, Scratch, float_sums, refuses_groups};
use super::{Plan, Tile, as_matmul, entry, refuses_threads, tile_faults};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::format::n16::ROWS;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar, Type, Value};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, times};
use crate::lower::space::Axis;
use crate::lower::unpack::Weights;
use crate::lower::walk::{Piece, Pos, Split, Step, Visit};
use crate::op::Op;
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const BLOCK: Implementation = Implementation {
    family: Family::Block,
    summary: "matmul for many rows on many threads: decoded weights lie in shared memory, piece by piece",
    refuses: |op, caps| refuses_threads(op, caps).or_else(|| refuses_groups(op)),
    axes: &[
        Axis::new(Knob::TileM, &[1, 2, 4, 8]),
        Axis::new(Knob::TileN, &[16, 32, 64, 128]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256, 512]),
    ],
    estimate: None,
    space,
    build,
};

/// Columns of Y that a thread makes.
const COLUMNS: u32 = 4;

/// Columns of W in a piece, for an unroll of 1.
const PIECE: u32 = 32;

/// Rows of Y that a workgroup makes.
pub(in crate::lower) fn block_rows(schedule: &Schedule) -> u32 {
    schedule.tile_m * (schedule.threads * COLUMNS / schedule.tile_n.max(1)).max(1)
}

fn shared_bytes(schedule: &Schedule) -> u32 {
    PIECE * schedule.unroll * schedule.tile_n * 4
}

/// Large tiles first, since each weight is decoded once per tile of rows; none with twice the rows that are asked for.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    if as_matmul(op).is_err() {
        return Vec::new();
    }
    let mut list = Vec::new();
    for (tile_m, tile_n, threads) in
        [(8, 64, 256), (8, 64, 128), (4, 64, 256), (4, 64, 128), (4, 32, 64), (2, 32, 64), (1, 16, 32)]
    {
        for unroll in [1, 2] {
            let schedule = Schedule::single(Family::Block, tile_m, tile_n, unroll).with_threads(threads, 1);
            let fits = threads <= caps.max_workgroup && shared_bytes(&schedule) <= caps.max_shared_bytes;
            if fits && (block_rows(&schedule) as usize <= m.next_power_of_two() || (tile_m, tile_n) == (1, 16)) {
                list.push(schedule);
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_m, tile_n, .. } = *schedule;
    if !(1..=16).contains(&tile_m) {
        faults.push(format!("tile_m is {tile_m}; accepted: 1 to 16"));
    }
    if !tile_n.is_power_of_two() || !(16..=256).contains(&tile_n) {
        faults.push(format!("tile_n is {tile_n}; accepted: powers of two from 16 to 256"));
    }
    faults.extend(tile_faults(schedule, caps));
    faults
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, COLUMNS as u8, 1)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    b.workgroup(schedule.threads, 1, 1);
    let scratch = b.shared("decoded", shared_bytes(schedule), 16);
    let id = b.builtin(Builtin::LocalId(0));
    let origin = {
        let tile_y = b.builtin(Builtin::WorkgroupId(1));
        let origin = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
        b.cast(CastOp::ExtendS, origin, Scalar::I64)
    };
    let last = (matmul.n.next_multiple_of(ROWS) - 1) as i64;
    let memory = params.get(Role::Weights);
    let line = schedule.tile_n as usize * 4;

    // As decoders, threads stand side by side along the rows of W; what lies past the last one is never stored.
    let row = b.bin_imm(BinOp::And, id, schedule.tile_n as i64 - 1);
    let place = times(&mut b, row, 4);
    let decoded = Scratch { memory: scratch, line, vector: 4, base: Pos::of(wide(&mut b, place)) };
    let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
    let row = b.add(origin, row);
    let row = b.bin_imm(BinOp::MinS, row, last);
    let decoder = Weights::few(&plan.layout, memory, row, 1, caps);
    let slice = b.bin_imm(BinOp::ShrU, id, schedule.tile_n.trailing_zeros() as i64);
    let index = b.cast(CastOp::ExtendS, slice, Scalar::I64);
    let split = Split { index, count: (schedule.threads / schedule.tile_n) as usize };

    // As makers of Y, along its columns, then its rows.
    let across = schedule.tile_n / COLUMNS;
    let column = b.bin_imm(BinOp::And, id, across as i64 - 1);
    let place = times(&mut b, column, 16);
    let finished = Scratch { memory: scratch, line, vector: 16, base: Pos::of(wide(&mut b, place)) };
    let column = times(&mut b, column, COLUMNS as usize);
    let column = b.cast(CastOp::ExtendS, column, Scalar::I64);
    let start = b.add(origin, column);
    let strip = b.bin_imm(BinOp::MinS, start, last + 1 - COLUMNS as i64);
    let weights = Weights::few(&plan.layout, memory, strip, COLUMNS as u8, caps);
    let strip = b.bin_imm(BinOp::ShrU, id, across.trailing_zeros() as i64);
    let strip = b.bin_imm(BinOp::Mul, strip, schedule.tile_m as i64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, block_rows(schedule) as i64);
    let first = b.add(first, strip);
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    let below = b.bin(BinOp::MinS, first, last);
    let rows = Rows::new(&mut b, matmul, &params, below, schedule.tile_m as usize, COLUMNS as u8);

    let block = Block { plan: &plan, decoder, decoded, finished, split, columns: (PIECE * schedule.unroll) as usize };
    let tile = Tile { weights: &weights, rows: &rows, vectors: 1, waits: plan.waits, team: None };
    let results = block.emit(&mut b, &tile);
    let end = b.int(Scalar::I64, matmul.n as i64);
    let inside = b.cmp(CmpOp::LtS, start, end);
    let below = b.cmp(CmpOp::LtS, first, params.m);
    let stores = b.bin(BinOp::And, inside, below);
    b.if_then(stores, |b| {
        epilogue::store(b, &plan, &params, &rows, (first, schedule.tile_m == 1), start, results);
    });
    Ok(b.finish())
}

fn wide(b: &mut Builder, value: Value) -> Value {
    b.cast(CastOp::ExtendS, value, Scalar::I64)
}

/// A workgroup at work.
struct Block<'a> {
    plan: &'a Plan,
    decoder: Weights<'a>,
    /// Shared memory as decoders see it.
    decoded: Scratch,
    /// Shared memory as makers of Y see it.
    finished: Scratch,
    split: Split,
    /// Columns of a piece.
    columns: usize,
}

impl Block<'_> {
    /// The results of this thread, `[row]` in vectors of four columns.
    fn emit(&self, b: &mut Builder, tile: &Tile<'_>) -> Vec<Value> {
        let walk = &self.plan.walk;
        let nothing = b.f32(COLUMNS as u8, 0.0);
        let outer = vec![nothing; tile.rows.count()];
        walk.segments(b, None, outer, &mut |b, segment, outer| {
            let mut decode = Decode {
                weights: &self.decoder,
                how: self.plan.integers.as_ref(),
                vectors: 1,
                scratch: self.decoded,
                group: walk.segment,
                piecewise: true,
            };
            let group = decode.begin(b, segment.segment);
            let mut stage = |b: &mut Builder, piece: &Piece| {
                b.barrier();
                walk.piece(b, &mut decode, piece, Some(&self.split), group.clone());
                b.barrier();
            };
            let Some(how) = &self.plan.integers else {
                return walk.parts(b, segment, self.columns, outer, &mut |b, piece, state| {
                    stage(b, piece);
                    float_sums(b, tile, &self.finished, (piece.column, piece.len), 1, state)
                });
            };
            let ty = Type::vector(Scalar::I8, 4 * COLUMNS as u8);
            let mut bytes = |b: &mut Builder, step: &Step, quad: usize, v: usize| {
                self.finished.load(b, ty, step.local.plus(quad), v)
            };
            let mut sums = IntegerSums {
                tile,
                how,
                segment: walk.segment,
                bytes: &mut bytes,
                late: false,
                quarters: false,
                results: Results::Registers,
                sums: None,
            };
            let inner = sums.begin(b, segment.segment);
            let inner = walk.parts(b, segment, self.columns, inner, &mut |b, piece, inner| {
                stage(b, piece);
                walk.piece(b, &mut sums, piece, None, inner)
            });
            sums.end(b, segment.segment, inner, outer)
        })
    }
}
