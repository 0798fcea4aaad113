//! Walks over the columns of a packed row: segments, units, quads.
//!
//! A *segment* is a run of columns with one weight scale and one activation scale; a *unit* is what one word of the
//! narrowest plane holds; a *quad* is four neighbouring columns. Makes loops where lengths allow and straight code for
//! the rest: K is a constant, so every tail is known here and no kernel tests for one.

use super::memory::{split, times};
use crate::error::{Error, Result};
use crate::format::n16::{N16, gcd};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Value};

/// A position that is counted in something: a value known when the kernel runs plus a constant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pos {
    /// `i64`, if any.
    pub index: Option<Value>,
    /// The constant part.
    pub fixed: usize,
    /// What the value is always a multiple of.
    multiple: usize,
}

impl Pos {
    /// A constant position.
    pub fn fixed(fixed: usize) -> Pos {
        Pos { index: None, fixed, multiple: 0 }
    }

    /// The position that a value gives.
    pub fn of(index: Value) -> Pos {
        Pos { index: Some(index), fixed: 0, multiple: 1 }
    }

    /// The position that a value gives which is always a multiple of something.
    fn of_multiple(index: Value, multiple: usize) -> Pos {
        Pos { multiple, ..Pos::of(index) }
    }

    /// The position `n` further on.
    pub fn plus(self, n: usize) -> Pos {
        Pos { fixed: self.fixed + n, ..self }
    }

    /// The same place counted in things that are `by` times smaller.
    pub fn times(self, b: &mut Builder, by: usize) -> Pos {
        let index = self.index.map(|i| times(b, i, by));
        Pos { index, fixed: self.fixed * by, multiple: self.multiple * by }
    }

    /// The place counted in things that are `by` times larger, rounded down.
    pub fn divide(self, b: &mut Builder, by: usize) -> Pos {
        match self.index {
            _ if by == 1 => self,
            None => Pos::fixed(self.fixed / by),
            Some(index) if self.multiple.is_multiple_of(by) => {
                Pos { fixed: self.fixed / by, ..Pos::of_multiple(split(b, index, by).0, self.multiple / by) }
            }
            Some(index) => {
                // Below what divides both, the constant part changes nothing.
                let fixed = self.fixed - self.fixed % gcd(self.multiple, by);
                let sum = b.bin_imm(BinOp::Add, index, fixed as i64);
                Pos::of(split(b, sum, by).0)
            }
        }
    }

    /// What is left over when things that are `by` times larger, a power of two, are counted.
    pub fn remainder(self, b: &mut Builder, by: usize) -> Remainder {
        match self.index {
            Some(index) if !self.multiple.is_multiple_of(by) => {
                let sum = b.bin_imm(BinOp::Add, index, self.fixed as i64);
                let rest = b.bin_imm(BinOp::And, sum, by as i64 - 1);
                Remainder::Of(b.cast(CastOp::Truncate, rest, Scalar::I32))
            }
            _ => Remainder::Fixed(self.fixed % by),
        }
    }

    /// The sum of two positions.
    pub fn add(self, b: &mut Builder, other: Pos) -> Pos {
        let index = match (self.index, other.index) {
            (Some(x), Some(y)) => Some(b.add(x, y)),
            (x, y) => x.or(y),
        };
        Pos { index, fixed: self.fixed + other.fixed, multiple: gcd(self.multiple, other.multiple) }
    }
}

/// A remainder: known, or a value (`i32`).
pub(super) enum Remainder {
    /// A constant.
    Fixed(usize),
    /// A value.
    Of(Value),
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
    /// Whether a turn of the loop over segments takes as many of them as have `unroll` units; otherwise it takes one, or as
    /// few as start with a unit.
    several: bool,
}

/// Quads of one unit that belong to one segment.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The unit.
    pub unit: Pos,
    /// Column of the first quad.
    pub column: Pos,
    /// Quads from the start of the piece to the first quad.
    pub local: Pos,
    /// First quad within the unit.
    pub first: usize,
    /// Columns of each quad that the segment has: 4, or fewer in its last one.
    pub quads: Vec<usize>,
}

/// A segment, or a part of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The segment that it is, or lies in.
    pub segment: Pos,
    /// Its first column.
    pub column: Pos,
    unit: Pos,
    /// Quads from the start of `unit` to the first one.
    quad: usize,
    /// Columns.
    pub len: usize,
}

/// What is done for a piece: from a state to the next one.
pub(super) type OnPiece<'a> = dyn FnMut(&mut Builder, &Piece, Vec<Value>) -> Vec<Value> + 'a;

/// What is done in a turn of a loop.
pub(super) type OnTurn<'a> = dyn FnMut(&mut Builder, Pos, Vec<Value>) -> Vec<Value> + 'a;

/// Threads that share a walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    /// Which of them this is, `i64`.
    pub index: Value,
    /// How many there are.
    pub count: usize,
}

