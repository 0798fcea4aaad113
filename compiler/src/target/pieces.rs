//! What emitters without wide vectors note of a value: the pieces of up to 4 lanes that hold it.
//!
//! Always holds: a value of up to 4 lanes is one piece; a wider one has `lanes / 4` pieces, lane 0 first.

use crate::ir::{Kernel, Type, Value};

/// Lanes of one piece.
pub(super) fn piece_lanes(ty: Type) -> u8 {
    ty.lanes.min(4)
}

/// Number of pieces.
pub(super) fn piece_count(ty: Type) -> usize {
    (ty.lanes / piece_lanes(ty)) as usize
}

/// The pieces of every value that was emitted.
pub(super) struct Definitions<Piece>(Vec<Vec<Piece>>);

impl<Piece: Clone> Definitions<Piece> {
    /// Of a kernel of which nothing was emitted.
    pub fn new(kernel: &Kernel) -> Definitions<Piece> {
        Definitions(vec![Vec::new(); kernel.types.len()])
    }

    /// The pieces of a value.
    pub fn get(&self, value: Value) -> Vec<Piece> {
        self.0[value.0 as usize].clone()
    }

    /// The one piece of a scalar.
    pub fn one(&self, value: Value) -> Piece {
        self.0[value.0 as usize][0].clone()
    }

    /// Notes the pieces of a value.
    pub fn set(&mut self, value: Value, pieces: Vec<Piece>) {
        self.0[value.0 as usize] = pieces;
    }
}
