//! The text form: the coordinate bits of an address, low first, as in `b0 b1 k2 k0 k1 n0 n1 n2 n3`.

use super::{Bit, Dim, Layout};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self.bits().iter().map(Bit::to_string).collect();
        f.pad(&text.join(" "))
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({self})")
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Layout> {
        let bits = text.split_whitespace().map(str::parse).collect::<Result<Vec<Bit>>>()?;
        Layout::new(&bits)
    }
}

impl FromStr for Bit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bit> {
        let name = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let Some(dim) = Dim::ALL.into_iter().find(|dim| dim.name() == name) else {
            let known: Vec<&str> = Dim::ALL.iter().map(|dim| dim.name()).collect();
            return Err(Error::invalid(format!(
                "layout: `{text}` is no coordinate bit; a bit is a dimension ({}) and a number, as in `k2`",
                known.join(", ")
            )));
        };
        let digits = &text[name.len()..];
        // One spelling per bit: `k02` would be read, and written back otherwise.
        let index = if digits.len() > 1 && digits.starts_with('0') { None } else { digits.parse().ok() };
        let index = index.filter(|&index: &u8| (index as usize) < Layout::MAX_BITS).ok_or_else(|| {
            Error::invalid(format!("layout: `{text}`: the bit of `{name}` is a number below {}", Layout::MAX_BITS))
        })?;
        Ok(Bit::new(dim, index))
    }
}
