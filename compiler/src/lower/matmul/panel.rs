//! Family `panel`: many rows by matrix instructions, X through a pipeline of stages in shared memory.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 in registers, decoded there; B a stage of X in shared memory
//! stage    [piece of 16 bytes of a row][tile_m rows][16 bytes]
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K. Its threads copy X, `unroll` stages deep, by
//! asynchronous copies, while each subgroup reads the next block of its own rows of W to registers. On devices with matrix
//! instructions of four subgroups a subgroup has 16 rows of W, and the unit reads X itself; elsewhere it has 32, and lanes
//! read their fragments of X, which lie side by side. Eight rows of a piece are 128 bytes in a row, so that neither copies
//! nor reads collide. Grid: x over tiles of rows, y over tiles of columns.

use super::products::{Products, cut, fragment, lanes_of, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature, MmaShape};
use crate::error::{Error, Result};
use crate::ir::{
    Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Factor, Kernel, Memory, Panel, Scalar, Type, Value,
};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, at, byte_index, times};
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::{Pos, repeat};
use crate::op::{Matmul, Op};
use crate::schedule::{Family, Schedule};

pub(in crate::lower) const PANEL_FAMILY: Implementation = Implementation {
    family: Family::Panel,
    summary: "matmul of many rows by matrix instructions, activations through stages of shared memory",
    refuses,
    space,
    build,
};

/// Most blocks whose sums are scaled together, where a segment is not all of K.
const LONGEST: usize = 16;

/// Columns of a block: 128 bytes of a row of X.
fn block(shape: &MmaShape) -> usize {
    128 * 8 / shape.b.bits() as usize
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::AsyncCopy) {
        return Some(format!("has no asynchronous copies on {}", caps.name));
    }
    let (_, _, shape, _) = match cut(op, caps, block, LONGEST) {
        Ok(found) => found,
        Err(why) => return Some(why),
    };
    let Ok(op) = as_matmul(op) else { return None };
    let bytes = op.k * shape.b.bits() as usize / 8;
    (!bytes.is_multiple_of(16)).then(|| format!("copies rows in pieces of 16 bytes; here they have {bytes}"))
}

/// Rows of W that a subgroup has.
fn rows_per_subgroup(caps: &Caps) -> u32 {
    if caps.features.has(Feature::WarpgroupMma) { 16 } else { 32 }
}

