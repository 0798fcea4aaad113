//! Every instruction compiles on every level, with the machine instructions that the hot ones are to become.

use target_lexicon::Triple;

use super::{CpuTarget, object};
use crate::artifact::{Artifact, Payload};
use crate::caps::{Caps, Feature};
use crate::error::Error;
use crate::ir::*;
use crate::target::Target;

fn target(name: &str) -> CpuTarget {
    CpuTarget::named(name).expect(name)
}

fn legal(target: &CpuTarget, kernel: &Kernel) -> Kernel {
    let verified = verify(kernel, &Caps::ANY).unwrap_or_else(|faults| panic!("{}: {}", kernel.name, faults[0]));
    target.legalize(&verified).expect("a sound kernel has a legal form")
}

fn emit(target: &CpuTarget, kernel: &Kernel) -> Artifact {
    let legal = legal(target, kernel);
    let verified = verify(&legal, &Caps::ANY).unwrap_or_else(|faults| panic!("{}: {}", kernel.name, faults[0]));
    target.emit(&verified).unwrap_or_else(|error| panic!("{} on {}: {error}", kernel.name, target.name()))
}

fn asm(target: &CpuTarget, kernel: &Kernel) -> String {
    let legal = legal(target, kernel);
    let verified = verify(&legal, &Caps::ANY).expect("sound kernel");
    target.show(&verified, "asm").expect("a known stage").expect("a supported kernel")
}

fn at(memory: Memory, offset: i64) -> Address {
    Address { memory, index: None, offset }
}

/// Loads two or three operands of a type, applies `f`, stores the results one behind the other.
fn lanewise(name: &str, ty: Type, f: impl FnOnce(&mut Builder, [Value; 3]) -> Vec<Value>) -> Kernel {
    let mut b = Builder::new(name);
    let input = b.buffer("input", Access::Read, 64);
    let output = b.buffer("output", Access::Write, 64);
    let operands = [0, 1, 2].map(|i| b.load(ty, at(input, i * 256), 1));
    let mut place = 0;
    for value in f(&mut b, operands) {
        let value = storable(&mut b, value);
        b.store(at(output, place), 1, value);
        place += 256;
    }
    b.finish()
}

fn storable(b: &mut Builder, value: Value) -> Value {
    let ty = b.ty(value);
    if ty.scalar != Scalar::Bool {
        return value;
    }
    let (one, zero) = (b.int(ty.with_scalar(Scalar::I8), 1), b.int(ty.with_scalar(Scalar::I8), 0));
    b.select(value, one, zero)
}

const LANES: [u8; 7] = [1, 2, 4, 8, 16, 32, 64];
const INTS: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];

/// A kernel per type and group of instructions.
fn every_instruction() -> Vec<Kernel> {
    let mut all = Vec::new();
    for lanes in LANES {
        for scalar in INTS {
            all.push(ints(Type::vector(scalar, lanes)));
        }
        all.push(floats(Type::vector(Scalar::F32, lanes)));
        all.extend(Scalar::ALL[1..].iter().map(|&scalar| moves(Type::vector(scalar, lanes))));
        all.extend(small_floats(lanes));
        all.extend(dots(lanes));
    }
    all.extend(unpacks());
    all.push(control());
    all
}

fn ints(ty: Type) -> Kernel {
    lanewise("ints", ty, |b, [x, y, z]| {
        use BinOp::*;
        let mut out: Vec<Value> =
            [Add, Sub, Mul, MinS, MaxS, And, Or, Xor, Shl, ShrU, ShrS].map(|op| b.bin(op, x, y)).into();
        for op in [Shl, ShrU, ShrS] {
            out.push(b.bin_imm(op, x, 3));
            let first = b.extract(y, 0);
            let splat = b.splat(first, ty.lanes);
            out.push(b.bin(op, x, splat));
        }
        for op in [DivS, RemS] {
            out.push(b.bin_imm(op, x, 7));
            out.push(b.bin_imm(op, x, -1));
        }
        out.extend([UnOp::Neg, UnOp::Not, UnOp::Popcount].map(|op| b.un(op, x)));
        let compared = [CmpOp::Eq, CmpOp::Ne, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU].map(|op| b.cmp(op, x, y));
        out.extend(compared);
        let (both, either) = (b.bin(And, compared[0], compared[2]), b.bin(Or, compared[1], compared[3]));
        let odd = b.bin(Xor, both, either);
        let not = b.un(UnOp::Not, odd);
        out.push(b.select(not, y, z));
        for to in INTS {
            let op = if to.bits() < ty.scalar.bits() { CastOp::Truncate } else { CastOp::ExtendS };
            if to != ty.scalar {
                out.push(b.cast(op, x, to));
            }
            if to.bits() > ty.scalar.bits() {
                out.push(b.cast(CastOp::ExtendU, x, to));
            }
        }
        if ty.scalar != Scalar::I64 {
            out.push(b.cast(CastOp::IntToFloatS, x, Scalar::F32));
            out.push(b.cast(CastOp::IntToFloatU, x, Scalar::F32));
        }
        out
    })
}

