//! N16, the CPU's compute packing: 16 rows side by side, so that a vector lane is a row.
//!
//! A matrix is cut into blocks of 16 rows; a block is one record, and records follow each other. N is padded to 16.
//!
//! ```text
//! record   outer | zeros_outer | scales | zeros | codes          each section starts at a multiple of 64 bytes
//! outer, zeros_outer   [span][16 rows]     scales, zeros   [group][16 rows]     each in its own type
//! codes    [unit][plane][word of the plane][16 rows]             32-bit words
//! ```
//!
//! Codes of 3, 5 and 6 bits are cut into planes of 2 + 1, 4 + 1 and 4 + 2 bits, low bits first; every other width is one
//! plane. A word holds 32 / B codes of one row: byte `j`, field `s` (bits `s·B..`) holds column `4·s + j` of the word, so
//! that one mask gives four neighbours in four bytes, as a byte dot product wants them:
//!
//! ```text
//! 4-bit word    byte 0      byte 1      byte 2      byte 3
//!               k4  k0      k5  k1      k6  k2      k7  k3        (high nibble, low nibble)
//! ```
//!
//! A unit is as many columns as one word of the narrowest plane holds. Groups start at multiples of 4 columns of the
//! padded row (see [`N16::padded_group`]). Two's complement codes are stored with their top bit flipped, which makes them
//! unsigned with a fixed bias; padding is zero. Nothing depends on the device or on the vector width.

use super::canonical::{canonical, canonical_format};
use super::{Code, Format, Granularity, Outer, Quantized, Scale, Span, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Bit, Dim, Layout};

/// Rows per block.
pub const ROWS: usize = 16;

/// Where everything lies in a record, for one format and K.
#[derive(Clone, Debug, PartialEq)]
pub struct N16 {
    /// The canonical format.
    pub format: Format,
    /// Columns.
    pub k: usize,
    /// Columns per group; K where a row is one group.
    pub group: usize,
    /// Groups per row.
    pub groups: usize,
    /// Widths of the planes, low bits first.
    pub planes: &'static [u8],
    /// Columns per unit.
    pub unit: usize,
    /// Columns of the padded row from the start of one group to the next: at least `group`, a multiple of 4.
    pub padded_group: usize,
    /// Units per row.
    pub units: usize,
    /// Second level of scales: byte offset in the record, columns per entry.
    pub outer: Option<Section>,
    /// Second level of offsets.
    pub zeros_outer: Option<Section>,
    /// Scales.
    pub scales: Section,
    /// Zeros or offsets.
    pub zeros: Option<Section>,
    /// Byte offset of the codes in the record.
    pub codes: usize,
    /// Bytes of a record; a multiple of 64.
    pub record: usize,
}

/// An array `[entry][16 rows]` of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section {
    /// Byte offset in the record.
    pub offset: usize,
    /// Type of a number: `F32`, `F16`, `Bf16`, `E4m3fn`, `E8m0`, `U8` or `I8`.
    pub dtype: DType,
    /// Entries per row.
    pub entries: usize,
    /// Columns that share an entry.
    pub span: usize,
}

impl Section {
    /// Bytes from one entry to the next.
    pub fn stride(&self) -> usize {
        ROWS * bytes(self.dtype)
    }
}

fn bytes(dtype: DType) -> usize {
    dtype.bits().div_ceil(8) as usize
}

/// Widths of the planes of a code, low bits first; `None` for widths that no format has.
pub(super) fn planes(bits: u8) -> Option<&'static [u8]> {
    Some(match bits {
        1 => &[1],
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        8 => &[8],
        _ => return None,
    })
}

