//! Where the tokens of a tile lie: their page, found once where a page holds the tile, and the next tile's codes, which are
//! asked for early on a CPU.

use super::super::codes;
use super::super::{int, least, plus};
use super::Kernel;
use super::values::grouped;
use crate::format::kv::{KvCode, Side, TOKENS};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Value};
use crate::lower::memory::{at, split, times};
use crate::op::kv::Attend;

/// The tokens of a turn.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Its first token.
    pub start: Value,
    /// Where all of them lie, where a tile is a part of a page.
    pub home: Option<Home>,
}

/// The page of a tile.
#[derive(Clone, Copy)]
pub(super) struct Home {
    /// First byte of this head's record, and the first token's number in the page.
    base: Value,
    within: Value,
    /// What to ask for while codes are read.
    ahead: Ahead,
}

/// Where the codes lie that are asked for while others are read.
#[derive(Clone, Copy)]
enum Ahead {
    /// So far behind those of keys and of values: one tile later.
    Tile([Value; 2]),
    /// In the order of memory, through the heads of a page, on to those of the page one tile later.
    Line(Line),
}

/// Codes in the order of memory.
#[derive(Clone, Copy)]
struct Line {
    /// From this byte of the record on, what is asked for is beyond the last head of the page.
    last: Value,
    /// How far behind it lies from there on.
    beyond: Value,
}

/// Bytes between what is read and what is asked for, where codes are read in the order of memory.
const LINE: usize = 12 << 10;

/// Vectors of 64 bytes that share a number. Four sums wait for their own last multiply-adds, sixteen do not, and share loads
/// of numbers; but where few rows make reading the longer of the two, one stream of codes is read faster than four.
pub(super) fn vectors_of(op: &Attend) -> u32 {
    let of = |side| match op.layout.part(side).codes.code {
        _ if op.rows() > 4 => 4,
        KvCode::F16 | KvCode::Bf16 => 1,
        KvCode::Int8 if op.steps(side).is_some() => 1,
        KvCode::Int8 | KvCode::Int4 | KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => 4,
    };
    of(Side::K).max(of(Side::V))
}

/// Tokens of a tile for vectors of 64 bytes: a page as a rule. Codes of 4 bits are multiplied so soon that what happens once
/// per tile shows.
pub(super) fn tile_of(op: &Attend) -> u32 {
    let nibbles = [Side::K, Side::V].iter().any(|&side| op.layout.part(side).codes.code.bits() == 4);
    if nibbles && op.rows() <= 4 { 128 } else { 64 }
}

