//! Families of `kv_dequant` and `kv_requantize`: pages into plain numbers, and into pages of another format.

use super::super::memory::{at, scalar_of, split, times};
use super::append::{Store, granule_scale, owners};
use super::codes::{self, Decoder, Scales};
use super::source::Source;
use super::{Params, below, field, int, plus, thread_in_grid};
use crate::caps::Caps;
use crate::format::kv::{KvLayout, KvPer, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Value};
use crate::op::kv::{KvDequant, KvRequantize, PAIR, SPAN};
use crate::schedule::KvSchedule;

/// Threads per record of a gather: 16 channels of a side of a head each.
pub fn parts(layout: &KvLayout) -> usize {
    layout.heads * (layout.k.head_dim + layout.v.head_dim) / 16
}

pub fn dequant(b: &mut Builder, op: &KvDequant, params: &Params, schedule: &KvSchedule) {
    let layout = &op.layout;
    let work = params.work.expect("a gather takes its number of records");
    let index = thread_in_grid(b, schedule.threads);
    let total = times(b, work, parts(layout));
    below(b, index, total, |b| {
        let (record, part) = split(b, index, parts(layout));
        let spans = params.get("spans");
        let f: Vec<Value> = (0..4).map(|i| field(b, spans, record, SPAN, i)).collect();
        let (head, column) = split(b, part, parts(layout) / layout.heads);
        let base = codes::record(b, layout, f[1], head);
        let keys = int(b, layout.k.head_dim / 16);
        let is_key = b.cmp(CmpOp::LtS, column, keys);
        let side = |b: &mut Builder, side: Side, column: Value| {
            let start = times(b, column, 16);
            let zero = int(b, 0);
            b.for_loop(zero, f[3], 1, &[], |b, i, _| {
                let token = b.add(f[2], i);
                let source = page(params, layout, side, ("pool", "scales"), base, head, token);
                let row = b.add(f[0], i);
                let row = times(b, row, layout.heads);
                let row = b.add(row, head);
                let first = times(b, row, layout.part(side).head_dim);
                let end = plus(b, start, 16);
                b.for_loop(start, end, 1, &[], |b, channel, _| {
                    let x = source.channel(b, channel);
                    let scalar = scalar_of(op.out);
                    let x = if scalar == Scalar::F32 { x } else { b.cast(CastOp::Float, x, scalar) };
                    let place = b.add(first, channel);
                    let place = times(b, place, scalar.bytes() as usize);
                    let out = params.get(if side == Side::K { "k" } else { "v" });
                    b.store(at(out, Some(place), 0), scalar.bytes(), x);
                    Vec::new()
                });
                Vec::new()
            });
        };
        both(b, is_key, column, keys, side);
    });
}

fn both(b: &mut Builder, is_key: Value, column: Value, keys: Value, side: impl Fn(&mut Builder, Side, Value)) {
    b.if_else(
        is_key,
        |b| {
            side(b, Side::K, column);
            Vec::new()
        },
        |b| {
            let column = b.bin(BinOp::Sub, column, keys);
            side(b, Side::V, column);
            Vec::new()
        },
    );
}

fn page<'a>(
    params: &Params,
    layout: &'a KvLayout,
    side: Side,
    (pool, scales): (&'static str, &'static str),
    base: Value,
    head: Value,
    token: Value,
) -> Source<'a> {
    let scales = Scales { side, pool: params.get(pool), statics: params.find(scales) };
    // Casts, which keep every number normal: here nothing is in a hurry.
    let decoder = Decoder::new(layout.part(side).codes, &Caps::ANY);
    Source::Page { layout, scales, decoder, base, head, token }
}

/// Threads per page of a requantization.
pub fn page_parts(to: &KvLayout) -> usize {
    to.heads * (side_parts(to, Side::K) + side_parts(to, Side::V))
}

/// Threads of one side of a head of a page: one per unit of channels where channels have scales, else one per 8 tokens and
/// group.
fn side_parts(to: &KvLayout, side: Side) -> usize {
    let part = to.part(side);
    match part.codes.per {
        KvPer::Channel => part.head_dim / part.codes.code.per_unit(),
        KvPer::Tensor | KvPer::Head | KvPer::Token | KvPer::Group(_) => to.page / 8 * owners(to, side),
    }
}

