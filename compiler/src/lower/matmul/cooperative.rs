//! Family `cooperative`: many rows by matrices that a subgroup holds together, in a way that the device keeps to itself.
//!
//! ```text
//! Y[m, n] = X[m, k] · Wᵀ[k, n]        A a tile of X, B a tile of W, both in shared memory as f16, rows of K side by side
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K, piece after piece. All its threads decode a piece
//! of W and fetch one of X to shared memory; what lies behind the last column of a segment is zero there. Subgroups, side by
//! side as `Grid` says, multiply their parts of both. A code without its zero point is exact in f16, and so is an
//! activation: scales come at the end of each segment, element by element, from one line of scales that stands for all
//! rows; zero points that are no integers, and offsets, are paid there by sums of activations, which a matrix of ones makes.
//! Results go through shared memory to plain threads for the epilogue. Serves every format whose codes f16 holds.
//! Grid: x over tiles of rows, y over tiles of columns.

mod stages;

use self::stages::{Decode, Factors, Fetch, Stages, Tile};
use super::epilogue;
use super::{Plan, as_matmul, entry, refuses_threads, tile_faults};
use crate::caps::{Caps, Feature, MmaShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::{Code, Format, Zero};
use crate::ir::{
    BinOp, Builder, Builtin, CastOp, CmpOp, Cooperative, Fragment, Kernel, MatrixLines, Memory, Order, Part, Scalar,
    Type, Value,
};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, at, split, times};
use crate::lower::space::Axis;
use crate::lower::unpack::Weights;
use crate::lower::walk::{Piece, Visit};
use crate::op::{Activation, Op, Per};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const COOPERATIVE: Implementation = Implementation {
    family: Family::Cooperative,
    summary: "matmul of many rows by cooperative matrices: weights and activations lie in shared memory as f16",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[16, 32, 64, 128]),
        Axis::new(Knob::TileN, &[16, 32, 64, 128]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256]),
    ],
    estimate: None,
    space,
    build,
};

/// Columns of W in a piece, for an unroll of 1.
const PIECE: usize = 32;

/// Columns of Y that a thread finishes at a time.
const COLUMNS: u32 = 4;

/// Most 32-bit words of sums and results that a lane holds.
const MOST_WORDS: u32 = 128;

/// Rows of X below which weights are read as fast by families without matrices.
const FEW_ROWS: usize = 8;

/// The matrices that serve: of f16, with sums in `f32`.
fn shape(caps: &Caps) -> Option<&'static MmaShape> {
    caps.cooperative(DType::F16, DType::F16, DType::F32)
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::CooperativeMatrix) {
        return Some(format!("has no cooperative matrices on {}", caps.name));
    }
    if shape(caps).is_none() {
        return Some(format!("has no cooperative matrices of f16 for subgroups of {} on {}", caps.subgroup, caps.name));
    }
    if let Some(why) = refuses_threads(op, caps) {
        return Some(why);
    }
    let Ok(op) = as_matmul(op) else { return Some("computes matmuls only".into()) };
    match op.activation {
        Activation::Float(DType::F16) | Activation::Fp8(_, Per::Token | Per::Tensor) => {}
        other => return Some(format!("takes f16 activations and 8-bit floats per token or tensor, not {other}")),
    }
    let inexact = |code: &u8| {
        let number = op.weight.code.decode(*code);
        number.is_finite() && DType::F16.decode(DType::F16.encode(number)) != number
    };
    let codes = 0..=((1u32 << op.weight.code.bits()) - 1) as u8;
    let mut codes = codes.filter(|&code| op.weight.code.valid(code));
    codes
        .find(inexact)
        .map(|code| format!("takes codes that f16 holds; {} of {} is not one", op.weight.code.decode(code), op.weight))
}

/// Whether zero points leave codes before they become f16: small integers stay exact.
fn folds_zero(format: &Format) -> bool {
    matches!((format.code, format.zero), (Code::Int { .. }, Zero::Int(_)))
}

/// Whether something is added to `scale · code` for each activation.
fn has_offset(format: &Format) -> bool {
    !folds_zero(format) && matches!(format.zero, Zero::Int(_) | Zero::Float(_) | Zero::Offset { .. })
}

/// How subgroups share the tile of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid {
    /// Subgroups along M and along N.
    subgroups: (u32, u32),
    /// Matrices of each of them along M and along N.
    matrices: (u32, u32),
}

