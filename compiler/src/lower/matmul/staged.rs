//! Float sums for few rows: integer codes are converted where they stand in their words, activations carry
//! what takes that back, and fixed offsets and zero points are paid once per group, by sums of activations.

use super::{Tile, integers_of};
use crate::caps::Caps;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, Type, Value};
use crate::lower::stage::{Content, Kept, Staged, negative};
use crate::lower::unpack::fields::{CENTER, Fields};
use crate::lower::walk::{Pos, Step, Visit};
use crate::op::Matmul;

/// How a register tile of a matmul with float activations is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Partial sums per sum, taken in turn by column.
    pub chains: usize,
    /// Whether results live in scratch between segments.
    pub in_scratch: bool,
}

/// Columns after which the factors of activations repeat.
fn period(layout: &N16, lanes: usize) -> usize {
    layout.unit.max(lanes)
}

/// How codes are read, where vectors are wide and groups are whole periods; else [`super::float`] serves.
pub(super) fn fields(op: &Matmul, layout: &N16, caps: &Caps) -> Option<Fields> {
    let lanes = (caps.vector_bytes / 4).min(16) as usize;
    let whole = layout.k.is_multiple_of(op.segment())
        && op.segment().is_multiple_of(period(layout, lanes))
        && layout.padded_group == layout.group;
    // Eight rows of activations in half of the scratch.
    let fits = layout.k <= caps.max_shared_bytes as usize / 64;
    let wide = fits && caps.vector_bytes >= 32 && integers_of(op, layout, caps).is_none();
    (whole && wide).then(|| Fields::of(layout))
}

/// The shape of a tile of `rows` by `vectors` with so many vector registers; `None` if it cannot be held.
///
/// A multiply-add waits four cycles for the one before it and two start in a cycle, so eight should be under way (one tile of a
/// single vector reads int4 with groups of 128 at 36 GB/s per thread of Zen 5 then, and at 31 with four).
pub(super) fn shape(rows: usize, vectors: usize, layout: &N16, registers: usize) -> Option<Shape> {
    let sums = rows * vectors;
    // Words of each vector, an activation per row, a field and its conversion, or what decoding takes.
    let planes = layout.planes.len();
    let words = vectors * if planes > 1 { planes + 1 } else { 1 };
    let others = words + rows + if Fields::of(layout).integers { 2 } else { 9 } + 2 * (planes - 1);
    let wanted = [8, 4, 2, 1].into_iter().find(|chains| sums * chains <= 8.max(sums))?;
    let chains = (1..=wanted).rev().find(|chains| sums * chains + others <= registers)?;
    Some(Shape { chains, in_scratch: sums * (chains + 1) + others > registers })
}

/// What is made ready of the activations.
pub(super) fn content<'a>(op: &Matmul, layout: &N16, fields: &Fields, factors: &'a [f32]) -> Content<'a> {
    let wanted =
        fields.offset != 0 || matches!(layout.format.zero, Zero::Int(_) | Zero::Float(_) | Zero::Offset { .. });
    Content { k: op.k, segment: op.segment(), factors, sum_factor: wanted.then_some(CENTER) }
}

/// The factors of a period.
pub(super) fn factors(layout: &N16, fields: &Fields, lanes: u8) -> Vec<f32> {
    fields.factors(layout, period(layout, lanes as usize))
}

/// Visits a walk. Inner state: `f32` sums `[chain][row][vector]`; outer state: results `[row][vector]`, or nothing where
/// they live in scratch. All of them are [`CENTER`] times what they stand for.
pub(super) struct StagedSums<'a> {
    /// The tile.
    pub tile: &'a Tile<'a>,
    /// The activations.
    pub staged: &'a Staged,
    /// How codes are read.
    pub fields: Fields,
    /// Partial sums per sum.
    pub chains: usize,
    /// Where results live, if not in registers.
    pub kept: Option<&'a Kept>,
    /// Columns per segment.
    pub segment: usize,
}

