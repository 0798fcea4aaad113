//! Floats: arithmetic, comparisons, and conversions of every type and number of lanes.

use super::harness::{Aligned, Loaded, case, check, decode, encode, is_nan, read};
use super::{LANES, each, low};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{Access, Address, BinOp, Builder, Builtin, CastOp, CmpOp, Scalar, Type, UnOp, verify};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;

const SMALL_FLOATS: [Scalar; 7] =
    [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0];

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// With the order of signed zeros.
fn minimum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { std::cmp::min_by(a, b, f32::total_cmp) }
}

#[test]
fn floats() {
    for lanes in LANES {
        let mut cases = Vec::new();
        for op in [BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Div, BinOp::Min, BinOp::Max] {
            let apply = move |a: f32, b: f32| match op {
                BinOp::Add => a + b,
                BinOp::Sub => a - b,
                BinOp::Mul => a * b,
                BinOp::Div => a / b,
                BinOp::Min => minimum(a, b),
                _ => -minimum(-a, -b),
            };
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, y, _]| b.bin(op, x, y),
                move |o| each(o, |a, b, _| apply(float(a), float(b)).to_bits().into()),
            ));
        }
        for op in [UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Nearest, UnOp::Floor] {
            let apply = move |a: f32| match op {
                UnOp::Neg => -a,
                UnOp::Abs => a.abs(),
                UnOp::Sqrt => a.sqrt(),
                UnOp::Nearest => a.round_ties_even(),
                _ => a.floor(),
            };
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, ..]| b.un(op, x),
                move |o| each(o, |a, _, _| apply(float(a)).to_bits().into()),
            ));
        }
        cases.push(case(
            "fma",
            |b, [x, y, z]| b.fma(x, y, z),
            |o| each(o, |a, b, c| float(a).mul_add(float(b), float(c)).to_bits().into()),
        ));
        cases.push(case(
            "fma that cancels",
            |b, [x, y, _]| {
                let product = b.mul(x, y);
                let minus = b.un(UnOp::Neg, product);
                b.fma(x, y, minus)
            },
            |o| each(o, |a, b, _| float(a).mul_add(float(b), -(float(a) * float(b))).to_bits().into()),
        ));
        for op in [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le] {
            let compare = move |a: f32, b: f32| match op {
                CmpOp::Eq => a == b,
                CmpOp::Ne => a != b,
                CmpOp::Lt => a < b,
                _ => a <= b,
            };
            cases.push(case(
                format!("select by {op:?}"),
                move |b, [x, y, z]| {
                    let cond = b.cmp(op, x, y);
                    b.select(cond, z, x)
                },
                move |o| each(o, |a, b, c| if compare(float(a), float(b)) { c } else { a }),
            ));
        }
        for to in [Scalar::I8, Scalar::I16, Scalar::I32] {
            cases.push(case(
                format!("to {to}"),
                move |b, [x, ..]| b.cast(CastOp::FloatToIntS, x, to),
                move |o| {
                    each(o, |a, _, _| {
                        let a = float(a);
                        let clamped = match to {
                            Scalar::I8 => (a as i8) as u64,
                            Scalar::I16 => (a as i16) as u64,
                            _ => (a as i32) as u64,
                        };
                        low(clamped, to.bits())
                    })
                },
            ));
        }
        for to in SMALL_FLOATS {
            cases.push(case(
                format!("to {to}"),
                move |b, [x, ..]| b.cast(CastOp::Float, x, to),
                move |o| each(o, |a, _, _| encode(to, a)),
            ));
        }
        check(Type::vector(Scalar::F32, lanes), &cases);
    }
}

#[test]
fn small_floats() {
    for (scalar, lanes) in SMALL_FLOATS.into_iter().flat_map(|scalar| LANES.map(|lanes| (scalar, lanes))) {
        let mut cases = vec![case(
            "to f32",
            |b, [x, ..]| b.cast(CastOp::Float, x, Scalar::F32),
            move |o| each(o, |a, _, _| (decode(scalar, a) as f32).to_bits().into()),
        )];
        for to in SMALL_FLOATS.into_iter().filter(|&to| to != scalar) {
            cases.push(case(
                format!("to {to}"),
                move |b, [x, ..]| b.cast(CastOp::Float, x, to),
                move |o| each(o, |a, _, _| encode(to, (decode(scalar, a) as f32).to_bits().into())),
            ));
        }
        check(Type::vector(scalar, lanes), &cases);
    }
}

/// Narrowing from every 16-bit pattern in the upper half, with some low bits: all exponents, ties and near ties.
#[test]
fn narrowing_meets_every_exponent() {
    let mut b = Builder::new("sweep");
    let input = b.buffer("input", Access::Read, 64);
    let outputs = SMALL_FLOATS.map(|to| b.buffer(to.name(), Access::Write, 64));
    let id = b.builtin(Builtin::WorkgroupId(0));
    let at = |b: &mut Builder, bytes: i64| b.bin_imm(BinOp::Mul, id, bytes);
    let index = at(&mut b, 64);
    let x = b.load(Type::vector(Scalar::F32, 16), Address { memory: input, index: Some(index), offset: 0 }, 64);
    for (to, memory) in SMALL_FLOATS.into_iter().zip(outputs) {
        let code = b.cast(CastOp::Float, x, to);
        let index = at(&mut b, i64::from(16 * to.bytes()));
        b.store(Address { memory, index: Some(index), offset: 0 }, 16, code);
    }
    let kernel = b.finish();
    let numbers: Vec<u32> =
        (0..=u16::MAX).flat_map(|high| [0u32, 1, 0x7fff, 0x8000].map(|low| u32::from(high) << 16 | low)).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut from = Aligned::new(bytes.len());
    from.fill(&bytes);
    let host = CpuTarget::host().expect("a host");
    let legal = host.legalize(&verify(&kernel, &Caps::ANY).expect("a sound kernel")).expect("a legal form");
    let loaded = Loaded::new(host.emit(&verify(&legal, &Caps::ANY).expect("sound")).expect("code").payload.bytes());
    let mut made: Vec<Aligned> =
        SMALL_FLOATS.iter().map(|to| Aligned::new(numbers.len() * to.bytes() as usize)).collect();
    let args: Vec<u64> =
        [from.0.as_ptr() as u64].into_iter().chain(made.iter_mut().map(|to| to.0.as_mut_ptr() as u64)).collect();
    loaded.run(&args, [numbers.len() as u64 / 16, 1, 1], &mut Aligned::new(64));
    for (to, made) in SMALL_FLOATS.into_iter().zip(&made) {
        for (&number, &got) in numbers.iter().zip(&read(&made.bytes(), to, numbers.len())) {
            let want = encode(to, number.into());
            assert!(got == want || is_nan(to, got) && is_nan(to, want), "{number:#x} to {to}: {got:#x}, not {want:#x}");
        }
    }
}
