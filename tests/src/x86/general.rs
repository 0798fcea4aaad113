//! General registers, flags, branches.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::{Machine, Named, Outcome};

fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn signed(value: u64, bits: u32) -> i64 {
    ((value << (64 - bits)) as i64) >> (64 - bits)
}

impl Machine {
    /// Bits of an operand: of the register, or of the memory that is read.
    fn width(&self, instruction: &Instruction, operand: u32) -> u32 {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size() as u32 * 8,
            _ => instruction.memory_size().size() as u32 * 8,
        }
    }

    fn read(&self, instruction: &Instruction, operand: u32) -> Outcome<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                if !register.is_general()
                    || matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
                {
                    return Err(format!("reads {register:?} as a number"));
                }
                Ok(self.general[register.number()] & mask(register.size() as u32 * 8))
            }
            OpKind::Memory => {
                let bytes = self.load(self.address(instruction)?, instruction.memory_size().size())?;
                Ok(bytes.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
            }
            _ => Ok(instruction.immediate(operand)),
        }
    }

    pub(super) fn write(&mut self, instruction: &Instruction, operand: u32, value: u64) -> Outcome {
        if self.is_memory(instruction, operand) {
            let bytes = instruction.memory_size().size();
            return self.store(self.address(instruction)?, &value.to_le_bytes()[..bytes]);
        }
        let register = instruction.op_register(operand);
        let place = &mut self.general[register.number()];
        match register.size() {
            8 => *place = value,
            // Writing 32 bits clears the upper half; writing fewer keeps the rest.
            4 => *place = value & 0xffff_ffff,
            2 => *place = *place & !0xffff | value & 0xffff,
            _ => *place = *place & !0xff | value & 0xff,
        }
        Ok(())
    }

    fn flags_of(&mut self, value: u64, bits: u32) {
        self.zero = value & mask(bits) == 0;
        self.sign = value >> (bits - 1) & 1 == 1;
    }

    fn subtract(&mut self, a: u64, b: u64, bits: u32) -> u64 {
        let out = a.wrapping_sub(b) & mask(bits);
        self.flags_of(out, bits);
        self.carry = a < b;
        self.overflow = (a ^ b) >> (bits - 1) & 1 == 1 && (a ^ out) >> (bits - 1) & 1 == 1;
        out
    }

    /// The condition of a branch, a set or a move, by the letters behind its name.
    fn holds(&self, condition: &str) -> Outcome<bool> {
        let less = self.sign != self.overflow;
        Ok(match condition {
            "e" => self.zero,
            "ne" => !self.zero,
            "l" => less,
            "ge" => !less,
            "le" => less || self.zero,
            "g" => !less && !self.zero,
            "b" => self.carry,
            "ae" => !self.carry,
            "a" => !self.carry && !self.zero,
            "be" => self.carry || self.zero,
            other => return Err(format!("unknown condition {other}")),
        })
    }

    /// Runs an instruction on general registers; `false` if it is none.
    pub(super) fn general_step(&mut self, i: &Instruction) -> Outcome<bool> {
        let name = format!("{:?}", i.mnemonic()).to_lowercase();
        if let Some(condition) = name.strip_prefix("cmov") {
            let value = if self.holds(condition)? { self.read(i, 1)? } else { self.read(i, 0)? };
            self.write(i, 0, value)?;
            return Ok(true);
        }
        if let Some(condition) = name.strip_prefix("set") {
            let value = u64::from(self.holds(condition)?);
            self.write(i, 0, value)?;
            return Ok(true);
        }
        if name.starts_with('j') && name != "jmp" {
            if self.holds(&name[1..])? {
                self.ip = i.near_branch64();
            }
            return Ok(true);
        }
        match i.mnemonic() {
            M::Jmp => self.ip = i.near_branch64(),
            M::Nop | M::Vzeroupper | M::Prefetcht0 => {}
            M::Ret => {
                let top = self.load(self.general[4], 8)?;
                self.ip = top.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
                self.general[4] += 8;
            }
            M::Push => {
                let value = self.read(i, 0)?;
                self.general[4] -= 8;
                self.store(self.general[4], &value.to_le_bytes())?;
            }
            M::Pop => {
                let top = self.load(self.general[4], 8)?;
                self.general[4] += 8;
                self.write(i, 0, top.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))?;
            }
            M::Mov | M::Movzx => {
                let value = self.read(i, 1)?;
                self.write(i, 0, value)?;
            }
            M::Movsx | M::Movsxd => {
                let value = signed(self.read(i, 1)?, self.width(i, 1));
                self.write(i, 0, value as u64)?;
            }
            M::Add | M::Sub | M::And | M::Or | M::Xor | M::Cmp | M::Test | M::Neg | M::Not => self.arithmetic(i)?,
            M::Imul => {
                let bits = self.width(i, 0);
                let factors = if i.op_count() == 3 { (1, 2) } else { (0, 1) };
                let (a, b) = (self.read(i, factors.0)?, self.read(i, factors.1)?);
                self.write(i, 0, a.wrapping_mul(b) & mask(bits))?;
            }
            M::Shl | M::Shr | M::Sar | M::Shlx | M::Shrx | M::Sarx => {
                let bits = self.width(i, 0);
                let (from, by) = if i.op_count() == 3 { (1, 2) } else { (0, 1) };
                let by = self.read(i, by)? & u64::from(bits - 1).max(31);
                let value = self.read(i, from)?;
                let out = match i.mnemonic() {
                    M::Shl | M::Shlx => value << by,
                    M::Shr | M::Shrx => value >> by,
                    _ => (signed(value, bits) >> by) as u64,
                };
                self.write(i, 0, out & mask(bits))?;
            }
            M::Cdq => self.general[2] = (signed(self.general[0], 32) >> 63) as u64 & 0xffff_ffff,
            M::Cqo => self.general[2] = (self.general[0] as i64 >> 63) as u64,
            M::Div | M::Idiv => self.divide(i)?,
            M::Xadd => {
                let (place, addend) = (self.read(i, 0)?, self.read(i, 1)?);
                let sum = place.wrapping_add(addend) & mask(self.width(i, 1));
                self.write(i, 0, sum)?;
                self.write(i, 1, place)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn arithmetic(&mut self, i: &Instruction) -> Outcome {
        let bits = self.width(i, 0);
        let a = self.read(i, 0)?;
        let b = if i.op_count() > 1 { self.read(i, 1)? & mask(bits) } else { 0 };
        let logic = |machine: &mut Machine, out: u64| {
            machine.flags_of(out, bits);
            (machine.carry, machine.overflow) = (false, false);
            out
        };
        let out = match i.mnemonic() {
            M::Add => {
                let out = a.wrapping_add(b) & mask(bits);
                self.flags_of(out, bits);
                self.carry = out < a;
                self.overflow = (a ^ out) & (b ^ out) & 1 << (bits - 1) != 0;
                out
            }
            M::Sub | M::Cmp => self.subtract(a, b, bits),
            M::Neg => self.subtract(0, a, bits),
            M::Not => !a & mask(bits),
            M::And | M::Test => logic(self, a & b),
            M::Or => logic(self, a | b),
            _ => logic(self, a ^ b),
        };
        if matches!(i.mnemonic(), M::Cmp | M::Test) { Ok(()) } else { self.write(i, 0, out) }
    }

    fn divide(&mut self, i: &Instruction) -> Outcome {
        let bits = self.width(i, 0);
        let divisor = self.read(i, 0)?;
        let low = self.general[0] & mask(bits);
        let high = self.general[2] & mask(bits);
        if divisor == 0 {
            return Err("divides by zero".into());
        }
        let (quotient, remainder) = if i.mnemonic() == M::Div {
            let dividend = u128::from(high) << bits | u128::from(low);
            let (quotient, remainder) = (dividend / u128::from(divisor), dividend % u128::from(divisor));
            if quotient > u128::from(mask(bits)) {
                return Err("the quotient does not fit".into());
            }
            (quotient as u64, remainder as u64)
        } else {
            let dividend = i128::from(signed(high, bits)) << bits | i128::from(low);
            let divisor = i128::from(signed(divisor, bits));
            let (quotient, remainder) = (dividend / divisor, dividend % divisor);
            if quotient != i128::from(signed(quotient as u64, bits)) {
                return Err("the quotient does not fit".into());
            }
            (quotient as u64, remainder as u64)
        };
        for (register, value) in [(0, quotient), (2, remainder)] {
            self.general[register] = value & mask(bits);
        }
        Ok(())
    }

    /// Reads an operand as a number.
    pub(super) fn number(&self, instruction: &Instruction, operand: u32) -> Outcome<u64> {
        self.read(instruction, operand)
    }
}