impl Visit for StagedSums<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let column = segment.times(b, self.segment);
        let group = column.divide(b, weights.layout.group);
        let nothing = b.f32(weights.lanes, 0.0);
        let mut state = vec![nothing; self.chains * self.tile.sums()];
        let zeros: Vec<Option<Value>> = (0..*vectors).map(|v| weights.float_zero(b, group, v)).collect();
        let fixed = self.fields.offset;
        for row in 0..rows.count() {
            if fixed == 0 && zeros.iter().all(Option::is_none) {
                break;
            }
            let sum = self.staged.minus_sum(b, row, segment);
            for (v, &zero) in zeros.iter().enumerate() {
                let fixed = b.f32(weights.lanes, fixed as f32);
                let taken = zero.map_or(fixed, |zero| b.add(zero, fixed));
                state[row * vectors + v] = b.mul(sum, taken);
            }
        }
        state
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, mut state: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let sums = self.tile.sums();
        for (i, &valid) in step.quads.iter().enumerate() {
            let words: Vec<_> = (0..*vectors).map(|v| weights.words(b, step.unit, step.first + i, v)).collect();
            let joined: Vec<_> = match self.fields.integers {
                true => words.iter().map(|words| weights.quad_word(b, words)).collect(),
                false => Vec::new(),
            };
            for byte in 0..valid {
                let column = step.column.plus(4 * i + byte);
                let x: Vec<Value> = (0..rows.count()).map(|row| self.staged.number(b, row, column)).collect();
                for (v, words) in words.iter().enumerate() {
                    let w = match joined.get(v) {
                        Some(&word) => weights.field(b, word, byte),
                        None => weights.floats(b, words, byte),
                    };
                    for (row, &x) in x.iter().enumerate() {
                        let sum = &mut state[(4 * i + byte) % self.chains * sums + row * vectors + v];
                        *sum = b.fma(w, x, *sum);
                    }
                }
            }
        }
        state
    }

    fn end(&mut self, b: &mut Builder, segment: Pos, state: Vec<Value>, mut outer: Vec<Value>) -> Vec<Value> {
        let Tile { weights, rows, vectors, .. } = self.tile;
        let column = segment.times(b, self.segment);
        let group = column.divide(b, weights.layout.group);
        let (mut sums, others) = {
            let (first, others) = state.split_at(self.tile.sums());
            (first.to_vec(), others.to_vec())
        };
        for chain in others.chunks(self.tile.sums()) {
            for (sum, &part) in sums.iter_mut().zip(chain) {
                *sum = b.add(*sum, part);
            }
        }
        for v in 0..*vectors {
            let scale = weights.scale(b, group, v);
            let offset = weights.offset(b, group, v);
            let offset = negative(b, offset);
            for row in 0..rows.count() {
                let at = row * vectors + v;
                let before = match self.kept {
                    Some(kept) => kept.load(b, Pos::fixed(0), at),
                    None => outer[at],
                };
                let mut result = b.fma(sums[at], scale, before);
                if let Some(offset) = offset {
                    let sum = self.staged.minus_sum(b, row, segment);
                    result = b.fma(offset, sum, result);
                }
                match self.kept {
                    Some(kept) => kept.store(b, Pos::fixed(0), at, result),
                    None => outer[at] = result,
                }
            }
        }
        outer
    }
}

/// Results at the end of the walk, without [`CENTER`].
pub(super) fn finished(b: &mut Builder, kept: Option<&Kept>, outer: Vec<Value>, count: usize, lanes: u8) -> Vec<Value> {
    let factor = b.f32(lanes, 1.0 / CENTER);
    let results = match kept {
        Some(kept) => (0..count).map(|i| kept.load(b, Pos::fixed(0), i)).collect(),
        None => outer,
    };
    results.into_iter().map(|result| b.bin(BinOp::Mul, result, factor)).collect()
}

/// The start of results.
pub(super) fn start(b: &mut Builder, kept: Option<&Kept>, count: usize, lanes: u8) -> Vec<Value> {
    let nothing =
        b.push(Type::vector(crate::ir::Scalar::F32, lanes), crate::ir::Inst::Const(crate::ir::Constant::Splat(0)));
    match kept {
        Some(kept) => {
            (0..count).for_each(|i| kept.store(b, Pos::fixed(0), i, nothing));
            Vec::new()
        }
        None => vec![nothing; count],
    }
}
