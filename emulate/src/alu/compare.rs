//! Comparisons: 32 lanes to one mask.

use super::real::{Brain, Half, Real};
use super::{Lanes, Slot, WARP};
use crate::ast::{Kind, Type};
use crate::numeric;

/// A comparison over lanes; `second` asks for the high half of packed operands.
pub(crate) type Compare = fn(&Lanes, &Lanes, bool) -> u32;

fn mask<T: Slot>(a: &Lanes, b: &Lanes, f: impl Fn(T, T) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..WARP {
        out |= u32::from(f(T::get(a[lane]), T::get(b[lane]))) << lane;
    }
    out
}

fn halves<T: Real>(a: &Lanes, b: &Lanes, high: bool, f: impl Fn(f64, f64) -> bool) -> u32 {
    let shift = if high { 16 } else { 0 };
    let mut out = 0;
    for lane in 0..WARP {
        let (x, y) = (T::get(a[lane] >> shift & 0xffff), T::get(b[lane] >> shift & 0xffff));
        out |= u32::from(f(x.value(), y.value())) << lane;
    }
    out
}

macro_rules! integers {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        Some(match ($ty.signed(), $ty.bits) {
            (false, 16) => |a, b, _| mask::<u16>(a, b, |$a, $b| $e),
            (true, 16) => |a, b, _| mask::<i16>(a, b, |$a, $b| $e),
            (false, 32) => |a, b, _| mask::<u32>(a, b, |$a, $b| $e),
            (true, 32) => |a, b, _| mask::<i32>(a, b, |$a, $b| $e),
            (false, 64) => |a, b, _| mask::<u64>(a, b, |$a, $b| $e),
            (true, 64) => |a, b, _| mask::<i64>(a, b, |$a, $b| $e),
            _ => return None,
        })
    };
}

macro_rules! floats {
    ($ty:expr, $ftz:expr, |$a:ident, $b:ident| $e:expr) => {
        Some(match ($ty.kind, $ty.bits, $ty.pair) {
            (Kind::Float, 32, false) if $ftz => |a, b, _| {
                mask::<f32>(a, b, |x, y| {
                    let ($a, $b) = (f64::from(numeric::flush(x)), f64::from(numeric::flush(y)));
                    $e
                })
            },
            (Kind::Float, 32, false) => |a, b, _| mask::<f32>(a, b, |$a, $b| $e),
            (Kind::Float, 64, _) => |a, b, _| mask::<f64>(a, b, |$a, $b| $e),
            (Kind::Float, 16, _) | (Kind::Float, 32, true) => |a, b, h| halves::<Half>(a, b, h, |$a, $b| $e),
            (Kind::Bfloat, _, _) => |a, b, h| halves::<Brain>(a, b, h, |$a, $b| $e),
            _ => return None,
        })
    };
}

/// The comparison of a name such as `lt`, `hs` or `neu` at a type.
pub(crate) fn select(name: &str, ty: Type, ftz: bool) -> Option<Compare> {
    if matches!(ty.kind, Kind::Float | Kind::Bfloat) {
        return match name {
            "eq" => floats!(ty, ftz, |a, b| a == b),
            "ne" => floats!(ty, ftz, |a, b| a != b && !a.is_nan() && !b.is_nan()),
            "lt" => floats!(ty, ftz, |a, b| a < b),
            "le" => floats!(ty, ftz, |a, b| a <= b),
            "gt" => floats!(ty, ftz, |a, b| a > b),
            "ge" => floats!(ty, ftz, |a, b| a >= b),
            "equ" => floats!(ty, ftz, |a, b| a == b || a.is_nan() || b.is_nan()),
            "neu" => floats!(ty, ftz, |a, b| a != b),
            "ltu" => floats!(ty, ftz, |a, b| a < b || a.is_nan() || b.is_nan()),
            "leu" => floats!(ty, ftz, |a, b| a <= b || a.is_nan() || b.is_nan()),
            "gtu" => floats!(ty, ftz, |a, b| a > b || a.is_nan() || b.is_nan()),
            "geu" => floats!(ty, ftz, |a, b| a >= b || a.is_nan() || b.is_nan()),
            "num" => floats!(ty, ftz, |a, b| !a.is_nan() && !b.is_nan()),
            "nan" => floats!(ty, ftz, |a, b| a.is_nan() || b.is_nan()),
            _ => None,
        };
    }
    let bits_only = ty.kind == Kind::Bits && !matches!(name, "eq" | "ne");
    let unsigned_name = matches!(name, "lo" | "ls" | "hi" | "hs");
    if ty.pair || bits_only || unsigned_name && ty.signed() {
        return None;
    }
    match name {
        "eq" => integers!(ty, |a, b| a == b),
        "ne" => integers!(ty, |a, b| a != b),
        "lt" | "lo" => integers!(ty, |a, b| a < b),
        "le" | "ls" => integers!(ty, |a, b| a <= b),
        "gt" | "hi" => integers!(ty, |a, b| a > b),
        "ge" | "hs" => integers!(ty, |a, b| a >= b),
        _ => None,
    }
}
