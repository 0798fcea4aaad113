//! N16, the CPU's compute packing: 16 rows side by side, so that a vector lane is a row.
//!
//! A matrix is cut into blocks of 16 rows; a block is one record, and records follow each other. N is padded to 16.
//! A record is cut into chunks of whole groups along K, so that a kernel reads what it needs in the order of memory: one
//! run of addresses is what a prefetcher follows best. With all scales of a record before its codes, one thread of a Zen 5
//! read 4-bit codes in groups of 32 at 85 % of the speed of plain reading; in chunks it is 96 %.
//!
//! ```text
//! record   head | chunk | chunk | …                              starts at a multiple of 64 bytes
//! chunk    outer | zeros_outer | scales | zeros | codes          the last one ends with its last unit
//! head     what there is once per row: an outer scale or offset of the whole row
//! outer, zeros_outer   [span][16 rows]     scales, zeros   [group][16 rows]     each in its own type; 4 bits: [2 groups][16 rows]
//! codes    [unit][plane][word of the plane][16 rows]             32-bit words
//! ```
//!
//! A chunk has as few groups as make whole units, whole spans of outer scales, and, where they are a few lines of 64 bytes,
//! whole lines before its codes.
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

mod codec;
mod sections;

pub use self::sections::Section;
use self::sections::Sections;

use super::canonical::canonical_format;
use super::{Code, Format, Granularity, Outer, Scale, Span, Zero};
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
    /// Units of a chunk; all of them where a record is one chunk.
    pub chunk_units: usize,
    /// Bytes from one chunk to the next; a multiple of 64.
    pub chunk: usize,
    /// Byte offset of the first codes in the record.
    pub codes: usize,
    /// Bytes of a record; a multiple of 64.
    pub record: usize,
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
        let second = |scale: &Scale| {
            scale.outer.map(|Outer { dtype, span, .. }| {
                let span = match span {
                    Span::Weights(w) => w as usize,
                    _ => k,
                };
                Section::beside(dtype, k.div_ceil(span), span)
            })
        };
        let mut sections = Sections {
            outer: second(&format.scale),
            zeros_outer: match &format.zero {
                Zero::Offset { scale, .. } => second(scale),
                _ => None,
            },
            scales: Section::beside(format.scale.dtype, groups, group),
            zeros: match format.zero {
                Zero::None | Zero::Bias(_) => None,
                Zero::Int(_) => Some(Section::beside(DType::U8, groups, group)),
                Zero::Float(dtype) => Some(Section::beside(dtype, groups, group)),
                Zero::Offset { scale, .. } => Some(Section::beside(scale.dtype, groups, group)),
            },
        };
        let whole_units = unit / gcd(unit, padded_group);
        let chunk_groups = sections.groups_of_a_chunk(group, groups, whole_units);
        let (head, header) = sections.place(group, groups, chunk_groups);
        let chunk_units = if chunk_groups < groups { chunk_groups * padded_group / unit } else { units };
        let chunk = header + chunk_units * unit_bytes(planes);
        let record = head + units.div_ceil(chunk_units) * header + units * unit_bytes(planes);
        let Sections { outer, zeros_outer, scales, zeros } = sections;
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
            chunk_units,
            chunk,
            codes: head + header,
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

    /// Where a unit of a block starts in its record.
    pub fn unit_place(&self, unit: usize) -> usize {
        self.codes + unit * self.unit_bytes() + unit / self.chunk_units * self.header()
    }

    /// Where an entry of a section starts in a record, and the bit in its bytes.
    pub fn entry_place(&self, section: &Section, entry: usize) -> (usize, u8) {
        let (from, within) = (entry / section.shared() * section.stride(), entry % section.shared());
        let gaps = entry / section.per_chunk * self.entry_gap(section);
        (section.offset + from + gaps, within as u8 * section.dtype.bits() as u8)
    }

    /// Bytes of a chunk before its codes.
    pub fn header(&self) -> usize {
        self.chunk - self.chunk_units * self.unit_bytes()
    }

    /// Bytes between the entries of a section in one chunk and those in the next.
    pub fn entry_gap(&self, section: &Section) -> usize {
        if section.per_chunk < section.entries { self.chunk - section.bytes(section.per_chunk) } else { 0 }
    }

    /// The sections of a record that there are.
    pub fn sections(&self) -> impl Iterator<Item = Section> {
        [self.outer, self.zeros_outer, Some(self.scales), self.zeros].into_iter().flatten()
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

/// The greatest number that divides both; zero is divided by all.
pub(crate) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
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
                scales: Section::beside(DType::F32, 1, unit),
                zeros: None,
                chunk_units: 1,
                chunk: unit_bytes(planes),
                codes: 0,
                record: unit_bytes(planes),
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

    #[test]
    fn q2_k_takes_the_bits_of_its_file() {
        let layout = N16::of(&"q2_k".parse().unwrap(), 4096).unwrap();
        assert_eq!(layout.bytes(16), 16 * 4096 / 256 * 84);
        let (scale, next) = (layout.entry_place(&layout.scales, 16), layout.entry_place(&layout.scales, 17));
        assert_eq!((scale.0, scale.1, next.1), (next.0, 0, 4), "two groups share their bytes");
    }

    static TEST: crate::format::Container = crate::format::Container {
        name: "test",
        pack: |_| Ok(Vec::new()),
        unpack: |_, _, _, _| Err(Error::invalid("test")),
        check: |_, _, _| Vec::new(),
    };
}
