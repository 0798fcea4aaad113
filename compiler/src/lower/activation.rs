//! Rows of activations: where they start, and their numbers in every lane of a vector.

use super::memory::{Params, Role, alignment, at, byte_index, scalar_of};
use super::walk::Pos;
use crate::ir::{BinOp, Builder, CastOp, Memory, Scalar, Type, Value};
use crate::op::{Activation, Matmul, Per};

/// Some rows of X, with their scales and sums.
pub(super) struct Rows {
    x: Memory,
    element: Scalar,
    scales: Option<(Memory, Per)>,
    sums: Option<Memory>,
    k: usize,
    segments: usize,
    /// Row numbers, `i64`, none past the last row: rows of a tile past it repeat it.
    rows: Vec<Value>,
    lanes: u8,
    /// What the address of every quad is a multiple of.
    align: u32,
    /// Bool: whether this thread sees sums; the others see 0.
    leader: Option<Value>,
}

impl Rows {
    /// `count` rows from `first` (`i32`, below M) on.
    pub fn new(b: &mut Builder, op: &Matmul, params: &Params, first: Value, count: usize, lanes: u8) -> Rows {
        let (element, scales) = match op.activation {
            Activation::Float(dtype) => (scalar_of(dtype), None),
            Activation::Int8(per) => (Scalar::I8, Some(per)),
            Activation::Fp8(dtype, per) => (scalar_of(dtype), Some(per)),
        };
        let last = b.bin_imm(BinOp::Sub, params.m, 1);
        let rows = (0..count)
            .map(|i| {
                let row = b.bin_imm(BinOp::Add, first, i as i64);
                let row = if i == 0 { row } else { b.bin(BinOp::MinS, row, last) };
                b.cast(CastOp::ExtendS, row, Scalar::I64)
            })
            .collect();
        Rows {
            x: params.get(Role::Activations),
            element,
            scales: scales.map(|per| (params.get(Role::ActivationScales), per)),
            sums: params.find(Role::ActivationSums),
            k: op.k,
            segments: op.k.div_ceil(op.segment()),
            rows,
            lanes,
            align: quad_align(op, element.bytes() as usize, params.align),
            leader: None,
        }
    }