pub fn requantize(b: &mut Builder, op: &KvRequantize, params: &Params, schedule: &KvSchedule) {
    let work = params.work.expect("a requantization takes its number of records");
    let index = thread_in_grid(b, schedule.threads);
    let total = times(b, work, page_parts(&op.to));
    below(b, index, total, |b| {
        let (record, part) = split(b, index, page_parts(&op.to));
        let pairs = params.get("pairs");
        let f: Vec<Value> = (0..3).map(|i| field(b, pairs, record, PAIR, i)).collect();
        let (head, owner) = split(b, part, page_parts(&op.to) / op.to.heads);
        let (from, to) = (codes::record(b, &op.from, f[0], head), codes::record(b, &op.to, f[1], head));
        let store = Store { layout: &op.to, pool: params.get("pool"), statics: params.find("scales"), head };
        let keys = int(b, side_parts(&op.to, Side::K));
        let is_key = b.cmp(CmpOp::LtS, owner, keys);
        both(b, is_key, owner, keys, |b, side, owner| {
            let source = |token: Value| page(params, &op.from, side, ("source", "source_scales"), from, head, token);
            if op.to.part(side).codes.per == KvPer::Channel {
                return channels(b, op, &store, side, to, f[2], owner, &source);
            }
            let (tokens, owner) = split(b, owner, owners(&op.to, side));
            let start = times(b, tokens, 8);
            let end = plus(b, start, 8);
            let end = b.bin(BinOp::MinS, end, f[2]);
            b.for_loop(start, end, 1, &[], |b, token, _| {
                let source = source(token);
                store.token(b, side, to, token, owner, &source);
                Vec::new()
            });
        });
    });
}

/// The channels of one unit of keys, each with the scale of its page.
#[allow(clippy::too_many_arguments)]
fn channels<'a>(
    b: &mut Builder,
    op: &KvRequantize,
    store: &Store<'_>,
    side: Side,
    base: Value,
    count: Value,
    unit: Value,
    source: &dyn Fn(Value) -> Source<'a>,
) {
    let part = *op.to.part(side);
    let kind = part.codes;
    let per = kind.code.per_unit();
    let first = times(b, unit, per);
    let zero = int(b, 0);
    let mut factors = Vec::new();
    for j in 0..per {
        let channel = plus(b, first, j);
        let (bits, scale, offset_bits, offset) = granule_scale(b, &kind, |b, fold| {
            b.for_loop(zero, count, 1, &fold.first, |b, token, state| {
                let x = source(token).channel(b, channel);
                let x = codes::sanitize(b, &kind, x);
                (fold.step)(b, x, state)
            })
        });
        let place = times(b, channel, 2);
        let place = b.add(base, place);
        store.short(b, place, part.scale, bits);
        if kind.asymmetric {
            store.short(b, place, part.offset, offset_bits);
        }
        factors.push((channel, codes::inverse(b, scale), offset));
    }
    let page = int(b, op.to.page);
    b.for_loop(zero, page, 1, &[], |b, token, _| {
        let there = b.cmp(CmpOp::LtS, token, count);
        let none = b.int(Scalar::I32, 0);
        let word = b.if_else(
            there,
            |b| {
                let source = source(token);
                let mut word = none;
                for (j, &(channel, inverse, offset)) in factors.iter().enumerate() {
                    let x = source.channel(b, channel);
                    let x = codes::sanitize(b, &kind, x);
                    let code = codes::code_of(b, &kind, x, inverse, offset);
                    let bit = if per == 8 { j % 4 * 8 + j / 4 * 4 } else { 8 * j };
                    let code = if bit == 0 { code } else { b.bin_imm(BinOp::Shl, code, bit as i64) };
                    word = b.bin(BinOp::Or, word, code);
                }
                vec![word]
            },
            |_| vec![none],
        );
        let place = codes::unit_place(b, &op.to, side, token, first);
        let place = b.add(base, place);
        b.store(at(store.pool, Some(place), 0), 4, word[0]);
        Vec::new()
    });
}
