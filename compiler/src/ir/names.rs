//! Spellings of operations in the text form, as tables that the printer and the parser share.
//!
//! Always holds: each table names every variant once, and no name stands in two tables.

use super::cooperative::{Order, Part};
use super::kernel::{Access, BinOp, Builtin, CastOp, CmpOp, Dot4Signs, ReduceOp, ShuffleMode, UnOp};

/// Two-operand operations.
pub(super) const BIN: &[(BinOp, &str)] = &[
    (BinOp::Add, "add"),
    (BinOp::Sub, "sub"),
    (BinOp::Mul, "mul"),
    (BinOp::Div, "div"),
    (BinOp::DivS, "div_s"),
    (BinOp::RemS, "rem_s"),
    (BinOp::Min, "min"),
    (BinOp::Max, "max"),
    (BinOp::MinS, "min_s"),
    (BinOp::MaxS, "max_s"),
    (BinOp::And, "and"),
    (BinOp::Or, "or"),
    (BinOp::Xor, "xor"),
    (BinOp::Shl, "shl"),
    (BinOp::ShrU, "shr_u"),
    (BinOp::ShrS, "shr_s"),
];

/// One-operand operations.
pub(super) const UN: &[(UnOp, &str)] = &[
    (UnOp::Neg, "neg"),
    (UnOp::Not, "not"),
    (UnOp::Abs, "abs"),
    (UnOp::Sqrt, "sqrt"),
    (UnOp::Nearest, "nearest"),
    (UnOp::Floor, "floor"),
    (UnOp::Exp2, "exp2"),
    (UnOp::Popcount, "popcount"),
];

/// Comparisons.
pub(super) const CMP: &[(CmpOp, &str)] = &[
    (CmpOp::Eq, "eq"),
    (CmpOp::Ne, "ne"),
    (CmpOp::Lt, "lt"),
    (CmpOp::Le, "le"),
    (CmpOp::LtS, "lt_s"),
    (CmpOp::LeS, "le_s"),
    (CmpOp::LtU, "lt_u"),
];

/// Conversions.
pub(super) const CAST: &[(CastOp, &str)] = &[
    (CastOp::Truncate, "truncate"),
    (CastOp::ExtendU, "extend_u"),
    (CastOp::ExtendS, "extend_s"),
    (CastOp::IntToFloatS, "int_to_float_s"),
    (CastOp::IntToFloatU, "int_to_float_u"),
    (CastOp::FloatToIntS, "float_to_int_s"),
    (CastOp::Float, "convert"),
];

/// Byte dot products.
pub(super) const DOT4: &[(Dot4Signs, &str)] =
    &[(Dot4Signs::SignedSigned, "dot4_ss"), (Dot4Signs::UnsignedSigned, "dot4_us")];

/// Reductions over the subgroup.
pub(super) const REDUCE: &[(ReduceOp, &str)] = &[(ReduceOp::Add, "subgroup_add"), (ReduceOp::Max, "subgroup_max")];

/// Lane exchanges.
pub(super) const SHUFFLE: &[(ShuffleMode, &str)] =
    &[(ShuffleMode::Index, "shuffle_index"), (ShuffleMode::Xor, "shuffle_xor"), (ShuffleMode::Down, "shuffle_down")];

/// Access rights of buffers.
pub(super) const ACCESS: &[(Access, &str)] =
    &[(Access::Read, "read"), (Access::Write, "write"), (Access::ReadWrite, "readwrite")];

/// Bit fields: whether the field is signed.
pub(super) const UNPACK: &[(bool, &str)] = &[(false, "unpack_u"), (true, "unpack_s")];

/// Launch numbers; those along an axis carry `.x`, `.y` or `.z`, here spelled out.
pub(super) const BUILTIN: &[(Builtin, &str, &str)] = &[
    (Builtin::WorkgroupId(0), "workgroup_id", "x"),
    (Builtin::WorkgroupId(1), "workgroup_id", "y"),
    (Builtin::WorkgroupId(2), "workgroup_id", "z"),
    (Builtin::WorkgroupCount(0), "workgroup_count", "x"),
    (Builtin::WorkgroupCount(1), "workgroup_count", "y"),
    (Builtin::WorkgroupCount(2), "workgroup_count", "z"),
    (Builtin::LocalId(0), "local_id", "x"),
    (Builtin::LocalId(1), "local_id", "y"),
    (Builtin::LocalId(2), "local_id", "z"),
    (Builtin::Lane, "lane", ""),
    (Builtin::Subgroup, "subgroup", ""),
];

/// Operands of a matrix product.
pub(super) const PART: &[(Part, &str)] = &[(Part::A, "a"), (Part::B, "b"), (Part::Sums, "sums")];

/// Which elements of a matrix lie side by side.
pub(super) const ORDER: &[(Order, &str)] = &[(Order::Rows, "rows"), (Order::Columns, "columns")];

/// The name of an operation.
pub(super) fn name<T: PartialEq>(table: &[(T, &'static str)], op: T) -> &'static str {
    table.iter().find(|(known, _)| *known == op).map_or("?", |(_, name)| name)
}

/// The operation of a name.
pub(super) fn find<T: Copy>(table: &[(T, &'static str)], name: &str) -> Option<T> {
    table.iter().find(|(_, known)| *known == name).map(|(op, _)| *op)
}