impl Grid {
    /// The squarest parts of whole matrices, if there are any.
    fn of(schedule: &Schedule, shape: &MmaShape) -> Option<Grid> {
        let whole = |n: u32, by: u32| (by > 0 && n.is_multiple_of(by) && n > 0).then(|| n / by);
        let count = whole(schedule.threads, shape.lanes)?;
        let (rows, columns) = (whole(schedule.tile_m, shape.m)?, whole(schedule.tile_n, shape.n)?);
        let part = |along_m: u32| {
            let along_n = whole(count, along_m)?;
            let matrices = (whole(rows, along_m)?, whole(columns, along_n)?);
            Some(Grid { subgroups: (along_m, along_n), matrices })
        };
        let skew = |grid: &Grid| (grid.matrices.0 * shape.m).abs_diff(grid.matrices.1 * shape.n);
        (1..=count).filter_map(part).min_by_key(skew)
    }

    /// Rows of Y that go through shared memory at once.
    fn rows(&self, shape: &MmaShape) -> u32 {
        self.subgroups.0 * shape.m
    }

    /// Words that a lane holds of sums and of results.
    fn words(&self, shape: &MmaShape) -> u32 {
        2 * self.matrices.0 * self.matrices.1 * shape.acc_elements()
    }
}

/// Large tiles first, as far as the rows fill them.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let (Ok(op), Some(shape)) = (as_matmul(op), shape(caps)) else { return Vec::new() };
    if m <= FEW_ROWS {
        return Vec::new();
    }
    let most = m.next_power_of_two() as u32;
    let mut list = Vec::new();
    for (tile_m, tile_n) in [(128, 64), (64, 128), (64, 64), (32, 64), (32, 32), (16, 64), (16, 32), (8, 32)] {
        for subgroups in [8, 4, 2, 1] {
            for unroll in [1, 2] {
                let schedule = Schedule::single(Family::Cooperative, tile_m, tile_n, unroll);
                let schedule = schedule.with_threads(subgroups * shape.lanes, 1);
                if tile_m <= most.max(shape.m) && faults(op, &schedule, caps).is_empty() {
                    list.push(schedule);
                }
            }
        }
    }
    list
}

fn faults(op: &crate::op::Matmul, schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_m, tile_n, threads, .. } = *schedule;
    let Some(shape) = shape(caps) else { return vec![format!("{} has no cooperative matrices of f16", caps.name)] };
    for (name, value, least) in [("tile_m", tile_m, shape.m), ("tile_n", tile_n, shape.n.max(COLUMNS))] {
        if !value.is_power_of_two() || !(least..=128).contains(&value) {
            faults.push(format!("{name} is {value}; accepted: powers of two from {least} to 128"));
        }
    }
    faults.extend(tile_faults(schedule, caps));
    if !faults.is_empty() {
        return faults;
    }
    match Grid::of(schedule, shape) {
        None => faults.push(format!(
            "{threads} threads are subgroups of {} that do not share {tile_m} by {tile_n} in matrices of {} by {}",
            shape.lanes, shape.m, shape.n
        )),
        Some(grid) => {
            if grid.words(shape) > MOST_WORDS {
                faults.push(format!("a lane would hold {} words of sums; accepted: {MOST_WORDS}", grid.words(shape)));
            }
            if (grid.rows(shape) * tile_n).is_multiple_of(threads * COLUMNS) {
                let bytes = Stages::bytes(op, schedule, grid.rows(shape));
                if bytes > caps.max_shared_bytes {
                    faults.push(format!("{bytes} bytes of shared memory; {} has {}", caps.name, caps.max_shared_bytes));
                }
            } else {
                let rows = grid.rows(shape);
                faults.push(format!("{threads} threads do not share {rows} rows of {tile_n} columns in fours"));
            }
        }
    }
    faults
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(matmul, schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let lacks = || Error::Unsupported(format!("cooperative matrices of f16 on {}", caps.name));
    let shape = shape(caps).ok_or_else(lacks)?;
    let grid = Grid::of(schedule, shape).ok_or_else(lacks)?;
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, COLUMNS as u8, 1)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    b.workgroup(schedule.threads, 1, 1);
    let stages = Stages::declare(&mut b, matmul, schedule, grid.rows(shape));
    if !stages.columns.is_multiple_of(plan.layout.unit) {
        let unit = plan.layout.unit;
        return Err(Error::Unsupported(format!("units of {unit} columns; pieces have {}", stages.columns)));
    }
    let tile = Tile::new(&mut b, schedule);
    let last = (matmul.n.next_multiple_of(crate::format::n16::ROWS) - 1) as i64;
    let row = b.bin_imm(BinOp::MinS, tile.row, last);
    let weights = Weights::few(&plan.layout, params.get(Role::Weights), row, 1, caps);
    let (x, m) = (params.get(Role::Activations), params.m);
    let fetch = Fetch::new(&mut b, matmul, schedule, &tile, (x, m, params.align));

    let multiplier = Multiplier::new(&mut b, &stages, shape, grid, schedule);
    let results =
        Work { plan: &plan, stages: &stages, tile: &tile, weights: &weights, fetch: &fetch, multiplier }.emit(&mut b);

    // From matrices to threads: a strip of rows of each subgroup at a time.
    let across = schedule.tile_n / COLUMNS;
    let (rows, threads) = (grid.rows(shape), schedule.threads);
    for strip in 0..grid.matrices.0 {
        if strip > 0 {
            b.barrier();
        }
        multiplier.store(&mut b, &stages, &results, strip);
        b.barrier();
        for turn in 0..rows * across / threads {
            let number = b.bin_imm(BinOp::Add, tile.id, i64::from(turn * threads));
            let (line, column) = split(&mut b, number, across as usize);
            let column = times(&mut b, column, COLUMNS as usize);
            let sums = stages.results(&mut b, line, column);
            // A subgroup's strips follow each other in Y.
            let (subgroup, within) = split(&mut b, line, shape.m as usize);
            let above = times(&mut b, subgroup, (grid.matrices.0 * shape.m) as usize);
            let line = b.add(above, within);
            let line = b.bin_imm(BinOp::Add, line, i64::from(strip * shape.m));
            let first = b.add(tile.first, line);
            let column = b.cast(CastOp::ExtendS, column, Scalar::I64);
            let start = b.add(tile.start, column);
            let (end, last) = (b.int(Scalar::I64, matmul.n as i64), b.bin_imm(BinOp::Sub, params.m, 1));
            let inside = b.cmp(CmpOp::LtS, start, end);
            let below = b.cmp(CmpOp::LtS, first, params.m);
            let stores = b.bin(BinOp::And, inside, below);
            let read = b.bin(BinOp::MinS, first, last);
            let rows = Rows::new(&mut b, matmul, &params, read, 1, COLUMNS as u8);
            b.if_then(stores, |b| epilogue::store(b, &plan, &params, &rows, (first, true), start, vec![sums]));
        }
    }
    Ok(b.finish())
}

