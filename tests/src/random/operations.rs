//! Operations on values that are in scope.

use super::Maker;
use bitsmith_compiler::ir::{BinOp, Builder, CastOp, CmpOp, Dot4Signs, Inst, Scalar, Type, UnOp, Value};

impl Maker {
    pub(super) fn int_bin(&mut self, b: &mut Builder) -> Value {
        use BinOp::*;
        const OPS: [BinOp; 13] = [Add, Sub, Mul, MinS, MaxS, And, Or, Xor, Shl, ShrU, ShrS, DivS, RemS];
        let ty = self.int_type();
        let op = OPS[self.rng.usize(0..OPS.len())];
        let x = self.value(b, ty);
        let y = match op {
            DivS | RemS => {
                // Neither 0 nor -1 in any width.
                let divisor = [2, 3, 7, -5, 10, 100, -128][self.rng.usize(0..7)];
                b.int(ty, divisor)
            }
            Shl | ShrU | ShrS if self.rng.bool() => {
                let amount = self.rng.i64(0..ty.scalar.bits() as i64);
                b.int(ty, amount)
            }
            _ => self.value(b, ty),
        };
        b.bin(op, x, y)
    }

    pub(super) fn float_bin(&mut self, b: &mut Builder) -> Value {
        use BinOp::*;
        const OPS: [BinOp; 6] = [Add, Sub, Mul, Div, Min, Max];
        let ty = self.float_type();
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        b.bin(OPS[self.rng.usize(0..OPS.len())], x, y)
    }

    pub(super) fn bool_bin(&mut self, b: &mut Builder) -> Value {
        let ty = self.vector(Scalar::Bool);
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        match self.rng.u32(0..4) {
            0 => b.bin(BinOp::And, x, y),
            1 => b.bin(BinOp::Or, x, y),
            2 => b.bin(BinOp::Xor, x, y),
            _ => b.un(UnOp::Not, x),
        }
    }

    pub(super) fn un(&mut self, b: &mut Builder) -> Value {
        if self.rng.bool() {
            let ty = self.int_type();
            let x = self.value(b, ty);
            let popcount = if self.options.extended { UnOp::Popcount } else { UnOp::Not };
            b.un([UnOp::Neg, UnOp::Not, popcount][self.rng.usize(0..3)], x)
        } else {
            let ty = self.float_type();
            let x = self.value(b, ty);
            b.un([UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Nearest, UnOp::Floor][self.rng.usize(0..5)], x)
        }
    }

    pub(super) fn compare(&mut self, b: &mut Builder) -> Value {
        if self.rng.bool() {
            let ty = self.int_type();
            let (x, y) = (self.value(b, ty), self.value(b, ty));
            b.cmp([CmpOp::Eq, CmpOp::Ne, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU][self.rng.usize(0..5)], x, y)
        } else {
            let ty = self.float_type();
            let (x, y) = (self.value(b, ty), self.value(b, ty));
            b.cmp([CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le][self.rng.usize(0..4)], x, y)
        }
    }

    pub(super) fn select(&mut self, b: &mut Builder) -> Value {
        let ty = self.memory_type();
        let bools = Type::vector(Scalar::Bool, ty.lanes);
        let cond = if self.fits(bools) && self.rng.bool() { bools } else { Scalar::Bool.into() };
        let cond = self.value(b, cond);
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        b.select(cond, x, y)
    }

