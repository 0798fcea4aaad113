//! Where the tokens of a tile lie: their page, found once where a page holds the tile, and what is asked for early on a CPU, while
//! their codes are read.

use super::super::codes;
use super::super::{int, least, plus};
use super::Kernel;
use super::values::grouped;
use crate::format::kv::Side;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Value};
use crate::lower::memory::{at, split, times};

/// The tokens of a turn.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Its first token.
    pub start: Value,
    /// Tokens that are left from there on, at most as many as a tile has, and those in whole steps of scores.
    pub count: Value,
    pub blocks: Value,
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
pub(super) struct Line {
    /// From this byte of the record on, what is asked for is beyond the last head of the page.
    last: Value,
    /// How far behind it lies before there.
    next: Value,
    /// How far behind it lies from there on.
    beyond: Value,
}

impl Line {
    /// How far behind byte `place` of the record that lies which is asked for.
    fn distance(self, b: &mut Builder, place: Value) -> Value {
        let within = b.cmp(CmpOp::LtS, place, self.last);
        b.select(within, self.next, self.beyond)
    }
}

/// What is asked for while codes are read, as a step goes on.
#[derive(Clone, Copy)]
pub(super) enum Hint {
    /// As many bytes as are read, from this one of the pool on.
    All(Value),
    /// A share of as many, from this one of the pool on, in whole blocks.
    Share(Value),
}

/// Bytes that are asked for at once: four times those that a turn reads, up to so many, from a multiple of them on. A block is
/// asked for again until the next one's turn comes. Measured on Zen 5 with two threads, of plain reading: lines one by one 82 %
/// (INT8), blocks of 512 bytes 90 (INT4) to 92, of 1024 93 and 98; those of 2048 read as well, but asking takes longer.
/// Blocks that are asked for once, or in the first quarter of their turns alone, come more slowly than lines.
const BLOCK: usize = 1024;

/// The same beside products in pairs of bf16, where opening codes leaves less time to ask.
const SHORT_BLOCK: usize = 512;

/// Bytes between what is read and what is asked for, where codes are read in the order of memory.
const DISTANCE: usize = 16 << 10;

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
    /// before it in its chain for some cycles, in which multipliers of 64 bytes start two each. Fewer sums leave them idle.
    pub(super) fn chains(&self, sums: usize, turn: usize, cycles: usize) -> usize {
        let few = self.lanes == 16 && sums < 2 * cycles;
        if few && turn.is_multiple_of(2) { 2 } else { 1 }
    }

    /// Bytes from the units of the first of these vectors to those of vector `v`: past the lanes of a block the next one begins.
    pub(super) fn vector_offset(&self, side: Side, v: usize) -> usize {
        let part = self.op.layout.part(side);
        let lane = v * self.lanes as usize;
        lane / part.block * self.op.layout.units(side) * part.stride()
            + lane % part.block * part.codes.code.unit_bytes()
    }

    /// The tile from a token on, of `count` tokens in whole `blocks`.
    pub(super) fn tile_at(&self, b: &mut Builder, start: Value, (count, blocks): (Value, Value)) -> Tile {
        let anywhere = Tile { start, count, blocks, home: None };
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
        Tile { home: Some(Home { base, within, ahead }), ..anywhere }
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

    /// What to ask for while the codes of a step are read: those of token `local` of a tile, which is token `within` of the page
    /// at `base`; of values, from a channel on. The last tile has none behind it, and anything does.
    pub(super) fn hint(
        &self,
        b: &mut Builder,
        tile: Tile,
        local: Value,
        (base, within): (Value, Value),
        channel: Option<Value>,
    ) -> Option<Hint> {
        if !self.ahead {
            return None;
        }
        let (side, lane) = channel.map_or((Side::K, within), |channel| (Side::V, channel));
        let part = self.op.layout.part(side);
        // A step may take some lanes of a block: asked for is what as many whole lanes would be.
        let done = times(b, lane, self.op.layout.units(side) * part.codes.code.unit_bytes());
        if let Some((base, line)) = self.in_line(tile) {
            let place = self.place_of_share(b, side, (lane, done));
            return Some(Hint::Share(self.line_later(b, base, line, place)));
        }
        let mut place = plus(b, done, part.code);
        if side == Side::V {
            let (unit, _) = split(b, within, part.codes.code.per_unit());
            let before = times(b, unit, part.stride());
            place = b.add(place, before);
        }
        let further = match tile.home {
            Some(Home { ahead: Ahead::Tile(distances), .. }) => distances[usize::from(side == Side::V)],
            _ => {
                let token = b.add(tile.start, local);
                match self.line(b, token) {
                    Some(line) => line.distance(b, place),
                    None => self.tile_later(b, side, token),
                }
            }
        };
        let place = b.add(base, place);
        Some(Hint::All(b.add(place, further)))
    }

    /// The byte of the pool that is asked for at byte `place` of a record.
    pub(super) fn line_later(&self, b: &mut Builder, base: Value, line: Line, place: Value) -> Value {
        let further = line.distance(b, place);
        let place = b.add(base, place);
        b.add(place, further)
    }

    /// The record of a tile, where all of a page are asked for in the order of memory.
    pub(super) fn in_line(&self, tile: Tile) -> Option<(Value, Line)> {
        match tile.home? {
            Home { base, ahead: Ahead::Line(line), .. } => Some((base, line)),
            _ => None,
        }
    }

    /// The record one tile later, where a tile is a page whose codes are asked for as those of this one are read.
    pub(super) fn next_record(&self, b: &mut Builder, tile: Tile) -> Option<Value> {
        match tile.home? {
            Home { base, ahead: Ahead::Tile([distance, _]), .. } if self.tile == self.op.layout.page => {
                Some(b.add(base, distance))
            }
            _ => None,
        }
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
        let last = b.bin_imm(BinOp::Add, left, -(DISTANCE as i64));
        let all = b.bin(BinOp::Sub, heads.end, heads.first);
        let all = times(b, all, self.op.layout.record);
        let jump = b.bin(BinOp::Sub, there, here);
        let beyond = b.bin(BinOp::Sub, jump, all);
        let beyond = plus(b, beyond, DISTANCE);
        let next = int(b, DISTANCE);
        Some(Line { last, next, beyond })
    }

    /// Asks for lines while a turn reads so many units of a side's vectors, from unit `unit` of a step on.
    pub(super) fn foresee(&self, b: &mut Builder, side: Side, hint: Option<Hint>, unit: Value, turn: usize) {
        let Some(hint) = hint else { return };
        let read = self.vectors(side) * self.lanes as usize * self.op.layout.part(side).codes.code.unit_bytes();
        let further = times(b, unit, read);
        let (place, asked) = match hint {
            Hint::All(first) => (b.add(first, further), turn * read),
            Hint::Share(first) => {
                let further = self.paced(b, side, further);
                let place = b.add(first, further);
                let bytes = (turn * read).next_power_of_two();
                let most = if self.op.takes_bf16(side) { SHORT_BLOCK } else { BLOCK };
                let block = (4 * bytes).min(most).max(bytes);
                (b.bin_imm(BinOp::And, place, -(block as i64)), block)
            }
        };
        for line in (0..asked).step_by(64) {
            b.prefetch(at(self.params.get("pool"), Some(place), line));
        }
    }
}
