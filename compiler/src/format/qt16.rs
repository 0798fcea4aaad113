//! QT16, the packing for matrix instructions: tiles of 16 rows in which each lane finds its own fragment.
//!
//! A matrix is cut into panels of 64 rows; a panel is one record, and records follow each other. N is padded to 64, K to
//! whole tiles of every plane. Padding is zero, so kernels feed zero activations for columns past K.
//!
//! ```text
//! record   outer | zeros_outer | scales | zeros | plane | plane        each section starts at a multiple of 256 bytes
//! outer, zeros_outer   [span][64 rows]     scales, zeros   [group][64 rows]     each in its own type
//! plane    [tile of 256 / B columns][4 tiles of 16 rows][32 lanes][16 bytes]
//! ```
//!
//! Lane `(g, t)`, g below 8 and t below 4, holds rows g (bytes 0 to 7 of its 16) and g + 8 (bytes 8 to 15) of a tile, and
//! those columns that a matrix instruction wants from it. In class F16 these are, for each step of 16 columns,
//! `2t, 2t + 1, 2t + 8, 2t + 9`; in class B8, for each step of 32, `4t … 4t + 3` and `4t + 16 … 4t + 19`. Within a word
//! they lie so that few masks and shifts decode them:
//!
//! ```text
//! 4 bits, F16, nibbles from bit 0     0 2 4 6 1 3 5 7     of two steps: 0 1 2 3, 4 5 6 7
//! 4 bits, B8                          0 4 1 5 2 6 3 7     of one step
//! 2 bits, F16    bit 16·h + 2·i holds value 2·i + h       B8    byte j, bits 2·f hold value j + 4·f
//! 8 bits, F16, bytes                  0 2 1 3             B8    natural
//! ```
//!
//! One-bit planes go on in the same way. Codes of 3, 5 and 6 bits are planes of 2 + 1, 4 + 1 and 4 + 2 bits, low bits
//! first, each a stream of its own. Lanes are numbered `4g + t` (order GT) or `8t + g` (order TG, which suits memory
//! systems that serve sixteen lanes at a time). Rows of a section stand as lanes want them: `[g][tile][half]` in order GT,
//! where a lane has rows g and g + 8, and as they are in order TG, where its sums belong to neighbouring rows. Nothing
//! depends on the device, on N or on how many units it has.

use super::canonical::{canonical, canonical_format};
use super::n16::{flip, planes, storable};
use super::{Format, Granularity, Outer, Quantized, Scale, Span, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Bit, Coords, Dim, Layout};

/// Rows per panel.
pub const PANEL: usize = 64;

/// Bytes of the tiles of one panel that share their columns.
pub const STRIP: usize = 4 * 512;

/// Which columns of a step a lane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Pairs, for instructions on 16-bit numbers.
    F16,
    /// Quads, for instructions on bytes.
    B8,
}

/// How lanes `(g, t)` are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneOrder {
    /// `4g + t`.
    Gt,
    /// `8t + g`.
    Tg,
}

/// Where everything lies in a record, for one format and K.
#[derive(Clone, Debug, PartialEq)]
pub struct Qt16 {
    /// The canonical format.
    pub format: Format,
    /// Columns.
    pub k: usize,
    /// Which columns a lane holds.
    pub class: Class,
    /// How lanes are numbered.
    pub order: LaneOrder,
    /// Columns per group; K where a row is one group.
    pub group: usize,
    /// Groups per row.
    pub groups: usize,
    /// Columns with padding: whole tiles of every plane.
    pub padded_k: usize,
    /// Second level of scales.
    pub outer: Option<Section>,
    /// Second level of offsets.
    pub zeros_outer: Option<Section>,
    /// Scales.
    pub scales: Section,
    /// Zeros or offsets.
    pub zeros: Option<Section>,
    /// Width and byte offset in the record of each plane, low bits first.
    pub planes: Vec<(u8, usize)>,
    /// Bytes of a record; a multiple of 256.
    pub record: usize,
}

/// An array `[entry][64 rows]` of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section {
    /// Byte offset in the record.
    pub offset: usize,
    /// Type of a number.
    pub dtype: DType,
    /// Entries per row.
    pub entries: usize,
    /// Columns that share an entry.
    pub span: usize,
    /// How lanes are numbered.
    pub order: LaneOrder,
}

impl Section {
    /// Bytes of a number.
    pub fn size(&self) -> usize {
        self.dtype.bytes()
    }

    /// Byte offset in the record of the number of a row of the panel.
    pub fn place(&self, entry: usize, row: usize) -> usize {
        let row = section_rows(self.order).address(Coords::ORIGIN.with(Dim::N, row as u32));
        self.offset + (entry * PANEL + row) * self.size()
    }
}

