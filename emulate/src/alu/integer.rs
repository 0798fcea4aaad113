//! Integer arithmetic.

use super::{Lane, Modifiers, Options, Slot, three, two};
use crate::ast::{Kind, Type};

/// A binary function instantiated for each integer type; `T` is that type inside.
macro_rules! each {
    ($ty:expr, one |$a:ident, $o:ident| $e:expr) => { each!(@ $ty, one, [$a, $o], $e) };
    ($ty:expr, two |$a:ident, $b:ident, $o:ident| $e:expr) => { each!(@ $ty, two, [$a, $b, $o], $e) };
    ($ty:expr, three |$a:ident, $b:ident, $c:ident, $o:ident| $e:expr) => { each!(@ $ty, three, [$a, $b, $c, $o], $e) };
    (@ $ty:expr, $n:ident, $args:tt, $e:expr) => {
        match ($ty.signed(), $ty.bits) {
            (false, 16) => each!(% $n, u16, $args, $e),
            (true, 16) => each!(% $n, i16, $args, $e),
            (false, 32) => each!(% $n, u32, $args, $e),
            (true, 32) => each!(% $n, i32, $args, $e),
            (false, 64) => each!(% $n, u64, $args, $e),
            (true, 64) => each!(% $n, i64, $args, $e),
            _ => return Err(format!("no integer type of {} bits here", $ty.bits)),
        }
    };
    (% one, $t:ty, [$a:ident, $o:ident], $e:expr) => {{ #[allow(dead_code)] type T = $t; $crate::alu::one!($t, |$a, $o| $e) }};
    (% two, $t:ty, [$a:ident, $b:ident, $o:ident], $e:expr) => {{ #[allow(dead_code)] type T = $t; two!($t, $t, |$a, $b, $o| $e) }};
    (% three, $t:ty, [$a:ident, $b:ident, $c:ident, $o:ident], $e:expr) => {{ #[allow(dead_code)] type T = $t; three!($t, $t, $t, |$a, $b, $c, $o| $e) }};
}
pub(super) use each;

/// Products of twice the width.
trait Wide: Slot {
    fn high(self, other: Self) -> Self;
    fn wide(self, other: Self) -> u64;
}

macro_rules! wide {
    ($($t:ty, $w:ty);*) => { $(impl Wide for $t {
        fn high(self, other: Self) -> Self { ((self as $w).wrapping_mul(other as $w) >> <$t>::BITS) as $t }
        fn wide(self, other: Self) -> u64 { (self as $w).wrapping_mul(other as $w) as u64 }
    })* };
}
wide!(u16, u32; i16, i32; u32, u64; i32, i64; u64, u128; i64, i128);

/// Two 16-bit functions side by side.
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

fn pair(name: &str, ty: Type, o: &Options) -> Result<Lane, String> {
    Ok(match (name, ty.signed(), o.relu) {
        ("add", _, false) => two!(u32, u32, |a, b, _o| halves(a, b, u16::wrapping_add)),
        ("min", false, false) => two!(u32, u32, |a, b, _o| halves(a, b, u16::min)),
        ("max", false, false) => two!(u32, u32, |a, b, _o| halves(a, b, u16::max)),
        ("min", true, _) => two!(u32, u32, |a, b, o| halves(a, b, |a, b| {
            let least = (a as i16).min(b as i16);
            (if o.relu { least.max(0) } else { least }) as u16
        })),
        ("max", true, _) => two!(u32, u32, |a, b, o| halves(a, b, |a, b| {
            let most = (a as i16).max(b as i16);
            (if o.relu { most.max(0) } else { most }) as u16
        })),
        _ => return Err(format!("`{name}` has no packed 16-bit form here")),
    })
}

fn low24(x: u32, signed: bool) -> i64 {
    if signed { i64::from((x << 8) as i32 >> 8) } else { i64::from(x & 0xff_ffff) }
}

fn product24(a: u32, b: u32, code: u32) -> u32 {
    let product = low24(a, code & 1 == 1).wrapping_mul(low24(b, code & 1 == 1));
    if code & 2 == 2 { (product >> 16) as u32 } else { product as u32 }
}

fn saturate(x: i64) -> i32 {
    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

pub(super) fn select(name: &str, ty: Type, modifiers: &mut Modifiers, o: &mut Options) -> Result<Lane, String> {
    if ty.kind == Kind::Bits || ty.kind == Kind::Predicate {
        return Err(format!("`{name}` on untyped bits"));
    }
    if ty.pair {
        return pair(name, ty, o);
    }
    if o.relu && !(matches!(name, "min" | "max") && ty.signed() && ty.bits == 32) {
        return Err("`.relu` is not known here".into());
    }
    let part =
        if matches!(name, "mul" | "mad" | "mul24" | "mad24") { modifiers.any(&["lo", "hi", "wide"]) } else { None };
    if o.sat {
        return Ok(match (name, part, ty.signed() && ty.bits == 32) {
            ("add", _, true) => two!(i32, i32, |a, b, _o| a.saturating_add(b)),
            ("sub", _, true) => two!(i32, i32, |a, b, _o| a.saturating_sub(b)),
            ("mad", Some("hi"), true) => {
                three!(i32, i32, i32, |a, b, c, _o| saturate(i64::from(a.high(b)) + i64::from(c)))
            }
            _ => return Err("`.sat` is not known here".into()),
        });
    }
    Ok(match (name, part) {
        ("add", None) => each!(ty, two | a, b, _o | a.wrapping_add(b)),
        ("sub", None) => each!(ty, two | a, b, _o | a.wrapping_sub(b)),
        ("mul", Some("lo")) => each!(ty, two | a, b, _o | a.wrapping_mul(b)),
        ("mul", Some("hi")) => each!(ty, two | a, b, _o | a.high(b)),
        ("mul", Some("wide")) if ty.bits < 64 => each!(ty, two | a, b, _o | a.wide(b)),
        ("mad", Some("lo")) => each!(ty, three | a, b, c, _o | a.wrapping_mul(b).wrapping_add(c)),
        ("mad", Some("hi")) => each!(ty, three | a, b, c, _o | a.high(b).wrapping_add(c)),
        ("mad", Some("wide")) => match (ty.signed(), ty.bits) {
            (false, 16) => three!(u16, u16, u32, |a, b, c, _o| (a.wide(b) as u32).wrapping_add(c)),
            (true, 16) => three!(i16, i16, u32, |a, b, c, _o| (a.wide(b) as u32).wrapping_add(c)),
            (false, 32) => three!(u32, u32, u64, |a, b, c, _o| a.wide(b).wrapping_add(c)),
            (true, 32) => three!(i32, i32, u64, |a, b, c, _o| a.wide(b).wrapping_add(c)),
            _ => return Err("`.wide` takes 16- and 32-bit operands".into()),
        },
        ("mul24" | "mad24", Some("lo" | "hi")) if ty.bits == 32 => {
            o.code = u32::from(ty.signed()) | u32::from(part == Some("hi")) << 1;
            if name == "mul24" {
                two!(u32, u32, |a, b, o| product24(a, b, o.code))
            } else {
                three!(u32, u32, u32, |a, b, c, o| product24(a, b, o.code).wrapping_add(c))
            }
        }
        ("sad", None) => each!(ty, three | a, b, c, _o | c.wrapping_add(a.abs_diff(b) as T)),
        // What hardware gives for a zero divisor is unspecified; all ones is what it does.
        ("div", None) => each!(ty, two | a, b, _o | if b == 0 { !0 } else { a.wrapping_div(b) }),
        ("rem", None) => each!(ty, two | a, b, _o | if b == 0 { !0 } else { a.wrapping_rem(b) }),
        ("min", None) if o.relu => two!(i32, i32, |a, b, _o| a.min(b).max(0)),
        ("max", None) if o.relu => two!(i32, i32, |a, b, _o| a.max(b).max(0)),
        ("min", None) => each!(ty, two | a, b, _o | a.min(b)),
        ("max", None) => each!(ty, two | a, b, _o | a.max(b)),
        ("abs", None) if ty.signed() => each!(ty, one | a, _o | (a as i64).wrapping_abs() as T),
        ("neg", None) if ty.signed() => each!(ty, one | a, _o | a.wrapping_neg()),
        _ => return Err(format!("`{name}` of this type is not known to this machine")),
    })
}

fn byte(x: u32, at: u32, signed: bool) -> i64 {
    let byte = (x >> (8 * at)) as u8;
    if signed { i64::from(byte as i8) } else { i64::from(byte) }
}

fn half(x: u32, at: u32, signed: bool) -> i64 {
    let half = (x >> (16 * at)) as u16;
    if signed { i64::from(half as i16) } else { i64::from(half) }
}

fn dot4<const A: bool, const B: bool>(a: u32, b: u32, c: u32) -> u32 {
    (0..4).fold(c, |sum, at| sum.wrapping_add((byte(a, at, A) * byte(b, at, B)) as u32))
}

fn dot2<const A: bool, const B: bool>(a: u32, b: u32, c: u32, high: u32) -> u32 {
    (0..2).fold(c, |sum, at| sum.wrapping_add((half(a, at, A) * byte(b, at + 2 * high, B)) as u32))
}

/// `dp4a` and `dp2a`; their two types are the operands'.
pub(super) fn dot(name: &str, modifiers: &mut Modifiers) -> Result<(Lane, Type), String> {
    let part = modifiers.any(&["lo", "hi"]);
    let (a, b) = (modifiers.ty()?, modifiers.ty()?);
    let lane = match (name, part, a.signed(), b.signed()) {
        ("dp4a", None, false, false) => three!(u32, u32, u32, |a, b, c, _o| dot4::<false, false>(a, b, c)),
        ("dp4a", None, false, true) => three!(u32, u32, u32, |a, b, c, _o| dot4::<false, true>(a, b, c)),
        ("dp4a", None, true, false) => three!(u32, u32, u32, |a, b, c, _o| dot4::<true, false>(a, b, c)),
        ("dp4a", None, true, true) => three!(u32, u32, u32, |a, b, c, _o| dot4::<true, true>(a, b, c)),
        ("dp2a", Some("lo"), false, false) => three!(u32, u32, u32, |a, b, c, _o| dot2::<false, false>(a, b, c, 0)),
        ("dp2a", Some("lo"), false, true) => three!(u32, u32, u32, |a, b, c, _o| dot2::<false, true>(a, b, c, 0)),
        ("dp2a", Some("lo"), true, false) => three!(u32, u32, u32, |a, b, c, _o| dot2::<true, false>(a, b, c, 0)),
        ("dp2a", Some("lo"), true, true) => three!(u32, u32, u32, |a, b, c, _o| dot2::<true, true>(a, b, c, 0)),
        ("dp2a", Some("hi"), false, false) => three!(u32, u32, u32, |a, b, c, _o| dot2::<false, false>(a, b, c, 1)),
        ("dp2a", Some("hi"), false, true) => three!(u32, u32, u32, |a, b, c, _o| dot2::<false, true>(a, b, c, 1)),
        ("dp2a", Some("hi"), true, false) => three!(u32, u32, u32, |a, b, c, _o| dot2::<true, false>(a, b, c, 1)),
        ("dp2a", Some("hi"), true, true) => three!(u32, u32, u32, |a, b, c, _o| dot2::<true, true>(a, b, c, 1)),
        _ => return Err(format!("`{name}` of this form is not known to this machine")),
    };
    Ok((lane, a))
}