/// The places of a word per row of a plane whose fields have `width` bits. An address counts bits; coordinates are bit,
/// column and row:
///
/// ```text
/// 8 bits   b0 b1 b2 k0 k1 n0 n1 n2 n3            2 bits   b0 k2 k3 k0 k1 n0 n1 n2 n3
/// 4 bits   b0 b1 k2 k0 k1 n0 n1 n2 n3            1 bit    k2 k3 k4 k0 k1 n0 n1 n2 n3
/// ```
///
/// # Panics
/// If no plane has that width: planes have 1, 2, 4 or 8 bits.
pub fn plane_layout(width: u8) -> Layout {
    assert!(matches!(width, 1 | 2 | 4 | 8), "a plane has 1, 2, 4 or 8 bits, not {width}");
    let code_bits = width.trailing_zeros() as u8;
    let bit = |dim| move |index| Bit::new(dim, index);
    let bits: Vec<Bit> = (0..code_bits)
        .map(bit(Dim::B))
        .chain((2..5 - code_bits).map(bit(Dim::K)))
        .chain((0..2).map(bit(Dim::K)))
        .chain((0..4).map(bit(Dim::N)))
        .collect();
    Layout::constant(&bits)
}

impl N16 {
    /// The layout of a format for rows of `k` columns.
    pub fn of(format: &Format, k: usize) -> Result<N16> {
        let format = canonical_format(format, k);
        let bits = format.code.bits();
        let planes = planes(bits).ok_or_else(|| Error::Unsupported(format!("N16 packing of {bits}-bit codes")))?;
        let unit = 32 / *planes.last().expect("every code has a plane") as usize;
        let group = match format.granularity {
            Granularity::Group(g) => g as usize,
            _ => k,
        };
        let groups = k.div_ceil(group);
        let padded_group = padded_group(group, groups, unit);
        let units = (groups * padded_group).div_ceil(unit);
        let mut at = 0;
        let mut section = |dtype: DType, entries: usize, span: usize| {
            let section = Section { offset: at, dtype, entries, span };
            at = (at + entries * section.stride()).next_multiple_of(64);
            section
        };
        let offset_scale = match format.zero {
            Zero::Offset { scale, .. } => Some(scale),
            _ => None,
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
        let zeros_outer = offset_scale.as_ref().and_then(second);
        let scales = section(format.scale.dtype, groups, group);
        let zeros = match format.zero {
            Zero::None | Zero::Bias(_) => None,
            Zero::Int(_) => Some(section(DType::U8, groups, group)),
            Zero::Float(dtype) => Some(section(dtype, groups, group)),
            Zero::Offset { scale, .. } => Some(section(scale.dtype, groups, group)),
        };
        let record = (at + units * unit_bytes(planes)).next_multiple_of(64);
        Ok(N16 {
            format,
            k,
            group,
            groups,
            planes,
            unit,
            padded_group,
            units,
            outer,
            zeros_outer,
            scales,
            zeros,
            codes: at,
            record,
        })
    }

    /// Bytes of a matrix of `n` rows.
    pub fn bytes(&self, n: usize) -> usize {
        n.div_ceil(ROWS) * self.record
    }

    /// Bytes of one unit of a block.
    pub fn unit_bytes(&self) -> usize {
        unit_bytes(self.planes)
    }

    /// The planes of one unit of a block, in the order in which they lie there: [`plane_layout`], with the index of the word
    /// as the high column bits.
    pub fn plane_layouts(&self) -> Result<Vec<Layout>> {
        let plane = |&width: &u8| {
            let words = self.unit * width as usize / 32;
            Layout::product(&Layout::row_major(&[(Dim::K, words.trailing_zeros())])?, &plane_layout(width))
        };
        self.planes.iter().map(plane).collect()
    }

    /// Where four neighbouring columns (quad `quad` of the padded row) lie: the unit, and for each plane the byte offset
    /// of row 0's word in the unit and the bit of the field in each byte.
    pub fn quad(&self, quad: usize) -> (usize, Vec<(usize, u8)>) {
        let within = quad % (self.unit / 4);
        let mut base = 0;
        let places = self
            .planes
            .iter()
            .map(|&b| {
                let fields = 8 / b as usize;
                let place = (base + within / fields * 4 * ROWS, (within % fields) as u8 * b);
                base += self.unit * b as usize / 32 * 4 * ROWS;
                place
            })
            .collect();
        (quad / (self.unit / 4), places)
    }

    /// The quad of the padded row that holds a column, and the byte of the column in it.
    pub fn place(&self, column: usize) -> (usize, usize) {
        let padded = column / self.group * self.padded_group + column % self.group;
        (padded / 4, padded % 4)
    }

    /// Packs a matrix (of any format with columns in group order).
    pub fn pack(q: &Quantized) -> Result<(N16, Vec<u8>)> {
        let layout = N16::of(&q.format, q.k)?;
        let c = canonical(q)?;
        let storable: Vec<bool> = (0..=255u8).map(|code| storable(c.format.code, code)).collect();
        if let Some(i) = c.codes.iter().position(|&code| !storable[code as usize]) {
            return Err(Error::invalid(format!(
                "row {}, column {}: code {:#04x} is not a finite number of the format",
                i / c.k,
                i % c.k,
                c.codes[i]
            )));
        }
        let mut out = vec![0u8; layout.bytes(c.n)];
        let places = layout.places();
        for row in 0..c.n {
            let record = row / ROWS * layout.record;
            let lane = row % ROWS;
            let mut numbers = |section: Option<Section>, raw: &[u32]| {
                let Some(section) = section else { return };
                let size = bytes(section.dtype);
                for entry in 0..section.entries {
                    let at = record + section.offset + entry * section.stride() + lane * size;
                    out[at..at + size].copy_from_slice(&raw[row * section.entries + entry].to_le_bytes()[..size]);
                }
            };
            numbers(layout.outer, &c.outer);
            numbers(layout.zeros_outer, &c.zeros_outer);
            numbers(Some(layout.scales), &c.scales);
            numbers(layout.zeros, &c.zeros);
            layout.pack_codes(&places, &c.codes[row * c.k..][..c.k], lane, &mut out[record + layout.codes..]);
        }
        Ok((layout, out))
    }

    fn pack_codes(&self, places: &[Vec<(usize, u8)>], codes: &[u8], lane: usize, out: &mut [u8]) {
        let flip = self.flip();
        let mut low = 0;
        for (places, &width) in places.iter().zip(self.planes) {
            let mask = (0xffu16 >> (8 - width)) as u8;
            for (&code, &(at, bit)) in codes.iter().zip(places) {
                out[at + lane * 4] |= ((code ^ flip) >> low & mask) << bit;
            }
            low += width;
        }
    }

    /// For each plane, where each column's field lies: the byte in row 0 of the codes, and the bit in it.
    fn places(&self) -> Vec<Vec<(usize, u8)>> {
        let mut places = vec![Vec::with_capacity(self.k); self.planes.len()];
        for column in 0..self.k {
            let (quad, byte) = self.place(column);
            let (unit, words) = self.quad(quad);
            for (places, (word, bit)) in places.iter_mut().zip(words) {
                places.push((unit * self.unit_bytes() + word + byte, bit));
            }
        }
        places
    }

    /// Reads a packed matrix of `n` rows back, in canonical form.
    pub fn unpack(&self, n: usize, packed: &[u8]) -> Result<Quantized> {
        if packed.len() != self.bytes(n) {
            return Err(Error::invalid(format!(
                "packed weights: found {} bytes, expected {}",
                packed.len(),
                self.bytes(n)
            )));
        }
        let numbers = |section: Option<Section>| -> Vec<u32> {
            let Some(section) = section else { return Vec::new() };
            let size = bytes(section.dtype);
            let mut raw = Vec::with_capacity(n * section.entries);
            for row in 0..n {
                for entry in 0..section.entries {
                    let at = row / ROWS * self.record + section.offset + entry * section.stride() + row % ROWS * size;
                    let mut word = [0; 4];
                    word[..size].copy_from_slice(&packed[at..at + size]);
                    raw.push(u32::from_le_bytes(word));
                }
            }
            raw
        };
        let mut codes = vec![0u8; n * self.k];
        let places = self.places();
        for (row, codes) in codes.chunks_mut(self.k).enumerate() {
            let block = &packed[row / ROWS * self.record + self.codes + row % ROWS * 4..];
            let mut low = 0;
            for (places, &width) in places.iter().zip(self.planes) {
                let mask = (0xffu16 >> (8 - width)) as u8;
                for (code, &(at, bit)) in codes.iter_mut().zip(places) {
                    *code |= (block[at] >> bit & mask) << low;
                }
                low += width;
            }
            codes.iter_mut().for_each(|code| *code ^= self.flip());
        }
        Ok(Quantized {
            format: self.format,
            n,
            k: self.k,
            codes,
            scales: numbers(Some(self.scales)),
            outer: numbers(self.outer),
            zeros: numbers(self.zeros),
            zeros_outer: numbers(self.zeros_outer),
            scale_offset: 0.0,
            order: None,
        })
    }

    fn flip(&self) -> u8 {
        flip(self.format.code)
    }
}

/// What makes a two's complement code unsigned.
pub(super) fn flip(code: Code) -> u8 {
    match code {
        Code::Int { bits, signed: true } => 1 << (bits - 1),
        _ => 0,
    }
}

/// Padding a group to whole units wastes little where groups are long; where they are short, only quads are whole, and
/// units may hold the end of one group and the start of the next.
fn padded_group(group: usize, groups: usize, unit: usize) -> usize {
    if groups == 1 || group >= 4 * unit { group.next_multiple_of(unit) } else { group.next_multiple_of(4) }
}

fn unit_bytes(planes: &[u8]) -> usize {
    let bits: usize = planes.iter().map(|&b| b as usize).sum();
    32 / *planes.last().expect("every code has a plane") as usize * bits / 8 * ROWS
}

/// Whether a kernel may decode the code by bit tricks that do not know of NaN and infinity.
pub(super) fn storable(code: Code, value: u8) -> bool {
    code.valid(value) && code.decode(value).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quads_of_a_unit_do_not_overlap() {
        for bits in [1u8, 2, 3, 4, 5, 6, 8] {
            let planes = planes(bits).unwrap();
            let unit = 32 / *planes.last().unwrap() as usize;
            let mut seen = vec![0u8; unit_bytes(planes)];
            let layout = N16 {
                format: Format {
                    code: Code::Int { bits, signed: false },
                    granularity: Granularity::Channel,
                    zero: Zero::None,
                    scale: Scale::of(DType::F32),
                    container: &TEST,
                },
                k: unit,
                group: unit,
                groups: 1,
                planes,
                unit,
                padded_group: unit,
                units: 1,
                outer: None,
                zeros_outer: None,
                scales: Section { offset: 0, dtype: DType::F32, entries: 1, span: unit },
                zeros: None,
                codes: 0,
                record: 64,
            };
            for quad in 0..unit / 4 {
                for (&(word, bit), &width) in layout.quad(quad).1.iter().zip(planes) {
                    for byte in 0..4 * ROWS {
                        let field = ((0xffu16 >> (8 - width)) as u8) << bit;
                        assert_eq!(seen[word + byte] & field, 0, "{bits} bits, quad {quad}");
                        seen[word + byte] |= field;
                    }
                }
            }
            assert!(seen.iter().all(|&b| b == 0xff), "{bits} bits leave gaps");
        }
    }

    static TEST: crate::format::Container = crate::format::Container {
        name: "test",
        pack: |_| Ok(Vec::new()),
        unpack: |_, _, _, _| Err(Error::invalid("test")),
        check: |_, _, _| Vec::new(),
    };
}
