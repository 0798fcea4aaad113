//! Blocks of columns by dot products of bf16 in pairs: codes of weights are decoded to bf16, which holds them exactly, and
//! scales meet the `f32` sums of a segment.
//!
//! ```text
//! weights        [quad][even, odd][tile_n]     words of two columns of a row of W: 0 and 2 of a quad, then 1 and 3
//! activations    [row][quad][even, odd]        the same columns of a row of X
//! scales         [segment][tile_n]             `f32`; likewise offsets, and sums of X by `[row][segment]`, where there are any
//! ```
//!
//! Always holds: products are exact, so that sums are rounded as those of `f32` are. Subnormal activations count as zeros, and
//! so do sums that are: the operation's bound has a term for it.

use super::super::Plan;
use super::super::tile::Scratch;
use super::{Blocks, RowTile, Work, decode_segments, pair_products, rows_at_once, vectors_of_results};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, CastOp, Memory, Scalar, Type, UnOp, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::at;
use crate::lower::quantize::across;
use crate::lower::stage::Kept;
use crate::lower::unpack::Weights;
use crate::lower::unpack::pairs::Lookup;
use crate::lower::walk::{Pos, Step, Visit, each, repeat};
use crate::op::{Activation, Matmul};
use crate::schedule::Schedule;

/// Whether the device has the instruction, and bf16 holds all activations and codes.
pub(super) fn serves(op: &Matmul, layout: &N16, caps: &Caps) -> bool {
    let activations =
        matches!(op.activation, Activation::Float(DType::Bf16) | Activation::Int8(_) | Activation::Fp8(..));
    caps.features.has(Feature::Dot2Bf16) && caps.vector_bytes == 64 && activations && holds_codes(layout)
}

/// Whether bf16 holds every code, less its zero point where that is an integer.
fn holds_codes(layout: &N16) -> bool {
    let code = layout.format.code;
    let zeros: &[f64] = match layout.format.zero {
        Zero::Bias(bias) => &[f64::from(bias)],
        Zero::Int(_) => &[0.0, 255.0],
        _ => &[0.0],
    };
    let integers = matches!(layout.format.zero, Zero::Int(_));
    (0..1u32 << code.bits()).all(|c| {
        let value = code.decode(c as u8);
        !value.is_finite()
            || zeros.iter().all(|zero| {
                let number = (value - zero) as f32;
                // Zero points between the outermost are integers too, and so are differences: bf16 holds those up to 256.
                let integer = number.fract() == 0.0 && number.abs() <= 256.0;
                (!integers || integer)
                    && f64::from(number) == value - zero
                    && number.to_bits() & 0xffff == 0
                    && !number.is_subnormal()
            })
    })
}

/// Whether sums of activations are needed: for what is added to weights beside their codes.
pub(super) fn wants_sums(layout: &N16) -> bool {
    matches!(layout.format.zero, Zero::Offset { .. } | Zero::Float(_))
}

/// Whether a tile fits: sums in registers, activations or vectors of weights, whichever are fewer, and one of the others; the
/// end of a segment takes scales and offsets, and a result.
pub(super) fn fits(tile_m: u32, vectors: u32, layout: &N16, caps: &Caps) -> bool {
    let ends = vectors * (1 + u32::from(wants_sums(layout)));
    tile_m * vectors + ends.max(tile_m.min(vectors)) + 2 <= caps.vector_registers
}

/// Sums of dot products.
pub(super) struct Dots<'a> {
    plan: &'a Plan,
    schedule: &'a Schedule,
    blocks: Blocks,
    scratch: Scratch,
    activations: Memory,
    scales: Scratch,
    /// Offsets, and sums of activations.
    shift: Option<(Scratch, Memory)>,
    /// `[strip][row]`, tiles of rows side by side.
    results: Kept,
}