/// The largest tile that the rows of X fill and that gives most units a workgroup, then others.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok((cut, _, shape, _)) = cut(op, caps, block, LONGEST) else { return Vec::new() };
    let tokens: &[u32] = if caps.features.has(Feature::WarpgroupMma) { &[128, 64, 32, 16] } else { &[64, 32, 16] };
    let least = m.next_power_of_two().max(16) as u32;
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let n = as_matmul(op).map_or(1, |op| op.n);
    let fitting = tokens.iter().filter(|&&tokens| tokens <= least);
    let mut tiles: Vec<(u32, u32)> = fitting.flat_map(|&tokens| [(tokens, 128), (tokens, 64)]).collect();
    tiles.sort_by_key(|&(tile_m, tile_n)| {
        let workgroups = m.div_ceil(tile_m as usize) * n.div_ceil(tile_n as usize);
        let (few, area) = (4 * workgroups < 3 * units, tile_m * tile_n);
        (few, if few { area } else { u32::MAX - area }, u32::MAX - tile_m)
    });
    let mut list = Vec::new();
    for (tile_m, tile_n) in tiles {
        for stages in [4, 3, 2] {
            let threads = tile_n / rows_per_subgroup(caps) * caps.subgroup;
            let bytes = stages * tile_m * (cut.block as u32 * shape.b.bits() / 8);
            // Two workgroups share a unit.
            let most = caps.gpu.map_or(caps.max_shared_bytes, |gpu| gpu.shared_per_unit / 2 - 1024);
            if bytes <= most.min(caps.max_shared_bytes) {
                list.push(Schedule::single(Family::Panel, tile_m, tile_n, stages).with_threads(threads, 1));
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    let tokens: &[u32] = if caps.features.has(Feature::WarpgroupMma) { &[16, 32, 64, 128] } else { &[16, 32, 64] };
    let mine = tile_n / rows_per_subgroup(caps) * caps.subgroup;
    listed(
        schedule,
        &[
            ("tile_m", tile_m, tokens),
            ("tile_n", tile_n, &[64, 128]),
            ("unroll", unroll, &[2, 3, 4]),
            ("threads", threads, &[mine]),
            ("split", split, &[1]),
        ],
    )
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (cut, class, shape, layout) = cut(op, caps, block, LONGEST).map_err(Error::Unsupported)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let lanes = lanes_of(shape)?;
    let params = Params::declare_packed(&mut b, op, Packing::Qt16(class, layout.order), caps)?;
    b.workgroup(schedule.threads, 1, 1);
    let stages = Stages::new(&mut b, matmul, schedule, shape, cut.block, params.get(Role::Activations));
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let per_subgroup = rows_per_subgroup(caps);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let mine = times(&mut b, subgroup, per_subgroup as usize);
    let start = b.add(start, mine);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    // A subgroup past the last panel reads that panel's last rows; nobody stores what it makes of them.
    let padded = matmul.n.next_multiple_of(64) as i64 - per_subgroup as i64;
    let most = b.int(Scalar::I64, padded);
    let read = b.bin(BinOp::MinS, start, most);
    let tiles = per_subgroup as usize / 16;
    let fragments = Fragments::new(&mut b, (&layout, &lanes), params.get(Role::Weights), read, tiles, lane, caps);
    let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
    let rows = rows_of(&mut b, matmul, &params, first, t, schedule.tile_m as usize / 8);
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &rows };
    let engine = if caps.features.has(Feature::WarpgroupMma) {
        Engine::Warpgroup
    } else {
        let (row, within) = (times(&mut b, g, 16), times(&mut b, t, 4));
        Engine::Subgroup(b.add(row, within))
    };
    let copier = Copier::new(&mut b, &stages, first, params.m);
    let walk = Walk { products, stages: &stages, copier: &copier, engine: &engine };
    let results = walk.run(&mut b);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    walk.products.store(&mut b, (&plan, &params), (start, g), &results, &mut |b, _, body| body(b));
    Ok(b.finish())
}

/// The stages of X in shared memory.
struct Stages {
    x: Memory,
    shared: Memory,
    /// How many.
    count: usize,
    /// Rows of X in each.
    rows: usize,
    /// Pieces of 16 bytes of a row in each.
    pieces: usize,
    /// Blocks of K.
    blocks: usize,
    /// Bytes of a row of X.
    row_bytes: usize,
    threads: usize,
}

impl Stages {
    fn new(b: &mut Builder, op: &Matmul, schedule: &Schedule, shape: &MmaShape, block: usize, x: Memory) -> Stages {
        let size = shape.b.bits() as usize / 8;
        let (count, rows, pieces) = (schedule.unroll as usize, schedule.tile_m as usize, block * size / 16);
        let shared = b.shared("stages", (count * rows * pieces * 16) as u32, 128);
        let (blocks, row_bytes, threads) = (op.k / block, op.k * size, schedule.threads as usize);
        Stages { x, shared, count, rows, pieces, blocks, row_bytes, threads }
    }

    fn bytes(&self) -> usize {
        self.rows * self.pieces * 16
    }

    /// The stage after the one that starts at this byte (`i32`).
    fn next(&self, b: &mut Builder, stage: Value) -> Value {
        let end = b.int(Scalar::I32, (self.count * self.bytes()) as i64);
        let zero = b.int(Scalar::I32, 0);
        let next = b.bin_imm(BinOp::Add, stage, self.bytes() as i64);
        let past = b.cmp(CmpOp::Eq, next, end);
        b.select(past, zero, next)
    }
}

/// What a thread copies of each block: pieces whose places it works out once.
struct Copier {
    /// Byte in X (`i64`), byte in the stage (`i32`), whether this thread copies it where not all do.
    pieces: Vec<(Value, Value, Option<Value>)>,
}

impl Copier {
    fn new(b: &mut Builder, stages: &Stages, first: Value, m: Value) -> Copier {
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
    fn start(&self, b: &mut Builder, stages: &Stages, block: Pos, stage: Option<Value>, fixed: usize) {
        let column = block.times(b, stages.pieces * 16);
        for &(source, target, some) in &self.pieces {
            let from = column.add(b, Pos { index: Some(source), fixed: 0 });
            let target = stage.map_or(target, |stage| b.add(stage, target));
            let (to, from) = (at(stages.shared, Some(target), fixed), at(stages.x, from.index, from.fixed));
            match some {
                Some(some) => b.if_then(some, |b| b.async_copy(to, from, 16)),
                None => b.async_copy(to, from, 16),
            }
        }
    }
}

/// Who multiplies.
enum Engine {
    /// Four subgroups together, X from shared memory.
    Warpgroup,
    /// Each subgroup, X from lanes: the byte of this lane's first number in 8 rows of a piece, `i32`.
    Subgroup(Value),
}

impl Engine {
    /// Lanes of a vector of sums, and how many there are.
    fn sums(&self, products: &Products<'_>) -> (u8, usize) {
        match self {
            Engine::Warpgroup => (4 * products.rows.len() as u8, 1),
            Engine::Subgroup(_) => (4, products.count()),
        }
    }

    /// The sums after the steps of a part.
    fn multiply(
        &self,
        b: &mut Builder,
        products: &Products<'_>,
        stages: &Stages,
        (stage, first_step): (Value, usize),
        a: &[Vec<Value>],
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let (shape, piece) = (products.shape, stages.rows * 16);
        let start = 2 * first_step * piece;
        match self {
            Engine::Warpgroup => {
                let address = at(stages.shared, Some(stage), start);
                let panel = Panel { address, leading: piece as u32, stride: 128 };
                let factor = Factor::Fragments(a[0].clone());
                vec![b.warpgroup_mma(shape, stages.rows as u32, factor, panel, sums[0])]
            }
            Engine::Subgroup(mine) => {
                let place = b.add(stage, *mine);
                for step in 0..a[0].len() {
                    for token in 0..products.rows.len() {
                        let registers = [0, 1].map(|half| {
                            let fixed = start + (2 * step + half) * piece + 128 * token;
                            b.load(Scalar::I32, at(stages.shared, Some(place), fixed), 4)
                        });
                        let x = fragment(b, &registers, shape.b, shape.b_elements());
                        for (tile, a) in a.iter().enumerate() {
                            let sum = &mut sums[tile * products.rows.len() + token];
                            *sum = b.mma(shape, a[step], x, *sum);
                        }
                    }
                }
                sums
            }
        }
    }

    /// An element of the sums of a tile and 8 rows of X.
    fn sum(&self, b: &mut Builder, products: &Products<'_>, sums: &[Value], place: (usize, usize, u8)) -> Value {
        let (tile, token, element) = place;
        match self {
            Engine::Warpgroup => b.extract(sums[0], 4 * token as u8 + element),
            Engine::Subgroup(_) => b.extract(sums[tile * products.rows.len() + token], element),
        }
    }
}

/// The walk over K, and what it needs.
struct Walk<'a> {
    products: Products<'a>,
    stages: &'a Stages,
    copier: &'a Copier,
    engine: &'a Engine,
}

/// What blocks hand on to each other.
struct Kept {
    /// Byte of the stage to read, and of the one to write, `i32`.
    read: Value,
    write: Value,
    /// The words of the block, `[strip][tile][chunk]` in one list.
    words: Vec<Value>,
}

impl Kept {
    fn split(state: &[Value], words: usize) -> (Kept, Vec<Value>) {
        let (words, more) = state[2..].split_at(words);
        (Kept { read: state[0], write: state[1], words: words.to_vec() }, more.to_vec())
    }

    fn joined(self, more: Vec<Value>) -> Vec<Value> {
        [self.read, self.write].into_iter().chain(self.words).chain(more).collect()
    }
}

impl Walk<'_> {
    /// The results over all of K.
    fn run(&self, b: &mut Builder) -> Vec<Value> {
        let (products, stages) = (&self.products, self.stages);
        let ahead = stages.count - 1;
        for stage in 0..ahead {
            if stage < stages.blocks {
                self.copier.start(b, stages, Pos::fixed(stage), None, stage * stages.bytes());
            }
            b.async_commit();
        }
        let read = b.int(Scalar::I32, 0);
        let write = b.int(Scalar::I32, (ahead * stages.bytes()) as i64);
        let words = self.words(b, Pos::fixed(0));
        let count = words.len();
        let zeros = products.zeros(b);
        let state = Kept { read, write, words }.joined(zeros);
        let per = products.cut.per;
        let state = repeat(b, stages.blocks / per, 1, state, |b, turn, state| {
            let (kept, results) = Kept::split(&state, count);
            let first = turn.times(b, per);
            if per == 1 { self.whole(b, first, kept, results) } else { self.summed(b, turn, kept, results) }
        });
        Kept::split(&state, count).1
    }

    /// A block that holds whole groups, or whose sums are scaled though its group goes on.
    fn whole(&self, b: &mut Builder, block: Pos, kept: Kept, mut results: Vec<Value>) -> Vec<Value> {
        let products = &self.products;
        let (words, next) = self.advance(b, block, &kept);
        let (lanes, count) = self.engine.sums(products);
        for part in products.parts(b, block, &words) {
            let sums = products.no_sums(b, lanes, count);
            let sums = self.engine.multiply(b, products, self.stages, (kept.read, part.first_step), &part.a, sums);
            let sum =
                |b: &mut Builder, tile, token, element| self.engine.sum(b, products, &sums, (tile, token, element));
            results = products.scaled(b, (&part.group, part.segment), &sum, &results);
        }
        next.joined(results)
    }

    /// A segment of several blocks, whose sums are scaled at its end.
    fn summed(&self, b: &mut Builder, segment: Pos, kept: Kept, results: Vec<Value>) -> Vec<Value> {
        let products = &self.products;
        let first = segment.times(b, products.cut.per);
        let held = kept.words.len();
        let (lanes, count) = self.engine.sums(products);
        let nothing = products.no_sums(b, lanes, count);
        let state = repeat(b, products.cut.per, 1, kept.joined(nothing), |b, turn, state| {
            let (kept, sums) = Kept::split(&state, held);
            let block = first.add(b, turn);
            let (words, next) = self.advance(b, block, &kept);
            let part = products.parts(b, block, &words).swap_remove(0);
            let sums = self.engine.multiply(b, products, self.stages, (kept.read, 0), &part.a, sums);
            next.joined(sums)
        });
        let (kept, sums) = Kept::split(&state, held);
        let column = first.times(b, products.cut.block);
        let group = products.group(b, column);
        let sum = |b: &mut Builder, tile, token, element| self.engine.sum(b, products, &sums, (tile, token, element));
        let results = products.scaled(b, (&group, segment), &sum, &results);
        kept.joined(results)
    }

    fn words(&self, b: &mut Builder, block: Pos) -> Vec<Value> {
        let strips = self.products.strips();
        let first = block.times(b, strips);
        let fragments = self.products.fragments;
        let mut words = Vec::new();
        for strip in 0..strips {
            for tile in 0..fragments.blocks {
                for chunk in fragments.chunks() {
                    let from = fragments.chunk(b, first.plus(strip), chunk, tile);
                    words.push(b.load(Type::vector(Scalar::I32, 4), from, 16));
                }
            }
        }
        words
    }

    /// Waits for the stage of a block, starts the copies of a later block and the reads of the next one's words. Gives this
    /// block's words, `[strip][tile][chunk]`, and what the next one finds.
    fn advance(&self, b: &mut Builder, block: Pos, kept: &Kept) -> (Vec<Vec<Vec<Value>>>, Kept) {
        let stages = self.stages;
        let ahead = stages.count - 1;
        b.async_wait(ahead as u8 - 1);
        if matches!(self.engine, Engine::Warpgroup) {
            b.asynchronous(Asynchronous::Fence);
        }
        b.barrier();
        // Behind the barrier nobody reads the stage of the block before any more.
        let later = block.plus(ahead);
        let start = |b: &mut Builder| self.copier.start(b, stages, later, Some(kept.write), 0);
        match later.index {
            None if later.fixed >= stages.blocks => {}
            None => start(b),
            Some(index) => {
                let end = b.int(Scalar::I64, stages.blocks as i64 - later.fixed as i64);
                let more = b.cmp(CmpOp::LtS, index, end);
                b.if_then(more, start);
            }
        }
        b.async_commit();
        let next = match block.index {
            None => Pos::fixed((block.fixed + 1).min(stages.blocks - 1)),
            Some(index) => {
                let next = b.bin_imm(BinOp::Add, index, block.fixed as i64 + 1);
                let last = b.int(Scalar::I64, stages.blocks as i64 - 1);
                Pos { index: Some(b.bin(BinOp::MinS, next, last)), fixed: 0 }
            }
        };
        let next = self.words(b, next);
        let (tiles, chunks) = (self.products.fragments.blocks, self.products.fragments.chunks().len());
        let strip = |words: &[Value]| words.chunks(chunks).map(<[Value]>::to_vec).collect();
        let mine = kept.words.chunks(tiles * chunks).map(strip).collect();
        (mine, Kept { read: stages.next(b, kept.read), write: stages.next(b, kept.write), words: next })
    }
}
