//! Conversions as C++ expressions: casts, small floats by way of `f32`, the bits of a value as another type.

use crate::ir::{CastOp, Inst, Scalar, Type, Value};
use crate::target::hip::emit::{Emitter, Piece};
use crate::target::hip::text::{Binds, Expr};
use crate::target::hip::types;

impl Emitter<'_> {
    pub(in crate::target::hip) fn cast(&mut self, op: CastOp, a: Value, ty: Type) -> Expr {
        let from = self.ty(a);
        let vector = ty.lanes > 1;
        let convert = |x: &Expr, name: &str| {
            if vector {
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[x])
            } else {
                Expr::call(name, &[x])
            }
        };
        // What was widened only to be cut again.
        if let (CastOp::Truncate, Some(&Inst::Cast(CastOp::ExtendS | CastOp::ExtendU, narrow))) =
            (op, self.facts[a.0 as usize].inst)
            && self.ty(narrow) == ty
            && self.is_inlined(a)
            && self.is_spelled(narrow)
        {
            return self.operand(narrow);
        }
        match op {
            CastOp::Truncate | CastOp::ExtendU | CastOp::IntToFloatU => {
                let x = self.unsigned(a);
                convert(&x, &self.vectors.name(ty))
            }
            CastOp::ExtendS => {
                let x = self.signed(a);
                let wide = convert(&x, &self.vectors.signed(ty));
                if vector || ty.scalar.bits() < 32 { self.back(wide, ty) } else { wide.taken_signed() }
            }
            CastOp::IntToFloatS => {
                let x = self.signed(a);
                convert(&x, &self.vectors.name(ty))
            }
            CastOp::FloatToIntS => {
                let x = self.operand(a);
                let function = match ty.scalar {
                    Scalar::I8 => "f32_to_i8",
                    Scalar::I16 => "f32_to_i16",
                    _ => "f32_to_i32",
                };
                Expr::call(self.helper(Piece::Saturate, function), &[&x])
            }
            CastOp::Float if from.scalar == Scalar::F32 => {
                let x = self.operand(a);
                self.narrowed(x, ty)
            }
            CastOp::Float => {
                let wide = self.widened(a);
                if ty.scalar == Scalar::F32 { wide } else { self.narrowed(wide, ty) }
            }
        }
    }

    /// A float value as `f32`: always exact.
    pub(in crate::target::hip) fn widened(&mut self, value: Value) -> Expr {
        let ty = self.ty(value);
        let x = self.operand(value);
        self.widened_expr(x, ty)
    }

    pub(in crate::target::hip) fn widened_expr(&mut self, x: Expr, ty: Type) -> Expr {
        match ty.scalar {
            Scalar::F32 => x,
            Scalar::F16 if ty.lanes == 1 => Expr::call("f32", &[&x]),
            Scalar::F16 => {
                let name = self.vectors.name(ty.with_scalar(Scalar::F32));
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[&x])
            }
            small => {
                self.helper(Piece::SmallFloat, "");
                self.floats.insert(types::element(small));
                Expr::call(&format!("{}_to_f32", types::element(small)), &[&x])
            }
        }
    }

    /// An `f32` rounded to a smaller float.
    pub(in crate::target::hip) fn narrowed(&mut self, x: Expr, ty: Type) -> Expr {
        match ty.scalar {
            Scalar::F32 => x,
            Scalar::F16 if ty.lanes == 1 => Expr::call("f16", &[&x]),
            Scalar::F16 => {
                let name = self.vectors.name(ty);
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[&x])
            }
            small => {
                self.helper(Piece::SmallFloat, "");
                self.floats.insert(types::element(small));
                Expr::call(&format!("f32_to_{}", types::element(small)), &[&x])
            }
        }
    }

    /// The bits of a value as another type; a chain of bitcasts counts as one.
    pub(in crate::target::hip) fn bits(&mut self, value: Value, ty: Type) -> Expr {
        let mut origin = value;
        while let Some(&Inst::Bitcast(a)) = self.facts[origin.0 as usize].inst
            && self.is_inlined(origin)
            && self.is_spelled(a)
        {
            origin = a;
        }
        if self.ty(origin) == ty {
            return self.operand(origin);
        }
        let x = self.operand(origin);
        self.bits_of(x, ty)
    }

    pub(in crate::target::hip) fn bits_of(&mut self, x: Expr, ty: Type) -> Expr {
        let name = self.vectors.name(ty);
        Expr::call(&format!("bits_as<{name}>"), &[&x])
    }
}
