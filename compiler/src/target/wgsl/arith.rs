//! Arithmetic on pieces, as WGSL expressions.

use super::text::{Lane, Text, cut, mask, signed, type_name, vector, width, words};
use crate::ir::{BinOp, CastOp, CmpOp, Scalar, UnOp};

/// `a op b` of one piece.
pub(super) fn bin(t: &mut Text, op: BinOp, scalar: Scalar, lanes: u8, a: &str, b: &str) -> String {
    let bits = width(scalar);
    let word = vector("u32", lanes);
    let number = |name: &str| signed(name, bits, lanes);
    let amount = || format!("({b} & {})", words(lanes, bits - 1));
    let back = |expression: String| cut(format!("bitcast<{word}>({expression})"), bits, lanes);
    if Lane::of(scalar) == Lane::Float {
        let symbol = match op {
            BinOp::Add => "+",
            BinOp::Sub => "-",
            BinOp::Mul => "*",
            BinOp::Div => "/",
            BinOp::Min => return extreme(t, true, lanes, a, b),
            BinOp::Max => return extreme(t, false, lanes, a, b),
            // Integers alone have these.
            BinOp::DivS
            | BinOp::RemS
            | BinOp::MinS
            | BinOp::MaxS
            | BinOp::And
            | BinOp::Or
            | BinOp::Xor
            | BinOp::Shl
            | BinOp::ShrU
            | BinOp::ShrS => "+",
        };
        return t.bind(format!("{a} {symbol} {b}"));
    }
    let bool_ = scalar == Scalar::Bool;
    let expression = match op {
        BinOp::Add => cut(format!("{a} + {b}"), bits, lanes),
        BinOp::Sub => cut(format!("{a} - {b}"), bits, lanes),
        BinOp::Mul => cut(format!("{a} * {b}"), bits, lanes),
        BinOp::And => format!("{a} & {b}"),
        BinOp::Or => format!("{a} | {b}"),
        BinOp::Xor if bool_ => format!("{a} != {b}"),
        BinOp::Xor => format!("{a} ^ {b}"),
        BinOp::Shl => cut(format!("{a} << {}", amount()), bits, lanes),
        BinOp::ShrU => format!("{a} >> {}", amount()),
        BinOp::ShrS => back(format!("{} >> {}", number(a), amount())),
        BinOp::DivS => back(format!("{} / {}", number(a), number(b))),
        BinOp::RemS => back(format!("{} % {}", number(a), number(b))),
        BinOp::MinS => back(format!("min({}, {})", number(a), number(b))),
        BinOp::MaxS => back(format!("max({}, {})", number(a), number(b))),
        // Floats alone have these.
        BinOp::Div | BinOp::Min | BinOp::Max => format!("{a} | {b}"),
    };
    t.bind(expression)
}

/// `minimum` or `maximum`: NaN if either is, and -0 below +0.
fn extreme(t: &mut Text, least: bool, lanes: u8, a: &str, b: &str) -> String {
    let (word, float) = (vector("u32", lanes), vector("f32", lanes));
    let (less, symbol) = if least { ("<", "|") } else { (">", "&") };
    let both = t.bind(format!("bitcast<{float}>(bitcast<{word}>({a}) {symbol} bitcast<{word}>({b}))"));
    // Of a NaN and a number, the sum is NaN.
    let rest = t.bind(format!("select({a} + {b}, {both}, {a} == {b})"));
    let rest = t.bind(format!("select({rest}, {b}, {b} {less} {a})"));
    t.bind(format!("select({rest}, {a}, {a} {less} {b})"))
}

/// `op a` of one piece.
pub(super) fn un(t: &mut Text, op: UnOp, scalar: Scalar, lanes: u8, a: &str) -> String {
    let bits = width(scalar);
    let float = Lane::of(scalar) == Lane::Float;
    let expression = match op {
        UnOp::Neg if float => format!("-{a}"),
        UnOp::Neg => cut(format!("{} - {a}", words(lanes, 0)), bits, lanes),
        UnOp::Not if scalar == Scalar::Bool => format!("!{a}"),
        UnOp::Not => cut(format!("~{a}"), bits, lanes),
        UnOp::Abs => format!("abs({a})"),
        UnOp::Sqrt => format!("sqrt({a})"),
        UnOp::Nearest => format!("round({a})"),
        UnOp::Floor => format!("floor({a})"),
        UnOp::Exp2 => format!("exp2({a})"),
        UnOp::Popcount => format!("countOneBits({a})"),
    };
    t.bind(expression)
}

/// A comparison of one piece.
pub(super) fn cmp(t: &mut Text, op: CmpOp, scalar: Scalar, lanes: u8, a: &str, b: &str) -> String {
    let bits = width(scalar);
    let number = |name: &str| signed(name, bits, lanes);
    let expression = match op {
        CmpOp::Eq => format!("{a} == {b}"),
        CmpOp::Ne => format!("{a} != {b}"),
        CmpOp::Lt | CmpOp::LtU => format!("{a} < {b}"),
        CmpOp::Le => format!("{a} <= {b}"),
        CmpOp::LtS => format!("{} < {}", number(a), number(b)),
        CmpOp::LeS => format!("{} <= {}", number(a), number(b)),
    };
    t.bind(expression)
}

/// A cast of one piece. Casts between floats are expanded before.
pub(super) fn cast(t: &mut Text, op: CastOp, from: Scalar, to: Scalar, lanes: u8, a: &str) -> String {
    let (from_bits, to_bits) = (width(from), width(to));
    let float = type_name(Lane::Float, lanes);
    let expression = match op {
        CastOp::Truncate => cut(a.to_string(), to_bits, lanes),
        CastOp::ExtendU => a.to_string(),
        CastOp::ExtendS => {
            let wide = format!("bitcast<{}>({})", vector("u32", lanes), signed(a, from_bits, lanes));
            cut(wide, to_bits, lanes)
        }
        CastOp::IntToFloatS => format!("{float}({})", signed(a, from_bits, lanes)),
        CastOp::IntToFloatU => format!("{float}({a})"),
        CastOp::FloatToIntS => return float_to_int(t, to_bits, lanes, a),
        CastOp::Float => a.to_string(),
    };
    t.bind(expression)
}

/// Saturates, NaN to 0: the conversion itself sees numbers in range alone.
fn float_to_int(t: &mut Text, bits: u32, lanes: u8, a: &str) -> String {
    let float = vector("f32", lanes);
    let half = 2f64.powi(bits as i32 - 1);
    let (low, high) = (format!("{float}(-{half:.1}f)"), format!("{float}({half:.1}f)"));
    let inside = t.bind(format!("select({float}(0.0f), {a}, ({a} >= {low}) & ({a} < {high}))"));
    let number = t.bind(format!("bitcast<{}>({}({inside}))", vector("u32", lanes), vector("i32", lanes)));
    let most = mask(bits) >> 1;
    let number = t.bind(format!("select({number}, {}, {a} < {low})", words(lanes, !most)));
    let number = t.bind(format!("select({number}, {}, {a} >= {high})", words(lanes, most)));
    t.bind(cut(number, bits, lanes))
}
