//! The lexer of the text form: splits text into tokens, one at a time, and knows where each stands.
//!
//! Always holds: it never fails; what is no token becomes [`Token::Bad`], and the parser says what it wanted there.

/// A piece of the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'t> {
    /// A word: keyword, mnemonic, type or name.
    Word(&'t str),
    /// The digits after `%`.
    Value(&'t str),
    /// A number as it is spelled; the parser reads it for the type that it is to have.
    Number(&'t str),
    /// Punctuation.
    Mark(char),
    /// Nothing of the language.
    Bad(char),
    /// The end of the text.
    End,
}

/// A token and where it starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexeme<'t> {
    pub token: Token<'t>,
    /// Line, from 1.
    pub line: u32,
    /// Byte offset in the text.
    pub at: usize,
}

/// Reads tokens from the front of the text.
pub(super) struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: u32,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Lexer<'t> {
        Lexer { text, at: 0, line: 1 }
    }

    /// The next token, past white space and comments.
    pub fn next(&mut self) -> Lexeme<'t> {
        self.skip();
        let (line, at) = (self.line, self.at);
        let rest = &self.text[at..];
        let mut chars = rest.chars();
        let token = match chars.next() {
            None => Token::End,
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                Token::Word(self.take(rest, |byte| byte.is_ascii_alphanumeric() || byte == b'_'))
            }
            Some(first) if first.is_ascii_digit() => self.number(rest),
            Some('-') if chars.next().is_some_and(|c| c.is_ascii_digit()) => self.number(rest),
            Some('%') => {
                self.at += 1;
                Token::Value(self.take(&rest[1..], |byte| byte.is_ascii_digit()))
            }
            Some(mark) => {
                self.at += mark.len_utf8();
                if "@(){}[]:,=+.".contains(mark) { Token::Mark(mark) } else { Token::Bad(mark) }
            }
        };
        Lexeme { token, line, at }
    }

    /// Column of a byte offset, in characters from 1.
    pub fn column(&self, at: usize) -> u32 {
        let before = &self.text[..at];
        let line = before.rfind('\n').map_or(0, |end| end + 1);
        before[line..].chars().count() as u32 + 1
    }

    /// White space and comments, which end at the line's end.
    fn skip(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'\n' => self.line = self.line.saturating_add(1),
                b' ' | b'\t' | b'\r' => {}
                b'/' if bytes.get(self.at + 1) == Some(&b'/') => {
                    self.at = self.text[self.at..].find('\n').map_or(bytes.len(), |end| self.at + end);
                    continue;
                }
                _ => return,
            }
            self.at += 1;
        }
    }

    fn take(&mut self, rest: &'t str, accept: impl Fn(u8) -> bool) -> &'t str {
        let length = rest.bytes().take_while(|&byte| accept(byte)).count();
        self.at += length;
        &rest[..length]
    }

    /// Sign, digits, letters of `0x` and of the exponent, point; a sign also after a decimal exponent's `e`.
    fn number(&mut self, rest: &'t str) -> Token<'t> {
        let bytes = rest.as_bytes();
        let hexadecimal = rest.trim_start_matches('-').starts_with("0x");
        let mut length = 1;
        while let Some(&byte) = bytes.get(length) {
            let exponent = !hexadecimal && matches!(bytes[length - 1], b'e' | b'E');
            let sign = exponent && matches!(byte, b'+' | b'-');
            if !(byte.is_ascii_alphanumeric() || byte == b'.' || sign) {
                break;
            }
            length += 1;
        }
        self.at += length;
        Token::Number(&rest[..length])
    }
}
