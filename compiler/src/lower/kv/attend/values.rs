//! Weights of attention, and the values that they weigh.

use super::super::super::memory::{at, split, times};
use super::super::{codes, int, least, plus};
use super::weights::where_seen;
use super::{FMA, Kernel, LOWEST, Tile, across, chained, row_blocks, unchained};
use crate::format::kv::{KvCodes, KvPer, Side};
use crate::ir::{BinOp, Builder, CmpOp, Value};

/// What is done for the tokens of a page: from the number in the tile of the first one, how many there are, and the state.
pub(super) type OfPage<'a> = dyn FnMut(&mut Builder, Value, Value, &[Value]) -> Vec<Value> + 'a;

impl Kernel<'_> {
    /// Numbers that a thread takes at once from a row in shared memory.
    pub(super) fn wide(&self) -> u8 {
        self.lanes.max(4)
    }

    /// The largest score of each row, and the correction of what came before.
    pub(super) fn largest(&self, b: &mut Builder, tile: Tile) {
        let blocks = tile.blocks;
        let rows = self.rows_value(b);
        self.each(b, rows, 1, &mut |b, row| {
            let wide = self.wide();
            let line = times(b, row, self.tile);
            let (zero, lowest) = (int(b, 0), b.f32(wide, LOWEST));
            let top = b.for_loop(zero, blocks, wide as i64, &[lowest], |b, t, top| {
                let index = b.add(line, t);
                let s = self.read(b, self.arrays.s, index, 0, wide);
                vec![b.bin(BinOp::Max, top[0], s)]
            });
            let top = across(b, BinOp::Max, top[0]);
            let before = self.read(b, self.arrays.stat, row, 0, 1);
            let now = b.bin(BinOp::Max, before, top);
            let difference = b.bin(BinOp::Sub, before, now);
            let correction = codes::power_of_two(b, difference);
            self.write(b, self.arrays.stat, row, 0, now);
            self.write(b, self.arrays.stat, row, self.padded, correction);
        });
    }

    /// Weights of tokens, and these times the scales of their values.
    pub(super) fn weights(&self, b: &mut Builder, tile: Tile) {
        let lanes = self.lanes;
        self.each(b, tile.blocks, lanes as usize, &mut |b, local| {
            let scale = self
                .arrays
                .p
                .filter(|_| !self.weighs_groups())
                .map(|_| self.scales_of_values(b, (tile, local), None, lanes).0);
            let (zero, rows) = (int(b, 0), self.rows_value(b));
            b.for_loop(zero, rows, 1, &[], |b, row, _| {
                let top = self.read(b, self.arrays.stat, row, 0, 1);
                let top = b.splat(top, lanes);
                let line = times(b, row, self.tile);
                let index = b.add(line, local);
                let s = self.read(b, self.arrays.s, index, 0, lanes);
                let x = b.bin(BinOp::Sub, s, top);
                let p = codes::power_of_two(b, x);
                self.write(b, self.arrays.s, index, 0, p);
                if let (Some(memory), Some(scale)) = (self.arrays.p, scale) {
                    let weight = b.mul(p, scale);
                    let weight = where_seen(b, p, weight);
                    self.write(b, memory, index, 0, weight);
                }
                Vec::new()
            });
        });
    }

    /// Sums of weights, and of weights times offsets of whole tokens.
    pub(super) fn sums(&self, b: &mut Builder, tile: Tile) {
        let blocks = tile.blocks;
        let part = &self.op.layout.v;
        let kind = part.codes;
        let rows = self.rows_value(b);
        self.each(b, rows, 1, &mut |b, row| {
            let wide = self.wide();
            let line = times(b, row, self.tile);
            // Weights in steps; their sum is that of their multiples.
            let rounded = match (&self.arrays.p_factors, self.arrays.p) {
                (Some(factors), Some(memory)) if !self.weighs_groups() => {
                    let (sum, step) = self.quantize(b, &factors.packing, memory, (line, blocks));
                    self.pack(b, factors, memory, (line, blocks));
                    self.write_weight_step(b, row, step);
                    Some(b.mul(sum, step))
                }
                _ => None,
            };
            let (zero, none) = (int(b, 0), b.f32(wide, 0.0));
            // Offsets of tokens are read side by side: as many as share a page.
            let state = b.for_loop(zero, blocks, wide as i64, &[none, none], |b, t, state| {
                let index = b.add(line, t);
                let p = self.read(b, self.arrays.s, index, 0, wide);
                let sum = b.add(state[0], p);
                let offsets = match (self.arrays.p, kind.asymmetric) {
                    _ if grouped(&kind) => state[1],
                    (Some(memory), false) if kind.bias() != 0.0 && rounded.is_none() => {
                        let weight = self.read(b, memory, index, 0, wide);
                        b.add(state[1], weight)
                    }
                    (_, true) => {
                        let offset = if kind.is_static() {
                            let (_, offset) = self.scales(Side::V).given(b, part, self.head);
                            b.splat(offset, wide)
                        } else {
                            let (base, within) = self.page_of(b, tile, t);
                            let place = times(b, within, 2);
                            let place = b.add(base, place);
                            codes::bf16(b, self.params.get("pool"), place, part.offset, wide)
                        };
                        let offset = where_seen(b, p, offset);
                        b.fma(p, offset, state[1])
                    }
                    _ => state[1],
                };
                vec![sum, offsets]
            });
            let sum = across(b, BinOp::Add, state[0]);
            let offsets = match rounded {
                Some(sum) if !kind.asymmetric => sum,
                _ => across(b, BinOp::Add, state[1]),
            };
            let offsets = if kind.asymmetric { offsets } else { self.times_constant(b, offsets, -kind.bias()) };
            let correction = self.read(b, self.arrays.stat, row, self.padded, 1);
            let before = self.read(b, self.arrays.stat, row, 2 * self.padded, 1);
            let total = b.fma(before, correction, sum);
            self.write(b, self.arrays.stat, row, 2 * self.padded, total);
            self.write(b, self.arrays.stat, row, 3 * self.padded, offsets);
        });
    }

    /// Outputs after the tokens of a tile.
    pub(super) fn outputs(&self, b: &mut Builder, tile: Tile) {
        let part = &self.op.layout.v;
        if !self.weighs_groups() {
            return self.outputs_of(b, tile, (None, part.head_dim));
        }
        let (zero, groups) = (int(b, 0), int(b, part.codes.groups(part.head_dim)));
        let size = part.codes.group(part.head_dim);
        b.for_loop(zero, groups, 1, &[], |b, group, _| {
            self.group_weights(b, tile, group);
            let first = times(b, group, size);
            self.outputs_of(b, tile, (Some(first), size));
            self.meet(b);
            Vec::new()
        });
    }

    /// Outputs of so many channels, from the first one on or another.
    fn outputs_of(&self, b: &mut Builder, tile: Tile, (first, channels): (Option<Value>, usize)) {
        let part = &self.op.layout.v;
        let lanes = self.lanes;
        let vectors = if self.lanes == 1 { 1 } else { self.vectors(Side::V) };
        let width = lanes as usize * vectors;
        let end = int(b, channels);
        let blocks = row_blocks(self.rows, self.schedule.rows as usize);
        let offsets = has_offsets(&part.codes) && (!grouped(&part.codes) || self.weighs_groups());
        self.each(b, end, width, &mut |b, channel| {
            let channel = first.map_or(channel, |first| b.add(first, channel));
            for rows in blocks.clone() {
                // Sums of short factors come first: few registers are left while they are made.
                let factors = self.arrays.p_factors.as_ref();
                let sums = factors
                    .map(|factors| (factors, self.weighted_codes(b, factors, (tile, channel), rows.clone(), vectors)));
                let mut state = Vec::new();
                for row in rows.clone() {
                    let place = int(b, row);
                    let correction = self.read(b, self.arrays.stat, place, self.padded, 1);
                    let correction = b.splat(correction, lanes);
                    let added = offsets.then(|| self.read(b, self.arrays.stat, place, 3 * self.padded, 1));
                    let added = added.map(|added| b.splat(added, lanes));
                    for v in 0..vectors {
                        let o = self.read(b, self.arrays.o, channel, row * part.head_dim + v * lanes as usize, lanes);
                        state.push(match added {
                            Some(added) => b.fma(o, correction, added),
                            None => b.mul(o, correction),
                        });
                    }
                }
                let state = match sums {
                    Some((factors, sums)) => self.with_steps(b, factors, rows.clone(), &sums, &state),
                    None => self.weighted(b, (tile, channel), rows.clone(), state),
                };
                for (r, row) in rows.enumerate() {
                    for v in 0..vectors {
                        let offset = row * part.head_dim + v * lanes as usize;
                        self.write(b, self.arrays.o, channel, offset, state[r * vectors + v]);
                    }
                }
            }
        });
    }

    /// Adds the weighted values of the tokens of a tile, of some rows and channels.
    fn weighted(
        &self,
        b: &mut Builder,
        (tile, channel): (Tile, Value),
        rows: std::ops::Range<usize>,
        state: Vec<Value>,
    ) -> Vec<Value> {
        let (part, lanes) = (&self.op.layout.v, self.lanes);
        let kind = part.codes;
        let vectors = state.len() / rows.len();
        let (per, stride) = (kind.code.per_unit(), part.stride());
        let pool = self.params.get("pool");
        let weights = self.arrays.p.unwrap_or(self.arrays.s);
        let ty = self.values.unit_type(lanes);
        let align = (ty.bytes()).min(32);
        let zero = int(b, 0);
        self.by_page(b, tile, &state, &mut |b, done, left, state| {
            let (base, within) = self.page_of(b, tile, done);
            let units = plus(b, left, per - 1);
            let units = b.bin_imm(BinOp::ShrU, units, per.trailing_zeros() as i64);
            let place = codes::unit_place(b, &self.op.layout, Side::V, within, channel);
            let hint = if rows.start == 0 { self.hint(b, tile, done, (base, within), Some(channel)) } else { None };
            let place = b.add(base, place);
            // A GPU has other threads to go on with while a turn ends.
            let turn = if self.lanes > 1 { (8 / per).max(2) } else { 1 };
            let run = |b: &mut Builder, (from, to, turn): (Value, Value, usize), state: &[Value]| {
                let (chains, count) = (self.chains(state.len(), turn, FMA), state.len());
                let none = b.f32(lanes, 0.0);
                let all = b.for_loop(from, to, turn as i64, &chained(state, none, chains), |b, unit, state| {
                    let mut state = state.to_vec();
                    let further = times(b, unit, stride);
                    let place = b.add(place, further);
                    self.foresee(b, Side::V, hint, unit, turn);
                    for i in 0..turn {
                        let unit = plus(b, unit, i);
                        let words: Vec<codes::Opened> = (0..vectors)
                            .map(|v| {
                                let offset = i * stride + self.vector_offset(Side::V, v);
                                let word = b.load(ty, at(pool, Some(place), offset), align);
                                self.values.open(b, word)
                            })
                            .collect();
                        let first = times(b, unit, per);
                        let index = b.add(done, first);
                        for j in 0..per {
                            let scaled = grouped(&kind).then(|| {
                                let within = b.add(within, first);
                                let within = plus(b, within, j);
                                let further = plus(b, first, j);
                                let inside = b.cmp(CmpOp::LtS, further, left);
                                self.group_scales(b, base, channel, within, inside)
                            });
                            let values: Vec<Value> = words
                                .iter()
                                .map(|&word| {
                                    let number = self.values.number(b, word, j);
                                    match scaled {
                                        Some((scale, offset)) => {
                                            let (scale, offset) = (b.splat(scale, lanes), b.splat(offset, lanes));
                                            b.fma(number, scale, offset)
                                        }
                                        None => number,
                                    }
                                })
                                .collect();
                            for (r, row) in rows.clone().enumerate() {
                                let p = self.read(b, weights, index, row * self.tile + j, 1);
                                let p = b.splat(p, lanes);
                                for (v, &value) in values.iter().enumerate() {
                                    let sum = &mut state[i % chains * count + r * vectors + v];
                                    *sum = b.fma(value, p, *sum);
                                }
                            }
                        }
                    }
                    state
                });
                unchained(b, &all, count)
            };
            if turn == 1 {
                return run(b, (zero, units, 1), state);
            }
            // Most of them in turns, then the rest.
            let most = b.bin_imm(BinOp::And, units, -(turn as i64));
            let state = run(b, (zero, most, turn), state);
            run(b, (most, units, 1), &state)
        })
    }

    /// Does something for the tokens of each page of a tile: a tile is a part of a page, or some pages.
    pub(super) fn by_page(&self, b: &mut Builder, tile: Tile, state: &[Value], body: &mut OfPage<'_>) -> Vec<Value> {
        let count = tile.count;
        let zero = int(b, 0);
        if tile.home.is_some() {
            return body(b, zero, count, state);
        }
        let page = self.op.layout.page.min(self.tile);
        b.for_loop(zero, count, page as i64, state, |b, done, state| {
            let left = b.bin(BinOp::Sub, count, done);
            let whole = int(b, page);
            let left = least(b, left, whole);
            body(b, done, left, state)
        })
    }

    /// Scale and offset of a token's group of values; 0 past the last token, where anything may lie.
    fn group_scales(
        &self,
        b: &mut Builder,
        base: Value,
        channel: Value,
        within: Value,
        inside: Value,
    ) -> (Value, Value) {
        let part = &self.op.layout.v;
        let pool = self.params.get("pool");
        let (group, _) = split(b, channel, part.codes.group(part.head_dim));
        let index = codes::index(b, &self.op.layout, Side::V, within, group, false);
        let none = b.f32(1, 0.0);
        let (scale, offset) = if part.codes.two_level {
            let place = b.add(base, index);
            (codes::bytes(b, pool, place, part.inner, 1), None)
        } else {
            let place = times(b, index, 2);
            let place = b.add(base, place);
            let offset = part.codes.asymmetric.then(|| codes::bf16(b, pool, place, part.offset, 1));
            (codes::bf16(b, pool, place, part.scale, 1), offset)
        };
        let scale = b.select(inside, scale, none);
        let offset = match offset {
            Some(offset) => b.select(inside, offset, none),
            None => self.times_constant(b, scale, -part.codes.bias()),
        };
        (self.times_constant(b, scale, self.values.factors().0), offset)
    }
}

/// Whether values of one token have several scales, which no weight can take over.
pub(super) fn grouped(kind: &KvCodes) -> bool {
    matches!(kind.per, KvPer::Group(_))
}

/// Whether weights are multiplied by scales of whole tokens.
pub(super) fn scales_weights(kind: &KvCodes) -> bool {
    !kind.code.is_plain() && (!grouped(kind) || kind.two_level)
}

pub(super) fn has_offsets(kind: &KvCodes) -> bool {
    kind.asymmetric || kind.bias() != 0.0
}
