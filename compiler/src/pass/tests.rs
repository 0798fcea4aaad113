//! Every pass on kernels that show what it does and what it must not do.

use super::expand::{Choice, expand_chosen};
use super::*;
use crate::ir::interp::{ArgValue, Launch, run_kernel};
use crate::ir::*;

const SMALL: [Scalar; 7] =
    [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0];

/// Runs a kernel of one input and one output buffer.
fn output(kernel: &Kernel, input: &[u8], grid: u32, len: usize) -> Vec<u8> {
    let mut args = [ArgValue::filled(input.to_vec()), ArgValue::unwritten(len)];
    let launch = Launch { grid: [grid, 1, 1], args: &mut args };
    run_kernel(kernel, 1, launch, 1 << 40).expect("the kernel does not trap");
    args[1].bytes().to_vec()
}

/// A kernel that applies a function to vectors of 8: workgroup `i` does number `i`.
fn map8(from: Type, to: Type, f: impl FnOnce(&mut Builder, Value) -> Value) -> Kernel {
    let mut b = Builder::new("map");
    let input = b.buffer("input", Access::Read, 64);
    let out = b.buffer("out", Access::Write, 64);
    let id = b.builtin(Builtin::WorkgroupId(0));
    let at = |b: &mut Builder, memory, ty: Type| {
        let index = b.bin_imm(BinOp::Mul, id, ty.bytes() as i64);
        Address { memory, index: Some(index), offset: 0 }
    };
    let address = at(&mut b, input, from);
    let x = b.load(from, address, 8);
    let y = f(&mut b, x);
    assert_eq!(b.ty(y), to);
    let address = at(&mut b, out, to);
    b.store(address, 8, y);
    b.finish()
}

/// The `f32`s that rounding goes wrong at: every exponent with fractions around every narrow type's ties.
fn hard_floats() -> Vec<f32> {
    let mut list = Vec::new();
    for exponent in 0..256u32 {
        for kept in [0u32, 1, 2, 3, 7] {
            for kept_bits in [1, 2, 3, 7, 10] {
                let tie = 1u32 << (22 - kept_bits);
                let top = (kept << (23 - kept_bits)) & 0x7f_ffff;
                for fraction in [top, top + 1, top + tie - 1, top + tie, top + tie + 1, 0x7f_ffff - top, 0x7f_ffff] {
                    list.push(f32::from_bits(exponent << 23 | (fraction & 0x7f_ffff)));
                }
            }
        }
    }
    let mut random = fastrand_like(7);
    list.extend((0..60_000).map(|_| f32::from_bits(random() as u32)));
    let negative: Vec<f32> = list.iter().map(|x| -x).collect();
    list.extend(negative);
    list.resize(list.len().next_multiple_of(8), 0.0);
    list
}

fn fastrand_like(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 29
    }
}

fn as_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

#[test]
fn every_small_float_decodes_to_the_same_number_expanded() {
    for scalar in SMALL {
        let (from, to) = (Type::vector(scalar, 8), Type::vector(Scalar::F32, 8));
        let kernel = map8(from, to, |b, x| b.cast(CastOp::Float, x, Scalar::F32));
        let codes = 1u32 << scalar.bits();
        let bytes = scalar.bytes() as usize;
        let input: Vec<u8> = (0..codes).flat_map(|code| code.to_le_bytes()[..bytes].to_vec()).collect();
        let expanded = expand_chosen(kernel.clone(), &Choice::ALL);
        assert_ne!(expanded, kernel);
        assert_eq!(verify(&expanded, &Caps::ANY).map(drop), Ok(()));
        let before = as_f32(&output(&kernel, &input, codes / 8, 4 * codes as usize));
        let after = as_f32(&output(&expanded, &input, codes / 8, 4 * codes as usize));
        for (code, (x, y)) in before.iter().zip(&after).enumerate() {
            assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "{scalar} {code:#x}: {x:e} became {y:e}");
        }
    }
}

#[test]
fn hard_floats_encode_to_the_same_bits_expanded() {
    let numbers = hard_floats();
    let input: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    for scalar in SMALL {
        let (from, to) = (Type::vector(Scalar::F32, 8), Type::vector(scalar, 8));
        let kernel = map8(from, to, |b, x| b.cast(CastOp::Float, x, scalar));
        let bytes = scalar.bytes() as usize;
        let (grid, len) = (numbers.len() as u32 / 8, numbers.len() * bytes);
        let before = output(&kernel, &input, grid, len);
        let after = output(&expand_chosen(kernel, &Choice::ALL), &input, grid, len);
        for (i, number) in numbers.iter().enumerate() {
            let at = i * bytes..(i + 1) * bytes;
            assert_eq!(before[at.clone()], after[at], "{scalar} of {number:e} ({:#x})", number.to_bits());
        }
    }
}

