//! The epilogue: from sums to stored results.

use super::Plan;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Memory, Scalar, Type, UnOp, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, alignment, at, byte_index, scalar_of};
use crate::lower::walk::Pos;

/// Stores the results of a tile: rows `first..` of X (those below M) by rows `start..` of W (those below N).
/// `first` is `i32`, `start` is `i64`; `exact` says that every row of the tile is below M.
pub(super) fn store(
    b: &mut Builder,
    plan: &Plan,
    params: &Params,
    rows: &Rows,
    (first, exact): (Value, bool),
    start: Value,
    results: Vec<Value>,
) {
    let lanes = plan.lanes as usize;
    let tile = plan.vectors * lanes;
    for row in 0..rows.count() {
        let scale = rows.row_scale(b, row);
        let numbers: Vec<Value> = (0..plan.vectors)
            .map(|v| {
                let sum = results[row * plan.vectors + v];
                scale.map_or(sum, |scale| b.mul(sum, scale))
            })
            .collect();
        let m = b.bin_imm(BinOp::Add, first, row as i64);
        let whole = |b: &mut Builder| {
            let line = Line::new(b, plan, params, m, start);
            for (v, &number) in numbers.iter().enumerate() {
                line.finish(b, number, v * lanes);
            }
        };
        let body = |b: &mut Builder| {
            if plan.op.n.is_multiple_of(tile) {
                return whole(b);
            }
            let last = b.int(Scalar::I64, (plan.op.n - plan.op.n % tile) as i64);
            let full = b.cmp(CmpOp::LtS, start, last);
            b.if_else(
                full,
                |b| {
                    whole(b);
                    Vec::new()
                },
                |b| {
                    let line = Line::new(b, plan, params, m, start);
                    for c in 0..plan.op.n % tile {
                        let number = b.extract(numbers[c / lanes], (c % lanes) as u8);
                        line.finish(b, number, c);
                    }
                    Vec::new()
                },
            );
        };
        if exact || row == 0 {
            body(b);
        } else {
            let inside = b.cmp(CmpOp::LtS, m, params.m);
            b.if_then(inside, body);
        }
    }
}

/// One row of the result and of what is added to it, from a column on.
pub(super) struct Line<'a> {
    plan: &'a Plan,
    bias: Option<(Memory, Value)>,
    mul: Option<Memory>,
    residual: Option<Memory>,
    output: Memory,
    /// Byte offset of (m, start) in `[m, n]` arrays of the output type.
    place: Value,
    /// What places of whole vectors are multiples of, and those of bias.
    align: (u32, u32),
}

impl<'a> Line<'a> {
    /// Row `m` (`i32`) from column `start` (`i64`) on.
    pub fn new(b: &mut Builder, plan: &'a Plan, params: &Params, m: Value, start: Value) -> Line<'a> {
        let size = scalar_of(plan.op.out).bytes() as usize;
        let line = byte_index(b, m, plan.op.n * size);
        let column = byte_index(b, start, size);
        let place = b.add(line, column);
        let bias = params.find(Role::Bias).map(|memory| (memory, byte_index(b, start, 4)));
        let (lanes, buffer) = (plan.lanes as usize, params.align as usize);
        Line {
            align: (alignment(&[plan.op.n * size, lanes * size, buffer]), alignment(&[lanes * 4, buffer])),
            plan,
            bias,
            mul: params.find(Role::Mul),
            residual: params.find(Role::Residual),
            output: params.get(Role::Output),
            place,
        }
    }

    /// Finishes and stores a number or a vector of them, `column` columns from the start.
    pub fn finish(&self, b: &mut Builder, mut y: Value, column: usize) {
        let lanes = b.ty(y).lanes;
        let out = scalar_of(self.plan.op.out);
        let size = out.bytes();
        let whole = lanes == self.plan.lanes;
        let align = if whole { self.align.0.max(size) } else { size };
        let here = Pos::of(self.place).plus(column * size as usize);
        if let Some((memory, index)) = self.bias {
            let align = if whole { self.align.1.max(4) } else { 4 };
            let bias = b.load(Type::vector(Scalar::F32, lanes), at(memory, Some(index), column * 4), align);
            y = b.add(y, bias);
        }
        let load = |b: &mut Builder, memory: Memory| {
            let raw = b.load(Type::vector(out, lanes), at(memory, here.index, here.fixed), align);
            if out == Scalar::F32 { raw } else { b.cast(CastOp::Float, raw, Scalar::F32) }
        };
        if let Some(memory) = self.mul {
            let mul = load(b, memory);
            let silu = silu(b, y);
            y = b.mul(silu, mul);
        }
        if let Some(memory) = self.residual {
            let residual = load(b, memory);
            y = b.add(y, residual);
        }
        if out != Scalar::F32 {
            y = b.cast(CastOp::Float, y, out);
        }
        b.store(at(self.output, here.index, here.fixed), align, y);
    }
}

/// `y / (1 + 2^(-y · log2 e))`.
fn silu(b: &mut Builder, y: Value) -> Value {
    let lanes = b.ty(y).lanes;
    let factor = b.f32(lanes, -std::f32::consts::LOG2_E);
    let exponent = b.mul(y, factor);
    let power = b.un(UnOp::Exp2, exponent);
    let one = b.f32(lanes, 1.0);
    let below = b.add(one, power);
    b.bin(BinOp::Div, y, below)
}
