//! Float instructions and conversions against independent arithmetic: exact integers scaled by powers of two, the `half`
//! crate, and the defining inequalities of each rounding mode.

mod bytes;

use crate::common;
use half::{bf16, f16};

type Expect = fn(u64, u64, u64) -> u64;

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}
fn d(x: u64) -> f64 {
    f64::from_bits(x)
}
fn single(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}
fn h(x: u64) -> f16 {
    f16::from_bits(x as u16)
}
fn b(x: u64) -> bf16 {
    bf16::from_bits(x as u16)
}
fn half(x: f64) -> u64 {
    // The exact result goes through a single step of rounding: `half` rounds from f64.
    u64::from(if x.is_nan() { 0x7fff } else { f16::from_f64(x).to_bits() })
}
fn both(x: u64, y: u64, z: u64, f: fn(f16, f16, f16) -> f64) -> u64 {
    half(f(h(x), h(y), h(z))) | half(f(h(x >> 16), h(y >> 16), h(z >> 16))) << 16
}
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
/// The least and the greatest of two, with the order of signed zeros.
fn least(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ => std::cmp::min_by(a, b, f32::total_cmp),
    }
}
fn greatest(a: f32, b: f32) -> f32 {
    -least(-a, -b)
}
fn clamp(x: f64, low: f64, high: f64) -> f64 {
    if x.is_nan() { 0.0 } else { x.clamp(low, high) }
}

