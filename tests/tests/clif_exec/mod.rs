//! Machine code of the CPU target against plain Rust: every instruction, type and number of lanes, on random and
//! edge-case data, at the host's level and the weaker ones below it.

mod harness;

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{
    Access, Address, BinOp, Builder, Builtin, CastOp, CmpOp, Dot4Signs, Inst, Scalar, Type, UnOp, verify,
};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;

use harness::{Aligned, Loaded, case, check, decode, encode, is_nan, levels, read};

fn sign_extend(bits: u64, width: u32) -> i64 {
    (bits << (64 - width)) as i64 >> (64 - width)
}

fn low(bits: u64, width: u32) -> u64 {
    if width == 64 { bits } else { bits & ((1 << width) - 1) }
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn each(operands: &[Vec<u64>; 3], f: impl Fn(u64, u64, u64) -> u64) -> Vec<u64> {
    (0..operands[0].len()).map(|i| f(operands[0][i], operands[1][i], operands[2][i])).collect()
}

const LANES: [u8; 7] = [1, 2, 4, 8, 16, 32, 64];
const INTS: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];
const SMALL_FLOATS: [Scalar; 7] =
    [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0];

fn int_bin(op: BinOp, w: u32, a: u64, b: u64) -> u64 {
    let (sa, sb) = (sign_extend(a, w), sign_extend(b, w));
    let by = (b % u64::from(w)) as u32;
    let result = match op {
        BinOp::Add => a.wrapping_add(b),
        BinOp::Sub => a.wrapping_sub(b),
        BinOp::Mul => a.wrapping_mul(b),
        BinOp::DivS => sa.wrapping_div(sb) as u64,
        BinOp::RemS => sa.wrapping_rem(sb) as u64,
        BinOp::MinS => sa.min(sb) as u64,
        BinOp::MaxS => sa.max(sb) as u64,
        BinOp::And => a & b,
        BinOp::Or => a | b,
        BinOp::Xor => a ^ b,
        BinOp::Shl => a << by,
        BinOp::ShrU => a >> by,
        BinOp::ShrS => (sa >> by) as u64,
        BinOp::Div | BinOp::Min | BinOp::Max => unreachable!("floats"),
    };
    low(result, w)
}

