//! One subgroup's part of a product: strips of operands, sums, and what scales them.

use crate::dtype::DType;
use crate::ir::{BinOp, Builder, CastOp, Inst, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::lanes::Lanes;
use crate::lower::memory::{at, scalar_of};
use crate::lower::team::Team;
use crate::lower::unpack::fragments::{Fragments, Group};
use crate::lower::walk::{Pos, repeat, share};
use crate::op::Matmul;

/// One subgroup's part of a product.
pub(super) struct Product<'a> {
    pub op: &'a Matmul,
    pub lanes: &'a Lanes,
    pub fragments: &'a Fragments<'a>,
    pub x: Memory,
    /// For each tile of rows of X: the byte of this lane's first number, `i64`.
    pub columns: Vec<Value>,
    /// For each tile of rows of X: the first of this lane's rows of the result, and all of them.
    pub rows: &'a [(Value, Rows)],
}

impl Product<'_> {
    fn sums(&self) -> usize {
        self.fragments.blocks * self.lanes.fragments * self.rows.len()
    }

    /// Block, fragment and tile of rows of X of a sum.
    pub(super) fn of_sum(&self, number: usize) -> (usize, usize, usize) {
        let (fragment, token) = (number / self.rows.len(), number % self.rows.len());
        (fragment / self.lanes.fragments, fragment % self.lanes.fragments, token)
    }

    fn sum_type(&self) -> Type {
        let integers = self.lanes.shape.acc == DType::I32;
        Type::vector(if integers { Scalar::I32 } else { Scalar::F32 }, self.lanes.shape.acc_elements() as u8)
    }

    fn nothing(&self, b: &mut Builder, ty: Type) -> Vec<Value> {
        let zero = if ty.scalar == Scalar::I32 { b.int(ty, 0) } else { b.f32(ty.lanes, 0.0) };
        vec![zero; self.sums()]
    }

    /// The sums from an element on that stand side by side.
    pub(super) fn run_of(&self, b: &mut Builder, sums: Value, element: usize) -> Value {
        if self.lanes.run == 1 { b.extract(sums, element as u8) } else { sums }
    }

    /// Results `[block][fragment][tile of rows of X]`, the same in every subgroup.
    pub(super) fn results(&self, b: &mut Builder, team: &Team, unroll: usize) -> Vec<Value> {
        let segment = self.op.segment();
        let (segments, strips) = (self.op.k / segment, segment / self.fragments.columns());
        let split = team.split(b);
        let results = self.nothing(b, self.sum_type().with_scalar(Scalar::F32));
        if segments == 1 {
            let group = self.fragments.group(b, Pos::fixed(0));
            let sums = self.nothing(b, self.sum_type());
            let biases = self.biases(b, &group);
            let sums =
                share(b, Some(&split), strips, 1, sums, &mut |b, strip, sums| self.strips(b, strip, 1, &biases, sums));
            let sums = team.combine(b, BinOp::Add, &sums);
            return self.scaled(b, &group, Pos::fixed(0), &sums, results);
        }
        let unroll = (1..=unroll).rev().find(|&u| strips.is_multiple_of(u)).unwrap_or(1);
        let results = share(b, Some(&split), segments, 1, results, &mut |b, index, results| {
            let group = index.divide(b, self.fragments.layout.group / segment);
            let group = self.fragments.group(b, group);
            let biases = self.biases(b, &group);
            let first = index.times(b, strips);
            let sums = self.nothing(b, self.sum_type());
            let sums = repeat(b, strips / unroll, unroll, sums, |b, strip, sums| {
                let strip = first.add(b, strip);
                self.strips(b, strip, unroll, &biases, sums)
            });
            self.scaled(b, &group, index, &sums, results)
        });
        team.combine(b, BinOp::Add, &results)
    }

    fn biases(&self, b: &mut Builder, group: &Group) -> Vec<Vec<[Value; 2]>> {
        (0..self.fragments.blocks).map(|block| self.fragments.biases(b, self.lanes.shape.a, group, block)).collect()
    }

    /// The sums after `count` strips. All loads come first, so that they are under way together.
    fn strips(
        &self,
        b: &mut Builder,
        strip: Pos,
        count: usize,
        biases: &[Vec<[Value; 2]>],
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let (shape, tokens) = (self.lanes.shape, self.rows.len());
        let words: Vec<_> = (0..count).map(|i| self.fragments.words(b, strip.plus(i))).collect();
        let column = strip.times(b, self.fragments.columns());
        let x: Vec<_> = (0..count).map(|i| self.strip_of_x(b, column.plus(i * self.fragments.columns()))).collect();
        for (words, x) in words.iter().zip(&x) {
            for (block, words) in words.iter().enumerate() {
                let decoded = self.fragments.decode(b, words, shape.a, &biases[block]);
                for (fragment, instructions) in decoded.iter().enumerate() {
                    for (number, registers) in instructions.iter().enumerate() {
                        let a = self.fragment(b, registers, shape.a, shape.a_elements());
                        for (token, x) in x.iter().enumerate() {
                            let sum = &mut sums[(block * self.lanes.fragments + fragment) * tokens + token];
                            *sum = b.mma(shape, a, x[number], *sum);
                        }
                    }
                }
            }
        }
        sums
    }

    /// Operand B of every instruction of a strip, for each tile of rows of X: of each 256 bits of K, a lane takes two words
    /// half of them apart, for each `t` that it holds.
    fn strip_of_x(&self, b: &mut Builder, column: Pos) -> Vec<Vec<Value>> {
        let (shape, own) = (self.lanes.shape, self.lanes.own as u8);
        let size = shape.b.bits() as usize / 8;
        let start = column.times(b, size);
        let mut tiles = Vec::new();
        for &base in &self.columns {
            let start = start.add(b, Pos::of(base));
            let mut words = Vec::new();
            for place in (0..self.fragments.columns() * size).step_by(16) {
                let ty = Type::vector(Scalar::I32, own);
                let both = b.load(ty, at(self.x, start.index, start.fixed + place), 4 * own as u32);
                words.extend((0..own).map(|i| b.extract(both, i)));
            }
            let instructions = words.chunks(self.lanes.registers());
            tiles.push(instructions.map(|words| self.fragment(b, words, shape.b, shape.b_elements())).collect());
        }
        tiles
    }

    fn fragment(&self, b: &mut Builder, registers: &[Value], dtype: DType, elements: u32) -> Value {
        let words = match registers {
            [word] => *word,
            _ => b.push(Type::vector(Scalar::I32, registers.len() as u8), Inst::Vector(registers.to_vec())),
        };
        b.bitcast(words, Type::vector(scalar_of(dtype), elements as u8))
    }

    /// The results with the sums of a segment, scaled, its zeros taken off where decoding has not.
    fn scaled(&self, b: &mut Builder, group: &Group, segment: Pos, sums: &[Value], results: Vec<Value>) -> Vec<Value> {
        let (lanes, run) = (self.lanes, self.lanes.run as u8);
        let integers = lanes.shape.acc == DType::I32;
        let offset = self.fragments.offset(lanes.shape.a);
        let corrects = integers && (offset != 0 || group.zeros.is_some());
        let column = segment.times(b, self.op.segment());
        let mut factors = Vec::new();
        for (_, rows) in self.rows {
            let of_row = |row| {
                let sum = corrects.then(|| rows.sum(b, row, segment)).map(|sum| b.splat(sum, run));
                (rows.group_scale(b, row, column).map(|scale| b.splat(scale, run)), sum)
            };
            factors.push((0..lanes.columns()).map(of_row).collect::<Vec<_>>());
        }
        let mut list = Vec::with_capacity(results.len());
        for (i, (&sum, &result)) in sums.iter().zip(&results).enumerate() {
            let (block, fragment, token) = self.of_sum(i);
            let parts: Vec<Value> = (0..lanes.shape.acc_elements() as usize)
                .step_by(lanes.run)
                .map(|element| {
                    let (scale_x, sum_x) = factors[token][lanes.place(fragment, element).1];
                    let mut number = self.run_of(b, sum, element);
                    if let Some(sum_x) = sum_x {
                        let zeros = group.zeros.as_ref();
                        let zero =
                            zeros.map(|zeros| |b: &mut _| self.fragments.of_sums(b, zeros, block, fragment, element));
                        number = self.fragments.less_zeros(b, number, sum_x, lanes.shape.a, zero);
                    }
                    if integers {
                        number = b.cast(CastOp::IntToFloatS, number, Scalar::F32);
                    }
                    let scale = self.fragments.of_sums(b, &group.scales, block, fragment, element);
                    let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
                    let old = self.run_of(b, result, element);
                    b.fma(number, factor, old)
                })
                .collect();
            list.push(if parts.len() == 1 { parts[0] } else { b.vector(&parts) });
        }
        list
    }
}
