//! Conversions between numbers.

use cranelift_codegen::ir::{self as clif, InstBuilder, types};

use super::emit::Emitter;
use super::value::{Repr, int_type, lane_type, piece_count, vector_type};
use crate::ir::{self, CastOp, Scalar};

impl Emitter<'_> {
    pub(super) fn cast(&mut self, op: CastOp, value: ir::Value, to: Scalar) -> Repr {
        let from = self.kernel.ty(value);
        let a = self.get(value);
        let lane = lane_type(to);
        match op {
            CastOp::Truncate | CastOp::ExtendU | CastOp::ExtendS if from.scalar == Scalar::Bool => {
                // A scalar bool is 0 or 1, a lane of a mask 0 or -1.
                let wide =
                    if a.lanes == 1 { self.resize(&a, lane, false) } else { self.mask_of_width(&a, lane.bits()) };
                match (a.lanes, op) {
                    (1, CastOp::ExtendS) => self.map(&wide, |e, a| e.b.ins().ineg(a)),
                    (1, _) | (_, CastOp::ExtendS) => wide,
                    _ => self.map(&wide, |e, a| e.masked(a, 1)),
                }
            }
            CastOp::Truncate | CastOp::ExtendU => self.resize(&a, lane, false),
            CastOp::ExtendS => self.resize(&a, lane, true),
            CastOp::IntToFloatS => self.int_to_float(&a, true),
            CastOp::IntToFloatU => self.int_to_float(&a, false),
            CastOp::FloatToIntS => self.float_to_int(&a, lane),
            CastOp::Float => self.float_to_float(&a, from.scalar, to),
        }
    }

    fn int_to_float(&mut self, a: &Repr, signed: bool) -> Repr {
        // An unsigned number in more bits is a signed one; only vectors of 32 bits have no wider form that converts.
        if a.lanes == 1 {
            let wide = self.resize(a, if a.lane.bits() < 32 { types::I32 } else { types::I64 }, signed).one();
            return Repr::scalar(types::F32, self.b.ins().fcvt_from_sint(types::F32, wide));
        }
        let exact = signed || a.lane.bits() < 32;
        let wide = self.resize(a, types::I32, signed);
        let mut floats = self.map(&wide, |e, a| match exact {
            true => e.b.ins().fcvt_from_sint(types::F32X4, a),
            false => e.b.ins().fcvt_from_uint(types::F32X4, a),
        });
        floats.lane = types::F32;
        floats
    }

    fn float_to_int(&mut self, a: &Repr, to: clif::Type) -> Repr {
        let ty = if a.lanes == 1 { types::I32 } else { types::I32X4 };
        let mut ints = self.map(a, |e, a| e.b.ins().fcvt_to_sint_sat(ty, a));
        ints.lane = types::I32;
        if a.lanes > 1 {
            return self.narrow_saturating(&ints, to, true);
        }
        if to == types::I32 {
            return ints;
        }
        let largest = (1i64 << (to.bits() - 1)) - 1;
        let low = self.b.ins().iconst(types::I32, (-largest - 1) & 0xffff_ffff);
        let high = self.b.ins().iconst(types::I32, largest);
        let clamped = self.b.ins().smax(ints.one(), low);
        let clamped = self.b.ins().smin(clamped, high);
        Repr::scalar(to, self.b.ins().ireduce(to, clamped))
    }

    /// Every float widens to `f32` exactly, so a cast through `f32` rounds once.
    fn float_to_float(&mut self, a: &Repr, from: Scalar, to: Scalar) -> Repr {
        if from == to {
            return a.clone();
        }
        let wide = if from == Scalar::F32 { a.clone() } else { self.widen_float(a, from) };
        if to == Scalar::F32 { wide } else { self.narrow_float(&wide, to) }
    }

    fn widen_float(&mut self, a: &Repr, from: Scalar) -> Repr {
        if a.lanes == 1 {
            let bits = self.b.ins().uextend(types::I32, a.one());
            let vector = self.b.ins().scalar_to_vector(types::I32X4, bits);
            let float = self.decode_small_float(from, vector);
            return Repr::scalar(types::F32, self.b.ins().extractlane(float, 0));
        }
        let bits = self.resize(a, types::I32, false);
        let mut floats = self.map(&bits, |e, a| e.decode_small_float(from, a));
        floats.lane = types::F32;
        floats
    }

    fn narrow_float(&mut self, a: &Repr, to: Scalar) -> Repr {
        let lane = int_type(to.bits());
        if a.lanes == 1 {
            let vector = self.b.ins().scalar_to_vector(types::F32X4, a.one());
            let bits = self.bits_as(vector, types::I32X4);
            let code = self.encode_small_float(to, bits);
            let code = self.b.ins().extractlane(code, 0);
            return Repr::scalar(lane, self.b.ins().ireduce(lane, code));
        }
        let mut codes = self.map(a, |e, a| {
            let bits = e.bits_as(a, vector_type(types::I32));
            e.encode_small_float(to, bits)
        });
        codes.lane = types::I32;
        let narrow = self.narrow_saturating(&codes, lane, false);
        debug_assert_eq!(narrow.pieces.len(), piece_count(lane, a.lanes));
        narrow
    }
}
