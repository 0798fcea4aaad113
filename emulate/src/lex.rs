//! PTX text into tokens, each with its line. Comments disappear; dotted names stay one token.

use crate::fault::LoadError;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// A name, a directive (`.reg`) or a whole opcode (`ld.global.u32`).
    Word(String),
    /// An integer.
    Integer(u64),
    /// Single-precision bits (`0f3F800000`).
    Single(u32),
    /// Double-precision bits (`0d…` or a decimal float).
    Double(u64),
    /// A quoted string.
    Text(String),
    /// One of `,;:[](){}<>=+-|!@*&~/%` and the like.
    Sign(char),
}

/// A token, its line from 1, and its byte range.
pub(crate) struct Placed {
    pub token: Token,
    pub line: u32,
    pub start: usize,
    pub end: usize,
}

fn word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn number(text: &str, line: u32) -> Result<Token, LoadError> {
    let bad = || LoadError::at(line, format!("`{text}` is not a number"));
    let lower = text.to_ascii_lowercase();
    let integer = lower.trim_end_matches('u');
    if let Some(hex) = lower.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).map(Token::Single).map_err(|_| bad());
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return u64::from_str_radix(hex, 16).map(Token::Double).map_err(|_| bad());
    }
    if let Some(hex) = integer.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map(Token::Integer).map_err(|_| bad());
    }
    if let Some(digits) = integer.strip_prefix("0b") {
        return u64::from_str_radix(digits, 2).map(Token::Integer).map_err(|_| bad());
    }
    if lower.contains(['.', 'e']) {
        return lower.parse::<f64>().map(|x| Token::Double(x.to_bits())).map_err(|_| bad());
    }
    if integer.len() > 1 && integer.starts_with('0') {
        return u64::from_str_radix(&integer[1..], 8).map(Token::Integer).map_err(|_| bad());
    }
    integer.parse::<u64>().map(Token::Integer).map_err(|_| bad())
}

/// Splits PTX text.
pub(crate) fn tokens(text: &str) -> Result<Vec<Placed>, LoadError> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let (mut at, mut line) = (0, 1u32);
    while at < bytes.len() {
        let c = bytes[at];
        let next = bytes.get(at + 1).copied().unwrap_or(0);
        let start = at;
        let token = match c {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            c if c.is_ascii_whitespace() || c == 0 => {
                at += 1;
                continue;
            }
            b'/' if next == b'/' => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            b'/' if next == b'*' => {
                let end = text[at + 2..].find("*/").ok_or_else(|| LoadError::at(line, "this comment does not end"))?;
                line += text[at..at + 2 + end].matches('\n').count() as u32;
                at += end + 4;
                continue;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or_else(|| LoadError::at(line, "this string does not end"))?;
                at += end + 2;
                Token::Text(text[start + 1..at - 1].to_string())
            }
            c if c.is_ascii_digit() => {
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                    // A decimal float may have a signed exponent.
                    let exponent = matches!(bytes[at], b'e' | b'E') && text[start..at].contains('.');
                    at += 1;
                    if exponent && at < bytes.len() && matches!(bytes[at], b'+' | b'-') {
                        at += 1;
                    }
                }
                number(&text[start..at], line)?
            }
            c if word_start(c) => {
                at += 1;
                while at < bytes.len() {
                    let c = bytes[at];
                    if word_start(c) || c.is_ascii_digit() {
                        at += 1;
                    } else if c == b':' && bytes.get(at + 1) == Some(&b':') {
                        at += 2;
                    } else {
                        break;
                    }
                }
                Token::Word(text[start..at].to_string())
            }
            c if c.is_ascii() => {
                at += 1;
                Token::Sign(c as char)
            }
            _ => return Err(LoadError::at(line, "PTX is ASCII outside comments and strings")),
        };
        line += if let Token::Text(t) = &token { t.matches('\n').count() as u32 } else { 0 };
        out.push(Placed { token, line, start, end: at });
    }
    Ok(out)
}
