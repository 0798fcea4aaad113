//! Activations made ready once for many uses: rows of X as `f32` in scratch, with a power of two per column where the
//! decoder leaves one on its codes, and minus their sum per segment.
//!
//! Always holds: a number is the activation times its column's factor, exactly unless it leaves the range of `f32`.

use super::activation::Rows;
use super::memory::at;
use super::quantize::across;
use super::walk::{Pos, repeat};
use crate::ir::{BinOp, Builder, Memory, Scalar, Type, UnOp, Value};

/// Rows in scratch.
pub(super) struct Staged {
    /// `[row][k]` numbers.
    numbers: Memory,
    /// Where row 0 starts, in bytes.
    base: Pos,
    /// `[row][segment]` minus sums.
    sums: Option<Memory>,
    k: usize,
    segments: usize,
    lanes: u8,
}

/// What is made ready.
pub(super) struct Content<'a> {
    /// Columns.
    pub k: usize,
    /// Columns per segment, a multiple of the number of factors.
    pub segment: usize,
    /// Factors of neighbouring columns, over and over; a multiple of the lanes of a vector.
    pub factors: &'a [f32],
    /// What sums are multiplied by; `None` where nobody wants them.
    pub sum_factor: Option<f32>,
}

impl Staged {
    /// Scratch for so many rows.
    pub fn declare(b: &mut Builder, rows: usize, content: &Content<'_>, lanes: u8) -> Staged {
        let segments = content.k.div_ceil(content.segment);
        let numbers = b.shared("staged", (rows * content.k * 4) as u32, 64);
        let sums = content.sum_factor.map(|_| b.shared("staged_sums", (rows * segments * 4) as u32, 64));
        Staged { numbers, base: Pos::fixed(0), sums, k: content.k, segments, lanes }
    }

    /// The same scratch from a row on, where nobody wants sums.
    pub fn starting_at(&self, b: &mut Builder, row: Pos) -> Staged {
        debug_assert!(self.sums.is_none());
        Staged { base: row.times(b, self.k * 4), ..*self }
    }

    /// Fills scratch with columns `start ..` of rows; column `start` becomes column 0.
    pub fn fill(&self, b: &mut Builder, rows: &Rows, start: Pos, content: &Content<'_>) {
        let (lanes, period) = (self.lanes, content.factors.len());
        let plain = content.factors.iter().all(|&factor| factor == 1.0);
        for row in 0..rows.count() {
            let part = |b: &mut Builder, column: Pos, mut sum: Vec<Value>| {
                for i in (0..period).step_by(lanes as usize) {
                    let here = column.plus(i);
                    let from = start.add(b, here);
                    let mut x = rows.floats(b, row, from, lanes);
                    if let Some(scale) = rows.group_scale(b, row, from) {
                        x = b.mul(x, scale);
                    }
                    if let [sum] = &mut sum[..] {
                        *sum = b.add(*sum, x);
                    }
                    if !plain {
                        let bits: Vec<u64> =
                            content.factors[i..i + lanes as usize].iter().map(|f| u64::from(f.to_bits())).collect();
                        let factors = b.lanes(Scalar::F32, &bits);
                        x = b.mul(x, factors);
                    }
                    let place = here.times(b, 4).plus(row * self.k * 4).add(b, self.base);
                    b.store(at(self.numbers, place.index, place.fixed), 4 * u32::from(lanes), x);
                }
                sum
            };
            repeat(b, content.k / content.segment, 1, Vec::new(), |b, segment, _| {
                let first = segment.times(b, content.segment);
                let mut sum = Vec::new();
                if content.sum_factor.is_some() {
                    sum.push(b.f32(lanes, 0.0));
                }
                let turns = content.segment / period;
                if turns <= 4 {
                    for turn in 0..turns {
                        sum = part(b, first.plus(turn * period), sum);
                    }
                } else {
                    sum = repeat(b, turns, period, sum, |b, turn, sum| {
                        let column = first.add(b, turn);
                        part(b, column, sum)
                    });
                }
                if let (Some(memory), Some(factor), &[sum]) = (self.sums, content.sum_factor, &sum[..]) {
                    let total = across(b, BinOp::Add, sum);
                    let factor = b.f32(1, -factor);
                    let total = b.mul(total, factor);
                    let place = segment.times(b, 4).plus(row * self.segments * 4);
                    b.store(at(memory, place.index, place.fixed), 4, total);
                }
                Vec::new()
            });
        }
    }

    /// A number in every lane.
    pub fn number(&self, b: &mut Builder, row: usize, column: Pos) -> Value {
        let place = column.times(b, 4).plus(row * self.k * 4).add(b, self.base);
        let number = b.load(Scalar::F32, at(self.numbers, place.index, place.fixed), 4);
        b.splat(number, self.lanes)
    }

    /// Minus the sum of a segment, in every lane.
    ///
    /// # Panics
    /// If nobody wanted sums.
    pub fn minus_sum(&self, b: &mut Builder, row: usize, segment: Pos) -> Value {
        let memory = self.sums.expect("sums were asked for");
        let place = segment.times(b, 4).plus(row * self.segments * 4);
        let sum = b.load(Scalar::F32, at(memory, place.index, place.fixed), 4);
        b.splat(sum, self.lanes)
    }
}

/// Results or sums of a register tile that live in scratch, because registers are few.
pub(super) struct Kept {
    memory: Memory,
    scalar: Scalar,
    lanes: u8,
}

impl Kept {
    /// Scratch of a name for so many vectors of `f32`.
    pub fn declare(b: &mut Builder, name: &str, vectors: usize, lanes: u8) -> Kept {
        Kept { memory: b.shared(name, (vectors * lanes as usize * 4) as u32, 64), scalar: Scalar::F32, lanes }
    }

    /// The same for vectors of `i32`.
    pub fn integers(b: &mut Builder, name: &str, vectors: usize, lanes: u8) -> Kept {
        Kept { scalar: Scalar::I32, ..Kept::declare(b, name, vectors, lanes) }
    }

    fn align(&self) -> u32 {
        4 * u32::from(self.lanes)
    }

    /// Vector `i` from a place on, counted in vectors.
    pub fn load(&self, b: &mut Builder, from: Pos, i: usize) -> Value {
        let place = from.plus(i).times(b, self.align() as usize);
        b.load(Type::vector(self.scalar, self.lanes), at(self.memory, place.index, place.fixed), self.align())
    }

    /// The first `count` vectors from a place on.
    pub fn load_all(&self, b: &mut Builder, from: Pos, count: usize) -> Vec<Value> {
        (0..count).map(|i| self.load(b, from, i)).collect()
    }

    /// Writes the same value into the first `count` vectors from a place on.
    pub fn fill(&self, b: &mut Builder, from: Pos, count: usize, value: Value) {
        (0..count).for_each(|i| self.store(b, from, i, value));
    }

    /// Writes vector `i` from a place on.
    pub fn store(&self, b: &mut Builder, from: Pos, i: usize, value: Value) {
        let place = from.plus(i).times(b, self.align() as usize);
        b.store(at(self.memory, place.index, place.fixed), self.align(), value);
    }
}

/// The negative of a value, where there is one.
pub(super) fn negative(b: &mut Builder, value: Option<Value>) -> Option<Value> {
    value.map(|value| b.un(UnOp::Neg, value))
}