fn floats(ty: Type) -> Kernel {
    lanewise("floats", ty, |b, [x, y, z]| {
        use BinOp::*;
        let mut out: Vec<Value> = [Add, Sub, Mul, Div, Min, Max].map(|op| b.bin(op, x, y)).into();
        out.extend([UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Nearest, UnOp::Floor].map(|op| b.un(op, x)));
        out.push(b.fma(x, y, z));
        out.extend([CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le].map(|op| b.cmp(op, x, y)));
        let less = b.cmp(CmpOp::Lt, x, y);
        out.push(b.select(less, y, z));
        out.extend([Scalar::I8, Scalar::I16, Scalar::I32].map(|to| b.cast(CastOp::FloatToIntS, x, to)));
        out.extend(
            [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0]
                .map(|to| b.cast(CastOp::Float, x, to)),
        );
        out
    })
}

fn moves(ty: Type) -> Kernel {
    lanewise("moves", ty, |b, [x, y, _]| {
        let first = b.extract(x, ty.lanes - 1);
        let second = b.extract(y, 0);
        let mut out = vec![b.splat(first, 16), b.vector(&[first, second, first, second])];
        if ty.lanes > 1 {
            let reversed: Vec<u8> = (0..2 * ty.lanes).rev().step_by(2).collect();
            out.push(b.swizzle(x, y, &reversed));
            out.push(b.swizzle(x, y, &[ty.lanes, 0]));
        }
        let condition = b.int(Scalar::Bool, 1);
        out.push(b.select(condition, x, y));
        for to in INTS {
            let lanes = ty.bits() / to.bits();
            if (1..=64).contains(&lanes) {
                out.push(b.bitcast(x, Type::vector(to, lanes as u8)));
            }
        }
        out
    })
}

fn small_floats(lanes: u8) -> Vec<Kernel> {
    [Scalar::F16, Scalar::Bf16, Scalar::E4m3fn, Scalar::E4m3fnuz, Scalar::E5m2, Scalar::E5m2fnuz, Scalar::E8m0]
        .map(|from| {
            lanewise("small_floats", Type::vector(from, lanes), |b, [x, ..]| {
                let mut out = vec![b.cast(CastOp::Float, x, Scalar::F32)];
                if from != Scalar::Bf16 {
                    out.push(b.cast(CastOp::Float, x, Scalar::Bf16));
                }
                out
            })
        })
        .into()
}

fn dots(lanes: u8) -> Vec<Kernel> {
    if lanes > 16 {
        return Vec::new();
    }
    let mut all = vec![lanewise("dots", Type::vector(Scalar::I16, 2 * lanes), |b, [x, y, z]| {
        let acc = b.bitcast(z, Type::vector(Scalar::I32, lanes));
        vec![b.dot2(x, y, acc)]
    })];
    for signs in [Dot4Signs::SignedSigned, Dot4Signs::UnsignedSigned] {
        // A signed factor promises nothing.
        for a_bits in if signs == Dot4Signs::SignedSigned { [8, 8] } else { [4, 8] } {
            all.push(lanewise("dots", Type::vector(Scalar::I8, 4 * lanes), |b, [x, y, z]| {
                let acc = b.bitcast(z, Type::vector(Scalar::I32, lanes));
                vec![b.dot4(signs, a_bits, x, y, acc)]
            }));
        }
    }
    all
}