impl Kernel<'_> {
    /// Vectors of tokens or of channels that share a number: as many as the schedule says, where a page and a tile, or a
    /// head, consist of so many.
    pub(super) fn vectors(&self, side: Side) -> usize {
        let part = self.op.layout.part(side);
        let fits = |vectors: usize| {
            let width = self.lanes as usize * vectors;
            match side {
                Side::K => self.op.layout.page.is_multiple_of(width) && self.tile.is_multiple_of(width),
                // Vectors of one group share its scale.
                Side::V if grouped(&part.codes) => part.codes.group(part.head_dim).is_multiple_of(width),
                Side::V => part.head_dim.is_multiple_of(width),
            }
        };
        [4, 2].into_iter().find(|&vectors| vectors <= self.schedule.vectors as usize && fits(vectors)).unwrap_or(1)
    }

    /// Chains of multiply-adds that each of so many sums is made of in a turn of so many units: one product waits for the one
    /// before it in its chain, so that few sums alone leave multipliers of 64 bytes idle.
    pub(super) fn chains(&self, sums: usize, turn: usize) -> usize {
        let few = self.lanes == 16 && sums <= 4;
        if few && turn.is_multiple_of(2) { 2 } else { 1 }
    }

    /// Bytes from the units of the first of these vectors to those of vector `v`: past 16 lanes the next block begins.
    pub(super) fn vector_offset(&self, side: Side, v: usize) -> usize {
        let part = self.op.layout.part(side);
        let (per, size) = (part.codes.code.per_unit(), part.codes.code.unit_bytes());
        let line = match side {
            Side::K => part.head_dim,
            Side::V => self.op.layout.page,
        };
        let lane = v * self.lanes as usize;
        (lane / TOKENS * (line / per) * TOKENS + lane % TOKENS) * size
    }

    /// The tile from a token on.
    pub(super) fn tile_at(&self, b: &mut Builder, start: Value) -> Tile {
        let anywhere = Tile { start, home: None };
        // Elsewhere registers are dearer than a few sums.
        if !self.ahead || !self.op.layout.page.is_multiple_of(self.tile) {
            return anywhere;
        }
        let zero = int(b, 0);
        let (base, within) = self.page_of(b, anywhere, zero);
        let ahead = match self.line(b, start) {
            Some(line) => Ahead::Line(line),
            None => Ahead::Tile([Side::K, Side::V].map(|side| self.tile_later(b, side, start))),
        };
        Tile { start, home: Some(Home { base, within, ahead }) }
    }

    /// First byte of this head's record of the page of token `local` of a tile, and the token's number in the page.
    pub(super) fn page_of(&self, b: &mut Builder, tile: Tile, local: Value) -> (Value, Value) {
        if let Some(home) = tile.home {
            return (home.base, b.add(home.within, local));
        }
        let token = b.add(tile.start, local);
        self.page_of_token(b, token)
    }

    fn page_of_token(&self, b: &mut Builder, token: Value) -> (Value, Value) {
        let (page, within) = split(b, token, self.op.layout.page);
        let entry = b.add(self.item[2], page);
        let place = times(b, entry, 4);
        let number = b.load(Scalar::I32, at(self.params.get("table"), Some(place), 0), 4);
        let number = b.cast(CastOp::ExtendS, number, Scalar::I64);
        (codes::record(b, &self.op.layout, number, self.head), within)
    }

    /// How far behind the codes of token `local` of a tile, at byte `unit` of their record, those lie that are asked for. The
    /// last tile has none behind it, and any distance does.
    pub(super) fn distance(
        &self,
        b: &mut Builder,
        side: Side,
        tile: Tile,
        (local, unit): (Value, Value),
    ) -> Option<Value> {
        if !self.ahead {
            return None;
        }
        let ahead = tile.home.map(|home| home.ahead);
        let line = match ahead {
            Some(Ahead::Tile(distances)) => return Some(distances[usize::from(side == Side::V)]),
            Some(Ahead::Line(line)) => line,
            None => {
                let token = b.add(tile.start, local);
                match self.line(b, token) {
                    Some(line) => line,
                    None => return Some(self.tile_later(b, side, token)),
                }
            }
        };
        let within = b.cmp(CmpOp::LtS, unit, line.last);
        let next = int(b, LINE);
        Some(b.select(within, next, line.beyond))
    }

    /// The token one tile later, or the last one.
    fn later(&self, b: &mut Builder, token: Value) -> Value {
        let next = plus(b, token, self.tile);
        let last = b.bin_imm(BinOp::Add, self.item[4], -1);
        least(b, next, last)
    }

    /// How far behind the codes of a token those of the token one tile later lie, in bytes: what no processor foresees.
    fn tile_later(&self, b: &mut Builder, side: Side, token: Value) -> Value {
        let next = self.later(b, token);
        let zero = int(b, 0);
        let [here, there] = [token, next].map(|token| {
            let (base, within) = self.page_of_token(b, token);
            let place = codes::unit_place(b, &self.op.layout, side, within, zero);
            b.add(base, place)
        });
        b.bin(BinOp::Sub, there, here)
    }

    /// The codes of a token's page, where all its heads are read one after the other.
    fn line(&self, b: &mut Builder, token: Value) -> Option<Line> {
        let heads = self.heads.as_ref()?;
        if !self.tile.is_multiple_of(self.op.layout.page) {
            return None;
        }
        let next = self.later(b, token);
        let (here, _) = self.page_of_token(b, token);
        let (there, _) = self.page_of_token(b, next);
        // Heads that are left on this page, and all that are read on either.
        let left = b.bin(BinOp::Sub, heads.end, self.head);
        let left = times(b, left, self.op.layout.record);
        let last = b.bin_imm(BinOp::Add, left, -(LINE as i64));
        let all = b.bin(BinOp::Sub, heads.end, heads.first);
        let all = times(b, all, self.op.layout.record);
        let jump = b.bin(BinOp::Sub, there, here);
        let beyond = b.bin(BinOp::Sub, jump, all);
        let beyond = plus(b, beyond, LINE);
        Some(Line { last, beyond })
    }

    /// Asks for the lines of `bytes` so far behind a place, in each of the blocks that the vectors of a side span.
    pub(super) fn foresee(&self, b: &mut Builder, side: Side, distance: Option<Value>, place: Value, bytes: usize) {
        let Some(distance) = distance else { return };
        let place = b.add(place, distance);
        for v in (0..self.vectors(side)).filter(|&v| (v * self.lanes as usize).is_multiple_of(TOKENS)) {
            for line in (0..bytes).step_by(64) {
                b.prefetch(at(self.params.get("pool"), Some(place), self.vector_offset(side, v) + line));
            }
        }
    }
}
