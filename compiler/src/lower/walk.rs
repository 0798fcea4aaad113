//! Walks over the columns of a packed row: segments, units, quads.
//!
//! A *segment* is a run of columns with one weight scale and one activation scale; a *unit* is what one word of the
//! narrowest plane holds; a *quad* is four neighbouring columns. Makes loops where lengths allow and straight code for
//! the rest: K is a constant, so every tail is known here and no kernel tests for one.

use super::memory::{split, times};
use crate::error::{Error, Result};
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Scalar, Value};

/// A position that is counted in something: a value known when the kernel runs plus a constant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pos {
    /// `i64`, if any.
    pub index: Option<Value>,
    /// The constant part.
    pub fixed: usize,
}

impl Pos {
    /// A constant position.
    pub fn fixed(fixed: usize) -> Pos {
        Pos { index: None, fixed }
    }

    /// The position `n` further on.
    pub fn plus(self, n: usize) -> Pos {
        Pos { fixed: self.fixed + n, ..self }
    }

    /// The same place counted in things that are `by` times smaller.
    pub fn times(self, b: &mut Builder, by: usize) -> Pos {
        let index = self.index.map(|i| times(b, i, by));
        Pos { index, fixed: self.fixed * by }
    }

    /// The place counted in things that are `by` times larger, rounded down.
    pub fn divide(self, b: &mut Builder, by: usize) -> Pos {
        match self.index {
            _ if by == 1 => self,
            None => Pos::fixed(self.fixed / by),
            Some(index) => {
                let sum = b.bin_imm(BinOp::Add, index, self.fixed as i64);
                Pos { index: Some(split(b, sum, by).0), fixed: 0 }
            }
        }
    }

    /// The sum of two positions.
    pub fn add(self, b: &mut Builder, other: Pos) -> Pos {
        let index = match (self.index, other.index) {
            (Some(x), Some(y)) => Some(b.add(x, y)),
            (x, y) => x.or(y),
        };
        Pos { index, fixed: self.fixed + other.fixed }
    }
}

/// How a row of K columns is cut.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Columns of a full segment.
    pub segment: usize,
    k: usize,
    unit: usize,
    /// Quads of the padded row from one segment to the next.
    stride: usize,
    unroll: usize,
}

/// Quads of one unit that belong to one segment.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The unit.
    pub unit: Pos,
    /// Column of the first quad.
    pub column: Pos,
    /// First quad within the unit.
    pub first: usize,
    /// Columns of each quad that the segment has: 4, or fewer in its last one.
    pub quads: Vec<usize>,
}

/// What is done at each place of a walk. Both kinds of state are values that loops carry.
pub(super) trait Visit {
    /// State at the start of a segment.
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value>;
    /// The state of the segment after some quads.
    fn step(&mut self, b: &mut Builder, segment: Pos, step: &Step, inner: Vec<Value>) -> Vec<Value>;
    /// The state of the whole walk after a segment.
    fn end(&mut self, b: &mut Builder, segment: Pos, inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value>;
}

impl Walk {
    /// The walk for a layout, cut into segments of `segment` columns.
    pub fn new(layout: &N16, segment: usize, unroll: usize) -> Result<Walk> {
        let (group, padded) = (layout.group, layout.padded_group);
        let stride = if segment == group || segment >= layout.k {
            padded
        } else if segment.is_multiple_of(4) && (layout.groups == 1 || (group % segment == 0 && padded == group)) {
            segment
        } else {
            return Err(Error::Unsupported(format!(
                "activation groups of {segment} columns with weight groups of {group}: one must divide the other, in multiples of 4"
            )));
        };
        Ok(Walk { segment, k: layout.k, unit: layout.unit, stride: stride / 4, unroll: unroll.max(1) })
    }

    /// Emits the walk. Returns the final state.
    pub fn emit(&self, b: &mut Builder, visit: &mut dyn Visit, outer: Vec<Value>) -> Vec<Value> {
        let full = self.k / self.segment;
        let rest = self.k % self.segment;
        // Segments until the next one that starts with a unit.
        let per_unit = self.unit / 4;
        let period = (1..=per_unit).find(|p| (p * self.stride).is_multiple_of(per_unit)).expect("p = per_unit divides");
        let loops = full / period;
        let mut outer = repeat(b, loops, 1, outer, |b, turn, mut outer| {
            let base = turn.times(b, period);
            let unit = turn.times(b, period * self.stride / per_unit);
            for i in 0..period {
                outer = self.segment(b, visit, base.plus(i), unit, i * self.stride, self.segment, outer);
            }
            outer
        });
        for s in loops * period..full {
            outer = self.segment(b, visit, Pos::fixed(s), Pos::fixed(0), s * self.stride, self.segment, outer);
        }
        if rest > 0 {
            outer = self.segment(b, visit, Pos::fixed(full), Pos::fixed(0), full * self.stride, rest, outer);
        }
        outer
    }

    /// One segment of `len` columns, which starts `quad` quads after unit `unit`.
    #[allow(clippy::too_many_arguments)]
    fn segment(
        &self,
        b: &mut Builder,
        visit: &mut dyn Visit,
        segment: Pos,
        unit: Pos,
        quad: usize,
        len: usize,
        outer: Vec<Value>,
    ) -> Vec<Value> {
        let per_unit = self.unit / 4;
        let column = segment.times(b, self.segment);
        let mut inner = visit.begin(b, segment);
        let mut done = 0;
        if quad.is_multiple_of(per_unit) {
            let base = unit.plus(quad / per_unit);
            let units = len / self.unit;
            let turns = units / self.unroll;
            inner = repeat(b, turns, self.unroll, inner, |b, turn, mut inner| {
                let unit = base.add(b, turn);
                let columns = turn.times(b, self.unit);
                let column = column.add(b, columns);
                for i in 0..self.unroll {
                    let step = Step {
                        unit: unit.plus(i),
                        column: column.plus(i * self.unit),
                        first: 0,
                        quads: vec![4; per_unit],
                    };
                    inner = visit.step(b, segment, &step, inner);
                }
                inner
            });
            done = turns * self.unroll * self.unit;
        }
        while done < len {
            let at = quad + done / 4;
            let first = at % per_unit;
            let mut quads = Vec::new();
            while first + quads.len() < per_unit && done + 4 * quads.len() < len {
                quads.push((len - done - 4 * quads.len()).min(4));
            }
            let columns = 4 * quads.len();
            let step = Step { unit: unit.plus(at / per_unit), column: column.plus(done), first, quads };
            inner = visit.step(b, segment, &step, inner);
            done += columns;
        }
        visit.end(b, segment, inner, outer)
    }
}

/// Does something `count` times: not at all, once in straight code, or in a loop whose counter advances by `step`.
pub(super) fn repeat(
    b: &mut Builder,
    count: usize,
    step: usize,
    state: Vec<Value>,
    body: impl FnOnce(&mut Builder, Pos, Vec<Value>) -> Vec<Value>,
) -> Vec<Value> {
    match count {
        0 => state,
        1 => body(b, Pos::fixed(0), state),
        _ => {
            let start = b.int(Scalar::I64, 0);
            let end = b.int(Scalar::I64, (count * step) as i64);
            b.for_loop(start, end, step as i64, &state, |b, turn, state| {
                body(b, Pos { index: Some(turn), fixed: 0 }, state.to_vec())
            })
        }
    }
}