impl Split {
    /// Does something on one of the threads; the others keep the state as it was.
    pub fn one(
        &self,
        b: &mut Builder,
        which: usize,
        state: Vec<Value>,
        body: impl FnOnce(&mut Builder, Vec<Value>) -> Vec<Value>,
    ) -> Vec<Value> {
        let owner = b.int(Scalar::I64, (which % self.count) as i64);
        let mine = b.cmp(CmpOp::Eq, self.index, owner);
        let before = state.clone();
        b.if_else(mine, |b| body(b, state), |_| before)
    }
}

/// What is done at each place of a walk. Both kinds of state are values that loops carry.
pub(super) trait Visit {
    /// State at the start of a segment.
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value>;
    /// The state as steps take it, at the start of a turn of the loop over a segment: for visitors that keep it elsewhere.
    fn enter(&mut self, _b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        inner
    }
    /// The state as turns hand it on, at the end of a turn.
    fn leave(&mut self, _b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        inner
    }
    /// The state of the segment after some quads.
    fn step(&mut self, b: &mut Builder, segment: Pos, step: &Step, inner: Vec<Value>) -> Vec<Value>;
    /// Where several threads have shared a segment: its state from their states.
    fn merge(&mut self, _b: &mut Builder, inner: Vec<Value>) -> Vec<Value> {
        inner
    }
    /// The state of the whole walk after a segment.
    fn end(&mut self, b: &mut Builder, segment: Pos, inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value>;
}

impl Walk {
    /// The walk for a layout, cut into segments of `segment` columns. Segments of several groups are for visitors that look up the
    /// scales inside them.
    pub fn new(layout: &N16, segment: usize, unroll: usize) -> Result<Walk> {
        let (group, padded) = (layout.group, layout.padded_group);
        let stride = if segment == group || segment >= layout.k {
            padded
        } else if segment.is_multiple_of(4)
            && (layout.groups == 1
                || ((group.is_multiple_of(segment) || segment.is_multiple_of(group)) && padded == group))
        {
            segment
        } else {
            return Err(Error::Unsupported(format!(
                "activation groups of {segment} columns with weight groups of {group}: one must divide the other, in multiples of 4"
            )));
        };
        Ok(Walk { segment, k: layout.k, unit: layout.unit, stride: stride / 4, unroll: unroll.max(1), several: false })
    }

    /// The same, where a turn takes `unroll` units of several segments if one has fewer.
    pub fn across_segments(self) -> Walk {
        Walk { several: true, ..self }
    }

    /// A whole segment, where segments are whole units of a row without padding.
    pub fn whole(&self, b: &mut Builder, segment: Pos) -> Piece {
        let column = segment.times(b, self.segment);
        let unit = segment.times(b, self.segment / self.unit);
        Piece { segment, column, unit, quad: 0, len: self.segment }
    }

    /// Emits the walk. Returns the final state.
    pub fn emit(&self, b: &mut Builder, visit: &mut dyn Visit, outer: Vec<Value>) -> Vec<Value> {
        self.segments(b, None, outer, &mut |b, segment, outer| {
            let inner = visit.begin(b, segment.segment);
            let inner = self.piece(b, visit, segment, None, inner);
            visit.end(b, segment.segment, inner, outer)
        })
    }

    /// Whether threads that share the walk take whole segments, so that each one's final state is a part of the result.
    /// Otherwise they share each segment, and the state of thread 0 is the result.
    pub fn shares_segments(&self, threads: usize) -> bool {
        self.k / self.segment / self.period() >= threads
    }

    /// Emits the walk for threads that share it.
    pub fn emit_split(&self, b: &mut Builder, visit: &mut dyn Visit, split: &Split, outer: Vec<Value>) -> Vec<Value> {
        let whole = self.shares_segments(split.count);
        self.segments(b, whole.then_some(split), outer, &mut |b, segment, outer| {
            let mut inner = visit.begin(b, segment.segment);
            inner = self.piece(b, visit, segment, (!whole).then_some(split), inner);
            if !whole {
                inner = visit.merge(b, inner);
            }
            visit.end(b, segment.segment, inner, outer)
        })
    }

    /// Segments until the next one that starts with a unit.
    fn period(&self) -> usize {
        let per_unit = self.unit / 4;
        per_unit / gcd(per_unit, self.stride)
    }

    /// Does something for each segment; where threads share the walk, each takes some of them.
    pub fn segments(
        &self,
        b: &mut Builder,
        split: Option<&Split>,
        outer: Vec<Value>,
        body: &mut OnPiece<'_>,
    ) -> Vec<Value> {
        let full = self.k / self.segment;
        let rest = self.k % self.segment;
        let per_unit = self.unit / 4;
        let least = self.period();
        let most = if self.several { self.unroll * per_unit / (least * self.stride) } else { 1 };
        let period = least * most.clamp(1, (full / least).max(1));
        let loops = full / period;
        let piece = |b: &mut Builder, segment: Pos, unit: Pos, quad: usize, len: usize| {
            let column = segment.times(b, self.segment);
            Piece { segment, column, unit, quad, len }
        };
        let mut turn = |b: &mut Builder, turn: Pos, mut outer: Vec<Value>| {
            let base = turn.times(b, period);
            let unit = turn.times(b, period * self.stride / per_unit);
            for i in 0..period {
                let segment = piece(b, base.plus(i), unit, i * self.stride, self.segment);
                outer = body(b, &segment, outer);
            }
            outer
        };
        let mut outer = share(b, split, loops, 1, outer, &mut turn);
        for s in loops * period..full + usize::from(rest > 0) {
            let len = if s < full { self.segment } else { rest };
            let segment = piece(b, Pos::fixed(s), Pos::fixed(0), s * self.stride, len);
            outer = match split {
                Some(split) => split.one(b, s, outer, |b, outer| body(b, &segment, outer)),
                None => body(b, &segment, outer),
            };
        }
        outer
    }

