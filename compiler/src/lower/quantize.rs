//! Family `rows`: quantization of activations, one row per workgroup.
//!
//! Three sweeps over the row: the norm's sum of squares, the largest magnitude, the codes. Each sweep computes the same
//! numbers again instead of keeping them, since a row stays in the nearest cache. Threads of a workgroup sweep a row
//! together; groups with their own scales, and the many segments of a long row, are each one thread's.

use super::Implementation;
use super::memory::{Params, Role, alignment, at, byte_index, scalar_of};
use super::space::Axis;
use super::team::Team;
use super::walk::{Pos, Split, repeat, share};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar, Type, UnOp, Value};
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
    let mut kernel = Rows { op: quantize, params: &params, row, wide, gain: None, together };
    if let Some(norm) = quantize.norm {
        kernel.gain = Some(kernel.root(&mut b, norm.eps));
    }
    let group = quantize.group();
    let groups = quantize.k / group;
    if let (Some((_, split)), true) = (&together, group < quantize.k) {
        let single = Rows { together: None, ..kernel };
        share(&mut b, Some(split), groups, 1, Vec::new(), &mut |b, index, _| {
            single.group(b, index, group);
            Vec::new()
        });
        if quantize.k % group != 0 {
            split.one(&mut b, groups, Vec::new(), |b, _| {
                single.group(b, Pos::fixed(groups), quantize.k % group);
                Vec::new()
            });
        }
        return Ok(b.finish());
    }
    repeat(&mut b, groups, 1, Vec::new(), |b, index, _| {
        kernel.group(b, index, group);
        Vec::new()
    });
    if quantize.k % group != 0 {
        kernel.group(&mut b, Pos::fixed(groups), quantize.k % group);
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

/// Segments from which on each is one thread's.
const ENOUGH: usize = 32;

/// One row under quantization.
#[derive(Clone, Copy)]
struct Rows<'a> {
    op: &'a Quantize,
    params: &'a Params,
    row: Value,
    /// Columns per turn of a loop.
    wide: usize,
    /// `1 / sqrt(mean(x²) + eps)`.
    gain: Option<Value>,
    /// The threads that sweep together, and this one's share.
    together: Option<(&'a Team, Split)>,
}

impl Rows<'_> {
    /// Sweeps columns `start .. start + len`: `wide` at a time in a loop, then one by one. Threads together each sweep some.
    fn sweep(
        &self,
        b: &mut Builder,
        start: Pos,
        len: usize,
        state: Vec<Value>,
        mut body: impl FnMut(&mut Builder, Pos, u8, Vec<Value>) -> Vec<Value>,
    ) -> Vec<Value> {
        let turns = len / self.wide;
        let split = self.together.map(|(_, split)| split);
        let mut state = share(b, split.as_ref(), turns, self.wide, state, &mut |b, turn, state| {
            let column = start.add(b, turn);
            body(b, column, self.wide as u8, state)
        });
        for c in turns * self.wide..len {
            state = match &split {
                Some(split) => split.one(b, c, state, |b, state| body(b, start.plus(c), 1, state)),
                None => body(b, start.plus(c), 1, state),
            };
        }
        state
    }

    /// The state of a sweep (a vector and a scalar) as one number, the same for threads together.
    fn total(&self, b: &mut Builder, op: BinOp, state: &[Value]) -> Value {
        let across = across(b, op, state[0]);
        let own = b.bin(op, across, state[1]);
        match self.together {
            Some((team, _)) => team.combine(b, op, &[own])[0],
            None => own,
        }
    }

    /// Stores a number that threads together all have.
    fn store_once(&self, b: &mut Builder, role: Role, place: Pos, value: Value) {
        let address = at(self.params.get(role), place.index, place.fixed);
        match self.together {
            Some((team, _)) => b.if_then(team.leader, |b| b.store(address, 4, value)),
            None => b.store(address, 4, value),
        }
    }

    /// What the places of `lanes` elements of this size are multiples of, in rows of `per_row` of them.
    fn align(&self, per_row: usize, lanes: u8, size: usize) -> u32 {
        let inner = |columns: usize| if columns < self.op.k { columns * size } else { 0 };
        let buffer = self.params.align as usize;
        let places = [per_row * size, lanes as usize * size, inner(self.op.group()), inner(self.op.sum_group), buffer];
        if lanes as usize == self.wide { alignment(&places).max(size as u32) } else { size as u32 }
    }

    fn place(&self, b: &mut Builder, column: Pos, per_row: usize, size: usize) -> Pos {
        let line = byte_index(b, self.row, per_row * size);
        let column = column.times(b, size);
        column.add(b, Pos::of(line))
    }

    fn input(&self, b: &mut Builder, column: Pos, lanes: u8) -> Value {
        let scalar = scalar_of(self.op.input);
        let size = scalar.bytes();
        let place = self.place(b, column, self.op.k, size as usize);
        let align = self.align(self.op.k, lanes, size as usize);
        let memory = self.params.get(Role::Activations);
        let x = b.load(Type::vector(scalar, lanes), at(memory, place.index, place.fixed), align);
        if scalar == Scalar::F32 { x } else { b.cast(CastOp::Float, x, Scalar::F32) }
    }

    fn vector(&self, b: &mut Builder, role: Role, column: Pos, lanes: u8) -> Value {
        let place = column.times(b, 4);
        let align = self.align(0, lanes, 4);
        b.load(Type::vector(Scalar::F32, lanes), at(self.params.get(role), place.index, place.fixed), align)
    }

    /// The numbers to quantize.
    fn numbers(&self, b: &mut Builder, column: Pos, lanes: u8) -> Value {
        let mut v = self.input(b, column, lanes);
        if let Some(root) = self.gain {
            let gain = self.vector(b, Role::Gain, column, lanes);
            let root = b.splat(root, lanes);
            let factor = b.mul(root, gain);
            v = b.mul(v, factor);
        }
        if self.op.smooth {
            let smooth = self.vector(b, Role::Smooth, column, lanes);
            v = b.mul(v, smooth);
        }
        v
    }

    fn root(&self, b: &mut Builder, eps: f32) -> Value {
        let wide = self.wide as u8;
        let zeros = vec![b.f32(wide, 0.0), b.f32(1, 0.0)];
        let sums = self.sweep(b, Pos::fixed(0), self.op.k, zeros, |b, column, lanes, mut state| {
            let x = self.input(b, column, lanes);
            let which = usize::from(lanes == 1 && wide != 1);
            state[which] = b.fma(x, x, state[which]);
            state
        });
        let total = self.total(b, BinOp::Add, &sums);
        let count = b.f32(1, self.op.k as f32);
        let mean = b.bin(BinOp::Div, total, count);
        let eps = b.f32(1, eps);
        let shifted = b.add(mean, eps);
        let root = b.un(UnOp::Sqrt, shifted);
        let one = b.f32(1, 1.0);
        b.bin(BinOp::Div, one, root)
    }

    /// Scale, codes and sums of one group.
    fn group(&self, b: &mut Builder, index: Pos, len: usize) {
        let start = index.times(b, self.op.group());
        let inverse = match self.op.per {
            Per::Tensor => {
                let scale = b.load(Scalar::F32, at(self.params.get(Role::ActivationScales), None, 0), 4);
                let one = b.f32(1, 1.0);
                b.bin(BinOp::Div, one, scale)
            }
            Per::Token | Per::Group(_) => self.scale(b, index, start, len),
        };
        if self.op.sum_group == 0 {
            self.codes(b, start, len, inverse);
            return;
        }
        let segment = self.op.sum_group.min(self.op.group());
        let first = index.times(b, self.op.group().div_ceil(segment));
        let full = len / segment;
        let each = |b: &mut Builder, rows: &Rows<'_>, turn: Pos| {
            let columns = turn.times(b, segment);
            let column = start.add(b, columns);
            let sum = rows.codes(b, column, segment, inverse);
            let at = first.add(b, turn);
            rows.store_sum(b, at, sum);
            Vec::new()
        };
        match &self.together {
            Some((_, split)) if full >= ENOUGH => {
                let single = Rows { together: None, ..*self };
                share(b, Some(split), full, 1, Vec::new(), &mut |b, turn, _| each(b, &single, turn));
            }
            _ => _ = repeat(b, full, 1, Vec::new(), |b, turn, _| each(b, self, turn)),
        }
        if !len.is_multiple_of(segment) {
            let sum = self.codes(b, start.plus(full * segment), len % segment, inverse);
            self.store_sum(b, first.plus(full), sum);
        }
    }

    /// Stores the codes of `len` columns; returns their sum, `i32`, where sums are wanted.
    fn codes(&self, b: &mut Builder, start: Pos, len: usize, inverse: Value) -> Value {
        let code = scalar_of(self.op.code);
        let output = self.params.get(Role::Output);
        let wide = self.wide as u8;
        let zeros = vec![b.int(Type::vector(Scalar::I32, wide), 0), b.int(Scalar::I32, 0)];
        let sums = self.sweep(b, start, len, zeros, |b, column, lanes, mut sums| {
            let v = self.numbers(b, column, lanes);
            let inverse = b.splat(inverse, lanes);
            let scaled = b.mul(v, inverse);
            let codes = if self.op.code == DType::I8 {
                let integers = integer_codes(b, scaled);
                let which = usize::from(lanes == 1 && wide != 1);
                sums[which] = b.add(sums[which], integers);
                b.cast(CastOp::Truncate, integers, Scalar::I8)
            } else {
                b.cast(CastOp::Float, scaled, code)
            };
            let place = self.place(b, column, self.op.k, 1);
            b.store(at(output, place.index, place.fixed), self.align(self.op.k, lanes, 1), codes);
            sums
        });
        if self.op.sum_group == 0 { sums[1] } else { self.total(b, BinOp::Add, &sums) }
    }

    fn store_sum(&self, b: &mut Builder, index: Pos, sum: Value) {
        let segments = self.op.k.div_ceil(self.op.sum_group);
        let place = self.place(b, index, segments, 4);
        self.store_once(b, Role::ActivationSums, place, sum);
    }

    /// Stores the scale of a group; returns its inverse.
    fn scale(&self, b: &mut Builder, index: Pos, start: Pos, len: usize) -> Value {
        let wide = self.wide as u8;
        let zeros = vec![b.f32(wide, 0.0), b.f32(1, 0.0)];
        let tops = self.sweep(b, start, len, zeros, |b, column, lanes, mut state| {
            let v = self.numbers(b, column, lanes);
            let size = b.un(UnOp::Abs, v);
            let which = usize::from(lanes == 1 && wide != 1);
            state[which] = b.bin(BinOp::Max, state[which], size);
            state
        });
        let top = self.total(b, BinOp::Max, &tops);
        let limit = b.f32(1, self.op.top());
        let scale = b.bin(BinOp::Div, top, limit);
        let place = self.place(b, index, self.op.per.per_row(self.op.k), 4);
        self.store_once(b, Role::ActivationScales, place, scale);
        let inverse = b.bin(BinOp::Div, limit, top);
        let zero = b.f32(1, 0.0);
        let some = b.cmp(CmpOp::Lt, zero, top);
        b.select(some, inverse, zero)
    }
}

