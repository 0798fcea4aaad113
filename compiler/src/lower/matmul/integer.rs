//! Integer sums: bytes of weights by bytes of activations, exact inside a segment, scaled at its end.

use super::Tile;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, Value};
use crate::lower::stage::Kept;
use crate::lower::unpack::Integers;
use crate::lower::walk::{Pos, Step, Visit, Walk};

/// Where the bytes of a quad come from: unpacked from the words, or decoded before into scratch.
pub(super) type Bytes<'a> = dyn FnMut(&mut Builder, &Step, usize, usize) -> Value + 'a;

/// Quads whose activations wait in registers while vectors of weights go by.
const WAITING: usize = 4;

/// Whether so many quads of a row go vector by vector of weights, not quad by quad, where sums are made in 16 bits first: where
/// codes of several planes share words, or more than four vectors of codes that share one are under way, those of one vector at a
/// time leave registers to the sums, and the activations of so few quads wait meanwhile. (Q3_K, whose codes are shorter, spills that way.)
pub(super) fn by_vectors(how: &Integers, planes: usize, (rows, vectors): (usize, usize), quads: usize) -> bool {
    let crowded = match how.bits {
        4 => planes == 1 && vectors > 4,
        5..=7 => planes > 1,
        _ => false,
    };
    crowded && rows == 1 && quads <= WAITING
}

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
    /// Whether the offset is taken off at the end of a segment: sums then start from nothing, which costs no register.
    pub late: bool,
    /// Whether codes of two bits are read without shifting each into place, those four times too large into sums of
    /// their own; needs a tile with one partial sum per sum.
    pub quarters: bool,
    /// Where results are.
    pub results: Results<'a>,
    /// Where sums are between the turns of the loop over a segment: in scratch, or in the walk's inner state. Without a dot
    /// instruction a turn adds up in 16 bits first, so that these would only lie in registers meanwhile. Needs a tile with one
    /// partial sum per sum, and not `quarters`.
    pub sums: Option<&'a Kept>,
}

/// What the integer sums of a vector of rows of W come to: `scale · (sum - zero · sum of x) + offset · sum of x`.
struct Factors {
    scale: Value,
    zero: Option<Value>,
    offset: Option<Value>,
}

/// Where the results of a tile are between segments.
pub(super) enum Results<'a> {
    /// In the walk's outer state.
    Registers,
    /// In scratch, from a place on, counted in vectors.
    Scratch(&'a Kept, Pos),
}

