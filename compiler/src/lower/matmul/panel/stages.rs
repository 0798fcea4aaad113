//! The stages through which X comes to shared memory, and what each thread copies.
//!
//! Always holds: eight rows of a piece of 16 bytes are 128 bytes in a row, so that neither copies nor reads collide.

use super::super::after;
use crate::caps::MmaShape;
use crate::ir::{BinOp, Builder, Builtin, CmpOp, Memory, Scalar, Value};
use crate::lower::memory::{at, byte_index, times};
use crate::lower::walk::Pos;
use crate::op::Matmul;
use crate::schedule::Schedule;

/// The stages of X in shared memory.
pub(super) struct Stages {
    pub x: Memory,
    pub shared: Memory,
    /// How many.
    pub count: usize,
    /// Rows of X in each.
    pub rows: usize,
    /// Pieces of 16 bytes of a row in each.
    pub pieces: usize,
    /// Blocks of K.
    pub blocks: usize,
    /// Bytes of a row of X.
    row_bytes: usize,
    threads: usize,
}

impl Stages {
    /// Declares them.
    pub fn new(b: &mut Builder, op: &Matmul, schedule: &Schedule, shape: &MmaShape, block: usize, x: Memory) -> Stages {
        let size = shape.b.bits() as usize / 8;
        let (count, rows, pieces) = (schedule.unroll as usize, schedule.tile_m as usize, block * size / 16);
        let shared = b.shared("stages", (count * rows * pieces * 16) as u32, 128);
        let (blocks, row_bytes, threads) = (op.k / block, op.k * size, schedule.threads as usize);
        Stages { x, shared, count, rows, pieces, blocks, row_bytes, threads }
    }

    /// Bytes of a stage.
    pub fn bytes(&self) -> usize {
        self.rows * self.pieces * 16
    }

    /// The stage after the one that starts at this byte (`i32`).
    pub fn next(&self, b: &mut Builder, stage: Value) -> Value {
        after(b, stage, self.bytes(), self.count)
    }
}

/// What a thread copies of each block: pieces whose places it works out once.
pub(super) struct Copier {
    /// Byte in X (`i64`), byte in the stage (`i32`), whether this thread copies it where not all do.
    pieces: Vec<(Value, Value, Option<Value>)>,
}

impl Copier {
    /// For the rows of X from `first` (`i32`) on; rows past M repeat the last one.
    pub fn new(b: &mut Builder, stages: &Stages, first: Value, m: Value) -> Copier {
        let total = stages.rows * stages.pieces;
        let last = b.bin_imm(BinOp::Sub, m, 1);
        let id = b.builtin(Builtin::LocalId(0));
        let pieces = (0..total.div_ceil(stages.threads))
            .map(|i| {
                // Eight rows, then pieces, then further rows: 128 bytes of shared memory in a row, 64 of X.
                let number = b.bin_imm(BinOp::Add, id, (i * stages.threads) as i64);
                let low = b.bin_imm(BinOp::And, number, 7);
                let rest = b.bin_imm(BinOp::ShrU, number, 3);
                let shift = stages.pieces.trailing_zeros() as i64;
                let piece = b.bin_imm(BinOp::And, rest, stages.pieces as i64 - 1);
                let high = b.bin_imm(BinOp::ShrU, rest, shift);
                let high = times(b, high, 8);
                let row = b.add(high, low);
                let source = b.add(first, row);
                let source = b.bin(BinOp::MinS, source, last);
                let source = byte_index(b, source, stages.row_bytes);
                let along = byte_index(b, piece, 16);
                let source = b.add(source, along);
                let target = times(b, piece, stages.rows);
                let target = b.add(target, row);
                let target = times(b, target, 16);
                let some = ((i + 1) * stages.threads > total).then(|| {
                    let end = b.int(Scalar::I32, total as i64);
                    b.cmp(CmpOp::LtS, number, end)
                });
                (source, target, some)
            })
            .collect();
        Copier { pieces }
    }

    /// Starts the copies of a block to a stage.
    pub fn start(&self, b: &mut Builder, stages: &Stages, block: Pos, stage: Option<Value>, fixed: usize) {
        let column = block.times(b, stages.pieces * 16);
        for &(source, target, some) in &self.pieces {
            let from = column.add(b, Pos::of(source));
            let target = stage.map_or(target, |stage| b.add(stage, target));
            let (to, from) = (at(stages.shared, Some(target), fixed), at(stages.x, from.index, from.fixed));
            match some {
                Some(some) => b.if_then(some, |b| b.async_copy(to, from, 16)),
                None => b.async_copy(to, from, 16),
            }
        }
    }
}