impl<'a> Dots<'a> {
    /// With scratch of its own.
    pub fn new(b: &mut Builder, plan: &'a Plan, schedule: &'a Schedule, blocks: Blocks) -> Dots<'a> {
        let rows = rows_at_once(schedule);
        let segments = blocks.columns / blocks.segment;
        let lines = |b: &mut Builder, name: &str, lines: usize| Scratch::declare(b, name, lines, schedule, plan.lanes);
        let scratch = lines(b, "decoded", blocks.columns / 2);
        let scales = lines(b, "scales", segments);
        let shift = wants_sums(&plan.layout).then(|| {
            let offsets = lines(b, "offsets", segments);
            (offsets, b.shared("staged_sums", (rows * segments * 4) as u32, 64))
        });
        let results = Kept::declare(b, "results", vectors_of_results(plan, schedule), plan.lanes);
        let activations = b.shared("staged", (rows * blocks.columns * 2) as u32, 64);
        Dots { plan, schedule, blocks, scratch, activations, scales, shift, results }
    }

    fn count(&self) -> usize {
        self.schedule.tile_m as usize * self.plan.vectors
    }

    fn words(&self) -> Type {
        Type::vector(Scalar::Bf16, 2 * self.plan.lanes)
    }

    /// As many columns of X from one on as a vector holds.
    fn load(&self, b: &mut Builder, rows: &Rows, row: usize, from: Pos) -> Value {
        let lanes = self.plan.lanes;
        if matches!(self.plan.op.activation, Activation::Float(DType::Bf16)) {
            return rows.elements(b, row, from, 2 * lanes);
        }
        let halves = [0, lanes as usize].map(|i| {
            let x = rows.floats(b, row, from.plus(i), lanes);
            let bits = b.bitcast(x, Type::vector(Scalar::I32, lanes));
            let top = b.bin_imm(BinOp::ShrU, bits, 16);
            b.cast(CastOp::Truncate, top, Scalar::I16)
        });
        let all: Vec<u8> = (0..2 * lanes).collect();
        let words = b.swizzle(halves[0], halves[1], &all);
        b.bitcast(words, self.words())
    }

    /// Quads of words with their second and third one exchanged.
    fn exchanged(&self, b: &mut Builder, words: Value) -> Value {
        let places: Vec<u8> = (0..2 * self.plan.lanes).map(|i| i / 4 * 4 + [0, 2, 1, 3][usize::from(i % 4)]).collect();
        let words = b.bitcast(words, Type::vector(Scalar::I16, 2 * self.plan.lanes));
        b.swizzle(words, words, &places)
    }

    /// Where the sum of a segment's activations of a row lies.
    fn sum_place(&self, b: &mut Builder, tile: RowTile, row: usize, segment: Pos) -> Pos {
        let segments = self.blocks.columns / self.blocks.segment;
        let start = tile.place.plus(row).times(b, 4 * segments);
        segment.times(b, 4).add(b, start)
    }

    /// Products of a segment's columns.
    fn products(&self, b: &mut Builder, tile: RowTile, segment: Pos) -> Vec<Value> {
        let (lanes, columns) = (self.plan.lanes, self.blocks.columns);
        let pairs = self.blocks.segment / 2;
        let first = segment.times(b, pairs);
        let start = tile.place.times(b, 2 * columns);
        let one = |b: &mut Builder, pair: Pos, sums: &mut [Value]| {
            let line = first.add(b, pair);
            let place = |b: &mut Builder, row: usize| line.times(b, 4).add(b, start).plus(row * 2 * columns);
            let (how, words) = ((self.plan, self.schedule), (self.activations, Scalar::Bf16));
            pair_products(b, how, (&self.scratch, line), words, &place, sums);
        };
        let step = 2 * self.schedule.unroll as usize;
        let nothing = b.f32(lanes, 0.0);
        each(b, (pairs, step), vec![nothing; self.count()], &one)
    }

    /// Scales the sums of a segment into results.
    fn finish(
        &self,
        b: &mut Builder,
        (rows, tile): (&Rows, RowTile),
        (segment, column): (Pos, Pos),
        at_: Pos,
        sums: &[Value],
    ) {
        let (vectors, lanes) = (self.plan.vectors, self.plan.lanes);
        let floats = Type::vector(Scalar::F32, lanes);
        let result = |b: &mut Builder,
                      row: usize,
                      v: usize,
                      scale: Value,
                      scale_x: Option<Value>,
                      offset: Option<(Value, Value)>| {
            let i = row * vectors + v;
            let before = self.results.load(b, at_, i);
            let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
            let mut result = b.fma(sums[i], factor, before);
            if let Some((offset, sum)) = offset {
                result = b.fma(offset, sum, result);
            }
            self.results.store(b, at_, i, result);
        };
        let factors: Vec<(Value, Option<Value>)> = (0..vectors)
            .map(|v| {
                let scale = self.scales.load(b, floats, segment, v);
                let offset = self.shift.as_ref().map(|(offsets, _)| offsets.load(b, floats, segment, v));
                (scale, offset)
            })
            .collect();
        for row in 0..self.schedule.tile_m as usize {
            let scale_x = rows.group_scale(b, row, column);
            let sum = self.shift.as_ref().map(|&(_, memory)| {
                let place = self.sum_place(b, tile, row, segment);
                let sum = b.load(Scalar::F32, at(memory, place.index, place.fixed), 4);
                let sum = b.splat(sum, lanes);
                scale_x.map_or(sum, |scale| b.mul(sum, scale))
            });
            for (v, &(scale, offset)) in factors.iter().enumerate() {
                result(b, row, v, scale, scale_x, offset.zip(sum));
            }
        }
    }
}

