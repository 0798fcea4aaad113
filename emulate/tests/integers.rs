//! Integer and bit instructions against arithmetic in `i128`, bit by bit where the ISA says it bit by bit.

use crate::common;

type Expect = fn(u64, u64, u64) -> u64;

fn s32(x: u64) -> i128 {
    i128::from(x as u32 as i32)
}
fn u32_(x: u64) -> i128 {
    i128::from(x as u32)
}
fn s64(x: u64) -> i128 {
    i128::from(x as i64)
}
fn u64_(x: u64) -> i128 {
    i128::from(x)
}
fn s16(x: u64) -> i128 {
    i128::from(x as u16 as i16)
}
fn u16_(x: u64) -> i128 {
    i128::from(x as u16)
}
fn low(x: i128, bits: u32) -> u64 {
    (x as u128 & ((1u128 << bits) - 1)) as u64
}
/// Two 16-bit halves.
fn both(a: u64, b: u64, f: fn(i128, i128) -> i128, value: fn(u64) -> i128) -> u64 {
    low(f(value(a), value(b)), 16) | low(f(value(a >> 16), value(b >> 16)), 16) << 16
}
fn bytes(x: u64, signed: bool) -> Vec<i128> {
    let raw = (x as u32).to_le_bytes();
    raw.iter().map(|b| if signed { i128::from(*b as i8) } else { i128::from(*b) }).collect()
}
fn dot(a: u64, b: u64, c: u64, sa: bool, sb: bool) -> u64 {
    let sum: i128 = bytes(a, sa).iter().zip(bytes(b, sb)).map(|(x, y)| x * y).sum();
    low(sum + u32_(c), 32)
}
fn dot2(a: u64, b: u64, c: u64, high: usize) -> u64 {
    let b = bytes(b, true);
    low(s16(a) * b[2 * high] + s16(a >> 16) * b[2 * high + 1] + u32_(c), 32)
}
fn lop(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..32)
        .map(|i| {
            let row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
            (table >> row & 1) << i
        })
        .sum()
}
/// Bytes of b:a by their number, from a string of selectors.
fn bytes_at(a: u64, b: u64, selectors: [u64; 4]) -> u64 {
    let all = (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
    (0..4).map(|i| (all >> (8 * selectors[i]) & 0xff) << (8 * i)).sum()
}
fn field(x: u64, at: u64, len: u64, bits: u64, signed: bool) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    let value = if bits == 32 { x & 0xffff_ffff } else { x };
    let sign = if signed && len > 0 { value >> (at + len - 1).min(bits - 1) & 1 } else { 0 };
    (0..bits)
        .map(|i| {
            let bit = if i < len && at + i < bits { value >> (at + i) & 1 } else { sign };
            bit << i
        })
        .sum()
}

