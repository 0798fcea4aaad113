//! A reading position in the bytes of a file.
//!
//! Reads little-endian numbers and texts; makes errors that name the file, the place and what was being read. Always
//! holds: the position never leaves the bytes, and nothing is allocated before the bytes for it are known to exist.

use bitsmith_compiler::{Error, Result};
use std::fmt::Display;

/// Where reading stands.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`; `file` is what errors call them.
    pub fn new(bytes: &'a [u8], file: &'a str) -> Cursor<'a> {
        Cursor { bytes, at: 0, file }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize, what: &dyn Display) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..count) else {
            let (at, left) = (self.at, rest.len());
            return Err(self.fault(format!("{what}: the file ends too early: {count} bytes at {at}, {left} are left")));
        };
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes, as an array.
    pub fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// A 32-bit number.
    pub fn u32(&mut self, what: &dyn Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit number.
    pub fn u64(&mut self, what: &dyn Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A text: its length, then UTF-8.
    pub fn string(&mut self, what: &dyn Display) -> Result<String> {
        let length = self.u64(what)?;
        let Some(length) = usize::try_from(length).ok().filter(|&length| length <= self.left()) else {
            let left = self.left();
            return Err(self.fault(format!("{what}: a text says {length} bytes, {left} are left in the file")));
        };
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map_err(|error| {
            self.fault(format!("{what}: a text at byte {} is not UTF-8: {error}", self.at - length))
        })?;
        Ok(text.to_owned())
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The position.
    pub fn at(&self) -> usize {
        self.at
    }

    /// An error about this file.
    pub fn fault(&self, message: impl Display) -> Error {
        Error::invalid(format!("{}: {message}", self.file))
    }
}
