//! The stages through which X and packed weights come to shared memory, and what each thread copies.
//!
//! Always holds: eight lanes copy 128 bytes in a row of X, which lie in one row of a stage, so that neither copies nor the
//! matrix unit collide; a lane copies those weights that it will decode.

use super::super::after;
use super::{FOURS, ROW};
use crate::caps::MmaShape;
use crate::ir::{BinOp, Builder, Builtin, CmpOp, Memory, Panel, Scalar, Type, Value};
use crate::lower::memory::{at, byte_index, times};
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::Pos;
use crate::op::Matmul;
use crate::schedule::Schedule;
use std::ops::Range;

/// The stages in shared memory.
pub(super) struct Stages {
    pub shared: Memory,
    /// How many.
    pub count: usize,
    /// Rows of X in each.
    pub rows: usize,
    /// Pieces of 128 bytes of K in each.
    pub units: usize,
    /// Columns of a block, and blocks of K.
    pub block: usize,
    pub blocks: usize,
    /// Strips of the packing in a block.
    pub strips: usize,
    /// 16 bytes of a lane in a strip.
    pub chunks: Vec<(usize, usize)>,
    /// Tiles of 64 rows of W of four subgroups.
    tiles: usize,
    row_bytes: usize,
    threads: usize,
}

impl Stages {
    /// Declares them.
    pub fn new(
        b: &mut Builder,
        (op, schedule): (&Matmul, &Schedule),
        (shape, block, units): (&MmaShape, usize, usize),
        fragments: &[Fragments<'_>],
    ) -> Stages {
        let (count, rows) = (schedule.unroll as usize, schedule.tile_m as usize);
        let (strips, chunks) = (block / fragments[0].columns(), fragments[0].chunks());
        let tiles = fragments.len();
        let bytes = units * rows * ROW + FOURS * tiles * strips * chunks.len() * 2048;
        let shared = b.shared("stages", (count * bytes) as u32, 1024);
        let (blocks, row_bytes) = (op.k / block, op.k * shape.b.bits() as usize / 8);
        let threads = schedule.threads as usize;
        Stages { shared, count, rows, units, block, blocks, strips, chunks, tiles, row_bytes, threads }
    }

    /// Bytes of the rows of X in a stage.
    fn of_x(&self) -> usize {
        self.units * self.rows * ROW
    }

    /// Bytes of a stage.
    pub fn bytes(&self) -> usize {
        self.of_x() + FOURS * self.tiles * self.strips * self.chunks.len() * 2048
    }

    /// Byte of a chunk of a strip of a tile, from the first of these four subgroups' on.
    fn place(&self, tile: usize, strip: usize, chunk: usize) -> usize {
        ((tile * self.strips + strip) * self.chunks.len() + chunk) * 2048
    }

    /// X in a unit of the stage that starts at this byte.
    pub fn panel(&self, stage: Value, unit: usize) -> Panel {
        let address = at(self.shared, Some(stage), unit * self.rows * ROW);
        Panel { address, leading: 16, stride: 8 * ROW as u32, swizzled: true }
    }

    /// The stage after the one that starts at this byte (`i32`).
    pub fn next(&self, b: &mut Builder, stage: Value) -> Value {
        after(b, stage, self.bytes(), self.count)
    }
}

/// What a thread copies of each block.
pub(super) struct Copier {
    x: Memory,
    /// Byte in X (`i64`) of each of its rows.
    sources: Vec<(Value, Option<Value>)>,
    /// Byte in the stage (`i32`) of its first row's 16 bytes; the next is so many bytes further.
    target: Value,
    step: usize,
    /// Byte in the stage of its first weights, `i32`.
    own: Value,
}

impl Copier {
    /// For the rows of X from `first` (`i32`) on; rows past M repeat the last one.
    pub fn new(
        b: &mut Builder,
        stages: &Stages,
        x: Memory,
        (first, m): (Value, Value),
        (subgroup, lane): (Value, Value),
    ) -> Copier {
        let id = b.builtin(Builtin::LocalId(0));
        let last = b.bin_imm(BinOp::Sub, m, 1);
        let (row, piece) = (b.bin_imm(BinOp::ShrU, id, 3), b.bin_imm(BinOp::And, id, 7));
        let along = byte_index(b, piece, 16);
        let rows = stages.threads / 8;
        let sources = (0..stages.rows.div_ceil(rows))
            .map(|i| {
                let number = b.bin_imm(BinOp::Add, row, (i * rows) as i64);
                let source = b.add(first, number);
                let source = b.bin(BinOp::MinS, source, last);
                let source = byte_index(b, source, stages.row_bytes);
                let some = ((i + 1) * rows > stages.rows).then(|| {
                    let end = b.int(Scalar::I32, stages.rows as i64);
                    b.cmp(CmpOp::LtS, number, end)
                });
                (b.add(source, along), some)
            })
            .collect();
        let eighth = b.bin_imm(BinOp::And, row, 7);
        let swapped = b.bin(BinOp::Xor, piece, eighth);
        let (line, within) = (times(b, row, ROW), times(b, swapped, 16));
        let target = b.add(line, within);
        let four = b.bin_imm(BinOp::ShrU, subgroup, 2);
        let of_four = b.bin_imm(BinOp::And, subgroup, 3);
        let four = times(b, four, stages.place(stages.tiles, 0, 0));
        let of_four = times(b, of_four, 512);
        let chunk = times(b, lane, 16);
        let own = b.add(four, of_four);
        let own = b.add(own, chunk);
        let own = b.bin_imm(BinOp::Add, own, stages.of_x() as i64);
        Copier { x, sources, target, step: rows * ROW, own }
    }

