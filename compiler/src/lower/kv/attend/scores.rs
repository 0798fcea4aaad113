//! Scores of attention: products of queries and keys, scales and offsets, soft cap, bias, mask.

use super::super::super::memory::{at, times};
use super::super::{codes, int, plus};
use super::place::Hint;
use super::{FMA, Kernel, Tile, chained, row_blocks, unchained};
use crate::format::kv::{KvPer, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, UnOp, Value};
use crate::op::kv::Sight;

impl Kernel<'_> {
    /// Scores of a tile.
    pub(super) fn scores(&self, b: &mut Builder, tile: Tile) {
        let width = self.lanes as usize * self.vectors(Side::K);
        self.each(b, tile.blocks, width, &mut |b, local| {
            let token = b.add(tile.start, local);
            let (base, within) = self.page_of(b, tile, local);
            let zero = int(b, 0);
            let unit = codes::unit_place(b, &self.op.layout, Side::K, within, zero);
            let keys = b.add(base, unit);
            let mut hint = self.hint(b, tile, local, (base, within), None);
            for rows in row_blocks(self.rows, self.schedule.rows as usize) {
                // Asking once for each line is enough.
                let sums = self.dots(b, base, (keys, hint.take()), within, rows.clone());
                for (row, sums) in rows.zip(sums) {
                    for (v, sum) in sums.into_iter().enumerate() {
                        let offset = v * self.lanes as usize;
                        let token = plus(b, token, offset);
                        let score = self.shaped(b, row, token, sum);
                        self.write(b, self.arrays.s, local, row * self.tile + offset, score);
                    }
                }
            }
        });
    }

    /// Products of queries and keys, scaled: for each row, for each vector of tokens.
    fn dots(
        &self,
        b: &mut Builder,
        base: Value,
        (keys, hint): (Value, Option<Hint>),
        within: Value,
        rows: std::ops::Range<usize>,
    ) -> Vec<Vec<Value>> {
        let (part, lanes, vectors) = (&self.op.layout.k, self.lanes, self.vectors(Side::K));
        let kind = part.codes;
        let (per, stride) = (kind.code.per_unit(), part.stride());
        let queries = self.arrays.q_page.unwrap_or(self.arrays.q);
        let pool = self.params.get("pool");
        let ty = self.keys.unit_type(lanes);
        let zero = b.f32(lanes, 0.0);
        let count = rows.len() * vectors;
        let zeros = vec![zero; count];
        let group = kind.group(part.head_dim);
        // Units per turn: enough to hide the loop.
        let turn = (8 / per).max(1).min(group / per);
        let run = |b: &mut Builder, (own, first): (Option<Value>, Value), channels: usize, state: &[Value]| {
            if let Some(factors) = &self.arrays.q_factors {
                return self.key_products(b, factors, (keys, hint), (own, first, channels), rows.clone());
            }
            let end = plus(b, first, channels / per);
            let chains = self.chains(state.len(), turn, FMA);
            let all = b.for_loop(first, end, turn as i64, &chained(state, zero, chains), |b, unit, state| {
                let mut state = state.to_vec();
                let further = times(b, unit, stride);
                let place = b.add(keys, further);
                let channel = times(b, unit, per);
                self.foresee(b, Side::K, hint, unit, turn);
                for i in 0..turn {
                    let units: Vec<codes::Opened> = (0..vectors)
                        .map(|v| {
                            let offset = i * stride + self.vector_offset(Side::K, v);
                            let align = (ty.bytes()).min(32);
                            let unit = b.load(ty, at(pool, Some(place), offset), align);
                            self.keys.open(b, unit)
                        })
                        .collect();
                    for j in 0..per {
                        let numbers: Vec<Value> = units.iter().map(|&unit| self.keys.number(b, unit, j)).collect();
                        for (r, row) in rows.clone().enumerate() {
                            let q = self.read(b, queries, channel, row * part.head_dim + i * per + j, 1);
                            let q = b.splat(q, lanes);
                            for (v, &number) in numbers.iter().enumerate() {
                                let sum = &mut state[i % chains * count + r * vectors + v];
                                *sum = b.fma(number, q, *sum);
                            }
                        }
                    }
                }
                state
            });
            unchained(b, &all, count)
        };
        let zero = int(b, 0);
        let post = self.keys.factors().1;
        let per_row = |flat: Vec<Value>| flat.chunks(vectors).map(<[Value]>::to_vec).collect::<Vec<_>>();
        if kind.code.is_plain() {
            return per_row(run(b, (None, zero), part.head_dim, &zeros));
        }
        if let KvPer::Group(_) = kind.per {
            let groups = int(b, kind.groups(part.head_dim));
            let totals = b.for_loop(zero, groups, 1, &zeros, |b, g, totals| {
                let first = times(b, g, group / per);
                let sums = run(b, (Some(g), first), group, &zeros);
                let mut next = Vec::new();
                for v in 0..vectors {
                    let index = codes::index(b, &self.op.layout, Side::K, within, g, false);
                    let (scale, offset) = if kind.two_level {
                        let place = b.add(base, index);
                        (codes::bytes(b, pool, place, part.inner + v * lanes as usize, lanes), None)
                    } else {
                        self.token_scales(b, base, index, v)
                    };
                    let scale = self.times_constant(b, scale, post);
                    let offset = self.offset_of_keys(b, scale, offset);
                    for (r, row) in rows.clone().enumerate() {
                        let i = r * vectors + v;
                        let taken = self.taken(b, (Some(g), row), (Some(scale), offset), Some(totals[i]));
                        next.push((i, scored(b, sums[i], taken)));
                    }
                }
                next.sort_by_key(|&(i, _)| i);
                next.into_iter().map(|(_, value)| value).collect()
            });
            let mut totals = per_row(totals);
            if kind.two_level {
                for v in 0..vectors {
                    let (outer, _) = self.token_scales(b, base, within, v);
                    for row in &mut totals {
                        row[v] = b.mul(row[v], outer);
                    }
                }
            }
            return totals;
        }
        let mut out = per_row(run(b, (None, zero), part.head_dim, &zeros));
        if kind.per == KvPer::Token {
            for v in 0..vectors {
                let (scale, offset) = self.token_scales(b, base, within, v);
                let scale = self.times_constant(b, scale, post);
                let offset = self.offset_of_keys(b, scale, offset);
                for (sums, row) in out.iter_mut().zip(rows.clone()) {
                    let taken = self.taken(b, (None, row), (Some(scale), offset), None);
                    sums[v] = scored(b, sums[v], taken);
                }
            }
            return out;
        }
        // One scale for all tokens, or each in the queries of its page: the same for all vectors of a row.
        let (scale, offset) = if self.folds_keys() {
            ((post != 1.0).then(|| b.f32(lanes, post)), None)
        } else {
            let (scale, offset) = self.scales(Side::K).given(b, part, self.head);
            let (scale, offset) = (b.splat(scale, lanes), kind.asymmetric.then(|| b.splat(offset, lanes)));
            let scale = self.times_constant(b, scale, post);
            (Some(scale), self.offset_of_keys(b, scale, offset))
        };
        for (sums, row) in out.iter_mut().zip(rows) {
            let taken = self.taken(b, (None, row), (scale, offset), None);
            sums.iter_mut().for_each(|sum| *sum = scored(b, *sum, taken));
        }
        out
    }

    /// What keys are off by before their scale, where sums of queries make up for it: offsets, or the bias of codes.
    fn offset_of_keys(&self, b: &mut Builder, scale: Value, offset: Option<Value>) -> Option<Value> {
        let bias = self.op.layout.k.codes.bias();
        offset.or_else(|| (bias != 0.0 && !self.has_steps(Side::K)).then(|| self.times_constant(b, scale, -bias)))
    }

    /// What the sums of a row's products with keys of a group are multiplied by, scales and step, and what is added then: what
    /// offsets come to, after what is `before`.
    fn taken(
        &self,
        b: &mut Builder,
        (group, row): (Option<Value>, usize),
        (scale, offset): (Option<Value>, Option<Value>),
        before: Option<Value>,
    ) -> (Option<Value>, Option<Value>) {
        let start = match (self.query_sum(b, group, row), offset, before) {
            (Some(sum), Some(offset), Some(before)) => Some(b.fma(sum, offset, before)),
            (Some(sum), Some(offset), None) => Some(b.mul(sum, offset)),
            // The sum of a page's queries is one with its offsets.
            (Some(sum), None, _) => Some(sum),
            (None, _, before) => before,
        };
        let whole = match (scale, self.query_step(b, group, row)) {
            (Some(scale), Some(step)) => Some(b.mul(scale, step)),
            (scale, step) => scale.or(step),
        };
        (whole, start)
    }

    /// Whether the factors of a side are multiples of a step.
    pub(super) fn has_steps(&self, side: Side) -> bool {
        let factors = if side == Side::K { &self.arrays.q_factors } else { &self.arrays.p_factors };
        factors.as_ref().is_some_and(|factors| factors.packing.steps().is_some())
    }

    pub(super) fn times_constant(&self, b: &mut Builder, x: Value, factor: f32) -> Value {
        if factor == 1.0 {
            return x;
        }
        let factor = b.f32(b.ty(x).lanes, factor);
        b.mul(x, factor)
    }

    /// Scale and offset of a vector of tokens; `index` is the scale's number of the block's first one.
    fn token_scales(&self, b: &mut Builder, base: Value, index: Value, v: usize) -> (Value, Option<Value>) {
        let (part, pool) = (&self.op.layout.k, self.params.get("pool"));
        let place = times(b, index, 2);
        let place = b.add(base, place);
        let further = v * self.lanes as usize * 2;
        let scale = codes::bf16(b, pool, place, part.scale + further, self.lanes);
        let offset = part.codes.asymmetric.then(|| codes::bf16(b, pool, place, part.offset + further, self.lanes));
        (scale, offset)
    }

    /// The numbers of lanes.
    pub(super) fn lane_numbers(&self, b: &mut Builder) -> Value {
        if self.lanes == 1 {
            return b.int(Scalar::I32, 0);
        }
        let numbers: Vec<u64> = (0..self.lanes.into()).collect();
        b.lanes(Scalar::I32, &numbers)
    }

    /// Which lanes, of these numbers, hold something where `left` (`i64`) are left.
    pub(super) fn lanes_before(&self, b: &mut Builder, lane: Value, left: Value) -> Value {
        let left = b.cast(CastOp::Truncate, left, Scalar::I32);
        let left = b.splat(left, self.lanes);
        b.cmp(CmpOp::LtS, lane, left)
    }

    /// A score after soft cap, bias and mask, in units of ln 2.
    fn shaped(&self, b: &mut Builder, row: usize, token: Value, score: Value) -> Value {
        let lanes = self.lanes;
        let mut s = score;
        if let Some(cap) = self.op.softcap {
            s = soft_cap(b, s, cap);
            s = self.times_constant(b, s, std::f32::consts::LOG2_E);
        }
        let group = self.op.group();
        let position = plus(b, self.item[5], row / group);
        let lane = self.lane_numbers(b);
        let narrow = |b: &mut Builder, x: Value| {
            let x = b.cast(CastOp::Truncate, x, Scalar::I32);
            b.splat(x, lanes)
        };
        // The token's distance behind the query, lane by lane: at least 0 where it is seen.
        let behind = b.bin(BinOp::Sub, position, token);
        let behind = narrow(b, behind);
        let behind = b.bin(BinOp::Sub, behind, lane);
        if self.op.alibi {
            let head = times(b, self.head, group);
            let head = plus(b, head, row % group);
            let place = times(b, head, 4);
            let slope = b.load(Scalar::F32, at(self.params.get("slopes"), Some(place), 0), 4);
            let slope = self.times_constant(b, slope, -std::f32::consts::LOG2_E);
            let slope = b.splat(slope, lanes);
            let distance = b.cast(CastOp::IntToFloatS, behind, Scalar::F32);
            s = b.fma(slope, distance, s);
        }
        let unseen = b.f32(lanes, f32::NEG_INFINITY);
        let zero = b.int(Type::vector(Scalar::I32, lanes), 0);
        let before = b.cmp(CmpOp::LeS, zero, behind);
        let left = b.bin(BinOp::Sub, self.item[4], token);
        let inside = self.lanes_before(b, lane, left);
        let mut seen = b.bin(BinOp::And, before, inside);
        if let Sight::Window { window, first } = self.op.sight {
            let limit = b.int(Type::vector(Scalar::I32, lanes), window as i64);
            let near = b.cmp(CmpOp::LtS, behind, limit);
            let near = if first == 0 {
                near
            } else {
                let number = narrow(b, token);
                let number = b.add(number, lane);
                let limit = b.int(Type::vector(Scalar::I32, lanes), first as i64);
                let early = b.cmp(CmpOp::LtS, number, limit);
                b.bin(BinOp::Or, near, early)
            };
            seen = b.bin(BinOp::And, seen, near);
        }
        b.select(seen, s, unseen)
    }
}

