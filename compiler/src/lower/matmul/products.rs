//! What the pipelined matrix families share: groups within a block, products, scaling, results.
//!
//! Where groups are shorter than a block ([`Cut`]), it falls into parts, one group each. Always holds: integer sums are exact
//! over a whole segment before they are scaled, and sums of 8-bit floats are taken over to `f32` numbers at the end of each
//! block, since matrix units sum them with fewer bits than `f32` has.

use super::Plan;
use super::cut::Cut;
use super::dense::Ready;
use super::epilogue::Line;
use crate::caps::MmaShape;
use crate::dtype::DType;
use crate::format::Zero;
use crate::format::qt16::Class;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Inst, Scalar, Type, UnOp, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, scalar_of, times};
use crate::lower::unpack::fragments::{Fragments, Group};
use crate::lower::walk::Pos;
use crate::op::Matmul;
use crate::schedule::Schedule;

/// A product under construction: some tiles of 16 rows of W by some tiles of 8 rows of X.
pub(super) struct Products<'a> {
    pub op: &'a Matmul,
    pub shape: &'static MmaShape,
    pub cut: Cut,
    pub fragments: &'a Fragments<'a>,
    /// For each tile of 8 rows of X: the first of this lane's two rows of the result, and both.
    pub rows: &'a [(Value, Rows)],
    /// Operand A where it needs no decoding.
    pub ready: Option<Ready>,
}

/// What chooses the threads that do something for a result of some number.
pub(super) type When<'a> = dyn FnMut(&mut Builder, usize, &mut dyn FnMut(&mut Builder)) + 'a;

/// A part of a block with one group: its steps of K, and operand A of each, `[tile][step]`.
pub(super) struct Part {
    pub segment: Pos,
    pub group: Group,
    pub first_step: usize,
    pub a: Vec<Vec<Value>>,
}

