//! Teams: threads of a workgroup that share the columns of a row, and how what they hold becomes one number.
//!
//! Thread `slice * rows + row` belongs to row `row`, so that neighbours in a subgroup read neighbouring rows. Nothing
//! here knows how wide a subgroup is: partial results meet in shared memory, pairwise and in a fixed order.

use super::memory::{at, times};
use super::walk::Split;
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Value};

/// Most values that meet at a time; it bounds the shared memory.
const BATCH: usize = 4;

/// The threads of a workgroup as rows times slices.
pub(super) struct Team {
    /// Where partial results meet, if they do.
    memory: Option<Memory>,
    /// Values that meet at a time.
    batch: usize,
    rows: usize,
    slices: usize,
    /// Bytes of a value's place.
    size: usize,
    /// Row of this thread in the workgroup, `i64`.
    pub row: Value,
    /// Slice of this thread, `i32`.
    slice: Value,
    /// Bool: whether the slice is 0.
    pub leader: Value,
    /// Byte of this thread's place in shared memory, `i32`.
    place: Value,
}

impl Team {
    /// Makes the workgroup of `slices` subgroups: a lane is a row, and holds `values` values of up to `size` bytes.
    pub fn of_subgroups(b: &mut Builder, lanes: u32, slices: u32, size: u32, values: usize) -> Team {
        b.workgroup(lanes * slices, 1, 1);
        let batch = BATCH.min(values).max(1);
        let memory = (slices > 1).then(|| b.shared("partial", batch as u32 * lanes * slices * size, size.max(16)));
        // These two are known to be the same over a subgroup, which a number made of the thread's index is not.
        let (lane, slice) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
        let row = b.cast(CastOp::ExtendS, lane, Scalar::I64);
        let zero = b.int(Scalar::I32, 0);
        let leader = b.cmp(CmpOp::Eq, slice, zero);
        let before = times(b, slice, lanes as usize);
        let id = b.add(before, lane);
        let place = times(b, id, size as usize);
        Team {
            memory,
            batch,
            rows: lanes as usize,
            slices: slices as usize,
            size: size as usize,
            row,
            slice,
            leader,
            place,
        }
    }

    /// Makes the workgroup: `rows` times `slices` threads, both powers of two.
    pub fn new(b: &mut Builder, rows: u32, slices: u32) -> Team {
        let memory = b.shared("partial", BATCH as u32 * rows * slices * 4, 16);
        Team { memory: Some(memory), ..Team::apart(b, rows, slices) }
    }

    /// The same for threads that never combine what they hold.
    pub fn apart(b: &mut Builder, rows: u32, slices: u32) -> Team {
        b.workgroup(rows * slices, 1, 1);
        let id = b.builtin(Builtin::LocalId(0));
        let row = b.bin_imm(BinOp::And, id, rows as i64 - 1);
        let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
        let slice = b.bin_imm(BinOp::ShrU, id, rows.trailing_zeros() as i64);
        let zero = b.int(Scalar::I32, 0);
        let leader = b.cmp(CmpOp::Eq, slice, zero);
        let place = times(b, id, 4);
        Team {
            memory: None,
            batch: BATCH,
            rows: rows as usize,
            slices: slices as usize,
            size: 4,
            row,
            slice,
            leader,
            place,
        }
    }

    /// Does something on the slice of a number, counted around.
    pub fn on_slice(&self, b: &mut Builder, number: usize, body: impl FnOnce(&mut Builder)) {
        let which = b.int(Scalar::I32, (number % self.slices) as i64);
        let mine = b.cmp(CmpOp::Eq, self.slice, which);
        b.if_then(mine, body);
    }

    /// This thread's share of a walk.
    pub fn split(&self, b: &mut Builder) -> Split {
        Split { index: b.cast(CastOp::ExtendS, self.slice, Scalar::I64), count: self.slices }
    }

    /// Each value combined over the threads of the row; all of them get it. All threads must come here.
    pub fn combine(&self, b: &mut Builder, op: BinOp, values: &[Value]) -> Vec<Value> {
        let Some(memory) = self.memory.filter(|_| self.slices > 1) else { return values.to_vec() };
        let stride = self.rows * self.slices * self.size;
        let mut combined = Vec::with_capacity(values.len());
        for batch in values.chunks(self.batch) {
            for (i, &value) in batch.iter().enumerate() {
                b.store(at(memory, Some(self.place), i * stride), b.ty(value).bytes(), value);
            }
            b.barrier();
            let mut distance = self.slices / 2;
            while distance > 0 {
                let limit = b.int(Scalar::I32, distance as i64);
                let lower = b.cmp(CmpOp::LtS, self.slice, limit);
                b.if_then(lower, |b| {
                    for (i, &value) in batch.iter().enumerate() {
                        let (ty, here) = (b.ty(value), i * stride);
                        let align = ty.bytes();
                        let own = b.load(ty, at(memory, Some(self.place), here), align);
                        let there = here + distance * self.rows * self.size;
                        let other = b.load(ty, at(memory, Some(self.place), there), align);
                        let both = b.bin(op, own, other);
                        b.store(at(memory, Some(self.place), here), align, both);
                    }
                });
                b.barrier();
                distance /= 2;
            }
            let first = b.cast(CastOp::Truncate, self.row, Scalar::I32);
            let first = times(b, first, self.size);
            for (i, &value) in batch.iter().enumerate() {
                let ty = b.ty(value);
                combined.push(b.load(ty, at(memory, Some(first), i * stride), ty.bytes()));
            }
            b.barrier();
        }
        combined
    }
}
