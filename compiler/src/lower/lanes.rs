//! How the lanes of a matrix instruction find their fragments in QT16: an instruction's lane map as moves of bits.
//!
//! Reads the [`LaneMap`](crate::caps::LaneMap) of an instruction with 16 rows of A, makes the places of a lane as bits of
//! its number. Lanes either hold one row of A in each register, or rows `g` and `g + 8` in turn:
//!
//! ```text
//! m16n8, 32 lanes     a lane holds both halves of its 16 bytes      a block is one tile of 16 rows, one fragment
//! 16x16, 64 or 32     a lane holds one row per fragment             a block is two tiles, and two fragments: rows g of both
//!                                                                   tiles, then rows g + 8
//! ```
//!
//! Where four lanes share a row of A, each holds what QT16 keeps for one `t`; where two do, each holds that of two.
//!
//! Always holds: which row of the instruction a row of W becomes is free, and so is which place in K a column becomes, if A
//! and B agree. Rows are matched so that those whose sums one lane holds are neighbours in W.

use crate::caps::MmaShape;
use crate::format::qt16::LaneOrder;
use crate::ir::{BinOp, Builder, Value};
use crate::layout::{Bit, Dim, Layout};
use crate::lower::memory::times;

/// An instruction as QT16 sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::lower) struct Lanes {
    /// The instruction.
    pub shape: &'static MmaShape,
    /// How lanes are numbered where it wants its weights.
    pub order: LaneOrder,
    /// Values of `t` whose bytes a lane holds: 1 or 2.
    pub own: usize,
    /// Fragments of A in a block: 1 or 2.
    pub fragments: usize,
    /// Sums of a lane that stand side by side, belong to neighbouring rows of W and to one row of X.
    pub run: usize,
    /// Which bit of a row of W in its block a bit of the instruction's row is.
    rows: [u8; 4],
}

/// Bits of a lane's number that are bits of something else: from, to.
type Moves = Vec<(u8, u8)>;

/// Bits of the lane in a map of `elements` elements per lane, with their numbers.
fn lane_bits(map: &Layout, elements: u32) -> impl Iterator<Item = (u8, Bit)> {
    let low = elements.trailing_zeros() as usize;
    map.bits()[low..].iter().enumerate().map(|(number, &bit)| (number as u8, bit))
}

fn element_bits(map: &Layout, elements: u32) -> Vec<Bit> {
    map.bits()[..elements.trailing_zeros() as usize].to_vec()
}

impl Lanes {
    /// The instruction's lanes; `None` if QT16 does not serve it.
    pub fn of(shape: &'static MmaShape) -> Option<Lanes> {
        let map = shape.map.as_ref().filter(|_| shape.m == 16)?;
        let lanes = |dim: Dim| lane_bits(&map.a, shape.a_elements()).filter(move |(_, bit)| bit.dim == dim);
        let own = 4usize.checked_shr(lanes(Dim::Column).count() as u32).filter(|own| (1..=2).contains(own))?;
        let order = if lanes(Dim::Row).next()?.0 == 0 { LaneOrder::Tg } else { LaneOrder::Gt };
        let sums = element_bits(&map.acc, shape.acc_elements());
        let (fragments, rows) = match lanes(Dim::Row).count() {
            // Rows g in lanes, g + 8 beside it.
            3 => (1, [0, 1, 2, 3]),
            4 => {
                let held = sums.iter().copied().chain(lane_bits(&map.acc, shape.acc_elements()).map(|(_, bit)| bit));
                let mut rows = [0; 4];
                for (bit, to) in held.filter(|bit| bit.dim == Dim::Row).zip([0, 1, 2, 4]) {
                    rows[bit.index as usize] = to;
                }
                (2, rows)
            }
            _ => return None,
        };
        let neighbours =
            |(number, bit): &(usize, &Bit)| bit.dim == Dim::Row && rows[bit.index as usize] == *number as u8;
        let run = 1 << sums.iter().enumerate().take_while(neighbours).count();
        // Families take the sums of a fragment one by one, or as one vector.
        let wanted = if fragments == 1 { 1 } else { shape.acc_elements() as usize };
        if run != wanted {
            return None;
        }
        Some(Lanes { shape, order, own, fragments, run, rows })
    }

    /// Rows of W in a block.
    pub fn block_rows(&self) -> usize {
        16 * self.fragments
    }

