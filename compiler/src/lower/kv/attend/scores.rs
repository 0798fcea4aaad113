//! Scores of attention: products of queries and keys, scales and offsets, soft cap, bias, mask.

use super::super::super::memory::{at, times};
use super::super::{codes, int, plus};
use super::place::Hint;
use super::{FMA, Kernel, STEP, Tile, chained, row_blocks, unchained};
use crate::format::kv::{KvPer, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, UnOp, Value};
use crate::op::kv::Sight;

impl Kernel<'_> {
    /// Queries times the scales of the channels of a page.
    pub(super) fn page_queries(&self, b: &mut Builder, tile: Tile) {
        let part = &self.op.layout.k;
        let (Some(memory), pool) = (self.arrays.q_page, self.params.get("pool")) else { return };
        let zero = int(b, 0);
        let (base, _) = self.page_of(b, tile, zero);
        let dim = int(b, part.head_dim);
        self.each(b, dim, 1, &mut |b, c| {
            let place = times(b, c, 2);
            let place = b.add(base, place);
            let scale = codes::bf16(b, pool, place, part.scale, 1);
            for row in 0..self.rows {
                let x = self.read(b, self.arrays.q, c, row * part.head_dim, 1);
                let x = b.mul(x, scale);
                self.write(b, memory, c, row * part.head_dim, x);
            }
        });
        let Some(sums) = self.arrays.q_sum else { return };
        if part.codes.asymmetric {
            // The same for every token of the page: Σ q · offset.
            let rows = self.rows_value(b);
            self.each(b, rows, 1, &mut |b, row| {
                let (zero, none) = (int(b, 0), b.f32(1, 0.0));
                let line = times(b, row, part.head_dim);
                let sum = b.for_loop(zero, dim, 1, &[none], |b, c, sum| {
                    let index = b.add(line, c);
                    let x = self.read(b, self.arrays.q, index, 0, 1);
                    let place = times(b, c, 2);
                    let place = b.add(base, place);
                    let offset = codes::bf16(b, pool, place, part.offset, 1);
                    vec![b.fma(x, offset, sum[0])]
                });
                self.write(b, sums, row, 0, sum[0]);
            });
        } else {
            // The bias of nibbles: Σ q · scale, times -bias.
            self.meet(b);
            let rows = self.rows_value(b);
            self.each(b, rows, 1, &mut |b, row| {
                let none = b.f32(1, 0.0);
                let line = times(b, row, part.head_dim);
                let end = plus(b, line, part.head_dim);
                let sum = b.for_loop(line, end, 1, &[none], |b, i, sum| {
                    let x = self.read(b, memory, i, 0, 1);
                    vec![b.add(sum[0], x)]
                });
                let bias = b.f32(1, -part.codes.bias());
                let sum = b.mul(sum[0], bias);
                self.write(b, sums, row, 0, sum);
            });
        }
    }

    /// Scores of `blocks` tokens from `start` on.
    pub(super) fn scores(&self, b: &mut Builder, tile: Tile, blocks: Value) {
        let width = self.lanes as usize * self.vectors(Side::K);
        self.each(b, blocks, width, &mut |b, local| {
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
        let run = |b: &mut Builder, first: Value, channels: usize, state: &[Value]| {
            if let Some(factors) = &self.arrays.q_factors {
                return self.key_products(b, factors, (keys, hint), (first, channels), rows.clone());
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
        let scales = self.scales(Side::K);
        let post = self.keys.factors().1;
        let per_row = |flat: Vec<Value>| flat.chunks(vectors).map(<[Value]>::to_vec).collect::<Vec<_>>();
        if kind.code.is_plain() {
            return per_row(run(b, zero, part.head_dim, &zeros));
        }
        if let KvPer::Group(_) = kind.per {
            let groups = int(b, kind.groups(part.head_dim));
            let totals = b.for_loop(zero, groups, 1, &zeros, |b, g, totals| {
                let first = times(b, g, group / per);
                let sums = run(b, first, group, &zeros);
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
                    for (r, row) in rows.clone().enumerate() {
                        let i = r * vectors + v;
                        let total = self.with_offset(b, row, Some(g), totals[i], scale, offset);
                        next.push((i, b.fma(sums[i], scale, total)));
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
            return self.in_steps(b, rows, totals);
        }
        let sums = per_row(run(b, zero, part.head_dim, &zeros));
        // What is the same for all tokens pays where it serves more than one step of them.
        if kind.is_static() && self.has_steps(Side::K) && lanes as usize * vectors > STEP {
            return self.scaled_at_once(b, rows, &sums);
        }
        let mut out = vec![Vec::new(); sums.len()];
        #[allow(clippy::needless_range_loop)] // The vector's number decides addresses as well.
        for v in 0..vectors {
            let (scale, offset) = match kind.per {
                KvPer::Token => self.token_scales(b, base, within, v),
                KvPer::Channel => (b.f32(lanes, 1.0), None),
                _ => {
                    let (scale, offset) = scales.given(b, part, self.head);
                    (b.splat(scale, lanes), kind.asymmetric.then(|| b.splat(offset, lanes)))
                }
            };
            let scale = self.times_constant(b, scale, post);
            for (r, row) in rows.clone().enumerate() {
                let Some(memory) = self.arrays.q_sum else {
                    out[r].push(b.mul(sums[r][v], scale));
                    continue;
                };
                let start = if kind.per == KvPer::Channel {
                    let index = int(b, row);
                    let sum = self.read(b, memory, index, 0, 1);
                    b.splat(sum, lanes)
                } else {
                    let none = b.f32(lanes, 0.0);
                    self.with_offset(b, row, None, none, scale, offset)
                };
                out[r].push(b.fma(sums[r][v], scale, start));
            }
        }
        self.in_steps(b, rows, out)
    }

    /// Scores of sums in integers, where one scale serves all tokens: its product with a row's step does, too.
    fn scaled_at_once(&self, b: &mut Builder, rows: std::ops::Range<usize>, sums: &[Vec<Value>]) -> Vec<Vec<Value>> {
        let (part, lanes) = (&self.op.layout.k, self.lanes);
        let (scale, offset) = self.scales(Side::K).given(b, part, self.head);
        let scale = b.splat(scale, lanes);
        let offset = part.codes.asymmetric.then(|| b.splat(offset, lanes));
        let none = b.f32(lanes, 0.0);
        let of_row = |(row, sums): (usize, &Vec<Value>)| {
            let step = self.step(b, row, 0);
            let whole = b.mul(scale, step);
            let start = self.arrays.q_sum.map(|_| {
                let start = self.with_offset(b, row, None, none, scale, offset);
                b.mul(start, step)
            });
            let of_vector = |&sum: &Value| match start {
                Some(start) => b.fma(sum, whole, start),
                None => b.mul(sum, whole),
            };
            sums.iter().map(of_vector).collect()
        };
        rows.zip(sums).map(of_row).collect()
    }

    /// Scores from multiples of the queries' steps.
    fn in_steps(&self, b: &mut Builder, rows: std::ops::Range<usize>, mut scores: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
        if self.has_steps(Side::K) {
            for (row, scores) in rows.zip(&mut scores) {
                let step = self.step(b, row, 0);
                scores.iter_mut().for_each(|score| *score = b.mul(*score, step));
            }
        }
        scores
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

    /// `total + Σ q · offset` of a row and group; the offset is `-bias · scale` where nibbles have a bias.
    fn with_offset(
        &self,
        b: &mut Builder,
        row: usize,
        group: Option<Value>,
        total: Value,
        scale: Value,
        offset: Option<Value>,
    ) -> Value {
        let Some(memory) = self.arrays.q_sum else { return total };
        let groups = self.op.layout.k.codes.groups(self.op.layout.k.head_dim);
        let zero = int(b, 0);
        let sum = self.read(b, memory, group.unwrap_or(zero), row * groups, 1);
        let sum = b.splat(sum, self.lanes);
        let offset = match offset {
            Some(offset) => offset,
            None => self.times_constant(b, scale, -self.op.layout.k.codes.bias()),
        };
        b.fma(sum, offset, total)
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
        let ids: Vec<u64> = (0..lanes as u64).collect();
        let lane = if lanes == 1 { b.int(Scalar::I32, 0) } else { b.lanes(Scalar::I32, &ids) };
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
        let left = narrow(b, left);
        let inside = b.cmp(CmpOp::LtS, lane, left);
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
