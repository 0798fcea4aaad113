//! Scales that codes do not share with the whole of their row go into the other factor: those of a page's channels of keys into
//! queries, once a page, those of groups of a token's values into weights, once a group of channels.
//!
//! Reads queries or weights and the scales; makes factors of codes, their steps, and what offsets add. Always holds: what lies in
//! the place of an unseen token's scale counts for nothing, whatever it is.

use super::super::super::memory::times;
use super::super::{codes, int};
use super::values::grouped;
use super::weights::where_seen;
use super::{Kernel, Tile, across};
use crate::format::kv::KvPer;
use crate::ir::{BinOp, Builder, Value};

impl Kernel<'_> {
    /// Queries times the scales of the channels of a page, and what the offsets of those add to every score.
    pub(super) fn page_queries(&self, b: &mut Builder, tile: Tile) {
        let (part, lanes) = (&self.op.layout.k, self.lanes);
        let (Some(memory), pool) = (self.arrays.q_page, self.params.get("pool")) else { return };
        let zero = int(b, 0);
        let (base, _) = self.page_of(b, tile, zero);
        if let Some((factors, most)) = self.query_steps().filter(|_| self.alone()) {
            return self
                .four_rows(b, &|b, first, count| self.page_rows(b, (tile, base), (&factors, most), (first, count)));
        }
        let dim = int(b, part.head_dim);
        self.each(b, dim, lanes as usize, &mut |b, c| {
            let place = times(b, c, 2);
            let place = b.add(base, place);
            let scale = codes::bf16(b, pool, place, part.scale, lanes);
            for row in 0..self.rows {
                let x = self.read(b, self.arrays.q, c, row * part.head_dim, lanes);
                let x = b.mul(x, scale);
                self.write(b, memory, c, row * part.head_dim, x);
            }
        });
        if let (Some(sums), true) = (self.arrays.q_sum, part.codes.asymmetric) {
            // The same for every token of the page: Σ q · offset.
            let rows = self.rows_value(b);
            self.each(b, rows, 1, &mut |b, row| {
                let none = b.f32(lanes, 0.0);
                let line = times(b, row, part.head_dim);
                let sum = b.for_loop(zero, dim, i64::from(lanes), &[none], |b, c, sum| {
                    let index = b.add(line, c);
                    let x = self.read(b, self.arrays.q, index, 0, lanes);
                    let place = times(b, c, 2);
                    let place = b.add(base, place);
                    let offset = codes::bf16(b, pool, place, part.offset, lanes);
                    vec![b.fma(x, offset, sum[0])]
                });
                let sum = across(b, BinOp::Add, sum[0]);
                self.write(b, sums, row, 0, sum);
            });
        }
        self.query_factors(b, memory);
    }

    /// Whether weights take over the scales of one group of channels after the other.
    pub(super) fn weighs_groups(&self) -> bool {
        grouped(&self.op.layout.v.codes) && self.arrays.p_factors.is_some()
    }

    /// Whether weights of a whole tile are made before they become factors: in steps of 8 bits, which the largest one decides, not
    /// the largest scale alone, and where groups of channels have scales.
    pub(super) fn makes_later(&self) -> bool {
        self.weighs_groups() || self.op.carries() && !self.op.layout.v.codes.is_static()
    }

    /// Factors of the values of a group of channels: weights of a tile times the scales of the group.
    pub(super) fn group_weights(&self, b: &mut Builder, tile: Tile, group: Value) {
        if self.alone() {
            return self.four_rows(b, &|b, first, count| self.later_rows(b, (tile, Some(group)), (first, count)));
        }
        let blocks = tile.blocks;
        let (Some(factors), Some(memory)) = (self.arrays.p_factors, self.arrays.p) else { return };
        let (kind, lanes) = (self.op.layout.v.codes, self.lanes);
        self.each(b, blocks, lanes as usize, &mut |b, local| {
            let (scale, _) = self.scales_of_values(b, (tile, local), Some(group), lanes);
            let (zero, rows) = (int(b, 0), self.rows_value(b));
            b.for_loop(zero, rows, 1, &[], |b, row, _| {
                let line = times(b, row, self.tile);
                let index = b.add(line, local);
                let p = self.read(b, self.arrays.s, index, 0, lanes);
                let weight = b.mul(p, scale);
                let weight = where_seen(b, p, weight);
                self.write(b, memory, index, 0, weight);
                Vec::new()
            });
        });
        self.meet(b);
        let rows = self.rows_value(b);
        self.each(b, rows, 1, &mut |b, row| {
            let line = times(b, row, self.tile);
            let (sum, step) = self.quantize(b, &factors.packing, memory, (line, blocks));
            self.pack(b, &factors, memory, (line, blocks));
            self.write_weight_step(b, row, step);
            let offsets = if kind.asymmetric {
                let (zero, none) = (int(b, 0), b.f32(lanes, 0.0));
                let offsets = b.for_loop(zero, blocks, i64::from(lanes), &[none], |b, t, sum| {
                    let index = b.add(line, t);
                    let p = self.read(b, self.arrays.s, index, 0, lanes);
                    let (_, offset) = self.scales_of_values(b, (tile, t), Some(group), lanes);
                    let offset = offset.map_or(none, |offset| where_seen(b, p, offset));
                    vec![b.fma(p, offset, sum[0])]
                });
                across(b, BinOp::Add, offsets[0])
            } else {
                let sum = b.mul(sum, step);
                self.times_constant(b, sum, -kind.bias())
            };
            self.write(b, self.arrays.stat, row, 3 * self.padded, offsets);
        });
        self.meet(b);
    }

    /// Whether keys have scales per channel of a page.
    pub(super) fn folds_keys(&self) -> bool {
        self.op.layout.k.codes.per == KvPer::Channel
    }
}
