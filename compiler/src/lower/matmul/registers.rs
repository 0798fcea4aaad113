//! Vector registers that a tile of integer sums needs in its inner loop, so that the chooser takes none that spills.
//!
//! Counted from what the wide emitter makes of a step. `tests/tests/spills.rs` compiles what the chooser takes.

use super::has_dot;
use super::integer::by_vectors;
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::lower::unpack::Integers;

/// A tile in the streaming family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Rows of activations.
    pub rows: u32,
    /// Vectors of rows of W.
    pub vectors: u32,
    /// Columns of straight code.
    pub columns: usize,
    /// Columns of a segment.
    pub segment: usize,
    /// Whether two-bit codes are read without shifts.
    pub quarters: bool,
}

/// What a streaming tile of integer sums keeps in scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InScratch {
    /// Results, between segments.
    pub results: bool,
    /// Sums, between the turns of a segment.
    pub sums: bool,
}

/// What a streaming tile keeps in scratch; `None` if the rest alone does not fit.
pub(super) fn in_scratch(tile: &Tile, how: &Integers, layout: &N16, caps: &Caps) -> Option<InScratch> {
    let sums = tile.rows * tile.vectors;
    // Sums that a loop carries from turn to turn.
    let carried = if tile.columns < tile.segment { sums } else { 0 };
    let dot = has_dot(caps);
    let planes = layout.planes.len() as u32;
    let accumulators = match how.bits {
        _ if dot => sums * if sums <= 4 { 2 } else { 1 },
        _ if tile.quarters => 2 * (sums + carried),
        1..=4 => sums + carried,
        5..=7 => 2 * sums,
        _ => sums,
    };
    // Words, whose fields are used one after the other; activations or decoded bytes, whichever are fewer.
    let words = tile.vectors * planes * if tile.quarters { 2 } else { 1 };
    let operands = if tile.rows > tile.vectors { tile.vectors + 1 } else { tile.rows + 1 };
    let widened = if how.bits == 8 && !dot { 2 + 2 * tile.rows.min(2) } else { 0 };
    let table = u32::from(how.has_table());
    // A product, the masks that several fields share, what the end of a segment takes.
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    let spare = if dot { 3 } else { 5 } + table + (planes - 1) * (1 + tile.vectors) + shifted;
    // With many registers tiles are large, and so is what the end of a segment takes at once.
    let spare = spare + if caps.vector_registers > 16 { tile.vectors } else { 0 };
    let needed = accumulators + words + operands + widened + spare;
    if needed <= caps.vector_registers {
        return Some(InScratch { results: needed + sums > caps.vector_registers, sums: false });
    }
    if dot || caps.vector_registers != 16 {
        return None;
    }
    if fits_sixteen(tile, how, planes) {
        return Some(InScratch { results: true, sums: false });
    }
    fits_without_sums(tile, how, planes).then_some(InScratch { results: true, sums: carried > 0 })
}

/// Tiles that sixteen registers hold, though more values are alive than that: those that wait are few, and the emitter folds
/// their reads into the instructions that use them. Found by compiling every format with every tile.
fn fits_sixteen(tile: &Tile, how: &Integers, planes: u32) -> bool {
    let sums = tile.rows * tile.vectors;
    let size = (tile.rows as usize, tile.vectors as usize);
    let by_vectors = by_vectors(how, planes as usize, size, tile.segment.div_ceil(4));
    match how.bits {
        _ if tile.quarters => sums <= 2,
        8 if !how.has_table() => sums <= 8 && (tile.vectors <= 4 || tile.rows == 1),
        // Words of several planes wait beside the sums, unless short segments go vector by vector of weights.
        _ => sums <= 4 && (tile.vectors <= 2 || !how.has_table() && (planes == 1 || by_vectors)),
    }
}

/// Tiles that sixteen registers hold once sums of 32 bits wait in scratch between turns: a turn of codes that come out of one word
/// holds little but eight sums of 16 bits. The shorter the codes, the longer their words wait, and four do not fit; one row by eight
/// does, whose words do not wait ([`by_vectors`]). More than four sums always, since [`fits_sixteen`] comes first: so one partial sum
/// per sum, as sums in scratch need.
fn fits_without_sums(tile: &Tile, how: &Integers, planes: u32) -> bool {
    let one_word = how.bits <= 4 && !tile.quarters && !how.has_table() && planes == 1;
    let most_vectors = match how.bits {
        4 if tile.rows == 1 => 8,
        4 => 4,
        _ => 2,
    };
    one_word && tile.rows * tile.vectors <= 8 && tile.vectors <= most_vectors
}
