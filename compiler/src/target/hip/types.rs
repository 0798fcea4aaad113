//! How types and numbers are spelled in C++.

use crate::ir::{Scalar, Type};
use std::collections::BTreeSet;

/// The C++ name of an element: integers are unsigned, bools in a vector are bytes of 0 or -1.
pub(super) fn element(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::Bool => "bool",
        Scalar::I8 => "u8",
        Scalar::I16 => "u16",
        Scalar::I32 => "u32",
        Scalar::I64 => "u64",
        Scalar::F16
        | Scalar::Bf16
        | Scalar::F32
        | Scalar::E4m3fn
        | Scalar::E4m3fnuz
        | Scalar::E5m2
        | Scalar::E5m2fnuz
        | Scalar::E8m0 => scalar.name(),
    }
}

/// The signed integer of the same width.
pub(super) fn signed_element(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::I8 => "i8",
        Scalar::I16 => "i16",
        Scalar::I32 => "i32",
        Scalar::I64 => "i64",
        Scalar::Bool
        | Scalar::F16
        | Scalar::Bf16
        | Scalar::F32
        | Scalar::E4m3fn
        | Scalar::E4m3fnuz
        | Scalar::E5m2
        | Scalar::E5m2fnuz
        | Scalar::E8m0 => element(scalar),
    }
}

/// The vector types that a kernel names, with their elements.
#[derive(Debug, Default)]
pub(super) struct Vectors(BTreeSet<(&'static str, u8)>);

impl Vectors {
    /// The C++ name of a type.
    pub fn name(&mut self, ty: Type) -> String {
        self.of(element(ty.scalar), ty.lanes)
    }

    /// The C++ name of an integer type whose sign is read.
    pub fn signed(&mut self, ty: Type) -> String {
        self.of(signed_element(ty.scalar), ty.lanes)
    }

    fn of(&mut self, element: &'static str, lanes: u8) -> String {
        if lanes == 1 {
            return element.to_string();
        }
        self.0.insert((element, lanes));
        format!("{element}x{lanes}")
    }

    /// One `typedef` for each.
    pub fn declarations(&self) -> Vec<String> {
        let line = |&(element, lanes): &(&str, u8)| {
            let of = if element == "bool" { "i8" } else { element };
            format!("typedef {of} {element}x{lanes} __attribute__((ext_vector_type({lanes})));")
        };
        self.0.iter().map(line).collect()
    }
}

/// A number of an integer type, read without a sign.
pub(super) fn unsigned_literal(scalar: Scalar, bits: u64) -> String {
    let suffix = if scalar == Scalar::I64 { "ull" } else { "u" };
    let number = if bits < 4096 { format!("{bits}{suffix}") } else { format!("{bits:#x}{suffix}") };
    if scalar.bits() < 32 { format!("{}({number})", element(scalar)) } else { number }
}

/// A number of an integer type, read with its sign.
pub(super) fn signed_literal(scalar: Scalar, bits: u64) -> String {
    let shift = 64 - scalar.bits();
    let number = ((bits << shift) as i64) >> shift;
    match scalar {
        Scalar::I32 if number != i32::MIN as i64 => number.to_string(),
        Scalar::I64 if number != i64::MIN => format!("{number}ll"),
        Scalar::I32 | Scalar::I64 => format!("{}({})", signed_element(scalar), unsigned_literal(scalar, bits)),
        _ => format!("{}({number})", signed_element(scalar)),
    }
}

/// A number of a float type.
pub(super) fn float_literal(scalar: Scalar, bits: u64) -> String {
    let decimal = |number: f32| {
        let text = format!("{number:?}");
        // Rust writes 1e20 without a point; C++ takes it with the suffix all the same.
        format!("{text}f")
    };
    match scalar {
        Scalar::F32 => {
            let number = f32::from_bits(bits as u32);
            if number.is_finite() { decimal(number) } else { format!("bits_as<f32>({bits:#x}u)") }
        }
        Scalar::F16 => {
            let number = half::f16::from_bits(bits as u16).to_f32();
            if number.is_finite() {
                format!("f16({})", decimal(number))
            } else {
                format!("bits_as<f16>(u16({bits:#x}u))")
            }
        }
        Scalar::Bf16 | Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => {
            format!("{}({bits:#x}u)", scalar.name())
        }
        Scalar::Bool | Scalar::I8 | Scalar::I16 | Scalar::I32 | Scalar::I64 => unsigned_literal(scalar, bits),
    }
}