const CASES: &[(&str, Expect)] = &[
    ("add.f32 %r0, %r1, %r2;", |a, b, _| single(f(a) + f(b))),
    ("sub.f32 %r0, %r1, %r2;", |a, b, _| single(f(a) - f(b))),
    ("mul.f32 %r0, %r1, %r2;", |a, b, _| single(f(a) * f(b))),
    ("fma.rn.f32 %r0, %r1, %r2, %r3;", |a, b, c| single(f32::mul_add(f(a), f(b), f(c)))),
    ("add.ftz.f32 %r0, %r1, %r2;", |a, b, _| single(flush(flush(f(a)) + flush(f(b))))),
    ("mul.ftz.f32 %r0, %r1, %r2;", |a, b, _| single(flush(flush(f(a)) * flush(f(b))))),
    ("add.sat.f32 %r0, %r1, %r2;", |a, b, _| {
        let x = f(a) + f(b);
        single(if x > 0.0 { x.min(1.0) } else { 0.0 })
    }),
    ("div.rn.f32 %r0, %r1, %r2;", |a, b, _| single(f(a) / f(b))),
    ("rcp.rn.f32 %r0, %r1;", |a, _, _| single(1.0 / f(a))),
    ("sqrt.rn.f32 %r0, %r1;", |a, _, _| single(f(a).sqrt())),
    ("min.f32 %r0, %r1, %r2;", |a, b, _| single(least(f(a), f(b)))),
    ("max.f32 %r0, %r1, %r2;", |a, b, _| single(greatest(f(a), f(b)))),
    ("max.NaN.f32 %r0, %r1, %r2;", |a, b, _| {
        single(if f(a).is_nan() || f(b).is_nan() { f32::NAN } else { greatest(f(a), f(b)) })
    }),
    ("abs.f32 %r0, %r1;", |a, _, _| single(f(a).abs())),
    ("neg.f32 %r0, %r1;", |a, _, _| single(-f(a))),
    ("copysign.f32 %r0, %r1, %r2;", |a, b, _| single(f(b).copysign(f(a)))),
    ("add.f64 %q0, %q1, %q2;", |a, b, _| (d(a) + d(b)).to_bits()),
    ("fma.rn.f64 %q0, %q1, %q2, %q3;", |a, b, c| f64::mul_add(d(a), d(b), d(c)).to_bits()),
    ("div.rn.f64 %q0, %q1, %q2;", |a, b, _| (d(a) / d(b)).to_bits()),
    ("sqrt.rn.f64 %q0, %q1;", |a, _, _| d(a).sqrt().to_bits()),
    ("add.f16 %h0, %h1, %h2;", |a, b, _| half(h(a).to_f64() + h(b).to_f64())),
    ("mul.f16 %h0, %h1, %h2;", |a, b, _| half(h(a).to_f64() * h(b).to_f64())),
    ("add.f16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, 0, |a, b, _| a.to_f64() + b.to_f64())),
    ("sub.f16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, 0, |a, b, _| a.to_f64() - b.to_f64())),
    ("mul.f16x2 %r0, %r1, %r2;", |a, b, _| both(a, b, 0, |a, b, _| a.to_f64() * b.to_f64())),
    ("neg.f16x2 %r0, %r1;", |a, _, _| (a ^ 0x8000_8000) & 0xffff_ffff),
    ("{ setp.lt.f32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(f(a) < f(b))),
    ("{ setp.geu.f32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| {
        u64::from(f(a).partial_cmp(&f(b)) != Some(std::cmp::Ordering::Less))
    }),
    ("{ setp.ne.f32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(f(a) < f(b) || f(a) > f(b))),
    ("{ setp.neu.f64 %p0, %q1, %q2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(d(a) != d(b))),
    ("{ setp.nan.f32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(f(a).is_nan() || f(b).is_nan())),
    ("{ setp.num.f64 %p0, %q1, %q2; selp.b32 %r0, 1, 0, %p0; }", |a, b, _| u64::from(!d(a).is_nan() && !d(b).is_nan())),
    (
        "{ setp.gt.f16x2 %p0|%p1, %r1, %r2; selp.b32 %r4, 1, 0, %p0; selp.b32 %r5, 2, 0, %p1; add.u32 %r0, %r4, %r5; }",
        |a, b, _| u64::from(h(a) > h(b)) + 2 * u64::from(h(a >> 16) > h(b >> 16)),
    ),
    ("set.lt.f16x2.f16x2 %r0, %r1, %r2;", |a, b, _| {
        u64::from(h(a) < h(b)) * 0x3c00 + u64::from(h(a >> 16) < h(b >> 16)) * 0x3c00_0000
    }),
    ("cvt.f32.f16 %r0, %h1;", |a, _, _| single(h(a).to_f32())),
    ("cvt.rn.f16.f32 %h0, %r1;", |a, _, _| half(f64::from(f(a)))),
    ("cvt.f64.f32 %q0, %r1;", |a, _, _| if f(a).is_nan() { 0x7fff_ffff_ffff_ffff } else { f64::from(f(a)).to_bits() }),
    ("cvt.rn.f32.f64 %r0, %q1;", |a, _, _| single(d(a) as f32)),
    ("cvt.rn.bf16.f32 %h0, %r1;", |a, _, _| {
        u64::from(if f(a).is_nan() { 0x7fff } else { bf16::from_f32(f(a)).to_bits() })
    }),
    ("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", |a, b, _| {
        let one = |x: u64| u64::from(if f(x).is_nan() { 0x7fff } else { bf16::from_f32(f(x)).to_bits() });
        one(a) << 16 | one(b)
    }),
    ("cvt.rn.f16x2.f32 %r0, %r1, %r2;", |a, b, _| half(f64::from(f(a))) << 16 | half(f64::from(f(b)))),
    ("cvt.rn.relu.f16x2.f32 %r0, %r1, %r2;", |a, b, _| {
        let one = |x: u64| half(f64::from(if f(x) < 0.0 { 0.0 } else { f(x) }));
        one(a) << 16 | one(b)
    }),
    ("cvt.rna.tf32.f32 %r0, %r1;", |a, _, _| {
        if f(a).is_nan() {
            return 0x7fff_ffff;
        }
        // Ties away: half a unit of the last kept bit is added to the magnitude.
        let bits = a as u32;
        u64::from(if f(a).is_infinite() {
            bits
        } else {
            (bits & 0x7fff_ffff).wrapping_add(0x1000) & !0x1fff | bits & 1 << 31
        })
    }),
    ("cvt.rni.s32.f32 %r0, %r1;", |a, _, _| {
        clamp(f64::from(f(a)).round_ties_even(), -2147483648.0, 2147483647.0) as i32 as u32 as u64
    }),
    ("cvt.rzi.u32.f32 %r0, %r1;", |a, _, _| clamp(f64::from(f(a)).trunc(), 0.0, 4294967295.0) as u32 as u64),
    ("cvt.rmi.s32.f32 %r0, %r1;", |a, _, _| {
        clamp(f64::from(f(a)).floor(), -2147483648.0, 2147483647.0) as i32 as u32 as u64
    }),
    ("cvt.rpi.s16.f32 %h0, %r1;", |a, _, _| clamp(f64::from(f(a)).ceil(), -32768.0, 32767.0) as i16 as u16 as u64),
    ("cvt.rni.s8.f32 %r0, %r1;", |a, _, _| {
        clamp(f64::from(f(a)).round_ties_even(), -128.0, 127.0) as i8 as i32 as u32 as u64
    }),
    ("cvt.rni.f32.f32 %r0, %r1;", |a, _, _| single(f(a).round_ties_even())),
    ("cvt.rmi.f64.f64 %q0, %q1;", |a, _, _| if d(a).is_nan() { 0x7fff_ffff_ffff_ffff } else { d(a).floor().to_bits() }),
    ("cvt.rn.f32.s32 %r0, %r1;", |a, _, _| single(a as u32 as i32 as f32)),
    ("cvt.rn.f32.u64 %r0, %q1;", |a, _, _| single(a as f32)),
    ("cvt.rn.f64.s64 %q0, %q1;", |a, _, _| (a as i64 as f64).to_bits()),
    ("cvt.rn.f16.s32 %h0, %r1;", |a, _, _| half(f64::from(a as u32 as i32))),
    ("cvt.sat.f32.f32 %r0, %r1;", |a, _, _| single(if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 })),
];

const BRAIN: &[(&str, Expect)] = &[
    ("fma.rn.bf16 %h0, %h1, %h2, %h3;", |x, y, z| {
        // 8-bit products are exact in f64, and f64 sums of them round once more only below 2^-40 of the result.
        let sum = b(x).to_f64() * b(y).to_f64() + b(z).to_f64();
        u64::from(if sum.is_nan() { 0x7fff } else { bf16::from_f64(sum).to_bits() })
    }),
    ("max.bf16x2 %r0, %r1, %r2;", |x, y, _| {
        let one = |x: u64, y: u64| {
            let most = greatest(b(x).to_f32(), b(y).to_f32());
            u64::from(if most.is_nan() { 0x7fff } else { bf16::from_f32(most).to_bits() })
        };
        one(x, y) | one(x >> 16, y >> 16) << 16
    }),
    ("abs.bf16 %h0, %h1;", |x, _, _| x & 0x7fff),
];

fn inputs() -> Vec<[u64; 3]> {
    let mut random = fastrand::Rng::with_seed(11);
    let singles = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        1.5,
        2.5,
        -2.5,
        0.5,
        3.5,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-40,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1.0000001,
        16777216.0,
        65504.0,
        65519.9,
        65520.0,
        6e-8,
        1e-8,
        127.5,
        -128.5,
        2147483648.0,
        -2147483904.0,
        448.0,
        0.001,
    ];
    let doubles =
        [0.0f64, -0.0, 1.0, 0.1, 1e308, -1e308, f64::MIN_POSITIVE, 5e-324, f64::INFINITY, f64::NAN, 1.0 + f64::EPSILON];
    let mut out = Vec::new();
    for x in singles {
        for y in singles {
            let z = singles[random.usize(..singles.len())];
            out.push([x, y, z].map(|v| u64::from(v.to_bits())));
        }
    }
    for x in doubles {
        for y in doubles {
            out.push([x.to_bits(), y.to_bits(), doubles[random.usize(..doubles.len())].to_bits()]);
        }
    }
    for _ in 0..1024 {
        out.push([random.u64(..), random.u64(..), random.u64(..)]);
        let near = |r: &mut fastrand::Rng| u64::from(((r.f32() - 0.5) * 64.0).to_bits());
        out.push([near(&mut random), near(&mut random), near(&mut random)]);
        // Sums that cancel.
        let a = near(&mut random);
        out.push([a, a ^ 0x8000_0000 ^ random.u64(..4), near(&mut random) & 0xfff0_0000]);
        // Halves of ordinary size, both of them.
        let pair = |r: &mut fastrand::Rng| {
            let one = |r: &mut fastrand::Rng| u64::from(f16::from_f32((r.f32() - 0.5) * 32.0).to_bits());
            one(r) | one(r) << 16
        };
        out.push([pair(&mut random), pair(&mut random), pair(&mut random)]);
    }
    out
}

fn same(found: u64, wanted: u64, wide: bool) -> bool {
    // Double-precision NaNs keep their payload in ways that the ISA leaves open.
    found == wanted || wide && d(found).is_nan() && d(wanted).is_nan()
}

fn check(target: &str, cases: &[(&str, Expect)], inputs: &[[u64; 3]]) {
    let instructions: Vec<&str> = cases.iter().map(|c| c.0).collect();
    let text = common::around(target, &instructions);
    common::assembles("floats", &text);
    let rows = common::evaluate(&text, inputs, cases.len());
    for (input, row) in inputs.iter().zip(rows) {
        for ((name, expect), found) in cases.iter().zip(row) {
            let [a, b, c] = *input;
            let wanted = expect(a, b, c);
            assert!(
                same(found, wanted, name.contains("%q0")),
                "{name} of {a:#x}, {b:#x}, {c:#x}: {found:#x}, expected {wanted:#x}"
            );
        }
    }
}

#[test]
fn floats_agree_with_independent_arithmetic() {
    check("sm_80", CASES, &inputs());
}

#[test]
fn brain_floats_agree_where_f64_is_exact() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut one = || u64::from(bf16::from_f32((random.f32() - 0.5) * 100.0).to_bits());
    let inputs: Vec<[u64; 3]> =
        (0..2048).map(|_| [one() | one() << 16, one() | one() << 16, one() | one() << 16]).collect();
    check("sm_80", BRAIN, &inputs);
}

/// The four directed results of one operation must be neighbours around the exact value.
#[test]
fn rounding_modes_bracket_the_exact_result() {
    let text = common::around(
        "sm_80",
        &[
            "add.rm.f32 %r0, %r1, %r2;",
            "add.rp.f32 %r0, %r1, %r2;",
            "add.rz.f32 %r0, %r1, %r2;",
            "mul.rm.f32 %r0, %r1, %r2;",
            "mul.rp.f32 %r0, %r1, %r2;",
            "mul.rz.f32 %r0, %r1, %r2;",
            "fma.rm.f32 %r0, %r1, %r2, %r3;",
            "fma.rp.f32 %r0, %r1, %r2, %r3;",
            "fma.rz.f32 %r0, %r1, %r2, %r3;",
            "div.rm.f32 %r0, %r1, %r2;",
            "div.rp.f32 %r0, %r1, %r2;",
            "div.rz.f32 %r0, %r1, %r2;",
            "sqrt.rm.f32 %r0, %r1;",
            "sqrt.rp.f32 %r0, %r1;",
            "sqrt.rz.f32 %r0, %r1;",
            "cvt.rm.f32.s64 %r0, %q3;",
            "cvt.rp.f32.s64 %r0, %q3;",
            "cvt.rz.f32.s64 %r0, %q3;",
        ],
    );
    common::assembles("rounding", &text);
    let mut random = fastrand::Rng::with_seed(5);
    let mut inputs = Vec::new();
    for _ in 0..4096 {
        let scale = |r: &mut fastrand::Rng| (r.f32() - 0.5) * 2f32.powi(r.i32(-6..7));
        let values = [scale(&mut random), scale(&mut random), scale(&mut random)];
        let mut bits = values.map(|v| u64::from(v.to_bits()));
        bits[2] |= random.u64(..) << 32;
        inputs.push(bits);
    }
    for (input, row) in inputs.iter().zip(common::evaluate(&text, &inputs, 18)) {
        let [a, b, c] = input.map(|x| f64::from(f(x)));
        // How the exact result compares with a candidate: all of these are exact in f64 or in i128 at such sizes.
        let exact_sum = |x: f64| (a + b).total_cmp(&x);
        let exact_product = |x: f64| (a * b).total_cmp(&x);
        let exact_fma = |x: f64| {
            let scaled = |v: f64| (v * 2f64.powi(120)) as i128;
            // a b is a multiple of 2^-62 and below 2^14; both sides fit.
            let product = scaled(a * b * 2f64.powi(-40));
            (product + scaled(c * 2f64.powi(-40))).cmp(&scaled(x * 2f64.powi(-40)))
        };
        let exact_quotient = |x: f64| {
            let order = a.total_cmp(&(x * b));
            if b < 0.0 { order.reverse() } else { order }
        };
        let exact_root = |x: f64| if x.is_nan() { std::cmp::Ordering::Equal } else { a.total_cmp(&(x * x)) };
        let integer = input[2] as i64 as i128;
        let exact_integer = |x: f64| integer.cmp(&(x as i128));
        let checks: [(&str, &dyn Fn(f64) -> std::cmp::Ordering); 6] = [
            ("add", &exact_sum),
            ("mul", &exact_product),
            ("fma", &exact_fma),
            ("div", &exact_quotient),
            ("sqrt", &exact_root),
            ("cvt", &exact_integer),
        ];
        for ((name, exact), found) in checks.iter().zip(row.chunks(3)) {
            let [down, up, zero] = [found[0], found[1], found[2]].map(f);
            if down.is_nan() {
                continue;
            }
            let what = format!("{name} of {a}, {b}, {c}: {down} {up} {zero}");
            assert!(exact(f64::from(down)).is_ge(), "{what}: rm is above");
            assert!(exact(f64::from(up)).is_le(), "{what}: rp is below");
            assert!(down == up || down.next_up() == up, "{what}: not neighbours");
            let towards = if down >= 0.0 && up >= 0.0 { down } else { up };
            assert_eq!(zero, towards, "{what}: rz");
        }
    }
}

#[test]
fn approximations_stay_within_the_bounds_of_the_isa() {
    let text = common::around(
        "sm_80",
        &[
            "ex2.approx.f32 %r0, %r1;",
            "lg2.approx.f32 %r0, %r2;",
            "rsqrt.approx.f32 %r0, %r2;",
            "sin.approx.f32 %r0, %r1;",
            "cos.approx.f32 %r0, %r1;",
            "tanh.approx.f32 %r0, %r1;",
            "rcp.approx.ftz.f32 %r0, %r2;",
            "div.full.f32 %r0, %r1, %r2;",
            "sqrt.approx.f32 %r0, %r2;",
        ],
    );
    common::assembles("approximations", &text);
    let mut random = fastrand::Rng::with_seed(2);
    let inputs: Vec<[u64; 3]> = (0..2048)
        .map(|_| [(random.f32() - 0.5) * 6.0, random.f32() * 50.0 + 0.01, 0.0].map(|x| u64::from(x.to_bits())))
        .collect();
    for (input, row) in inputs.iter().zip(common::evaluate(&text, &inputs, 9)) {
        let (x, y) = (f(input[0]), f(input[1]));
        let exact = [x.exp2(), y.log2(), 1.0 / y.sqrt(), x.sin(), x.cos(), x.tanh(), 1.0 / y, x / y, y.sqrt()];
        for (i, (wanted, found)) in exact.iter().zip(&row).enumerate() {
            let error = (f(*found) - wanted).abs();
            assert!(error <= 3e-7 * wanted.abs().max(1.0), "function {i} of {x}, {y}: {} against {wanted}", f(*found));
        }
    }
}
