//! Tokens into declarations and instructions. Debug directives are skipped; names are resolved later, by `decode`.

mod operands;
mod variables;

use crate::ast::{Function, Item, Space, Statement, Text, Type};
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
