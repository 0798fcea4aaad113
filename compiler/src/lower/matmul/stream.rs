//! Family `stream`: few rows. Every weight is read once, decoded in registers, and used for all rows of the tile.
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K. Grid: x over tiles of rows (neighbours share
//! their weights in cache), y over tiles of columns.

mod space;

use self::space::{estimate, space};
use super::epilogue;
use super::float::FloatSums;
use super::integer::{IntegerSums, Results};
use super::registers::{self, InScratch};
use super::spans::{Span, SpanSums};
use super::staged::{self, StagedSums};
use super::{Plan, Tile, as_matmul, entry, integers_of, refuses};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::format::Code;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Builtin, CastOp, Kernel, Scalar, Value};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, split};
use crate::lower::space::Axis;
use crate::lower::stage::{Kept, Staged};
use crate::lower::unpack::fields::Fields;
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Pos, Walk};
use crate::op::{Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const STREAM: Implementation = Implementation {
    family: Family::Stream,
    summary: "matmul for few rows: weights are read once and decoded in registers",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[1, 2, 3, 4, 5, 6, 7, 8, 10, 12]),
        Axis::new(Knob::TileN, &[4, 8, 16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4, 8, 16, 32, 64]),
    ],
    estimate: Some(estimate),
    space,
    build,
};

/// Bytes that one run of weights is asked for ahead. On Zen 5 8 KiB read 1.11 (4 bits) to 1.23 times (3 bits) as fast as 4, which
/// do as well everywhere else; 12 read less fast again.
const AHEAD: usize = 8192;

/// Bytes that each of four runs of weights is asked for ahead. On Zen 3 plain reading gives the most at 256 to 1024, and a tenth less
/// at 4096.
const AHEAD_OF_FOUR: usize = 512;

/// Whether tiles of so many columns read their weights in one run, by vectors of 64 bytes.
fn is_one_run(tile_n: u32, caps: &Caps) -> bool {
    caps.vector_bytes >= 64 && tile_n == (caps.vector_bytes / 4).min(16)
}

/// Whether integer tiles of so many columns read their weights in one run, faster than memory delivers them.
fn follows_one_run(tile_n: u32, caps: &Caps) -> bool {
    super::has_dot(caps) && is_one_run(tile_n, caps)
}

/// Whether integer tiles of so many columns read their weights in four runs, by vectors of 32 bytes.
fn is_four_runs(tile_n: u32, caps: &Caps) -> bool {
    !super::has_dot(caps) && caps.vector_bytes == 32 && tile_n == 64
}

/// Whether this family serves many rows too: with a dot instruction of 64 bytes, decoding in registers hides behind products, and
/// a tile that reads what it decoded before waits for stores. On Zen 5, 128 rows: 1.03 (groups of 256) to 1.16 times (of 32) as
/// fast as family `tile`. Codes of several planes take as long to put together as to multiply.
pub(in crate::lower) fn serves_many_rows(op: &Op, caps: &Caps) -> bool {
    let Ok(op) = as_matmul(op) else { return false };
    let layout = N16::of(&op.weight, op.k);
    super::has_dot(caps)
        && caps.vector_bytes >= 64
        && layout.is_ok_and(|layout| layout.planes.len() == 1 && integers_of(op, &layout, caps).is_some())
}

/// What a tile of integer sums keeps in scratch; `None` if the tile does not fit.
fn in_scratch(op: &Matmul, layout: &N16, how: &Integers, schedule: &Schedule, caps: &Caps) -> Option<InScratch> {
    let tile = registers::Tile {
        rows: schedule.tile_m,
        vectors: schedule.tile_n / (caps.vector_bytes / 4).min(16),
        columns: schedule.unroll as usize * layout.unit,
        segment: op.segment(),
        quarters: reads_quarters(layout, caps),
    };
    registers::in_scratch(&tile, how, layout, caps)
}

/// Rows that meet spans of columns in one tile.
const SPAN_ROWS: u32 = 2;

/// Spans of columns under two levels of scales, where ends of groups would be most of the work: short codes in groups of 16. On
/// Zen 3 one row of Q2_K takes 0.5 of the time from a cache and 0.65 from memory, two rows 0.4, one row of Q3_K 0.85 and 0.95. Longer
/// codes read no faster from memory, and those of two planes are no faster with two rows.
fn span_of(op: &Matmul, layout: &N16, how: &Integers, tile_m: u32, caps: &Caps) -> Option<Span> {
    let most = if layout.planes.len() == 1 { SPAN_ROWS } else { 1 };
    let short = how.bits <= 3 && layout.group <= 16;
    (short && tile_m <= most).then(|| Span::of_stored(op, layout, how, caps)).flatten()
}

