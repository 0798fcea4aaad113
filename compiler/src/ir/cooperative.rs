//! Cooperative matrices: matrices that the lanes of a subgroup hold together, and that only the device knows to divide.
//!
//! A value of such a matrix has the type of a lane's share, elements over lanes, but which elements these are is nobody's
//! business: only the instructions here take it, and loops and branches hand it on. [`fragments`] says which values are
//! matrices. Always holds: memory and multiplications see whole matrices, so that a kernel gives the same numbers however a
//! device deals elements out. This is `SPV_KHR_cooperative_matrix`.

use super::kernel::{Address, Block, Inst, Kernel};
use super::types::{Scalar, Type, Value};
use crate::caps::MmaShape;
use crate::dtype::DType;

/// Which operand of `A · B + C` a matrix can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// A, `[m, k]`.
    A,
    /// B, `[k, n]`.
    B,
    /// C and the result, `[m, n]`.
    Sums,
}

/// Which elements lie side by side in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Those of a row.
    Rows,
    /// Those of a column.
    Columns,
}

/// Where a matrix lies in a shared array: lines of neighbours, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lines {
    /// Whether a line is a row or a column.
    pub order: Order,
    /// The first line's start, a multiple of 16 (of a line's bytes, where these are fewer); the same for all lanes.
    pub address: Address,
    /// Bytes from a line to the next, a multiple of 16. A load may take 0: each line is the same one.
    pub stride: u32,
}

/// What a matrix is: a part of a product of some shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// The product; a shape without a lane map.
    pub shape: &'static MmaShape,
    /// Which operand.
    pub part: Part,
}

impl Fragment {
    /// Rows and columns.
    pub const fn size(&self) -> (u32, u32) {
        let MmaShape { m, n, k, .. } = *self.shape;
        match self.part {
            Part::A => (m, k),
            Part::B => (k, n),
            Part::Sums => (m, n),
        }
    }

    /// Type of an element as devices have it.
    pub const fn dtype(&self) -> DType {
        match self.part {
            Part::A => self.shape.a,
            Part::B => self.shape.b,
            Part::Sums => self.shape.acc,
        }
    }

    /// Whether its elements are signed integers.
    pub const fn is_signed(&self) -> bool {
        matches!(self.dtype(), DType::I8 | DType::I32)
    }

    /// Type of a lane's share; `None` where the IR has no such element.
    pub fn ty(&self) -> Option<Type> {
        let (rows, columns) = self.size();
        Some(Type::vector(Scalar::of(self.dtype())?, u8::try_from(rows * columns / self.shape.lanes).ok()?))
    }

    /// Number of lines, and bytes of each.
    pub const fn lines(&self, order: Order) -> (u32, u32) {
        let (rows, columns) = self.size();
        let size = self.dtype().bits() / 8;
        match order {
            Order::Rows => (rows, columns * size),
            Order::Columns => (columns, rows * size),
        }
    }

    /// Bytes from the start of the first line to the end of the last.
    pub fn extent(&self, order: Order, stride: u32) -> u64 {
        let (count, bytes) = self.lines(order);
        u64::from(count.saturating_sub(1)) * u64::from(stride) + u64::from(bytes)
    }

    /// What the address of each line is a multiple of.
    pub fn align(&self, order: Order) -> u32 {
        // Vulkan: pointer and stride are multiples of 16 bytes or of a line, whichever is less.
        let (_, bytes) = self.lines(order);
        1 << bytes.trailing_zeros().min(4)
    }
}

/// One instruction on such matrices. All lanes of the subgroup come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cooperative {
    /// A matrix with the same number everywhere.
    Fill {
        /// What it is.
        fragment: Fragment,
        /// The number; the same for all lanes.
        value: Value,
    },
    /// Reads a matrix. What other lanes have written is seen after a barrier, even where they are of the same subgroup.
    Load {
        /// What it is.
        fragment: Fragment,
        /// Where it lies.
        from: Lines,
    },
    /// Writes sums. Other lanes, of this subgroup too, see them after a barrier.
    Store {
        /// Of which product.
        shape: &'static MmaShape,
        /// Where to.
        to: Lines,
        /// The matrix.
        sums: Value,
    },
    /// `A · B + C`. Integers are exact and wrap; products of floats are exact and are summed with C in any order and in at
    /// least `f32`.
    Multiply {
        /// Which product.
        shape: &'static MmaShape,
        /// A.
        a: Value,
        /// B.
        b: Value,
        /// C; the result is alike.
        sums: Value,
    },
    /// Element by element `a · b + c` of sums that are `f32`, with one rounding or two.
    Scale {
        /// Of which product.
        shape: &'static MmaShape,
        /// First factor.
        a: Value,
        /// Second factor.
        b: Value,
        /// What is added; the result is alike.
        sums: Value,
    },
}

