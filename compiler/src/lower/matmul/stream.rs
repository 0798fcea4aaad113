//! Family `stream`: few rows. Every weight is read once, decoded in registers, and used for all rows of the tile.
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y over all of K. Grid: x over tiles of rows (neighbours share
//! their weights in cache), y over tiles of columns.

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
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, split};
use crate::lower::space::Axis;
use crate::lower::stage::{Kept, Staged};
use crate::lower::unpack::fields::Fields;
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Pos, Walk};
use crate::lower::{Estimate, Implementation};
use crate::op::{Activation, Matmul, Op};
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
    let layout = N16::of(&op.weight, op.k);
    if layout.as_ref().is_ok_and(|layout| staged::fields(op, layout, caps).is_some()) {
        return layout.as_ref().map_or(Vec::new(), |layout| staged_space(op, layout, caps, m));
    }
    let lanes = (caps.vector_bytes / 4).min(16);
    let budget = caps.vector_registers * 3 / 4;
    let integers = layout.as_ref().ok().and_then(|layout| integers_of(op, layout, caps));
    // Where a unit of columns holds several groups, their scales wait beside the words of further planes (Q3_K).
    let waiting = layout.as_ref().map_or(0, |layout| {
        (layout.planes.len() as u32 - 1) * (layout.unit.div_ceil(op.segment().min(layout.unit)) as u32 - 1)
    });
    let mut list = Vec::new();
    for tile_m in 1..=8u32 {
        for tile_n in [4, 8, 16, 32, 64].into_iter().filter(|n| n % lanes == 0) {
            let sums = tile_m * tile_n / lanes;
            let rows_needed = (m as u32).div_ceil(tile_m);
            let waste = rows_needed * tile_m - m as u32;
            // Of many rows the cost says what is wasted.
            let wasteful = waste >= tile_m.max(2) / 2 && m as u32 > tile_m && m < 64;
            if sums > budget || wasteful || tile_m as usize > m {
                continue;
            }
            // Results and partial sums live side by side; what does not fit is spilled inside the loop.
            let partial = if sums <= 4 { 2 * sums } else { sums };
            // Float sums also hold four columns of each row and a word of weights per vector.
            let operands =
                if matches!(op.activation, Activation::Int8(_)) { tile_m } else { 4 * tile_m + tile_n / lanes };
            let operands = operands + waiting * tile_n / lanes;
            let spilled = (partial + sums + operands + 3).saturating_sub(caps.vector_registers);
            let spilled = if integers.is_some() && caps.vector_bytes >= 32 { 0 } else { spilled };
            // Float sums that no staged activations serve: the smallest tile is left, whatever it takes.
            let smallest = tile_m == 1 && tile_n == lanes;
            if integers.is_none() && caps.vector_bytes >= 32 && !smallest && spilled + 6 * tile_n / lanes > 6 {
                continue;
            }
            let mut cost = cost(tile_m, tile_n / lanes, m as u32, op.activation) + 0.1 * spilled as f64;
            let quarters =
                matches!(op.activation, Activation::Int8(_)) && layout.as_ref().is_ok_and(|l| reads_quarters(l, caps));
            let spans = match (&layout, &integers) {
                (Ok(layout), Some(how)) => span_of(op, layout, how, tile_m, caps).is_some(),
                _ => false,
            };
            if spans {
                // Two vectors of weights share activations; a block of rows is two vectors.
                if tile_n == 2 * lanes {
                    let unrolled = |unroll| Schedule::single(Family::Stream, tile_m, tile_n, unroll);
                    let cost = if quarters { 0.5 * cost } else { cost };
                    // Of scales that share bytes it is known which is which where a turn takes all of them; two rows have no
                    // registers left for that.
                    let shared = layout.as_ref().is_ok_and(|layout| layout.scales.shared() == 2);
                    let unrolls = if shared && tile_m == 1 { [2, 1] } else { [1, 2] };
                    list.extend(unrolls.iter().enumerate().map(|(rank, &unroll)| (cost, rank, unrolled(unroll))));
                }
                continue;
            }
            // Blocks of rows are streams for the hardware's prefetcher: two of them are worth a fifth where sums of bytes are
            // cheap to hold, since their products add up in 16 bits first (12.4 against 10.2 GB/s on Zen 3). More rows of activations
            // would run through the weights as often.
            if m == 1 && tile_n >= 32 && !super::has_dot(caps) {
                cost *= 0.8;
            }
            if quarters && tile_m == 1 && tile_n == 2 * lanes {
                cost *= 0.5;
            }
            // With a dot instruction of 64 bytes a row reads faster than memory delivers, and one run through the weights is
            // what a prefetcher follows best: on Zen 5 1.04 (4 bits), 1.11 (ternary) and 1.23 times (3 bits) as fast as four.
            let one_run = integers.is_some() && tile_m == 1 && follows_one_run(tile_n, caps);
            if one_run {
                cost *= 0.5;
            }
            // Few rows of activations stay in the first cache while weights go by: with groups of 128 and 512 rows 1.04 to 1.07 times
            // as fast on Zen 5 as eight rows by 32 columns.
            let short_codes = integers.is_some_and(|how| how.bits <= 4 && !how.has_table());
            if short_codes && (tile_m, tile_n) == (3, 64) && serves_many_rows(&Op::Matmul(*op), caps) {
                cost *= 0.85;
            }
            let unrolls: &[u32] = if quarters || one_run { &[8, 4, 2, 1] } else { &[4, 2, 1] };
            for (rank, &unroll) in unrolls.iter().enumerate() {
                let schedule = Schedule::single(Family::Stream, tile_m, tile_n, unroll);
                let in_scratch = match (&layout, &integers) {
                    (Ok(layout), Some(how)) if caps.vector_bytes >= 32 => {
                        match in_scratch(op, layout, how, &schedule, caps) {
                            Some(in_scratch) => in_scratch.results,
                            None => continue,
                        }
                    }
                    _ => false,
                };
                // Results in scratch cost a load and a store per sum and segment; of 64 bytes one is stored in a cycle.
                let kept = if caps.vector_bytes >= 64 { 16.0 } else { 8.0 };
                let cost = if in_scratch { cost + kept / op.segment() as f64 } else { cost };
                list.push((cost, rank, schedule));
            }
        }
    }
    list.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    list.into_iter().map(|(_, _, schedule)| schedule).collect()
}