impl Work for Dots<'_> {
    fn start(&self, b: &mut Builder, at: Pos) {
        let nothing = b.f32(self.plan.lanes, 0.0);
        self.results.fill(b, at, self.count(), nothing);
    }

    fn stage(&self, b: &mut Builder, rows: &Rows, tile: RowTile, column: Pos, len: usize) {
        let lanes = self.plan.lanes;
        let Blocks { columns, segment, .. } = self.blocks;
        let together = 2 * lanes as usize;
        // Words of a part of a row, with its sum where one is wanted.
        let part = |b: &mut Builder, row: usize, here: Pos, mut sum: Vec<Value>| {
            let from = column.add(b, here);
            let words = self.load(b, rows, row, from);
            if let [sum] = &mut sum[..] {
                let ones = b.int(Type::vector(Scalar::I32, lanes), 0x3f80_3f80);
                let ones = b.bitcast(ones, self.words());
                *sum = b.dot2(ones, words, *sum);
            }
            let words = self.exchanged(b, words);
            let start = tile.place.plus(row).times(b, 2 * columns);
            let place = here.times(b, 2).add(b, start);
            b.store(at(self.activations, place.index, place.fixed), 64, words);
            sum
        };
        for row in 0..rows.count() {
            let Some((_, memory)) = self.shift else {
                repeat(b, len / together, together, Vec::new(), |b, here, none| part(b, row, here, none));
                continue;
            };
            repeat(b, len / segment, 1, Vec::new(), |b, index, _| {
                let first = index.times(b, segment);
                let nothing = b.f32(lanes, 0.0);
                let sum = repeat(b, segment / together, together, vec![nothing], |b, here, sum| {
                    let here = first.add(b, here);
                    part(b, row, here, sum)
                });
                let total = across(b, BinOp::Add, sum[0]);
                let place = self.sum_place(b, tile, row, index);
                b.store(at(memory, place.index, place.fixed), 4, total);
                Vec::new()
            });
        }
    }

    fn decode(&self, b: &mut Builder, weights: &Weights<'_>, first: Pos, len: usize) {
        let Blocks { segment, .. } = self.blocks;
        repeat(b, len / segment, 1, Vec::new(), |b, index, _| {
            let column = first.add(b, index).times(b, segment);
            let group = column.divide(b, self.plan.layout.group);
            for v in 0..self.plan.vectors {
                let scale = weights.scale(b, group, v);
                self.scales.store(b, scale, index, v);
                let Some((offsets, _)) = &self.shift else { continue };
                let offset = match weights.offset(b, group, v) {
                    Some(offset) => offset,
                    // s · (code - z) with a float z: s · code + (-s · z).
                    None => {
                        let zero = weights.float_zero(b, group, v).expect("the format has zero points");
                        let product = b.mul(scale, zero);
                        b.un(UnOp::Neg, product)
                    }
                };
                offsets.store(b, offset, index, v);
            }
            Vec::new()
        });
        let scratch = (self.scratch, segment / 2 * self.scratch.line);
        decode_segments(b, (&self.plan.layout, segment), (first, len), scratch, |scratch, _| Narrow {
            weights,
            dots: self,
            scratch,
            lookup: Lookup::of(&self.plan.layout),
        });
    }

    fn add(
        &self,
        b: &mut Builder,
        _weights: &Weights<'_>,
        (rows, tile): (&Rows, RowTile),
        (first, len): (Pos, usize),
        at: Pos,
    ) {
        let Blocks { segment, .. } = self.blocks;
        repeat(b, len / segment, 1, Vec::new(), |b, turn, _| {
            let sums = self.products(b, tile, turn);
            let column = first.add(b, turn).times(b, segment);
            self.finish(b, (rows, tile), (turn, column), at, &sums);
            Vec::new()
        });
    }

    fn results(&self, b: &mut Builder, _weights: &Weights<'_>, _rows: &Rows, at: Pos) -> Vec<Value> {
        self.results.load_all(b, at, self.count())
    }
}

/// Decodes every quad into scratch, as bf16. The state of a segment holds its zero points, by vector.
struct Narrow<'a> {
    weights: &'a Weights<'a>,
    dots: &'a Dots<'a>,
    scratch: Scratch,
    lookup: Option<Lookup>,
}

impl Visit for Narrow<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        if !matches!(self.weights.layout.format.zero, Zero::Int(_)) {
            return Vec::new();
        }
        let column = segment.times(b, self.dots.blocks.segment);
        let group = column.divide(b, self.weights.layout.group);
        (0..self.dots.plan.vectors).filter_map(|v| self.weights.float_zero(b, group, v)).collect()
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, state: Vec<Value>) -> Vec<Value> {
        let ints = Type::vector(Scalar::I32, self.dots.plan.lanes);
        for i in 0..step.quads.len() {
            let line = step.local.plus(i).times(b, 2);
            for v in 0..self.dots.plan.vectors {
                let words = self.weights.words(b, step.unit, step.first + i, v);
                if let Some(lookup) = &self.lookup {
                    let pairs = lookup.pairs(b, self.weights, &words);
                    pairs
                        .into_iter()
                        .enumerate()
                        .for_each(|(part, pair)| self.scratch.store(b, pair, line.plus(part), v));
                    continue;
                }
                for part in 0..2 {
                    let [low, high] = [part, part + 2].map(|byte| {
                        let mut code = self.weights.floats(b, &words, byte);
                        if let Some(&zero) = state.get(v) {
                            code = b.bin(BinOp::Sub, code, zero);
                        }
                        b.bitcast(code, ints)
                    });
                    // The lower halves of both are zeros.
                    let low = b.bin_imm(BinOp::ShrU, low, 16);
                    let pair = b.bin(BinOp::Or, low, high);
                    self.scratch.store(b, pair, line.plus(part), v);
                }
            }
        }
        state
    }

    fn end(&mut self, _b: &mut Builder, _segment: Pos, _inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        outer
    }
}
