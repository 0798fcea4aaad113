//! Where the codes and scales of a page lie.
//!
//! A pool is an array of pages; a page holds `page` tokens of every KV head, one record per head:
//!
//! ```text
//! page     record of head 0 | record of head 1 | …                each at a multiple of 64 bytes
//! record   K codes | V codes | K scales | K offsets | V scales | V offsets      each at a multiple of 16 bytes
//! K codes  [block of tokens][unit of channels][token]             so that a lane is a token
//! V codes  [block of channels][unit of tokens][channel]           so that a lane is a channel
//! scales   [group][token], or [channel] for scales per channel; two levels: [token] bf16, then [group][token] bytes
//! ```
//!
//! A unit is a 16-bit number or a 32-bit word of 4 or 8 codes. Byte `j` of a word of bytes holds code `j`; byte `j` of a
//! word of nibbles holds code `j` (low) and code `j + 4` (high), as the weights of N16 do: one mask gives four neighbours.
//! Attention contracts keys over channels and values over tokens, so both unpack into whole vectors without a shuffle, and
//! both are read from the first byte to the last. A block has 32 lanes ([`Part::block`]): two vectors of 64 bytes, which share
//! a query's or a weight's number, or the lanes of a subgroup.

use super::{KvCode, KvCodes, KvFormat, KvPer};
use crate::error::{Error, Result};
use crate::layout::{Bit, Dim, Layout};

/// Lanes of a block, where they come in whole ones. With 16, a kernel that takes two vectors of 64 bytes at once reads two runs
/// of memory side by side: of a long cache on Zen 5, FP8 comes 1.06 and INT4 1.15 to 1.2 times as fast in one.
const BLOCK: usize = 32;

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys.
    K,
    /// Values.
    V,
}

/// Where one side lies in a record, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// How it is coded.
    pub codes: KvCodes,
    /// Channels of a head.
    pub head_dim: usize,
    /// Tokens of a block of keys, channels of a block of values: 32, or 16 where a page or a head has no whole number of those.
    pub block: usize,
    /// Codes.
    pub code: usize,
    /// Scales, bf16; with two levels, those of tokens.
    pub scale: usize,
    /// Offsets, bf16.
    pub offset: usize,
    /// Scales of groups, bytes, with two levels.
    pub inner: usize,
}

impl Part {
    /// Bytes from a unit of a lane to its next one.
    pub fn stride(&self) -> usize {
        self.block * self.codes.code.unit_bytes()
    }
}

/// A page of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// The format.
    pub format: KvFormat,
    /// Tokens of a page: a power of two, 16 to 256.
    pub page: usize,
    /// KV heads.
    pub heads: usize,
    /// Keys.
    pub k: Part,
    /// Values.
    pub v: Part,
    /// Bytes of one head of one page.
    pub record: usize,
}

impl KvLayout {
    /// The layout of a cache of `heads` KV heads of `k_dim` and `v_dim` channels. Fails with every fault.
    pub fn new(format: KvFormat, page: usize, heads: usize, k_dim: usize, v_dim: usize) -> Result<KvLayout> {
        let mut faults = format.faults();
        if !page.is_power_of_two() || !(16..=256).contains(&page) {
            faults.push(format!("pages of {page} tokens; accepted: 16, 32, 64, 128, 256"));
        } else if !(format.window as usize).is_multiple_of(page) {
            faults.push(format!("a window of {} tokens; accepted: multiples of the page, {page}", format.window));
        }
        if !(1..=1024).contains(&heads) {
            faults.push(format!("{heads} KV heads; accepted: 1 to 1024"));
        }
        for (what, dim, codes) in [("keys", k_dim, format.k), ("values", v_dim, format.v)] {
            if dim % 16 != 0 || !(16..=512).contains(&dim) {
                faults.push(format!("{what}: head_dim is {dim}; accepted: multiples of 16 up to 512"));
            } else if let KvPer::Group(g) = codes.per
                && dim % g as usize != 0
            {
                faults.push(format!("{what}: groups of {g} channels in {dim}; the first must divide the second"));
            }
        }
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        let mut at = 0;
        let mut section = |bytes: usize| {
            let start = at;
            at = (at + bytes).next_multiple_of(16);
            start
        };
        let (k_code, v_code) =
            (section(code_bytes(&format.k, page, k_dim)), section(code_bytes(&format.v, page, v_dim)));
        let mut part = |codes: KvCodes, head_dim: usize, lanes: usize, code: usize| {
            let scales = match codes.per {
                KvPer::Tensor | KvPer::Head => 0,
                KvPer::Token => page,
                KvPer::Group(_) if codes.two_level => page,
                KvPer::Group(g) => page * (head_dim / g as usize),
                KvPer::Channel => head_dim,
            };
            let inner_bytes = if codes.two_level { page * codes.groups(head_dim) } else { 0 };
            let scale = section(2 * scales);
            let offset = section(if codes.asymmetric { 2 * scales } else { 0 });
            let block = if lanes.is_multiple_of(BLOCK) { BLOCK } else { BLOCK / 2 };
            Part { codes, head_dim, block, code, scale, offset, inner: section(inner_bytes) }
        };
        let (k, v) = (part(format.k, k_dim, page, k_code), part(format.v, v_dim, v_dim, v_code));
        Ok(KvLayout { format, page, heads, k, v, record: at.next_multiple_of(64) })
    }

