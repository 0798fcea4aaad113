//! Each check of the interpreter has a kernel that trips it and one that does not.

use super::*;
use crate::caps::Caps;
use crate::ir::*;

fn at(memory: Memory, index: Option<Value>, offset: i64) -> Address {
    Address { memory, index, offset }
}

/// Runs a kernel on a grid along x, with subgroups of 4.
fn run_on(b: Builder, grid: u32, args: &mut [ArgValue]) -> Result<(), Trap> {
    let kernel = b.finish();
    let verified = verify(&kernel, &Caps::ANY).expect("the kernel is sound");
    run_limited(&verified, 4, Launch { grid: [grid, 1, 1], args }, 1_000_000)
}

#[track_caller]
fn trips(result: Result<(), Trap>, what: &str) {
    let trap = result.expect_err("this kernel must trap");
    assert!(trap.message.contains(what), "expected `{what}` in: {trap}");
}

fn words(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A kernel of `threads` threads with a shared array of 64 bytes and an output buffer of 64.
fn workgroup(threads: u32, body: impl FnOnce(&mut Builder, Memory, Memory, Value)) -> Result<Vec<u8>, Trap> {
    let mut b = Builder::new("group");
    b.workgroup(threads, 1, 1);
    let out = b.buffer("out", Access::ReadWrite, 16);
    let shared = b.shared("shared", 64, 16);
    let id = b.builtin(Builtin::LocalId(0));
    body(&mut b, out, shared, id);
    let mut args = [ArgValue::filled(vec![0; 64])];
    run_on(b, 1, &mut args)?;
    Ok(args[0].bytes().to_vec())
}

/// Four times a value: the byte offset of a thread's word.
fn slot(b: &mut Builder, id: Value) -> Value {
    b.bin_imm(BinOp::Shl, id, 2)
}

#[test]
fn bounds() {
    let access = |offset: i64, store: bool, index: i64| {
        let mut b = Builder::new("bounds");
        let buffer = b.buffer("buffer", Access::ReadWrite, 4);
        let index = b.int(Scalar::I64, index);
        let value = b.int(Scalar::I32, 1);
        let address = at(buffer, Some(index), offset);
        if store {
            b.store(address, 4, value);
        } else {
            b.load(Scalar::I32, address, 4);
        }
        run_on(b, 1, &mut [ArgValue::filled(vec![0; 16])])
    };
    for store in [false, true] {
        access(12, store, 0).unwrap();
        access(-4, store, 8).unwrap();
        trips(access(16, store, 0), "out of bounds");
        trips(access(0, store, -4), "out of bounds");
        trips(access(i64::MAX, store, i64::MAX), "out of bounds");
    }
}

#[test]
fn alignment() {
    let access = |offset: i64, align: u32| {
        let mut b = Builder::new("alignment");
        let buffer = b.buffer("buffer", Access::Read, 8);
        b.load(Scalar::I32, at(buffer, None, offset), align);
        run_on(b, 1, &mut [ArgValue::filled(vec![0; 64])])
    };
    access(2, 2).unwrap();
    trips(access(2, 4), "misaligned");
    trips(access(0, 16), "itself aligned to 8");
}

#[test]
fn access_rights() {
    let store = |access| {
        let mut b = Builder::new("rights");
        let buffer = b.buffer("buffer", access, 4);
        let value = b.int(Scalar::I32, 1);
        b.store(at(buffer, None, 0), 4, value);
        run_on(b, 1, &mut [ArgValue::filled(vec![0; 4])])
    };
    store(Access::Write).unwrap();
    trips(store(Access::Read), "whose access is Read");
    let load = |access| {
        let mut b = Builder::new("rights");
        let buffer = b.buffer("buffer", access, 4);
        b.load(Scalar::I32, at(buffer, None, 0), 4);
        run_on(b, 1, &mut [ArgValue::filled(vec![0; 4])])
    };
    load(Access::Read).unwrap();
    trips(load(Access::Write), "whose access is Write");
}

#[test]
fn bytes_that_nothing_wrote() {
    let kernel = |write_first: bool| {
        let mut b = Builder::new("poison");
        let buffer = b.buffer("buffer", Access::ReadWrite, 4);
        let value = b.int(Scalar::I32, 1);
        if write_first {
            b.store(at(buffer, None, 0), 4, value);
        }
        b.load(Scalar::I8, at(buffer, None, 3), 1);
        run_on(b, 1, &mut [ArgValue::unwritten(8)])
    };
    kernel(true).unwrap();
    trips(kernel(false), "byte 3 of buffer, which nothing has written");

    workgroup(1, |b, _, shared, id| {
        b.store(at(shared, None, 0), 4, id);
        b.load(Scalar::I32, at(shared, None, 0), 4);
    })
    .unwrap();
    let result = workgroup(1, |b, _, shared, id| {
        b.store(at(shared, None, 0), 4, id);
        b.load(Scalar::I32, at(shared, None, 4), 4);
    });
    trips(result.map(drop), "byte 4 of shared");
}

#[test]
fn shared_memory_is_forgotten_between_workgroups() {
    let mut b = Builder::new("forget");
    let shared = b.shared("shared", 4, 4);
    let id = b.builtin(Builtin::WorkgroupId(0));
    let one = b.int(Scalar::I32, 1);
    let first = b.cmp(CmpOp::LtS, id, one);
    b.if_then(first, |b| b.store(at(shared, None, 0), 4, id));
    b.load(Scalar::I32, at(shared, None, 0), 4);
    let trap = run_on(b, 2, &mut []).unwrap_err();
    assert_eq!(trap.workgroup, [1, 0, 0], "{trap}");
}

#[test]
fn barriers_are_uniform() {
    let neighbour = |threads: u32, in_branch: bool| {
        workgroup(threads, |b, out, shared, id| {
            let mine = slot(b, id);
            b.store(at(shared, Some(mine), 0), 4, id);
            if in_branch {
                let two = b.int(Scalar::I32, 2);
                let some = b.cmp(CmpOp::LtS, id, two);
                b.if_then(some, |b| b.barrier());
                return;
            }
            b.barrier();
            let next = b.bin_imm(BinOp::Add, id, 1);
            let next = b.bin_imm(BinOp::And, next, threads as i64 - 1);
            let theirs = slot(b, next);
            let value = b.load(Scalar::I32, at(shared, Some(theirs), 0), 4);
            b.store(at(out, Some(mine), 0), 4, value);
        })
    };
    assert_eq!(neighbour(4, false).unwrap()[..16], words(&[1, 2, 3, 0]));
    neighbour(2, true).unwrap();
    trips(neighbour(4, true).map(drop), "non-uniform barrier");
}

#[test]
fn barriers_of_other_turns_do_not_match() {
    // Each thread meets the barrier once, but in another turn of the loop.
    let turns = |own_turn: bool| {
        workgroup(2, |b, _, _, id| {
            let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 2));
            b.for_loop(start, end, 1, &[], |b, i, _| {
                let turn = if own_turn { id } else { start };
                let now = b.cmp(CmpOp::Eq, i, turn);
                b.if_then(now, |b| b.barrier());
                Vec::new()
            });
        })
    };
    turns(false).unwrap();
    trips(turns(true).map(drop), "another turn");
}

