//! The smallest parts: names, values, types, whole numbers, marks, and what is said of one that is none.

use super::{ParseError, Parsed, Parser};
use crate::ir::lexer::{Lexeme, Token};
use crate::ir::types::{Memory, Scalar, Type, Value};

impl<'t> Parser<'t> {
    pub(super) fn memory(&mut self) -> Parsed<Memory> {
        let at = self.next;
        let name = self.name()?;
        match self.memories.get(name) {
            Some(memory) => Ok(*memory),
            None => Err(self.error(at, "the name of a parameter or shared array")),
        }
    }

    /// A value and its type, which stays the same wherever the value is (wrongly) defined again.
    pub(super) fn define(&mut self) -> Parsed<Value> {
        let at = self.next;
        let value = self.value()?;
        self.mark(':')?;
        let spelled = self.next;
        let ty = match spelled.token {
            Token::Word(word) => type_of(word),
            _ => None,
        };
        let Some(ty) = ty else {
            return Err(self.error(spelled, "a type such as i32 or f16x4"));
        };
        self.advance();
        match self.types.insert(value.0, (ty, at)) {
            Some((before, _)) if before != ty => {
                Err(self.error(spelled, &format!("{before}, the type of the other definition of {value}")))
            }
            _ => Ok(value),
        }
    }

    pub(super) fn value(&mut self) -> Parsed<Value> {
        let at = self.next;
        if let Token::Value(digits) = at.token
            && let Ok(number) = digits.parse()
        {
            self.advance();
            return Ok(Value(number));
        }
        Err(self.error(at, "a value such as %0"))
    }

    pub(super) fn comma_value(&mut self) -> Parsed<Value> {
        self.mark(',')?;
        self.value()
    }

    /// An integer of the wanted Rust type.
    pub(super) fn int<T: TryFrom<i64>>(&mut self) -> Parsed<T> {
        let at = self.next;
        let number = match at.token {
            Token::Number(text) => match text.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with(['+', '-'])),
                None => text.parse().ok(),
            },
            _ => None,
        };
        match number.and_then(|number: i64| T::try_from(number).ok()) {
            Some(number) => {
                self.advance();
                Ok(number)
            }
            None => {
                let bits = 8 * size_of::<T>();
                let signs = if T::try_from(-1).is_ok() { "" } else { "unsigned " };
                Err(self.error(at, &format!("an {signs}integer of {bits} bits")))
            }
        }
    }

    pub(super) fn bracketed<T>(&mut self, mut each: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.mark('[')?;
        let mut items = Vec::new();
        if self.eat(']') {
            return Ok(items);
        }
        loop {
            items.push(each(self)?);
            if !self.more(']')? {
                return Ok(items);
            }
        }
    }

    /// After an item of a list: true past a comma, false past the mark that closes the list.
    pub(super) fn more(&mut self, close: char) -> Parsed<bool> {
        let at = self.next;
        if self.eat(',') {
            Ok(true)
        } else if self.eat(close) {
            Ok(false)
        } else {
            Err(self.error(at, &format!("`,` or `{close}`")))
        }
    }

    pub(super) fn name(&mut self) -> Parsed<&'t str> {
        self.any_word("a name")
    }

    pub(super) fn any_word(&mut self, expected: &str) -> Parsed<&'t str> {
        match self.next.token {
            Token::Word(word) => {
                self.advance();
                Ok(word)
            }
            _ => Err(self.error(self.next, expected)),
        }
    }

    pub(super) fn word(&mut self, word: &str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { Err(self.error(self.next, &format!("`{word}`"))) }
    }

    pub(super) fn mark(&mut self, mark: char) -> Parsed<()> {
        if self.eat(mark) { Ok(()) } else { Err(self.error(self.next, &format!("`{mark}`"))) }
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.next.token == Token::Word(word);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = self.next.token == Token::Mark(mark);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn advance(&mut self) {
        self.line = self.next.line;
        self.next = self.lexer.next();
    }

    pub(super) fn error(&self, at: Lexeme<'_>, expected: &str) -> ParseError {
        let short = |text: &str| text.chars().take(40).collect::<String>();
        let found = match at.token {
            Token::Word(word) => format!("`{}`", short(word)),
            Token::Value(digits) => format!("`%{}`", short(digits)),
            Token::Number(text) => format!("`{}`", short(text)),
            Token::Mark(mark) => format!("`{mark}`"),
            Token::Bad(character) => format!("{character:?}"),
            Token::End => "the end of the text".to_string(),
        };
        ParseError { line: at.line, column: self.lexer.column(at.at), found, expected: expected.to_string() }
    }
}

pub(super) fn scalar(word: &str) -> Option<Scalar> {
    Scalar::ALL.into_iter().find(|scalar| scalar.name() == word)
}

fn type_of(word: &str) -> Option<Type> {
    if let Some(scalar) = scalar(word) {
        return Some(scalar.into());
    }
    let (element, lanes) = word.rsplit_once('x')?;
    Some(Type::vector(scalar(element)?, lanes.parse().ok()?))
}