    /// Bytes of a page, all heads.
    pub fn page_bytes(&self) -> usize {
        self.heads * self.record
    }

    /// Bytes of one head of a page that hold something: codes, scales, offsets.
    pub fn used_bytes(&self) -> usize {
        let side = |part: &Part| {
            let scales = match part.codes.per {
                KvPer::Tensor | KvPer::Head => 0,
                KvPer::Token => self.page,
                KvPer::Group(_) if part.codes.two_level => self.page,
                KvPer::Group(g) => self.page * (part.head_dim / g as usize),
                KvPer::Channel => part.head_dim,
            };
            let inner = if part.codes.two_level { self.page * part.codes.groups(part.head_dim) } else { 0 };
            code_bytes(&part.codes, self.page, part.head_dim)
                + scales * if part.codes.asymmetric { 4 } else { 2 }
                + inner
        };
        side(&self.k) + side(&self.v)
    }

    /// A side of the record.
    pub fn part(&self, side: Side) -> &Part {
        match side {
            Side::K => &self.k,
            Side::V => &self.v,
        }
    }

    /// Units that a lane has in a page.
    pub fn units(&self, side: Side) -> usize {
        let part = self.part(side);
        let along = match side {
            Side::K => part.head_dim,
            Side::V => self.page,
        };
        along / part.codes.code.per_unit()
    }

    /// Byte (from the record's start) and bit of the code of a token and channel.
    pub fn place(&self, side: Side, token: usize, channel: usize) -> (usize, usize) {
        let part = self.part(side);
        let (per, bytes) = (part.codes.code.per_unit(), part.codes.code.unit_bytes());
        let (lane, along) = match side {
            Side::K => (token, channel),
            Side::V => (channel, token),
        };
        let (block, within) = (part.block, along % per);
        let unit = (lane / block * self.units(side) + along / per) * block + lane % block;
        let (byte, bit) = match per {
            8 => (within % 4, within / 4 * 4),
            _ => (within, 0),
        };
        (part.code + unit * bytes + byte, bit)
    }

    /// Byte (from the record's start) of the scale of a token and channel, in a section that starts at `section`, whose
    /// elements have `size` bytes.
    pub fn scale_place(&self, side: Side, section: usize, size: usize, token: usize, channel: usize) -> usize {
        let part = self.part(side);
        let index = match part.codes.per {
            KvPer::Channel => channel,
            KvPer::Group(g) if !part.codes.two_level || size == 1 => channel / g as usize * self.page + token,
            KvPer::Group(_) | KvPer::Tensor | KvPer::Head | KvPer::Token => token,
        };
        section + index * size
    }

    /// The address bits of the codes of a tile of tokens (dimension `N`) and channels (`K`), as a bijection of bits: a block's
    /// lanes, and 16 of what is contracted.
    pub fn tile(&self, side: Side) -> Layout {
        let b = |i| Bit::new(Dim::B, i);
        // The contracted coordinate fills units; the other one is the lane.
        let (along, across) = if side == Side::K { (Dim::K, Dim::N) } else { (Dim::N, Dim::K) };
        let inner = [0, 1, 2, 3].map(|i| Bit::new(along, i));
        let lane = (0..self.part(side).block.trailing_zeros() as u8).map(|i| Bit::new(across, i));
        let mut bits = Vec::new();
        let rest = match self.part(side).codes.code {
            KvCode::F16 | KvCode::Bf16 => {
                bits.extend((0..4).map(b));
                &inner[..]
            }
            KvCode::Int8 | KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => {
                bits.extend([b(0), b(1), b(2), inner[0], inner[1]]);
                &inner[2..]
            }
            KvCode::Int4 => {
                bits.extend([b(0), b(1), inner[2], inner[0], inner[1]]);
                &inner[3..]
            }
        };
        bits.extend(lane);
        bits.extend(rest);
        Layout::new(&bits).unwrap_or(Layout::EMPTY)
    }
}