/// `clamp(round_half_even(v), -127, 127)`; a NaN converts to 0.
fn integer_codes(b: &mut Builder, scaled: Value) -> Value {
    let lanes = b.ty(scaled).lanes;
    let rounded = b.un(UnOp::Nearest, scaled);
    let integers = b.cast(CastOp::FloatToIntS, rounded, Scalar::I32);
    let ty = Type::vector(Scalar::I32, lanes);
    let (low, high) = (b.int(ty, -127), b.int(ty, 127));
    let above = b.bin(BinOp::MaxS, integers, low);
    b.bin(BinOp::MinS, above, high)
}

/// All lanes combined, by halves.
pub(super) fn across(b: &mut Builder, op: BinOp, value: Value) -> Value {
    let lanes = b.ty(value).lanes;
    if lanes == 1 {
        return value;
    }
    let half = lanes / 2;
    let low: Vec<u8> = (0..half).collect();
    let high: Vec<u8> = (half..lanes).collect();
    if half == 1 {
        let (x, y) = (b.extract(value, 0), b.extract(value, 1));
        return b.bin(op, x, y);
    }
    let x = b.swizzle(value, value, &low);
    let y = b.swizzle(value, value, &high);
    let combined = b.bin(op, x, y);
    across(b, op, combined)
}
