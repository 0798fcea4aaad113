//! Family of `kv_append`: one thread for each work record, KV head, side, and group with a scale of its own.
//!
//! A record's tokens lie in one aligned group of 8, so that whoever owns it owns whole units of storage: words of values
//! hold several tokens. A word's codes before a token stay, those after it are cleared, and bytes never depend on what was
//! in the page before.

use super::super::memory::{at, split, times};
use super::codes::{self, Scales};
use super::source::Source;
use super::{Params, below, field, int, plus, thread_in_grid};
use crate::format::kv::{KvLayout, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Memory, Scalar, UnOp, Value};
use crate::op::kv::{KvAppend, SPAN};
use crate::schedule::KvSchedule;

/// Threads per work record.
pub fn parts(layout: &KvLayout) -> usize {
    layout.heads * (owners(layout, Side::K) + owners(layout, Side::V))
}

/// Threads of a head and side: one per group, or one for all groups where they share a scale of the second level.
pub fn owners(layout: &KvLayout, side: Side) -> usize {
    let part = layout.part(side);
    if part.codes.two_level { 1 } else { part.codes.groups(part.head_dim) }
}

pub fn build(b: &mut Builder, op: &KvAppend, params: &Params, schedule: &KvSchedule) {
    let layout = &op.layout;
    let work = params.work.expect("an append takes its number of records");
    let index = thread_in_grid(b, schedule.threads);
    let total = times(b, work, parts(layout));
    below(b, index, total, |b| {
        let (record, part) = split(b, index, parts(layout));
        let spans = params.get("spans");
        let f: Vec<Value> = (0..5).map(|i| field(b, spans, record, SPAN, i)).collect();
        let per_head = parts(layout) / layout.heads;
        let (head, owner) = split(b, part, per_head);
        let store = Store { layout, pool: params.get("pool"), statics: params.find("scales"), head };
        let base = codes::record(b, layout, f[1], head);
        let keys = int(b, owners(layout, Side::K));
        let is_key = b.cmp(CmpOp::LtS, owner, keys);
        let side = |b: &mut Builder, side: Side, owner: Value| {
            let zero = int(b, 0);
            b.for_loop(zero, f[3], 1, &[], |b, i, _| {
                let (row, position, token) = (b.add(f[0], i), b.add(f[4], i), b.add(f[2], i));
                let source = Source::row(b, op, params, side, (row, head, position));
                store.token(b, side, base, token, owner, &source);
                Vec::new()
            });
        };
        b.if_else(
            is_key,
            |b| {
                side(b, Side::K, owner);
                Vec::new()
            },
            |b| {
                let owner = b.bin(BinOp::Sub, owner, keys);
                side(b, Side::V, owner);
                Vec::new()
            },
        );
    });
}

/// Stores numbers in pages.
pub struct Store<'a> {
    pub layout: &'a KvLayout,
    pub pool: Memory,
    pub statics: Option<Memory>,
    pub head: Value,
}