    /// Starts the copies of a block to a stage.
    pub fn start(&self, b: &mut Builder, stages: &Stages, fragments: &[Fragments<'_>], block: Pos, stage: Pos32) {
        let column = block.times(b, stages.units * ROW);
        let target = stage.index.map_or(self.target, |stage| b.add(stage, self.target));
        for (i, &(source, some)) in self.sources.iter().enumerate() {
            let from = column.add(b, Pos::of(source));
            let all = |b: &mut Builder| {
                for unit in 0..stages.units {
                    let place = stage.fixed + i * self.step + unit * stages.rows * ROW;
                    let to = at(stages.shared, Some(target), place);
                    b.async_copy(to, at(self.x, from.index, from.fixed + unit * ROW), 16);
                }
            };
            match some {
                Some(some) => b.if_then(some, all),
                None => all(b),
            }
        }
        let own = stage.index.map_or(self.own, |stage| b.add(stage, self.own));
        for (tile, fragments) in fragments.iter().enumerate() {
            let first = block.times(b, stages.strips);
            for strip in 0..stages.strips {
                for (number, &chunk) in stages.chunks.iter().enumerate() {
                    let to = at(stages.shared, Some(own), stage.fixed + stages.place(tile, strip, number));
                    let from = fragments.chunk(b, first.plus(strip), chunk, 0);
                    b.async_copy(to, from, 16);
                }
            }
        }
    }

    /// This lane's words of strips of a tile in the stage that starts at this byte, `[strip][chunk]`.
    pub fn words(
        &self,
        b: &mut Builder,
        stages: &Stages,
        stage: Value,
        (tile, strips): (usize, Range<usize>),
    ) -> Vec<Vec<Value>> {
        let own = b.add(stage, self.own);
        let mut word = |strip: usize, chunk: usize| {
            let place = stages.place(tile, strip, chunk);
            b.load(Type::vector(Scalar::I32, 4), at(stages.shared, Some(own), place), 16)
        };
        strips.map(|strip| (0..stages.chunks.len()).map(|chunk| word(strip, chunk)).collect()).collect()
    }
}

/// A byte of shared memory: a value (`i32`), if any, plus a constant.
#[derive(Clone, Copy)]
pub(super) struct Pos32 {
    pub index: Option<Value>,
    pub fixed: usize,
}
