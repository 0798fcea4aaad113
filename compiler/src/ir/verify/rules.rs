//! Types and limits of every instruction, one arm each.

use super::Check;
use super::memory::Use;
use crate::caps::Feature;
use crate::ir::kernel::{BinOp, Builtin, CastOp, CmpOp, Constant, Dot4Signs, Inst, ParamKind, Statement, UnOp};
use crate::ir::types::{Scalar, Type, Value};
use crate::ir::uniform::Uniform;

/// What elements an operation takes.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Float,
    Number,
    Bits,
    F32,
}

impl<'k> Check<'k> {
    /// Checks a statement; values that it defines are not in scope yet, since it cannot use them.
    pub(super) fn inst(&mut self, statement: &'k Statement) {
        let ty = self.result(statement);
        match &statement.inst {
            Inst::Const(constant) => self.constant(constant, ty),
            Inst::Arg(index) => match self.kernel.params.get(*index as usize).map(|p| p.kind) {
                Some(ParamKind::Scalar(scalar)) => self.result_is(ty, scalar.into()),
                Some(ParamKind::Buffer { .. }) => self.fault("a buffer is no value; read it with `load`"),
                None => self.fault(format!("there is no parameter number {index}")),
            },
            Inst::Builtin(builtin) => {
                if let Builtin::WorkgroupId(axis) | Builtin::WorkgroupCount(axis) | Builtin::LocalId(axis) = builtin
                    && *axis > 2
                {
                    self.fault(format!("axis {axis}; the axes are 0 x, 1 y, 2 z"));
                }
                if let Builtin::Lane | Builtin::Subgroup = builtin {
                    self.needs(Feature::Subgroups, "a number of the subgroup");
                }
                self.result_is(ty, Scalar::I32.into());
            }
            Inst::Bin(op, a, b) => {
                self.alike(bin_kind(*op), &[*a, *b], ty);
                if matches!(op, BinOp::DivS | BinOp::RemS) {
                    self.divisor(*b);
                }
            }
            Inst::Un(op, a) => self.alike(un_kind(*op), &[*a], ty),
            Inst::Cmp(op, a, b) => {
                let kind = match op {
                    CmpOp::Eq | CmpOp::Ne => Kind::Number,
                    CmpOp::Lt | CmpOp::Le => Kind::Float,
                    CmpOp::LtS | CmpOp::LeS | CmpOp::LtU => Kind::Int,
                };
                let operands = self.peek(*a);
                self.alike(kind, &[*a, *b], operands);
                if let Some(operands) = operands {
                    self.result_is(ty, operands.with_scalar(Scalar::Bool));
                }
            }
            Inst::Select { cond, a, b } => {
                let (cond_type, a_type, b_type) = (self.operand(*cond), self.operand(*a), self.operand(*b));
                self.same(*a, a_type, ty);
                self.same(*b, b_type, ty);
                if let (Some(cond_type), Some(ty)) = (cond_type, ty)
                    && (cond_type.scalar != Scalar::Bool || (cond_type.lanes != 1 && cond_type.lanes != ty.lanes))
                {
                    self.fault(format!("the condition {cond} is {cond_type}; it is bool, or bool in as many lanes"));
                }
            }
            Inst::Cast(op, a) => self.cast(*op, *a, ty),
            Inst::Bitcast(a) => {
                if let (Some(from), Some(to)) = (self.operand(*a), ty) {
                    if from.scalar == Scalar::Bool || to.scalar == Scalar::Bool {
                        self.fault("a bool has no bits to read as another type; use `select` or a comparison");
                    } else if from.bits() != to.bits() {
                        self.fault(format!("{from} has {} bits, {to} has {}; they match", from.bits(), to.bits()));
                    }
                }
            }
            Inst::Fma(a, b, c) => self.alike(Kind::Float, &[*a, *b, *c], ty),
            Inst::Vector(lanes) => {
                if let Some(ty) = ty {
                    self.lane_count(lanes.len(), ty);
                    for &lane in lanes {
                        self.expect(lane, ty.scalar.into(), "the lane");
                    }
                }
            }
            Inst::Splat(a) => match ty {
                Some(ty) => self.expect(*a, ty.scalar.into(), "the operand"),
                None => _ = self.operand(*a),
            },
            Inst::Extract { vector, lane } => {
                if let Some(from) = self.operand(*vector) {
                    self.result_is(ty, from.scalar.into());
                    if *lane >= from.lanes {
                        self.fault(format!("lane {lane} of {from}; lanes run from 0 to {}", from.lanes as i32 - 1));
                    }
                }
            }
            Inst::Swizzle { a, b, lanes } => {
                let (a_type, b_type) = (self.operand(*a), self.operand(*b));
                self.same(*b, b_type, a_type);
                if let (Some(from), Some(ty)) = (a_type, ty) {
                    self.lane_count(lanes.len(), ty);
                    self.result_is(Some(ty), from.with_lanes(ty.lanes));
                    let most = 2 * from.lanes as u32;
                    if let Some(lane) = lanes.iter().find(|&&lane| lane as u32 >= most) {
                        self.fault(format!("picks lane {lane}; the two operands have {most} lanes together"));
                    }
                }
            }
            Inst::Load { address, align } => self.access(Use::Load, address, *align, ty),
            Inst::Store { address, align, value } => {
                let stored = self.operand(*value);
                self.access(Use::Store, address, *align, stored);
            }
            Inst::Prefetch(address) => self.hint(address),
            Inst::Barrier => {
                self.needs(Feature::Workgroups, "a barrier");
                self.reached_by(Uniform::Workgroup);
            }
            Inst::For(_) | Inst::If(_) => self.control(statement),
            Inst::Yield(values) => {
                for &value in values {
                    self.operand(value);
                }
            }
            Inst::Unpack { a, shift, bits, .. } => self.unpack(*a, *shift, *bits, ty),
            Inst::Dot4 { signs, a_bits, a, b, acc } => self.dot4(*signs, *a_bits, [*a, *b, *acc], ty),
            Inst::Dot2 { a, b, acc } if self.kernel.ty(*a).scalar == Scalar::Bf16 => {
                self.needs(Feature::Dot2Bf16, "dot2 of bf16");
                self.dot(Scalar::Bf16, Scalar::F32, [*a, *b, *acc], ty);
            }
            Inst::Dot2 { a, b, acc } if self.kernel.ty(*a).scalar == Scalar::I8 => {
                self.needs(Feature::Dot2, "dot2 of bytes");
                self.dot(Scalar::I8, Scalar::I16, [*a, *b, *acc], ty);
            }
            Inst::Dot2 { a, b, acc } => self.dot(Scalar::I16, Scalar::I32, [*a, *b, *acc], ty),
            Inst::PermuteBytes { table, index } => {
                self.expect(*table, Type::vector(Scalar::I8, 16), "the table");
                if let Some(found) = self.operand(*index) {
                    if found.scalar != Scalar::I8 || found.lanes < 4 {
                        self.fault(format!("the index {index} is {found}; it is i8x4, i8x8, i8x16, i8x32 or i8x64"));
                    }
                    self.result_is(ty, found);
                }
            }
            Inst::PermuteLong { low, high, index } => {
                self.needs(Feature::PermuteLong, "a table of 128 bytes");
                let whole = Type::vector(Scalar::I8, 64);
                for (value, role) in [(low, "the low half"), (high, "the high half"), (index, "the index")] {
                    self.expect(*value, whole, role);
                }
                self.result_is(ty, whole);
            }
            Inst::Shuffle { value, index, .. } => {
                self.needs(Feature::Subgroups, "a shuffle");
                self.reached_by(Uniform::Subgroup);
                self.expect(*index, Scalar::I32.into(), "the lane index");
                if let Some(found) = self.operand(*value) {
                    if found.lanes != 1 || found.scalar.bits() != 32 {
                        self.fault(format!("{value} is {found}; a shuffle moves an i32 or an f32"));
                    }
                    self.result_is(ty, found);
                }
            }
            Inst::SubgroupReduce(_, value) => {
                self.needs(Feature::Subgroups, "a subgroup reduction");
                self.reached_by(Uniform::Subgroup);
                self.alike(Kind::Number, &[*value], ty);
                if let Some(ty) = ty
                    && ty.lanes != 1
                {
                    self.fault(format!("reduces a scalar, not {ty}; reduce lane by lane"));
                }
            }
            Inst::AtomicAdd { address, value } => self.atomic(address, *value, ty),
            Inst::Mma { shape, a, b, acc } => self.mma(shape, [*a, *b, *acc], ty),
            Inst::AsyncCopy { to, from, bytes } => self.async_copy(to, from, *bytes),
            Inst::AsyncCommit | Inst::AsyncWait(_) => self.needs(Feature::AsyncCopy, "a group of copies"),
            Inst::Asynchronous(inner) => self.asynchronous(inner, ty),
            Inst::Cooperative(inner) => self.cooperative(inner, ty),
        }
    }

