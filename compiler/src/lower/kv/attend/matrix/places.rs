//! Where the tokens of a chunk lie, and what a lane loads of them.
//!
//! Keys: lane `4g + t` takes tokens `4g` to `4g + 3` of the chunk, unit `t` of every four. Values: channels `4g` to `4g + 3`
//! of every 32, and of the tokens unit `t` of every four (plain numbers: tokens `4t` to `4t + 3` of every 16).
//! Always holds: no load leaves the pages of the item; what lies past its last token in them is read, and weighs nothing.

use super::super::super::codes;
use super::operands::ROWS;
use super::{CHUNK, Matrix};
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, Value};
use crate::lower::memory::{at, times};

/// The pages of a chunk: first bytes of this head's records, `i64`. One, or one for each 16 tokens where pages are as small.
pub(super) type Bases = Vec<Value>;

impl Matrix<'_> {
    /// Pages that hold a chunk.
    pub(super) fn pages(&self) -> usize {
        (CHUNK / self.op.layout.page).max(1)
    }

    /// The records of the chunk from a token (`i32`) on. Past the item's end they are those of its last page.
    pub(super) fn bases(&self, b: &mut Builder, start: Value) -> Bases {
        let shift = self.op.layout.page.trailing_zeros() as i64;
        (0..self.pages())
            .map(|part| {
                let before = part * self.op.layout.page;
                let token = if part == 0 { start } else { b.bin_imm(BinOp::Add, start, before as i64) };
                let token = b.bin(BinOp::MinS, token, self.last);
                let page = b.bin_imm(BinOp::ShrU, token, shift);
                let entry = b.add(self.item[2], page);
                let entry = b.cast(CastOp::ExtendS, entry, Scalar::I64);
                let place = times(b, entry, 4);
                let number = b.load(Scalar::I32, at(self.params.get("table"), Some(place), 0), 4);
                let number = b.cast(CastOp::ExtendS, number, Scalar::I64);
                codes::record(b, &self.op.layout, number, self.head)
            })
            .collect()
    }

    /// The one of a chunk's two records that a lane takes; the only one where there is one.
    fn own(&self, b: &mut Builder, bases: &[Value], second: Value) -> Value {
        match *bases {
            [first, other] => b.select(second, other, first),
            _ => bases[0],
        }
    }

    /// Bytes of a block: of some tokens of keys, or of some channels of values.
    fn block(&self, side: Side) -> usize {
        self.op.layout.units(side) * self.op.layout.part(side).stride()
    }

    /// Where a lane starts in the codes of a chunk, `i64`. Where a chunk is two blocks, `lone` leaves out which of them it takes.
    fn lane_place(&self, b: &mut Builder, side: Side, lone: bool) -> Value {
        let layout = &self.op.layout;
        let part = layout.part(side);
        let quads = part.block / ROWS;
        let quad = if part.block < CHUNK { b.bin_imm(BinOp::And, self.g, quads as i64 - 1) } else { self.g };
        let mut place = times(b, quad, part.codes.code.unit_bytes() * ROWS);
        if part.block < CHUNK && !lone {
            let second = b.bin_imm(BinOp::ShrU, self.g, quads.trailing_zeros() as i64);
            let second = times(b, second, self.block(side));
            place = b.add(place, second);
        }
        // A page of 16 tokens has two words of nibbles of a channel: the other two lie in the next page.
        let units = if side == Side::V { layout.page / part.codes.code.per_unit() } else { usize::MAX };
        let t = if units < 4 { b.bin_imm(BinOp::And, self.t, units as i64 - 1) } else { self.t };
        let plain_values = side == Side::V && part.codes.code.is_plain();
        let unit = times(b, t, part.stride() * if plain_values { ROWS } else { 1 });
        let place = b.add(place, unit);
        let place = b.bin_imm(BinOp::Add, place, part.code as i64);
        b.cast(CastOp::ExtendS, place, Scalar::I64)
    }

    /// The places of a lane in each side's codes that no turn changes.
    pub(super) fn lane_places(&self, b: &mut Builder) -> [Value; 3] {
        let small = self.op.layout.page < CHUNK;
        [
            // With half a chunk to a page, a lane's record is its block's.
            self.lane_place(b, Side::K, small),
            self.lane_place(b, Side::V, false),
            self.lane_place(b, Side::V, true),
        ]
    }

    /// Tokens of a chunk's page before it.
    fn within(&self, b: &mut Builder, start: Value) -> Value {
        b.bin_imm(BinOp::And, start, self.op.layout.page as i64 - 1)
    }

    /// Loads along a key's channels.
    pub(super) fn key_loads(&self) -> usize {
        self.op.layout.k.head_dim.div_ceil(4 * self.keys.per_load())
    }

    /// Numbers of the contraction past a key's channels, in units of the last load, if it has some.
    pub(super) fn last_units(&self) -> Option<usize> {
        let per = self.keys.per_load();
        let units = self.op.layout.k.head_dim / per % 4;
        (units > 0).then_some(units)
    }

    /// The first byte of a lane's keys of a chunk.
    pub(super) fn key_place(&self, b: &mut Builder, bases: &[Value], start: Value) -> Value {
        let base = self.own(b, bases, self.upper);
        let place = b.add(base, self.lane_places[0]);
        if self.op.layout.page <= CHUNK {
            return place;
        }
        // A chunk starts with a block.
        let within = self.within(b, start);
        let within = b.bin_imm(BinOp::ShrU, within, self.op.layout.k.block.trailing_zeros() as i64);
        let within = times(b, within, self.block(Side::K));
        let within = b.cast(CastOp::ExtendS, within, Scalar::I64);
        b.add(place, within)
    }

    /// What a lane needs of its keys for four units of channels.
    pub(super) fn load_keys(&self, b: &mut Builder, place: Value, load: usize) -> Vec<Value> {
        let pool = self.params.get("pool");
        let line = self.op.layout.k.stride();
        if self.op.layout.k.codes.code.is_plain() {
            let ty = Type::vector(Scalar::I32, 2);
            return (0..4).map(|j| b.load(ty, at(pool, Some(place), (16 * load + 4 * j) * line), 8)).collect();
        }
        let mut own = place;
        if let Some(units) = self.last_units().filter(|_| load + 1 == self.key_loads()) {
            // Lanes past the last unit read it again; their queries are 0.
            let t = b.bin_imm(BinOp::MinS, self.t, units as i64 - 1);
            let back = b.bin(BinOp::Sub, t, self.t);
            let back = times(b, back, line);
            let back = b.cast(CastOp::ExtendS, back, Scalar::I64);
            own = b.add(place, back);
        }
        vec![b.load(Type::vector(Scalar::I32, 4), at(pool, Some(own), 4 * load * line), 16)]
    }

    /// Loads along a chunk's tokens for values.
    pub(super) fn value_steps(&self) -> usize {
        CHUNK / (4 * self.values.per_load())
    }

    /// Chunks of channels of values; the last may be half of one.
    pub(super) fn value_pairs(&self) -> usize {
        self.op.layout.v.head_dim.div_ceil(CHUNK)
    }

    /// Whether only one half of a chunk of channels is there.
    pub(super) fn is_half(&self, pair: usize) -> bool {
        pair * CHUNK + CHUNK / 2 >= self.op.layout.v.head_dim
    }

    /// The first bytes of a lane's values of a chunk: for each of [`Matrix::value_steps`], and whether they leave out which of
    /// two blocks a lane takes.
    pub(super) fn value_places(&self, b: &mut Builder, bases: &[Value], start: Value) -> Vec<[Value; 2]> {
        let layout = &self.op.layout;
        let per = layout.v.codes.code.per_unit();
        let further = (layout.page > CHUNK).then(|| {
            let within = self.within(b, start);
            let within = b.bin_imm(BinOp::ShrU, within, per.trailing_zeros() as i64);
            let within = times(b, within, self.op.layout.v.stride());
            b.cast(CastOp::ExtendS, within, Scalar::I64)
        });
        (0..self.value_steps())
            .map(|step| {
                let base = match (bases.len(), self.value_steps()) {
                    (2, 1) => {
                        let two = b.int(Scalar::I32, 2);
                        let second = b.cmp(CmpOp::LeS, two, self.t);
                        self.own(b, bases, second)
                    }
                    (2, _) => bases[step],
                    _ => bases[0],
                };
                let base = further.map_or(base, |further| b.add(base, further));
                [self.lane_places[1], self.lane_places[2]].map(|lane| b.add(base, lane))
            })
            .collect()
    }

    /// What a lane needs of its values of a pair of blocks, for one of [`Matrix::value_steps`].
    pub(super) fn load_values(&self, b: &mut Builder, places: &[[Value; 2]], pair: usize, step: usize) -> Vec<Value> {
        let pool = self.params.get("pool");
        let (line, part) = (self.op.layout.v.stride(), &self.op.layout.v);
        let lone = self.is_half(pair);
        let place = places[step][usize::from(lone)];
        // Where a step has a page of its own, it starts with it.
        let steps = if self.pages() > 1 { 0 } else { step };
        let blocks = pair * CHUNK / part.block;
        let first = blocks * self.block(Side::V) + steps * 4 * line * if part.codes.code.is_plain() { 4 } else { 1 };
        if part.codes.code.is_plain() {
            let ty = Type::vector(Scalar::I32, 2);
            return (0..4).map(|j| b.load(ty, at(pool, Some(place), first + j * line), 8)).collect();
        }
        vec![b.load(Type::vector(Scalar::I32, 4), at(pool, Some(place), first), 16)]
    }

    /// The numbers of a side's section of one per token, for the tokens of a lane's keys: four `f32`.
    pub(super) fn of_tokens(&self, b: &mut Builder, bases: &[Value], start: Value, section: usize) -> Value {
        let base = self.own(b, bases, self.upper);
        let within = self.within(b, start);
        let g = if self.pages() > 1 { b.bin_imm(BinOp::And, self.g, 3) } else { self.g };
        let own = times(b, g, 4);
        let token = b.add(within, own);
        let place = times(b, token, 2);
        let place = b.cast(CastOp::ExtendS, place, Scalar::I64);
        let place = b.add(base, place);
        b.load(Type::vector(Scalar::I16, 4), at(self.params.get("pool"), Some(place), section), 8)
    }
}