fn unpacks() -> Vec<Kernel> {
    let mut all = Vec::new();
    for (scalar, lanes) in INTS.into_iter().flat_map(|scalar| LANES.map(|lanes| (scalar, lanes))) {
        let to = Type::vector(scalar, lanes);
        for (shift, bits) in [(0, 4), (4, 4), (2, 3), (0, 8)] {
            for signed in [false, true] {
                all.push(lanewise("unpacks", to, |b, [x, ..]| {
                    let mut out = vec![b.unpack(x, shift, bits, signed, to)];
                    if scalar == Scalar::I32 {
                        out.push(b.unpack(x, shift, bits, signed, to.with_scalar(Scalar::F32)));
                    }
                    out
                }));
            }
        }
    }
    for lanes in [16, 32, 64] {
        let ty = Type::vector(Scalar::I8, 16);
        all.push(lanewise("permute_bytes", ty, |b, [x, y, _]| {
            let picks: Vec<u8> = (0..lanes).map(|i| i % 16).collect();
            let wide = b.swizzle(y, y, &picks);
            let index = b.bin_imm(BinOp::And, wide, 15);
            vec![b.push(b.ty(index), Inst::PermuteBytes { table: x, index })]
        }));
    }
    all
}

fn control() -> Kernel {
    let mut b = Builder::new("control");
    let output = b.buffer("output", Access::ReadWrite, 64);
    let count = b.scalar("count", Scalar::I32);
    let wide = b.scalar("wide", Scalar::I64);
    let scale = b.scalar("scale", Scalar::F32);
    let shared = b.shared("shared", 100, 32);
    let x = b.builtin(Builtin::WorkgroupId(0));
    let z = b.builtin(Builtin::WorkgroupId(2));
    let grid = b.builtin(Builtin::WorkgroupCount(1));
    let zero = b.int(Scalar::I32, 0);
    let wide_zero = b.int(Scalar::I64, 0);
    let mask = b.int(Type::vector(Scalar::Bool, 4), 1);
    let sums = b.for_loop(zero, count, 3, &[scale, mask], |b, i, carried| {
        let f = b.cast(CastOp::IntToFloatS, i, Scalar::F32);
        let place = Address { memory: shared, index: Some(i), offset: 4 };
        b.store(place, 4, f);
        let odd = b.cmp(CmpOp::LtS, x, i);
        let picked = b.if_else(odd, |b| vec![b.add(f, f)], |b| vec![b.load(Scalar::F32, place, 4)]);
        vec![b.add(carried[0], picked[0]), b.un(UnOp::Not, carried[1])]
    });
    let four = b.splat(sums[0], 4);
    let none = b.f32(4, 0.0);
    let chosen = b.select(sums[1], four, none);
    b.barrier();
    b.for_loop(wide_zero, wide, 1, &[], |b, i, _| {
        b.store(Address { memory: output, index: Some(i), offset: 64 }, 1, z);
        Vec::new()
    });
    b.store(at(output, 0), 16, chosen);
    let before = b.push(Scalar::I32.into(), Inst::AtomicAdd { address: at(output, 16), value: grid });
    let same = b.push(Scalar::I32.into(), Inst::Shuffle { mode: ShuffleMode::Xor, value: before, index: zero });
    let same = b.push(Scalar::I32.into(), Inst::SubgroupReduce(ReduceOp::Add, same));
    b.store(at(output, 20), 4, same);
    b.finish()
}

#[test]
fn every_instruction_compiles_on_every_level() {
    let kernels = every_instruction();
    for name in CpuTarget::names() {
        let target = target(name);
        for kernel in &kernels {
            assert!(!emit(&target, kernel).payload.bytes().is_empty());
        }
    }
}

#[test]
fn emission_is_deterministic() {
    let kernel = control();
    let once = emit(&target("x86-64-v3"), &kernel);
    assert_eq!(once, emit(&target("x86-64-v3"), &kernel));
    assert_eq!(once.shared_bytes, 100);
}

fn count(text: &str, word: &str) -> usize {
    text.split_whitespace().filter(|&token| token == word).count()
}

fn dot(signs: Dot4Signs, a_bits: u8) -> Kernel {
    lanewise("dot", Type::vector(Scalar::I8, 64), |b, [x, y, z]| {
        let acc = b.bitcast(z, Type::vector(Scalar::I32, 16));
        vec![b.dot4(signs, a_bits, x, y, acc)]
    })
}