/// A sum of products times what is taken, and what is added then.
fn scored(b: &mut Builder, sum: Value, taken: (Option<Value>, Option<Value>)) -> Value {
    match taken {
        (Some(whole), Some(start)) => b.fma(sum, whole, start),
        (Some(whole), None) => b.mul(sum, whole),
        (None, Some(start)) => b.add(sum, start),
        (None, None) => sum,
    }
}

/// `cap · tanh(s / cap)`, by `(1 - t) / (1 + t)` with `t = 2^(-2 |s / cap| log2 e)`.
pub(super) fn soft_cap(b: &mut Builder, s: Value, cap: f32) -> Value {
    let lanes = b.ty(s).lanes;
    let size = b.un(UnOp::Abs, s);
    let factor = b.f32(lanes, -2.0 * std::f32::consts::LOG2_E / cap);
    let x = b.mul(size, factor);
    let t = codes::power_of_two(b, x);
    let one = b.f32(lanes, 1.0);
    let (above, below) = (b.bin(BinOp::Sub, one, t), b.add(one, t));
    let ratio = b.bin(BinOp::Div, above, below);
    let cap = b.f32(lanes, cap);
    let y = b.mul(ratio, cap);
    let zero = b.f32(lanes, 0.0);
    let negative = b.cmp(CmpOp::Lt, s, zero);
    let other = b.un(UnOp::Neg, y);
    b.select(negative, other, y)
}