    pub(super) fn cast(&mut self, b: &mut Builder) -> Value {
        let (from, op, to) = loop {
            let from = self.memory_type();
            let to = Scalar::ALL[self.rng.usize(1..Scalar::ALL.len())];
            if !self.fits(from.with_scalar(to)) {
                continue;
            }
            let (narrower, wider) = (to.bits() < from.scalar.bits(), to.bits() > from.scalar.bits());
            let is_any_float = |scalar: Scalar| !scalar.is_int();
            let choose = self.rng.bool();
            let op = match (from.scalar, to) {
                (x, y) if x.is_int() && y.is_int() && narrower => CastOp::Truncate,
                (x, y) if x.is_int() && y.is_int() && wider => {
                    if choose {
                        CastOp::ExtendS
                    } else {
                        CastOp::ExtendU
                    }
                }
                (Scalar::I8 | Scalar::I16 | Scalar::I32, Scalar::F32) => {
                    if choose {
                        CastOp::IntToFloatS
                    } else {
                        CastOp::IntToFloatU
                    }
                }
                (Scalar::F32, Scalar::I8 | Scalar::I16 | Scalar::I32) => CastOp::FloatToIntS,
                (x, y) if is_any_float(x) && is_any_float(y) && x != y => CastOp::Float,
                _ => continue,
            };
            break (from, op, to);
        };
        let x = self.value(b, from);
        if op != CastOp::Float || to == Scalar::F32 {
            return b.cast(op, x, to);
        }
        // A NaN would choose its own bits in the narrow type: pass through f32, where it can be replaced.
        let x = if from.scalar == Scalar::F32 {
            self.clean(b, x)
        } else if self.fits(from.with_scalar(Scalar::F32)) {
            let wide = b.cast(op, x, Scalar::F32);
            self.clean(b, wide)
        } else {
            return x;
        };
        if to == Scalar::E8m0 {
            // It has no sign and no zero.
            let x = b.un(UnOp::Abs, x);
            let lanes = from.lanes;
            let (low, high) = (b.f32(lanes, 2f32.powi(-126)), b.f32(lanes, 2f32.powi(100)));
            let x = b.bin(BinOp::Max, x, low);
            let x = b.bin(BinOp::Min, x, high);
            return b.cast(op, x, to);
        }
        b.cast(op, x, to)
    }

    pub(super) fn bitcast(&mut self, b: &mut Builder) -> Value {
        let from = self.memory_type();
        let mut to = self.memory_type();
        for _ in 0..50 {
            if to.bytes() == from.bytes() && to != from {
                break;
            }
            to = self.memory_type();
        }
        let x = self.value(b, from);
        if to.bytes() != from.bytes() {
            return x;
        }
        let x = self.clean(b, x);
        b.bitcast(x, to)
    }

    pub(super) fn lanes(&mut self, b: &mut Builder) -> Value {
        let mut ty = self.memory_type();
        while ty.lanes == 1 {
            ty = self.memory_type();
        }
        match self.rng.u32(0..4) {
            0 => {
                let parts: Vec<Value> = (0..ty.lanes).map(|_| self.value(b, ty.scalar.into())).collect();
                b.vector(&parts)
            }
            1 => {
                let x = self.value(b, ty.scalar.into());
                b.splat(x, ty.lanes)
            }
            2 => {
                let x = self.value(b, ty);
                let lane = self.rng.u8(0..ty.lanes);
                b.extract(x, lane)
            }
            _ => {
                let (x, y) = (self.value(b, ty), self.value(b, ty));
                let mut result = self.vector(ty.scalar);
                while result.lanes == 1 {
                    result = self.vector(ty.scalar);
                }
                let picks: Vec<u8> = (0..result.lanes).map(|_| self.rng.u8(0..2 * ty.lanes)).collect();
                b.swizzle(x, y, &picks)
            }
        }
    }

    /// Bits of any words; half of the time exponents for which products and sums are about the smallest numbers.
    fn dot2_bf16(&mut self, b: &mut Builder, words: Type, sums: Type) -> Value {
        let (x, y) = (self.value(b, words), self.value(b, words));
        let tiny = self.rng.bool();
        let factors = [x, y].map(|words| {
            let words = if tiny {
                let kept = b.bin_imm(BinOp::And, words, 0x83ff);
                b.bin_imm(BinOp::Or, kept, 0x1c00)
            } else {
                words
            };
            let ty = b.ty(words).with_scalar(Scalar::Bf16);
            b.bitcast(words, ty)
        });
        let sum = self.value(b, sums.with_scalar(Scalar::F32));
        let sum = if tiny {
            // Its bits are looked at.
            let sum = self.clean(b, sum);
            let bits = b.bitcast(sum, sums);
            let bits = b.bin_imm(BinOp::And, bits, 0x82ff_ffff_u32 as i32 as i64);
            b.bitcast(bits, sums.with_scalar(Scalar::F32))
        } else {
            sum
        };
        b.dot2(factors[0], factors[1], sum)
    }

