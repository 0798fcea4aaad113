//! Matrix instructions and asynchronous copies on small kernels.

use super::{ArgValue, Launch, Trap, run};
use crate::caps::{Caps, MmaShape, matrix_shapes};
use crate::dtype::DType;
use crate::ir::{Access, Address, BinOp, Builder, Builtin, Memory, Scalar, Type, Value, parse, verify};

fn at(memory: Memory, index: Option<Value>, offset: i64) -> Address {
    Address { memory, index, offset }
}

fn run_on(b: Builder, args: &mut [ArgValue]) -> Result<(), Trap> {
    let kernel = b.finish();
    assert_eq!(parse(&kernel.to_string()).as_ref(), Ok(&kernel));
    let kernel = verify(&kernel, &Caps::ANY).unwrap_or_else(|faults| panic!("{faults:?}"));
    run(&kernel, 32, Launch { grid: [1; 3], args })
}

/// One subgroup that loads its fragments in lane order, multiplies, stores.
fn multiply(shape: &'static MmaShape, a: Vec<u8>, b_bytes: Vec<u8>) -> Vec<u8> {
    let scalar = |dtype| match dtype {
        DType::F16 => Scalar::F16,
        DType::Bf16 => Scalar::Bf16,
        DType::E4m3fn => Scalar::E4m3fn,
        DType::E5m2 => Scalar::E5m2,
        DType::I32 => Scalar::I32,
        DType::F32 => Scalar::F32,
        _ => Scalar::I8,
    };
    let mut b = Builder::new("multiply");
    b.workgroup(32, 1, 1);
    let (x, y) = (b.buffer("x", Access::Read, 16), b.buffer("y", Access::Read, 16));
    let z = b.buffer("z", Access::Write, 16);
    let lane = b.builtin(Builtin::Lane);
    let fragment = |b: &mut Builder, memory, ty: Type| {
        let index = b.bin_imm(BinOp::Mul, lane, ty.bytes() as i64);
        b.load(ty, at(memory, Some(index), 0), 8)
    };
    let left = fragment(&mut b, x, Type::vector(scalar(shape.a), shape.a_elements() as u8));
    let right = fragment(&mut b, y, Type::vector(scalar(shape.b), shape.b_elements() as u8));
    let ty = Type::vector(scalar(shape.acc), shape.acc_elements() as u8);
    let one = if shape.acc == DType::I32 { b.int(ty, 1) } else { b.f32(ty.lanes, 1.0) };
    let sum = b.mma(shape, left, right, one);
    let index = b.bin_imm(BinOp::Mul, lane, ty.bytes() as i64);
    b.store(at(z, Some(index), 0), 16, sum);
    let mut args = [ArgValue::filled(a), ArgValue::filled(b_bytes), ArgValue::unwritten(32 * ty.bytes() as usize)];
    run_on(b, &mut args).expect("the kernel is sound");
    args[2].bytes().to_vec()
}

/// Fragments by the formulas of the PTX ISA, not by the lane maps: A in rows g and g + 8, B in column g.
#[test]
fn products_of_matrices() {
    for shape in matrix_shapes().filter(|shape| shape.lanes == 32 && shape.m == 16 && shape.n == 8) {
        let k = shape.k as usize;
        let a = |row: usize, column: usize| {
            ((row * 5 + column * 3) % 7) as f64 - if shape.a == DType::U8 { 0.0 } else { 3.0 }
        };
        let b = |row: usize, column: usize| ((row * 2 + column) % 5) as f64 - 2.0;
        let per = if k == 16 { 2 } else { 4 };
        let encode = |dtype: DType, value: f64| {
            let code = dtype.encode(value);
            code.to_le_bytes()[..dtype.bits() as usize / 8].to_vec()
        };
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..4 * per {
                let (register, within) = (i / per, i % per);
                let row = g + 8 * (register % 2);
                left.extend(encode(shape.a, a(row, per * t + within + k / 2 * (register / 2))));
            }
            for i in 0..2 * per {
                right.extend(encode(shape.b, b(per * t + i % per + k / 2 * (i / per), g)));
            }
        }
        let out = multiply(shape, left, right);
        for (i, word) in out.as_chunks::<4>().0.iter().enumerate() {
            let (lane, i) = (i / 4, i % 4);
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let expected: f64 = 1.0 + (0..k).map(|x| a(row, x) * b(x, column)).sum::<f64>();
            let got = shape.acc.decode(u32::from_le_bytes(*word));
            assert_eq!(got, expected, "{shape}, row {row}, column {column}");
        }
    }
}

/// Two threads copy 16 bytes each, and read what the other copied.
fn copies(wait: bool, barrier: bool, again: bool) -> Result<Vec<u8>, Trap> {
    let mut b = Builder::new("copies");
    b.workgroup(2, 1, 1);
    let (input, out) = (b.buffer("input", Access::Read, 16), b.buffer("out", Access::Write, 16));
    let shared = b.shared("shared", 32, 16);
    let id = b.builtin(Builtin::LocalId(0));
    let mine = b.bin_imm(BinOp::Shl, id, 4);
    b.async_copy(at(shared, Some(mine), 0), at(input, Some(mine), 0), 16);
    b.async_commit();
    if wait {
        b.async_wait(0);
    }
    if barrier {
        b.barrier();
    }
    let theirs = b.bin_imm(BinOp::Xor, mine, 16);
    let value = b.load(Type::vector(Scalar::I32, 4), at(shared, Some(theirs), 0), 16);
    if again {
        b.async_copy(at(shared, Some(mine), 0), at(input, Some(theirs), 0), 16);
    }
    b.store(at(out, Some(mine), 0), 16, value);
    let mut args = [ArgValue::filled((0..32).collect()), ArgValue::unwritten(32)];
    run_on(b, &mut args)?;
    Ok(args[1].bytes().to_vec())
}

#[test]
fn asynchronous_copies() {
    let swapped: Vec<u8> = (16..32).chain(0..16).collect();
    assert_eq!(copies(true, true, false), Ok(swapped));
    let trips = |result: Result<Vec<u8>, Trap>, text: &str| {
        let trap = result.expect_err("the kernel is broken");
        assert!(trap.message.contains(text), "{trap}");
    };
    trips(copies(false, true, false), "nothing has written");
    trips(copies(true, false, false), "nothing has written");
    // The next copy starts while the other thread may still read: what it finds is undefined.
    trips(copies(true, true, true), "nothing has written");
}