#[test]
fn casts_between_small_floats_round_once() {
    for from in [Scalar::F16, Scalar::E4m3fn, Scalar::E5m2fnuz] {
        for to in [Scalar::Bf16, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::F16] {
            if from == to {
                continue;
            }
            let kernel = map8(Type::vector(from, 8), Type::vector(to, 8), |b, x| b.cast(CastOp::Float, x, to));
            let codes = 1u32 << from.bits();
            let bytes = from.bytes() as usize;
            let input: Vec<u8> = (0..codes).flat_map(|code| code.to_le_bytes()[..bytes].to_vec()).collect();
            let len = (codes * to.bytes()) as usize;
            let before = output(&kernel, &input, codes / 8, len);
            let after = output(&expand_chosen(kernel, &Choice::ALL), &input, codes / 8, len);
            assert!(before == after, "{from} to {to}");
        }
    }
}

#[test]
fn exp2_expanded_is_within_two_units() {
    let mut numbers: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 256.0).collect();
    numbers.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 128.0, 127.99999, -126.0, -149.0, -150.5, 1e30, -1e30]);
    let mut random = fastrand_like(3);
    numbers.extend((0..100_000).map(|_| (random() % 25_600_000) as f32 / 1e5 - 126.0));
    numbers.resize(numbers.len().next_multiple_of(8), 0.5);
    let input: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let ty = Type::vector(Scalar::F32, 8);
    let kernel = expand_chosen(map8(ty, ty, |b, x| b.un(UnOp::Exp2, x)), &Choice::ALL);
    let results = as_f32(&output(&kernel, &input, numbers.len() as u32 / 8, input.len()));
    let mut worst = 0;
    for (&x, &y) in numbers.iter().zip(&results) {
        let exact = (x as f64).exp2() as f32;
        if exact.is_nan() {
            assert!(y.is_nan());
            continue;
        }
        worst = worst.max((exact.to_bits() as i64 - y.to_bits() as i64).abs());
        assert!(worst <= 2, "exp2({x}) = {exact:e}, expanded {y:e}");
    }
    println!("exp2: {worst} units at most");
}

#[test]
fn integer_expansions_agree() {
    let mut random = fastrand_like(11);
    let input: Vec<u8> = (0..16 * 512).map(|_| random() as u8).collect();
    let check = |kernel: Kernel, bytes: u32| {
        let (grid, len) = (512, 512 * bytes as usize);
        let before = output(&kernel, &input, grid, len);
        let expanded = expand_chosen(kernel.clone(), &Choice::ALL);
        assert_ne!(kernel, expanded);
        assert_eq!(verify(&expanded, &Caps::ANY).map(drop), Ok(()));
        assert!(before == output(&expanded, &input, grid, len), "{kernel:?}");
        let cleaned = run_all(kernel, &[EXPAND, FOLD, CSE, HOIST, DCE], &Caps::ANY);
        assert!(before == output(&cleaned, &input, grid, len));
    };
    for scalar in [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64] {
        let ty = Type::vector(scalar, (16 / scalar.bytes()) as u8);
        let width = scalar.bits() as u8;
        check(map16(ty, ty, |b, x| b.un(UnOp::Popcount, x)), 16);
        for (shift, bits) in [(0, 4), (4, 4), (0, width), (3, 5), (width - 1, 1), (1, width - 1), (0, width - 1)] {
            for signed in [false, true] {
                check(map16(ty, ty, |b, x| b.unpack(x, shift, bits, signed, ty)), 16);
            }
        }
    }
    let (words, floats) = (Type::vector(Scalar::I32, 4), Type::vector(Scalar::F32, 4));
    for (bits, signed) in [(4, false), (4, true), (32, false), (32, true)] {
        check(map16(words, floats, |b, x| b.unpack(x, 32 - bits, bits, signed, floats)), 16);
    }
    for signs in [Dot4Signs::SignedSigned, Dot4Signs::UnsignedSigned] {
        let bytes = Type::vector(Scalar::I8, 16);
        check(
            map16(bytes, words, |b, x| {
                let y = b.swizzle(x, x, &[3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12]);
                let acc = b.bitcast(x, words);
                b.dot4(signs, 8, x, y, acc)
            }),
            16,
        );
        let pairs = Type::vector(Scalar::I16, 8);
        check(
            map16(pairs, words, |b, x| {
                let y = b.swizzle(x, x, &[1, 2, 3, 4, 5, 6, 7, 0]);
                let acc = b.bitcast(x, words);
                b.dot2(x, y, acc)
            }),
            16,
        );
        check(
            map16(bytes, bytes, |b, x| {
                let index = b.bin_imm(BinOp::And, x, 15);
                b.push(bytes, Inst::PermuteBytes { table: x, index })
            }),
            16,
        );
    }
}

/// As `map8`, for vectors of 16 bytes.
fn map16(from: Type, to: Type, f: impl FnOnce(&mut Builder, Value) -> Value) -> Kernel {
    map8(from, to, f)
}