/// The part of a subgroup in the products of a workgroup.
#[derive(Clone, Copy)]
struct Multiplier {
    shape: &'static MmaShape,
    grid: Grid,
    /// Byte, in the stage of X, of the first row that is this subgroup's; `i32`.
    x: Value,
    /// The same in the stage of W.
    w: Value,
    /// Byte of its first column in a line of factors.
    factors: Value,
    /// Byte of its first row and column where results go through shared memory.
    results: Value,
}

impl Multiplier {
    fn new(b: &mut Builder, stages: &Stages, shape: &'static MmaShape, grid: Grid, schedule: &Schedule) -> Multiplier {
        let subgroup = b.builtin(Builtin::Subgroup);
        let (row, column) = split(b, subgroup, grid.subgroups.1 as usize);
        let x = times(b, row, (grid.matrices.0 * shape.m) as usize * stages.line);
        let own = schedule.tile_n / grid.subgroups.1;
        let w = times(b, column, own as usize * stages.line);
        let factors = times(b, column, own as usize * 4);
        let above = times(b, row, shape.m as usize * stages.result_line);
        let results = b.add(above, factors);
        Multiplier { shape, grid, x, w, factors, results }
    }

    fn fill(&self, b: &mut Builder, part: Part, number: f32) -> Value {
        let value = match part {
            Part::Sums => b.f32(1, number),
            Part::A | Part::B => b.int(Scalar::F16, i64::from(DType::F16.encode(f64::from(number)))),
        };
        let fragment = Fragment { shape: self.shape, part };
        b.cooperative(Cooperative::Fill { fragment, value }).expect("a fill has a result")
    }

    fn load(&self, b: &mut Builder, part: Part, order: Order, place: (Memory, Value, usize), stride: usize) -> Value {
        let (memory, index, fixed) = place;
        let from = MatrixLines { order, address: at(memory, Some(index), fixed), stride: stride as u32 };
        let fragment = Fragment { shape: self.shape, part };
        b.cooperative(Cooperative::Load { fragment, from }).expect("a load has a result")
    }

    fn multiply(&self, b: &mut Builder, x: Value, w: Value, sums: Value) -> Value {
        let inst = Cooperative::Multiply { shape: self.shape, a: x, b: w, sums };
        b.cooperative(inst).expect("a product has a result")
    }

