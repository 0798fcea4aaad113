//! Bits: logic, shifts, fields, permutes, counts.

use super::integer::each;
use super::{Lane, Modifiers, Options, one, three, two};
use crate::ast::{Kind, Type};

fn funnel(a: u32, b: u32, c: u32, code: u32) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    let n = if code & 2 == 2 { c.min(32) } else { c & 31 };
    if code & 1 == 1 { (both >> n) as u32 } else { ((both << n) >> 32) as u32 }
}

fn table(a: u32, b: u32, c: u32, code: u32) -> u32 {
    let mut out = 0;
    for row in 0..8 {
        if code >> row & 1 == 1 {
            let pick = |x: u32, bit: u32| if row >> bit & 1 == 1 { x } else { !x };
            out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    out
}

/// Byte `at` of the eight in `b:a`.
fn byte(a: u32, b: u32, at: u32) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) >> (8 * (at & 7))) as u32 & 0xff
}

fn permute(a: u32, b: u32, c: u32, mode: u32) -> u32 {
    let s = c & 3;
    let mut out = 0;
    for i in 0..4u32 {
        let picked = match mode {
            0 => {
                let nibble = c >> (4 * i) & 0xf;
                let value = byte(a, b, nibble & 7);
                // The high bit of a selector spreads the byte's sign.
                if nibble & 8 != 0 { if value & 0x80 != 0 { 0xff } else { 0 } } else { value }
            }
            1 => byte(a, b, s + i),
            2 => byte(a, b, s.wrapping_sub(i)),
            3 => byte(a, b, s),
            4 => byte(a, b, s.max(i)),
            5 => byte(a, b, s.min(i)),
            _ => byte(a, b, i & 1 | (s & 1) << 1),
        };
        out |= picked << (8 * i);
    }
    out
}

fn extract(a: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let last = bits - 1;
    let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(last) & 1 };
    let mut out = 0;
    for i in 0..bits {
        let bit = if i < length && position + i <= last { a >> (position + i) & 1 } else { sign };
        out |= bit << i;
    }
    out
}

fn insert(a: u64, b: u64, position: u64, length: u64, bits: u32) -> u64 {
    let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
    let mut out = b;
    for i in 0..length.min(bits) {
        if position + i < bits {
            out = out & !(1 << (position + i)) | (a >> i & 1) << (position + i);
        }
    }
    out
}

/// Position of the top bit that differs from the sign.
fn find(x: u64, bits: u32, signed: bool, shift: bool) -> u32 {
    let low = if bits == 64 { x } else { x & 0xffff_ffff };
    let negative = signed && low >> (bits - 1) & 1 == 1;
    let mask = if bits == 64 { !0 } else { 0xffff_ffff };
    let y = if negative { !low & mask } else { low };
    if y == 0 {
        return !0;
    }
    let at = 63 - y.leading_zeros();
    if shift { bits - 1 - at } else { at }
}

fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return !0;
    }
    let set = |i: i32| mask >> i & 1 == 1;
    let base = base as i32;
    if offset == 0 {
        return if set(base) { base as u32 } else { !0 };
    }
    let (mut at, mut left) = (base, offset.unsigned_abs());
    while (0..32).contains(&at) {
        left -= u32::from(set(at));
        if left == 0 {
            return at as u32;
        }
        at += offset.signum();
    }
    !0
}