const CASES: &[(&str, Expect)] = &[
    ("add.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a) + s32(b), 32)),
    ("add.u16 %h0, %h1, %h2;", |a, b, _| low(u16_(a) + u16_(b), 16)),
    ("add.s64 %q0, %q1, %q2;", |a, b, _| low(s64(a) + s64(b), 64)),
    ("add.sat.s32 %r0, %r1, %r2;", |a, b, _| low((s32(a) + s32(b)).clamp(-(1 << 31), (1 << 31) - 1), 32)),
    ("sub.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a) - s32(b), 32)),
    ("sub.u64 %q0, %q1, %q2;", |a, b, _| low(u64_(a) - u64_(b), 64)),
    ("sub.sat.s32 %r0, %r1, %r2;", |a, b, _| low((s32(a) - s32(b)).clamp(-(1 << 31), (1 << 31) - 1), 32)),
    ("mul.lo.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a) * s32(b), 32)),
    ("mul.lo.u16 %h0, %h1, %h2;", |a, b, _| low(u16_(a) * u16_(b), 16)),
    ("mul.lo.u64 %q0, %q1, %q2;", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.s32 %r0, %r1, %r2;", |a, b, _| low((s32(a) * s32(b)) >> 32, 32)),
    ("mul.hi.u32 %r0, %r1, %r2;", |a, b, _| low((u32_(a) * u32_(b)) >> 32, 32)),
    ("mul.hi.s64 %q0, %q1, %q2;", |a, b, _| low((s64(a) * s64(b)) >> 64, 64)),
    ("mul.hi.u64 %q0, %q1, %q2;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    ("mul.wide.s32 %q0, %r1, %r2;", |a, b, _| low(s32(a) * s32(b), 64)),
    ("mul.wide.u16 %r0, %h1, %h2;", |a, b, _| low(u16_(a) * u16_(b), 32)),
    ("mul.wide.s16 %r0, %h1, %h2;", |a, b, _| low(s16(a) * s16(b), 32)),
    ("mad.lo.s32 %r0, %r1, %r2, %r3;", |a, b, c| low(s32(a) * s32(b) + s32(c), 32)),
    ("mad.hi.u32 %r0, %r1, %r2, %r3;", |a, b, c| low(((u32_(a) * u32_(b)) >> 32) + u32_(c), 32)),
    ("mad.wide.u32 %q0, %r1, %r2, %q3;", |a, b, c| low(u32_(a) * u32_(b) + u64_(c), 64)),
    ("mad.wide.s16 %r0, %h1, %h2, %r3;", |a, b, c| low(s16(a) * s16(b) + s32(c), 32)),
    ("mad.hi.sat.s32 %r0, %r1, %r2, %r3;", |a, b, c| {
        low((((s32(a) * s32(b)) >> 32) + s32(c)).clamp(-(1 << 31), (1 << 31) - 1), 32)
    }),
    ("mul24.lo.u32 %r0, %r1, %r2;", |a, b, _| low((u32_(a) & 0xff_ffff) * (u32_(b) & 0xff_ffff), 32)),
    ("mul24.hi.u32 %r0, %r1, %r2;", |a, b, _| low(((u32_(a) & 0xff_ffff) * (u32_(b) & 0xff_ffff)) >> 16, 32)),
    ("mul24.lo.s32 %r0, %r1, %r2;", |a, b, _| low(((s32(a) << 104) >> 104) * ((s32(b) << 104) >> 104), 32)),
    ("mad24.lo.u32 %r0, %r1, %r2, %r3;", |a, b, c| low((u32_(a) & 0xff_ffff) * (u32_(b) & 0xff_ffff) + u32_(c), 32)),
    ("sad.s32 %r0, %r1, %r2, %r3;", |a, b, c| low((s32(a) - s32(b)).abs() + s32(c), 32)),
    ("sad.u16 %h0, %h1, %h2, %h3;", |a, b, c| low((u16_(a) - u16_(b)).abs() + u16_(c), 16)),
    ("div.s32 %r0, %r1, %r2;", |a, b, _| if b as u32 == 0 { 0xffff_ffff } else { low(s32(a) / s32(b), 32) }),
    ("div.u64 %q0, %q1, %q2;", |a, b, _| a.checked_div(b).unwrap_or(!0)),
    ("rem.s32 %r0, %r1, %r2;", |a, b, _| if b as u32 == 0 { 0xffff_ffff } else { low(s32(a) % s32(b), 32) }),
    ("rem.u16 %h0, %h1, %h2;", |a, b, _| if b as u16 == 0 { 0xffff } else { low(u16_(a) % u16_(b), 16) }),
    ("abs.s32 %r0, %r1;", |a, _, _| low(s32(a).abs(), 32)),
    ("abs.s16 %h0, %h1;", |a, _, _| low(s16(a).abs(), 16)),
    ("abs.s64 %q0, %q1;", |a, _, _| low(s64(a).abs(), 64)),
    ("neg.s32 %r0, %r1;", |a, _, _| low(-s32(a), 32)),
    ("neg.s64 %q0, %q1;", |a, _, _| low(-s64(a), 64)),
    ("min.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a).min(s32(b)), 32)),
    ("min.u32 %r0, %r1, %r2;", |a, b, _| low(u32_(a).min(u32_(b)), 32)),
    ("max.s64 %q0, %q1, %q2;", |a, b, _| low(s64(a).max(s64(b)), 64)),
    ("max.u16 %h0, %h1, %h2;", |a, b, _| low(u16_(a).max(u16_(b)), 16)),
    ("and.b32 %r0, %r1, %r2;", |a, b, _| a & b & 0xffff_ffff),
    ("or.b64 %q0, %q1, %q2;", |a, b, _| a | b),
    ("xor.b16 %h0, %h1, %h2;", |a, b, _| (a ^ b) & 0xffff),
    ("not.b32 %r0, %r1;", |a, _, _| !a & 0xffff_ffff),
    ("cnot.b32 %r0, %r1;", |a, _, _| u64::from(a as u32 == 0)),
    ("shl.b32 %r0, %r1, %r2;", |a, b, _| if b as u32 > 31 { 0 } else { a << (b as u32) & 0xffff_ffff }),
    ("shl.b64 %q0, %q1, %r2;", |a, b, _| if b as u32 > 63 { 0 } else { a << (b as u32) }),
    ("shl.b16 %h0, %h1, %r2;", |a, b, _| if b as u32 > 15 { 0 } else { a << (b as u32) & 0xffff }),
    ("shr.u32 %r0, %r1, %r2;", |a, b, _| if b as u32 > 31 { 0 } else { (a & 0xffff_ffff) >> (b as u32) }),
    ("shr.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a) >> (b as u32).min(31), 32)),
    ("shr.s64 %q0, %q1, %r2;", |a, b, _| low(s64(a) >> (b as u32).min(63), 64)),
    ("shr.s16 %h0, %h1, %r2;", |a, b, _| low(s16(a) >> (b as u32).min(15), 16)),
    ("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let n = c & 31;
        if n == 0 { b & 0xffff_ffff } else { (b << n | (a & 0xffff_ffff) >> (32 - n)) & 0xffff_ffff }
    }),
    ("shf.r.wrap.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let n = c & 31;
        if n == 0 { a & 0xffff_ffff } else { (b << (32 - n) | (a & 0xffff_ffff) >> n) & 0xffff_ffff }
    }),
    ("shf.l.clamp.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let n = (c & 0xffff_ffff).min(32);
        if n == 0 {
            b & 0xffff_ffff
        } else if n == 32 {
            a & 0xffff_ffff
        } else {
            (b << n | (a & 0xffff_ffff) >> (32 - n)) & 0xffff_ffff
        }
    }),
    ("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let n = (c & 0xffff_ffff).min(32);
        if n == 0 {
            a & 0xffff_ffff
        } else if n == 32 {
            b & 0xffff_ffff
        } else {
            (b << (32 - n) | (a & 0xffff_ffff) >> n) & 0xffff_ffff
        }
    }),
    ("lop3.b32 %r0, %r1, %r2, %r3, 0xEA;", |a, b, c| lop(a, b, c, 0xea)),
    ("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", |a, b, c| (a ^ b ^ c) & 0xffff_ffff),
    ("lop3.b32 %r0, %r1, %r2, %r3, 0xCA;", |a, b, c| (a & b | !a & c) & 0xffff_ffff),
    ("prmt.b32 %r0, %r1, %r2, 0x5410;", |a, b, _| bytes_at(a, b, [0, 1, 4, 5])),
    ("prmt.b32 %r0, %r1, %r2, 0x7632;", |a, b, _| bytes_at(a, b, [2, 3, 6, 7])),
    ("prmt.b32 %r0, %r1, %r2, 0x0189;", |a, b, _| {
        let sign = |x: u64| if x & 0x80 != 0 { 0xff } else { 0 };
        let byte = |i: u64| bytes_at(a, b, [i, i, i, i]) & 0xff;
        sign(byte(1)) | sign(byte(0)) << 8 | byte(1) << 16 | byte(0) << 24
    }),
    ("prmt.b32.f4e %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]][c as usize & 3])
    }),
    ("prmt.b32.b4e %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]][c as usize & 3])
    }),
    ("prmt.b32.rc8 %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]][c as usize & 3])
    }),
    ("prmt.b32.ecl %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]][c as usize & 3])
    }),
    ("prmt.b32.ecr %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]][c as usize & 3])
    }),
    ("prmt.b32.rc16 %r0, %r1, %r2, %r3;", |a, b, c| {
        bytes_at(a, b, [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]][c as usize & 3])
    }),
    ("bfe.u32 %r0, %r1, %r2, %r3;", |a, b, c| field(a, b, c, 32, false)),
    ("bfe.s32 %r0, %r1, %r2, %r3;", |a, b, c| field(a, b, c, 32, true)),
    ("bfe.u64 %q0, %q1, %r2, %r3;", |a, b, c| field(a, b, c, 64, false)),
    ("bfe.s64 %q0, %q1, %r2, %r3;", |a, b, c| field(a, b, c, 64, true)),
    ("bfi.b32 %r0, %r1, %r2, %r3, 5;", |a, b, c| {
        let at = c & 0xff;
        let mask = if at > 31 { 0 } else { 0x1f << at & 0xffff_ffff };
        b & 0xffff_ffff & !mask | if at > 31 { 0 } else { (a << at) & mask }
    }),
    ("brev.b32 %r0, %r1;", |a, _, _| (0..32).map(|i| (a >> i & 1) << (31 - i)).sum()),
    ("brev.b64 %q0, %q1;", |a, _, _| (0..64).map(|i| (a >> i & 1) << (63 - i)).sum()),
    ("popc.b32 %r0, %r1;", |a, _, _| (0..32).map(|i| a >> i & 1).sum()),
    ("popc.b64 %r0, %q1;", |a, _, _| (0..64).map(|i| a >> i & 1).sum()),
    ("clz.b32 %r0, %r1;", |a, _, _| (0..32).rev().find(|i| a >> i & 1 == 1).map_or(32, |i| 31 - i)),
    ("clz.b64 %r0, %q1;", |a, _, _| (0..64).rev().find(|i| a >> i & 1 == 1).map_or(64, |i| 63 - i)),
    ("bfind.u32 %r0, %r1;", |a, _, _| (0..32).rev().find(|i| a >> i & 1 == 1).unwrap_or(0xffff_ffff)),
    ("bfind.s32 %r0, %r1;", |a, _, _| {
        let sign = a >> 31 & 1;
        (0..32).rev().find(|i| a >> i & 1 != sign).unwrap_or(0xffff_ffff)
    }),
    ("bfind.shiftamt.u32 %r0, %r1;", |a, _, _| (0..32).rev().find(|i| a >> i & 1 == 1).map_or(0xffff_ffff, |i| 31 - i)),
    ("bfind.u64 %r0, %q1;", |a, _, _| (0..64).rev().find(|i| a >> i & 1 == 1).unwrap_or(0xffff_ffff)),
    ("dp4a.s32.s32 %r0, %r1, %r2, %r3;", |a, b, c| dot(a, b, c, true, true)),
    ("dp4a.u32.s32 %r0, %r1, %r2, %r3;", |a, b, c| dot(a, b, c, false, true)),
    ("dp4a.u32.u32 %r0, %r1, %r2, %r3;", |a, b, c| dot(a, b, c, false, false)),
    ("dp2a.lo.s32.s32 %r0, %r1, %r2, %r3;", |a, b, c| dot2(a, b, c, 0)),
    ("dp2a.hi.s32.s32 %r0, %r1, %r2, %r3;", |a, b, c| dot2(a, b, c, 1)),
    ("{ add.cc.u32 %r4, %r1, %r2; addc.u32 %r0, %r3, 0; }", |a, b, c| low(u32_(c) + ((u32_(a) + u32_(b)) >> 32), 32)),
    ("{ sub.cc.u32 %r4, %r1, %r2; subc.u32 %r0, %r3, 0; }", |a, b, c| low(u32_(c) - i128::from(u32_(a) < u32_(b)), 32)),
    ("{ mad.lo.cc.u32 %r4, %r1, %r2, %r3; madc.hi.u32 %r0, %r1, %r2, 7; }", |a, b, c| {
        low((((u32_(a) * u32_(b)) >> 32) + 7) + ((((u32_(a) * u32_(b)) & 0xffff_ffff) + u32_(c)) >> 32), 32)
    }),
    (
        "{ setp.lt.s32 %p0, %r1, %r2; selp.b32 %r0, %r3, 5, %p0; }",
        |a, b, c| if s32(a) < s32(b) { c & 0xffff_ffff } else { 5 },
    ),
    ("{ setp.hs.u32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(a as u32 >= b as u32)),
    ("{ setp.ne.s64 %p0|%p1, %q1, %q2; selp.b32 %r0, 2, 1, %p1; }", |a, b, _| if a == b { 2 } else { 1 }),
    ("{ setp.gt.u16 %p0, %h1, %h2; setp.eq.and.s32 %p1, %r3, %r1, %p0; selp.b32 %r0, 9, 4, !%p1; }", |a, b, c| {
        if a as u16 > b as u16 && c as u32 == a as u32 { 4 } else { 9 }
    }),
    ("set.lt.u32.s32 %r0, %r1, %r2;", |a, b, _| if s32(a) < s32(b) { 0xffff_ffff } else { 0 }),
    ("set.ge.f32.u32 %r0, %r1, %r2;", |a, b, _| if a as u32 >= b as u32 { 0x3f80_0000 } else { 0 }),
    ("slct.s32.s32 %r0, %r1, %r2, %r3;", |a, b, c| if s32(c) >= 0 { a & 0xffff_ffff } else { b & 0xffff_ffff }),
    ("{ mov.b32 {%h4, %h5}, %r1; mov.b32 %r0, {%h5, %h4}; }", |a, _, _| (a & 0xffff) << 16 | a >> 16 & 0xffff),
    ("{ mov.b64 {%r4, %r5}, %q1; mov.b64 %q0, {%r5, %r4}; }", |a, _, _| a.rotate_left(32)),
    ("cvt.s32.s16 %r0, %h1;", |a, _, _| low(s16(a), 32)),
    ("cvt.u32.u8 %r0, %r1;", |a, _, _| a & 0xff),
    ("cvt.s32.s8 %r0, %r1;", |a, _, _| i64::from(a as i8) as u32 as u64),
    ("cvt.s64.s32 %q0, %r1;", |a, _, _| low(s32(a), 64)),
    ("cvt.sat.s8.s32 %r0, %r1;", |a, _, _| low(s32(a).clamp(-128, 127), 32)),
    ("cvt.sat.u8.s32 %r0, %r1;", |a, _, _| low(s32(a).clamp(0, 255), 32)),
    ("cvt.sat.u32.s64 %r0, %q1;", |a, _, _| low(s64(a).clamp(0, (1 << 32) - 1), 32)),
];