    /// Rows of X whose sums a lane holds.
    pub fn columns(&self) -> usize {
        let sums = element_bits(&self.shape.acc_map(), self.shape.acc_elements());
        1 << sums.iter().filter(|bit| bit.dim == Dim::Column).count()
    }

    /// 32-bit registers of B that an instruction takes.
    pub fn registers(&self) -> usize {
        (self.shape.b_elements() * self.shape.b.bits() / 32) as usize
    }

    /// Where element `element` of a fragment's sums belongs, beyond its lane's own place: row of W in the block, row of X.
    pub fn place(&self, fragment: usize, element: usize) -> (usize, usize) {
        let (mut row, mut column) = (8 * fragment, 0);
        for (number, bit) in element_bits(&self.shape.acc_map(), self.shape.acc_elements()).into_iter().enumerate() {
            let set = element >> number & 1;
            match bit.dim {
                Dim::Row => row += set << self.rows[bit.index as usize],
                _ => column += set << bit.index,
            }
        }
        (row, column)
    }

    /// The row of W in its block that a lane holds of A.
    pub fn row_of_a(&self) -> Moves {
        let map = self.shape.a_map();
        lane_bits(&map, self.shape.a_elements())
            .filter(|(_, bit)| bit.dim == Dim::Row)
            .map(|(number, bit)| (number, self.rows[bit.index as usize]))
            .collect()
    }

    /// The first row of W in its block whose sums a lane holds.
    pub fn row_of_sums(&self) -> Moves {
        lane_bits(&self.shape.acc_map(), self.shape.acc_elements())
            .filter(|(_, bit)| bit.dim == Dim::Row)
            .map(|(number, bit)| (number, self.rows[bit.index as usize]))
            .collect()
    }

    /// The first row of X, in a tile of them, whose sums a lane holds.
    pub fn column_of_sums(&self) -> Moves {
        lane_bits(&self.shape.acc_map(), self.shape.acc_elements())
            .filter(|(_, bit)| bit.dim == Dim::Column)
            .map(|(number, bit)| (number, bit.index))
            .collect()
    }

    /// The row of X, in a tile of them, that a lane holds of B.
    pub fn column_of_b(&self) -> Moves {
        lane_bits(&self.shape.b_map(), self.shape.b_elements())
            .filter(|(_, bit)| bit.dim == Dim::Column)
            .map(|(number, bit)| (number, bit.index))
            .collect()
    }

    /// The first `t` that a lane holds, of A as of B.
    pub fn t(&self) -> Moves {
        let first = self.own.trailing_zeros() as u8;
        lane_bits(&self.shape.b_map(), self.shape.b_elements())
            .filter(|(_, bit)| bit.dim == Dim::Row)
            .zip(first..)
            .map(|((number, _), to)| (number, to))
            .collect()
    }
}

/// Moves whose targets a layout of one dimension moves on.
pub(in crate::lower) fn through(moves: Moves, layout: &Layout) -> Moves {
    let place = |to: u8| layout.bits().iter().position(|bit| bit.index == to).map(|place| place as u8);
    moves.into_iter().filter_map(|(from, to)| Some((from, place(to)?))).collect()
}

/// Moves whose targets are `by` bits higher.
pub(in crate::lower) fn higher(moves: Moves, by: u8) -> Moves {
    moves.into_iter().map(|(from, to)| (from, to + by)).collect()
}

/// The number whose bits are bits of `value`, which has `bits` bits: neighbours that stay neighbours move together.
pub(in crate::lower) fn gather(b: &mut Builder, value: Value, bits: u8, mut moves: Moves) -> Value {
    moves.sort_unstable();
    let mut parts: Vec<Value> = Vec::new();
    for run in moves.chunk_by(|&(from, to), &(next, next_to)| next == from + 1 && next_to == to + 1) {
        let ((from, to), count) = (run[0], run.len() as u8);
        let mut part = if from == 0 { value } else { b.bin_imm(BinOp::ShrU, value, from as i64) };
        if from + count < bits {
            part = b.bin_imm(BinOp::And, part, (1 << count) - 1);
        }
        parts.push(times(b, part, 1 << to));
    }
    let nothing = b.ty(value);
    parts.into_iter().reduce(|sum, part| b.add(sum, part)).unwrap_or_else(|| b.int(nothing, 0))
}