/// Bytes that one run of weights is asked for ahead. On Zen 5 8 KiB read 1.11 (4 bits) to 1.23 times (3 bits) as fast as 4, which
/// do as well everywhere else; 12 read less fast again.
const AHEAD: usize = 8192;

/// Whether tiles of so many columns read their weights in one run, by vectors of 64 bytes.
fn is_one_run(tile_n: u32, caps: &Caps) -> bool {
    caps.vector_bytes >= 64 && tile_n == (caps.vector_bytes / 4).min(16)
}

/// Whether integer tiles of so many columns read their weights in one run, faster than memory delivers them.
fn follows_one_run(tile_n: u32, caps: &Caps) -> bool {
    super::has_dot(caps) && is_one_run(tile_n, caps)
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
        whole: op.segment() == op.k,
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

/// What a column of a tile takes in cycles, where codes are converted where they stand: about three vector instructions start
/// in each, a sum waits four for the term before, and two vectors are read.
fn staged_cycles(tile_m: u32, vectors: u32, shape: staged::Shape) -> f64 {
    let instructions = (vectors * (2 + tile_m)) as f64 / 3.2;
    let waits = 4.0 / shape.chains as f64;
    let reads = (vectors + tile_m) as f64 / 2.0;
    instructions.max(waits).max(reads)
}

/// How a tile of `rows` by `vectors` is held whose codes are converted where they stand; `None` where they are not, or where it
/// does not fit.
fn staged_shape(op: &Op, (rows, vectors): (u32, u32), caps: &Caps) -> Option<staged::Shape> {
    let op = as_matmul(op).ok()?;
    let layout = N16::of(&op.weight, op.k).ok()?;
    staged::fields(op, &layout, caps)?;
    staged::shape(rows as usize, vectors as usize, &layout, caps.vector_registers as usize)
}

/// Register tiles for codes that are converted where they stand.
fn staged_space(op: &Matmul, layout: &N16, caps: &Caps, m: usize) -> Vec<Schedule> {
    let lanes = (caps.vector_bytes / 4).min(16);
    // Decoding to floats takes long as it is: of one row, mxfp4 reads 1.7 and fp8 1.2 times as fast on Zen 5 a unit at a time.
    let long = caps.vector_bytes >= 64 && !Fields::of(layout).integers;
    let unrolls = if long { [1, 2, 4] } else { [4, 2, 1] };
    let mut list = Vec::new();
    for (tile_m, vectors) in (1..=8u32).flat_map(|rows| [1, 2, 4].map(|vectors| (rows, vectors))) {
        let tile_n = vectors * lanes;
        let fits = tile_n.is_multiple_of(16) || 16u32.is_multiple_of(tile_n);
        let Some(shape) = staged::shape(tile_m as usize, vectors as usize, layout, caps.vector_registers as usize)
        else {
            continue;
        };
        if !fits || tile_m as usize > m {
            continue;
        }
        let mut cost = m.div_ceil(tile_m as usize) as f64 * staged_cycles(tile_m, vectors, shape) / vectors as f64;
        // One row reads about as fast as memory delivers, whatever the tile: then one run through the weights, which is asked
        // for ahead, comes before four (on Zen 5 1.1 times as fast, 3 bits 1.25).
        if tile_m == 1 && is_one_run(tile_n, caps) {
            cost *= 0.9;
        }
        // Enough tiles that making activations ready costs a few percent, enough workgroups for the threads.
        let strips = (op.n as u32 / (32 * tile_n)).clamp(1, (64 / tile_n).max(1));
        let mut all: Vec<u32> = vec![strips, (2 * strips).min(16), (strips / 2).max(1)];
        all.dedup();
        for (rank, (&strips, unroll)) in
            all.iter().flat_map(|strips| unrolls.map(|unroll| (strips, unroll))).enumerate()
        {
            list.push((cost, rank, Schedule::single(Family::Stream, tile_m, tile_n, unroll).with_strips(strips)));
        }
    }
    list.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    list.into_iter().map(|(_, _, schedule)| schedule).collect()
}

/// Sums, results and operands in registers; instructions per product.
fn estimate(op: &Op, schedule: &Schedule, caps: &Caps, m: usize) -> Estimate {
    let lanes = (caps.vector_bytes / 4).min(16);
    let (tile_m, vectors) = (schedule.tile_m, (schedule.tile_n / lanes).max(1));
    let sums = tile_m * vectors;
    if let Some(shape) = staged_shape(op, (tile_m, vectors), caps) {
        // Two multiply-adds start in a cycle: half a cycle per vector of products is the best.
        let rows = (m as u32).div_ceil(tile_m) as f64 * tile_m as f64 / m as f64;
        let work = (2.0 * staged_cycles(tile_m, vectors, shape) / sums as f64).max(1.0);
        return Estimate { registers: sums * shape.chains as u32, work: rows * work / lanes as f64 };
    }
    let activation = if let Op::Matmul(op) = op { op.activation } else { Activation::Float(crate::dtype::DType::F32) };
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
    let weights = if plan.integers.is_some() && follows_one_run(schedule.tile_n, caps) {
        weights.asking_ahead(AHEAD)
    } else {
        weights
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