/// The order of a panel's rows in a section. In order GT, `[g][tile][half]`: a lane reads its 8 numbers at once.
pub const fn section_rows(order: LaneOrder) -> Layout {
    match order {
        LaneOrder::Gt => Layout::constant(&[n(3), n(4), n(5), n(0), n(1), n(2)]),
        LaneOrder::Tg => Layout::constant(&[n(0), n(1), n(2), n(3), n(4), n(5)]),
    }
}

const fn n(index: u8) -> Bit {
    Bit::new(Dim::N, index)
}

/// The places of the tiles of one panel that share their columns, of a plane whose fields have `width` bits. An address
/// counts bits; coordinates are bit, column and row.
///
/// # Panics
/// If no plane has that width: planes have 1, 2, 4 or 8 bits.
pub fn strip_layout(width: u8, class: Class, order: LaneOrder) -> Layout {
    assert!(matches!(width, 1 | 2 | 4 | 8), "a plane has 1, 2, 4 or 8 bits, not {width}");
    let code = width.trailing_zeros() as u8;
    let k = |index: u8| Bit::new(Dim::K, index);
    let mut bits: Vec<Bit> = (0..code).map(|index| Bit::new(Dim::B, index)).collect();
    match class {
        Class::F16 => {
            bits.extend((3..7 - code).map(k));
            bits.push(k(0));
        }
        Class::B8 => {
            bits.extend((4..7 - code).map(k));
            bits.extend([k(0), k(1)]);
        }
    }
    bits.extend([k(7 - code), n(3)]);
    let t = if class == Class::F16 { [k(1), k(2)] } else { [k(2), k(3)] };
    let g = [n(0), n(1), n(2)];
    match order {
        LaneOrder::Gt => bits.extend(t.into_iter().chain(g)),
        LaneOrder::Tg => bits.extend(g.into_iter().chain(t)),
    }
    bits.extend([n(4), n(5)]);
    Layout::constant(&bits)
}

/// Columns of a tile of a plane.
pub const fn tile_columns(width: u8) -> usize {
    256 / width as usize
}

impl Qt16 {
    /// The layout of a format for rows of `k` columns.
    pub fn of(format: &Format, k: usize, class: Class, order: LaneOrder) -> Result<Qt16> {
        let format = canonical_format(format, k);
        let bits = format.code.bits();
        let widths = planes(bits).ok_or_else(|| Error::Unsupported(format!("QT16 packing of {bits}-bit codes")))?;
        let group = match format.granularity {
            Granularity::Group(g) => g as usize,
            _ => k,
        };
        let groups = k.div_ceil(group);
        let padded_k = k.next_multiple_of(widths.iter().map(|&width| tile_columns(width)).max().unwrap_or(1));
        let mut at = 0;
        let mut place = |bytes: usize| {
            let start = at;
            at = (at + bytes).next_multiple_of(256);
            start
        };
        let mut section = |dtype: DType, entries: usize, span: usize| {
            let empty = Section { offset: 0, dtype, entries, span, order };
            Section { offset: place(entries * PANEL * empty.size()), ..empty }
        };
        let mut second = |scale: &Scale| {
            scale.outer.map(|Outer { dtype, span, .. }| {
                let span = match span {
                    Span::Weights(w) => w as usize,
                    _ => k,
                };
                section(dtype, k.div_ceil(span), span)
            })
        };
        let outer = second(&format.scale);
        let zeros_outer = match &format.zero {
            Zero::Offset { scale, .. } => second(scale),
            _ => None,
        };
        let scales = section(format.scale.dtype, groups, group);
        let zeros = match format.zero {
            Zero::None | Zero::Bias(_) => None,
            Zero::Int(_) => Some(section(DType::U8, groups, group)),
            Zero::Float(dtype) => Some(section(dtype, groups, group)),
            Zero::Offset { scale, .. } => Some(section(scale.dtype, groups, group)),
        };
        let planes = widths.iter().map(|&width| (width, place(padded_k * PANEL * width as usize / 8))).collect();
        Ok(Qt16 {
            format,
            k,
            class,
            order,
            group,
            groups,
            padded_k,
            outer,
            zeros_outer,
            scales,
            zeros,
            planes,
            record: at,
        })
    }

