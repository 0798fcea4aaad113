//! Where the tokens of a tile lie: their page, found once where a page holds the tile, and the next tile's codes, which are
//! asked for early on a CPU.

use super::super::codes;
use super::super::{int, least, plus};
use super::Kernel;
use super::values::grouped;
use crate::format::kv::{KvCode, Side, TOKENS};
use crate::ir::{BinOp, Builder, CastOp, Scalar, Value};
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
    /// How far behind the codes of keys and of values those of the next tile lie.
    distances: [Option<Value>; 2],
}

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
        let distances = [Side::K, Side::V].map(|side| self.distance(b, side, anywhere, zero));
        Tile { start, home: Some(Home { base, within, distances }) }
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

    /// How far behind the codes of token `local` of a tile those of the token one tile later lie, in bytes: what no processor
    /// foresees. The last tile has none behind it, and any distance does.
    pub(super) fn distance(&self, b: &mut Builder, side: Side, tile: Tile, local: Value) -> Option<Value> {
        if let Some(home) = tile.home {
            return home.distances[usize::from(side == Side::V)];
        }
        if !self.ahead {
            return None;
        }
        let token = b.add(tile.start, local);
        let next = plus(b, token, self.tile);
        let last = b.bin_imm(BinOp::Add, self.item[4], -1);
        let next = least(b, next, last);
        let zero = int(b, 0);
        let [here, there] = [token, next].map(|token| {
            let (base, within) = self.page_of_token(b, token);
            let place = codes::unit_place(b, &self.op.layout, side, within, zero);
            b.add(base, place)
        });
        Some(b.bin(BinOp::Sub, there, here))
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
