//! Operands of statements.

use super::{Parser, Result};
use crate::ast::Operand;
use crate::lex::Token;

impl Parser<'_> {
    fn list(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.take(close) {
            out.push(self.operand()?);
            if !self.take(',') && self.peek() != Some(&Token::Sign(close)) {
                return self.fail(format!("expected `,` or `{close}`, found {:?}", self.peek()));
            }
        }
        Ok(out)
    }

    pub(super) fn operand(&mut self) -> Result<Operand> {
        let first = match self.next()? {
            Token::Word(name) => {
                if matches!(self.peek(), Some(Token::Sign('+' | '-'))) {
                    let negative = self.take('-') || !self.take('+');
                    let offset = self.integer()?;
                    return Ok(Operand::Sum(name, if negative { -offset } else { offset }));
                }
                Operand::Name(name)
            }
            Token::Integer(n) => Operand::Integer(n),
            Token::Single(bits) => Operand::Single(bits),
            Token::Double(bits) => Operand::Double(bits),
            Token::Sign('-') => match self.next()? {
                Token::Integer(n) => Operand::Integer(n.wrapping_neg()),
                Token::Single(bits) => Operand::Single(bits ^ 1 << 31),
                Token::Double(bits) => Operand::Double(bits ^ 1 << 63),
                other => return self.fail(format!("`-` before {other:?}")),
            },
            Token::Sign('!') => Operand::Not(Box::new(self.operand()?)),
            Token::Sign('{') => Operand::Vector(self.list('}')?),
            Token::Sign('(') => Operand::List(self.list(')')?),
            Token::Sign('[') => self.address()?,
            other => {
                self.at -= 1;
                return self.fail(format!("{other:?} is no operand"));
            }
        };
        if self.take('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.operand()?)));
        }
        Ok(first)
    }

    fn address(&mut self) -> Result<Operand> {
        let (base, mut offset) = match self.next()? {
            Token::Word(name) => (Some(name), 0),
            Token::Integer(n) => (None, n as i64),
            other => return self.fail(format!("{other:?} in an address")),
        };
        loop {
            let negative = match self.peek() {
                Some(Token::Sign('+')) => false,
                Some(Token::Sign('-')) => true,
                _ => break,
            };
            self.at += 1;
            let n = self.integer()?;
            offset = offset.wrapping_add(if negative { n.wrapping_neg() } else { n });
        }
        let mut more = Vec::new();
        while self.take(',') {
            more.push(self.operand()?);
        }
        self.expect(']')?;
        Ok(Operand::Address { base, offset, more })
    }
}
