//! Family `ring`: few rows by matrix instructions, weights through rings of stages in shared memory.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 through the ring, B straight from X
//! ring     [subgroup][stage][strip of the step][chunk of the strip][tile of 16 rows][lane][16 bytes]
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y; its `split` subgroups take turns at steps of K. A step is a
//! whole group where groups are longer than a strip of the packing, else a strip. Each subgroup has a ring of its own and
//! keeps `unroll - 1` steps of weights under way while it works on one, so no barrier of the workgroup stands in the loop.
//! On devices with bulk copies one lane fetches a step and all wait for its barrier object; elsewhere each lane copies the 16
//! bytes that it will decode itself, and waits for its own copies alone. Weights do not depend on the launch before: the
//! first steps are fetched before this one waits for it. Partial results meet in shared memory in a fixed order.
//! Grid: x over tiles of rows, y over tiles of columns.

mod stages;
mod walk;

use self::stages::Ring;
use self::walk::Walk;
use super::products::{Cut, Products, cut, lanes_of, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::format::qt16::tile_columns;
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CastOp, Kernel, Scalar};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, byte_index};
use crate::lower::space::Axis;
use crate::lower::team::Team;
use crate::lower::unpack::fragments::Fragments;
use crate::op::Op;
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const RING: Implementation = Implementation {
    family: Family::Ring,
    summary: "matmul of few rows by matrix instructions, weights through rings of shared memory",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[8, 16, 32]),
        Axis::new(Knob::TileN, &[16, 32, 64]),
        Axis::new(Knob::Unroll, &[2, 3, 4, 6, 8]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 2, 4, 8]),
    ],
    estimate: None,
    space,
    build,
};

/// Most strips of a step.
const LONGEST: usize = 4;
const TOKENS: [u32; 3] = [8, 16, 32];
const ROWS: [u32; 3] = [16, 32, 64];
const SPLITS: [u32; 4] = [1, 2, 4, 8];
const STAGES: [u32; 7] = [2, 3, 4, 5, 6, 7, 8];

/// How the ring cuts K (a block is one strip), and how many times 16 bytes a lane has of a tile of a strip.
fn ring_cut(op: &Op, caps: &Caps) -> Result<(Cut, usize), String> {
    let (cut, _, _, layout) = cut(op, caps, |_| 0, LONGEST)?;
    let chunks = layout.planes.iter().map(|&(width, _)| cut.block / tile_columns(width)).sum();
    let k = as_matmul(op).map_or(0, |op| op.k);
    if cut.segment < k && cut.per > LONGEST {
        return Err(format!("takes integer sums over {LONGEST} strips at most, not over {}", cut.per));
    }
    Ok((cut, chunks))
}

/// Strips of a step: where all of K is one segment, its sums go on from step to step.
fn strips_of(cut: &Cut, k: usize) -> usize {
    if cut.segment >= k { 1 } else { cut.per }
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::AsyncCopy) {
        return Some(format!("has no asynchronous copies on {}", caps.name));
    }
    ring_cut(op, caps).err()
}

/// Tiles so small that every unit has work first; as many stages as let two workgroups share a unit.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let (Ok((cut, chunks)), Ok(matmul)) = (ring_cut(op, caps), as_matmul(op)) else { return Vec::new() };
    let strips = strips_of(&cut, matmul.k);
    let steps = matmul.k / cut.block / strips;
    let tile_m = TOKENS.into_iter().find(|&tokens| tokens as usize >= m).unwrap_or(32);
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let most = caps.gpu.map_or(caps.max_shared_bytes, |gpu| gpu.shared_per_unit / 2 - 2048) as usize;
    let mut rows: Vec<u32> = ROWS.into_iter().filter(|&rows| tile_m * rows <= 1024).collect();
    // The largest tile that still gives every unit two workgroups, then the others. With more rows of X, which every
    // workgroup reads in full, larger tiles come first.
    let wanted = if tile_m == 8 { 2 * units } else { units * 3 / 4 };
    rows.sort_by_key(|&rows| {
        let workgroups = matmul.n.div_ceil(rows as usize) * m.div_ceil(tile_m as usize);
        (workgroups < wanted, if workgroups < wanted { rows } else { 64 - rows })
    });
    let mut list = Vec::new();
    for &tile_n in &rows {
        for split in [8, 4, 2, 1] {
            if split > 1 && steps < split as usize {
                continue;
            }
            for stages in [8, 6, 4, 3, 2] {
                let bytes =
                    (split * stages) as usize * strips * chunks * tile_n as usize * 32 + split as usize * 64 * 36;
                if bytes <= most.min(caps.max_shared_bytes as usize) {
                    list.push(
                        Schedule::single(Family::Ring, tile_m, tile_n, stages)
                            .with_threads(caps.subgroup * split, split),
                    );
                }
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
            ("split", split, &SPLITS),
            ("threads", threads, &[split * caps.subgroup]),
        ],
    );
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (cut, class, shape, layout) = cut(op, caps, |_| 0, LONGEST).map_err(Error::Unsupported)?;
    let lanes = lanes_of(shape)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare_packed(&mut b, op, Packing::Qt16(class, layout.order), caps)?;
    let team = Team::of_subgroups(&mut b, caps.subgroup, split, 16, (tile_n / 16 * tile_m / 8) as usize);
    if caps.features.has(Feature::GridDependency) {
        b.asynchronous(Asynchronous::LaunchDependents);
    }
    let lane = b.builtin(Builtin::Lane);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, tile_m as i64);
    let tiles = tile_n as usize / 16;
    let fragments = Fragments::new(&mut b, (&layout, &lanes), params.get(Role::Weights), start, tiles, lane, caps);
    let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
    let tokens = tile_m as usize / 8;
    let rows = rows_of(&mut b, matmul, &params, first, t, tokens);
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    let columns = (0..tokens)
        .map(|token| {
            // Rows past M repeat the last one; nobody stores what they give.
            let row = b.bin_imm(BinOp::Add, first, 8 * token as i64);
            let row = b.add(row, g);
            let row = b.bin(BinOp::MinS, row, last);
            let place = byte_index(&mut b, row, matmul.k * shape.b.bits() as usize / 8);
            let mine = byte_index(&mut b, t, 4);
            b.add(place, mine)
        })
        .collect();
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &rows };
    let strips = strips_of(&cut, matmul.k);
    let ring = Ring::new(&mut b, schedule, (strips, &fragments), matmul.k / cut.block / strips, lane, caps);
    let walk = Walk { products, ring, team: &team, x: params.get(Role::Activations), columns };
    let results = walk.run(&mut b, caps);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    walk.products.store(&mut b, (&plan, &params), (start, g), &results, &mut |b, i, body| {
        team.on_slice(b, i, |b| body(b));
    });
    Ok(b.finish())
}
