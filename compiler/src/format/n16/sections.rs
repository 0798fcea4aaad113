//! Sections: the scales and zeros of a record, and how they share it with codes in chunks.

use super::{ROWS, gcd};
use crate::dtype::DType;

/// An array `[entry][16 rows]` of a record. Of numbers of 4 bits two entries share the bytes of their rows, the first one low.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section {
    /// Byte offset of the first entry in the record.
    pub offset: usize,
    /// Type of a number: `F32`, `F16`, `Bf16`, `E4m3fn`, `E8m0`, `U4`, `U8` or `I8`.
    pub dtype: DType,
    /// Entries per row.
    pub entries: usize,
    /// Columns that share an entry.
    pub span: usize,
    /// Entries of a chunk; all of them where they lie side by side.
    pub per_chunk: usize,
}

impl Section {
    /// So many entries side by side.
    pub(super) fn beside(dtype: DType, entries: usize, span: usize) -> Section {
        Section { offset: 0, dtype, entries, span, per_chunk: entries }
    }

    /// Neighbouring entries that share their bytes.
    pub fn shared(&self) -> usize {
        (8 / self.dtype.bits() as usize).max(1)
    }

    /// Bytes of a row's number, or of its numbers that share them.
    pub fn size(&self) -> usize {
        self.dtype.bytes()
    }

    /// Bytes from one entry, or from those that share their bytes, to the next of the same chunk.
    pub fn stride(&self) -> usize {
        ROWS * self.size()
    }

    /// Bytes of so many neighbouring entries.
    pub fn bytes(&self, entries: usize) -> usize {
        entries.div_ceil(self.shared()) * self.stride()
    }
}

/// Bytes before the codes of a chunk from which on a line is rather filled up than the chunk made longer: codes and scales
/// that lie far apart are two runs again (Q6_K with 576 bytes of scales per 6 KiB was read at 73 % of the speed of reading,
/// with 288 per 3 KiB at 94 %).
const LONG_HEADER: usize = 256;

/// The sections of a record, before and while they get their places.
pub(super) struct Sections {
    pub outer: Option<Section>,
    pub zeros_outer: Option<Section>,
    pub scales: Section,
    pub zeros: Option<Section>,
}

impl Sections {
    fn each(&mut self) -> impl Iterator<Item = &mut Section> {
        let Sections { outer, zeros_outer, scales, zeros } = self;
        [outer.as_mut(), zeros_outer.as_mut(), Some(scales), zeros.as_mut()].into_iter().flatten()
    }

    /// Groups of a chunk: whole spans of every section, whole units (which `whole` groups make), whole lines of 64 bytes where
    /// the header is short. All groups where a record is one chunk.
    pub fn groups_of_a_chunk(&mut self, group: usize, groups: usize, whole: usize) -> usize {
        let mut least = whole;
        // Groups that share an entry or its bytes, and those bytes.
        let mut several: Vec<(usize, usize)> = Vec::new();
        for section in self.each().filter(|section| section.entries > 1) {
            if section.span % group != 0 {
                return groups;
            }
            let span = section.span / group * section.shared();
            least = least / gcd(least, span) * span;
            several.push((span, section.stride()));
        }
        let bytes = |count: usize| several.iter().map(|&(span, stride)| count / span * stride).sum::<usize>();
        let lines = |count: usize| bytes(count).is_multiple_of(64) || bytes(count) >= LONG_HEADER;
        // Entries have 16, 32 or 64 bytes.
        [1, 2].map(|factor| factor * least).into_iter().find(|&count| lines(count)).unwrap_or(4 * least).min(groups)
    }

    /// Gives every section its place, where a chunk has `count` of the groups. Returns the bytes of the head, and those of a
    /// chunk before its codes.
    pub fn place(&mut self, group: usize, groups: usize, count: usize) -> (usize, usize) {
        let chunks = count < groups;
        let mut head = 0;
        for section in self.each().filter(|section| chunks && section.entries == 1) {
            section.offset = head;
            head = (head + section.bytes(1)).next_multiple_of(64);
        }
        let mut at = head;
        for section in self.each().filter(|section| !chunks || section.entries > 1) {
            if chunks {
                section.per_chunk = count * group / section.span;
            }
            section.offset = at.next_multiple_of(section.stride());
            at = section.offset + section.bytes(section.per_chunk);
        }
        (head, at.next_multiple_of(64) - head)
    }
}