#[test]
fn integers() {
    for (scalar, lanes) in INTS.into_iter().flat_map(|scalar| LANES.map(|lanes| (scalar, lanes))) {
        let w = scalar.bits();
        let mut cases = Vec::new();
        for op in [
            BinOp::Add,
            BinOp::Sub,
            BinOp::Mul,
            BinOp::MinS,
            BinOp::MaxS,
            BinOp::And,
            BinOp::Or,
            BinOp::Xor,
            BinOp::Shl,
            BinOp::ShrU,
            BinOp::ShrS,
        ] {
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, y, _]| b.bin(op, x, y),
                move |o| each(o, |a, b, _| int_bin(op, w, a, b)),
            ));
        }
        for op in [BinOp::Shl, BinOp::ShrU, BinOp::ShrS] {
            for by in [0, 3, i64::from(w) - 1, i64::from(w) + 1] {
                cases.push(case(
                    format!("{op:?} by {by}"),
                    move |b, [x, ..]| b.bin_imm(op, x, by),
                    move |o| each(o, |a, _, _| int_bin(op, w, a, by as u64)),
                ));
            }
            cases.push(case(
                format!("{op:?} by a splat"),
                move |b, [x, y, _]| {
                    let first = b.extract(y, 0);
                    let by = b.splat(first, lanes);
                    b.bin(op, x, by)
                },
                move |o| each(o, |a, _, _| int_bin(op, w, a, o[1][0])),
            ));
        }
        for (op, by) in [BinOp::DivS, BinOp::RemS].into_iter().flat_map(|op| [1, -1, 7, -8, 100].map(|by| (op, by))) {
            cases.push(case(
                format!("{op:?} by {by}"),
                move |b, [x, ..]| b.bin_imm(op, x, by),
                move |o| each(o, |a, _, _| int_bin(op, w, a, low(by as u64, w))),
            ));
        }
        cases.push(case("neg", |b, [x, ..]| b.un(UnOp::Neg, x), move |o| each(o, |a, _, _| low(a.wrapping_neg(), w))));
        cases.push(case("not", |b, [x, ..]| b.un(UnOp::Not, x), move |o| each(o, |a, _, _| low(!a, w))));
        cases.push(case(
            "popcount",
            |b, [x, ..]| b.un(UnOp::Popcount, x),
            |o| each(o, |a, _, _| u64::from(a.count_ones())),
        ));
        let compare = move |op, a, b| match op {
            CmpOp::Eq => a == b,
            CmpOp::Ne => a != b,
            CmpOp::LtS => sign_extend(a, w) < sign_extend(b, w),
            CmpOp::LeS => sign_extend(a, w) <= sign_extend(b, w),
            _ => a < b,
        };
        for op in [CmpOp::Eq, CmpOp::Ne, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU] {
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, y, _]| b.cmp(op, x, y),
                move |o| each(o, |a, b, _| compare(op, a, b).into()),
            ));
            cases.push(case(
                format!("select by {op:?}"),
                move |b, [x, y, z]| {
                    let cond = b.cmp(op, x, y);
                    b.select(cond, z, x)
                },
                move |o| each(o, |a, b, c| if compare(op, a, b) { c } else { a }),
            ));
        }
        cases.push(case(
            "bool arithmetic",
            |b, [x, y, z]| {
                let (p, q, r) = (b.cmp(CmpOp::LtS, x, y), b.cmp(CmpOp::LtU, y, z), b.cmp(CmpOp::LeS, z, x));
                let (and, xor) = (b.bin(BinOp::And, p, q), b.bin(BinOp::Xor, q, r));
                let or = b.bin(BinOp::Or, and, xor);
                let not = b.un(UnOp::Not, or);
                let differs = b.bin(BinOp::Xor, not, p);
                b.un(UnOp::Not, differs)
            },
            move |o| {
                each(o, |a, b, c| {
                    let (p, q, r) =
                        (sign_extend(a, w) < sign_extend(b, w), b < c, sign_extend(c, w) <= sign_extend(a, w));
                    (((p & q) | (q ^ r)) != p).into()
                })
            },
        ));
        for to in INTS.into_iter().filter(|&to| to != scalar) {
            for op in [CastOp::Truncate, CastOp::ExtendU, CastOp::ExtendS] {
                if (op == CastOp::Truncate) == (to.bits() < w) {
                    cases.push(case(
                        format!("{op:?} to {to}"),
                        move |b, [x, ..]| b.cast(op, x, to),
                        move |o| {
                            each(o, |a, _, _| {
                                low(if op == CastOp::ExtendS { sign_extend(a, w) as u64 } else { a }, to.bits())
                            })
                        },
                    ));
                }
            }
        }
        if scalar != Scalar::I64 {
            cases.push(case(
                "to float, signed",
                |b, [x, ..]| b.cast(CastOp::IntToFloatS, x, Scalar::F32),
                move |o| each(o, |a, _, _| (sign_extend(a, w) as f32).to_bits().into()),
            ));
            cases.push(case(
                "to float, unsigned",
                |b, [x, ..]| b.cast(CastOp::IntToFloatU, x, Scalar::F32),
                |o| each(o, |a, _, _| (a as f32).to_bits().into()),
            ));
        }
        check(Type::vector(scalar, lanes), &cases);
    }
}

fn minimum(a: f32, b: f32) -> f32 {
    match () {
        _ if a.is_nan() || b.is_nan() => f32::NAN,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
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

#[test]
fn moves() {
    for (scalar, lanes) in Scalar::ALL[1..].iter().flat_map(|&scalar| LANES.map(|lanes| (scalar, lanes))) {
        let n = lanes as usize;
        let mut cases = vec![
            case("copy", |_, [x, ..]| x, |o| o[0].clone()),
            case(
                "splat of the last lane",
                move |b, [x, ..]| {
                    let last = b.extract(x, lanes - 1);
                    b.splat(last, 16)
                },
                move |o| vec![o[0][n - 1]; 16],
            ),
            case(
                "vector",
                move |b, [x, y, z]| {
                    let picked = [b.extract(x, 0), b.extract(y, lanes - 1), b.extract(z, lanes / 2), b.extract(x, 0)];
                    b.vector(&picked)
                },
                move |o| vec![o[0][0], o[1][n - 1], o[2][n / 2], o[0][0]],
            ),
            case(
                "select of whole vectors",
                |b, [x, y, _]| {
                    let (zero, one) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 1));
                    let cond = b.cmp(CmpOp::LtS, zero, one);
                    b.select(cond, x, y)
                },
                |o| o[0].clone(),
            ),
        ];
        if lanes > 1 {
            let mut rng = fastrand::Rng::with_seed(lanes.into());
            let mut patterns: Vec<Vec<u8>> =
                LANES.map(|count| (0..count).map(|_| rng.u8(..2 * lanes)).collect()).into_iter().collect();
            patterns.push((0..lanes).collect());
            patterns.push((0..lanes).map(|lane| lane / 2 + lane % 2 * lanes).collect());
            patterns.push((0..2 * lanes).step_by(2).collect());
            for picks in patterns {
                let also = picks.clone();
                cases.push(case(
                    format!("swizzle {picks:?}"),
                    move |b, [x, y, _]| b.swizzle(x, y, &picks),
                    move |o| {
                        let both: Vec<u64> = o[0].iter().chain(&o[1]).copied().collect();
                        also.iter().map(|&pick| both[pick as usize]).collect()
                    },
                ));
            }
        }
        for to in INTS {
            let count = u32::from(lanes) * scalar.bits() / to.bits();
            if (1..=64).contains(&count) {
                cases.push(case(
                    format!("bitcast to {to}"),
                    move |b, [x, ..]| b.bitcast(x, Type::vector(to, count as u8)),
                    move |o| {
                        let width = scalar.bytes() as usize;
                        let bytes: Vec<u8> =
                            o[0].iter().flat_map(|lane| lane.to_le_bytes()[..width].to_vec()).collect();
                        read(&bytes, to, count as usize)
                    },
                ));
            }
        }
        check(Type::vector(scalar, lanes), &cases);
    }
}