pub(super) fn select(name: &str, m: &mut Modifiers, o: &mut Options) -> Result<Option<(Lane, Type)>, String> {
    let known = [
        "and", "or", "xor", "not", "cnot", "shl", "shr", "shf", "lop3", "prmt", "bfe", "bfi", "brev", "popc", "clz",
        "bfind", "fns", "bmsk", "szext",
    ];
    if !known.contains(&name) {
        return Ok(None);
    }
    match name {
        "shf" => {
            let right = m.any(&["l", "r"]) == Some("r");
            let clamp = m.any(&["clamp", "wrap"]) == Some("clamp");
            o.code = u32::from(right) | u32::from(clamp) << 1;
        }
        "bfind" => o.code = u32::from(m.take("shiftamt")),
        "bmsk" | "szext" => o.code = u32::from(m.any(&["clamp", "wrap"]) == Some("clamp")),
        _ => {}
    }
    let ty = m.ty()?;
    if ty.kind == Kind::Predicate {
        return Err("predicates take another path".into());
    }
    if name == "prmt" {
        let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
        o.code = m.any(&modes).and_then(|found| modes.iter().position(|x| *x == found)).map_or(0, |at| at as u32 + 1);
    }
    let wide = ty.bits == 64;
    let lane = match name {
        "and" => two!(u64, u64, |a, b, _o| a & b),
        "or" => two!(u64, u64, |a, b, _o| a | b),
        "xor" => two!(u64, u64, |a, b, _o| a ^ b),
        "not" => each!(ty, one | a, _o | !a),
        "cnot" => each!(ty, one | a, _o | T::from(a == 0)),
        "shl" => match ty.bits {
            16 => two!(u16, u32, |a, n, _o| if n > 15 { 0u16 } else { a << n }),
            32 => two!(u32, u32, |a, n, _o| if n > 31 { 0u32 } else { a << n }),
            _ => two!(u64, u32, |a, n, _o| if n > 63 { 0u64 } else { a << n }),
        },
        "shr" => match (ty.signed(), ty.bits) {
            (false, 16) => two!(u16, u32, |a, n, _o| if n > 15 { 0u16 } else { a >> n }),
            (false, 32) => two!(u32, u32, |a, n, _o| if n > 31 { 0u32 } else { a >> n }),
            (false, _) => two!(u64, u32, |a, n, _o| if n > 63 { 0u64 } else { a >> n }),
            (true, 16) => two!(i16, u32, |a, n, _o| a >> n.min(15)),
            (true, 32) => two!(i32, u32, |a, n, _o| a >> n.min(31)),
            (true, _) => two!(i64, u32, |a, n, _o| a >> n.min(63)),
        },
        "shf" => three!(u32, u32, u32, |a, b, c, o| funnel(a, b, c, o.code)),
        "lop3" => three!(u32, u32, u32, |a, b, c, o| table(a, b, c, o.code)),
        "prmt" => match o.code {
            0 => three!(u32, u32, u32, |a, b, c, _o| permute(a, b, c, 0)),
            _ => three!(u32, u32, u32, |a, b, c, o| permute(a, b, c, o.code)),
        },
        "bfe" => match (ty.signed(), ty.bits) {
            (false, 32) => three!(u32, u32, u32, |a, b, c, _o| extract(u64::from(a), b, c, 32, false)),
            (true, 32) => three!(u32, u32, u32, |a, b, c, _o| extract(u64::from(a), b, c, 32, true)),
            (false, _) => three!(u64, u32, u32, |a, b, c, _o| extract(a, b, c, 64, false)),
            (true, _) => three!(u64, u32, u32, |a, b, c, _o| extract(a, b, c, 64, true)),
        },
        "bfi" if wide => Lane::Four(|d, [a, b, c, e], _o| {
            for lane in 0..super::WARP {
                d[lane] = insert(a[lane], b[lane], c[lane], e[lane], 64);
            }
        }),
        "bfi" => Lane::Four(|d, [a, b, c, e], _o| {
            for lane in 0..super::WARP {
                d[lane] = insert(a[lane], b[lane], c[lane], e[lane], 32) & 0xffff_ffff;
            }
        }),
        "brev" if wide => one!(u64, |a, _o| a.reverse_bits()),
        "brev" => one!(u32, |a, _o| a.reverse_bits()),
        "popc" if wide => one!(u64, |a, _o| a.count_ones()),
        "popc" => one!(u32, |a, _o| a.count_ones()),
        "clz" if wide => one!(u64, |a, _o| a.leading_zeros()),
        "clz" => one!(u32, |a, _o| a.leading_zeros()),
        "bfind" => match (ty.signed(), wide) {
            (false, false) => one!(u64, |a, o| find(a, 32, false, o.code == 1)),
            (true, false) => one!(u64, |a, o| find(a, 32, true, o.code == 1)),
            (false, true) => one!(u64, |a, o| find(a, 64, false, o.code == 1)),
            (true, true) => one!(u64, |a, o| find(a, 64, true, o.code == 1)),
        },
        "fns" => three!(u32, u32, i32, |a, b, c, _o| nth_set(a, b, c)),
        "bmsk" => two!(u32, u32, |a, b, o| {
            let (a, b) = if o.code == 1 { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
            ((((1u64 << b) - 1) << a) & 0xffff_ffff) as u32
        }),
        _ => {
            o.relu = ty.signed();
            two!(u32, u32, |a, b, o| {
                let n = if o.code == 1 { b.min(32) } else { b & 31 };
                extract(u64::from(a), 0, n, 32, o.relu) as u32
            })
        }
    };
    Ok(Some((lane, ty)))
}
