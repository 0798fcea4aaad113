//! Machine code of the CPU target against plain Rust: every instruction, type and number of lanes, on random and
//! edge-case data, at the host's level and the weaker ones below it.

mod floats;
mod harness;
mod integers;

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{
    Access, Address, BinOp, Builder, Builtin, CmpOp, Dot4Signs, Inst, Scalar, Type, UnOp, verify,
};
use bitsmith_compiler::target::Target;

use harness::{Aligned, Loaded, case, check, levels, read};

fn sign_extend(bits: u64, width: u32) -> i64 {
    (bits << (64 - width)) as i64 >> (64 - width)
}

fn low(bits: u64, width: u32) -> u64 {
    if width == 64 { bits } else { bits & ((1 << width) - 1) }
}

fn each(operands: &[Vec<u64>; 3], f: impl Fn(u64, u64, u64) -> u64) -> Vec<u64> {
    (0..operands[0].len()).map(|i| f(operands[0][i], operands[1][i], operands[2][i])).collect()
}

const LANES: [u8; 7] = [1, 2, 4, 8, 16, 32, 64];
const INTS: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];

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