#[test]
fn subgroup_operations_under_divergence() {
    let reduce = |limit: i64| {
        workgroup(8, |b, out, _, id| {
            let limit = b.int(Scalar::I32, limit);
            let some = b.cmp(CmpOp::LtS, id, limit);
            let mine = slot(b, id);
            b.if_then(some, |b| {
                let sum = b.push(Scalar::I32.into(), Inst::SubgroupReduce(ReduceOp::Add, id));
                b.store(at(out, Some(mine), 0), 4, sum);
            });
        })
    };
    // The second subgroup may stay away as a whole, but no part of one.
    assert_eq!(reduce(8).unwrap()[..32], words(&[6, 6, 6, 6, 22, 22, 22, 22]));
    assert_eq!(reduce(4).unwrap()[..20], words(&[6, 6, 6, 6, 0]));
    trips(reduce(6).map(drop), "divergence");
}

#[test]
fn shuffles() {
    let shuffle = |mode, index: i64| {
        workgroup(4, |b, out, _, id| {
            let index = b.int(Scalar::I32, index);
            let mine = slot(b, id);
            let value = b.push(Scalar::I32.into(), Inst::Shuffle { mode, value: id, index });
            b.store(at(out, Some(mine), 0), 4, value);
        })
        .map(|bytes| bytes[..16].to_vec())
    };
    assert_eq!(shuffle(ShuffleMode::Xor, 1).unwrap(), words(&[1, 0, 3, 2]));
    assert_eq!(shuffle(ShuffleMode::Down, 1).unwrap(), words(&[1, 2, 3, 3]));
    assert_eq!(shuffle(ShuffleMode::Index, 2).unwrap(), words(&[2, 2, 2, 2]));
    trips(shuffle(ShuffleMode::Index, 4).map(drop), "shuffle from lane 4");
}

