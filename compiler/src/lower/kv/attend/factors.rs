//! Queries and weights in 8 or 16 bits, so that one instruction multiplies two or four codes: beside codes of integers they
//! become multiples of a step, with sums in 32 bits, beside FP8 bf16 numbers, with sums in `f32`.
//!
//! A unit of codes comes apart into fields, each a vector of words or bytes; the factors of a field lie in one 32-bit word,
//! in the same order, so that a field takes one load, one broadcast and one `dot2` or `dot4` per query row. bf16 numbers come
//! apart by lanes instead: two fields share the load of their factors, and each has sums of its own. Always holds: no
//! sum of integers leaves 32 bits (`Attend::steps`), so that they are exact, and their order does not matter.

mod products;

use super::super::codes::{self, Opened};
use super::FMA;
use super::state::Slot;
use crate::format::kv::{KvCode, Side};
use crate::ir::{BinOp, Builder, CastOp, Dot4Signs, Scalar, Type, Value};
use crate::op::kv::Attend;

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
                if self.steps.is_none() {
                    return field * self.together() + i;
                }
                // The bit where the code starts.
                let bit = i * self.bits + field * self.code.bits();
                match self.code.per_unit() {
                    8 => bit / 8 + bit % 8 / 4 * 4,
                    _ => bit / 8,
                }
            })
            .collect()
    }

    /// The type of factors as they are loaded for all lanes.
    fn loaded(&self) -> Scalar {
        if self.steps.is_none() { Scalar::I64 } else { Scalar::I32 }
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

    /// Sums that a vector of lanes has.
    fn parts(&self) -> usize {
        if self.steps.is_none() { 2 } else { 1 }
    }

    /// The sums of products of vectors of lanes, from those of their parts.
    fn whole(&self, b: &mut Builder, sums: &[Value]) -> Vec<Value> {
        match self.parts() {
            1 => sums.to_vec(),
            _ => sums.as_chunks::<2>().0.iter().map(|&parts| codes::gathered(b, parts)).collect(),
        }
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