    /// The sums `[m][n]`, then, if they are asked for, those of activations `[m]`, after `columns` staged columns.
    fn piece(&self, b: &mut Builder, stages: &Stages, columns: usize, ones: Option<Value>, state: &mut [Value]) {
        let (rows, across) = (self.grid.matrices.0 as usize, self.grid.matrices.1 as usize);
        let (m, n, k) = (self.shape.m as usize, self.shape.n as usize, self.shape.k as usize);
        for step in 0..columns.div_ceil(k) {
            let w: Vec<Value> = (0..across)
                .map(|i| {
                    let place = (stages.w, self.w, i * n * stages.line + 2 * step * k);
                    self.load(b, Part::B, Order::Columns, place, stages.line)
                })
                .collect();
            for row in 0..rows {
                let place = (stages.x, self.x, row * m * stages.line + 2 * step * k);
                let x = self.load(b, Part::A, Order::Rows, place, stages.line);
                for (i, &w) in w.iter().enumerate() {
                    let sum = &mut state[row * across + i];
                    *sum = self.multiply(b, x, w, *sum);
                }
                if let Some(ones) = ones {
                    let sum = &mut state[rows * across + row];
                    *sum = self.multiply(b, x, ones, *sum);
                }
            }
        }
    }

    /// The results after a segment: sums by scales, and sums of activations by offsets.
    fn finish(&self, b: &mut Builder, stages: &Stages, sums: &[Value], mut results: Vec<Value>) -> Vec<Value> {
        let (rows, across) = (self.grid.matrices.0 as usize, self.grid.matrices.1 as usize);
        let shape = self.shape;
        let scale = |b: &mut Builder, a: Value, factor: Value, sums: Value| {
            b.cooperative(Cooperative::Scale { shape, a, b: factor, sums }).expect("a scaling has a result")
        };
        for i in 0..across {
            let factors = |b: &mut Builder, memory: Memory| {
                let place = (memory, self.factors, i * shape.n as usize * 4);
                // One line for all rows.
                self.load(b, Part::Sums, Order::Rows, place, 0)
            };
            let scales = factors(b, stages.scales);
            let offsets = stages.offsets.map(|memory| factors(b, memory));
            for row in 0..rows {
                let result = &mut results[row * across + i];
                *result = scale(b, sums[row * across + i], scales, *result);
                if let Some(offsets) = offsets {
                    *result = scale(b, sums[rows * across + row], offsets, *result);
                }
            }
        }
        results
    }

    /// Puts strip `strip` of each subgroup's results to shared memory.
    fn store(&self, b: &mut Builder, stages: &Stages, results: &[Value], strip: u32) {
        let across = self.grid.matrices.1 as usize;
        for i in 0..across {
            let address = at(stages.results, Some(self.results), i * self.shape.n as usize * 4);
            let to = MatrixLines { order: Order::Rows, address, stride: stages.result_line as u32 };
            b.cooperative(Cooperative::Store { shape: self.shape, to, sums: results[strip as usize * across + i] });
        }
    }
}

/// A workgroup at work.
struct Work<'a> {
    plan: &'a Plan,
    stages: &'a Stages,
    tile: &'a Tile,
    weights: &'a Weights<'a>,
    fetch: &'a Fetch,
    multiplier: Multiplier,
}

impl Work<'_> {
    /// The results of a subgroup, `[m][n]` matrices.
    fn emit(&self, b: &mut Builder) -> Vec<Value> {
        let (rows, across) = self.multiplier.grid.matrices;
        let count = (rows * across) as usize;
        let offset = self.stages.offsets.is_some();
        let k = self.multiplier.shape.k as usize;
        let nothing = self.multiplier.fill(b, Part::Sums, 0.0);
        let ones = offset.then(|| self.multiplier.fill(b, Part::B, 1.0));
        let walk = &self.plan.walk;
        walk.segments(b, None, vec![nothing; count], &mut |b, segment, results| {
            let factors = Factors { weights: self.weights, segment: walk.segment };
            let alone = segment.len <= self.stages.columns;
            if !alone {
                // Whoever reads the factors of the segment before has come here.
                b.barrier();
                factors.stage(b, self.stages, self.tile, segment);
            }
            let mut decode =
                Decode { weights: self.weights, stages: self.stages, tile: self.tile, segment: walk.segment };
            let zero = decode.begin(b, segment.segment);
            let sums = vec![nothing; count + if offset { rows as usize } else { 0 }];
            let sums = walk.parts(b, segment, self.stages.columns, sums, &mut |b, piece: &Piece, mut sums| {
                let padded = piece.len.next_multiple_of(k);
                b.barrier();
                if alone {
                    factors.stage(b, self.stages, self.tile, segment);
                }
                walk.piece(b, &mut decode, piece, Some(&self.tile.split), zero.clone());
                decode.pad(b, piece.len, padded);
                self.fetch.stage(b, self.stages, piece, padded);
                b.barrier();
                self.multiplier.piece(b, self.stages, padded, ones, &mut sums);
                sums
            });
            self.multiplier.finish(b, self.stages, &sums, results)
        })
    }
}

/// The type of a staged number.
const F16X4: Type = Type::vector(Scalar::F16, 4);