/// Whether two-bit codes enter sums of bytes without a shift each: see [`Weights::quarter_bytes`].
fn reads_quarters(layout: &N16, caps: &Caps) -> bool {
    let integer = matches!(layout.format.code, Code::Int { .. } | Code::Ternary);
    integer && layout.planes == [2] && !super::has_dot(caps) && caps.vector_bytes >= 32
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let mut plan = Plan::new(matmul, schedule, caps)?;
    if plan.integers.is_some() && follows_one_run(schedule.tile_n, caps) && plan.layout.planes.len() == 1 {
        plan.walk = plan.walk.across_segments();
    }
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let (tile_x, tile_y) = match rows_together(op, schedule, caps) {
        Some(tiles) => by_blocks_of_rows(&mut b, tiles, matmul.n.div_ceil(schedule.tile_n as usize)),
        None => (b.builtin(Builtin::WorkgroupId(0)), b.builtin(Builtin::WorkgroupId(1))),
    };
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    if let Some(fields) = staged::fields(matmul, &plan.layout, caps) {
        build_staged(&mut b, &plan, schedule, caps, &params, fields, (first, tile_y))?;
        return Ok(b.finish());
    }
    if schedule.strips != 1 {
        return Err(Error::invalid(format!("strips is {}; accepted here: 1", schedule.strips)));
    }
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let weights =
        Weights::new(&plan.layout, params.get(Role::Weights), start, matmul.n, schedule.tile_n as usize, caps);
    let weights = match plan.integers {
        Some(_) if follows_one_run(schedule.tile_n, caps) => weights.asking_ahead(AHEAD),
        Some(_) if is_four_runs(schedule.tile_n, caps) => weights.asking_ahead(AHEAD_OF_FOUR),
        _ => weights,
    };
    let rows = Rows::new(&mut b, matmul, &params, first, schedule.tile_m as usize, plan.lanes);
    let tile = Tile { weights: &weights, rows: &rows, vectors: plan.vectors, waits: plan.waits, team: None };
    let quarters = reads_quarters(&plan.layout, caps);
    let count = rows.count() * plan.vectors;
    let results = match &plan.integers {
        Some(how) if let Some(span) = span_of(matmul, &plan.layout, how, schedule.tile_m, caps) => {
            let walk = Walk::new(&plan.layout, span.columns, schedule.unroll as usize)?;
            let mut sums = SpanSums::new(&mut b, &tile, how, span);
            walk.emit(&mut b, &mut sums, Vec::new());
            sums.results(&mut b)
        }
        Some(how) => {
            // A schedule from elsewhere than the chooser may not fit: then it spills, and is right all the same.
            let own = match caps.vector_bytes {
                32.. => in_scratch(matmul, &plan.layout, how, schedule, caps)
                    .unwrap_or(InScratch { results: true, sums: false }),
                _ => InScratch { results: false, sums: false },
            };
            let kept = own.results.then(|| Kept::declare(&mut b, "results", count, plan.lanes));
            let sums_kept = own.sums.then(|| Kept::integers(&mut b, "sums", count, plan.lanes));
            let mut bytes = |b: &mut Builder, step: &crate::lower::walk::Step, quad: usize, v: usize| {
                let words = weights.words(b, step.unit, step.first + quad, v);
                weights.bytes(b, how, &words)
            };
            let mut sums = IntegerSums {
                tile: &tile,
                how,
                segment: plan.walk.segment,
                bytes: &mut bytes,
                late: !super::has_dot(caps) && caps.vector_bytes >= 32,
                quarters,
                results: Results::kept(kept.as_ref()),
                sums: sums_kept.as_ref(),
            };
            sums.over(&mut b, &plan.walk)
        }
        None => {
            let nothing = b.f32(plan.lanes, 0.0);
            plan.walk.emit(&mut b, &mut FloatSums { tile: &tile, segment: plan.walk.segment }, vec![nothing; count])
        }
    };
    epilogue::store(&mut b, &plan, &params, &rows, (first, schedule.tile_m == 1), start, results);
    Ok(b.finish())
}

/// Bytes of activations that stay in a second-level cache while weights go by, with room for those.
const ACTIVATIONS: usize = 256 << 10;

/// Tiles of rows whose activations a cache holds, where there may be more of them.
fn rows_together(op: &Op, schedule: &Schedule, caps: &Caps) -> Option<usize> {
    let Matmul { n, k, .. } = *as_matmul(op).ok()?;
    let together = ACTIVATIONS.div_ceil(k.max(1) * schedule.tile_m as usize);
    // Workgroups of a block are numbered in floats.
    let exact = together * n.div_ceil(schedule.tile_n as usize) < 1 << f32::MANTISSA_DIGITS;
    (schedule.tile_m > 1 && exact && serves_many_rows(op, caps)).then_some(together)
}

