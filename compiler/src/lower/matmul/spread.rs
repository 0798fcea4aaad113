//! Family `spread`: few rows, on workgroups of many threads. Every weight is read once and decoded in registers.
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y. A thread takes one row of W and its share of the columns:
//! whole segments where there are enough of them, else units of each segment, so that integer sums stay exact. Partial
//! results meet in shared memory. Serves every format, activation and shape; nothing here asks for more than barriers.
//! Grid: x over tiles of rows (neighbours share their weights in cache), y over tiles of columns.

use super::epilogue;
use super::float::FloatSums;
use super::integer::{IntegerSums, Results};
use super::{Plan, Tile, as_matmul, entry, refuses_threads};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role};
use crate::lower::space::Axis;
use crate::lower::team::Team;
use crate::lower::unpack::Weights;
use crate::lower::walk::Step;
use crate::op::Op;
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const SPREAD: Implementation = Implementation {
    family: Family::Spread,
    summary: "matmul for few rows on many threads: each takes a row of weights and some of its columns",
    refuses: refuses_threads,
    axes: &[
        Axis::new(Knob::TileM, &[1, 2, 3, 4, 5, 6, 7, 8]),
        Axis::new(Knob::TileN, &[16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 2, 4, 8, 16]),
    ],
    estimate: None,
    space,
    build,
};

/// The tile that wastes no row first; then wide workgroups, which keep more loads under way.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(matmul) = as_matmul(op) else { return Vec::new() };
    // A turn over two units of two planes and 32 columns keeps more words and activations than a thread of RDNA holds.
    let wide_units = N16::of(&matmul.weight, matmul.k).is_ok_and(|n16| n16.unit == 32 && n16.planes.len() > 1);
    let unrolls = if wide_units { [1, 2, 4] } else { [2, 1, 4] };
    let mut list = Vec::new();
    for tile_m in [m.min(8) as u32, 4, 2, 1] {
        if tile_m as usize > m || list.iter().any(|old: &Schedule| old.tile_m == tile_m) {
            continue;
        }
        for (tile_n, split) in [(16, 16), (16, 8), (32, 8), (16, 4), (64, 4)] {
            for unroll in unrolls {
                if tile_n * split <= caps.max_workgroup {
                    let schedule = Schedule::single(Family::Spread, tile_m, tile_n, unroll);
                    list.push(schedule.with_threads(tile_n * split, split));
                }
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    if !(1..=16).contains(&tile_m) {
        faults.push(format!("tile_m is {tile_m}; accepted: 1 to 16"));
    }
    if !tile_n.is_power_of_two() || tile_n < 16 {
        faults.push(format!("tile_n is {tile_n}; accepted: powers of two from 16 on"));
    }
    if !split.is_power_of_two() {
        faults.push(format!("split is {split}; accepted: powers of two"));
    }
    if u64::from(threads) != u64::from(tile_n) * u64::from(split) || threads > caps.max_workgroup {
        faults.push(format!("threads is {threads}; it is tile_n times split, at most {}", caps.max_workgroup));
    }
    if !(1..=64).contains(&unroll) {
        faults.push(format!("unroll is {unroll}; accepted: 1 to 64"));
    }
    faults
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let plan = Plan::with_lanes(matmul, schedule, caps, 1, 1)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let team = Team::new(&mut b, schedule.tile_n, schedule.split);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let start = b.add(start, team.row);
    // Threads past the last row work on it again, so that all of them meet at the barriers.
    let row = b.bin_imm(BinOp::MinS, start, matmul.n as i64 - 1);
    let weights = Weights::few(&plan.layout, params.get(Role::Weights), row, 1, caps);
    let whole = plan.walk.shares_segments(schedule.split as usize);
    let mut rows = Rows::new(&mut b, matmul, &params, first, schedule.tile_m as usize, 1);
    if !whole {
        rows = rows.with_leader(team.leader);
    }
    let tile = Tile { weights: &weights, rows: &rows, vectors: 1, waits: plan.waits, team: (!whole).then_some(&team) };
    let nothing = b.f32(1, 0.0);
    let outer = vec![nothing; rows.count()];
    let split = team.split(&mut b);
    let mut results = match &plan.integers {
        Some(how) => {
            let mut bytes = |b: &mut Builder, step: &Step, quad: usize, v: usize| {
                let words = weights.words(b, step.unit, step.first + quad, v);
                weights.bytes(b, how, &words)
            };
            let mut sums = IntegerSums {
                tile: &tile,
                how,
                segment: plan.walk.segment,
                bytes: &mut bytes,
                late: false,
                quarters: false,
                results: Results::Registers,
                sums: None,
            };
            plan.walk.emit_split(&mut b, &mut sums, &split, outer)
        }
        None => {
            let mut sums = FloatSums { tile: &tile, segment: plan.walk.segment };
            plan.walk.emit_split(&mut b, &mut sums, &split, outer)
        }
    };
    if whole {
        results = team.combine(&mut b, BinOp::Add, &results);
    }
    let end = b.int(Scalar::I64, matmul.n as i64);
    let inside = b.cmp(CmpOp::LtS, start, end);
    let stores = b.bin(BinOp::And, inside, team.leader);
    b.if_then(stores, |b| {
        epilogue::store(b, &plan, &params, &rows, (first, schedule.tile_m == 1), start, results);
    });
    Ok(b.finish())
}