#[test]
fn races_in_shared_memory() {
    let kernel = |barrier: bool, own_store: bool, load: bool| {
        workgroup(4, |b, out, shared, id| {
            let mine = slot(b, id);
            b.store(at(shared, own_store.then_some(mine), 0), 4, id);
            if barrier {
                b.barrier();
            }
            if load {
                let first = b.load(Scalar::I32, at(shared, None, 0), 4);
                b.store(at(out, Some(mine), 0), 4, first);
            }
        })
        .map(drop)
    };
    kernel(true, true, true).unwrap();
    kernel(false, true, false).unwrap();
    trips(kernel(false, false, false), "race on byte 0 of shared");
    trips(kernel(false, true, true), "race on byte 0 of shared");
    // A read first and a write later, by another thread, is as bad.
    let late = workgroup(2, |b, _, shared, id| {
        let mine = slot(b, id);
        b.store(at(shared, Some(mine), 0), 4, id);
        b.barrier();
        b.load(Scalar::I32, at(shared, None, 4), 4);
        b.store(at(shared, Some(mine), 0), 4, id);
    });
    trips(late.map(drop), "race");
    // Two bytes of one word are not one byte.
    workgroup(4, |b, _, shared, id| {
        let byte = b.cast(CastOp::Truncate, id, Scalar::I8);
        b.store(at(shared, Some(id), 0), 1, byte);
    })
    .unwrap();
}

#[test]
fn races_between_workgroups() {
    let kernel = |own: bool, atomic: bool, load: bool| {
        let mut b = Builder::new("global");
        let out = b.buffer("out", Access::ReadWrite, 4);
        let id = b.builtin(Builtin::WorkgroupId(0));
        let mine = slot(&mut b, id);
        let address = at(out, own.then_some(mine), 0);
        if atomic {
            b.push(Scalar::I32.into(), Inst::AtomicAdd { address, value: id });
        } else {
            b.store(address, 4, id);
        }
        if load {
            b.load(Scalar::I32, at(out, None, 0), 4);
        }
        let mut args = [ArgValue::filled(vec![0; 16])];
        run_on(b, 4, &mut args).map(|()| args[0].bytes().to_vec())
    };
    assert_eq!(kernel(true, false, false).unwrap(), words(&[0, 1, 2, 3]));
    assert_eq!(kernel(false, true, false).unwrap()[..4], words(&[6]));
    trips(kernel(false, false, false).map(drop), "race on byte 0 of out");
    trips(kernel(true, false, true).map(drop), "race on byte 0 of out");
    trips(kernel(false, true, true).map(drop), "race on byte 0 of out");
}

#[test]
fn a_barrier_orders_global_memory_within_a_workgroup_only() {
    let kernel = |grid: u32| {
        let mut b = Builder::new("order");
        b.workgroup(2, 1, 1);
        let out = b.buffer("out", Access::ReadWrite, 4);
        let id = b.builtin(Builtin::LocalId(0));
        let one = b.int(Scalar::I32, 1);
        let first = b.cmp(CmpOp::LtS, id, one);
        b.if_then(first, |b| b.store(at(out, None, 0), 4, id));
        b.barrier();
        b.load(Scalar::I32, at(out, None, 0), 4);
        run_on(b, grid, &mut [ArgValue::filled(vec![0; 4])])
    };
    kernel(1).unwrap();
    trips(kernel(2), "race");
}

