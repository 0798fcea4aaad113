//! Where the tokens of a tile lie: their page, found once where a page holds the tile, and the next tile's codes, which are
//! asked for early on a CPU.

use super::super::codes;
use super::super::{int, least, plus};
use super::Kernel;
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Value};
use crate::lower::memory::{at, split, times};

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

impl Kernel<'_> {
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

    /// Asks for the lines of `bytes` so far behind a place.
    pub(super) fn foresee(&self, b: &mut Builder, distance: Option<Value>, place: Value, bytes: usize) {
        let Some(distance) = distance else { return };
        let place = b.add(place, distance);
        for line in (0..bytes).step_by(64) {
            b.prefetch(at(self.params.get("pool"), Some(place), line));
        }
    }
}