    /// Name of the packing: `qt16-f16-gt`.
    pub fn name(&self) -> &'static str {
        match (self.class, self.order) {
            (Class::F16, LaneOrder::Gt) => "qt16-f16-gt",
            (Class::F16, LaneOrder::Tg) => "qt16-f16-tg",
            (Class::B8, LaneOrder::Gt) => "qt16-b8-gt",
            (Class::B8, LaneOrder::Tg) => "qt16-b8-tg",
        }
    }

    /// Bytes of a matrix of `n` rows.
    pub fn bytes(&self, n: usize) -> usize {
        n.div_ceil(PANEL) * self.record
    }

    /// Packs a matrix (of any format with columns in group order).
    pub fn pack(q: &Quantized, class: Class, order: LaneOrder) -> Result<(Qt16, Vec<u8>)> {
        let layout = Qt16::of(&q.format, q.k, class, order)?;
        let c = canonical(q)?;
        if let Some(i) = c.codes.iter().position(|&code| !storable(c.format.code, code)) {
            let (row, column) = (i / c.k, i % c.k);
            let code = c.codes[i];
            return Err(Error::invalid(format!(
                "row {row}, column {column}: code {code:#04x} is not a finite number of the format"
            )));
        }
        let mut out = vec![0u8; layout.bytes(c.n)];
        let flip = flip(c.format.code);
        for (section, raw) in layout.sections().into_iter().zip([&c.outer, &c.zeros_outer, &c.scales, &c.zeros]) {
            let Some(section) = section else { continue };
            for (i, number) in raw.iter().enumerate() {
                let (row, entry) = (i / section.entries, i % section.entries);
                let at = row / PANEL * layout.record + section.place(entry, row % PANEL);
                out[at..at + section.size()].copy_from_slice(&number.to_le_bytes()[..section.size()]);
            }
        }
        layout.fields(c.n, |i, low, width, at, bit| {
            let mask = (0xffu16 >> (8 - width)) as u8;
            out[at] |= ((c.codes[i] ^ flip) >> low & mask) << bit;
        });
        Ok((layout, out))
    }

    /// Reads a packed matrix of `n` rows back, in canonical form.
    pub fn unpack(&self, n: usize, packed: &[u8]) -> Result<Quantized> {
        if packed.len() != self.bytes(n) {
            let (found, expected) = (packed.len(), self.bytes(n));
            return Err(Error::invalid(format!("packed weights: found {found} bytes, expected {expected}")));
        }
        let [outer, zeros_outer, scales, zeros] = self.sections().map(|section| -> Vec<u32> {
            let Some(section) = section else { return Vec::new() };
            let number = |i: usize| {
                let (row, entry) = (i / section.entries, i % section.entries);
                let at = row / PANEL * self.record + section.place(entry, row % PANEL);
                let mut word = [0; 4];
                word[..section.size()].copy_from_slice(&packed[at..at + section.size()]);
                u32::from_le_bytes(word)
            };
            (0..n * section.entries).map(number).collect()
        });
        let mut codes = vec![0u8; n * self.k];
        self.fields(n, |i, low, width, at, bit| {
            let mask = (0xffu16 >> (8 - width)) as u8;
            codes[i] |= (packed[at] >> bit & mask) << low;
        });
        let flip = flip(self.format.code);
        codes.iter_mut().for_each(|code| *code ^= flip);
        Ok(Quantized {
            format: self.format,
            n,
            k: self.k,
            codes,
            scales,
            outer,
            zeros,
            zeros_outer,
            scale_offset: 0.0,
            order: None,
        })
    }

    fn sections(&self) -> [Option<Section>; 4] {
        [self.outer, self.zeros_outer, Some(self.scales), self.zeros]
    }

    /// Visits every field of a matrix of `n` rows: index of the code, lowest bit in the code, width, byte, bit in the byte.
    fn fields(&self, rows: usize, mut visit: impl FnMut(usize, u8, u8, usize, u8)) {
        let mut low = 0;
        for &(width, start) in &self.planes {
            let layout = strip_layout(width, self.class, self.order);
            // Rows and columns have address bits of their own, so an address is the sum of two.
            let of = |dim: Dim, index: usize| layout.address(Coords::ORIGIN.with(dim, index as u32));
            let row_places: Vec<usize> = (0..PANEL).map(|row| of(Dim::N, row)).collect();
            let tile = tile_columns(width);
            let columns: Vec<usize> = (0..self.k).map(|k| k / tile * STRIP * 8 + of(Dim::K, k % tile)).collect();
            for row in 0..rows {
                let base = row / PANEL * self.record + start;
                for (column, &place) in columns.iter().enumerate() {
                    let bit = row_places[row % PANEL] + place;
                    visit(row * self.k + column, low, width, base + bit / 8, (bit % 8) as u8);
                }
            }
            low += width;
        }
    }
}

#[cfg(test)]
mod tests;