#[test]
fn promises() {
    let dot = |byte: i64| {
        let mut b = Builder::new("promise");
        let bytes = Type::vector(Scalar::I8, 4);
        let (a, factor, acc) = (b.int(bytes, byte), b.int(bytes, -1), b.int(Scalar::I32, 0));
        b.dot4(Dot4Signs::UnsignedSigned, 4, a, factor, acc);
        run_on(b, 1, &mut [])
    };
    dot(15).unwrap();
    trips(dot(16), "a_bits = 4");

    let permute = |index: i64| {
        let mut b = Builder::new("promise");
        let ty = Type::vector(Scalar::I8, 16);
        let (table, index) = (b.int(ty, 7), b.int(ty, index));
        b.push(ty, Inst::PermuteBytes { table, index });
        run_on(b, 1, &mut [])
    };
    permute(15).unwrap();
    trips(permute(16), "past the table");

    let divide = |a: i64, divisor: i64| {
        let mut b = Builder::new("promise");
        let (a, divisor) = (b.int(Scalar::I32, a), b.int(Scalar::I32, divisor));
        b.bin(BinOp::DivS, a, divisor);
        run_on(b, 1, &mut [])
    };
    divide(7, -1).unwrap();
    trips(divide(7, 0), "divided by zero");
    trips(divide(i32::MIN as i64, -1), "overflows");
}

#[test]
fn endless_loops_end() {
    let mut b = Builder::new("endless");
    let (start, end) = (b.int(Scalar::I64, 0), b.int(Scalar::I64, i64::MAX));
    b.for_loop(start, end, 1, &[], |_, _, _| Vec::new());
    trips(run_on(b, 1, &mut []), "out of steps");

    let mut b = Builder::new("overflow");
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, i32::MAX as i64));
    b.for_loop(start, end, 1 << 30, &[], |_, _, _| Vec::new());
    let trap = run_on(b, 1, &mut []).unwrap_err();
    assert!(trap.message.contains("overflows") && trap.place == "body.2", "{trap:?}");
}

#[test]
fn arguments_must_fit() {
    let mut b = Builder::new("arguments");
    b.scalar("n", Scalar::I32);
    trips(run_on(b, 1, &mut [ArgValue::F32(1.0)]), "not of the parameter's kind");
    trips(run_on(Builder::new("arguments"), 1, &mut [ArgValue::I32(1)]), "1 arguments for 0");
}

#[test]
fn a_trap_says_where() {
    let mut b = Builder::new("place");
    let buffer = b.buffer("buffer", Access::Read, 4);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 3));
    b.for_loop(start, end, 1, &[], |b, i, _| {
        let again = b.mul(i, i);
        let some = b.cmp(CmpOp::Eq, again, start);
        b.if_else(
            some,
            |_| Vec::new(),
            |b| {
                b.load(Scalar::I32, at(buffer, Some(i), 0), 1);
                Vec::new()
            },
        );
        Vec::new()
    });
    let trap = run_on(b, 1, &mut [ArgValue::filled(vec![0; 5])]).unwrap_err();
    assert_eq!(trap.place, "body.2.for.2.else.0");
    assert!(trap.text.contains("Load"), "{}", trap.text);
}

#[test]
fn yields_swap_at_once_and_builtins_count() {
    let bytes = workgroup(1, |b, out, _, _| {
        let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 3));
        let (one, two) = (b.int(Scalar::I32, 10), b.int(Scalar::I32, 20));
        let swapped = b.for_loop(start, end, 1, &[one, two, start], |_, i, c| vec![c[1], c[0], i]);
        for (i, &value) in swapped.iter().enumerate() {
            b.store(at(out, None, 4 * i as i64), 4, value);
        }
    });
    assert_eq!(bytes.unwrap()[..12], words(&[20, 10, 2]));

    let mut b = Builder::new("builtins");
    b.workgroup(2, 3, 2);
    let out = b.buffer("out", Access::Write, 4);
    let parts: Vec<Value> = (0..3).map(|axis| b.builtin(Builtin::LocalId(axis))).collect();
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let (row, plane) = (b.bin_imm(BinOp::Mul, parts[1], 2), b.bin_imm(BinOp::Mul, parts[2], 6));
    let number = b.add(parts[0], row);
    let number = b.add(number, plane);
    let again = b.bin_imm(BinOp::Mul, subgroup, 4);
    let again = b.add(again, lane);
    let difference = b.bin(BinOp::Sub, number, again);
    let mine = slot(&mut b, number);
    b.store(at(out, Some(mine), 0), 4, difference);
    let mut args = [ArgValue::unwritten(48)];
    run_on(b, 1, &mut args).unwrap();
    assert_eq!(args[0].bytes(), words(&[0; 12]));
}

