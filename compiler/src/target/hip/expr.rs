//! Pure instructions as C++ expressions, one arm each.
//!
//! Always holds: the expression has the instruction's bits for every operand that the IR allows; integers are unsigned but
//! where an operation reads the sign, so that nothing overflows.

mod arithmetic;
mod convert;
mod lanes;
mod sign;

use super::emit::{Emitter, Piece};
use super::text::{Binds, Expr};
use super::types;
use crate::ir::{BinOp, Builtin, Constant, Dot4Signs, Inst, Scalar, Type};

impl Emitter<'_> {
    /// The expression of a pure instruction of this type; `None` for those that are statements.
    pub(super) fn expression(&mut self, inst: &Inst, ty: Type) -> Option<Expr> {
        Some(match inst {
            Inst::Const(constant) => self.constant(constant, ty),
            Inst::Arg(number) => {
                let name = Expr::atom(self.names.param(*number));
                if ty.scalar.is_int() { name.taken_signed() } else { name }
            }
            Inst::Builtin(builtin) => self.builtin(*builtin),
            Inst::Bin(op, a, b) => self.binary(*op, *a, *b, ty),
            Inst::Un(op, a) => self.unary(*op, *a, ty),
            Inst::Cmp(op, a, b) => self.compare(*op, *a, *b),
            Inst::Select { cond, a, b } => self.select(*cond, *a, *b, ty),
            Inst::Cast(op, a) => self.cast(*op, *a, ty),
            Inst::Bitcast(a) => self.bits(*a, ty),
            // One rounding either way.
            Inst::Fma(a, b, c) if self.is_one(*b) => self.binary(BinOp::Add, *a, *c, ty),
            Inst::Fma(a, b, c) => {
                let operands = [*a, *b, *c];
                if ty.scalar == Scalar::Bf16 {
                    let wide = operands.map(|value| self.widened(value));
                    let sum = Expr::call("__builtin_elementwise_fma", &wide.each_ref());
                    self.narrowed(sum, ty)
                } else {
                    let [a, b, c] = operands.map(|value| self.operand(value));
                    let half = ty.scalar == Scalar::F16;
                    let function = if half { self.helper(Piece::Fused, "fused") } else { "__builtin_elementwise_fma" };
                    Expr::call(function, &[&a, &b, &c])
                }
            }
            Inst::Vector(lanes) => {
                let lanes: Vec<Expr> = lanes.iter().map(|&lane| self.lane(lane, ty.scalar)).collect();
                let name = self.vectors.name(ty);
                let list: Vec<&str> = lanes.iter().map(|lane| lane.text.as_str()).collect();
                let operands: Vec<&Expr> = lanes.iter().collect();
                if ty.lanes == 1 {
                    lanes.first()?.clone()
                } else {
                    Expr::of(format!("{name}{{{}}}", list.join(", ")), Binds::Atom, &operands)
                }
            }
            Inst::Splat(a) => {
                let lane = self.lane(*a, ty.scalar);
                if ty.lanes == 1 { self.operand(*a) } else { Expr::call(&self.vectors.name(ty), &[&lane]) }
            }
            Inst::Extract { vector, lane } => self.extract(*vector, *lane),
            Inst::Swizzle { a, b, lanes } => self.swizzle(*a, *b, lanes, ty),
            Inst::Unpack { .. } | Inst::Dot2 { .. } => unreachable!("the pass list expands unpack and dot2"),
            Inst::PermuteLong { .. } => unreachable!("`support` refuses permute_long"),
            Inst::Dot4 { signs, a_bits, a, b, acc } => {
                let words = self.ty(*acc);
                let (a, b, sum) = (self.bits(*a, words), self.bits(*b, words), self.operand(*acc));
                match signs {
                    Dot4Signs::SignedSigned => Expr::call(self.helper(Piece::Dot4, "dot4_signed"), &[&a, &b, &sum]),
                    Dot4Signs::UnsignedSigned => {
                        self.helper(Piece::Dot4, "");
                        Expr::call(&format!("dot4_unsigned_signed<{a_bits}>"), &[&a, &b, &sum])
                    }
                }
            }
            Inst::PermuteBytes { table, index } => {
                let table = self.bits(*table, Type::vector(Scalar::I32, 4));
                let words = Type::vector(Scalar::I32, ty.lanes / 4);
                let index = self.bits(*index, words);
                let found = Expr::call(self.helper(Piece::LookUp, "look_up"), &[&table, &index]);
                self.bits_of(found, ty)
            }
            Inst::Load { .. }
            | Inst::Store { .. }
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::For(_)
            | Inst::If(_)
            | Inst::Yield(_)
            | Inst::Shuffle { .. }
            | Inst::SubgroupReduce(..)
            | Inst::AtomicAdd { .. }
            | Inst::Mma { .. }
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Cooperative(_) => return None,
        })
    }

    fn builtin(&mut self, builtin: Builtin) -> Expr {
        let [x, y, _] = self.kernel.workgroup;
        let axis = |axis: u8| ["x", "y", "z"][axis as usize % 3];
        match builtin {
            Builtin::WorkgroupId(a @ (0 | 1)) if self.gpu.dies > 1 => {
                let function = self.helper(Piece::Order, "nearby_block");
                Expr::atom(format!("{function}<{x}, {y}>().{}", axis(a)))
            }
            Builtin::WorkgroupId(a) => Expr::atom(format!("__builtin_amdgcn_workgroup_id_{}()", axis(a))),
            Builtin::WorkgroupCount(a) => {
                let size = self.kernel.workgroup[a as usize % 3];
                let threads = Expr::atom(format!("__builtin_amdgcn_grid_size_{}()", axis(a)));
                if size == 1 { threads } else { Expr::infix("/", &threads, &Expr::atom(format!("{size}u"))) }
            }
            Builtin::LocalId(a) => Expr::atom(format!("u32(__builtin_amdgcn_workitem_id_{}())", axis(a))),
            Builtin::Lane | Builtin::Subgroup => {
                // Threads are numbered x fastest.
                let id = |a: u8| format!("u32(__builtin_amdgcn_workitem_id_{}())", axis(a));
                let mut number = id(0);
                if self.kernel.workgroup[1] > 1 {
                    number = format!("{number} + {} * {x}u", id(1));
                }
                if self.kernel.workgroup[2] > 1 {
                    number = format!("{number} + {} * {}u", id(2), x * y);
                }
                if self.kernel.workgroup[1] > 1 || self.kernel.workgroup[2] > 1 {
                    number = format!("({number})");
                }
                let wave = self.gpu.caps.subgroup;
                if builtin == Builtin::Lane {
                    Expr::of(format!("{number} % {wave}u"), Binds::Product, &[])
                } else {
                    Expr::call(self.helper(Piece::Wave, "uniform"), &[&Expr::atom(format!("{number} / {wave}u"))])
                }
            }
        }
    }

    /// A number that the kernel holds.
    pub(super) fn constant(&mut self, constant: &Constant, ty: Type) -> Expr {
        let lane = |bits: u64| match ty.scalar {
            Scalar::Bool if ty.lanes == 1 => (bits != 0).to_string(),
            Scalar::Bool => if bits != 0 { "i8(-1)" } else { "i8(0)" }.to_string(),
            scalar => types::float_literal(scalar, bits),
        };
        match constant {
            Constant::Splat(bits) if ty.lanes == 1 => Expr::atom(lane(*bits)),
            // A vector takes an f32 for an f16 that it holds exactly.
            Constant::Splat(bits) if ty.scalar == Scalar::F16 && half::f16::from_bits(*bits as u16).is_finite() => {
                let number = half::f16::from_bits(*bits as u16).to_f32();
                Expr::atom(format!("{}({number:?}f)", self.vectors.name(ty)))
            }
            Constant::Splat(bits) => Expr::atom(format!("{}({})", self.vectors.name(ty), lane(*bits))),
            Constant::Lanes(lanes) if ty.lanes == 1 => Expr::atom(lane(lanes.first().copied().unwrap_or(0))),
            Constant::Lanes(lanes) => {
                let list: Vec<String> = lanes.iter().map(|&bits| lane(bits)).collect();
                Expr::atom(format!("{}{{{}}}", self.vectors.name(ty), list.join(", ")))
            }
        }
    }
}
