//! Weights of a span on their way into scratch.

use super::super::super::tile::Scratch;
use super::{RAISE, Scaled};
use crate::ir::{BinOp, Builder, Value};
use crate::lower::unpack::Weights;
use crate::lower::walk::{Pos, Step, Visit, repeat};

/// Decodes every quad of a span into scratch, with the inner scales and offsets of its groups. The state of a span is what raised
/// activations add to its sums.
pub(super) struct Decode<'a> {
    pub weights: &'a Weights<'a>,
    pub scaled: &'a Scaled<'a>,
    /// Lines of the weights of this span.
    pub scratch: Scratch,
    /// Which span of the block this is.
    pub turn: Pos,
}

impl Decode<'_> {
    /// Groups of a span.
    fn groups(&self) -> usize {
        self.scaled.span.columns / self.weights.layout.group
    }

    fn vectors(&self) -> usize {
        self.scaled.plan.vectors
    }
}

impl Visit for Decode<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let groups = self.groups();
        let (first, first_line) = (segment.times(b, groups), self.turn.times(b, groups));
        repeat(b, groups, 1, Vec::new(), |b, turn, none| {
            let (group, line) = (first.add(b, turn), first_line.add(b, turn));
            for v in 0..self.vectors() {
                let scale = self.weights.inner_scale(b, group, v);
                self.scaled.scales.store(b, scale, line, v);
            }
            none
        });
        if let Some(offsets) = &self.scaled.offsets {
            let first_line = self.turn.times(b, groups / 2);
            repeat(b, groups / 2, 1, Vec::new(), |b, turn, none| {
                let line = first_line.add(b, turn);
                let group = turn.times(b, 2).add(b, first);
                for v in 0..self.vectors() {
                    let inner = self.weights.inner_offsets(b, group, v);
                    offsets.inner.store(b, inner, line, v);
                }
                none
            });
        }
        if !self.scaled.span.raised {
            return Vec::new();
        }
        vec![b.int(self.scaled.sums(), 0); self.vectors()]
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, mut state: Vec<Value>) -> Vec<Value> {
        let (scaled, group) = (self.scaled, self.weights.layout.group);
        let first_line = self.turn.times(b, self.groups());
        let raise = b.int(scaled.bytes(), RAISE);
        for v in 0..self.vectors() {
            // Quads of one group, as many as 16 bits hold; a unit is whole groups or lies in one.
            let mut first = 0;
            while first < step.quads.len() {
                let rest = step.quads.len().min(first / (group / 4) * (group / 4) + group / 4) - first;
                let together = rest.min(scaled.span.quads);
                let mut pairs = b.int(scaled.words(), 0);
                for i in first..first + together {
                    let words = self.weights.words(b, step.unit, step.first + i, v);
                    let mut bytes = self.weights.bytes(b, scaled.how, &words);
                    if scaled.span.raised {
                        bytes = b.bin_imm(BinOp::Sub, bytes, i64::from(scaled.how.offset));
                    }
                    self.scratch.store(b, bytes, step.local.plus(i), v);
                    if scaled.span.raised {
                        pairs = b.dot2(raise, bytes, pairs);
                    }
                }
                first += together;
                let Some(raised) = state.get_mut(v) else { continue };
                let line = step.local.plus(first - together).times(b, 4).divide(b, group).add(b, first_line);
                let scale = scaled.scales.load(b, scaled.words(), line, v);
                *raised = b.dot2(pairs, scale, *raised);
            }
        }
        state
    }

    fn end(&mut self, b: &mut Builder, _segment: Pos, inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        let Some(starts) = &self.scaled.starts else { return outer };
        let nothing = b.int(self.scaled.sums(), 0);
        for (v, &raised) in inner.iter().enumerate() {
            let start = b.bin(BinOp::Sub, nothing, raised);
            starts.store(b, start, self.turn, v);
        }
        outer
    }
}
