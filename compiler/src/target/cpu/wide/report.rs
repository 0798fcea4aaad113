//! What the emitter made and what it cost, and which of it lies in loops.

use std::ops::RangeInclusive;

use super::machine::{Function, Inst, Label};

/// What the emitter made and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of instructions.
    pub code_bytes: usize,
    /// Bytes of constants behind them.
    pub constant_bytes: usize,
    /// Instructions.
    pub instructions: usize,
    /// Moves between registers that allocation added.
    pub moves: usize,
    /// Moves to and from the stack that allocation added.
    pub spills: usize,
    /// Those of [`Report::spills`] inside loops of the kernel that touch vectors or masks: what makes a schedule slow.
    pub vector_spills_in_loops: usize,
    /// Those of [`Report::vector_spills_in_loops`] in loops that have no loops in them, where almost all time goes.
    pub vector_spills_in_inner_loops: usize,
    /// Those of [`Report::spills`] inside loops of the kernel that touch general registers.
    pub general_spills_in_loops: usize,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} instructions in {} bytes, {} bytes of constants, {} moves, {} spills ({} vector, {} of them in inner loops, and {} \
             general in loops)",
            self.instructions,
            self.code_bytes,
            self.constant_bytes,
            self.moves,
            self.spills,
            self.vector_spills_in_loops,
            self.vector_spills_in_inner_loops,
            self.general_spills_in_loops
        )
    }
}

/// The places of the blocks of each loop, from where it starts to where it jumps back.
pub(super) fn loops_of(function: &Function, place_of: &[usize]) -> Vec<RangeInclusive<usize>> {
    let back = |(place, label): (usize, &Label)| match function.blocks[label.0 as usize].insts.last() {
        Some(Inst::Jump(to, _)) if place_of[to.0 as usize] <= place => Some(place_of[to.0 as usize]..=place),
        _ => None,
    };
    function.order.iter().enumerate().filter_map(back).collect()
}

/// Whether the block at a place is in a loop that has no loops in it.
pub(super) fn inner_of(loops: &[RangeInclusive<usize>], places: usize) -> Vec<bool> {
    let holds = |all: &RangeInclusive<usize>, one: &RangeInclusive<usize>| {
        all != one && all.contains(one.start()) && all.contains(one.end())
    };
    let mut inner = vec![false; places];
    for range in loops.iter().filter(|&range| !loops.iter().any(|other| holds(range, other))) {
        inner[range.clone()].fill(true);
    }
    inner
}
