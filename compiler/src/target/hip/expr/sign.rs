//! Signs of integers in C++ expressions.
//!
//! Always holds: integers are unsigned but where an operation reads the sign, so that nothing overflows.

use crate::ir::{Constant, Inst, Scalar, Type, Value};
use crate::target::hip::emit::Emitter;
use crate::target::hip::text::Expr;
use crate::target::hip::types;

impl Emitter<'_> {
    /// An integer expression whose C++ type is wider than its own, cut to its own.
    pub(in crate::target::hip) fn small(&mut self, x: Expr, ty: Type) -> Expr {
        let narrow = ty.lanes == 1 && ty.scalar.bits() < 32 && ty.scalar != Scalar::Bool && ty.scalar != Scalar::F16;
        if narrow { Expr::call(types::element(ty.scalar), &[&x]) } else { x }
    }

    /// A signed result as this file has values: 8-bit, 16-bit and vector ones unsigned, others as they are.
    pub(in crate::target::hip) fn back(&mut self, x: Expr, ty: Type) -> Expr {
        if ty.lanes > 1 {
            return self.bits_of(x, ty);
        }
        if ty.scalar.bits() < 32 { Expr::call(types::element(ty.scalar), &[&x]) } else { x.taken_signed() }
    }

    /// An integer operand read with its sign.
    pub(in crate::target::hip) fn signed(&mut self, value: Value) -> Expr {
        let ty = self.ty(value);
        if let Some(Inst::Const(Constant::Splat(bits))) = self.facts[value.0 as usize].inst {
            let lane = types::signed_literal(ty.scalar, *bits);
            if ty.lanes == 1 {
                return Expr::atom(lane).taken_signed();
            }
            return Expr::atom(format!("{}({lane})", self.vectors.signed(ty)));
        }
        let x = self.operand(value);
        if x.signed {
            return x;
        }
        let name = self.vectors.signed(ty);
        if ty.lanes == 1 {
            Expr::call(&name, &[&x]).taken_signed()
        } else {
            Expr::call(&format!("bits_as<{name}>"), &[&x])
        }
    }

    /// An operand; an integer without its sign.
    pub(in crate::target::hip) fn unsigned(&mut self, value: Value) -> Expr {
        let x = self.operand(value);
        if !x.signed {
            return x;
        }
        let name = types::element(self.ty(value).scalar);
        Expr::call(name, &[&x])
    }
}
