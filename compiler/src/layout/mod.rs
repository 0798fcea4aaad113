//! Layouts: an address bit is a coordinate bit.
//!
//! Reads nothing but small numbers; makes [`Layout`], which says for every bit of an address, low bits first, which bit of
//! which coordinate it holds. Packed words, tiles in memory and the lanes of a matrix instruction are all written this way.
//!
//! ```text
//! b0 b1 k2 k0 k1 n0 n1 n2 n3      4-bit codes, 16 rows side by side: two nibbles 4 columns apart share a byte,
//!                                 4 bytes are 4 neighbouring columns, a word is a row
//! ```
//!
//! Always holds: a layout is a bijection. The bits of each dimension are `0..count`, each in exactly one place, so every
//! address has one tuple of coordinates and every tuple (below `2^count` per dimension) one address.

mod bit;
mod picture;
mod text;

pub use bit::{Bit, Coords, Dim};

use crate::error::{Error, Result};

/// A bijection between addresses of a few bits and named coordinates, one coordinate bit per address bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The coordinate bit of each address bit, low first. Places past `len` hold [`Bit::FIRST`], so that equal layouts are
    /// equal arrays.
    bits: [Bit; Layout::MAX_BITS],
    len: u8,
}

impl Layout {
    /// The most address bits that a layout has.
    pub const MAX_BITS: usize = 32;

    /// The layout of no bits: one address, all coordinates 0. Neutral in products.
    pub const EMPTY: Layout = Layout { bits: [Bit::FIRST; Layout::MAX_BITS], len: 0 };

    /// The layout whose address bits, low first, hold these coordinate bits. Fails unless each bit of each dimension is
    /// there exactly once.
    pub fn new(bits: &[Bit]) -> Result<Layout> {
        match fault(bits) {
            None => Ok(Layout::valid(bits)),
            Some(Fault::Long) => Err(Error::invalid(format!(
                "layout: {} address bits, and {} are the most it can have",
                bits.len(),
                Layout::MAX_BITS
            ))),
            Some(Fault::High(bit)) => {
                Err(Error::invalid(format!("layout: {bit}: the number of a bit is below {}", Layout::MAX_BITS)))
            }
            Some(Fault::Repeated(bit)) => Err(Error::invalid(format!("layout: {bit} is there twice"))),
            Some(Fault::Missing(bit)) => {
                Err(Error::invalid(format!("layout: {bit} is missing, and a higher bit of {} is there", bit.dim)))
            }
        }
    }

    /// [`Layout::new`] for constants.
    ///
    /// # Panics
    /// If the bits are no layout; in a constant that is an error at compile time.
    pub const fn constant(bits: &[Bit]) -> Layout {
        match fault(bits) {
            None => Layout::valid(bits),
            Some(Fault::Long) => panic!("a layout has at most 32 address bits"),
            Some(Fault::High(_)) => panic!("the number of a bit is below 32"),
            Some(Fault::Repeated(_)) => panic!("a coordinate bit is there twice"),
            Some(Fault::Missing(_)) => panic!("a coordinate bit below another is missing"),
        }
    }

    const fn valid(bits: &[Bit]) -> Layout {
        let mut layout = Layout::EMPTY;
        while (layout.len as usize) < bits.len() {
            layout.bits[layout.len as usize] = bits[layout.len as usize];
            layout.len += 1;
        }
        layout
    }

    /// The permutation that moves nothing: `address0 address1 …`. Fails beyond [`Layout::MAX_BITS`].
    pub fn identity(bits: u32) -> Result<Layout> {
        Layout::row_major(&[(Dim::Address, bits)])
    }

    /// An array over dimensions of so many bits each, slowest first: the last one takes the low address bits.
    pub fn row_major(dims: &[(Dim, u32)]) -> Result<Layout> {
        let total = dims.iter().fold(0u32, |sum, &(_, count)| sum.saturating_add(count));
        if total as usize > Layout::MAX_BITS {
            return Err(Error::invalid(format!(
                "layout: {total} address bits, and {} are the most it can have",
                Layout::MAX_BITS
            )));
        }
        let bits: Vec<Bit> =
            dims.iter().rev().flat_map(|&(dim, count)| (0..count).map(move |i| Bit::new(dim, i as u8))).collect();
        Layout::new(&bits)
    }

    /// The coordinate bits that the address bits hold, low first.
    pub const fn bits(&self) -> &[Bit] {
        self.bits.split_at(self.len as usize).0
    }

    /// How many address bits there are.
    pub const fn len(&self) -> u32 {
        self.len as u32
    }

    /// Whether there are no address bits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many addresses there are. Where an address counts bits, as in packed words, that is the size in bits.
    pub const fn size(&self) -> u64 {
        1 << self.len
    }

    /// How many bits of an address belong to a dimension.
    pub fn count(&self, dim: Dim) -> u32 {
        self.bits().iter().filter(|bit| bit.dim == dim).count() as u32
    }

    /// How many values a coordinate takes: 1 for a dimension that is not there.
    pub fn extent(&self, dim: Dim) -> u64 {
        1 << self.count(dim)
    }

