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

mod stages;
mod walk;

use self::stages::{Copier, Stages};
use self::walk::Walk;
use super::cut::{Cut, cut, lanes_of};
use super::products::{Products, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature, MmaShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::qt16::PANEL;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Kernel, Scalar};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, times};
use crate::lower::space::Axis;
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::Pos;
use crate::op::Op;
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
/// Four subgroups.
const FOURS: usize = 2;
/// Bytes of a row of X in a unit.
const ROW: usize = 128;
/// Fewer rows of X are left to families with smaller tiles.
const LEAST_ROWS: usize = 64;

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
    if shape.acc == DType::F32 && shape.b.bits() == 8 {
        return Some("does not take sums of 8-bit floats over to wider ones".to_string());
    }
    if shape.acc == DType::I32 && (cut.segment < op.k || layout.groups > 1) {
        return Some("scales integer sums at the end of K only".to_string());
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
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let mut tiles: Vec<(u32, u32)> = Vec::new();
    for &tile_m in TOKENS.iter().filter(|&&tokens| tokens as usize <= m.next_power_of_two()) {
        tiles.extend(ROWS.iter().map(|&tile_n| (tile_m, tile_n)));
    }
    tiles.sort_by_key(|&(tile_m, tile_n)| {
        let workgroups = m.div_ceil(tile_m as usize) * matmul.n.div_ceil(tile_n as usize);
        let (few, area) = (4 * workgroups < 3 * units, tile_m * tile_n);
        (few, if few { area } else { u32::MAX - area }, u32::MAX - tile_m)
    });
    let mut list = Vec::new();
    for (tile_m, tile_n) in tiles {
        let Some(bytes) = stage_bytes(op, caps, tile_m, tile_n) else { continue };
        for &stages in STAGES.iter().rev() {
            if stages as usize * bytes <= caps.max_shared_bytes as usize {
                list.push(Schedule::single(Family::Wide, tile_m, tile_n, stages).with_threads(THREADS, 1));
            }
        }
    }
    list
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    let faults = listed(
        schedule,
        &[
            ("tile_m", tile_m, &TOKENS),
            ("tile_n", tile_n, &ROWS),
            ("unroll", unroll, &STAGES),
            ("threads", threads, &[THREADS]),
            ("split", split, &[1]),
        ],
    );
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (cut, class, shape, layout) = cut(op, caps, columns, usize::MAX).map_err(Error::Unsupported)?;
    let (block, units, tiles) = blocks(&cut, shape, tile_n);
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
    let params = Params::declare_packed(b, op, Packing::Qt16(class, layout.order), caps)?;
    b.workgroup(threads, 1, 1);
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, tile_m as i64);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
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
    let sums = walk.run(b);
    // Rows are worked out behind the loop: they would take registers in it.
    let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
    let rows = rows_of(b, matmul, &params, first, t, tile_m as usize / 8);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    for (tile, (fragments, &sums)) in fragments.iter().zip(&sums).enumerate() {
        let products = Products { op: matmul, shape, cut, fragments, rows: &rows, ready: None };
        let sum = |b: &mut Builder, _: usize, token: usize, element: u8| b.extract(sums, 4 * token as u8 + element);
        let results = if shape.acc == DType::I32 {
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
        products.store(b, (&plan, &params), (start, g), &results, &mut |b, _, body| body(b));
    }
    Ok(std::mem::replace(b, Builder::new("")).finish())
}