impl Cooperative {
    /// Its name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Cooperative::Fill { .. } => "matrix_fill",
            Cooperative::Load { .. } => "matrix_load",
            Cooperative::Store { .. } => "matrix_store",
            Cooperative::Multiply { .. } => "matrix_multiply",
            Cooperative::Scale { .. } => "matrix_scale",
        }
    }

    /// The product that it is about.
    pub fn shape(&self) -> &'static MmaShape {
        match self {
            Cooperative::Fill { fragment, .. } | Cooperative::Load { fragment, .. } => fragment.shape,
            Cooperative::Store { shape, .. }
            | Cooperative::Multiply { shape, .. }
            | Cooperative::Scale { shape, .. } => shape,
        }
    }

    /// What its result is; `None` for a store.
    pub fn result(&self) -> Option<Fragment> {
        match self {
            Cooperative::Fill { fragment, .. } | Cooperative::Load { fragment, .. } => Some(*fragment),
            Cooperative::Multiply { shape, .. } | Cooperative::Scale { shape, .. } => {
                Some(Fragment { shape, part: Part::Sums })
            }
            Cooperative::Store { .. } => None,
        }
    }

    /// Where it touches memory, and what lies there.
    pub fn place(&self) -> Option<(&Lines, Fragment)> {
        let (lines, fragment) = match self {
            Cooperative::Load { fragment, from } => (from, *fragment),
            Cooperative::Store { shape, to, .. } => (to, Fragment { shape, part: Part::Sums }),
            Cooperative::Fill { .. } | Cooperative::Multiply { .. } | Cooperative::Scale { .. } => return None,
        };
        Some((lines, fragment))
    }

    /// The address that it names, to be changed at will.
    pub fn address_mut(&mut self) -> Option<&mut Address> {
        match self {
            Cooperative::Load { from, .. } => Some(&mut from.address),
            Cooperative::Store { to, .. } => Some(&mut to.address),
            Cooperative::Fill { .. } | Cooperative::Multiply { .. } | Cooperative::Scale { .. } => None,
        }
    }

    /// The matrices that it reads, and what each must be.
    pub fn matrices(&self) -> Vec<(Value, Fragment)> {
        let sums = |shape, value| (value, Fragment { shape, part: Part::Sums });
        match *self {
            Cooperative::Fill { .. } | Cooperative::Load { .. } => Vec::new(),
            Cooperative::Store { shape, sums: value, .. } => vec![sums(shape, value)],
            Cooperative::Multiply { shape, a, b, sums: c } => {
                vec![(a, Fragment { shape, part: Part::A }), (b, Fragment { shape, part: Part::B }), sums(shape, c)]
            }
            Cooperative::Scale { shape, a, b, sums: c } => [a, b, c].map(|value| sums(shape, value)).to_vec(),
        }
    }

    /// Calls `visit` with every value that it reads, that of an address first.
    pub fn each_operand(&mut self, visit: &mut dyn FnMut(&mut Value)) {
        if let Some(Address { index: Some(index), .. }) = self.address_mut() {
            visit(index);
        }
        match self {
            Cooperative::Fill { value, .. } | Cooperative::Store { sums: value, .. } => visit(value),
            Cooperative::Load { .. } => {}
            Cooperative::Multiply { a, b, sums, .. } | Cooperative::Scale { a, b, sums, .. } => {
                visit(a);
                visit(b);
                visit(sums);
            }
        }
    }
}

/// Which values are matrices, and what; empty for a kernel without any.
pub fn fragments(kernel: &Kernel) -> Vec<Option<Fragment>> {
    let mut any = false;
    kernel.body.each(&mut |statement| any |= matches!(statement.inst, Inst::Cooperative(_)));
    if !any {
        return Vec::new();
    }
    let mut known = vec![None; kernel.types.len()];
    mark(&kernel.body, &mut known);
    known
}

/// Statements in order: whatever a loop or branch hands on was made before it, or inside.
fn mark(block: &Block, known: &mut [Option<Fragment>]) {
    let of = |known: &[Option<Fragment>], value: Value| known.get(value.0 as usize).copied().flatten();
    let set = |known: &mut [Option<Fragment>], value: Value, fragment| {
        if let Some(slot) = known.get_mut(value.0 as usize) {
            *slot = fragment;
        }
    };
    for statement in &block.statements {
        match &statement.inst {
            Inst::Cooperative(inner) => {
                if let Some(&result) = statement.results.first() {
                    set(known, result, inner.result());
                }
            }
            Inst::For(inner) => {
                for (i, &(name, first)) in inner.carried.iter().enumerate() {
                    let fragment = of(known, first);
                    set(known, name, fragment);
                    if let Some(&result) = statement.results.get(i) {
                        set(known, result, fragment);
                    }
                }
                mark(&inner.body, known);
            }
            Inst::If(inner) => {
                mark(&inner.then, known);
                mark(&inner.otherwise, known);
                if let Some(Inst::Yield(values)) = inner.then.statements.last().map(|last| &last.inst) {
                    for (&result, &value) in statement.results.iter().zip(values) {
                        let fragment = of(known, value);
                        set(known, result, fragment);
                    }
                }
            }
            _ => {}
        }
    }
}
