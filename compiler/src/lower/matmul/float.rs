//! Float sums: decoded weights by activations in `f32`, scaled at the end of each segment.

use super::Tile;
use crate::ir::{BinOp, Builder, Scalar, Type, Value};
use crate::lower::walk::{Pos, Step, Visit};

/// Visits a walk. Inner state: `f32` sums `[chain][row][vector]`, then zero points `[vector]` where the format has them, then
/// sums of activations `[row]` where it has offsets; outer state: results `[row][vector]`.
pub(super) struct FloatSums<'a> {
    /// The tile.
    pub tile: &'a Tile<'a>,
    /// Columns per segment.
    pub segment: usize,
}

impl FloatSums<'_> {
    fn has_zero(&self) -> bool {
        matches!(self.tile.weights.layout.format.zero, crate::format::Zero::Int(_) | crate::format::Zero::Float(_))
    }

    fn has_offset(&self) -> bool {
        matches!(self.tile.weights.layout.format.zero, crate::format::Zero::Offset { .. })
    }
}

impl Visit for FloatSums<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let nothing =
            b.push(Type::vector(Scalar::F32, weights.lanes), crate::ir::Inst::Const(crate::ir::Constant::Splat(0)));
        let mut state = vec![nothing; self.tile.chains() * self.tile.sums()];
        if self.has_zero() {
            let column = segment.times(b, self.segment);
            let group = column.divide(b, weights.layout.group);
            for v in 0..*vectors {
                state.push(weights.float_zero(b, group, v).expect("the format has zero points"));
            }
        }
        if self.has_offset() {
            state.extend(std::iter::repeat_n(nothing, rows.count()));
        }
        state
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, mut state: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let (count, vectors) = (rows.count(), *vectors);
        let (chains, sums) = (self.tile.chains(), self.tile.sums());
        let extra = chains * sums;
        for (i, &valid) in step.quads.iter().enumerate() {
            let column = step.column.plus(4 * i);
            let x: Vec<Vec<Value>> = (0..count).map(|row| rows.quad_floats(b, row, column, valid)).collect();
            let words: Vec<_> = (0..vectors).map(|v| weights.words(b, step.unit, step.first + i, v)).collect();
            for byte in 0..valid {
                for (v, words) in words.iter().enumerate() {
                    let mut w = weights.floats(b, words, byte);
                    if self.has_zero() {
                        w = b.bin(BinOp::Sub, w, state[extra + v]);
                    }
                    for (row, x) in x.iter().enumerate() {
                        let sum = &mut state[byte % chains * sums + row * vectors + v];
                        *sum = b.fma(w, x[byte], *sum);
                    }
                }
                if self.has_offset() {
                    for (row, x) in x.iter().enumerate() {
                        state[extra + row] = b.add(state[extra + row], x[byte]);
                    }
                }
            }
        }
        state
    }

    fn merge(&mut self, b: &mut Builder, mut state: Vec<Value>) -> Vec<Value> {
        let Some(team) = self.tile.team else { return state };
        let (chains, sums) = (self.tile.chains(), self.tile.sums());
        let mut partial = self.tile.folded(b, &state);
        if self.has_offset() {
            partial.extend(&state[chains * sums..]);
        }
        let combined = team.combine(b, BinOp::Add, &partial);
        let nothing = b.f32(1, 0.0);
        for (i, &sum) in combined[..sums].iter().enumerate() {
            state[i] = sum;
            (1..chains).for_each(|chain| state[chain * sums + i] = nothing);
        }
        if self.has_offset() {
            state[chains * sums..].copy_from_slice(&combined[sums..]);
        }
        state
    }

    fn end(&mut self, b: &mut Builder, segment: Pos, state: Vec<Value>, mut outer: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let (count, vectors) = (rows.count(), *vectors);
        let column = segment.times(b, self.segment);
        let group = column.divide(b, weights.layout.group);
        let factors: Vec<_> = (0..vectors).map(|v| (weights.scale(b, group, v), weights.offset(b, group, v))).collect();
        let sums = self.tile.folded(b, &state);
        for row in 0..count {
            let scale_x = rows.group_scale(b, row, column);
            for (v, &(scale, offset)) in factors.iter().enumerate() {
                let result = &mut outer[row * vectors + v];
                let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
                *result = b.fma(sums[row * vectors + v], factor, *result);
                if let Some(offset) = offset {
                    let x = state[self.tile.chains() * self.tile.sums() + row];
                    let x = scale_x.map_or(x, |scale| b.mul(x, scale));
                    *result = b.fma(offset, x, *result);
                }
            }
        }
        outer
    }
}
