//! What queries and weights that become multiples of a step have in common, where one thread has vectors and takes four rows at a
//! time.

use super::super::{codes, int};
use super::factors::Factors;
use super::{Kernel, ROWS};
use crate::ir::{BinOp, Builder, Scalar, Value};

impl Kernel<'_> {
    /// Does something for all rows, four or fewer at a time: from the first of them on, and how many.
    pub(super) fn four_rows(&self, b: &mut Builder, body: &dyn Fn(&mut Builder, Value, usize)) {
        let (whole, rest) = (self.rows / ROWS * ROWS, self.rows % ROWS);
        if whole > 0 {
            let (zero, end) = (int(b, 0), int(b, whole));
            b.for_loop(zero, end, ROWS as i64, &[], |b, first, _| {
                body(b, first, ROWS);
                Vec::new()
            });
        }
        if rest > 0 {
            let first = int(b, whole);
            body(b, first, rest);
        }
    }

    /// Each of the first `count` lanes of the state of four rows, in all lanes.
    pub(super) fn of_rows(&self, b: &mut Builder, state: Value, count: usize) -> Vec<Value> {
        (0..count)
            .map(|row| {
                let value = b.extract(state, row as u8);
                b.splat(value, self.lanes)
            })
            .collect()
    }

    /// Numbers as multiples of a step: whole numbers in the low bits, and as floats where they are `summed`. What is lost goes
    /// to what is `carried` to the next ones of the same lanes, where something is.
    pub(super) fn rounded(
        &self,
        b: &mut Builder,
        (number, inverse): (Value, Value),
        carried: Option<&mut Value>,
        summed: bool,
    ) -> (Value, Option<Value>) {
        let shift = b.f32(self.lanes, codes::SHIFT);
        let (moved, multiple) = match carried {
            None => {
                let moved = b.fma(number, inverse, shift);
                (moved, summed.then(|| b.bin(BinOp::Sub, moved, shift)))
            }
            Some(carried) => {
                let exact = b.fma(number, inverse, *carried);
                let moved = b.add(exact, shift);
                let multiple = b.bin(BinOp::Sub, moved, shift);
                *carried = b.bin(BinOp::Sub, exact, multiple);
                (moved, summed.then_some(multiple))
            }
        };
        (b.bitcast(moved, b.ty(moved).with_scalar(Scalar::I32)), multiple)
    }

    /// Writes the factors of a chunk of numbers of some rows; that of the first row starts at number `index` of all.
    pub(super) fn write_factors(&self, b: &mut Builder, factors: &Factors, index: Value, numbers: &[Vec<Value>]) {
        let place = factors.packing.word_of(b, index);
        for (row, numbers) in numbers.iter().enumerate() {
            let word = factors.packing.joined(b, numbers);
            self.write(b, factors.memory, place, row * factors.packing.words(1), word);
        }
    }
}