impl Products<'_> {
    /// Strips of the packing in a block.
    pub fn strips(&self) -> usize {
        self.cut.block / self.fragments.columns()
    }

    /// Tiles of results.
    pub fn count(&self) -> usize {
        self.fragments.blocks * self.rows.len()
    }

    /// Whether sums of activations are made beside the others, as one more tile of rows of W whose weights are all 1:
    /// zero points that are no integers, and those of 8-bit floats, are paid by them. Sums of integers are an operand.
    pub fn sums_activations(&self) -> bool {
        let zero = self.fragments.layout.format.zero;
        let late = matches!(zero, Zero::Float(_) | Zero::Offset { .. })
            || matches!(zero, Zero::Int(_)) && self.fragments.layout.class == Class::B8;
        self.ready.is_none() && self.shape.acc == DType::F32 && late
    }

    /// Tiles of rows of W that are summed: those of results, then the one of [`Products::sums_activations`].
    pub fn summed_tiles(&self) -> usize {
        self.fragments.blocks + usize::from(self.sums_activations())
    }

    /// Operand A of that tile.
    pub fn ones(&self, b: &mut Builder) -> Value {
        let bits = self.shape.a.bits();
        let one = self.shape.a.encode(1.0) as u64;
        let word = (0..32 / bits).fold(0, |word, i| word | one << (i * bits)) as u32 as i32;
        let word = b.int(Scalar::I32, i64::from(word));
        let registers = vec![word; (self.shape.a_elements() * bits / 32) as usize];
        fragment(b, &registers, self.shape.a, self.shape.a_elements())
    }

    /// Results of nothing, `[tile][rows of X]`.
    pub fn zeros(&self, b: &mut Builder) -> Vec<Value> {
        vec![b.f32(4, 0.0); self.count()]
    }

    /// Sums of nothing in vectors of so many lanes.
    pub fn no_sums(&self, b: &mut Builder, lanes: u8, count: usize) -> Vec<Value> {
        let zero = match self.shape.acc {
            DType::I32 => b.int(Type::vector(Scalar::I32, lanes), 0),
            _ => b.f32(lanes, 0.0),
        };
        vec![zero; count]
    }

    /// The parts of a block whose words have been read, `[strip][tile][chunk]`.
    pub fn parts(&self, b: &mut Builder, block: Pos, words: &[Vec<Vec<Value>>]) -> Vec<Part> {
        let column = block.times(b, self.cut.block);
        let length = self.cut.segment.min(self.cut.block);
        let strip = self.fragments.columns();
        let k = self.shape.k as usize;
        (0..self.cut.block / length)
            .map(|part| {
                let column = column.plus(part * length);
                let segment = match self.cut {
                    Cut { segment, .. } if segment >= self.op.k => Pos::fixed(0),
                    Cut { block: columns, segment, .. } if segment <= columns => {
                        block.times(b, columns / segment).plus(part)
                    }
                    Cut { segment, .. } => column.divide(b, segment),
                };
                let group = self.group(b, column);
                let a = (0..self.fragments.blocks)
                    .map(|tile| {
                        let biases = self.fragments.biases(b, self.shape.a, &group, tile);
                        let (first, end) = (part * length, (part + 1) * length);
                        let mut list = Vec::new();
                        let strips = words.iter().enumerate().take(end.div_ceil(strip)).skip(first / strip);
                        for (number, words) in strips {
                            let decoded = self.fragments.steps(b, &words[tile], self.shape.a, &biases);
                            for (step, registers) in decoded.iter().enumerate() {
                                if (first..end).contains(&(number * strip + step * k)) {
                                    list.push(fragment(b, registers, self.shape.a, self.shape.a_elements()));
                                }
                            }
                        }
                        list
                    })
                    .collect();
                Part { segment, group, first_step: part * length / k, a }
            })
            .collect()
    }

    /// The group of a column.
    pub fn group(&self, b: &mut Builder, column: Pos) -> Group {
        let layout = self.fragments.layout;
        let group = if layout.groups == 1 { Pos::fixed(0) } else { column.divide(b, layout.group) };
        let mut found = self.fragments.group(b, group);
        if self.shape.acc == DType::F32
            && let Some(zeros) = found.zeros.take()
        {
            let offset = |(&zero, &scale): (&Value, &Value)| {
                let zero = b.cast(CastOp::IntToFloatS, zero, Scalar::F32);
                let zero = b.un(UnOp::Neg, zero);
                b.mul(zero, scale)
            };
            found.offsets = Some(zeros.iter().zip(&found.scales).map(offset).collect());
        }
        found
    }

    /// The results with the sums of a segment or of a part of one, scaled, its zeros taken off where decoding has not.
    /// `sum` gives an element of the sums of a tile, of [`Products::summed_tiles`], and 8 rows of X.
    pub fn scaled(
        &self,
        b: &mut Builder,
        (group, segment): (&Group, Pos),
        sum: &dyn Fn(&mut Builder, usize, usize, u8) -> Value,
        results: &[Value],
    ) -> Vec<Value> {
        let integers = self.shape.acc == DType::I32;
        let offset = self.fragments.offset(self.shape.a);
        let corrects = integers && (offset != 0 || group.zeros.is_some());
        let column = segment.times(b, self.cut.segment);
        let mut factors = Vec::new();
        for (token, (_, rows)) in self.rows.iter().enumerate() {
            let mut of_row = |row: usize| {
                let integer = (corrects || integers && group.offsets.is_some()).then(|| rows.sum(b, row, segment));
                let scale = rows.group_scale(b, row, column);
                let activations = group.offsets.is_some().then(|| {
                    let sum = match integer {
                        Some(sum) => b.cast(CastOp::IntToFloatS, sum, Scalar::F32),
                        // All rows of the last tile hold the same.
                        None => sum(b, self.fragments.blocks, token, row as u8),
                    };
                    scale.map_or(sum, |scale| b.mul(scale, sum))
                });
                (scale, integer.filter(|_| corrects), activations)
            };
            factors.push([of_row(0), of_row(1)]);
        }
        let mut list = Vec::with_capacity(results.len());
        for (i, &result) in results.iter().enumerate() {
            let (tile, token) = (i / self.rows.len(), i % self.rows.len());
            let parts: Vec<Value> = (0..4u8)
                .map(|element| {
                    let (half, parity) = (element / 2, (element % 2) as usize);
                    let (scale_x, sum_x, activations) = factors[token][parity];
                    let mut number = sum(b, tile, token, element);
                    if let Some(sum_x) = sum_x {
                        let zero = group.zeros.as_ref().map(|zeros| |b: &mut Builder| b.extract(zeros[tile], half));
                        number = self.fragments.less_zeros(b, number, sum_x, self.shape.a, zero);
                    }
                    if integers {
                        number = b.cast(CastOp::IntToFloatS, number, Scalar::F32);
                    }
                    let scale = b.extract(group.scales[tile], half);
                    let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
                    let mut result = b.extract(result, element);
                    if let (Some(offsets), Some(activations)) = (&group.offsets, activations) {
                        let offset = b.extract(offsets[tile], half);
                        result = b.fma(offset, activations, result);
                    }
                    b.fma(number, factor, result)
                })
                .collect();
            list.push(b.vector(&parts));
        }
        list
    }

    /// Stores results: rows `start` (`i64`) + 16 · tile + 8 · half + g of W by this lane's rows of X, those that exist.
    /// `when` chooses the threads that store a tile.
    pub fn store(
        &self,
        b: &mut Builder,
        (plan, params): (&Plan, &Params),
        (start, g): (Value, Value),
        results: &[Value],
        when: &mut When<'_>,
    ) {
        let n = b.cast(CastOp::ExtendS, g, Scalar::I64);
        let n = b.add(start, n);
        let end = b.int(Scalar::I64, self.op.n as i64);
        for (i, &result) in results.iter().enumerate() {
            let (tile, token) = (i / self.rows.len(), i % self.rows.len());
            let (pair, rows) = &self.rows[token];
            when(b, i, &mut |b| {
                for parity in 0..2u8 {
                    let m = b.bin_imm(BinOp::Add, *pair, parity as i64);
                    let below = b.cmp(CmpOp::LtS, m, params.m);
                    b.if_then(below, |b| {
                        let scale = rows.row_scale(b, parity as usize);
                        for half in 0..2u8 {
                            let n = b.bin_imm(BinOp::Add, n, 16 * tile as i64 + 8 * half as i64);
                            let inside = b.cmp(CmpOp::LtS, n, end);
                            b.if_then(inside, |b| {
                                let sum = b.extract(result, 2 * half + parity);
                                let sum = scale.map_or(sum, |scale| b.mul(sum, scale));
                                Line::new(b, plan, params, m, n).finish(b, sum, 0);
                            });
                        }
                    });
                }
            });
        }
    }
}