impl Store<'_> {
    /// Stores the group `owner` (or all groups) of one token.
    pub fn token(&self, b: &mut Builder, side: Side, base: Value, token: Value, owner: Value, source: &Source<'_>) {
        let part = self.layout.part(side);
        let kind = part.codes;
        let group = kind.group(part.head_dim);
        let groups = kind.groups(part.head_dim);
        let zero = b.f32(1, 0.0);
        if kind.code.is_plain() {
            let one = b.f32(1, 1.0);
            let start = int(b, 0);
            return self.codes(b, side, (base, token), (start, part.head_dim), (one, zero), source);
        }
        if kind.is_static() {
            let scales = Scales { side, pool: self.pool, statics: self.statics };
            let (scale, offset) = scales.given(b, part, self.head);
            let inverse = codes::inverse(b, scale);
            let start = int(b, 0);
            return self.codes(b, side, (base, token), (start, part.head_dim), (inverse, offset), source);
        }
        if kind.two_level {
            return self.two_levels(b, side, base, token, source);
        }
        let start = times(b, owner, group);
        let next = plus(b, start, group);
        let (bits, scale, offset_bits, offset) = granule_scale(b, &kind, |b, fold| {
            let mut state = fold.first.clone();
            state = b.for_loop(start, next, 1, &state, |b, c, state| {
                let x = source.channel(b, c);
                let x = codes::sanitize(b, &kind, x);
                (fold.step)(b, x, state)
            });
            state
        });
        let place = codes::index(b, self.layout, side, token, owner, false);
        let place = times(b, place, 2);
        let place = b.add(base, place);
        self.short(b, place, part.scale, bits);
        if kind.asymmetric {
            self.short(b, place, part.offset, offset_bits);
        }
        let inverse = codes::inverse(b, scale);
        debug_assert!(groups * group == part.head_dim);
        self.codes(b, side, (base, token), (start, group), (inverse, offset), source);
    }

    /// Stores the low half of an `i32`.
    pub fn short(&self, b: &mut Builder, place: Value, offset: usize, bits: Value) {
        let short = b.cast(CastOp::Truncate, bits, Scalar::I16);
        b.store(at(self.pool, Some(place), offset), 2, short);
    }

    /// A token's groups with two levels of scales.
    fn two_levels(&self, b: &mut Builder, side: Side, base: Value, token: Value, source: &Source<'_>) {
        let part = *self.layout.part(side);
        let kind = part.codes;
        let group = kind.group(part.head_dim);
        let zero = b.f32(1, 0.0);
        let top = |b: &mut Builder, g: usize| {
            let (start, end) = (int(b, g * group), int(b, (g + 1) * group));
            let largest = b.for_loop(start, end, 1, &[zero], |b, c, state| {
                let x = source.channel(b, c);
                let x = codes::sanitize(b, &kind, x);
                let size = b.un(UnOp::Abs, x);
                vec![b.bin(BinOp::Max, state[0], size)]
            });
            let limit = b.f32(1, kind.top());
            b.bin(BinOp::Div, largest[0], limit)
        };
        let tops: Vec<Value> = (0..kind.groups(part.head_dim)).map(|g| top(b, g)).collect();
        let largest = tops.iter().fold(zero, |a, &t| b.bin(BinOp::Max, a, t));
        let bytes = b.f32(1, 255.0);
        let largest = b.bin(BinOp::Div, largest, bytes);
        let (bits, outer) = codes::scale_up(b, largest);
        let place = times(b, token, 2);
        let place = b.add(base, place);
        self.short(b, place, part.scale, bits);
        let factor = codes::inverse(b, outer);
        for (g, &top) in tops.iter().enumerate() {
            let quotient = b.mul(top, factor);
            let below = b.un(UnOp::Neg, quotient);
            let below = b.un(UnOp::Floor, below);
            let above = b.un(UnOp::Neg, below);
            let inner = b.bin(BinOp::Min, above, bytes);
            let byte = b.cast(CastOp::FloatToIntS, inner, Scalar::I32);
            let byte = b.cast(CastOp::Truncate, byte, Scalar::I8);
            let place = b.add(base, token);
            b.store(at(self.pool, Some(place), part.inner + g * self.layout.page), 1, byte);
            let scale = b.mul(outer, inner);
            let inverse = codes::inverse(b, scale);
            let start = int(b, g * group);
            self.codes(b, side, (base, token), (start, group), (inverse, zero), source);
        }
    }

    /// Stores the codes of `count` channels from `start` on.
    fn codes(
        &self,
        b: &mut Builder,
        side: Side,
        (base, token): (Value, Value),
        (start, count): (Value, usize),
        (inverse, offset): (Value, Value),
        source: &Source<'_>,
    ) {
        let kind = self.layout.part(side).codes;
        let per = kind.code.per_unit();
        let code = |b: &mut Builder, channel: Value| {
            let x = source.channel(b, channel);
            let x = codes::sanitize(b, &kind, x);
            codes::code_of(b, &kind, x, inverse, offset)
        };
        let end = plus(b, start, count);
        let step = if side == Side::K { per } else { 1 };
        b.for_loop(start, end, step as i64, &[], |b, channel, _| {
            let place = codes::unit_place(b, self.layout, side, token, channel);
            let place = b.add(base, place);
            if per == 1 {
                let code = code(b, channel);
                self.short(b, place, 0, code);
                return Vec::new();
            }
            let word = match side {
                Side::K => {
                    let mut word = b.int(Scalar::I32, 0);
                    for j in 0..per {
                        let channel = plus(b, channel, j);
                        let code = code(b, channel);
                        let bit = if per == 8 { j % 4 * 8 + j / 4 * 4 } else { 8 * j };
                        let code = if bit == 0 { code } else { b.bin_imm(BinOp::Shl, code, bit as i64) };
                        word = b.bin(BinOp::Or, word, code);
                    }
                    word
                }
                Side::V => {
                    let within = b.bin_imm(BinOp::And, token, per as i64 - 1);
                    let before = codes::bits_before(b, per, within);
                    let bit = codes::bit_of(b, per, within);
                    let code = code(b, channel);
                    let code = b.bin(BinOp::Shl, code, bit);
                    let old = b.load(Scalar::I32, at(self.pool, Some(place), 0), 4);
                    let kept = b.bin(BinOp::And, old, before);
                    b.bin(BinOp::Or, kept, code)
                }
            };
            b.store(at(self.pool, Some(place), 0), 4, word);
            Vec::new()
        });
    }
}

