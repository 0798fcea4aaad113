//! A pool of pages in host memory: what its bytes mean, and how a token or a page is stored. The reference of every
//! operation on a cache.

use crate::format::kv::{KvCodes, KvLayout, KvPer, Side, codes};

/// The caller's scales and offsets of one KV head, for formats with a scale per tensor or head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvStatics {
    /// Of keys.
    pub k: (f32, f32),
    /// Of values.
    pub v: (f32, f32),
}

impl KvStatics {
    /// Scale 1, no offset.
    pub const ONE: KvStatics = KvStatics { k: (1.0, 0.0), v: (1.0, 0.0) };

    /// Bytes of the kernels' buffer of scales: `f32 [head][K scale, K offset, V scale, V offset]`.
    pub fn bytes(list: &[KvStatics]) -> Vec<u8> {
        list.iter().flat_map(|s| [s.k.0, s.k.1, s.v.0, s.v.1]).flat_map(f32::to_le_bytes).collect()
    }
}

/// Bytes of some pages.
#[derive(Debug)]
pub struct Pool<'a> {
    /// Where everything lies.
    pub layout: KvLayout,
    /// Scales per head; empty where the format has none of the caller's.
    pub statics: &'a [KvStatics],
    /// The pages.
    pub bytes: &'a mut [u8],
}