    /// Does something for each part of a segment of about `columns` columns, all threads together.
    pub fn parts(
        &self,
        b: &mut Builder,
        segment: &Piece,
        columns: usize,
        state: Vec<Value>,
        body: &mut OnPiece<'_>,
    ) -> Vec<Value> {
        let columns = columns.next_multiple_of(self.unit);
        let part = |b: &mut Builder, turn: Pos, len: usize| {
            let (start, units) = (turn.times(b, columns), turn.times(b, columns / self.unit));
            Piece { column: segment.column.add(b, start), unit: segment.unit.add(b, units), len, ..*segment }
        };
        let full = segment.len / columns;
        let mut state = repeat(b, full, 1, state, |b, turn, state| {
            let part = part(b, turn, columns);
            body(b, &part, state)
        });
        if !segment.len.is_multiple_of(columns) {
            let part = part(b, Pos::fixed(full), segment.len % columns);
            state = body(b, &part, state);
        }
        state
    }

    /// The quads of a piece; where threads share it, each takes some of its units.
    pub fn piece(
        &self,
        b: &mut Builder,
        visit: &mut dyn Visit,
        piece: &Piece,
        split: Option<&Split>,
        mut inner: Vec<Value>,
    ) -> Vec<Value> {
        let per_unit = self.unit / 4;
        let &Piece { segment, column, unit, quad, len } = piece;
        let mut done = 0;
        if quad.is_multiple_of(per_unit) {
            let base = unit.plus(quad / per_unit);
            let turns = len / self.unit / self.unroll;
            let mut turn = |b: &mut Builder, turn: Pos, mut inner: Vec<Value>| {
                let unit = base.add(b, turn);
                let local = turn.times(b, per_unit);
                let columns = turn.times(b, self.unit);
                let column = column.add(b, columns);
                inner = visit.enter(b, inner);
                for i in 0..self.unroll {
                    let step = Step {
                        unit: unit.plus(i),
                        column: column.plus(i * self.unit),
                        local: local.plus(i * per_unit),
                        first: 0,
                        quads: vec![4; per_unit],
                    };
                    inner = visit.step(b, segment, &step, inner);
                }
                visit.leave(b, inner)
            };
            inner = share(b, split, turns, self.unroll, inner, &mut turn);
            done = turns * self.unroll * self.unit;
        }
        let mut tail = 0;
        let rest = done < len;
        if rest {
            inner = visit.enter(b, inner);
        }
        while done < len {
            let at = quad + done / 4;
            let first = at % per_unit;
            let mut quads = Vec::new();
            while first + quads.len() < per_unit && done + 4 * quads.len() < len {
                quads.push((len - done - 4 * quads.len()).min(4));
            }
            let columns = 4 * quads.len();
            let step = Step {
                unit: unit.plus(at / per_unit),
                column: column.plus(done),
                local: Pos::fixed(done / 4),
                first,
                quads,
            };
            inner = match split {
                Some(split) => split.one(b, tail, inner, |b, inner| visit.step(b, segment, &step, inner)),
                None => visit.step(b, segment, &step, inner),
            };
            done += columns;
            tail += 1;
        }
        if rest { visit.leave(b, inner) } else { inner }
    }
}

/// [`repeat`], or where threads share the turns, a loop over this thread's.
pub(super) fn share(
    b: &mut Builder,
    split: Option<&Split>,
    count: usize,
    step: usize,
    state: Vec<Value>,
    body: &mut OnTurn<'_>,
) -> Vec<Value> {
    match split {
        Some(split) if count > 0 => {
            let start = times(b, split.index, step);
            let end = b.int(Scalar::I64, (count * step) as i64);
            b.for_loop(start, end, (split.count * step) as i64, &state, |b, turn, state| {
                body(b, Pos::of_multiple(turn, step), state.to_vec())
            })
        }
        _ => repeat(b, count, step, state, body),
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
                body(b, Pos::of_multiple(turn, step), state.to_vec())
            })
        }
    }
}

/// Does something to a state for each of `count` places: in a loop of `step` at a time, and in straight code for the rest.
pub(super) fn each(
    b: &mut Builder,
    (count, step): (usize, usize),
    state: Vec<Value>,
    body: &dyn Fn(&mut Builder, Pos, &mut [Value]),
) -> Vec<Value> {
    let mut state = repeat(b, count / step, step, state, |b, turn, mut state| {
        (0..step).for_each(|i| body(b, turn.plus(i), &mut state));
        state
    });
    (count / step * step..count).for_each(|i| body(b, Pos::fixed(i), &mut state));
    state
}