#[test]
fn folding_leaves_one_store_of_a_constant() {
    let mut b = Builder::new("fold");
    let out = b.buffer("out", Access::Write, 16);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 4));
    let sum = b.for_loop(start, end, 1, &[start], |b, i, carried| {
        let square = b.mul(i, i);
        vec![b.add(carried[0], square)]
    });
    let cond = b.cmp(CmpOp::LtS, sum[0], end);
    let picked = b.if_else(cond, |b| vec![b.int(Scalar::I32, 1)], |_| vec![sum[0]]);
    b.store(Address { memory: out, index: Some(start), offset: 0 }, 4, picked[0]);
    let kernel = run_all(b.finish(), &[UNROLL, FOLD, CSE, DCE], &Caps::ANY);
    assert_eq!(kernel.body.statements.len(), 2, "{kernel:?}");
    assert_eq!(kernel.body.statements[0].inst, Inst::Const(Constant::Splat(14)));
    assert_eq!(output(&kernel_with_input(kernel), &[], 1, 4), 14i32.to_le_bytes());
}

/// Puts an unused input buffer in front of the parameters.
fn kernel_with_input(mut kernel: Kernel) -> Kernel {
    let kind = ParamKind::Buffer { access: Access::Read, align: 4 };
    kernel.params.insert(0, Param { name: "input".to_string(), kind });
    for statement in &mut kernel.body.statements {
        if let Inst::Store { address, .. } = &mut statement.inst {
            address.memory = Memory::Param(1);
        }
    }
    kernel
}

#[test]
fn hoisting_moves_invariants_and_nothing_that_traps() {
    let mut b = Builder::new("hoist");
    let input = b.buffer("input", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let x = b.load(Scalar::I32, Address { memory: input, index: None, offset: 0 }, 4);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 0));
    let sum = b.for_loop(start, end, 1, &[start], |b, i, carried| {
        let product = b.mul(x, x);
        let quotient = b.bin(BinOp::DivS, x, x);
        let sum = b.add(carried[0], product);
        let sum = b.add(sum, quotient);
        vec![b.add(sum, i)]
    });
    b.store(Address { memory: out, index: None, offset: 0 }, 4, sum[0]);
    let kernel = hoist(b.finish());
    // The loop runs no turn, so its division by zero must not run either.
    assert_eq!(output(&kernel, &[0; 4], 1, 4), [0; 4]);
    let Some(Inst::For(inner)) =
        kernel.body.statements.iter().map(|s| s.inst.clone()).find(|i| matches!(i, Inst::For(_)))
    else {
        panic!("the loop is gone");
    };
    assert_eq!(inner.body.statements.len(), 5, "the product moved, the division stayed");
}

#[test]
fn halves_of_a_line_are_one_load_and_a_line_is_asked_for_once() {
    let half = Type::vector(Scalar::F16, 16);
    let kernel = |offsets: [i64; 2], between: bool, access: Access| {
        let mut b = Builder::new("lines");
        let input = b.buffer("input", access, 64);
        let out = b.buffer("out", Access::Write, 64);
        for offset in offsets {
            b.prefetch(Address { memory: input, index: None, offset: offset + 256 });
        }
        let mut halves = offsets.map(|offset| {
            let value = b.load(half, Address { memory: input, index: None, offset }, 32);
            if between {
                b.load(Scalar::I8, Address { memory: input, index: None, offset: 128 }, 1);
            }
            value
        });
        if offsets[0] > offsets[1] {
            halves.reverse();
        }
        for (i, value) in halves.into_iter().enumerate() {
            b.store(Address { memory: out, index: None, offset: 32 * i as i64 }, 32, value);
        }
        b.finish()
    };
    let count = |kernel: &Kernel, wanted: fn(&Inst) -> bool| {
        kernel.body.statements.iter().filter(|statement| wanted(&statement.inst)).count()
    };
    let bytes: Vec<u8> = (0..192).collect();
    for (offsets, between, access, loads, hints) in [
        ([64, 96], true, Access::Read, 1, 1),
        // One after the other; the second half first; halves of two lines; what somebody may write in between.
        ([64, 96], false, Access::Read, 2, 1),
        ([96, 64], true, Access::Read, 2, 1),
        ([32, 64], true, Access::Read, 2, 2),
        ([0, 32], true, Access::ReadWrite, 2, 1),
    ] {
        let before = kernel(offsets, between, access);
        let after = dce(lines(before.clone()));
        assert_eq!(count(&after, |inst| matches!(inst, Inst::Load { .. })), loads, "{after}");
        assert_eq!(count(&after, |inst| matches!(inst, Inst::Prefetch(_))), hints, "{after}");
        verify(&after, &Caps::ANY).expect("a sound kernel");
        assert_eq!(output(&after, &bytes, 1, 64), output(&before, &bytes, 1, 64));
    }
}
