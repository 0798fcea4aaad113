//! Tokens into declarations and instructions. Debug directives are skipped; names are resolved later, by `decode`.

use crate::ast::{Function, Init, Item, Operand, Space, Statement, Text, Type, Variable};
use crate::fault::LoadError;
use crate::lex::{Placed, Token, tokens};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, LoadError>;

/// Parses a module.
pub(crate) fn parse(text: &str) -> Result<Text> {
    let mut parser = Parser { source: text, tokens: tokens(text)?, at: 0 };
    let mut module = Text::default();
    while parser.at < parser.tokens.len() {
        parser.top(&mut module)?;
    }
    if module.version.0 == 0 {
        return Err(LoadError::at(1, "no `.version` directive: this is no PTX module"));
    }
    Ok(module)
}

struct Parser<'t> {
    source: &'t str,
    tokens: Vec<Placed>,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|p| &p.token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |p| p.line)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(LoadError::at(self.line(), message))
    }

    fn next(&mut self) -> Result<Token> {
        let Some(token) = self.peek().cloned() else { return self.fail("the text ends too early") };
        self.at += 1;
        Ok(token)
    }

    fn take(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        if self.take(sign) { Ok(()) } else { self.fail(format!("expected `{sign}`, found {:?}", self.peek())) }
    }

    fn is_word(&self, text: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w == text)
    }

    fn word(&mut self) -> Result<String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => {
                self.at -= 1;
                self.fail(format!("expected a name, found {other:?}"))
            }
        }
    }

    fn integer(&mut self) -> Result<i64> {
        let negative = self.take('-');
        match self.next()? {
            Token::Integer(n) if negative => Ok((n as i64).wrapping_neg()),
            Token::Integer(n) => Ok(n as i64),
            other => {
                self.at -= 1;
                self.fail(format!("expected an integer, found {other:?}"))
            }
        }
    }

    /// Skips a line's directive: everything up to the next line.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<()> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn top(&mut self, module: &mut Text) -> Result<()> {
        let word = self.word()?;
        match word.as_str() {
            ".version" => {
                let Token::Double(bits) = self.next()? else { return self.fail("`.version` takes major.minor") };
                let version = f64::from_bits(bits);
                module.version = (version as u32, (version.fract() * 10.0).round() as u32);
            }
            ".target" => {
                module.target.push(self.word()?);
                while self.take(',') {
                    module.target.push(self.word()?);
                }
            }
            ".address_size" => {
                if self.integer()? != 64 {
                    return self.fail("only `.address_size 64` is known");
                }
            }
            ".file" | ".loc" => {
                self.at -= 1;
                self.skip_line();
            }
            ".section" => {
                self.word()?;
                self.skip_braces()?;
            }
            ".pragma" => {
                while !self.take(';') {
                    self.next()?;
                }
            }
            ".alias" => return self.fail("`.alias` is not known to this machine"),
            ".visible" | ".weak" | ".common" => {}
            ".extern" => {
                if self.is_word(".func") {
                    self.at += 1;
                    self.function(false)?;
                } else {
                    let word = self.word()?;
                    let Some(space) = space_of(&word) else { return self.fail(format!("`.extern {word}`")) };
                    let mut variables = self.variables(space)?;
                    variables.iter_mut().for_each(|v| v.external = true);
                    module.variables.append(&mut variables);
                }
            }
            ".entry" | ".func" => {
                if let Some(function) = self.function(word == ".entry")? {
                    module.functions.push(function);
                }
            }
            other => match space_of(other) {
                Some(space) => module.variables.append(&mut self.variables(space)?),
                None => {
                    self.at -= 1;
                    return self.fail(format!("`{other}` is no module directive that this machine knows"));
                }
            },
        }
        Ok(())
    }

    /// After a space word: `.align n .type name[dims] = init, …;`.
    fn variables(&mut self, space: Space) -> Result<Vec<Variable>> {
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

    fn parameters(&mut self) -> Result<Vec<Variable>> {
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

    /// A function after `.entry` or `.func`; nothing for a declaration without a body.
    fn function(&mut self, entry: bool) -> Result<Option<Function>> {
        if self.is_word(".attribute") {
            self.at += 1;
            while !self.take(')') {
                self.next()?;
            }
        }
        let results = if entry { Vec::new() } else { self.parameters()? };
        let line = self.line();
        let name = self.word()?;
        let parameters = self.parameters()?;
        let mut directives = HashMap::new();
        loop {
            if self.take(';') {
                return Ok(None);
            }
            if self.peek() == Some(&Token::Sign('{')) {
                break;
            }
            let word = self.word()?;
            let mut numbers = Vec::new();
            if word == ".pragma" {
                while !self.take(';') {
                    self.next()?;
                }
                continue;
            }
            while let Some(Token::Integer(n)) = self.peek() {
                numbers.push(*n as u32);
                self.at += 1;
                self.take(',');
            }
            directives.insert(word[1..].to_string(), numbers);
        }
        self.expect('{')?;
        let mut body = Vec::new();
        let mut depth = 0;
        loop {
            if self.take('}') {
                if depth == 0 {
                    break;
                }
                depth -= 1;
                body.push(Item::Close);
            } else if self.take('{') {
                depth += 1;
                body.push(Item::Open);
            } else {
                self.item(&mut body)?;
            }
        }
        Ok(Some(Function { name, entry, results, parameters, body, directives, line }))
    }

    fn item(&mut self, body: &mut Vec<Item>) -> Result<()> {
        if self.peek() == Some(&Token::Sign('@')) {
            body.push(Item::Statement(self.statement()?));
            return Ok(());
        }
        if self.take(';') {
            return Ok(());
        }
        let word = self.word()?;
        match word.as_str() {
            ".reg" => self.registers(body)?,
            ".loc" | ".file" => {
                self.at -= 1;
                self.skip_line();
            }
            ".pragma" => {
                while !self.take(';') {
                    self.next()?;
                }
            }
            ".section" => {
                self.word()?;
                self.skip_braces()?;
            }
            w if w.starts_with('.') => match space_of(w) {
                Some(space) => body.extend(self.variables(space)?.into_iter().map(Item::Variable)),
                None => {
                    self.at -= 1;
                    return self.fail(format!("`{w}` is no directive that this machine knows"));
                }
            },
            _ if self.take(':') => {
                if self.is_word(".branchtargets") {
                    self.at += 1;
                    let mut targets = vec![self.word()?];
                    while self.take(',') {
                        targets.push(self.word()?);
                    }
                    self.expect(';')?;
                    body.push(Item::Targets(word, targets));
                } else if self.is_word(".callprototype") || self.is_word(".calltargets") {
                    return self.fail("indirect calls are not known to this machine");
                } else {
                    body.push(Item::Label(word));
                }
            }
            _ => {
                self.at -= 1;
                body.push(Item::Statement(self.statement()?));
            }
        }
        Ok(())
    }

    fn registers(&mut self, body: &mut Vec<Item>) -> Result<()> {
        let mut vector = 1;
        let ty = loop {
            let word = self.word()?;
            match word.as_str() {
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                w => match w.strip_prefix('.').and_then(Type::parse) {
                    Some(ty) => break ty,
                    None => return self.fail(format!("`{w}` is no register type")),
                },
            }
        };
        if ty.bits > 64 {
            return self.fail("128-bit registers are not known to this machine");
        }
        loop {
            let name = self.word()?;
            let mut count = 0;
            if self.take('<') {
                count = self.integer()? as u32;
                self.expect('>')?;
                if count > 1 << 20 {
                    return self.fail(format!("{count} registers; accepted: at most {}", 1 << 20));
                }
            }
            body.push(Item::Registers(name, count, ty, vector));
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')
    }

    fn statement(&mut self) -> Result<Statement> {
        let (line, start) = (self.line(), self.tokens[self.at].start);
        let mut guard = None;
        if self.take('@') {
            let negated = self.take('!');
            guard = Some((self.word()?, negated));
        }
        let opcode = self.word()?;
        let mut parts = opcode.split('.').map(str::to_string);
        let name = parts.next().unwrap_or_default();
        let modifiers = parts.collect();
        let mut operands = Vec::new();
        while !self.take(';') {
            operands.push(self.operand()?);
            if !self.take(',') && self.peek() != Some(&Token::Sign(';')) {
                return self.fail(format!("expected `,` or `;`, found {:?}", self.peek()));
            }
        }
        let end = self.tokens[self.at - 1].end;
        let mut text = self.source[start..end].split_whitespace().collect::<Vec<_>>().join(" ");
        if text.len() > 200 {
            // Reports are for reading; `wgmma` may name 128 registers.
            text = text.chars().take(200).chain(['…']).collect();
        }
        Ok(Statement { guard, name, modifiers, operands, line, text })
    }

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

    fn operand(&mut self) -> Result<Operand> {
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

fn space_of(word: &str) -> Option<Space> {
    Some(match word {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".param" => Space::Param,
        ".local" => Space::Local,
        ".shared" => Space::Shared,
        _ => return None,
    })
}
