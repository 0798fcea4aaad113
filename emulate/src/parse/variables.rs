//! Variables with their initial values, and parameters.

use super::{Parser, Result};
use crate::ast::{Init, Operand, Space, Type, Variable};
use crate::lex::Token;

impl Parser<'_> {
    /// After a space word: `.align n .type name[dims] = init, …;`.
    pub(super) fn variables(&mut self, space: Space) -> Result<Vec<Variable>> {
        let mut out = Vec::new();
        let mut first = self.variable(space)?;
        loop {
            let template = (first.0, first.1, first.2);
            out.push(first.3);
            if !self.take(',') {
                break;
            }
            let variable = self.declarator(space, template.0, template.1, template.2)?;
            first = (template.0, template.1, template.2, variable);
        }
        self.expect(';')?;
        Ok(out)
    }

    fn variable(&mut self, space: Space) -> Result<(Type, u32, u64, Variable)> {
        let (mut align, mut vector, mut ty) = (0u64, 1, None);
        while let Some(Token::Word(word)) = self.peek().cloned() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word.as_str() {
                ".align" => align = self.integer()? as u64,
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".ptr" | ".global" | ".shared" | ".const" | ".local" | ".param" => {}
                ".attribute" => {
                    self.expect('(')?;
                    while !self.take(')') {
                        self.next()?;
                    }
                }
                other => match Type::parse(&other[1..]) {
                    // In `.param .u64 .ptr .global .align 16 p` the alignment is the pointee's.
                    Some(found) => ty = Some((found, align)),
                    None => return self.fail(format!("`{other}` in a declaration")),
                },
            }
        }
        let Some((ty, declared)) = ty else { return self.fail("a declaration without a type") };
        let align = if space == Space::Param { declared } else { align };
        let variable = self.declarator(space, ty, vector, align)?;
        Ok((ty, vector, align, variable))
    }

    fn declarator(&mut self, space: Space, ty: Type, vector: u32, align: u64) -> Result<Variable> {
        let name = self.word()?;
        let element = ty.bytes();
        let mut size = element * u64::from(vector);
        let mut open = false;
        while self.take('[') {
            if self.take(']') {
                open = true;
            } else {
                size *= self.integer()? as u64;
                self.expect(']')?;
            }
        }
        let mut init = Vec::new();
        if self.take('=') {
            self.initial(ty, &mut init)?;
            if open {
                size = init.len() as u64 * element;
                open = false;
            }
        }
        let natural = element * u64::from(vector);
        let size = if open { 0 } else { size };
        let align = if align == 0 { natural } else { align };
        Ok(Variable { name, space, align, size, element, external: false, init, register: None })
    }

    fn initial(&mut self, ty: Type, out: &mut Vec<Init>) -> Result<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initial(ty, out)?;
                self.take(',');
            }
            return Ok(());
        }
        let value = match self.operand()? {
            Operand::Integer(n) => Init::Bits(n),
            Operand::Single(bits) if ty.bits == 64 => Init::Bits(f64::from(f32::from_bits(bits)).to_bits()),
            Operand::Single(bits) => Init::Bits(u64::from(bits)),
            Operand::Double(bits) if ty.bits == 32 => Init::Bits(u64::from((f64::from_bits(bits) as f32).to_bits())),
            Operand::Double(bits) => Init::Bits(bits),
            Operand::Name(name) if name == "generic" && self.take('(') => {
                let name = self.word()?;
                let offset = if self.take('+') { self.integer()? } else { 0 };
                self.expect(')')?;
                let offset = if self.take('+') { offset + self.integer()? } else { offset };
                Init::Address(name, offset, true)
            }
            Operand::Name(name) => Init::Address(name, 0, false),
            Operand::Sum(name, offset) => Init::Address(name, offset, false),
            other => return self.fail(format!("{other:?} as an initial value")),
        };
        out.push(value);
        Ok(())
    }

    pub(super) fn parameters(&mut self) -> Result<Vec<Variable>> {
        let mut out = Vec::new();
        if !self.take('(') {
            return Ok(out);
        }
        while !self.take(')') {
            let space = self.word()?;
            let (ty, _, _, mut variable) = self.variable(Space::Param)?;
            if space == ".reg" {
                variable.register = Some(ty);
            } else if space != ".param" {
                return self.fail(format!("`{space}` as a parameter's space"));
            }
            out.push(variable);
            self.take(',');
        }
        Ok(out)
    }
}