    /// Any bytes: half of the time so small that the sum of two products does not saturate.
    fn dot2_bytes(&mut self, b: &mut Builder) -> Value {
        let acc = self.vector(Scalar::I16);
        let bytes = Type::vector(Scalar::I8, 2 * acc.lanes);
        if !self.fits(bytes) {
            return self.int_bin(b);
        }
        let (mut x, y, acc) = (self.value(b, bytes), self.value(b, bytes), self.value(b, acc));
        if self.rng.bool() {
            x = b.bin_imm(BinOp::And, x, 0x7f);
        }
        b.dot2(x, y, acc)
    }

    pub(super) fn extended(&mut self, b: &mut Builder) -> Value {
        match self.rng.u32(0..4) {
            0 | 1 => {
                let container = self.int_type();
                let width = container.scalar.bits() as u8;
                let widest = if self.rng.bool() { width.min(8) } else { width };
                let bits = self.rng.u8(1..=widest);
                let shift = self.rng.u8(0..=width - bits);
                let float = container.scalar == Scalar::I32 && self.rng.bool();
                let signed = self.rng.bool();
                let x = self.value(b, container);
                b.unpack(x, shift, bits, signed, if float { container.with_scalar(Scalar::F32) } else { container })
            }
            2 => {
                let acc = self.vector(Scalar::I32);
                let words = Type::vector(Scalar::I16, 2 * acc.lanes);
                if self.rng.u8(..4) == 0 && self.fits(words) {
                    let (x, y, acc) = (self.value(b, words), self.value(b, words), self.value(b, acc));
                    return b.dot2(x, y, acc);
                }
                if self.options.dot2_bf16 && self.rng.u8(..2) == 0 && self.fits(words) {
                    return self.dot2_bf16(b, words, acc);
                }
                if self.options.dot2_bytes && self.rng.u8(..3) == 0 {
                    return self.dot2_bytes(b);
                }
                let bytes = Type::vector(Scalar::I8, 4 * acc.lanes);
                if !self.fits(bytes) {
                    return self.int_bin(b);
                }
                let (mut x, y, acc) = (self.value(b, bytes), self.value(b, bytes), self.value(b, acc));
                let bits = [2, 4, 7, 8][self.rng.usize(0..4)];
                if self.rng.bool() {
                    return b.dot4(Dot4Signs::SignedSigned, 8, x, y, acc);
                }
                if bits < 8 {
                    x = b.bin_imm(BinOp::And, x, (1 << bits) - 1);
                }
                b.dot4(Dot4Signs::UnsignedSigned, bits, x, y, acc)
            }
            _ if self.options.permute_long && self.rng.u8(..2) == 0 => {
                let ty = Type::vector(Scalar::I8, 64);
                let [low, high, index] = [0; 3].map(|_| self.value(b, ty));
                b.push(ty, Inst::PermuteLong { low, high, index })
            }
            _ => {
                let table_type = Type::vector(Scalar::I8, 16);
                let index_type = if self.options.vector_bytes > 16 && self.rng.bool() {
                    Type::vector(Scalar::I8, 32)
                } else {
                    table_type
                };
                let (table, index) = (self.value(b, table_type), self.value(b, index_type));
                let index = b.bin_imm(BinOp::And, index, 15);
                b.push(index_type, Inst::PermuteBytes { table, index })
            }
        }
    }
}
