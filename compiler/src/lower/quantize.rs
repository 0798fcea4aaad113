//! Family `rows`: quantization of activations, one row per workgroup.
//!
//! Three sweeps over the row: the norm's sum of squares, the largest magnitude, the codes. Each sweep computes the same
//! numbers again instead of keeping them, since a row stays in the nearest cache.

use super::Implementation;
use super::memory::{Params, Role, at, byte_index, scalar_of};
use super::walk::{Pos, repeat};
use crate::caps::Caps;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar, Type, UnOp, Value};
use crate::op::{Op, Per, Quantize};
use crate::schedule::{Family, Schedule};

pub(super) const ROWS: Implementation = Implementation {
    family: Family::Rows,
    summary: "quantization of activations row by row, with norm and smoothing in front",
    refuses,
    space,
    build,
};

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !matches!(op, Op::Quantize(_)) {
        return Some("quantizes activations only".into());
    }
    (caps.subgroup != 1).then(|| "is written for devices whose workgroup is one thread".into())
}

fn space(_op: &Op, caps: &Caps, _m: usize) -> Vec<Schedule> {
    let lanes = caps.vector_bytes / 4;
    [4, 2, 1].map(|unroll| Schedule { family: Family::Rows, tile_m: 1, tile_n: lanes, unroll }).to_vec()
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let Op::Quantize(quantize) = op else { return Err(Error::Unsupported(format!("{} in family rows", op.name()))) };
    if ![4, 8, 16].contains(&schedule.tile_n) || ![1, 2, 4].contains(&schedule.unroll) {
        return Err(Error::invalid(format!(
            "family rows: tile_n is {}, unroll {}; accepted: tile_n 4, 8 or 16, unroll 1, 2 or 4",
            schedule.tile_n, schedule.unroll
        )));
    }
    let mut b = Builder::new(&entry(quantize, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let row = b.builtin(Builtin::WorkgroupId(0));
    let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
    let wide = (schedule.tile_n * schedule.unroll).min(16) as usize;
    let mut kernel = Rows { op: quantize, params: &params, row, wide, gain: None };
    if let Some(norm) = quantize.norm {
        kernel.gain = Some(kernel.root(&mut b, norm.eps));
    }
    let group = quantize.group();
    let groups = quantize.k / group;
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
    format!(
        "quantize_k{}_{}_{}_{per}_s{}{norm}{smooth}_n{}u{}",
        op.k,
        op.input.name(),
        op.code.name(),
        op.sum_group,
        schedule.tile_n,
        schedule.unroll
    )
}

/// One row under quantization.
struct Rows<'a> {
    op: &'a Quantize,
    params: &'a Params,
    row: Value,
    /// Columns per turn of a loop.
    wide: usize,
    /// `1 / sqrt(mean(x²) + eps)`.
    gain: Option<Value>,
}

impl Rows<'_> {
    /// Sweeps columns `start .. start + len`: `wide` at a time in a loop, then one by one.
    fn sweep(
        &self,
        b: &mut Builder,
        start: Pos,
        len: usize,
        state: Vec<Value>,
        mut body: impl FnMut(&mut Builder, Pos, u8, Vec<Value>) -> Vec<Value>,
    ) -> Vec<Value> {
        let turns = len / self.wide;
        let mut state = repeat(b, turns, self.wide, state, |b, turn, state| {
            let column = start.add(b, turn);
            body(b, column, self.wide as u8, state)
        });
        for c in turns * self.wide..len {
            state = body(b, start.plus(c), 1, state);
        }
        state
    }

    fn place(&self, b: &mut Builder, column: Pos, per_row: usize, size: usize) -> Pos {
        let line = byte_index(b, self.row, per_row * size);
        let column = column.times(b, size);
        column.add(b, Pos { index: Some(line), fixed: 0 })
    }

    fn input(&self, b: &mut Builder, column: Pos, lanes: u8) -> Value {
        let scalar = scalar_of(self.op.input);
        let size = scalar.bytes();
        let place = self.place(b, column, self.op.k, size as usize);
        let x =
            b.load(Type::vector(scalar, lanes), at(self.params.get(Role::Activations), place.index, place.fixed), size);
        if scalar == Scalar::F32 { x } else { b.cast(CastOp::Float, x, Scalar::F32) }
    }

    fn vector(&self, b: &mut Builder, role: Role, column: Pos, lanes: u8) -> Value {
        let place = column.times(b, 4);
        b.load(Type::vector(Scalar::F32, lanes), at(self.params.get(role), place.index, place.fixed), 4)
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
        let across = across(b, BinOp::Add, sums[0]);
        let total = b.add(across, sums[1]);
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
        repeat(b, full, 1, Vec::new(), |b, turn, _| {
            let columns = turn.times(b, segment);
            let column = start.add(b, columns);
            let sum = self.codes(b, column, segment, inverse);
            let at = first.add(b, turn);
            self.store_sum(b, at, sum);
            Vec::new()
        });
        if !len.is_multiple_of(segment) {
            let sum = self.codes(b, start.plus(full * segment), len % segment, inverse);
            self.store_sum(b, first.plus(full), sum);
        }
    }

    /// Stores the codes of `len` columns; returns their sum, `i32`.
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
            b.store(at(output, place.index, place.fixed), 1, codes);
            sums
        });
        let across = across(b, BinOp::Add, sums[0]);
        b.add(across, sums[1])
    }

    fn store_sum(&self, b: &mut Builder, index: Pos, sum: Value) {
        let segments = self.op.k.div_ceil(self.op.sum_group);
        let place = self.place(b, index, segments, 4);
        b.store(at(self.params.get(Role::ActivationSums), place.index, place.fixed), 4, sum);
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
        let across = across(b, BinOp::Max, tops[0]);
        let top = b.bin(BinOp::Max, across, tops[1]);
        let limit = b.f32(1, self.op.top());
        let scale = b.bin(BinOp::Div, top, limit);
        let place = self.place(b, index, self.op.per.per_row(self.op.k), 4);
        b.store(at(self.params.get(Role::ActivationScales), place.index, place.fixed), 4, scale);
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
fn across(b: &mut Builder, op: BinOp, value: Value) -> Value {
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
