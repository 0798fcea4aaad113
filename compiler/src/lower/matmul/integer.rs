//! Integer sums: bytes of weights by bytes of activations, exact inside a segment, scaled at its end.

use super::Tile;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, Value};
use crate::lower::unpack::Integers;
use crate::lower::walk::{Pos, Step, Visit};

/// Where the bytes of a quad come from: unpacked from the words, or decoded before into scratch.
pub(super) type Bytes<'a> = dyn FnMut(&mut Builder, &Step, usize, usize) -> Value + 'a;

/// Visits a walk. Inner state: `i32` sums `[chain][row][vector]`; outer state: `f32` results `[row][vector]`.
pub(super) struct IntegerSums<'a, 'b> {
    /// The tile.
    pub tile: &'a Tile<'a>,
    /// How bytes stand for codes.
    pub how: &'a Integers,
    /// Columns per segment.
    pub segment: usize,
    /// The bytes of quad `.2` of a step for vector `.3`.
    pub bytes: &'a mut Bytes<'b>,
}

impl Visit for IntegerSums<'_, '_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let lanes = self.tile.weights.lanes;
        let mut sums = Vec::new();
        for row in 0..self.tile.rows.count() {
            let start = if self.how.factor == 1 && self.how.offset != 0 {
                let sum = self.tile.rows.sum(b, row, segment);
                b.bin_imm(BinOp::Mul, sum, -self.how.offset as i64)
            } else {
                b.int(Type::vector(Scalar::I32, lanes), 0)
            };
            sums.extend(std::iter::repeat_n(start, self.tile.vectors));
        }
        let nothing = b.int(Type::vector(Scalar::I32, lanes), 0);
        sums.resize(self.tile.chains() * self.tile.sums(), nothing);
        sums
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, mut inner: Vec<Value>) -> Vec<Value> {
        let (rows, vectors) = (self.tile.rows.count(), self.tile.vectors);
        for (i, &valid) in step.quads.iter().enumerate() {
            let column = step.column.plus(4 * i);
            let chain = (step.first + i) % self.tile.chains() * self.tile.sums();
            let x: Vec<Value> = (0..rows).map(|row| self.tile.rows.quad_bytes(b, row, column, valid)).collect();
            for v in 0..vectors {
                let w = (self.bytes)(b, step, i, v);
                for (row, &x) in x.iter().enumerate() {
                    let sum = &mut inner[chain + row * vectors + v];
                    *sum = b.dot4(self.how.signs, self.how.bits, w, x, *sum);
                }
            }
        }
        inner
    }

    fn merge(&mut self, b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        let Some(team) = self.tile.team else { return inner };
        let own = self.tile.folded(b, &inner);
        let mut sums = team.combine(b, BinOp::Add, &own);
        let nothing = b.int(Scalar::I32, 0);
        sums.resize(inner.len(), nothing);
        sums
    }

    fn end(&mut self, b: &mut Builder, segment: Pos, inner: Vec<Value>, mut outer: Vec<Value>) -> Vec<Value> {
        let (rows, vectors) = (self.tile.rows.count(), self.tile.vectors);
        let weights = self.tile.weights;
        let column = segment.times(b, self.segment);
        let group = column.divide(b, weights.layout.group);
        let mut factors = Vec::new();
        for v in 0..vectors {
            let scale = weights.scale(b, group, v);
            let scale = if self.how.scale == 1.0 {
                scale
            } else {
                let factor = b.f32(weights.lanes, self.how.scale);
                b.mul(scale, factor)
            };
            let zero = weights.integer_zero(b, group, v);
            // s · (code - z) with a float z: s · code + (-s · z).
            let offset = match (zero, weights.float_zero(b, group, v)) {
                (None, Some(float)) => {
                    let product = b.mul(scale, float);
                    Some(b.un(crate::ir::UnOp::Neg, product))
                }
                _ => weights.offset(b, group, v),
            };
            factors.push((scale, zero, offset));
        }
        let sums = self.tile.folded(b, &inner);
        for row in 0..rows {
            let scale_x = self.tile.rows.group_scale(b, row, column);
            for (v, &(scale, zero, offset)) in factors.iter().enumerate() {
                let mut sum = sums[row * vectors + v];
                if self.how.factor == 2 {
                    sum = b.add(sum, sum);
                    let x = self.tile.rows.sum(b, row, segment);
                    let taken = b.bin_imm(BinOp::Mul, x, -self.how.offset as i64);
                    sum = b.add(sum, taken);
                }
                if let Some(zero) = zero {
                    let x = self.tile.rows.sum(b, row, segment);
                    let taken = b.mul(zero, x);
                    sum = b.bin(BinOp::Sub, sum, taken);
                }
                let number = b.cast(CastOp::IntToFloatS, sum, Scalar::F32);
                let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
                let result = &mut outer[row * vectors + v];
                *result = b.fma(number, factor, *result);
                if let Some(offset) = offset {
                    let x = self.tile.rows.sum(b, row, segment);
                    let x = b.cast(CastOp::IntToFloatS, x, Scalar::F32);
                    let x = scale_x.map_or(x, |scale| b.mul(x, scale));
                    *result = b.fma(offset, x, *result);
                }
            }
        }
        outer
    }
}