    /// The address of a tuple of coordinates. A coordinate counts modulo its extent, as if the layout were a tile that
    /// repeats.
    pub const fn address(&self, coords: Coords) -> usize {
        let mut address = 0;
        let mut i = 0;
        while i < self.len as usize {
            let Bit { dim, index } = self.bits[i];
            address |= ((coords.get(dim) >> index & 1) as usize) << i;
            i += 1;
        }
        address
    }

    /// The coordinates at an address (modulo the size); those that the layout does not have are 0.
    pub const fn coords(&self, address: usize) -> Coords {
        let mut coords = Coords::ORIGIN;
        let mut i = 0;
        while i < self.len as usize {
            let Bit { dim, index } = self.bits[i];
            coords = coords.with(dim, coords.get(dim) | ((address >> i & 1) as u32) << index);
            i += 1;
        }
        coords
    }
}

/// How layouts make layouts.
impl Layout {
    /// Tiles: each place of `outer` is a whole `inner`. The inner layout takes the low address bits, and where both have a
    /// dimension, the low bits of that coordinate. Associative. Fails beyond [`Layout::MAX_BITS`].
    pub fn product(outer: &Layout, inner: &Layout) -> Result<Layout> {
        let shifted = outer.bits().iter().map(|bit| Bit::new(bit.dim, bit.index + inner.count(bit.dim) as u8));
        Layout::new(&inner.bits().iter().copied().chain(shifted).collect::<Vec<_>>())
    }

    /// The layout seen through a permutation: at address `x` lies what `layout` has at the address that `permutation` has
    /// at `x`. Associative, with the identity neutral. Fails unless `permutation` is one, of the same length.
    pub fn compose(permutation: &Layout, layout: &Layout) -> Result<Layout> {
        if !permutation.is_permutation() {
            return Err(Error::invalid(format!("layout: `{permutation}` is no permutation of address bits")));
        }
        if permutation.len != layout.len {
            return Err(Error::invalid(format!(
                "layout: a permutation of {} address bits cannot be composed with a layout of {}",
                permutation.len, layout.len
            )));
        }
        Layout::new(&permutation.bits().iter().map(|bit| layout.bits[bit.index as usize]).collect::<Vec<_>>())
    }

    /// Whether it maps addresses to addresses.
    pub fn is_permutation(&self) -> bool {
        self.bits().iter().all(|bit| bit.dim == Dim::Address)
    }

    /// From coordinates back to addresses, as a permutation: its input is the tuple of coordinates read as one number,
    /// dimensions in the order of [`Dim::ALL`] with the first one in the low bits. Composed with the layout it gives
    /// [`Layout::sorted`], which for a permutation is the identity.
    pub fn invert(&self) -> Layout {
        // Both have the same coordinate bits by construction.
        self.rearrange(&self.sorted())
    }

    /// The layout of the same coordinates in plain order: bits of the first dimension of [`Dim::ALL`] lowest.
    pub fn sorted(&self) -> Layout {
        let mut sorted = *self;
        sorted.bits[..self.len as usize].sort_unstable();
        sorted
    }

    /// How to go from this layout to another of the same coordinates: the permutation `p` with `compose(p, self) == to`.
    /// Fails where the coordinates differ.
    pub fn conversion(&self, to: &Layout) -> Result<Layout> {
        if self.sorted() != to.sorted() {
            return Err(Error::invalid(format!("layout: `{self}` and `{to}` do not have the same coordinate bits")));
        }
        Ok(self.rearrange(to))
    }

    /// For each bit of `to`, the address bit here that holds it. Both have the same coordinate bits.
    fn rearrange(&self, to: &Layout) -> Layout {
        let mut places = Layout::EMPTY;
        for bit in to.bits() {
            let place = self.bits().iter().position(|b| b == bit).unwrap_or_default();
            places.bits[places.len as usize] = Bit::new(Dim::Address, place as u8);
            places.len += 1;
        }
        places
    }
}

/// Why bits are no layout.
#[derive(Clone, Copy)]
enum Fault {
    /// Too many of them.
    Long,
    /// A bit's number is beyond any address.
    High(Bit),
    /// A bit is there twice.
    Repeated(Bit),
    /// A bit is not there, and a higher one of its dimension is.
    Missing(Bit),
}

/// The first reason why bits are no layout.
const fn fault(bits: &[Bit]) -> Option<Fault> {
    if bits.len() > Layout::MAX_BITS {
        return Some(Fault::Long);
    }
    let mut seen = [0u64; Dim::ALL.len()];
    let mut i = 0;
    while i < bits.len() {
        let Bit { dim, index } = bits[i];
        if index as usize >= Layout::MAX_BITS {
            return Some(Fault::High(bits[i]));
        }
        if seen[dim as usize] >> index & 1 != 0 {
            return Some(Fault::Repeated(bits[i]));
        }
        seen[dim as usize] |= 1 << index;
        i += 1;
    }
    let mut d = 0;
    while d < seen.len() {
        let lowest_missing = seen[d].trailing_ones();
        if seen[d] >> lowest_missing != 0 {
            return Some(Fault::Missing(Bit::new(Dim::ALL[d], lowest_missing as u8)));
        }
        d += 1;
    }
    None
}

#[cfg(test)]
mod tests;
