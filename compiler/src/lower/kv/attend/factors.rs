//! Queries and weights in 8 or 16 bits, so that one instruction multiplies two or four codes: beside codes of integers they
//! become multiples of a step, with sums in 32 bits, beside FP8 bf16 numbers, with sums in `f32`.
//!
//! A unit of codes comes apart into fields, each a vector of words or bytes; the factors of a field lie in one 32-bit word,
//! in the same order, so that a field takes one load, one broadcast and one `dot2` or `dot4` per query row. Always holds: no
//! sum of integers leaves 32 bits (`Attend::steps`), so that they are exact, and their order does not matter.

use super::super::super::memory::{at, times};
use super::super::codes::{self, Opened};
use super::super::{int, plus};
use super::place::Hint;
use super::state::Slot;
use super::{FMA, Kernel, STEP, Tile, across, chained, unchained};
use crate::format::kv::{KvCode, Side};
use crate::ir::{BinOp, Builder, CastOp, Dot4Signs, Scalar, Type, UnOp, Value};
use crate::op::kv::{Attend, LEAST};

/// How the factors of a side lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    code: KvCode,
    signed: bool,
    /// Bits of a factor: 8 or 16.
    bits: usize,
    /// Numbers of a row.
    pub row: usize,
    /// Largest multiple of the step; `None` for bf16 numbers.
    steps: Option<i32>,
}

/// Where factors are, and what they are factors of.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub packing: Packing,
    /// `[row, unit, field]`, 32 bits each.
    pub memory: Slot,
}

impl Packing {
    /// Of a side whose factors are short; `row` numbers a row.
    pub fn of(op: &Attend, side: Side, row: usize) -> Option<Packing> {
        let steps = op.steps(side);
        if steps.is_none() && !op.takes_bf16(side) {
            return None;
        }
        let codes = op.layout.part(side).codes;
        let bits = if steps.is_some_and(|steps| steps < 128) { 8 } else { 16 };
        Some(Packing { code: codes.code, signed: codes.code == KvCode::Int8 && !codes.asymmetric, bits, row, steps })
    }

    /// Largest multiple of the step, where factors are integers.
    pub fn steps(&self) -> Option<i32> {
        self.steps
    }

    /// No products.
    pub fn none(&self, b: &mut Builder, lanes: u8) -> Value {
        match self.steps {
            Some(_) => b.int(Type::vector(Scalar::I32, lanes), 0),
            None => b.f32(lanes, 0.0),
        }
    }

    /// A sum of products, in steps where there are some.
    fn number(&self, b: &mut Builder, sum: Value) -> Value {
        match self.steps {
            Some(_) => b.cast(CastOp::IntToFloatS, sum, Scalar::F32),
            None => sum,
        }
    }

    /// Products that one instruction makes in a lane.
    pub fn together(&self) -> usize {
        32 / self.bits
    }

    /// The word that holds the factor of a number, where that is the first of one (`i64`).
    pub fn word_of(&self, b: &mut Builder, number: Value) -> Value {
        b.bin_imm(BinOp::ShrU, number, self.together().trailing_zeros() as i64)
    }

    /// What each word holds, among `count` numbers.
    fn held(&self, count: usize) -> Vec<Vec<usize>> {
        let per = self.code.per_unit();
        (0..count / per)
            .flat_map(|unit| (0..self.fields()).map(move |field| (unit, field)))
            .map(|(unit, field)| self.members(field).into_iter().map(|member| unit * per + member).collect())
            .collect()
    }

    /// A word of its parts (`i32`, of which the low bits count), lowest first.
    fn word(&self, b: &mut Builder, parts: Vec<Value>) -> Value {
        let mask = (1i64 << self.bits) - 1;
        let mut parts = parts.into_iter().enumerate().map(|(i, part)| (i * self.bits, part));
        let (_, first) = parts.next().expect("a word holds some factors");
        let first = b.bin_imm(BinOp::And, first, mask);
        let most = 32 - self.bits;
        parts.fold(first, |all, (shift, part)| {
            let part = if shift == most { part } else { b.bin_imm(BinOp::And, part, mask) };
            let part = b.bin_imm(BinOp::Shl, part, shift as i64);
            b.bin(BinOp::Or, all, part)
        })
    }

