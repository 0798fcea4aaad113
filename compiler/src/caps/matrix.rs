//! Matrix instructions as data: their sizes, their types, and which lane holds which element.
//!
//! Always holds: a map's address is `lane * elements + element`, and its coordinates are the row and the column of the
//! operand, so that one family over [`MmaShape`] serves every device that has a map.

use crate::dtype::DType;
use crate::layout::{Bit, Dim, Layout};
use std::fmt;

/// One matrix instruction of a subgroup: `D[m, n] = A[m, k] · B[k, n] + C[m, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmaShape {
    /// Rows of A and of the result.
    pub m: u32,
    /// Columns of B and of the result.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
    /// Type of A.
    pub a: DType,
    /// Type of B.
    pub b: DType,
    /// Type of the sums: `F32` or `I32`.
    pub acc: DType,
    /// Lanes that take part.
    pub lanes: u32,
    /// Where elements lie; `None` where the device keeps that to itself.
    pub map: Option<LaneMap>,
}

/// Which lane holds which element of an operand. An address is a lane and an element of its fragment (low bits);
/// coordinates are `Row` and `Column` of A (`[m, k]`), of B (`[k, n]`) and of the sums (`[m, n]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneMap {
    /// A.
    pub a: Layout,
    /// B.
    pub b: Layout,
    /// C and D.
    pub acc: Layout,
}

/// Row and column of an address of a map.
pub fn place(map: &Layout, address: usize) -> (usize, usize) {
    let at = map.coords(address);
    (at.get(Dim::Row) as usize, at.get(Dim::Column) as usize)
}

impl MmaShape {
    /// Elements of A that one lane holds.
    pub const fn a_elements(&self) -> u32 {
        self.m * self.k / self.lanes
    }

    /// Elements of B that one lane holds.
    pub const fn b_elements(&self) -> u32 {
        self.k * self.n / self.lanes
    }

    /// Where A lies; empty where the device keeps that to itself.
    pub fn a_map(&self) -> Layout {
        self.map.map_or(Layout::EMPTY, |map| map.a)
    }

    /// Where B lies; empty where the device keeps that to itself.
    pub fn b_map(&self) -> Layout {
        self.map.map_or(Layout::EMPTY, |map| map.b)
    }

    /// Where the sums lie; empty where the device keeps that to itself.
    pub fn acc_map(&self) -> Layout {
        self.map.map_or(Layout::EMPTY, |map| map.acc)
    }

    /// Sums that one lane holds.
    pub const fn acc_elements(&self) -> u32 {
        self.m * self.n / self.lanes
    }
}

/// The name in the text form: `m16n8k16_f16_f16_f32_l32`; `_alternate` where a lane's sums belong to every second row,
/// `_opaque` where the device keeps to itself which lane holds what.
impl fmt::Display for MmaShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MmaShape { m, n, k, a, b, acc, lanes, .. } = self;
        write!(f, "m{m}n{n}k{k}_{}_{}_{}_l{lanes}", a.name(), b.name(), acc.name())?;
        // Two generations of AMD differ in nothing else.
        let alternate = self.acc_map().bits().first() == Some(&Bit::new(Dim::Row, 1));
        f.write_str(match self.map {
            None => "_opaque",
            Some(_) if alternate => "_alternate",
            Some(_) => "",
        })
    }
}