#[test]
fn byte_dots_are_single_instructions() {
    let unsigned = dot(Dot4Signs::UnsignedSigned, 4);
    let signed = dot(Dot4Signs::SignedSigned, 8);
    for (level, kernel, word, times) in [
        ("x86-64-v4+vnni+clif", &unsigned, "vpdpbusd", 4),
        ("x86-64-v3+vnni+clif", &unsigned, "vpdpbusd", 4),
        ("x86-64-v4+vnni+clif", &signed, "vpdpbusd", 8),
        ("x86-64-v3+clif", &unsigned, "vpmaddubsw", 4),
        ("x86-64-v3+clif", &unsigned, "vpmaddwd", 4),
        ("x86-64-v4+vnni", &unsigned, "vpdpbusd", 1),
        ("x86-64-v3+vnni", &unsigned, "vpdpbusd", 2),
        ("x86-64-v4+vnni", &signed, "vpdpbusd", 2),
        ("x86-64-v3", &unsigned, "vpmaddubsw", 2),
        ("x86-64-v3", &unsigned, "vpmaddwd", 2),
        ("x86-64-v2", &unsigned, "pmaddubsw", 4),
        ("aarch64+dotprod", &signed, "sdot", 4),
        ("aarch64+dotprod", &unsigned, "sdot", 4),
        ("aarch64+i8mm", &unsigned, "usdot", 4),
    ] {
        let text = asm(&target(level), kernel);
        assert_eq!(count(&text, word), times, "{word} on {level}:\n{text}");
    }
}

#[test]
fn dots_of_bf16_are_single_instructions_where_there_are_any() {
    for lanes in [1, 4, 8, 16] {
        let kernel = lanewise("dots", Type::vector(Scalar::Bf16, 2 * lanes), |b, [x, y, z]| {
            let acc = b.bitcast(z, Type::vector(Scalar::F32, lanes));
            vec![b.dot2(x, y, acc)]
        });
        let text = asm(&target("x86-64-v4+vnni+bf16"), &kernel);
        assert_eq!(count(&text, "vdpbf16ps"), 1, "{text}");
        let legal = verify(&kernel, &Caps::ANY).expect("a sound kernel");
        for level in CpuTarget::names().filter(|name| !name.ends_with("+bf16")) {
            let target = target(level);
            assert!(verify(&kernel, target.caps()).is_err());
            assert!(matches!(target.emit(&legal), Err(Error::Unsupported(text)) if text.contains("dot2 of bf16")));
        }
    }
}

#[test]
fn dots_of_bytes_in_pairs_are_single_instructions_where_there_are_any() {
    for lanes in [1, 8, 16, 32] {
        let kernel = lanewise("dots", Type::vector(Scalar::I8, 2 * lanes), |b, [x, y, z]| {
            let acc = b.bitcast(z, Type::vector(Scalar::I16, lanes));
            vec![b.dot2(x, y, acc)]
        });
        let legal = verify(&kernel, &Caps::ANY).expect("a sound kernel");
        for level in CpuTarget::names() {
            let target = target(level);
            if target.caps().features.has(Feature::Dot2) {
                let (text, parts) = (asm(&target, &kernel), u32::from(lanes).div_ceil(target.caps().vector_bytes / 2));
                assert_eq!(count(&text, "vpmaddubsw"), parts as usize, "{level}:\n{text}");
                continue;
            }
            assert!(verify(&kernel, target.caps()).is_err());
            assert!(matches!(target.emit(&legal), Err(Error::Unsupported(text)) if text.contains("dot2 of bytes")));
        }
    }
}

#[test]
fn fma_and_broadcast_are_single_instructions() {
    let fma = lanewise("fma", Type::vector(Scalar::F32, 8), |b, [x, y, z]| vec![b.fma(x, y, z)]);
    let text = asm(&target("aarch64"), &fma);
    assert_eq!(count(&text, "fmla"), 2, "{text}");
    for (level, times) in [("x86-64-v3+clif", 2), ("x86-64-v3", 1), ("x86-64-v4", 1)] {
        let text = asm(&target(level), &fma);
        assert_eq!(text.matches("vfmadd").count(), times, "{level}: {text}");
    }

    let splat = lanewise("splat", Scalar::I32.into(), |b, [x, ..]| vec![b.splat(x, 16)]);
    for level in ["x86-64-v3+clif", "x86-64-v3", "x86-64-v4"] {
        let text = asm(&target(level), &splat);
        assert_eq!(count(&text, "vbroadcastss"), 1, "{level}: {text}");
        assert_eq!(count(&text, "vmovd"), 0, "{level}: {text}");
    }
}