#[test]
fn dots() {
    for lanes in [1u8, 2, 4, 8, 16] {
        let mut cases = Vec::new();
        for (signs, a_bits) in [Dot4Signs::SignedSigned, Dot4Signs::UnsignedSigned]
            .into_iter()
            .flat_map(|s| [4u8, 7, 8].map(|bits| (s, bits)))
            // A signed factor promises nothing.
            .filter(|&(signs, bits)| signs == Dot4Signs::UnsignedSigned || bits == 8)
        {
            let unsigned = signs == Dot4Signs::UnsignedSigned;
            let keep = if unsigned { (1u64 << a_bits) - 1 } else { 0xff };
            cases.push(case(
                format!("{signs:?} {a_bits}"),
                move |b, [x, y, z]| {
                    let a = b.bin_imm(BinOp::And, x, keep as i64);
                    let acc = b.bitcast(z, Type::vector(Scalar::I32, lanes));
                    b.dot4(signs, a_bits, a, y, acc)
                },
                move |o| {
                    (0..lanes as usize)
                        .map(|lane| {
                            let acc = o[2][4 * lane..][..4].iter().rev().fold(0, |acc, byte| acc << 8 | byte) as u32;
                            let sum = (4 * lane..4 * lane + 4).fold(acc as i32, |sum, i| {
                                let a = o[0][i] & keep;
                                let a = if unsigned { a as i64 } else { sign_extend(a, 8) };
                                sum.wrapping_add((a * sign_extend(o[1][i], 8)) as i32)
                            });
                            u64::from(sum as u32)
                        })
                        .collect()
                },
            ));
        }
        check(Type::vector(Scalar::I8, 4 * lanes), &cases);
    }
}

#[test]
fn bit_fields_and_byte_tables() {
    for (scalar, lanes) in INTS.into_iter().flat_map(|scalar| LANES.map(|lanes| (scalar, lanes))) {
        let w = scalar.bits();
        let to = Type::vector(scalar, lanes);
        let fields = [(0, 4), (4, 4), (2, 3), (1, 1), (0, 8), (5, 3), (w as u8 - 6, 6), (0, w as u8)];
        let mut cases = Vec::new();
        for ((shift, bits), signed) in fields.into_iter().flat_map(|field| [(field, false), (field, true)]) {
            let expect = move |a: u64| {
                let field = low(a >> shift, bits.into());
                if signed { sign_extend(field, bits.into()) } else { field as i64 }
            };
            cases.push(case(
                format!("unpack {shift} {bits} {signed}"),
                move |b, [x, ..]| b.unpack(x, shift, bits, signed, to),
                move |o| each(o, |a, _, _| low(expect(a) as u64, w)),
            ));
            if scalar == Scalar::I32 {
                cases.push(case(
                    format!("unpack {shift} {bits} {signed} to f32"),
                    move |b, [x, ..]| b.unpack(x, shift, bits, signed, to.with_scalar(Scalar::F32)),
                    move |o| each(o, |a, _, _| (expect(a) as f32).to_bits().into()),
                ));
            }
        }
        check(to, &cases);
    }
    for lanes in [16u8, 32, 64] {
        let look_up = case(
            "permute_bytes",
            |b, [x, y, _]| {
                let table: Vec<u8> = (0..16).collect();
                let table = b.swizzle(x, x, &table);
                let index = b.bin_imm(BinOp::And, y, 15);
                b.push(b.ty(index), Inst::PermuteBytes { table, index })
            },
            |o| each(o, |_, b, _| o[0][b as usize & 15]),
        );
        check(Type::vector(Scalar::I8, lanes), &[look_up]);
    }
}

