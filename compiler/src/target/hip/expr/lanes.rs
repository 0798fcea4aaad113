//! Lanes of vectors as C++ expressions: picked out, put together.

use crate::ir::{Scalar, Type, Value};
use crate::target::hip::emit::{Emitter, Piece};
use crate::target::hip::text::{Binds, Expr};

impl Emitter<'_> {
    pub(in crate::target::hip) fn extract(&mut self, vector: Value, lane: u8) -> Expr {
        let ty = self.ty(vector);
        let x = self.operand(vector);
        if ty.lanes == 1 {
            return x;
        }
        let part = Expr::of(format!("{}[{lane}]", x.at_least(Binds::Atom)), Binds::Atom, &[&x]);
        if ty.scalar == Scalar::Bool { Expr::infix("!=", &part, &Expr::atom("0")) } else { part }
    }

    pub(in crate::target::hip) fn swizzle(&mut self, a: Value, b: Value, lanes: &[u8], ty: Type) -> Expr {
        let half = self.ty(a).lanes;
        let (x, y) = (self.operand(a), self.operand(b));
        if half > 1 && ty.lanes > 1 {
            let picks: Vec<String> = lanes.iter().map(u8::to_string).collect();
            return Expr::call(&format!("pick<{}>", picks.join(", ")), &[&x, &y]);
        }
        let pick = |lane: u8| {
            let (from, lane) = if lane < half { (&x, lane) } else { (&y, lane - half) };
            if half == 1 { from.text.clone() } else { format!("{}[{lane}]", from.at_least(Binds::Atom)) }
        };
        let picked: Vec<String> = lanes.iter().map(|&lane| pick(lane)).collect();
        if ty.lanes == 1 {
            let part = Expr::of(picked[0].clone(), Binds::Atom, &[&x, &y]);
            return if ty.scalar == Scalar::Bool && half > 1 {
                Expr::infix("!=", &part, &Expr::atom("0"))
            } else {
                Expr { binds: Binds::Loose, ..part }
            };
        }
        let name = self.vectors.name(ty);
        let as_mask = ty.scalar == Scalar::Bool;
        let list: Vec<String> = picked
            .into_iter()
            .map(|lane| if as_mask { format!("{}({lane})", self.helper(Piece::Mask, "mask")) } else { lane })
            .collect();
        Expr::of(format!("{name}{{{}}}", list.join(", ")), Binds::Atom, &[&x, &y])
    }

    /// A scalar as a lane of a vector: exactly of the element's type.
    pub(in crate::target::hip) fn lane(&mut self, value: Value, scalar: Scalar) -> Expr {
        match scalar {
            Scalar::Bool => {
                let x = self.operand(value);
                Expr::call(self.helper(Piece::Mask, "mask"), &[&x])
            }
            _ if scalar.is_int() => self.unsigned(value),
            _ => self.operand(value),
        }
    }
}