#[test]
fn a_splat_of_a_load_that_one_instruction_reads_is_an_embedded_broadcast() {
    let ty = Type::vector(Scalar::F32, 16);
    let kernel = |reads: usize| {
        let mut b = Builder::new("broadcast");
        let input = b.buffer("input", Access::Read, 64);
        let out = b.buffer("out", Access::Write, 64);
        let lane = b.load(Scalar::F32, at(input, 64), 4);
        let lanes = b.splat(lane, 16);
        let x = b.load(ty, at(input, 0), 64);
        let mut sum = x;
        for _ in 0..reads {
            let own = b.add(sum, sum);
            sum = b.fma(own, lanes, sum);
        }
        let words = b.bitcast(sum, Type::vector(Scalar::I8, 64));
        let word = b.load(Scalar::I32, at(input, 68), 4);
        let bytes = b.splat(word, 16);
        let bytes = b.bitcast(bytes, Type::vector(Scalar::I8, 64));
        let nothing = b.int(Type::vector(Scalar::I32, 16), 0);
        let dot = b.dot4(Dot4Signs::UnsignedSigned, 8, words, bytes, nothing);
        b.store(at(out, 0), 64, dot);
        b.finish()
    };
    for (level, reads, embedded, broadcasts) in
        [("x86-64-v4+vnni", 1, 2, 0), ("x86-64-v4+vnni", 2, 1, 1), ("x86-64-v4", 1, 1, 1), ("x86-64-v3+vnni", 1, 0, 2)]
    {
        let text = asm(&target(level), &kernel(reads));
        assert_eq!(text.matches("{1to16}").count(), embedded, "{level}: {text}");
        assert_eq!(count(&text, "vbroadcastss"), broadcasts, "{level}: {text}");
    }
}

#[test]
fn refusals_name_what_is_missing() {
    let refused = |kernel: &Kernel| {
        let verified = verify(kernel, &Caps::ANY).expect("sound kernel");
        match target("x86-64-v3").emit(&verified) {
            Err(Error::Unsupported(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    let half = lanewise("half", Scalar::F16.into(), |b, [x, y, _]| vec![b.add(x, y)]);
    assert!(refused(&half).contains("arithmetic on f16"));
    let mut crowd = Builder::new("crowd");
    crowd.workgroup(32, 1, 1);
    assert!(refused(&crowd.finish()).contains("workgroup of 32 threads"));
    let Err(Error::Unsupported(message)) = CpuTarget::named("pdp-11") else { panic!("accepted") };
    assert!(message.contains("x86-64-v2") && message.contains("riscv64"), "{message}");
    assert!(CpuTarget::named("x86-64-v3@aarch64-apple-darwin").is_err());
}

#[test]
fn the_host_has_a_level() {
    let host = CpuTarget::host().expect("a known level");
    assert_eq!(target(host.name()).caps(), host.caps());
    assert_eq!(
        host.caps().features.has(Feature::Dot4UnsignedSigned),
        host.name().contains("vnni") || host.name().contains("i8mm")
    );
}

#[test]
fn object_files_start_as_their_format_says() {
    for (triple, level, magic) in [
        ("x86_64-unknown-linux-gnu", "x86-64-v3", &[0x7f, b'E', b'L', b'F'][..]),
        ("aarch64-apple-darwin", "aarch64@aarch64-apple-darwin", &[0xcf, 0xfa, 0xed, 0xfe]),
        ("x86_64-pc-windows-msvc", "x86-64-v3@x86_64-pc-windows-msvc", &[0x64, 0x86]),
        ("riscv64gc-unknown-linux-gnu", "riscv64", &[0x7f, b'E', b'L', b'F']),
    ] {
        let artifact = emit(&target(level), &control());
        let triple: Triple = triple.parse().expect("a triple");
        let file = object(&[&artifact], &triple).expect("an object");
        assert!(file.starts_with(magic), "{triple}: {:x?}", &file[..8]);
        assert!(file.windows(7).any(|name| name == b"control"));
        assert_eq!(file, object(&[&artifact], &triple).expect("an object"));
        assert!(matches!(object(&[&artifact, &artifact], &triple), Err(Error::Invalid(_))));
        let text = Artifact { payload: Payload::Text(String::new()), ..artifact };
        assert!(matches!(object(&[&text], &triple), Err(Error::Invalid(_))));
    }
}