impl<'a> Results<'a> {
    /// In scratch from its start on, or in registers where there is none.
    pub fn kept(scratch: Option<&'a Kept>) -> Results<'a> {
        scratch.map_or(Results::Registers, |kept| Results::Scratch(kept, Pos::fixed(0)))
    }
}

impl Visit for IntegerSums<'_, '_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let lanes = self.tile.weights.lanes;
        let mut sums = Vec::new();
        for row in 0..self.tile.rows.count() {
            let start = if self.how.factor == 1 && self.how.offset != 0 && !self.late {
                let sum = self.tile.rows.sum(b, row, segment);
                b.bin_imm(BinOp::Mul, sum, -self.how.offset as i64)
            } else {
                b.int(Type::vector(Scalar::I32, lanes), 0)
            };
            sums.extend(std::iter::repeat_n(start, self.tile.vectors));
        }
        let nothing = b.int(Type::vector(Scalar::I32, lanes), 0);
        let sets = self.tile.chains() + usize::from(self.quarters);
        sums.resize(sets * self.tile.sums(), nothing);
        let Some(kept) = self.sums else { return sums };
        sums.into_iter().enumerate().for_each(|(i, sum)| kept.store(b, Pos::fixed(0), i, sum));
        Vec::new()
    }

    fn enter(&mut self, b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        if self.sums.is_none() {
            return inner;
        }
        let nothing = b.int(Type::vector(Scalar::I32, self.tile.weights.lanes), 0);
        vec![nothing; self.tile.sums()]
    }

    fn leave(&mut self, b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        let Some(kept) = self.sums else { return inner };
        for (i, &sum) in inner.iter().enumerate() {
            let before = kept.load(b, Pos::fixed(0), i);
            let sum = b.add(before, sum);
            kept.store(b, Pos::fixed(0), i, sum);
        }
        Vec::new()
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, mut inner: Vec<Value>) -> Vec<Value> {
        let (rows, vectors) = (self.tile.rows.count(), self.tile.vectors);
        let chain = |i: usize| (step.first + i) % self.tile.chains() * self.tile.sums();
        let planes = self.tile.weights.layout.planes.len();
        if self.late && by_vectors(self.how, planes, (rows, vectors), step.quads.len()) {
            let x: Vec<Value> = (0..step.quads.len())
                .map(|i| self.tile.rows.quad_bytes(b, 0, step.column.plus(4 * i), step.quads[i]))
                .collect();
            for v in 0..vectors {
                for (i, &x) in x.iter().enumerate() {
                    let w = (self.bytes)(b, step, i, v);
                    let sum = &mut inner[chain(i) + v];
                    *sum = b.dot4(self.how.signs, self.how.bits, w, x, *sum);
                }
            }
            return inner;
        }
        for (i, &valid) in step.quads.iter().enumerate() {
            let column = step.column.plus(4 * i);
            let chain = chain(i);
            if self.quarters {
                let weights = self.tile.weights;
                let x: Vec<Value> = (0..rows).map(|row| self.tile.rows.quad_bytes(b, row, column, valid)).collect();
                for v in 0..vectors {
                    let words = weights.words(b, step.unit, step.first + i, v);
                    let (w, four) = weights.quarter_bytes(b, &words);
                    for (row, &x) in x.iter().enumerate() {
                        let set = if four { self.tile.sums() } else { 0 };
                        let sum = &mut inner[set + row * vectors + v];
                        *sum = b.dot4(self.how.signs, if four { 4 } else { 2 }, w, x, *sum);
                    }
                }
                continue;
            }
            let mut dot = |b: &mut Builder, row: usize, v: usize, x: Value, w: Value| {
                let sum = &mut inner[chain + row * vectors + v];
                *sum = b.dot4(self.how.signs, self.how.bits, w, x, *sum);
            };
            // What there are fewer of stays in registers.
            if rows > vectors && self.tile.weights.lanes >= 8 {
                let w: Vec<Value> = (0..vectors).map(|v| (self.bytes)(b, step, i, v)).collect();
                for row in 0..rows {
                    let x = self.tile.rows.quad_bytes(b, row, column, valid);
                    w.iter().enumerate().for_each(|(v, &w)| dot(b, row, v, x, w));
                }
                continue;
            }
            let x: Vec<Value> = (0..rows).map(|row| self.tile.rows.quad_bytes(b, row, column, valid)).collect();
            for v in 0..vectors {
                let w = (self.bytes)(b, step, i, v);
                x.iter().enumerate().for_each(|(row, &x)| dot(b, row, v, x, w));
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

    fn end(&mut self, b: &mut Builder, segment: Pos, inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        if let Some(kept) = self.sums {
            return self.finish(b, segment, outer, &mut |b, i| kept.load(b, Pos::fixed(0), i));
        }
        let mut sums = self.tile.folded(b, &inner);
        if self.quarters {
            for (sum, &four) in sums.iter_mut().zip(&inner[self.tile.sums()..]) {
                let part = b.bin_imm(BinOp::ShrS, four, 2);
                *sum = b.add(*sum, part);
            }
        }
        self.finish(b, segment, outer, &mut |_, i| sums[i])
    }
}

impl IntegerSums<'_, '_> {
    /// The results over a whole walk, from nothing, wherever they are in between.
    pub fn over(&mut self, b: &mut Builder, walk: &Walk) -> Vec<Value> {
        let count = self.tile.rows.count() * self.tile.vectors;
        let nothing = b.f32(self.tile.weights.lanes, 0.0);
        let outer = match self.results {
            Results::Registers => vec![nothing; count],
            Results::Scratch(kept, from) => {
                kept.fill(b, from, count, nothing);
                Vec::new()
            }
        };
        let outer = walk.emit(b, self, outer);
        match self.results {
            Results::Registers => outer,
            Results::Scratch(kept, from) => kept.load_all(b, from, count),
        }
    }

    /// The results after a segment, whose sums `sum` gives by `row * vectors + vector`.
    pub fn finish(
        &self,
        b: &mut Builder,
        segment: Pos,
        mut outer: Vec<Value>,
        sum: &mut dyn FnMut(&mut Builder, usize) -> Value,
    ) -> Vec<Value> {
        let (rows, vectors) = (self.tile.rows.count(), self.tile.vectors);
        let column = segment.times(b, self.segment);
        let group = column.divide(b, self.tile.weights.layout.group);
        // What there are fewer of stays in registers.
        if rows >= vectors {
            let factors: Vec<Factors> = (0..vectors).map(|v| self.factors(b, group, v)).collect();
            for row in 0..rows {
                for (v, factors) in factors.iter().enumerate() {
                    let sum = sum(b, row * vectors + v);
                    self.result(b, (segment, column), (row, v), factors, sum, &mut outer);
                }
            }
            return outer;
        }
        for v in 0..vectors {
            let factors = self.factors(b, group, v);
            for row in 0..rows {
                let sum = sum(b, row * vectors + v);
                self.result(b, (segment, column), (row, v), &factors, sum, &mut outer);
            }
        }
        outer
    }

    /// What the sums of a vector are scaled and shifted by in a group of columns.
    fn factors(&self, b: &mut Builder, group: Pos, v: usize) -> Factors {
        let weights = self.tile.weights;
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
        Factors { scale, zero, offset }
    }

    /// Adds the sum of a segment to its result.
    fn result(
        &self,
        b: &mut Builder,
        (segment, column): (Pos, Pos),
        (row, v): (usize, usize),
        &Factors { scale, zero, offset }: &Factors,
        mut sum: Value,
        outer: &mut [Value],
    ) {
        let scale_x = self.tile.rows.group_scale(b, row, column);
        if self.how.factor == 1 && self.how.offset != 0 && self.late {
            let x = self.tile.rows.sum(b, row, segment);
            let taken = times(b, x, self.how.offset);
            sum = b.bin(BinOp::Sub, sum, taken);
        }
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
        let at = row * self.tile.vectors + v;
        let before = match self.results {
            Results::Registers => outer[at],
            Results::Scratch(kept, from) => kept.load(b, from, at),
        };
        let mut result = b.fma(number, factor, before);
        if let Some(offset) = offset {
            let x = self.tile.rows.sum(b, row, segment);
            let x = b.cast(CastOp::IntToFloatS, x, Scalar::F32);
            let x = scale_x.map_or(x, |scale| b.mul(x, scale));
            result = b.fma(offset, x, result);
        }
        match self.results {
            Results::Registers => outer[at] = result,
            Results::Scratch(kept, from) => kept.store(b, from, at, result),
        }
    }
}

/// `value * by` in `i32` lanes, by a shift where it can be: products of 32 bits take two instructions.
fn times(b: &mut Builder, value: Value, by: i32) -> Value {
    match u32::try_from(by) {
        Ok(by) if by.is_power_of_two() => b.bin_imm(BinOp::Shl, value, i64::from(by.trailing_zeros())),
        _ => b.bin_imm(BinOp::Mul, value, i64::from(by)),
    }
}
