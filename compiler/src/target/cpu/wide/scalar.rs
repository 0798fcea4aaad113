//! Integers and bools in general registers.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Class, Condition, Inst as Op, Reg, Size};
use super::value::general_size;
use crate::ir::{BinOp, CmpOp, Scalar, UnOp};

impl Lower<'_> {
    /// An integer with the bits past its width set by its sign (or clear), in 32 bits at least.
    pub fn widened(&mut self, scalar: Scalar, a: Reg, signed: bool) -> Reg {
        match scalar.bits() {
            8 => self.general(if signed { M::Movsx } else { M::Movzx }, Size::B4, &[Arg::Use(a, Size::B1)]),
            16 => self.general(if signed { M::Movsx } else { M::Movzx }, Size::B4, &[Arg::Use(a, Size::B2)]),
            _ => a,
        }
    }

    /// 1 if a comparison holds, else 0, in all 64 bits.
    pub fn set_if(&mut self, condition: Condition, size: Size, a: Reg, b: Reg) -> Reg {
        self.push(M::Cmp, vec![Arg::Use(a, size), Arg::Use(b, size)]);
        let mnemonic = match condition {
            Condition::Zero => M::Sete,
            Condition::NotZero => M::Setne,
            Condition::Less => M::Setl,
            Condition::LessOrEqual => M::Setle,
            Condition::Greater => M::Setg,
            Condition::Below => M::Setb,
            Condition::Above => M::Seta,
        };
        let byte = self.general(mnemonic, Size::B1, &[]);
        self.general(M::Movzx, Size::B4, &[Arg::Use(byte, Size::B1)])
    }

    /// `condition ? a : b` after a comparison of others.
    pub fn choose(&mut self, condition: Condition, size: Size, a: Reg, b: Reg) -> Reg {
        let mnemonic = match condition {
            Condition::Zero => M::Cmove,
            Condition::NotZero => M::Cmovne,
            Condition::Less => M::Cmovl,
            Condition::LessOrEqual => M::Cmovle,
            Condition::Greater => M::Cmovg,
            Condition::Below => M::Cmovb,
            Condition::Above => M::Cmova,
        };
        self.general2(mnemonic, size, b, Arg::Use(a, size))
    }

    /// Quotient and remainder.
    pub fn divide(&mut self, signed: bool, size: Size, dividend: Reg, divisor: Reg) -> (Reg, Reg) {
        let (quotient, remainder) = (self.f.reg(Class::General), self.f.reg(Class::General));
        self.f.push(Op::Divide { signed, size, dividend, divisor, quotient, remainder });
        (quotient, remainder)
    }

    /// `a op b` of scalars; `known` is `b` where it is a constant.
    pub fn scalar_bin(&mut self, op: BinOp, scalar: Scalar, a: Reg, b: Reg, known: Option<u64>) -> Reg {
        let size = general_size(scalar);
        let width = u64::from(scalar.bits());
        let small = known
            .map(|bits| match width {
                64 => bits as i64,
                1 => (bits & 1) as i64,
                _ => ((bits << (64 - width)) as i64) >> (64 - width),
            })
            .filter(|&number| i32::try_from(number).is_ok());
        let right = small.map_or(Arg::Use(b, size), Arg::Imm);
        match op {
            BinOp::Add => self.general2(M::Add, size, a, right),
            BinOp::Sub => self.general2(M::Sub, size, a, right),
            BinOp::And => self.general2(M::And, size, a, right),
            BinOp::Or => self.general2(M::Or, size, a, right),
            BinOp::Xor => self.general2(M::Xor, size, a, right),
            BinOp::Mul => match small {
                Some(number) => self.general(M::Imul, size, &[Arg::Use(a, size), Arg::Imm(number)]),
                None => self.general2(M::Imul, size, a, Arg::Use(b, size)),
            },
            BinOp::Shl | BinOp::ShrU | BinOp::ShrS => {
                let a = match op {
                    BinOp::Shl => a,
                    _ => self.widened(scalar, a, op == BinOp::ShrS),
                };
                if let Some(bits) = known {
                    let by = bits % width;
                    let mnemonic = match op {
                        BinOp::Shl => M::Shl,
                        BinOp::ShrU => M::Shr,
                        _ => M::Sar,
                    };
                    return if by == 0 { a } else { self.general2(mnemonic, size, a, Arg::Imm(by as i64)) };
                }
                let by = if width < 32 { self.general2(M::And, Size::B4, b, Arg::Imm(width as i64 - 1)) } else { b };
                let mnemonic = match op {
                    BinOp::Shl => M::Shlx,
                    BinOp::ShrU => M::Shrx,
                    _ => M::Sarx,
                };
                self.general(mnemonic, size, &[Arg::Use(a, size), Arg::Use(by, size)])
            }
            BinOp::MinS | BinOp::MaxS => {
                let (a, b) = (self.widened(scalar, a, true), self.widened(scalar, b, true));
                self.push(M::Cmp, vec![Arg::Use(a, size), Arg::Use(b, size)]);
                self.choose(if op == BinOp::MinS { Condition::Less } else { Condition::Greater }, size, a, b)
            }
            BinOp::DivS | BinOp::RemS => {
                let a = self.widened(scalar, a, true);
                let divisor = known.unwrap_or(1);
                let divisor = ((divisor << (64 - width)) as i64) >> (64 - width);
                self.divided_by(op, size, a, divisor)
            }
            // Floats alone have these.
            BinOp::Div | BinOp::Min | BinOp::Max => a,
        }
    }

    /// Signed division by a constant. `-1` is a negation, which wraps where the instruction would trap.
    pub fn divided_by(&mut self, op: BinOp, size: Size, a: Reg, divisor: i64) -> Reg {
        match (divisor, op) {
            (-1, BinOp::DivS) => {
                let zero = self.int(size, 0);
                self.general2(M::Sub, size, zero, Arg::Use(a, size))
            }
            (-1, _) => self.int(size, 0),
            _ => {
                let number = if size == Size::B4 { i64::from(divisor as i32 as u32) } else { divisor };
                let divisor = self.int(size, number);
                let (quotient, remainder) = self.divide(true, size, a, divisor);
                if op == BinOp::DivS { quotient } else { remainder }
            }
        }
    }

    /// An operation of one scalar.
    pub fn scalar_un(&mut self, op: UnOp, scalar: Scalar, a: Reg) -> Reg {
        let size = general_size(scalar);
        match op {
            UnOp::Neg => {
                let reg = self.f.reg(Class::General);
                self.push(M::Neg, vec![Arg::Change(a, reg, size)]);
                reg
            }
            UnOp::Not if scalar == Scalar::Bool => self.general2(M::Xor, size, a, Arg::Imm(1)),
            UnOp::Not => {
                let reg = self.f.reg(Class::General);
                self.push(M::Not, vec![Arg::Change(a, reg, size)]);
                reg
            }
            // Popcount is expanded before, and the rest takes floats.
            UnOp::Abs | UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2 | UnOp::Popcount => a,
        }
    }

    /// A comparison of integers, as 0 or 1.
    pub fn scalar_cmp(&mut self, op: CmpOp, scalar: Scalar, a: Reg, b: Reg) -> Reg {
        let signed = matches!(op, CmpOp::LtS | CmpOp::LeS);
        let (a, b) = (self.widened(scalar, a, signed), self.widened(scalar, b, signed));
        let condition = match op {
            CmpOp::Eq => Condition::Zero,
            CmpOp::Ne => Condition::NotZero,
            CmpOp::LtS => Condition::Less,
            CmpOp::LeS => Condition::LessOrEqual,
            // Floats alone have the other two.
            CmpOp::LtU | CmpOp::Lt | CmpOp::Le => Condition::Below,
        };
        self.set_if(condition, general_size(scalar), a, b)
    }
}
