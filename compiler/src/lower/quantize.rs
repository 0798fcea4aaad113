//! Family `rows`: quantization of activations, one row per workgroup.
//!
//! Three sweeps over the row: the norm's sum of squares, the largest magnitude, the codes. Each sweep computes the same
//! numbers again instead of keeping them, since a row stays in the nearest cache. Threads of a workgroup sweep a row
//! together; groups with their own scales, and the many segments of a long row, are each one thread's. A thread that is
//! alone takes a few short groups, or segments, at once: their scales and sums are then lanes of a vector.

mod rows;

use self::rows::{AT_ONCE, Rows};
use super::Implementation;
use super::memory::Params;
use super::space::Axis;
use super::team::Team;
use super::walk::{Pos, share};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::ir::{BinOp, Builder, Builtin, CastOp, Kernel, Scalar, Value};
use crate::op::{Op, Per, Quantize};
use crate::schedule::{Family, Knob, Schedule};

pub(super) const ROWS: Implementation = Implementation {
    family: Family::Rows,
    summary: "quantization of activations row by row, with norm and smoothing in front",
    refuses,
    axes: &[
        Axis::new(Knob::TileN, &[4, 8, 16]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[1, 64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 64, 128, 256, 512]),
    ],
    estimate: None,
    space,
    build,
};

fn refuses(op: &Op, _caps: &Caps) -> Option<String> {
    (!matches!(op, Op::Quantize(_))).then(|| "quantizes activations only".into())
}

fn space(_op: &Op, caps: &Caps, _m: usize) -> Vec<Schedule> {
    if caps.features.has(Feature::Workgroups) {
        return [(256, 1), (128, 1), (256, 2), (64, 1)]
            .into_iter()
            .filter(|&(threads, _)| threads <= caps.max_workgroup)
            .map(|(threads, unroll)| Schedule::single(Family::Rows, 1, 4, unroll).with_threads(threads, threads))
            .collect();
    }
    let lanes = caps.vector_bytes / 4;
    [4, 2, 1].map(|unroll| Schedule::single(Family::Rows, 1, lanes, unroll)).to_vec()
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let Op::Quantize(quantize) = op else { return Err(Error::Unsupported(format!("{} in family rows", op.name()))) };
    if ![4, 8, 16].contains(&schedule.tile_n) || ![1, 2, 4].contains(&schedule.unroll) {
        return Err(Error::invalid(format!(
            "family rows: tile_n is {}, unroll {}; accepted: tile_n 4, 8 or 16, unroll 1, 2 or 4",
            schedule.tile_n, schedule.unroll
        )));
    }
    let many = caps.features.has(Feature::Workgroups);
    let Schedule { threads, split, .. } = *schedule;
    let most = if many { caps.max_workgroup } else { 1 };
    if !threads.is_power_of_two() || threads > most || split != threads {
        return Err(Error::invalid(format!(
            "family rows: threads is {threads}, split {split}; accepted: a power of two up to {most}, the same for both"
        )));
    }
    let mut b = Builder::new(&entry(quantize, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let row = b.builtin(Builtin::WorkgroupId(0));
    let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
    let wide = (schedule.tile_n * schedule.unroll).min(16) as usize;
    // Threads that each take groups of their own have nothing to combine.
    let meets = quantize.norm.is_some() || quantize.group() >= quantize.k;
    let team = many.then(|| if meets { Team::new(&mut b, 1, threads) } else { Team::apart(&mut b, 1, threads) });
    let together = team.as_ref().map(|team| (team, team.split(&mut b)));
    let lanes = schedule.tile_n as usize;
    // On a device of many threads each has little to do, and many wait at a time: short loops serve those best.
    let (vectors, most, held) = if many {
        (1, 1, 0)
    } else {
        let unroll = schedule.unroll as usize;
        let most = if unroll >= AT_ONCE { AT_ONCE } else { 1 };
        (lanes * unroll / wide, most, lanes * caps.vector_registers as usize / 2)
    };
    let params = &params;
    let mut kernel = Rows { op: quantize, params, row, wide, vectors, most, lanes, held, gain: None, together };
    if let Some(norm) = quantize.norm {
        kernel.gain = Some(kernel.root(&mut b, norm.eps));
    }
    let group = quantize.group();
    let groups = quantize.k / group;
    if let (Some((_, split)), true) = (&together, group < quantize.k) {
        let single = Rows { together: None, ..kernel };
        share(&mut b, Some(split), groups, 1, Vec::new(), &mut |b, index, _| {
            single.groups(b, (index, 1), group);
            Vec::new()
        });
        if quantize.k % group != 0 {
            split.one(&mut b, groups, Vec::new(), |b, _| {
                single.groups(b, (Pos::fixed(groups), 1), quantize.k % group);
                Vec::new()
            });
        }
        return Ok(b.finish());
    }
    kernel.whole_groups(&mut b, groups, group);
    if quantize.k % group != 0 {
        kernel.groups(&mut b, (Pos::fixed(groups), 1), quantize.k % group);
    }
    Ok(b.finish())
}

fn entry(op: &Quantize, schedule: &Schedule) -> String {
    let per = match op.per {
        Per::Tensor => "tensor".to_string(),
        Per::Token => "token".to_string(),
        Per::Group(g) => format!("g{g}"),
    };
    let norm = op.norm.map_or(String::new(), |norm| format!("_norm{:x}", norm.eps.to_bits()));
    let smooth = if op.smooth { "_smooth" } else { "" };
    let threads = if schedule.threads > 1 { format!("t{}", schedule.threads) } else { String::new() };
    format!(
        "quantize_k{}_{}_{}_{per}_s{}{norm}{smooth}_n{}u{}{threads}",
        op.k,
        op.input.name(),
        op.code.name(),
        op.sum_group,
        schedule.tile_n,
        schedule.unroll
    )
}

/// All lanes combined, by halves.
pub(super) fn across(b: &mut Builder, op: BinOp, value: Value) -> Value {
    let pair = narrowed(b, op, value, 2);
    if b.ty(pair).lanes == 1 {
        return pair;
    }
    let (x, y) = (b.extract(pair, 0), b.extract(pair, 1));
    b.bin(op, x, y)
}

/// The two halves of a vector's lanes combined, until it has no more than `lanes`.
fn narrowed(b: &mut Builder, op: BinOp, value: Value, lanes: usize) -> Value {
    let own = b.ty(value).lanes;
    if own as usize <= lanes {
        return value;
    }
    let [low, high] = [0, own / 2].map(|from| {
        let lanes: Vec<u8> = (from..from + own / 2).collect();
        b.swizzle(value, value, &lanes)
    });
    let both = b.bin(op, low, high);
    narrowed(b, op, both, lanes)
}