/// Loops with run-time and constant bounds, branches, carried bools, shared memory, atomics and the grid.
#[test]
fn control_flow() {
    let mut b = Builder::new("control");
    let output = b.buffer("output", Access::ReadWrite, 64);
    let count = b.scalar("count", Scalar::I32);
    let scale = b.scalar("scale", Scalar::F32);
    let shared = b.shared("shared", 8, 4);
    let table = b.shared("table", 256, 32);
    let ids = [0, 1, 2].map(|axis| b.builtin(Builtin::WorkgroupId(axis)));
    let grid = [0, 1].map(|axis| b.builtin(Builtin::WorkgroupCount(axis)));
    let rows = b.mul(ids[2], grid[1]);
    let rows = b.add(rows, ids[1]);
    let cells = b.mul(rows, grid[0]);
    let linear = b.add(cells, ids[0]);
    let place = b.bin_imm(BinOp::Mul, linear, 32);
    let zero = b.int(Scalar::I32, 0);
    let far = b.int(Scalar::I32, i64::from(i32::MAX));
    let mask = b.lanes(Scalar::Bool, &[1, 0, 0, 1]);
    let end = b.add(count, ids[0]);
    let sums = b.for_loop(zero, end, 3, &[zero, mask], |b, i, carried| {
        let at = Address { memory: table, index: Some(i), offset: 4 };
        b.store(at, 1, i);
        let odd = b.bin_imm(BinOp::And, i, 1);
        let odd = b.cmp(CmpOp::Ne, odd, zero);
        let twice = b.if_else(odd, |b| vec![b.add(i, i)], |b| vec![b.load(Scalar::I32, at, 1)]);
        vec![b.add(carried[0], twice[0]), b.un(UnOp::Not, carried[1])]
    });
    // The counter must not wrap: the loop ends next to the largest number.
    let start = b.int(Scalar::I32, i64::from(i32::MAX) - 5);
    let turns = b.for_loop(start, far, 4, &[zero], |b, _, n| vec![b.bin_imm(BinOp::Add, n[0], 1)]);
    let (wide_start, wide_end) = (b.int(Scalar::I64, i64::MAX - 5), b.int(Scalar::I64, i64::MAX));
    let wide_turns = b.for_loop(wide_start, wide_end, 4, &[zero], |b, _, n| vec![b.bin_imm(BinOp::Add, n[0], 1)]);
    let never = b.for_loop(far, zero, 1, &[count], |b, _, n| vec![b.bin_imm(BinOp::Add, n[0], 1)]);
    let one = b.int(Scalar::I32, 1);
    b.push(
        Scalar::I32.into(),
        Inst::AtomicAdd { address: Address { memory: output, index: None, offset: 4096 }, value: one },
    );
    b.barrier();
    b.store(Address { memory: shared, index: None, offset: 4 }, 4, scale);
    let scale = b.load(Scalar::F32, Address { memory: shared, index: None, offset: 4 }, 4);
    let scale = b.splat(scale, 4);
    let none = b.f32(4, 0.0);
    let chosen = b.select(sums[1], scale, none);
    let numbers = b.vector(&[sums[0], turns[0], wide_turns[0], never[0]]);
    b.store(Address { memory: output, index: Some(place), offset: 0 }, 16, numbers);
    b.store(Address { memory: output, index: Some(place), offset: 16 }, 16, chosen);
    let kernel = b.finish();
    let verified = verify(&kernel, &Caps::ANY).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let grid = [3u64, 2, 4];
    for target in levels() {
        let loaded = Loaded::new(target.emit(&verified).expect("code").payload.bytes());
        for count in [-7i32, 0, 1, 2, 10] {
            let mut to = Aligned::new(4160);
            to.fill(&[0; 4160]);
            let args = [to.0.as_mut_ptr() as u64, u64::from(count as u32), u64::from(2.5f32.to_bits())];
            loaded.run(&args, grid, &mut Aligned::new(kernel.shared_bytes() as usize));
            let made = to.bytes();
            assert_eq!(read(&made[4096..], Scalar::I32, 1), [grid.iter().product::<u64>()]);
            for linear in 0..24usize {
                let end = count + linear as i32 % 3;
                let counters: Vec<i32> = (0..end).step_by(3).collect();
                let sum: i32 = counters.iter().map(|i| if i % 2 == 0 { *i } else { 2 * i }).sum();
                let got = read(&made[linear * 32..], Scalar::I32, 8);
                let flipped = counters.len() % 2 == 1;
                let on = |lane: bool| if lane != flipped { u64::from(2.5f32.to_bits()) } else { 0 };
                let want = [sum as u32 as u64, 2, 2, count as u32 as u64, on(true), on(false), on(false), on(true)];
                assert_eq!(got, want, "workgroup {linear}, count {count}, {}", target.name());
            }
        }
    }
}
