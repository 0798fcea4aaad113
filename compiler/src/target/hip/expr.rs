//! Pure instructions as C++ expressions, one arm each.
//!
//! Always holds: the expression has the instruction's bits for every operand that the IR allows; integers are unsigned but
//! where an operation reads the sign, so that nothing overflows.

use super::emit::{Emitter, Piece};
use super::text::{Binds, Expr};
use super::types;
use crate::ir::{BinOp, Builtin, CastOp, CmpOp, Constant, Dot4Signs, Inst, Scalar, Type, UnOp, Value};

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
            Inst::Fma(a, b, c) => {
                let operands = [*a, *b, *c];
                if ty.scalar == Scalar::Bf16 {
                    let wide = operands.map(|value| self.widened(value));
                    let sum = Expr::call("__builtin_elementwise_fma", &wide.each_ref());
                    self.narrowed(sum, ty)
                } else {
                    let [a, b, c] = operands.map(|value| self.operand(value));
                    let half = ty.scalar == Scalar::F16;
                    let function = if half { self.helper(Piece::Math, "fused") } else { "__builtin_elementwise_fma" };
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
            Inst::Unpack { .. } => unreachable!("the pass list expands unpack"),
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
            | Inst::Asynchronous(_) => return None,
        })
    }

    fn builtin(&mut self, builtin: Builtin) -> Expr {
        let [x, y, _] = self.kernel.workgroup;
        let axis = |axis: u8| ["x", "y", "z"][axis as usize % 3];
        match builtin {
            Builtin::WorkgroupId(0) if self.gpu.dies > 1 => {
                let function = self.helper(Piece::Order, "nearby_block");
                let count = self.builtin(Builtin::WorkgroupCount(0));
                Expr::call(function, &[&Expr::atom("__builtin_amdgcn_workgroup_id_x()"), &count])
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
            Constant::Splat(bits) => Expr::atom(format!("{}({})", self.vectors.name(ty), lane(*bits))),
            Constant::Lanes(lanes) if ty.lanes == 1 => Expr::atom(lane(lanes.first().copied().unwrap_or(0))),
            Constant::Lanes(lanes) => {
                let list: Vec<String> = lanes.iter().map(|&bits| lane(bits)).collect();
                Expr::atom(format!("{}{{{}}}", self.vectors.name(ty), list.join(", ")))
            }
        }
    }

    fn binary(&mut self, op: BinOp, a: Value, b: Value, ty: Type) -> Expr {
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
                    Expr::call(self.helper(Piece::Math, name), &[&x, &y])
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

    fn float_binary(&mut self, op: BinOp, a: Value, b: Value, ty: Type) -> Expr {
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

    fn unary(&mut self, op: UnOp, a: Value, ty: Type) -> Expr {
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
                Expr::call(self.helper(Piece::Math, "count_bits"), &[&x])
            }
            UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2 => unreachable!("handled above"),
        }
    }

    fn compare(&mut self, op: CmpOp, a: Value, b: Value) -> Expr {
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

    fn select(&mut self, cond: Value, a: Value, b: Value, ty: Type) -> Expr {
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

    fn cast(&mut self, op: CastOp, a: Value, ty: Type) -> Expr {
        let from = self.ty(a);
        let vector = ty.lanes > 1;
        let convert = |x: &Expr, name: &str| {
            if vector {
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[x])
            } else {
                Expr::call(name, &[x])
            }
        };
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
                Expr::call(self.helper(Piece::Math, function), &[&x])
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
    pub(super) fn widened(&mut self, value: Value) -> Expr {
        let ty = self.ty(value);
        let x = self.operand(value);
        self.widened_expr(x, ty)
    }

    pub(super) fn widened_expr(&mut self, x: Expr, ty: Type) -> Expr {
        match ty.scalar {
            Scalar::F32 => x,
            Scalar::F16 if ty.lanes == 1 => Expr::call("f32", &[&x]),
            Scalar::F16 => {
                let name = self.vectors.name(ty.with_scalar(Scalar::F32));
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[&x])
            }
            small => {
                self.helper(Piece::SmallFloat, "");
                Expr::call(&format!("{}_to_f32", types::element(small)), &[&x])
            }
        }
    }

    /// An `f32` rounded to a smaller float.
    pub(super) fn narrowed(&mut self, x: Expr, ty: Type) -> Expr {
        match ty.scalar {
            Scalar::F32 => x,
            Scalar::F16 if ty.lanes == 1 => Expr::call("f16", &[&x]),
            Scalar::F16 => {
                let name = self.vectors.name(ty);
                Expr::of(format!("__builtin_convertvector({}, {name})", x.text), Binds::Atom, &[&x])
            }
            small => {
                self.helper(Piece::SmallFloat, "");
                Expr::call(&format!("f32_to_{}", types::element(small)), &[&x])
            }
        }
    }

    fn extract(&mut self, vector: Value, lane: u8) -> Expr {
        let ty = self.ty(vector);
        let x = self.operand(vector);
        if ty.lanes == 1 {
            return x;
        }
        let part = Expr::of(format!("{}[{lane}]", x.at_least(Binds::Atom)), Binds::Atom, &[&x]);
        if ty.scalar == Scalar::Bool { Expr::infix("!=", &part, &Expr::atom("0")) } else { part }
    }

    fn swizzle(&mut self, a: Value, b: Value, lanes: &[u8], ty: Type) -> Expr {
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
    fn lane(&mut self, value: Value, scalar: Scalar) -> Expr {
        match scalar {
            Scalar::Bool => {
                let x = self.operand(value);
                Expr::call(self.helper(Piece::Mask, "mask"), &[&x])
            }
            _ if scalar.is_int() => self.unsigned(value),
            _ => self.operand(value),
        }
    }

    /// The bits of a value as another type; a chain of bitcasts counts as one.
    pub(super) fn bits(&mut self, value: Value, ty: Type) -> Expr {
        let mut origin = value;
        while let Some(&Inst::Bitcast(a)) = self.facts[origin.0 as usize].inst
            && self.is_inlined(origin)
        {
            origin = a;
        }
        if self.ty(origin) == ty {
            return self.operand(origin);
        }
        let x = self.operand(origin);
        self.bits_of(x, ty)
    }

    fn bits_of(&mut self, x: Expr, ty: Type) -> Expr {
        let name = self.vectors.name(ty);
        Expr::call(&format!("bits_as<{name}>"), &[&x])
    }

    /// How far a shift goes: modulo the width.
    fn shift_amount(&mut self, amount: Value, ty: Type) -> Expr {
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

    /// An integer expression whose C++ type is wider than its own, cut to its own.
    fn small(&mut self, x: Expr, ty: Type) -> Expr {
        let narrow = ty.lanes == 1 && ty.scalar.bits() < 32 && ty.scalar != Scalar::Bool && ty.scalar != Scalar::F16;
        if narrow { Expr::call(types::element(ty.scalar), &[&x]) } else { x }
    }

    /// A signed result as this file has values: 8-bit, 16-bit and vector ones unsigned, others as they are.
    fn back(&mut self, x: Expr, ty: Type) -> Expr {
        if ty.lanes > 1 {
            return self.bits_of(x, ty);
        }
        if ty.scalar.bits() < 32 { Expr::call(types::element(ty.scalar), &[&x]) } else { x.taken_signed() }
    }

    /// An integer operand read with its sign.
    pub(super) fn signed(&mut self, value: Value) -> Expr {
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
    pub(super) fn unsigned(&mut self, value: Value) -> Expr {
        let x = self.operand(value);
        if !x.signed {
            return x;
        }
        let name = types::element(self.ty(value).scalar);
        Expr::call(name, &[&x])
    }
}
