//! From sums of products to weights: scale, soft cap, bias, mask; the softmax of one subgroup; weights as operand B.
//!
//! Lane `4g + t` holds scores of tokens `4g` to `4g + 3` of the chunk for rows `2t` and `2t + 1`.

use super::super::super::codes;
use super::super::scores::soft_cap;
use super::{CHUNK, LIFT, Matrix, State};
use crate::format::kv::{KvCode, Side};
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, ShuffleMode, Type, Value};
use crate::lower::memory::{at, scalar_of, split, times};
use crate::op::kv::Sight;
use std::f32::consts::LOG2_E;

/// Sums of products, `[tile]`, and scales and offsets of tokens, where they have some.
pub(super) struct Scores {
    pub sums: [Value; 2],
    pub scales: Vec<Value>,
}

/// What makes scores of sums, for this lane's two rows.
pub(super) struct Shape {
    /// Multiplies a sum, `f32`.
    factor: Value,
    /// What a static offset of keys adds to a product of codes.
    added: Option<[Value; 2]>,
    /// Sums of the queries' numbers, where tokens have offsets.
    sums: Option<[Value; 2]>,
    positions: [Value; 2],
    /// Tokens that are seen lie before these.
    limits: [Value; 2],
    slopes: Option<[Value; 2]>,
}