    /// The same rows, where several threads share each segment: one of them alone sees the sums of its activations.
    pub fn with_leader(self, leader: Value) -> Rows {
        Rows { leader: Some(leader), ..self }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    fn element_at(&self, b: &mut Builder, row: usize, column: Pos) -> Pos {
        let size = self.element.bytes() as usize;
        let start = byte_index(b, self.rows[row], self.k * size);
        let column = column.times(b, size);
        column.add(b, Pos::of(start))
    }

    /// Four bytes from a column on, in every 32-bit lane; columns past `valid` are 0.
    pub fn quad_bytes(&self, b: &mut Builder, row: usize, column: Pos, valid: usize) -> Value {
        let start = self.element_at(b, row, column);
        let word = if valid == 4 {
            b.load(Scalar::I32, at(self.x, start.index, start.fixed), self.align)
        } else {
            let bytes: Vec<Value> = (0..4)
                .map(|i| {
                    if i < valid {
                        b.load(Scalar::I8, at(self.x, start.index, start.fixed + i), 1)
                    } else {
                        b.int(Scalar::I8, 0)
                    }
                })
                .collect();
            let bytes = b.vector(&bytes);
            b.bitcast(bytes, Scalar::I32)
        };
        let words = b.splat(word, self.lanes);
        b.bitcast(words, Type::vector(Scalar::I8, 4 * self.lanes))
    }

    /// The numbers of `valid` columns from a column on, each in every lane, as `f32`.
    pub fn quad_floats(&self, b: &mut Builder, row: usize, column: Pos, valid: usize) -> Vec<Value> {
        let size = self.element.bytes();
        let start = self.element_at(b, row, column);
        let load = |b: &mut Builder, ty: Type, i: usize| {
            let align = if ty.lanes == 1 { size } else { self.align };
            b.load(ty, at(self.x, start.index, start.fixed + i * size as usize), align)
        };
        // A CPU broadcasts an f32 from memory as cheaply as it loads one.
        if valid < 4 || self.element == Scalar::F32 && self.align == size {
            return (0..valid)
                .map(|i| {
                    let number = load(b, self.element.into(), i);
                    let number = self.widen(b, number);
                    b.splat(number, self.lanes)
                })
                .collect();
        }
        let quad = load(b, Type::vector(self.element, 4), 0);
        let quad = self.widen(b, quad);
        (0..4)
            .map(|i| {
                let number = b.extract(quad, i);
                b.splat(number, self.lanes)
            })
            .collect()
    }

    /// `count` neighbouring columns of one byte each.
    pub fn bytes(&self, b: &mut Builder, row: usize, column: Pos, count: u8) -> Value {
        let start = self.element_at(b, row, column);
        b.load(Type::vector(Scalar::I8, count), at(self.x, start.index, start.fixed), 1)
    }

    /// `lanes` neighbouring columns as `f32`.
    pub fn floats(&self, b: &mut Builder, row: usize, column: Pos, lanes: u8) -> Value {
        let start = self.element_at(b, row, column);
        let numbers =
            b.load(Type::vector(self.element, lanes), at(self.x, start.index, start.fixed), self.element.bytes());
        self.widen(b, numbers)
    }

    /// `count` neighbouring columns as they are.
    pub fn elements(&self, b: &mut Builder, row: usize, column: Pos, count: u8) -> Value {
        let start = self.element_at(b, row, column);
        b.load(Type::vector(self.element, count), at(self.x, start.index, start.fixed), self.element.bytes())
    }

    fn widen(&self, b: &mut Builder, value: Value) -> Value {
        match self.element {
            Scalar::F32 => value,
            Scalar::I8 => b.cast(CastOp::IntToFloatS, value, Scalar::F32),
            _ => b.cast(CastOp::Float, value, Scalar::F32),
        }
    }

    fn sum_place(&self, b: &mut Builder, row: usize, segment: Pos) -> Pos {
        let start = byte_index(b, self.rows[row], self.segments * 4);
        segment.times(b, 4).add(b, Pos::of(start))
    }

    /// The sum of a segment's codes, `i32`, in every lane.
    pub fn sum(&self, b: &mut Builder, row: usize, segment: Pos) -> Value {
        let memory = self.sums.expect("int8 activations have sums");
        let start = self.sum_place(b, row, segment);
        let mut sum = b.load(Scalar::I32, at(memory, start.index, start.fixed), 4);
        if let Some(leader) = self.leader {
            let nothing = b.int(Scalar::I32, 0);
            sum = b.select(leader, sum, nothing);
        }
        b.splat(sum, self.lanes)
    }

    /// The sums of `count` neighbouring segments' codes, `i32`.
    pub fn sums(&self, b: &mut Builder, row: usize, segment: Pos, count: u8) -> Value {
        let memory = self.sums.expect("int8 activations have sums");
        let start = self.sum_place(b, row, segment);
        b.load(Type::vector(Scalar::I32, count), at(memory, start.index, start.fixed), 4)
    }

    /// The scale of the group that holds a column, in every lane; `None` where a scale serves the whole row.
    pub fn group_scale(&self, b: &mut Builder, row: usize, column: Pos) -> Option<Value> {
        let Some((memory, Per::Group(g))) = self.scales else { return None };
        let start = byte_index(b, self.rows[row], Per::Group(g).per_row(self.k) * 4);
        let entry = column.divide(b, g as usize).times(b, 4);
        let start = entry.add(b, Pos::of(start));
        let scale = b.load(Scalar::F32, at(memory, start.index, start.fixed), 4);
        Some(b.splat(scale, self.lanes))
    }

    /// The scale of the whole row, in every lane; `None` where there is none.
    pub fn row_scale(&self, b: &mut Builder, row: usize) -> Option<Value> {
        let (memory, per) = self.scales?;
        let index = match per {
            Per::Tensor => None,
            Per::Token => Some(byte_index(b, self.rows[row], 4)),
            Per::Group(_) => return None,
        };
        let scale = b.load(Scalar::F32, at(memory, index, 0), 4);
        Some(b.splat(scale, self.lanes))
    }
}

/// What the address of any quad of a row is a multiple of, where buffers start at multiples of `buffer`: rows, segments
/// and quads must all agree.
fn quad_align(op: &Matmul, size: usize, buffer: u32) -> u32 {
    let segment = if op.segment() < op.k { op.segment() * size } else { 0 };
    alignment(&[op.k * size, segment, 4 * size, buffer as usize]).max(size as u32)
}
