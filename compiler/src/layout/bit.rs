//! What layouts are made of: dimensions, their bits, and tuples of coordinates.

use std::fmt;

/// A coordinate bit: bit `index` of the coordinate `dim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bit {
    /// The dimension.
    pub dim: Dim,
    /// Which bit of the coordinate; 0 is the lowest.
    pub index: u8,
}

/// What a coordinate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// Rows of a weight matrix.
    N,
    /// Columns of a weight matrix.
    K,
    /// Bits of a code.
    B,
    /// Rows of a matrix instruction's operand.
    Row,
    /// Columns of a matrix instruction's operand.
    Column,
    /// Lanes of a subgroup.
    Lane,
    /// A lane's registers, or its elements where several share a register.
    Register,
    /// Addresses of another layout: what permutations are made of.
    Address,
}

impl Dim {
    /// Every dimension, in declaration order.
    pub const ALL: [Dim; 8] = [Dim::N, Dim::K, Dim::B, Dim::Row, Dim::Column, Dim::Lane, Dim::Register, Dim::Address];

    /// Its name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Dim::N => "n",
            Dim::K => "k",
            Dim::B => "b",
            Dim::Row => "row",
            Dim::Column => "column",
            Dim::Lane => "lane",
            Dim::Register => "register",
            Dim::Address => "address",
        }
    }
}

impl Bit {
    /// What unused places hold.
    pub(super) const FIRST: Bit = Bit::new(Dim::N, 0);

    /// Bit `index` of the coordinate `dim`.
    pub const fn new(dim: Dim, index: u8) -> Bit {
        Bit { dim, index }
    }
}

/// A coordinate for every dimension; 0 unless said otherwise.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Coords([u32; Dim::ALL.len()]);

impl Coords {
    /// All coordinates 0.
    pub const ORIGIN: Coords = Coords([0; Dim::ALL.len()]);

    /// The same tuple with another value for one dimension.
    pub const fn with(mut self, dim: Dim, value: u32) -> Coords {
        self.0[dim as usize] = value;
        self
    }

    /// The coordinate of a dimension.
    pub const fn get(&self, dim: Dim) -> u32 {
        self.0[dim as usize]
    }
}

impl fmt::Debug for Coords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for dim in Dim::ALL.into_iter().filter(|&dim| self.get(dim) != 0) {
            map.entry(&format_args!("{dim}"), &self.get(dim));
        }
        map.finish()
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Bit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dim, self.index)
    }
}