    /// The type of the one result, or a fault where the number of results is wrong.
    fn result(&mut self, statement: &Statement) -> Option<Type> {
        let wanted = match &statement.inst {
            Inst::Store { .. }
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::Yield(_)
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_) => 0,
            Inst::Asynchronous(inner) => inner.results(),
            Inst::Cooperative(inner) => usize::from(inner.result().is_some()),
            Inst::For(_) | Inst::If(_) => return None,
            _ => 1,
        };
        let found = statement.results.len();
        if found != wanted {
            self.fault(format!("{found} results; this instruction has {wanted}"));
        }
        statement.results.first().and_then(|&value| self.peek(value))
    }

    /// Operands and result have one type, whose elements are of this kind.
    fn alike(&mut self, kind: Kind, operands: &[Value], ty: Option<Type>) {
        let mut odd = ty.is_none();
        for &value in operands {
            let found = self.operand(value);
            odd |= found != ty;
            self.same(value, found, ty);
        }
        let Some(ty) = ty else { return };
        let scalar = ty.scalar;
        let (right, wanted) = match kind {
            Kind::Int => (scalar.is_int(), "integers"),
            Kind::Float => (scalar.is_float(), "floats"),
            Kind::Number => (scalar.is_int() || scalar.is_float(), "integers or floats"),
            Kind::Bits => (scalar.is_int() || scalar == Scalar::Bool, "integers or bools"),
            Kind::F32 => (scalar == Scalar::F32, "f32"),
        };
        if !right && !odd {
            let storage = if scalar.is_storage() { "; this type is only stored: convert it first" } else { "" };
            self.fault(format!("takes {wanted}, not {ty}{storage}"));
        }
        match scalar {
            Scalar::F16 => self.needs(Feature::F16Arithmetic, "arithmetic on f16"),
            Scalar::Bf16 => self.needs(Feature::Bf16Arithmetic, "arithmetic on bf16"),
            _ => {}
        }
    }

    fn same(&mut self, value: Value, found: Option<Type>, wanted: Option<Type>) {
        if let (Some(found), Some(wanted)) = (found, wanted)
            && found != wanted
        {
            self.fault(format!("{value} is {found}; it must be {wanted}"));
        }
    }

    pub(super) fn result_is(&mut self, found: Option<Type>, wanted: Type) {
        if let Some(found) = found
            && found != wanted
        {
            self.fault(format!("the result is {found}; it must be {wanted}"));
        }
    }

    fn lane_count(&mut self, count: usize, ty: Type) {
        if count != ty.lanes as usize {
            self.fault(format!("{count} lanes are listed; {ty} has {}", ty.lanes));
        }
    }

    fn constant(&mut self, constant: &Constant, ty: Option<Type>) {
        let Some(ty) = ty else { return };
        let lanes = match constant {
            Constant::Splat(bits) => std::slice::from_ref(bits),
            Constant::Lanes(lanes) => {
                self.lane_count(lanes.len(), ty);
                lanes
            }
        };
        let width = ty.scalar.bits();
        if let Some(bits) = lanes.iter().find(|&&bits| width < 64 && bits >> width != 0) {
            self.fault(format!("{bits:#x} does not fit {}, which has {width} bits", ty.scalar));
        }
    }

    fn divisor(&mut self, value: Value) {
        let zero = match self.constants.get(value.0 as usize).copied().flatten() {
            None => return self.fault(format!("the divisor {value} must be a constant")),
            Some(Constant::Splat(bits)) => *bits == 0,
            Some(Constant::Lanes(lanes)) => lanes.contains(&0),
        };
        if zero {
            self.fault(format!("the divisor {value} is zero; it must not be"));
        }
    }

    fn cast(&mut self, op: CastOp, a: Value, ty: Option<Type>) {
        let (Some(from), Some(to)) = (self.operand(a), ty) else { return };
        if from.lanes != to.lanes {
            self.fault(format!("{from} has {} lanes, {to} has {}; a cast keeps them", from.lanes, to.lanes));
        }
        let (from, to) = (from.scalar, to.scalar);
        let short = |scalar| matches!(scalar, Scalar::I8 | Scalar::I16 | Scalar::I32);
        let float = |scalar: Scalar| scalar.is_float() || scalar.is_storage();
        let ints = from.is_int() && to.is_int();
        let (right, wanted) = match op {
            CastOp::Truncate => (ints && to.bits() < from.bits(), "an integer to a narrower one"),
            CastOp::ExtendU | CastOp::ExtendS => (ints && to.bits() > from.bits(), "an integer to a wider one"),
            CastOp::IntToFloatS | CastOp::IntToFloatU => (short(from) && to == Scalar::F32, "i8, i16 or i32 to f32"),
            CastOp::FloatToIntS => (from == Scalar::F32 && short(to), "f32 to i8, i16 or i32"),
            CastOp::Float => (float(from) && float(to) && from != to, "a float to another float type"),
        };
        if !right {
            self.fault(format!("casts {wanted}, not {from} to {to}"));
        }
    }

    fn unpack(&mut self, a: Value, shift: u8, bits: u8, ty: Option<Type>) {
        let (Some(from), Some(to)) = (self.operand(a), ty) else { return };
        if !from.scalar.is_int() {
            return self.fault(format!("{a} is {from}; bit fields are cut out of integers"));
        }
        if !to.scalar.is_int() && to.scalar != Scalar::F32 {
            return self.fault(format!("the result is {to}; bit fields become integers or f32"));
        }
        let wanted = to.lanes as u32 * to.scalar.bits();
        if from.bits() != wanted {
            let (each, count, found) = (to.scalar.bits(), to.lanes, from.bits());
            return self.fault(format!("{to} takes {count} containers of {each} bits; {from} has {found} bits"));
        }
        if bits == 0 || shift as u32 + bits as u32 > to.scalar.bits() {
            let width = to.scalar.bits();
            self.fault(format!("{bits} bits from bit {shift}; a field has bits and lies within its {width}"));
        }
    }

    fn dot4(&mut self, signs: Dot4Signs, a_bits: u8, [a, b, acc]: [Value; 3], ty: Option<Type>) {
        if !(1..=8).contains(&a_bits) || (signs == Dot4Signs::SignedSigned && a_bits != 8) {
            self.fault(format!("a_bits is {a_bits}; it is 1 to 8, and 8 where `a` is signed"));
        }
        self.dot(Scalar::I8, Scalar::I32, [a, b, acc], ty);
    }

    /// Factors of `part`, as many as fit the lanes of the accumulator.
    fn dot(&mut self, part: Scalar, sum: Scalar, [a, b, acc]: [Value; 3], ty: Option<Type>) {
        let (a_type, b_type) = (self.operand(a), self.operand(b));
        let Some(found) = self.operand(acc) else { return };
        let most = (512 / sum.bits()) as u8;
        if found.scalar != sum || found.lanes > most {
            return self.fault(format!("the accumulator {acc} is {found}; it is {sum} with at most {most} lanes"));
        }
        self.result_is(ty, found);
        let factors = Type::vector(part, (sum.bits() / part.bits()) as u8 * found.lanes);
        self.same(a, a_type, Some(factors));
        self.same(b, b_type, Some(factors));
    }
}

fn bin_kind(op: BinOp) -> Kind {
    match op {
        BinOp::Add | BinOp::Sub | BinOp::Mul => Kind::Number,
        BinOp::Div | BinOp::Min | BinOp::Max => Kind::Float,
        BinOp::DivS | BinOp::RemS | BinOp::MinS | BinOp::MaxS => Kind::Int,
        BinOp::And | BinOp::Or | BinOp::Xor => Kind::Bits,
        BinOp::Shl | BinOp::ShrU | BinOp::ShrS => Kind::Int,
    }
}

fn un_kind(op: UnOp) -> Kind {
    match op {
        UnOp::Neg => Kind::Number,
        UnOp::Not => Kind::Bits,
        UnOp::Abs | UnOp::Sqrt | UnOp::Nearest | UnOp::Floor => Kind::Float,
        UnOp::Exp2 => Kind::F32,
        UnOp::Popcount => Kind::Int,
    }
}
