//! Family `wide`: many rows by products of four subgroups that go on while the next weights are decoded.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 in registers, scaled there; B a stage of X in shared memory
//! stage    [128 bytes of K][tile_m rows][128 bytes, swizzled]
//!          [tile of 64 rows of W][chunk of the block][subgroup][lane][16 bytes]
//! ```
//!
//! A workgroup of two times four subgroups makes `tile_m` rows by `tile_n` columns of Y over all of K; each four subgroups
//! have tiles of 64 rows of W. All threads copy X and packed weights, `unroll - 2` blocks ahead. A *unit* is a tile of 64 rows
//! by 128 bytes of K: its weights are decoded to one of several sets of registers while the unit before it is multiplied.
//! Weights of 16-bit products are scaled as they are decoded and rounded once, as in family `dense`; so sums run over all
//! of K. Integer sums are scaled behind the loop.
//!
//! Always holds: when a unit's registers are written, its product of the block before has ended; a stage is written again
//! only behind a barrier that everybody passed after the products of its block had ended.

mod share;
mod stages;
mod walk;

pub(in crate::lower) use share::workspace;

use self::share::Share;
use self::stages::{Copier, Stages};
use self::walk::Walk;
use super::cut::{Cut, cut, lanes_of};
use super::products::{Products, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature, MmaShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::Zero;
use crate::format::qt16::PANEL;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar, Value};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, times};
use crate::lower::space::Axis;
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::Pos;
use crate::op::{Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const WIDE: Implementation = Implementation {
    family: Family::Wide,
    summary: "matmul of many rows by pending products of four subgroups, weights scaled as they are decoded",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &TOKENS),
        Axis::new(Knob::TileN, &ROWS),
        Axis::new(Knob::Unroll, &STAGES),
        Axis::new(Knob::Threads, &[THREADS]),
    ],
    estimate: None,
    space,
    build,
};

const TOKENS: [u32; 4] = [16, 32, 64, 128];
const ROWS: [u32; 2] = [128, 256];
const STAGES: [u32; 5] = [3, 4, 5, 6, 8];
const THREADS: u32 = 256;
/// Tiles of 8 rows of X whose results are stored together.
const TOGETHER: usize = 4;
/// Four subgroups.
const FOURS: usize = 2;
/// Bytes of a row of X in a unit.
const ROW: usize = 128;
/// Fewer rows of X are left to families with smaller tiles.
const LEAST_ROWS: usize = 17;
/// Most workgroups that share a tile.
const MOST: usize = 8;
/// Fewest blocks that a workgroup of several has of a tile.
const LEAST_BLOCKS: usize = 4;

/// Columns of a unit.
fn columns(shape: &MmaShape) -> usize {
    ROW * 8 / shape.b.bits() as usize
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::AsyncCopy) || !caps.features.has(Feature::WarpgroupMma) {
        return Some(format!("has no asynchronous copies or no products of four subgroups on {}", caps.name));
    }
    let (cut, _, shape, layout) = match cut(op, caps, columns, usize::MAX) {
        Ok(found) => found,
        Err(why) => return Some(why),
    };
    let Ok(op) = as_matmul(op) else { return None };
    if !cut.block.is_multiple_of(columns(shape)) {
        return Some(format!("takes blocks of {} columns that divide K, here {}", columns(shape), op.k));
    }
    if shape.b.bits() == 8 && (cut.segment < op.k || layout.groups > 1) {
        return Some("scales products of 8 bits at the end of K only".to_string());
    }
    let zero = layout.format.zero;
    if shape.acc == DType::F32 && shape.b.bits() == 8 && !matches!(zero, Zero::None | Zero::Bias(_)) {
        return Some("takes no zero points of groups with 8-bit floats".to_string());
    }
    if shape.acc == DType::I32 && matches!(zero, Zero::Float(_) | Zero::Offset { .. }) {
        return Some("takes integer zero points with integer products".to_string());
    }
    None
}

/// How a tile is cut: columns of a block, units of 128 bytes of K in it, tiles of 64 rows of W of four subgroups.
fn blocks(cut: &Cut, shape: &MmaShape, tile_n: u32) -> (usize, usize, usize) {
    let tiles = tile_n as usize / PANEL / FOURS;
    // Two sets of registers take turns.
    let block = if tiles > 1 { cut.block } else { cut.block.max(2 * columns(shape)) };
    (block, block / columns(shape), tiles)
}

/// Bytes of a stage.
fn stage_bytes(op: &Op, caps: &Caps, tile_m: u32, tile_n: u32) -> Option<usize> {
    let (cut, _, shape, layout) = cut(op, caps, columns, usize::MAX).ok()?;
    let (block, units, _) = blocks(&cut, shape, tile_n);
    let matmul = as_matmul(op).ok()?;
    if !matmul.k.is_multiple_of(block) {
        return None;
    }
    let bits: usize = layout.planes.iter().map(|&(width, _)| width as usize).sum();
    Some(units * tile_m as usize * ROW + tile_n as usize * block * bits / 8)
}

fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(matmul) = as_matmul(op) else { return Vec::new() };
    if m < LEAST_ROWS {
        return Vec::new();
    }
    let Ok((cut, _, shape, _)) = cut(op, caps, columns, usize::MAX) else { return Vec::new() };
    let Some(gpu) = caps.gpu else { return Vec::new() };
    let mut found = Vec::new();
    for &tile_m in TOKENS.iter().filter(|&&tokens| tokens as usize <= m.next_power_of_two().max(32)) {
        for &tile_n in &ROWS {
            let Some(bytes) = stage_bytes(op, caps, tile_m, tile_n) else { continue };
            // Small tiles let two workgroups share a unit.
            let resident = if tile_m * tile_n <= 64 * 128 { 2 } else { 1 };
            let room = (gpu.shared_per_unit / resident - 1024).min(caps.max_shared_bytes) as usize;
            let Some(&stages) = STAGES.iter().rev().find(|&&stages| stages as usize * bytes <= room) else { continue };
            let (block, _, _) = blocks(&cut, shape, tile_n);
            let (tiles, total) = (matmul.n.div_ceil(tile_n as usize), matmul.k / block);
            for split in 1..=MOST {
                if !total.is_multiple_of(split) || split > 1 && total / split < LEAST_BLOCKS {
                    continue;
                }
                // What a unit has to do, in cycles: matrix instructions or bytes from the cache, what each tile costs besides,
                // and what meeting costs.
                let work = (tile_m * tile_n) as usize * block * shape.b.bits() as usize / 16 / PRODUCTS;
                let each =
                    total / split * work.max(bytes / BYTES) + 4000 + if split > 1 { 2000 + 200 * split } else { 0 };
                let turns = (m.div_ceil(tile_m as usize) * tiles * split).div_ceil(gpu.units as usize);
                let workgroups = if split > 1 { tiles * split } else { 1 };
                let schedule = Schedule::single(Family::Wide, tile_m, tile_n, stages).with_threads(THREADS, 1);
                found.push((turns * each, schedule.with_workgroups(workgroups as u32)));
            }
        }
    }
    found.sort_by_key(|&(cycles, _)| cycles);
    found.into_iter().map(|(_, schedule)| schedule).collect()
}

/// Multiply-adds of 16-bit floats that the matrix units of a unit make in a cycle.
const PRODUCTS: usize = 2048;

/// Bytes that a unit gets from the cache in a cycle while all of them ask.
const BYTES: usize = 24;

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let Schedule { tile_m, tile_n, unroll, threads, split, workgroups, .. } = *schedule;
    let mut faults = listed(
        schedule,
        &[
            ("tile_m", tile_m, &TOKENS),
            ("tile_n", tile_n, &ROWS),
            ("unroll", unroll, &STAGES),
            ("threads", threads, &[THREADS]),
            ("split", split, &[1]),
        ],
    );
    let (cut, class, shape, layout) = cut(op, caps, columns, usize::MAX).map_err(Error::Unsupported)?;
    let (block, units, tiles) = blocks(&cut, shape, tile_n);
    let (all, total) = (matmul.n.div_ceil(tile_n.max(1) as usize), matmul.k / block);
    let share = if workgroups == 1 { 1 } else { workgroups as usize / all };
    if workgroups != 1 && (share < 2 || share * all != workgroups as usize || !total.is_multiple_of(share)) {
        faults.push(format!(
            "workgroups is {workgroups}; accepted: 1, or a multiple of {all} tiles that cuts their {total} blocks evenly"
        ));
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    if share > 1 && !caps.features.has(Feature::DeviceFence) {
        return Err(Error::Unsupported(format!("workgroups of {} that share tiles: it lacks device-fence", caps.name)));
    }
    match stage_bytes(op, caps, tile_m, tile_n) {
        None => return Err(Error::invalid(format!("tile_n {tile_n} takes blocks of {block} columns that divide K"))),
        Some(bytes) if bytes * unroll as usize > caps.max_shared_bytes as usize => {
            return Err(Error::invalid(format!(
                "{unroll} stages of {bytes} bytes; accepted: {} bytes of shared memory",
                caps.max_shared_bytes
            )));
        }
        Some(_) => {}
    }
    let mut b = Builder::new(&entry(matmul, schedule));
    let b = &mut b;
    let lanes = lanes_of(shape)?;
    let packing = Packing::Qt16(class, layout.order);
    let params = Params::declare_with(b, op, packing, workspace(matmul, schedule), caps)?;
    b.workgroup(threads, 1, 1);
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let [tile_x, number] = nearby(b, all * share);
    let first = b.bin_imm(BinOp::Mul, tile_x, tile_m as i64);
    let tile_y = if share > 1 { b.bin_imm(BinOp::DivS, number, share as i64) } else { number };
    let start = b.bin_imm(BinOp::Mul, tile_y, tile_n as i64);
    let four = b.bin_imm(BinOp::ShrU, subgroup, 2);
    let of_four = b.bin_imm(BinOp::And, subgroup, 3);
    let mine = times(b, four, PANEL * tiles);
    let own = times(b, of_four, 16);
    let mine = b.add(mine, own);
    let start = b.add(start, mine);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    // Subgroups past the last panel read its rows again; nobody stores what they make of them.
    let last = matmul.n.next_multiple_of(PANEL) - PANEL;
    let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
    let most = b.bin_imm(BinOp::Add, own, last as i64);
    let mut fragments = Vec::new();
    for tile in 0..tiles {
        let row = b.bin_imm(BinOp::Add, start, (PANEL * tile) as i64);
        let row = b.bin(BinOp::MinS, row, most);
        fragments.push(Fragments::new(b, (&layout, &lanes), params.get(Role::Weights), row, 1, lane, caps));
    }
    let stages = Stages::new(b, (matmul, schedule), (shape, block, units), &fragments);
    let copier = Copier::new(b, &stages, params.get(Role::Activations), (first, params.m), (subgroup, lane));
    let walk = Walk { shape, stages: &stages, copier: &copier, fragments: &fragments };
    let place = (tile_x, tile_y, number);
    let shared = (share > 1).then(|| Share::new(b, (matmul, schedule), share, params.get(Role::Workspace), place));
    let from = shared.as_ref().map(|shared| shared.first(b, total / share));
    let sums = walk.run(b, (from, total / share));
    let end =
        End { op: matmul, shape, cut, fragments: &fragments, params: &params, places: (first, start, lane), tile_m };
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    match &shared {
        None => end.store(b, &plan, &sums),
        Some(shared) => shared.meet(b, &sums, |b, sums| end.store(b, &plan, sums)),
    }
    Ok(std::mem::replace(b, Builder::new("")).finish())
}