impl Matrix<'_> {
    pub(super) fn shape(&self, b: &mut Builder, queries: &[Value]) -> Shape {
        let op = self.op;
        let column = times(b, self.t, 2);
        let rows = [0, 1].map(|e| {
            let row = b.bin_imm(BinOp::Add, column, e);
            b.bin_imm(BinOp::MinS, row, op.rows() as i64 - 1)
        });
        let positions = rows.map(|row| {
            let (query, _) = split(b, row, op.group());
            b.add(self.item[5], query)
        });
        let limits = positions.map(|position| {
            let next = b.bin_imm(BinOp::Add, position, 1);
            b.bin(BinOp::MinS, next, self.item[4])
        });
        let slopes = op.alibi.then(|| {
            rows.map(|row| {
                let (_, member) = split(b, row, op.group());
                let member = b.cast(CastOp::ExtendS, member, Scalar::I64);
                let head = times(b, self.head, op.group());
                let head = b.add(head, member);
                let place = times(b, head, 4);
                let slope = b.load(Scalar::F32, at(self.params.get("slopes"), Some(place), 0), 4);
                let unit = b.f32(1, -LOG2_E);
                b.mul(slope, unit)
            })
        });
        let scale = b.f32(1, if op.softcap.is_some() { op.scale } else { op.scale * LOG2_E });
        let part = &op.layout.k;
        let (mut factor, mut added) = (scale, None);
        let sums = (part.codes.asymmetric).then(|| self.query_sums(b, queries));
        if part.codes.is_static() && !part.codes.code.is_plain() {
            let (given, offset) = self.scales(Side::K).given(b, part, self.head);
            factor = b.mul(given, scale);
            let unit = b.f32(1, self.keys.unit());
            factor = b.mul(factor, unit);
            added = sums.map(|sums| {
                let offset = b.mul(offset, scale);
                sums.map(|sum| b.mul(sum, offset))
            });
        }
        let sums = sums.filter(|_| added.is_none());
        Shape { factor, added, sums, positions, limits, slopes }
    }

    pub(super) fn scales(&self, side: Side) -> codes::Scales {
        codes::Scales { side, pool: self.params.get("pool"), statics: self.params.find("scales") }
    }

    /// Sums of the numbers of this lane's two rows: products with ones.
    fn query_sums(&self, b: &mut Builder, queries: &[Value]) -> [Value; 2] {
        let ones = b.int(Type::vector(scalar_of(self.keys.element), 8), self.keys.element.encode(1.0) as i64);
        let none = b.f32(4, 0.0);
        let sum = queries.iter().fold(none, |sum, &query| b.mma(self.shapes[0], ones, query, sum));
        [b.extract(sum, 0), b.extract(sum, 1)]
    }

    /// A score in units of ln 2.
    fn score(&self, b: &mut Builder, shape: &Shape, sum: Value, (e, token): (usize, Value)) -> Value {
        let mut s = match shape.added {
            Some(added) => b.fma(sum, shape.factor, added[e]),
            None => b.mul(sum, shape.factor),
        };
        if let Some(cap) = self.op.softcap {
            s = soft_cap(b, s, cap);
            let unit = b.f32(1, LOG2_E);
            s = b.mul(s, unit);
        }
        if let Some(slopes) = shape.slopes {
            let behind = b.bin(BinOp::Sub, shape.positions[e], token);
            let behind = b.cast(CastOp::IntToFloatS, behind, Scalar::F32);
            s = b.fma(slopes[e], behind, s);
        }
        s
    }

    /// Whether a row sees a token.
    fn seen(&self, b: &mut Builder, shape: &Shape, (e, token): (usize, Value)) -> Value {
        let before = b.cmp(CmpOp::LtS, token, shape.limits[e]);
        let Sight::Window { window, first } = self.op.sight else { return before };
        let behind = b.bin(BinOp::Sub, shape.positions[e], token);
        let window = b.int(Scalar::I32, i64::from(window));
        let mut near = b.cmp(CmpOp::LtS, behind, window);
        if first > 0 {
            let first = b.int(Scalar::I32, i64::from(first));
            let early = b.cmp(CmpOp::LtS, token, first);
            near = b.bin(BinOp::Or, near, early);
        }
        b.bin(BinOp::And, before, near)
    }

    /// The value of the lanes that differ from this one in `g`, combined with it.
    pub(super) fn over_tokens(&self, b: &mut Builder, op: BinOp, value: Value) -> Value {
        [4, 8, 16].into_iter().fold(value, |value, distance| {
            let index = b.int(Scalar::I32, distance);
            let ty = b.ty(value);
            let inst = crate::ir::Inst::Shuffle { mode: ShuffleMode::Xor, value, index };
            let other = b.push(ty, inst);
            b.bin(op, value, other)
        })
    }

    /// The weights of a chunk's tokens as operands B, one for each instruction along them, and the state after them, but for
    /// outputs, which are rescaled.
    pub(super) fn softmax(
        &self,
        b: &mut Builder,
        shape: &Shape,
        (start, scores): (Value, &Scores),
        scales: &[Value],
        state: &mut State,
    ) -> Vec<Value> {
        let own = times(b, self.g, 4);
        let first = b.add(start, own);
        let tokens: Vec<Value> = (0..4).map(|i| b.bin_imm(BinOp::Add, first, i)).collect();
        // Scales of tokens are their keys'.
        let mut list = [Vec::new(), Vec::new()];
        for (e, list) in list.iter_mut().enumerate() {
            for (i, &token) in tokens.iter().enumerate() {
                let mut sum = b.extract(scores.sums[i / 2], (2 * (i % 2) + e) as u8);
                if let Some(&scales) = scores.scales.first() {
                    let scale = b.extract(scales, i as u8);
                    sum = b.mul(sum, scale);
                    if let (Some(&offsets), Some(sums)) = (scores.scales.get(1), shape.sums) {
                        let offset = b.extract(offsets, i as u8);
                        sum = b.fma(sums[e], offset, sum);
                    }
                }
                let score = self.score(b, shape, sum, (e, token));
                let seen = self.seen(b, shape, (e, token));
                let unseen = b.f32(1, f32::NEG_INFINITY);
                list.push(b.select(seen, score, unseen));
            }
        }
        let mut corrections = Vec::new();
        let mut weights = [Vec::new(), Vec::new()];
        for (e, list) in list.iter().enumerate() {
            let pairs = [b.bin(BinOp::Max, list[0], list[1]), b.bin(BinOp::Max, list[2], list[3])];
            let most = b.bin(BinOp::Max, pairs[0], pairs[1]);
            let most = self.over_tokens(b, BinOp::Max, most);
            let lift = b.f32(1, -LIFT);
            let most = b.add(most, lift);
            let top = b.bin(BinOp::Max, state.top[e], most);
            let difference = b.bin(BinOp::Sub, state.top[e], top);
            let correction = codes::power_of_two(b, difference);
            state.top[e] = top;
            let mut sum = b.mul(state.sum[e], correction);
            let mut offset = state.offset.map(|offset| b.mul(offset[e], correction));
            for (i, &score) in list.iter().enumerate() {
                let x = b.bin(BinOp::Sub, score, top);
                let p = codes::power_of_two(b, x);
                sum = b.add(sum, p);
                let mut weight = p;
                if let Some(&own) = scales.first() {
                    // What lies in the place of an unseen token's scale is anything.
                    let none = b.f32(1, 0.0);
                    let some = b.cmp(CmpOp::Lt, none, p);
                    let scale = b.extract(own, i as u8);
                    let scaled = b.mul(p, scale);
                    weight = b.select(some, scaled, none);
                    if let (Some(&offsets), Some(before)) = (scales.get(1), offset) {
                        let own = b.extract(offsets, i as u8);
                        let own = b.select(some, own, none);
                        offset = Some(b.fma(p, own, before));
                    }
                }
                weights[e].push(weight);
            }
            state.sum[e] = sum;
            if let (Some(state), Some(offset)) = (&mut state.offset, offset) {
                state[e] = offset;
            }
            corrections.push(correction);
        }
        let both = b.vector(&[corrections[0], corrections[1], corrections[0], corrections[1]]);
        state.outputs.iter_mut().for_each(|output| *output = b.mul(*output, both));
        self.operands(b, &weights)
    }

    /// Weights of rows `2t` and `2t + 1` go to the lanes that multiply with them: lane `4g + t` needs those of row `g`.
    fn operands(&self, b: &mut Builder, weights: &[Vec<Value>; 2]) -> Vec<Value> {
        let element = self.values.element;
        let order = self.values.order();
        let packed: Vec<[Value; 2]> = order[..2]
            .iter()
            .map(|&[low, high]| {
                [0, 1].map(|e: usize| {
                    let both = b.vector(&[weights[e][low], weights[e][high]]);
                    let both = b.cast(CastOp::Float, both, scalar_of(element));
                    b.bitcast(both, Scalar::I32)
                })
            })
            .collect();
        let odd = b.bin_imm(BinOp::And, self.g, 1);
        let one = b.int(Scalar::I32, 1);
        let odd = b.cmp(CmpOp::Eq, odd, one);
        let column = b.bin_imm(BinOp::ShrU, self.g, 1);
        let nibbles = self.op.layout.v.codes.code == KvCode::Int4;
        (0..CHUNK / 16)
            .map(|step| {
                // The four tokens of this instruction that are this lane's.
                let (t, first) = if nibbles { (times(b, self.t, 2), step) } else { (self.t, 4 * step) };
                let quad = b.bin_imm(BinOp::Add, t, first as i64);
                let lane = times(b, quad, 4);
                let lane = b.add(lane, column);
                let words: Vec<Value> = packed
                    .iter()
                    .map(|rows| {
                        let [even, other] = rows.map(|value| {
                            let inst = crate::ir::Inst::Shuffle { mode: ShuffleMode::Index, value, index: lane };
                            b.push(Scalar::I32.into(), inst)
                        });
                        b.select(odd, other, even)
                    })
                    .collect();
                self.values.fragment(b, &words)
            })
            .collect()
    }
}