impl Pool<'_> {
    fn base(&self, page: usize, head: usize) -> usize {
        page * self.layout.page_bytes() + head * self.layout.record
    }

    fn given(&self, side: Side, head: usize) -> (f32, f32) {
        let statics = self.statics.get(head).copied().unwrap_or(KvStatics::ONE);
        let (scale, offset) = if side == Side::K { statics.k } else { statics.v };
        if self.layout.part(side).codes.asymmetric { (scale, offset) } else { (scale, 0.0) }
    }

    fn bf16(&self, at: usize) -> f32 {
        codes::bf16(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    fn put_bf16(&mut self, at: usize, bits: u16) {
        self.bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }

    /// The stored code of a token's channel.
    pub fn code(&self, side: Side, page: usize, head: usize, token: usize, channel: usize) -> u32 {
        let (byte, bit) = self.layout.place(side, token, channel);
        let at = self.base(page, head) + byte;
        match self.layout.part(side).codes.code.bits() {
            4 => (self.bytes[at] >> bit & 0xf) as u32,
            8 => self.bytes[at] as u32,
            _ => u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]) as u32,
        }
    }

    /// Scale (both levels) and offset of a token's channel.
    pub fn scale(&self, side: Side, page: usize, head: usize, token: usize, channel: usize) -> (f32, f32) {
        let part = self.layout.part(side);
        if part.codes.code.is_plain() {
            return (1.0, 0.0);
        }
        if part.codes.is_static() {
            return self.given(side, head);
        }
        let base = self.base(page, head);
        let at = |section: usize, size: usize| base + self.layout.scale_place(side, section, size, token, channel);
        let mut scale = self.bf16(at(part.scale, 2));
        if part.codes.two_level {
            scale *= self.bytes[at(part.inner, 1)] as f32;
        }
        (scale, if part.codes.asymmetric { self.bf16(at(part.offset, 2)) } else { 0.0 })
    }

    /// The number that is stored, exactly.
    pub fn value(&self, side: Side, page: usize, head: usize, token: usize, channel: usize) -> f64 {
        let code = codes::decode(&self.layout.part(side).codes, self.code(side, page, head, token, channel));
        let (scale, offset) = self.scale(side, page, head, token, channel);
        scale as f64 * code + offset as f64
    }

    /// The sum of the magnitudes that a kernel may add up to make the number: what its rounding errors are relative to.
    pub fn magnitude(&self, side: Side, page: usize, head: usize, token: usize, channel: usize) -> f64 {
        let kind = &self.layout.part(side).codes;
        let code = codes::decode(kind, self.code(side, page, head, token, channel));
        let (scale, offset) = self.scale(side, page, head, token, channel);
        (scale as f64).abs() * (code.abs() + 2.0 * kind.bias() as f64) + (offset as f64).abs()
    }

    /// The number as kernels compute it: one rounding.
    pub fn stored(&self, side: Side, page: usize, head: usize, token: usize, channel: usize) -> f32 {
        let code = codes::decode(&self.layout.part(side).codes, self.code(side, page, head, token, channel)) as f32;
        let (scale, offset) = self.scale(side, page, head, token, channel);
        code.mul_add(scale, offset)
    }

    fn put_code(&mut self, side: Side, page: usize, head: usize, token: usize, channel: usize, code: u32) {
        let (byte, bit) = self.layout.place(side, token, channel);
        let at = self.base(page, head) + byte;
        match self.layout.part(side).codes.code.bits() {
            4 => self.bytes[at] = self.bytes[at] & !(0xf << bit) | (code as u8) << bit,
            8 => self.bytes[at] = code as u8,
            _ => self.bytes[at..at + 2].copy_from_slice(&(code as u16).to_le_bytes()),
        }
    }

    /// Codes of values share a unit of storage with their neighbours: what comes after a token in its unit is cleared, so
    /// that the bytes of a cache do not depend on what was there before.
    fn clear_after(&mut self, page: usize, head: usize, token: usize, channel: usize) {
        let per = self.layout.v.codes.code.per_unit();
        for later in token + 1..token / per * per + per {
            self.put_code(Side::V, page, head, later, channel, 0);
        }
    }

    /// Stores one token's keys or values of a head. Not for scales per channel.
    pub fn store_token(&mut self, side: Side, page: usize, head: usize, token: usize, xs: &[f32]) {
        let part = *self.layout.part(side);
        let kind: KvCodes = part.codes;
        let base = self.base(page, head);
        let group = kind.group(part.head_dim);
        let mut given = vec![kind.is_static().then(|| self.given(side, head)); xs.len() / group];
        if kind.two_level {
            let (outer, inner) = codes::two_levels(&kind, xs, group);
            self.put_bf16(base + self.layout.scale_place(side, part.scale, 2, token, 0), outer);
            for (g, &byte) in inner.iter().enumerate() {
                self.bytes[base + self.layout.scale_place(side, part.inner, 1, token, g * group)] = byte;
                given[g] = Some((codes::bf16(outer) * byte as f32, 0.0));
            }
        }
        for (g, xs) in xs.chunks(group).enumerate() {
            let (list, scale, offset) = codes::encode_granule(&kind, xs, given[g]);
            if given[g].is_none() && !kind.code.is_plain() {
                self.put_bf16(base + self.layout.scale_place(side, part.scale, 2, token, g * group), scale);
                if kind.asymmetric {
                    self.put_bf16(base + self.layout.scale_place(side, part.offset, 2, token, g * group), offset);
                }
            }
            for (c, code) in list.into_iter().enumerate() {
                self.put_code(side, page, head, token, g * group + c, code);
                if side == Side::V {
                    self.clear_after(page, head, token, g * group + c);
                }
            }
        }
    }

    /// Stores a page of keys with scales per channel: the tokens that it has; the codes of the others are 0.
    pub fn store_page(&mut self, side: Side, page: usize, head: usize, rows: &[Vec<f32>]) {
        let part = *self.layout.part(side);
        debug_assert_eq!(part.codes.per, KvPer::Channel);
        let base = self.base(page, head);
        for channel in 0..part.head_dim {
            let xs: Vec<f32> = rows.iter().map(|row| row[channel]).collect();
            let (list, scale, offset) = codes::encode_granule(&part.codes, &xs, None);
            self.put_bf16(base + self.layout.scale_place(side, part.scale, 2, 0, channel), scale);
            if part.codes.asymmetric {
                self.put_bf16(base + self.layout.scale_place(side, part.offset, 2, 0, channel), offset);
            }
            for token in 0..self.layout.page {
                self.put_code(side, page, head, token, channel, list.get(token).copied().unwrap_or(0));
            }
        }
    }
}
