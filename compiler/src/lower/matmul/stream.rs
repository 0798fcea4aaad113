//! Family `stream`: few rows. Every weight is read once, decoded in registers, and used for all rows of the tile.
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K. Grid: x over tiles of rows (neighbours share
//! their weights in cache), y over tiles of columns.

use super::epilogue;
use super::float::FloatSums;
use super::integer::IntegerSums;
use super::{Plan, Tile, as_matmul, entry, refuses};
use crate::caps::Caps;
use crate::error::Result;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Kernel, Scalar};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role};
use crate::lower::space::Axis;
use crate::lower::unpack::Weights;
use crate::lower::{Estimate, Implementation};
use crate::op::{Activation, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const STREAM: Implementation = Implementation {
    family: Family::Stream,
    summary: "matmul for few rows: weights are read once and decoded in registers",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[1, 2, 3, 4, 5, 6, 7, 8, 10, 12]),
        Axis::new(Knob::TileN, &[4, 8, 16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4, 8]),
    ],
    estimate: Some(estimate),
    space,
    build,
};

/// Register tiles that hold their sums in about three quarters of the registers, those with the fewest instructions per
/// product first.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(op) = as_matmul(op) else { return Vec::new() };
    let lanes = (caps.vector_bytes / 4).min(16);
    let budget = caps.vector_registers * 3 / 4;
    let mut list = Vec::new();
    for tile_m in 1..=8u32 {
        for tile_n in [4, 8, 16, 32, 64].into_iter().filter(|n| n % lanes == 0) {
            let sums = tile_m * tile_n / lanes;
            let rows_needed = (m as u32).div_ceil(tile_m);
            let waste = rows_needed * tile_m - m as u32;
            if sums > budget || waste >= tile_m.max(2) / 2 && m as u32 > tile_m || tile_m as usize > m {
                continue;
            }
            // Results and partial sums live side by side; what does not fit is spilled inside the loop.
            let partial = if sums <= 4 { 2 * sums } else { sums };
            // Float sums also hold four columns of each row and a word of weights per vector.
            let operands =
                if matches!(op.activation, Activation::Int8(_)) { tile_m } else { 4 * tile_m + tile_n / lanes };
            let spilled = (partial + sums + operands + 3).saturating_sub(caps.vector_registers);
            let mut cost = cost(tile_m, tile_n / lanes, m as u32, op.activation) + 0.1 * spilled as f64;
            // Two blocks of rows are two streams for the hardware's prefetcher: worth a fifth where sums of bytes are
            // cheap to hold, since their products add up in 16 bits first (12.4 against 10.2 GB/s on Zen 3).
            if tile_m == 1 && tile_n == 32 && !super::has_dot(caps) {
                cost *= 0.8;
            }
            for (rank, unroll) in [4, 2, 1].into_iter().enumerate() {
                list.push((cost, rank, Schedule::single(Family::Stream, tile_m, tile_n, unroll)));
            }
        }
    }
    list.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    list.into_iter().map(|(_, _, schedule)| schedule).collect()
}

/// Sums, results and operands in registers; instructions per product.
fn estimate(op: &Op, schedule: &Schedule, caps: &Caps, m: usize) -> Estimate {
    let lanes = (caps.vector_bytes / 4).min(16);
    let (tile_m, vectors) = (schedule.tile_m, (schedule.tile_n / lanes).max(1));
    let activation = if let Op::Matmul(op) = op { op.activation } else { Activation::Float(crate::dtype::DType::F32) };
    let sums = tile_m * vectors;
    let operands = if matches!(activation, Activation::Int8(_)) { 3 } else { 3 + vectors.min(2) };
    Estimate { registers: sums + operands, work: cost(tile_m, vectors, m as u32, activation) / lanes as f64 }
}

/// Instructions per product, counted: each vector of weights is loaded and unpacked once per tile of rows, each
/// activation broadcast once per tile of columns.
fn cost(tile_m: u32, vectors: u32, m: u32, activation: Activation) -> f64 {
    let unpack = if matches!(activation, Activation::Int8(_)) { 2.5 } else { 4.0 };
    let rows = m.div_ceil(tile_m) as f64 * tile_m as f64 / m as f64;
    rows * (1.0 + unpack / tile_m as f64 + 1.0 / vectors as f64 + 0.5 / (tile_m * vectors) as f64)
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let plan = Plan::new(matmul, schedule, caps)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let weights =
        Weights::new(&plan.layout, params.get(Role::Weights), start, matmul.n, schedule.tile_n as usize, caps);
    let rows = Rows::new(&mut b, matmul, &params, first, schedule.tile_m as usize, plan.lanes);
    let tile = Tile { weights: &weights, rows: &rows, vectors: plan.vectors, waits: plan.waits, team: None };
    let nothing = b.f32(plan.lanes, 0.0);
    let outer = vec![nothing; rows.count() * plan.vectors];
    let results = match &plan.integers {
        Some(how) => {
            let mut bytes = |b: &mut Builder, step: &crate::lower::walk::Step, quad: usize, v: usize| {
                let words = weights.words(b, step.unit, step.first + quad, v);
                weights.bytes(b, how, &words)
            };
            let mut sums = IntegerSums { tile: &tile, how, segment: plan.walk.segment, bytes: &mut bytes };
            plan.walk.emit(&mut b, &mut sums, outer)
        }
        None => plan.walk.emit(&mut b, &mut FloatSums { tile: &tile, segment: plan.walk.segment }, outer),
    };
    epilogue::store(&mut b, &plan, &params, &rows, (first, schedule.tile_m == 1), start, results);
    Ok(b.finish())
}
