//! The table of named formats and of format families: the one list that a new format enters.
//!
//! Reads nothing; makes `Format::ALL`. Always holds: names are unique, lower case, and each parses to its own format.

use super::encode::Encoder;
use super::grammar::Family;
use super::{Format, gguf};

/// A format that has a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Its name: `q4_k`.
    pub name: &'static str,
    /// What the name stands for.
    pub format: Format,
    /// One line for lists and reports.
    pub summary: &'static str,
    /// How its own tool quantizes, where that is not round to nearest.
    pub encode: Option<Encoder>,
}

/// Families of names with parameters; the plain grammar is what remains.
pub(super) const FAMILIES: &[&Family] = &[];

impl Format {
    /// Every named format, and representatives of those that the grammar spells.
    pub const ALL: &'static [Named] = &[
        gguf::named::<gguf::Q4_0>(),
        gguf::named::<gguf::Q4_1>(),
        gguf::named::<gguf::Q5_0>(),
        gguf::named::<gguf::Q5_1>(),
        gguf::named::<gguf::Q8_0>(),
        gguf::named::<gguf::Q2K>(),
        gguf::named::<gguf::Q3K>(),
        gguf::named::<gguf::Q4K>(),
        gguf::named::<gguf::Q5K>(),
        gguf::named::<gguf::Q6K>(),
        gguf::named::<gguf::Iq4Nl>(),
        gguf::named::<gguf::Tq1_0>(),
        gguf::named::<gguf::Tq2_0>(),
        gguf::named::<gguf::Mxfp4>(),
    ];

    /// The named entry that this format equals.
    pub fn named(&self) -> Option<&'static Named> {
        Format::ALL.iter().find(|named| named.format == *self)
    }
}
