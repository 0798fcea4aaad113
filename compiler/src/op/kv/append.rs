//! New keys and values into a cache: an optional rotary embedding, quantization, the store.
//!
//! ```text
//! k'[c] = fma(k[c], cos[pos, i], ∓(k[partner] · sin[pos, i]))     for the rotary channels, `-` for the first of a pair
//! ```
//!
//! `i` is the pair; its channels are `i` and `i + rotary/2`, or `2i` and `2i + 1` where interleaved.

use super::Pool;
use crate::dtype::DType;
use crate::format::kv::{KvLayout, KvPer, Side};

/// Appends rows of `k [rows, heads, k_dim]` and `v [rows, heads, v_dim]`. Work: [`SPAN`] records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvAppend {
    /// The cache.
    pub layout: KvLayout,
    /// Type of the rows: f16, bf16 or f32.
    pub input: DType,
    /// Rotary embedding of the keys.
    pub rope: Option<Rope>,
}

/// A rotary embedding. Its table is `f32 [position][cos of each pair, then sin of each pair]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rope {
    /// Channels that are rotated, from the first: even.
    pub rotary: usize,
    /// Whether pairs are neighbours.
    pub interleaved: bool,
}

/// `i32` fields of a work record of appends and gathers: `{first row, page, first token of the page, tokens, position of the
/// first token, 0, 0, 0}`. The tokens of a record lie in one aligned group of 8, and no two records of a launch share one.
pub const SPAN: usize = 8;

impl KvAppend {
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        super::super::float_fault("input type", self.input, &mut faults);
        if let Some(rope) = self.rope
            && (rope.rotary % 2 != 0 || rope.rotary == 0 || rope.rotary > self.layout.k.head_dim)
        {
            faults.push(format!(
                "a rotary embedding of {} channels; accepted: even, 2 to {}",
                rope.rotary, self.layout.k.head_dim
            ));
        }
        for (what, part) in [("keys", &self.layout.k), ("values", &self.layout.v)] {
            if part.codes.per == KvPer::Channel {
                faults.push(format!(
                    "{what}: scales per channel are known when a page is full: append to the f16 window, then requantize"
                ));
            }
        }
        faults
    }

    /// A row of keys after the rotation. `row` holds numbers of the input type.
    pub fn rotated(&self, row: &[f32], table: &[f32], position: usize) -> Vec<f32> {
        let Some(rope) = self.rope else { return row.to_vec() };
        let half = rope.rotary / 2;
        let line = &table[position * rope.rotary..][..rope.rotary];
        let mut out = row.to_vec();
        for (c, out) in out.iter_mut().enumerate().take(rope.rotary) {
            let (pair, partner, first) = if rope.interleaved {
                (c / 2, c ^ 1, c % 2 == 0)
            } else {
                (c % half, (c + half) % rope.rotary, c < half)
            };
            let turned = row[partner] * line[half + pair];
            *out = row[c].mul_add(line[pair], if first { -turned } else { turned });
        }
        out
    }

    /// Stores one token of one head.
    pub fn reference(
        &self,
        pool: &mut Pool<'_>,
        place: (usize, usize),
        head: usize,
        (k, v): (&[f32], &[f32]),
        (table, position): (&[f32], usize),
    ) {
        pool.store_token(Side::K, place.0, head, place.1, &self.rotated(k, table, position));
        pool.store_token(Side::V, place.0, head, place.1, v);
    }
}
