//! Types and names of the kernel IR: scalars, short vectors, values, buffers.

use crate::dtype::DType;
use std::fmt;

/// A scalar type of a value. Integers carry no sign: the operation says how it reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scalar {
    /// True or false; never in memory.
    Bool,
    /// 8-bit integer.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// IEEE binary16.
    F16,
    /// Upper half of a binary32.
    Bf16,
    /// IEEE binary32.
    F32,
    /// FP8 E4M3 (OCP). Storage only: load, store, bitcast and cast, no arithmetic.
    E4m3fn,
    /// FP8 E4M3 with bias 8. Storage only.
    E4m3fnuz,
    /// FP8 E5M2 (OCP). Storage only.
    E5m2,
    /// FP8 E5M2 with bias 16. Storage only.
    E5m2fnuz,
    /// Power of two. Storage only.
    E8m0,
}

impl Scalar {
    /// Every scalar, in declaration order.
    pub const ALL: [Scalar; 13] = [
        Scalar::Bool,
        Scalar::I8,
        Scalar::I16,
        Scalar::I32,
        Scalar::I64,
        Scalar::F16,
        Scalar::Bf16,
        Scalar::F32,
        Scalar::E4m3fn,
        Scalar::E4m3fnuz,
        Scalar::E5m2,
        Scalar::E5m2fnuz,
        Scalar::E8m0,
    ];

    /// The scalar of elements of a type; `None` where the IR has none.
    pub const fn of(dtype: DType) -> Option<Scalar> {
        Some(match dtype {
            DType::F32 => Scalar::F32,
            DType::F16 => Scalar::F16,
            DType::Bf16 => Scalar::Bf16,
            DType::E4m3fn => Scalar::E4m3fn,
            DType::E4m3fnuz => Scalar::E4m3fnuz,
            DType::E5m2 => Scalar::E5m2,
            DType::E5m2fnuz => Scalar::E5m2fnuz,
            DType::E8m0 => Scalar::E8m0,
            DType::I8 | DType::U8 => Scalar::I8,
            DType::I32 => Scalar::I32,
            _ => return None,
        })
    }

    /// Width in bits; 1 for `Bool`, which has no place in memory.
    pub const fn bits(self) -> u32 {
        match self {
            Scalar::Bool => 1,
            Scalar::I8 | Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => 8,
            Scalar::I16 | Scalar::F16 | Scalar::Bf16 => 16,
            Scalar::I32 | Scalar::F32 => 32,
            Scalar::I64 => 64,
        }
    }

    /// Width in bytes, for scalars that may lie in memory.
    pub const fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Spelling in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Scalar::Bool => "bool",
            Scalar::I8 => "i8",
            Scalar::I16 => "i16",
            Scalar::I32 => "i32",
            Scalar::I64 => "i64",
            Scalar::F16 => "f16",
            Scalar::Bf16 => "bf16",
            Scalar::F32 => "f32",
            Scalar::E4m3fn => "e4m3fn",
            Scalar::E4m3fnuz => "e4m3fnuz",
            Scalar::E5m2 => "e5m2",
            Scalar::E5m2fnuz => "e5m2fnuz",
            Scalar::E8m0 => "e8m0",
        }
    }

    /// I8, I16, I32 or I64.
    pub const fn is_int(self) -> bool {
        matches!(self, Scalar::I8 | Scalar::I16 | Scalar::I32 | Scalar::I64)
    }

    /// F16, Bf16 or F32: floats with arithmetic.
    pub const fn is_float(self) -> bool {
        matches!(self, Scalar::F16 | Scalar::Bf16 | Scalar::F32)
    }

    /// An 8-bit float that can only be moved and cast.
    pub const fn is_storage(self) -> bool {
        matches!(self, Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0)
    }
}

/// A value's type: a scalar or a short vector of it. Lanes are 1, 2, 4, 8, 16, 32 or 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub scalar: Scalar,
    /// Number of lanes; 1 is a scalar.
    pub lanes: u8,
}

impl Type {
    /// A scalar type.
    pub const fn scalar(scalar: Scalar) -> Type {
        Type { scalar, lanes: 1 }
    }

    /// A vector type.
    pub const fn vector(scalar: Scalar, lanes: u8) -> Type {
        Type { scalar, lanes }
    }

    /// Width of the whole value in bits.
    pub const fn bits(self) -> u32 {
        self.scalar.bits() * self.lanes as u32
    }

    /// Width of the whole value in bytes.
    pub const fn bytes(self) -> u32 {
        self.scalar.bytes() * self.lanes as u32
    }

    /// The same lanes with another element.
    pub const fn with_scalar(self, scalar: Scalar) -> Type {
        Type { scalar, lanes: self.lanes }
    }

    /// The same element with another number of lanes.
    pub const fn with_lanes(self, lanes: u8) -> Type {
        Type { scalar: self.scalar, lanes }
    }
}

impl From<Scalar> for Type {
    fn from(scalar: Scalar) -> Type {
        Type::scalar(scalar)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes == 1 { write!(f, "{}", self.scalar) } else { write!(f, "{}x{}", self.scalar, self.lanes) }
    }
}

/// A value: the result of one instruction, spelled `%7`. Defined once, before every use, in an enclosing block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A piece of memory that an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// The buffer behind parameter number `.0` of the kernel.
    Param(u16),
    /// The workgroup's shared array number `.0`.
    Shared(u16),
}
