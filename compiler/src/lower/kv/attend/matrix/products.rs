//! Products of a chunk: queries as operands, scores from keys, outputs from values.

use super::{Keys, Matrix, State, UNDER_WAY, softmax};
use crate::format::kv::{KvPer, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, Value};
use crate::lower::memory::{at, scalar_of, split, times};

impl Matrix<'_> {
    /// Operands B of the queries, one for each instruction along their channels.
    pub(super) fn queries(&self, b: &mut Builder) -> Vec<Value> {
        let (op, per) = (self.op, self.keys.per_load());
        let (group, dim) = (op.group(), op.layout.k.head_dim);
        // Columns past the rows, and rows past the item's queries, repeat others; nobody reads them.
        let row = b.bin_imm(BinOp::MinS, self.g, op.rows() as i64 - 1);
        let (query, member) = split(b, row, group);
        let most = b.bin_imm(BinOp::Add, self.item[1], -1);
        let query = b.bin(BinOp::MinS, query, most);
        let query = b.add(query, self.item[0]);
        let [query, member] = [query, member].map(|x| b.cast(CastOp::ExtendS, x, Scalar::I64));
        let line = times(b, query, op.heads);
        let head = times(b, self.head, group);
        let line = b.add(line, head);
        let line = b.add(line, member);
        let line = times(b, line, dim * 2);
        let q = self.params.get("q");
        let order = self.keys.order();
        let half = Scalar::I16;
        let mut list = Vec::new();
        for load in 0..self.key_loads() {
            let numbers = if self.op.layout.k.codes.code.is_plain() {
                let own = times(b, self.t, 2);
                let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
                let place = b.add(line, own);
                let numbers: Vec<Value> =
                    (0..4).map(|j| b.load(half, at(q, Some(place), (16 * load + 4 * j) * 2), 2)).collect();
                b.vector(&numbers)
            } else {
                let units = self.last_units().filter(|_| load + 1 == self.key_loads());
                let t = units.map_or(self.t, |units| b.bin_imm(BinOp::MinS, self.t, units as i64 - 1));
                let own = times(b, t, per * 2);
                let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
                let place = b.add(line, own);
                let ty = Type::vector(half, per as u8);
                let numbers = b.load(ty, at(q, Some(place), 4 * load * per * 2), 2 * per as u32);
                match units {
                    Some(units) => {
                        let (units, none) = (b.int(Scalar::I32, units as i64), b.int(ty, 0));
                        let there = b.cmp(CmpOp::LtS, self.t, units);
                        b.select(there, numbers, none)
                    }
                    None => numbers,
                }
            };
            for pairs in order.chunks(2) {
                let picks: Vec<u8> = pairs.iter().flatten().map(|&number| number as u8).collect();
                let four = b.swizzle(numbers, numbers, &picks);
                list.push(b.bitcast(four, Type::vector(scalar_of(self.keys.element), 4)));
            }
        }
        list
    }

    /// Asks for the keys of the chunk from a token on.
    pub(super) fn ask_keys(&self, b: &mut Builder, bases: &[Value], start: Value) -> Keys {
        let place = self.key_place(b, bases, start);
        let codes = (0..self.key_loads()).map(|load| self.load_keys(b, place, load)).collect();
        Keys { codes, scales: self.ask_scales(b, Side::K, bases, start) }
    }

    /// Asks for scales, and offsets, of the tokens of this lane's keys, where tokens have some.
    pub(super) fn ask_scales(&self, b: &mut Builder, side: Side, bases: &[Value], start: Value) -> Vec<Value> {
        let part = self.op.layout.part(side);
        let mut list = Vec::new();
        if part.codes.per == KvPer::Token && !part.codes.code.is_plain() {
            list.push(self.of_tokens(b, bases, start, part.scale));
            if part.codes.asymmetric {
                list.push(self.of_tokens(b, bases, start, part.offset));
            }
        }
        list
    }

    /// Scales and offsets as numbers: for each of the four tokens.
    pub(super) fn scales_of(&self, b: &mut Builder, asked: &[Value]) -> Vec<Value> {
        let one = |b: &mut Builder, bits: Value| {
            let wide = b.cast(CastOp::ExtendU, bits, Scalar::I32);
            let high = b.bin_imm(BinOp::Shl, wide, 16);
            b.bitcast(high, Type::vector(Scalar::F32, 4))
        };
        asked.iter().map(|&bits| one(b, bits)).collect()
    }

    /// Sums of products of the queries and a chunk's keys, times scales of tokens: those of four tokens, for each of two rows.
    pub(super) fn scores(
        &self,
        b: &mut Builder,
        queries: &[Value],
        (bases, start): (&[Value], Value),
        keys: Option<&Keys>,
    ) -> softmax::Scores {
        let mut sums = [b.f32(4, 0.0); 2];
        let steps = self.keys.steps();
        let mut one = |b: &mut Builder, load: usize, codes: &[Value]| {
            for (step, tiles) in self.keys.tiles(b, codes).into_iter().enumerate() {
                for (sum, tile) in sums.iter_mut().zip(tiles) {
                    *sum = b.mma(self.shapes[0], tile, queries[load * steps + step], *sum);
                }
            }
        };
        let scales = match keys {
            Some(keys) => {
                keys.codes.iter().enumerate().for_each(|(load, codes)| one(b, load, codes));
                keys.scales.clone()
            }
            None => {
                let place = self.key_place(b, bases, start);
                let scales = self.ask_scales(b, Side::K, bases, start);
                let batch = (UNDER_WAY * self.key_loads() / self.words(Side::K).max(1)).max(1);
                for first in (0..self.key_loads()).step_by(batch) {
                    let loads = first..(first + batch).min(self.key_loads());
                    let codes: Vec<_> = loads.clone().map(|load| self.load_keys(b, place, load)).collect();
                    loads.zip(&codes).for_each(|(load, codes)| one(b, load, codes));
                }
                scales
            }
        };
        let mut scales = self.scales_of(b, &scales);
        if let Some(scale) = scales.first_mut().filter(|_| self.keys.unit() != 1.0) {
            let unit = b.f32(4, self.keys.unit());
            *scale = b.mul(*scale, unit);
        }
        softmax::Scores { sums, scales }
    }

    /// Asks for the values of pairs of blocks of channels, `[pair][step]`.
    pub(super) fn ask_values(
        &self,
        b: &mut Builder,
        places: &[[Value; 2]],
        pairs: std::ops::Range<usize>,
    ) -> Vec<Vec<Vec<Value>>> {
        let steps = self.value_steps();
        pairs.map(|pair| (0..steps).map(|step| self.load_values(b, places, pair, step)).collect()).collect()
    }

    /// Adds the weighted values of a chunk to the outputs.
    pub(super) fn weigh(
        &self,
        b: &mut Builder,
        (start, places): (Value, &[[Value; 2]]),
        (first, batch): (Vec<Vec<Vec<Value>>>, usize),
        weights: &[Value],
        state: &mut State,
    ) {
        let masks = self.masks(b, start);
        let mut loads = first;
        let mut done = 0;
        while done < self.value_pairs() {
            for (number, steps) in loads.iter().enumerate() {
                for (step, codes) in steps.iter().enumerate() {
                    let codes = self.masked(b, &masks, step, codes);
                    for (i, tiles) in self.values.tiles(b, &codes).into_iter().enumerate() {
                        for (half, tile) in tiles.into_iter().enumerate() {
                            let sum = &mut state.outputs[2 * (done + number) + half];
                            *sum = b.mma(self.shapes[1], tile, weights[step * self.values.steps() + i], *sum);
                        }
                    }
                }
            }
            done += loads.len();
            let next = done..(done + batch).min(self.value_pairs());
            loads = self.ask_values(b, places, next);
        }
    }

    /// For each load along the tokens, what keeps codes past the item's end out: codes of words are masked by bits, plain ones
    /// are taken or left. `None` where no code is a NaN.
    pub(super) fn masks(&self, b: &mut Builder, start: Value) -> Option<Vec<Vec<Value>>> {
        if !self.values.has_nan() {
            return None;
        }
        let left = b.bin(BinOp::Sub, self.item[4], start);
        let own = times(b, self.t, 4);
        let left = b.bin(BinOp::Sub, left, own);
        let plain = self.op.layout.v.codes.code.is_plain();
        let of = |b: &mut Builder, step: usize| {
            let left = b.bin_imm(BinOp::Add, left, -(16 * step as i64));
            if plain {
                let there = |j: i64| {
                    let number = b.int(Scalar::I32, j);
                    b.cmp(CmpOp::LtS, number, left)
                };
                return (0..4).map(there).collect();
            }
            let (zero, three) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 3));
            let some = b.bin(BinOp::MaxS, left, zero);
            let some = b.bin(BinOp::MinS, some, three);
            let bits = times(b, some, 8);
            let one = b.int(Scalar::I32, 1);
            let power = b.bin(BinOp::Shl, one, bits);
            let mask = b.bin_imm(BinOp::Add, power, -1);
            let all = b.int(Scalar::I32, -1);
            let whole = b.cmp(CmpOp::LtS, three, left);
            vec![b.select(whole, all, mask)]
        };
        Some((0..self.value_steps()).map(|step| of(b, step)).collect())
    }

    pub(super) fn masked(
        &self,
        b: &mut Builder,
        masks: &Option<Vec<Vec<Value>>>,
        step: usize,
        codes: &[Value],
    ) -> Vec<Value> {
        let Some(masks) = masks else { return codes.to_vec() };
        if !self.op.layout.v.codes.code.is_plain() {
            let mask = b.splat(masks[step][0], 4);
            return vec![b.bin(BinOp::And, codes[0], mask)];
        }
        let none = b.int(Type::vector(Scalar::I32, 2), 0);
        codes.iter().zip(&masks[step]).map(|(&codes, &there)| b.select(there, codes, none)).collect()
    }
}