/// The tile of rows and the tile of columns (`i32`) of this workgroup, where workgroups in their order take all `columns` tiles
/// of columns for `together` tiles of rows before the next ones: 512 rows of activations would be read from a further cache
/// for every tile of columns.
fn by_blocks_of_rows(b: &mut Builder, together: usize, columns: usize) -> (Value, Value) {
    let mut wide = |builtin: Builtin| {
        let value = b.builtin(builtin);
        b.cast(CastOp::ExtendS, value, Scalar::I64)
    };
    let (x, y) = (wide(Builtin::WorkgroupId(0)), wide(Builtin::WorkgroupId(1)));
    let count_x = wide(Builtin::WorkgroupCount(0));
    let line = b.bin(BinOp::Mul, y, count_x);
    let place = b.add(line, x);
    let (block, within) = split(b, place, together * columns);
    let first = b.bin_imm(BinOp::Mul, block, together as i64);
    let left = b.bin(BinOp::Sub, count_x, first);
    let width = b.bin_imm(BinOp::MinS, left, together as i64);
    let [first, within, width] = [first, within, width].map(|value| b.cast(CastOp::Truncate, value, Scalar::I32));
    // Whole numbers below 2^24: a quotient of floats is rounded to none that is too large.
    let [dividend, divisor] = [within, width].map(|value| b.cast(CastOp::IntToFloatS, value, Scalar::F32));
    let quotient = b.bin(BinOp::Div, dividend, divisor);
    let tile_y = b.cast(CastOp::FloatToIntS, quotient, Scalar::I32);
    let line = b.bin(BinOp::Mul, tile_y, width);
    let within = b.bin(BinOp::Sub, within, line);
    (b.add(first, within), tile_y)
}

/// Float activations: see [`staged`].
fn build_staged(
    b: &mut Builder,
    plan: &Plan,
    schedule: &Schedule,
    caps: &Caps,
    params: &Params,
    fields: Fields,
    (first, tile_y): (Value, Value),
) -> Result<()> {
    let (op, layout, lanes) = (&plan.op, &plan.layout, plan.lanes);
    // A schedule from elsewhere than the chooser may not fit: then it spills, and is right all the same.
    let shape = staged::shape(schedule.tile_m as usize, plan.vectors, layout, caps.vector_registers as usize)
        .unwrap_or(staged::Shape { chains: 1, in_scratch: true });
    if !(1..=64).contains(&schedule.strips) {
        return Err(Error::invalid(format!("strips is {}; accepted: 1 to 64", schedule.strips)));
    }
    let rows = Rows::new(b, op, params, first, schedule.tile_m as usize, lanes);
    let factors = staged::factors(layout, &fields, lanes);
    let content = staged::content(op, layout, &fields, &factors);
    let staged = Staged::declare(b, rows.count(), &content, lanes);
    let count = rows.count() * plan.vectors;
    let kept = shape.in_scratch.then(|| Kept::declare(b, "results", count, lanes));
    staged.fill(b, &rows, Pos::fixed(0), &content);
    let width = i64::from(schedule.tile_n);
    let start = b.bin_imm(BinOp::Mul, tile_y, width * i64::from(schedule.strips));
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let end = b.bin_imm(BinOp::Add, start, width * i64::from(schedule.strips));
    let last = b.int(Scalar::I64, op.n as i64);
    let end = b.bin(BinOp::MinS, end, last);
    b.for_loop(start, end, width, &[], |b, start, _| {
        let weights = Weights::new(layout, params.get(Role::Weights), start, op.n, schedule.tile_n as usize, caps);
        let weights = if is_one_run(schedule.tile_n, caps) { weights.asking_ahead(AHEAD) } else { weights };
        let tile = Tile { weights: &weights, rows: &rows, vectors: plan.vectors, waits: plan.waits, team: None };
        let outer = staged::start(b, kept.as_ref(), count, lanes);
        let mut sums = StagedSums {
            tile: &tile,
            staged: &staged,
            fields,
            chains: shape.chains,
            kept: kept.as_ref(),
            segment: plan.walk.segment,
        };
        let outer = plan.walk.emit(b, &mut sums, outer);
        let results = staged::finished(b, kept.as_ref(), outer, count, lanes);
        epilogue::store(b, plan, params, &rows, (first, schedule.tile_m == 1), start, results);
        Vec::new()
    });
    Ok(())
}