/// Tiles of rows of X that run side by side: the workgroups of a device then have about as many tiles of rows of W, and all
/// of them together read the fewest bytes.
const BESIDE: i64 = 16;

/// The workgroup's place along M and along N (`i32`), which has so many: as they start, workgroups walk over [`BESIDE`] tiles
/// of rows of X, and over all tiles of rows of W of those.
fn nearby(b: &mut Builder, along: usize) -> [Value; 2] {
    let (x, y) = (b.builtin(Builtin::WorkgroupId(0)), b.builtin(Builtin::WorkgroupId(1)));
    let count = b.builtin(Builtin::WorkgroupCount(0));
    let number = b.mul(y, count);
    let number = b.add(number, x);
    let run = BESIDE * along as i64;
    let band = b.bin_imm(BinOp::DivS, number, run);
    let first = b.bin_imm(BinOp::Mul, band, BESIDE);
    let before = b.bin_imm(BinOp::Mul, band, run);
    let within = b.bin(BinOp::Sub, number, before);
    let left = b.bin(BinOp::Sub, count, first);
    let most = b.int(Scalar::I32, BESIDE);
    let whole = b.cmp(CmpOp::LeS, most, left);
    // What is left over at the end goes along N first.
    let mut place = |by: i64| (b.bin_imm(BinOp::DivS, within, by), b.bin_imm(BinOp::RemS, within, by));
    let ((row, column), (rest, along)) = (place(BESIDE), place(along as i64));
    let (x, y) = (b.select(whole, column, rest), b.select(whole, row, along));
    [b.add(first, x), y]
}

/// What becomes of the sums of all of K.
struct End<'a> {
    op: &'a Matmul,
    shape: &'static MmaShape,
    cut: Cut,
    fragments: &'a [Fragments<'a>],
    params: &'a Params,
    /// First row of X (`i32`), first row of W of this subgroup (`i64`), lane.
    places: (Value, Value, Value),
    tile_m: u32,
}

impl End<'_> {
    /// Scales those that are not yet, and stores them. Rows are worked out here: they would take registers in the loop.
    fn store(&self, b: &mut Builder, plan: &Plan, sums: &[Value]) {
        let (first, start, lane) = self.places;
        let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
        // A few tokens at a time, so that what scales them takes few registers.
        for from in (0..self.tile_m as usize / 8).step_by(TOGETHER) {
            let first = b.bin_imm(BinOp::Add, first, 8 * from as i64);
            let count = TOGETHER.min(self.tile_m as usize / 8 - from);
            let rows = rows_of(b, self.op, self.params, first, t, count);
            for (tile, (fragments, &sums)) in self.fragments.iter().zip(sums).enumerate() {
                let products =
                    Products { op: self.op, shape: self.shape, cut: self.cut, fragments, rows: &rows, ready: None };
                let sum = |b: &mut Builder, _: usize, token: usize, element: u8| {
                    b.extract(sums, 4 * (from + token) as u8 + element)
                };
                let results = if self.shape.b.bits() == 8 {
                    let (group, nothing) = (products.group(b, Pos::fixed(0)), products.zeros(b));
                    products.scaled(b, (&group, Pos::fixed(0)), &sum, &nothing)
                } else {
                    let mut one = |token: usize| {
                        let parts: Vec<_> = (0..4).map(|element| sum(b, 0, token, element)).collect();
                        b.vector(&parts)
                    };
                    (0..rows.len()).map(&mut one).collect()
                };
                let start = b.bin_imm(BinOp::Add, start, (PANEL * tile) as i64);
                products.store(b, (plan, self.params), (start, g), &results, &mut |b, _, body| body(b));
            }
        }
    }
}
