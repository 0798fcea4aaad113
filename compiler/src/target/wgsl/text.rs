//! WGSL text under construction: lines, names, and expressions on vectors of up to 4 lanes.
//!
//! Everything but bools and `f32` lies in `u32` lanes: integers of 8 and 16 bits and small floats as their bits, with
//! zeros above. Always holds: names are given in the order of the calls, so the same calls give the same text.

use crate::ir::Scalar;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a lane is in WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Bool,
    Word,
    Float,
}

impl Lane {
    /// How a scalar of the IR lies in a lane.
    pub fn of(scalar: Scalar) -> Lane {
        match scalar {
            Scalar::Bool => Lane::Bool,
            Scalar::F32 => Lane::Float,
            Scalar::I8
            | Scalar::I16
            | Scalar::I32
            | Scalar::I64
            | Scalar::F16
            | Scalar::Bf16
            | Scalar::E4m3fn
            | Scalar::E4m3fnuz
            | Scalar::E5m2
            | Scalar::E5m2fnuz
            | Scalar::E8m0 => Lane::Word,
        }
    }
}

/// The name of a type of so many lanes of a WGSL scalar.
pub(super) fn vector(scalar: &str, lanes: u8) -> String {
    if lanes == 1 { scalar.to_string() } else { format!("vec{lanes}<{scalar}>") }
}

/// The name of a type.
pub(super) fn type_name(lane: Lane, lanes: u8) -> String {
    let scalar = match lane {
        Lane::Bool => "bool",
        Lane::Word => "u32",
        Lane::Float => "f32",
    };
    vector(scalar, lanes)
}

/// The same word in every lane.
pub(super) fn words(lanes: u8, bits: u32) -> String {
    if lanes == 1 { format!("{bits}u") } else { format!("vec{lanes}<u32>({bits}u)") }
}

/// Width in bits that a scalar has in its lane; there are no wider ones than words.
pub(super) fn width(scalar: Scalar) -> u32 {
    scalar.bits().min(32)
}

/// The low bits of a word.
pub(super) fn mask(bits: u32) -> u32 {
    u32::MAX >> (32 - bits)
}

/// An expression on words cut to a width.
pub(super) fn cut(expression: String, bits: u32, lanes: u8) -> String {
    if bits == 32 { expression } else { format!("({expression}) & {}", words(lanes, mask(bits))) }
}

/// The signed number in a lane, as `i32`.
pub(super) fn signed(name: &str, bits: u32, lanes: u8) -> String {
    let int = vector("i32", lanes);
    if bits == 32 {
        return format!("bitcast<{int}>({name})");
    }
    let up = words(lanes, 32 - bits);
    format!("(bitcast<{int}>({name} << {up}) >> {up})")
}

/// The text.
pub(super) struct Text {
    pub out: String,
    pub indent: usize,
    next: u32,
    /// Words that vectors of 4 bytes were cut from.
    pub packed: BTreeMap<String, String>,
}

impl Text {
    pub fn new() -> Text {
        Text { out: String::new(), indent: 0, next: 0, packed: BTreeMap::new() }
    }

    /// Appends a line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        let indent = 4 * self.indent;
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{:indent$}{}", "", line.as_ref());
    }

    /// A new name.
    pub fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    /// Gives an expression a name.
    pub fn bind(&mut self, expression: impl AsRef<str>) -> String {
        let name = self.name("v");
        self.line(format!("let {name} = {};", expression.as_ref()));
        name
    }
}

/// One lane of a piece.
pub(super) fn lane(piece: &str, lanes: u8, index: u8) -> String {
    if lanes == 1 { piece.to_string() } else { format!("{piece}.{}", ["x", "y", "z", "w"][index as usize % 4]) }
}