#[test]
fn float_corners() {
    let mut b = Builder::new("floats");
    let out = b.buffer("out", Access::Write, 4);
    let (zero, minus_zero, nan) = (b.f32(1, 0.0), b.f32(1, -0.0), b.f32(1, f32::NAN));
    let half = b.f32(1, 2.5);
    let (tiny, one) = (b.f32(1, 2f32.powi(-30)), b.f32(1, 1.0 + f32::EPSILON));
    let minus = b.f32(1, -(1.0 + 2.0 * f32::EPSILON));
    let _ = tiny;
    let values = [
        b.bin(BinOp::Min, zero, minus_zero),
        b.bin(BinOp::Max, minus_zero, zero),
        b.bin(BinOp::Min, nan, zero),
        b.un(UnOp::Nearest, half),
        b.fma(one, one, minus),
    ];
    for (i, &value) in values.iter().enumerate() {
        b.store(at(out, None, 4 * i as i64), 4, value);
    }
    let mut args = [ArgValue::unwritten(20)];
    run_on(b, 1, &mut args).unwrap();
    let got: Vec<f32> = args[0].bytes().as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    assert_eq!(got[0].to_bits(), (-0.0f32).to_bits());
    assert_eq!(got[1].to_bits(), 0);
    assert!(got[2].is_nan());
    assert_eq!(got[3], 2.0);
    assert_eq!(got[4], f32::EPSILON * f32::EPSILON, "fma rounds once");
}

#[test]
fn speed_of_vector_code() {
    let mut b = Builder::new("speed");
    let input = b.buffer("input", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let turns = if cfg!(debug_assertions) { 1_000 } else { 100_000 };
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, turns));
    let zero = b.int(Type::vector(Scalar::I32, 4), 0);
    let fzero = b.f32(4, 0.0);
    let mask = b.int(Type::vector(Scalar::I8, 16), 0x0f);
    let four = b.int(Type::vector(Scalar::I8, 16), 4);
    let results = b.for_loop(start, end, 1, &[zero, fzero], |b, i, carried| {
        let (mut acc, mut sum) = (carried[0], carried[1]);
        let index = b.bin_imm(BinOp::And, i, 63);
        let index = b.bin_imm(BinOp::Shl, index, 4);
        for j in 0..4 {
            let raw = b.load(Type::vector(Scalar::I8, 16), at(input, Some(index), 16 * j), 16);
            let low = b.bin(BinOp::And, raw, mask);
            let high = b.bin(BinOp::ShrU, raw, four);
            acc = b.dot4(Dot4Signs::UnsignedSigned, 4, low, raw, acc);
            acc = b.dot4(Dot4Signs::UnsignedSigned, 4, high, raw, acc);
            let words = b.bitcast(raw, Type::vector(Scalar::I32, 4));
            let field = b.unpack(words, 4, 4, false, Type::vector(Scalar::F32, 4));
            let scaled = b.mul(field, field);
            sum = b.fma(scaled, field, sum);
            sum = b.add(sum, field);
        }
        vec![acc, sum]
    });
    b.store(at(out, None, 0), 16, results[0]);
    b.store(at(out, None, 16), 16, results[1]);
    let kernel = b.finish();
    let kernel = verify(&kernel, &Caps::ANY).expect("the kernel is sound");
    let mut args = [ArgValue::filled((0..4096).map(|i| i as u8).collect()), ArgValue::unwritten(32)];
    let clock = std::time::Instant::now();
    run(&kernel, 1, Launch { grid: [1; 3], args: &mut args }).expect("the kernel does not trap");
    // Ten per inner step, two for the index; the loop's own work is not counted.
    let rate = 42.0 * turns as f64 / clock.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.1} M instructions per second");
    // Far below what it does, so that a busy machine passes and a tenfold loss does not.
    assert!(cfg!(debug_assertions) || rate > 3.0, "{rate} M instructions per second");
}