const HOPPER: &[(&str, Expect)] = &[
    ("add.u16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, |a, b| a + b, u16_)),
    ("min.s16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, i128::min, s16)),
    ("max.u16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, i128::max, u16_)),
    ("max.s16x2.relu %r0, %r1, %r2;", |a, b, _| both(a, b, |a, b| a.max(b).max(0), s16)),
    ("max.relu.s32 %r0, %r1, %r2;", |a, b, _| low(s32(a).max(s32(b)).max(0), 32)),
];

fn inputs() -> Vec<[u64; 3]> {
    let edges = [
        0,
        1,
        2,
        7,
        31,
        32,
        33,
        63,
        64,
        255,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX as u64,
        i64::MIN as u64,
        u64::MAX,
        0x1234_5678_9abc_def0,
        0x80ff_7f01_0180_fe02,
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut out = Vec::new();
    for a in edges {
        for b in edges {
            out.push([a, b, edges[random.usize(..edges.len())]]);
        }
    }
    out.extend((0..512).map(|_| [random.u64(..), random.u64(..), random.u64(..)]));
    out.extend((0..256).map(|_| [random.u64(..), random.u64(..70), random.u64(..70)]));
    out
}

fn check(target: &str, cases: &[(&str, Expect)]) {
    let instructions: Vec<&str> = cases.iter().map(|c| c.0).collect();
    let text = common::around(target, &instructions);
    common::assembles("integers", &text);
    let inputs = inputs();
    let rows = common::evaluate(&text, &inputs, cases.len());
    for (input, row) in inputs.iter().zip(rows) {
        for ((name, expect), found) in cases.iter().zip(row) {
            let [a, b, c] = *input;
            let wanted = expect(a, b, c);
            assert_eq!(found, wanted, "{name} of {a:#x}, {b:#x}, {c:#x}: {found:#x}, expected {wanted:#x}");
        }
    }
}

#[test]
fn integers_agree_with_wide_arithmetic() {
    check("sm_80", CASES);
}

#[test]
fn packed_integers_of_sm_90_agree() {
    check("sm_90", HOPPER);
}
