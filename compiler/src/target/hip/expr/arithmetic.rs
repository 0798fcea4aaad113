//! Arithmetic, comparisons and choices as C++ expressions.
//!
//! Always holds: integers wrap, and a float operation rounds once.

use crate::ir::{BinOp, CmpOp, Constant, Inst, Scalar, Type, UnOp, Value};
use crate::target::hip::emit::{Emitter, Piece};
use crate::target::hip::text::{Binds, Expr};

impl Emitter<'_> {
    pub(in crate::target::hip) fn binary(&mut self, op: BinOp, a: Value, b: Value, ty: Type) -> Expr {
        if ty.scalar.is_float() {
            return self.float_binary(op, a, b, ty);
        }
        if ty.scalar == Scalar::Bool {
            let (x, y) = (self.operand(a), self.operand(b));
            let operator = match (op, ty.lanes) {
                (BinOp::Or, 1) => "||",
                (BinOp::Xor, 1) => "!=",
                (_, 1) => "&&",
                (BinOp::Or, _) => "|",
                (BinOp::Xor, _) => "^",
                (_, _) => "&",
            };
            return Expr::infix(operator, &x, &y);
        }
        match op {
            BinOp::Add | BinOp::Sub | BinOp::Mul => {
                let operator = match op {
                    BinOp::Add => "+",
                    BinOp::Sub => "-",
                    _ => "*",
                };
                let (mut x, y) = (self.operand(a), self.operand(b));
                // One unsigned operand makes C++ wrap; two 16-bit ones would become signed and could overflow.
                if x.signed && y.signed || ty == Type::scalar(Scalar::I16) && op == BinOp::Mul {
                    x = Expr::call(if ty.scalar == Scalar::I64 { "u64" } else { "u32" }, &[&x]);
                }
                self.small(Expr::infix(operator, &x, &y), ty)
            }
            BinOp::And | BinOp::Or | BinOp::Xor => {
                let operator = match op {
                    BinOp::And => "&",
                    BinOp::Or => "|",
                    _ => "^",
                };
                let (x, y) = (self.operand(a), self.operand(b));
                let signed = x.signed && y.signed;
                let out = self.small(Expr::infix(operator, &x, &y), ty);
                if signed { out.taken_signed() } else { out }
            }
            BinOp::Shl | BinOp::ShrU => {
                let amount = self.shift_amount(b, ty);
                let mut x = self.unsigned(a);
                if ty.lanes == 1 && ty.scalar.bits() < 32 {
                    x = Expr::call("u32", &[&x]);
                }
                self.small(Expr::infix(if op == BinOp::Shl { "<<" } else { ">>" }, &x, &amount), ty)
            }
            BinOp::ShrS | BinOp::DivS | BinOp::RemS => {
                let (operator, right) = match op {
                    BinOp::ShrS if ty.lanes == 1 => (">>", self.shift_amount(b, ty)),
                    BinOp::ShrS => {
                        let amount = self.shift_amount(b, ty);
                        (">>", Expr::call(&format!("bits_as<{}>", self.vectors.signed(ty)), &[&amount]))
                    }
                    BinOp::DivS => ("/", self.signed(b)),
                    _ => ("%", self.signed(b)),
                };
                let left = self.signed(a);
                let out = Expr::infix(operator, &left, &right);
                self.back(out, ty)
            }
            BinOp::MinS | BinOp::MaxS => {
                let (x, y) = (self.signed(a), self.signed(b));
                let out = if ty.lanes == 1 {
                    let name = if op == BinOp::MinS { "least" } else { "greatest" };
                    Expr::call(self.helper(Piece::Least, name), &[&x, &y])
                } else {
                    let name =
                        if op == BinOp::MinS { "__builtin_elementwise_min" } else { "__builtin_elementwise_max" };
                    Expr::call(name, &[&x, &y])
                };
                self.back(out, ty)
            }
            BinOp::Div | BinOp::Min | BinOp::Max => unreachable!("the verifier wants floats for {op:?}"),
        }
    }

    /// Whether a value is 1 in every lane.
    pub(in crate::target::hip) fn is_one(&self, value: Value) -> bool {
        let one = match self.ty(value).scalar {
            Scalar::F32 => 0x3f80_0000,
            Scalar::F16 => 0x3c00,
            Scalar::Bf16 => 0x3f80,
            _ => return false,
        };
        matches!(self.facts[value.0 as usize].inst, Some(Inst::Const(Constant::Splat(bits))) if *bits == one)
    }

    pub(in crate::target::hip) fn float_binary(&mut self, op: BinOp, a: Value, b: Value, ty: Type) -> Expr {
        let native =
            ty.scalar == Scalar::F32 || ty.scalar == Scalar::F16 && matches!(op, BinOp::Add | BinOp::Sub | BinOp::Mul);
        let (x, y) = if native { (self.operand(a), self.operand(b)) } else { (self.widened(a), self.widened(b)) };
        let out = match op {
            BinOp::Add => Expr::infix("+", &x, &y),
            BinOp::Sub => Expr::infix("-", &x, &y),
            BinOp::Mul => Expr::infix("*", &x, &y),
            BinOp::Div => Expr::infix("/", &x, &y),
            BinOp::Min => Expr::call(self.helper(Piece::Math, "minimum"), &[&x, &y]),
            BinOp::Max => Expr::call(self.helper(Piece::Math, "maximum"), &[&x, &y]),
            BinOp::DivS
            | BinOp::RemS
            | BinOp::MinS
            | BinOp::MaxS
            | BinOp::And
            | BinOp::Or
            | BinOp::Xor
            | BinOp::Shl
            | BinOp::ShrU
            | BinOp::ShrS => unreachable!("the verifier wants integers for {op:?}"),
        };
        if native { out } else { self.narrowed(out, ty) }
    }

    pub(in crate::target::hip) fn unary(&mut self, op: UnOp, a: Value, ty: Type) -> Expr {
        if ty.scalar == Scalar::Bf16 && matches!(op, UnOp::Neg | UnOp::Abs) {
            let x = self.operand(a);
            let (operator, bits) = if op == UnOp::Neg { ("^", "0x8000u") } else { ("&", "0x7fffu") };
            let name = self.vectors.name(ty);
            return self.small(Expr::infix(operator, &x, &Expr::atom(format!("{name}({bits})"))), ty);
        }
        if ty.scalar.is_float() && matches!(op, UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2) {
            let native = ty.scalar == Scalar::F32;
            let x = if native { self.operand(a) } else { self.widened(a) };
            let function = match op {
                UnOp::Sqrt => self.helper(Piece::Math, "root"),
                UnOp::Exp2 => self.helper(Piece::Math, "power_of_two"),
                UnOp::Nearest => "__builtin_elementwise_roundeven",
                _ => "__builtin_elementwise_floor",
            };
            let out = Expr::call(function, &[&x]);
            return if native { out } else { self.narrowed(out, ty) };
        }
        match op {
            UnOp::Neg => {
                let x = if ty.scalar.is_int() { self.unsigned(a) } else { self.operand(a) };
                self.small(Expr::prefix("-", &x), ty)
            }
            UnOp::Not if ty == Type::scalar(Scalar::Bool) => Expr::prefix("!", &self.operand(a)),
            UnOp::Not => {
                let x = self.unsigned(a);
                self.small(Expr::prefix("~", &x), ty)
            }
            UnOp::Abs => Expr::call("__builtin_elementwise_abs", &[&self.operand(a)]),
            UnOp::Popcount => {
                let x = self.unsigned(a);
                Expr::call(self.helper(Piece::CountBits, "count_bits"), &[&x])
            }
            UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2 => unreachable!("handled above"),
        }
    }

    pub(in crate::target::hip) fn compare(&mut self, op: CmpOp, a: Value, b: Value) -> Expr {
        let ty = self.ty(a);
        let (x, y) = match op {
            CmpOp::LtS | CmpOp::LeS => (self.signed(a), self.signed(b)),
            CmpOp::LtU => (self.unsigned(a), self.unsigned(b)),
            _ if ty.scalar == Scalar::Bf16 => (self.widened(a), self.widened(b)),
            CmpOp::Eq | CmpOp::Ne | CmpOp::Lt | CmpOp::Le => (self.operand(a), self.operand(b)),
        };
        let operator = match op {
            CmpOp::Eq => "==",
            CmpOp::Ne => "!=",
            CmpOp::Lt | CmpOp::LtS | CmpOp::LtU => "<",
            CmpOp::Le | CmpOp::LeS => "<=",
        };
        let out = Expr::infix(operator, &x, &y);
        if ty.lanes == 1 {
            return out;
        }
        let mask = Expr::atom(self.vectors.name(ty.with_scalar(Scalar::Bool)));
        Expr::of(format!("__builtin_convertvector({}, {})", out.text, mask.text), Binds::Atom, &[&out])
    }

    pub(in crate::target::hip) fn select(&mut self, cond: Value, a: Value, b: Value, ty: Type) -> Expr {
        let lanes = self.ty(cond).lanes;
        let condition = self.operand(cond);
        let (x, y) = (self.unsigned(a), self.unsigned(b));
        if lanes > 1 {
            return Expr::call(self.helper(Piece::Mask, "choose"), &[&condition, &x, &y]);
        }
        let [condition_text, x_text, y_text] = [&condition, &x, &y].map(|e| e.at_least(Binds::Sum));
        let text = format!("{condition_text} ? {x_text} : {y_text}");
        self.small(Expr::of(text, Binds::Loose, &[&condition, &x, &y]), ty)
    }

    /// How far a shift goes: modulo the width.
    pub(in crate::target::hip) fn shift_amount(&mut self, amount: Value, ty: Type) -> Expr {
        let width = ty.scalar.bits() as u64;
        if let Some(Inst::Const(Constant::Splat(bits))) = self.facts[amount.0 as usize].inst {
            let bits = bits % width;
            if ty.lanes == 1 {
                return Expr::atom(bits.to_string());
            }
            return self.constant(&Constant::Splat(bits), ty);
        }
        let x = self.unsigned(amount);
        let mask = self.constant(&Constant::Splat(width - 1), ty);
        Expr::infix("&", &x, &mask)
    }
}
