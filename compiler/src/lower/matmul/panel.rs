//! Family `panel`: many rows by matrix instructions, X through a pipeline of stages in shared memory.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 in registers, decoded there; B a stage of X in shared memory
//! stage    [piece of 16 bytes of a row][tile_m rows][16 bytes]
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K. Its threads copy X, `unroll` stages deep, by
//! asynchronous copies, while each subgroup reads the next block of its own rows of W to registers. On devices with matrix
//! instructions of four subgroups a subgroup has 16 rows of W, and the unit reads X itself; elsewhere it has 32, or 16
//! where registers do not hold what 32 need, and lanes read their fragments of X, which lie side by side. Eight rows of a piece are 128 bytes in a row, so that neither copies
//! nor reads collide. Grid: x over tiles of rows, y over tiles of columns.

mod stages;
mod walk;

use self::stages::{Copier, Stages};
use self::walk::{Engine, Walk};
use super::cut::{Cut, cut, lanes_of};
use super::dense::{self, Ready};
use super::products::{Products, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature, MmaShape};
use crate::error::{Error, Result};
use crate::ir::{BinOp, Builder, Builtin, CastOp, Kernel, Scalar};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, times};
use crate::lower::space::Axis;
use crate::lower::unpack::fragments::Fragments;
use crate::op::Op;
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const PANEL_FAMILY: Implementation = Implementation {
    family: Family::Panel,
    summary: "matmul of many rows by matrix instructions, activations through stages of shared memory",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[16, 32, 64, 128]),
        Axis::new(Knob::TileN, &[64, 128]),
        Axis::new(Knob::Unroll, &[2, 3, 4]),
        Axis::new(Knob::Threads, &[64, 128, 256, 512]),
    ],
    estimate: None,
    space,
    build: make,
};

/// Most blocks whose sums are scaled together, where a segment is not all of K.
pub(super) const LONGEST: usize = 16;

/// Columns of a block: 128 bytes of a row of X.
pub(super) fn block(shape: &MmaShape) -> usize {
    128 * 8 / shape.b.bits() as usize
}

pub(super) fn refuses(op: &Op, caps: &Caps) -> Option<String> {
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

/// Rows of W that a subgroup may have, those that read X least often first.
fn rows_per_subgroup(family: Family, caps: &Caps) -> &'static [u32] {
    match family {
        _ if caps.features.has(Feature::WarpgroupMma) => &[16],
        Family::Dense => &[32],
        _ => &[32, 16],
    }
}

/// Rows of X that a tile of a family may have. What decodes in its loop has fewer registers left for sums.
fn tokens(family: Family, caps: &Caps) -> &'static [u32] {
    if caps.features.has(Feature::WarpgroupMma) || family == Family::Dense { &[16, 32, 64, 128] } else { &[16, 32, 64] }
}

/// Rows of W that a tile of a family may have. Weights in 16 bits are read from memory in each tile of rows of X, as X is in
/// each tile of theirs, so larger tiles pay more.
fn rows(family: Family) -> &'static [u32] {
    if family == Family::Dense { &[64, 128, 256] } else { &[64, 128] }
}

fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok((cut, _, shape, _)) = cut(op, caps, block, LONGEST) else { return Vec::new() };
    tiles(op, caps, m, (Family::Panel, cut.block * shape.b.bits() as usize / 8))
}

/// The largest tile that the rows of X fill and that gives most units a workgroup, then others, for a family whose stages hold
/// so many bytes of each row.
pub(super) fn tiles(op: &Op, caps: &Caps, m: usize, (family, row): (Family, usize)) -> Vec<Schedule> {
    let least = m.next_power_of_two().max(16) as u32;
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let n = as_matmul(op).map_or(1, |op| op.n);
    let fitting = tokens(family, caps).iter().rev().filter(|&&tokens| tokens <= least);
    let both = |&tokens: &u32| rows(family).iter().rev().map(move |&rows| (tokens, rows));
    let mut tiles: Vec<(u32, u32)> = fitting.flat_map(both).collect();
    tiles.sort_by_key(|&(tile_m, tile_n)| {
        let workgroups = m.div_ceil(tile_m as usize) * n.div_ceil(tile_n as usize);
        let (few, area) = (4 * workgroups < 3 * units, tile_m * tile_n);
        (few, if few { area } else { u32::MAX - area }, u32::MAX - tile_m)
    });
    // Two workgroups share a unit.
    let most = caps.gpu.map_or(caps.max_shared_bytes, |gpu| gpu.shared_per_unit / 2 - 1024);
    let mut list = Vec::new();
    for rows in rows_per_subgroup(family, caps) {
        for &(tile_m, tile_n) in &tiles {
            for stages in [4, 3, 2] {
                if stages * tile_m * row as u32 <= most.min(caps.max_shared_bytes) {
                    let threads = tile_n / rows * caps.subgroup;
                    list.push(Schedule::single(family, tile_m, tile_n, stages).with_threads(threads, 1));
                }
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    let mine: Vec<u32> =
        rows_per_subgroup(schedule.family, caps).iter().map(|rows| tile_n / rows * caps.subgroup).collect();
    listed(
        schedule,
        &[
            ("tile_m", tile_m, tokens(schedule.family, caps)),
            ("tile_n", tile_n, rows(schedule.family)),
            ("unroll", unroll, &[2, 3, 4]),
            ("threads", threads, &mine),
            ("split", split, &[1]),
        ],
    )
}

/// The kernel of this family, or of family `dense`.
pub(super) fn make(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (mut cut, class, shape, layout) = cut(op, caps, block, LONGEST).map_err(Error::Unsupported)?;
    let decodes = schedule.family != Family::Dense;
    if !decodes {
        let block = dense::block(matmul);
        cut = Cut { block, segment: matmul.k, per: matmul.k / block };
    }
    let mut b = Builder::new(&entry(matmul, schedule));
    let lanes = lanes_of(shape)?;
    let packing = Packing::Qt16(class, layout.order);
    let params = match decodes {
        true => Params::declare_packed(&mut b, op, packing, caps)?,
        false => Params::declare_decoded(&mut b, op, packing, dense::decoded(matmul), caps)?,
    };
    b.workgroup(schedule.threads, 1, 1);
    let stages = Stages::new(&mut b, matmul, schedule, shape, cut.block, params.get(Role::Activations));
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let per_subgroup = schedule.tile_n * caps.subgroup / schedule.threads;
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
    let ready = params.find(Role::Decoded).map(|memory| Ready::new(&mut b, matmul, memory, read, lane));
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &rows, ready };
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