/// The words of so many strips from one on, `[strip][tile][chunk]`.
pub(super) fn words_of(b: &mut Builder, fragments: &Fragments<'_>, first: Pos, strips: usize) -> Vec<Vec<Vec<Value>>> {
    let mut words = Vec::new();
    for strip in 0..strips {
        let mut tiles = Vec::new();
        for tile in 0..fragments.blocks {
            let mut chunks = Vec::new();
            for chunk in fragments.chunks() {
                let from = fragments.chunk(b, first.plus(strip), chunk, tile);
                chunks.push(b.load(Type::vector(Scalar::I32, 4), from, 16));
            }
            tiles.push(chunks);
        }
        words.push(tiles);
    }
    words
}

/// A fragment from its registers.
pub(super) fn fragment(b: &mut Builder, registers: &[Value], dtype: DType, elements: u32) -> Value {
    let words = b.push(Type::vector(Scalar::I32, registers.len() as u8), Inst::Vector(registers.to_vec()));
    b.bitcast(words, Type::vector(scalar_of(dtype), elements as u8))
}

/// This lane's rows of the result for each tile of 8 rows of X from `first` (`i32`) on: the first of the two, and both, no
/// row past the last.
pub(super) fn rows_of(
    b: &mut Builder,
    op: &Matmul,
    params: &Params,
    first: Value,
    t: Value,
    tokens: usize,
) -> Vec<(Value, Rows)> {
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    (0..tokens)
        .map(|token| {
            let tile = b.bin_imm(BinOp::Add, first, 8 * token as i64);
            let pair = times(b, t, 2);
            let pair = b.add(tile, pair);
            let below = b.bin(BinOp::MinS, pair, last);
            (pair, Rows::new(b, op, params, below, 2, 1))
        })
        .collect()
}

/// The faults of a schedule whose numbers must be among those listed.
pub(super) fn listed(schedule: &Schedule, accepted: &[(&str, u32, &[u32])]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, found, list) in accepted {
        if !list.contains(found) {
            let accepted: Vec<String> = list.iter().map(u32::to_string).collect();
            faults.push(format!("{name} is {found}; accepted: {}", accepted.join(", ")));
        }
    }
    if faults.is_empty() && schedule.threads == 0 {
        faults.push("threads is 0".to_string());
    }
    faults
}