/// What one more number makes of a state.
pub type Step<'f> = dyn Fn(&mut Builder, Value, &[Value]) -> Vec<Value> + 'f;

/// How numbers that share a scale are gone through: a state, and what one more number makes of it.
pub struct Fold<'f> {
    pub first: Vec<Value>,
    pub step: &'f Step<'f>,
}

/// `format::kv::codes::granule_scale`: scale bits, scale, offset bits, offset. `numbers` folds over all numbers.
pub fn granule_scale(
    b: &mut Builder,
    kind: &crate::format::kv::KvCodes,
    numbers: impl FnOnce(&mut Builder, &Fold<'_>) -> Vec<Value>,
) -> (Value, Value, Value, Value) {
    use crate::format::kv::codes::{LARGEST, SMALLEST};
    let zero = b.f32(1, 0.0);
    let limit = b.f32(1, kind.top());
    if !kind.asymmetric {
        let step = |b: &mut Builder, x: Value, state: &[Value]| {
            let size = b.un(UnOp::Abs, x);
            vec![b.bin(BinOp::Max, state[0], size)]
        };
        let top = numbers(b, &Fold { first: vec![zero], step: &step })[0];
        let quotient = b.bin(BinOp::Div, top, limit);
        let (bits, scale) = codes::scale_up(b, quotient);
        let none = b.int(Scalar::I32, 0);
        return (bits, scale, none, zero);
    }
    let step = |b: &mut Builder, x: Value, state: &[Value]| {
        vec![b.bin(BinOp::Min, state[0], x), b.bin(BinOp::Max, state[1], x)]
    };
    let first = vec![b.f32(1, LARGEST), b.f32(1, -LARGEST)];
    let ends = numbers(b, &Fold { first, step: &step });
    let (offset_bits, offset) = codes::offset_down(b, ends[0]);
    let range = b.bin(BinOp::Sub, ends[1], offset);
    let smallest = b.f32(1, SMALLEST);
    let tiny = b.cmp(CmpOp::Lt, range, smallest);
    let range = b.select(tiny, zero, range);
    let quotient = b.bin(BinOp::Div, range, limit);
    let (bits, scale) = codes::scale_up(b, quotient);
    (bits, scale, offset_bits, offset)
}