    /// The words of numbers (`i32`, of which the low bits count; `f32` that are bf16 numbers already) in one vector or two.
    pub fn joined(&self, b: &mut Builder, numbers: &[Value]) -> Value {
        let words = self.held(numbers.len() * b.ty(numbers[0]).lanes as usize);
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        if b.ty(first).lanes >= 8 && self.bits == 8 && numbers.len() == 1 {
            // Bytes lie in the order of their numbers.
            let bytes = b.cast(CastOp::Truncate, first, Scalar::I8);
            return b.bitcast(bytes, Type::vector(Scalar::I32, words.len() as u8));
        }
        if b.ty(first).lanes == 16 && self.bits == 16 {
            // One number of lanes after the other, then the low halves of all: where vectors are so long, either is one
            // instruction.
            let picks: Vec<u8> = words.iter().flatten().map(|&number| number as u8).collect();
            let halves = match self.steps {
                Some(_) => {
                    let ordered = b.swizzle(first, last, &picks);
                    b.cast(CastOp::Truncate, ordered, Scalar::I16)
                }
                None => {
                    let halves = b.bitcast(first, Type::vector(Scalar::I16, 32));
                    let picks: Vec<u8> = picks.iter().map(|&number| 2 * number + 1).collect();
                    b.swizzle(halves, halves, &picks)
                }
            };
            return b.bitcast(halves, Type::vector(Scalar::I32, words.len() as u8));
        }
        let parts = (0..self.together())
            .map(|i| {
                let picks: Vec<u8> = words.iter().map(|word| word[i] as u8).collect();
                b.swizzle(first, last, &picks)
            })
            .collect();
        self.word(b, parts)
    }

    /// Words of 32 bits in all `rows`.
    pub fn words(&self, rows: usize) -> usize {
        rows * self.row * self.bits / 32
    }

    /// Fields of a unit of codes.
    fn fields(&self) -> usize {
        self.code.per_unit() * self.bits / 32
    }

    /// The numbers of a unit whose factors a field takes, lowest first.
    fn members(&self, field: usize) -> Vec<usize> {
        (0..self.together())
            .map(|i| {
                // The bit where the code starts.
                let bit = i * self.bits + field * self.code.bits();
                match self.code.per_unit() {
                    8 => bit / 8 + bit % 8 / 4 * 4,
                    _ => bit / 8,
                }
            })
            .collect()
    }

    fn part(&self, lanes: u8) -> Type {
        match (self.bits, self.steps) {
            (8, _) => Type::vector(Scalar::I8, 4 * lanes),
            (_, Some(_)) => Type::vector(Scalar::I16, 2 * lanes),
            (_, None) => Type::vector(Scalar::Bf16, 2 * lanes),
        }
    }

    /// A field of a unit: codes as words or bytes.
    fn field(&self, b: &mut Builder, unit: Opened, field: usize) -> Value {
        let half = unit.halves[field % 2];
        let part = self.part(b.ty(half).lanes);
        if self.steps.is_none() {
            return b.bitcast(half, part);
        }
        let bits = self.code.bits() as u8;
        b.unpack(half, field as u8 * bits, bits, self.signed, part)
    }

    /// Cycles after which the next product may join a sum: pairs of bf16 numbers take longest, here those of Zen 5.
    fn cycles(&self) -> usize {
        if self.steps.is_none() { 6 } else { FMA }
    }

    /// `sum` and the products of a field with its factors.
    fn dot(&self, b: &mut Builder, field: Value, factors: Value, sum: Value) -> Value {
        match self.bits {
            8 => b.dot4(Dot4Signs::UnsignedSigned, self.code.bits() as u8, field, factors, sum),
            _ => b.dot2(field, factors, sum),
        }
    }
}