fn code_bytes(codes: &KvCodes, page: usize, head_dim: usize) -> usize {
    page * head_dim * codes.code.bits() / 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Coords;

    #[test]
    fn every_code_has_a_place_of_its_own() {
        for name in KvFormat::NAMED {
            for (page, k_dim, v_dim) in [(16, 64, 64), (64, 192, 128), (32, 96, 96)] {
                let format: KvFormat = KvFormat { window: 0, ..name.parse().unwrap() };
                let format =
                    KvFormat { window: if format.k.per == KvPer::Channel { page as u32 } else { 0 }, ..format };
                let layout = KvLayout::new(format, page, 2, k_dim, v_dim).unwrap();
                let mut used = vec![0u8; layout.record];
                let mut mark = |byte: usize, mask: u8| {
                    assert_eq!(used[byte] & mask, 0, "{name}: byte {byte} is used twice");
                    used[byte] |= mask;
                };
                let mut scales = std::collections::BTreeSet::new();
                for side in [Side::K, Side::V] {
                    let part = *layout.part(side);
                    for token in 0..page {
                        for channel in 0..part.head_dim {
                            let (byte, bit) = layout.place(side, token, channel);
                            match part.codes.code.bits() {
                                4 => mark(byte, 0xf << bit),
                                8 => mark(byte, 0xff),
                                _ => (0..2).for_each(|i| mark(byte + i, 0xff)),
                            }
                            if !part.codes.code.is_plain() && !part.codes.is_static() {
                                let at = layout.scale_place(side, part.scale, 2, token, channel);
                                scales.extend([at, at + 1]);
                                if part.codes.asymmetric {
                                    let at = layout.scale_place(side, part.offset, 2, token, channel);
                                    scales.extend([at, at + 1]);
                                }
                                if part.codes.two_level {
                                    scales.insert(layout.scale_place(side, part.inner, 1, token, channel));
                                }
                            }
                        }
                    }
                }
                scales.into_iter().for_each(|byte| mark(byte, 0xff));
                let count = used.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize;
                assert_eq!(count, 8 * layout.used_bytes(), "{name}");
                assert!(layout.record - layout.used_bytes() < 128, "{name}");
            }
        }
    }

    #[test]
    fn tiles_are_layouts() {
        for name in ["f16", "int8-token", "int4-token", "fp8e5m2-head"] {
            for (page, dim, block) in [(16, 16, 16), (32, 64, 32), (64, 48, 16)] {
                let layout = KvLayout::new(name.parse().unwrap(), page, 1, dim, dim).unwrap();
                assert_eq!(layout.v.block, block);
                for side in [Side::K, Side::V] {
                    let (tile, part) = (layout.tile(side), layout.part(side));
                    assert_eq!(tile.size() as usize, 16 * part.block * part.codes.code.bits());
                    let (tokens, channels) = if side == Side::K { (part.block, 16) } else { (16, part.block) };
                    for (token, channel) in (0..tokens).flat_map(|t| (0..channels).map(move |c| (t, c))) {
                        let coords = Coords::ORIGIN.with(Dim::N, token as u32).with(Dim::K, channel as u32);
                        let (byte, bit) = layout.place(side, token, channel);
                        assert_eq!(tile.address(coords), (byte - part.code) * 8 + bit, "{name} {side:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn eight_bits_take_half_and_four_a_quarter() {
        let bytes = |name: &str, page: usize| {
            KvLayout::new(name.parse().unwrap(), page, 8, 128, 128).unwrap().page_bytes() as f64
        };
        for page in [16, 32, 64, 128, 256] {
            for (name, least) in [
                ("int8-head", 2.0),
                ("fp8e4m3-head", 2.0),
                ("int8-token", 1.96),
                ("int8-token-asym", 1.92),
                ("int4-head", 4.0),
                ("int4-token", 3.85),
                ("int4-token-asym", 3.7),
                ("int4-group32", 3.5),
                ("int4-group32-dq", 3.65),
            ] {
                let ratio = bytes("f16", page) / bytes(name, page);
                assert!(ratio >= least, "{name}, pages of {page}: {ratio}");
            }
        }
    }

    #[test]
    fn refusals() {
        let format = "int4-group64".parse().unwrap();
        let error = KvLayout::new(format, 24, 0, 80, 100).unwrap_err().to_string();
        for part in ["pages of 24", "0 KV heads", "groups of 64 channels in 80", "head_dim is 100"] {
            assert!(error.contains(part), "{error}");
        }
        let windowed = "int8-channel.int8-token+48".parse().unwrap();
        assert!(KvLayout::new(windowed, 32, 1, 64, 64).unwrap_err().to_string().contains("multiples of the page"));
    }
}
