//! Where numbers that are stored come from: rows of new keys and values, or the pages of another cache.

use super::super::memory::{at, split, times};
use super::codes::{self, Decoder, Scales};
use super::{Params, float, int};
use crate::format::kv::{KvLayout, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Memory, Scalar, UnOp, Value};
use crate::op::kv::KvAppend;

/// One token's keys or values of a head. A channel is an `i64`.
pub enum Source<'a> {
    /// A row of new ones.
    Row {
        op: &'a KvAppend,
        rows: Memory,
        table: Option<Memory>,
        side: Side,
        /// Index of the row's first number.
        first: Value,
        position: Value,
    },
    /// A stored token.
    Page { layout: &'a KvLayout, scales: Scales, decoder: Decoder, base: Value, head: Value, token: Value },
}

impl Source<'_> {
    /// The source of rows for a token: `row` counts tokens.
    pub fn row<'a>(
        b: &mut Builder,
        op: &'a KvAppend,
        params: &Params,
        side: Side,
        (row, head, position): (Value, Value, Value),
    ) -> Source<'a> {
        let row = times(b, row, op.layout.heads);
        let row = b.add(row, head);
        let first = times(b, row, op.layout.part(side).head_dim);
        let name = if side == Side::K { "k" } else { "v" };
        let table = if side == Side::K { params.find("rope") } else { None };
        Source::Row { op, rows: params.get(name), table, side, first, position }
    }

    /// The number of a channel.
    pub fn channel(&self, b: &mut Builder, channel: Value) -> Value {
        match self {
            Source::Row { op, rows, table, side, first, position } => {
                let at_channel = |b: &mut Builder, c: Value| {
                    let index = b.add(*first, c);
                    float(b, *rows, op.input, index)
                };
                let x = at_channel(b, channel);
                let (Some(rope), Some(table)) = (op.rope, table) else { return x };
                let half = rope.rotary / 2;
                let (pair, partner, odd) = if rope.interleaved {
                    let pair = b.bin_imm(BinOp::ShrU, channel, 1);
                    let odd = b.bin_imm(BinOp::And, channel, 1);
                    (pair, b.bin_imm(BinOp::Xor, channel, 1), odd)
                } else {
                    let (_, pair) = split(b, channel, half);
                    let moved = b.bin_imm(BinOp::Add, channel, half as i64);
                    let (_, partner) = split(b, moved, rope.rotary);
                    let (which, _) = split(b, channel, half);
                    (pair, partner, b.bin_imm(BinOp::And, which, 1))
                };
                let whole = op.layout.part(*side).head_dim == rope.rotary;
                let rotary = int(b, rope.rotary);
                let turned = b.cmp(CmpOp::LtS, channel, rotary);
                // Channels past the rotary ones read the first pair and keep their number.
                let zero = int(b, 0);
                let (pair, partner) = if whole {
                    (pair, partner)
                } else {
                    (b.select(turned, pair, zero), b.select(turned, partner, zero))
                };
                let line = times(b, *position, rope.rotary);
                let place = b.add(line, pair);
                let place = times(b, place, 4);
                let cos = b.load(Scalar::F32, at(*table, Some(place), 0), 4);
                let sin = b.load(Scalar::F32, at(*table, Some(place), half * 4), 4);
                let other = at_channel(b, partner);
                let product = b.mul(other, sin);
                let negative = b.un(UnOp::Neg, product);
                let first = b.cmp(CmpOp::Eq, odd, zero);
                let term = b.select(first, negative, product);
                let rotated = b.fma(x, cos, term);
                if whole { rotated } else { b.select(turned, rotated, x) }
            }
            Source::Page { layout, scales, decoder, base, head, token } => {
                let part = layout.part(scales.side);
                let per = part.codes.code.per_unit();
                let place = codes::unit_place(b, layout, scales.side, *token, channel);
                let place = b.add(*base, place);
                let ty = decoder.unit_type(1);
                let unit = b.load(ty, at(scales.pool, Some(place), 0), ty.bytes());
                if part.codes.code.is_plain() {
                    return b.cast(CastOp::Float, unit, Scalar::F32);
                }
                let within = if scales.side == Side::K { channel } else { *token };
                let within = b.bin_imm(BinOp::And, within, per as i64 - 1);
                let bit = codes::bit_of(b, per, within);
                // The code moves to the bottom of the word, where the first number is.
                let moved = b.bin(BinOp::ShrU, unit, bit);
                let opened = decoder.open(b, moved);
                let number = decoder.number(b, opened, 0);
                let number = if part.codes.bias() == 0.0 {
                    number
                } else {
                    let bias = b.f32(1, part.codes.bias());
                    b.bin(BinOp::Sub, number, bias)
                };
                let group = match part.codes.per {
                    crate::format::kv::KvPer::Channel => channel,
                    _ => split(b, channel, part.codes.group(part.head_dim)).0,
                };
                let (scale, offset) = scales.of(b, layout, *base, *head, *token, group);
                // Adding no offset would be left out by some drivers, which the sign of a zero shows.
                if part.codes.asymmetric { b.fma(number, scale, offset) } else { b.mul(number, scale) }
            }
        }
    }
}