impl Kernel<'_> {
    /// Numbers that are packed at once: whole units of either code.
    pub(super) fn chunk(&self) -> usize {
        (self.lanes as usize).max(8)
    }

    /// The numbers `[line, line + count)` of a shared array become multiples of a step that is stored as number `place` of
    /// the row's steps; `count` is a multiple of 16. Returns the sum of the multiples.
    pub(super) fn quantize(
        &self,
        b: &mut Builder,
        packing: &Packing,
        from: Slot,
        (row, line, count): (Value, Value, Value),
        place: usize,
    ) -> Value {
        let wide = self.wide();
        let (Some(steps), Some(most)) = (self.arrays.steps, packing.steps) else { return b.f32(1, 0.0) };
        let (zero, none) = (int(b, 0), b.f32(wide, 0.0));
        let top = b.for_loop(zero, count, wide as i64, &[none], |b, i, top| {
            let index = b.add(line, i);
            let x = self.read(b, from, index, 0, wide);
            let x = b.un(UnOp::Abs, x);
            vec![b.bin(BinOp::Max, top[0], x)]
        });
        let top = across(b, BinOp::Max, top[0]);
        let floor = b.f32(1, LEAST);
        let top = b.bin(BinOp::Max, top, floor);
        let most = b.f32(1, most as f32);
        let step = b.bin(BinOp::Div, top, most);
        self.write(b, steps, row, place * self.padded, step);
        let inverse = b.bin(BinOp::Div, most, top);
        let inverse = b.splat(inverse, wide);
        let sum = b.for_loop(zero, count, wide as i64, &[none], |b, i, sum| {
            let index = b.add(line, i);
            let x = self.read(b, from, index, 0, wide);
            let x = b.mul(x, inverse);
            let n = b.un(UnOp::Nearest, x);
            self.write(b, from, index, 0, n);
            vec![b.add(sum[0], n)]
        });
        across(b, BinOp::Add, sum[0])
    }

    /// Packs the multiples `[line, line + count)` of a row.
    pub(super) fn pack(
        &self,
        b: &mut Builder,
        factors: &Factors,
        from: Slot,
        (row, line, count): (Value, Value, Value),
    ) {
        let packing = factors.packing;
        let (chunk, lanes) = (self.chunk(), self.lanes as usize);
        let zero = int(b, 0);
        let start = times(b, row, packing.row * packing.bits / 32);
        b.for_loop(zero, count, chunk as i64, &[], |b, i, _| {
            let index = b.add(line, i);
            let further = packing.word_of(b, i);
            let place = b.add(start, further);
            if lanes >= 8 || lanes >= 4 && packing.bits == 16 {
                let numbers: Vec<Value> = (0..chunk / lanes)
                    .map(|v| {
                        let x = self.read(b, from, index, v * lanes, self.lanes);
                        match packing.steps {
                            Some(_) => b.cast(CastOp::FloatToIntS, x, Scalar::I32),
                            None => codes::nearest_bf16(b, x),
                        }
                    })
                    .collect();
                let word = packing.joined(b, &numbers);
                self.write(b, factors.memory, place, 0, word);
            } else {
                for (w, word) in packing.held(chunk).iter().enumerate() {
                    let parts = word
                        .iter()
                        .map(|&member| {
                            let x = self.read(b, from, index, member, 1);
                            b.cast(CastOp::FloatToIntS, x, Scalar::I32)
                        })
                        .collect();
                    let word = packing.word(b, parts);
                    self.write(b, factors.memory, place, w, word);
                }
            }
            Vec::new()
        });
    }

    /// The step of a row: of its query (0) or of its weights (1).
    pub(super) fn step(&self, b: &mut Builder, row: usize, place: usize) -> Value {
        match self.arrays.steps {
            Some(steps) => {
                let index = int(b, row);
                let step = self.read(b, steps, index, place * self.padded, 1);
                b.splat(step, self.lanes)
            }
            None => b.f32(self.lanes, 1.0),
        }
    }

    /// Adds the products of units `first..end` of codes to sums `[row][vector]`. Unit `i` lies a block's words behind
    /// unit `i - 1`, and unit 0 at `place`; its factors are those of unit `i + skipped`. The hint says which codes are asked for.
    pub(super) fn products(
        &self,
        b: &mut Builder,
        (side, factors): (Side, &Factors),
        (place, skipped, hint): (Value, Option<Value>, Option<Hint>),
        (first, end, turn): (Value, Value, usize),
        rows: std::ops::Range<usize>,
        state: &[Value],
    ) -> Vec<Value> {
        let packing = factors.packing;
        let (pool, lanes) = (self.params.get("pool"), self.lanes);
        let decoder = if side == Side::K { self.keys } else { self.values };
        let vectors = state.len() / rows.len();
        let ty = Type::vector(Scalar::I32, lanes);
        let align = ty.bytes().min(32);
        let stride = self.op.layout.part(side).stride();
        let line = packing.row * packing.bits / 32;
        let nothing = packing.none(b, lanes);
        let chains = self.chains(state.len(), turn, packing.cycles());
        let count = state.len();
        let sums = b.for_loop(first, end, turn as i64, &chained(state, nothing, chains), |b, unit, state| {
            let mut state = state.to_vec();
            let further = times(b, unit, stride);
            let place = b.add(place, further);
            let own = match skipped {
                Some(skipped) => b.add(unit, skipped),
                None => unit,
            };
            let index = times(b, own, packing.fields());
            self.foresee(b, side, hint, unit, turn);
            for i in 0..turn {
                let units: Vec<Opened> = (0..vectors)
                    .map(|v| {
                        let offset = i * stride + self.vector_offset(side, v);
                        let unit = b.load(ty, at(pool, Some(place), offset), align);
                        decoder.open(b, unit)
                    })
                    .collect();
                for field in 0..packing.fields() {
                    let parts: Vec<Value> = units.iter().map(|&unit| packing.field(b, unit, field)).collect();
                    for (r, row) in rows.clone().enumerate() {
                        let offset = row * line + i * packing.fields() + field;
                        let word = self.place(b, factors.memory, index, offset);
                        let x = b.load(Scalar::I32, word, 4);
                        let x = b.splat(x, lanes);
                        let x = b.bitcast(x, packing.part(lanes));
                        for (v, &part) in parts.iter().enumerate() {
                            let sum = &mut state[i % chains * count + r * vectors + v];
                            *sum = packing.dot(b, part, x, *sum);
                        }
                    }
                }
            }
            state
        });
        unchained(b, &sums, count)
    }

    /// Products of rows of queries with `count` channels of keys from unit `first` on, in steps of the queries.
    pub(super) fn key_products(
        &self,
        b: &mut Builder,
        factors: &Factors,
        (keys, hint): (Value, Option<Hint>),
        (first, count): (Value, usize),
        rows: std::ops::Range<usize>,
    ) -> Vec<Value> {
        let vectors = self.vectors(Side::K);
        let units = count / factors.packing.code.per_unit();
        // Sums of bytes stay in 16 bits for a turn where there is no instruction for more; so long ones pay.
        let most = if factors.packing.bits == 8 { 4 } else { 2 };
        let turn = [4, 2, 1].into_iter().find(|&turn| turn <= most && units.is_multiple_of(turn)).unwrap_or(1);
        let end = plus(b, first, units);
        let nothing = factors.packing.none(b, self.lanes);
        let zeros = vec![nothing; rows.len() * vectors];
        let sums = self.products(b, (Side::K, factors), (keys, None, hint), (first, end, turn), rows, &zeros);
        sums.into_iter().map(|sum| factors.packing.number(b, sum)).collect()
    }

    /// Products of weights with the values of `count` tokens, in steps of the weights: sums `[row][vector]`.
    pub(super) fn weighted_codes(
        &self,
        b: &mut Builder,
        factors: &Factors,
        (tile, count, channel): (Tile, Value, Value),
        rows: std::ops::Range<usize>,
        vectors: usize,
    ) -> Vec<Value> {
        let per = factors.packing.code.per_unit();
        let page = self.op.layout.page;
        let nothing = factors.packing.none(b, self.lanes);
        let zeros = vec![nothing; rows.len() * vectors];
        let zero = int(b, 0);
        self.by_page(b, tile, count, &zeros, &mut |b, done, left, sums| {
            let (base, within) = self.page_of(b, tile, done);
            // Whole steps: weights of tokens past the last are 0, and so is any code times 0.
            let units = plus(b, left, STEP - 1);
            let units = b.bin_imm(BinOp::And, units, -(STEP as i64));
            let units = b.bin_imm(BinOp::ShrU, units, per.trailing_zeros() as i64);
            let place = codes::unit_place(b, &self.op.layout, Side::V, within, channel);
            let hint = if rows.start == 0 { self.hint(b, tile, done, (base, within), Some(channel)) } else { None };
            let place = b.add(base, place);
            let skipped = b.bin_imm(BinOp::ShrU, done, per.trailing_zeros() as i64);
            // Of 8 bits and 8 bits, sums stay in 16 bits for a turn.
            let turn = if factors.packing.bits == 8 && page.min(self.tile).is_multiple_of(4 * per) { 4 } else { 2 };
            let most = b.bin_imm(BinOp::And, units, -(turn as i64));
            let at = (place, Some(skipped), hint);
            let sums = self.products(b, (Side::V, factors), at, (zero, most, turn), rows.clone(), sums);
            // A step has two units of nibbles, four of bytes.
            if turn > 2 {
                self.products(b, (Side::V, factors), at, (most, units, 2), rows.clone(), &sums)
            } else {
                sums
            }
        })
    }

    /// Adds sums of [`Kernel::weighted_codes`] to what is `before` them.
    pub(super) fn with_steps(
        &self,
        b: &mut Builder,
        factors: &Factors,
        rows: std::ops::Range<usize>,
        sums: &[Value],
        before: &[Value],
    ) -> Vec<Value> {
        let vectors = sums.len() / rows.len();
        let mut out = Vec::new();
        for (r, row) in rows.enumerate() {
            let step = factors.packing.steps.map(|_| self.step(b, row, 1));
            for i in r * vectors..(r + 1) * vectors {
                let sum = factors.packing.number(b, sums[i]);
                out.push(match step {
                    Some(step) => b.fma(sum, step, before[i]),
                    None => b.add(before[i], sum),
                });
            }
        }
        out
    }
}
