//! What the chooser weighs: tiles that fit the registers, cheapest first.

use super::super::{as_matmul, has_dot, integers_of, staged};
use super::{follows_one_run, in_scratch, is_one_run, reads_quarters, serves_many_rows, span_of};
use crate::caps::Caps;
use crate::format::n16::N16;
use crate::lower::Estimate;
use crate::lower::unpack::fields::Fields;
use crate::op::{Activation, Matmul, Op};
use crate::schedule::{Family, Schedule};

/// Register tiles that hold their sums in about three quarters of the registers, those with the fewest instructions per
/// product first.
pub(super) fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
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
            // cheap to hold, since their products add up in 16 bits first (12.4 against 10.2 GB/s on Zen 3), and four another fifth.
            // More rows of activations would run through the weights as often. There should be workgroups for the threads.
            if m == 1 && (tile_n == 32 || tile_n == 64 && op.n >= 32 * 64) && !has_dot(caps) {
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
            // Long turns, whose loads step too far for a prefetcher that follows each load, leave memory to the hints: on Zen 5 4 and
            // 8 bits in groups of 32 read at 97 % of plain reading, not at 93 and 95. Shorter codes and longer groups lose by it.
            let short_groups = layout
                .as_ref()
                .is_ok_and(|layout| matches!(layout.planes, [4 | 8]) && op.segment() <= 64 && layout.outer.is_none());
            let unrolls: &[u32] = if one_run && short_groups {
                &[64, 8, 4, 2, 1]
            } else if one_run || quarters {
                &[8, 4, 2, 1]
            } else {
                &[4, 2, 1]
            };
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
pub(super) fn estimate(op: &Op, schedule: &Schedule, caps: &Caps, m: usize) -> Estimate {
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
