//! The text form as a property: what is printed reads back the same, and no text makes the parser or verifier panic.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{
    Access, Address, BinOp, Builder, Builtin, CastOp, CmpOp, Constant, Dot4Signs, Inst, Kernel, MAX_DEPTH, Memory,
    ReduceOp, Scalar, ShuffleMode, Statement, Type, UnOp, Value, parse, verify,
};
use fastrand::Rng;

#[test]
fn random_kernels_verify_and_read_back_the_same() {
    for seed in 0..300 {
        let kernel = random_kernel(seed);
        if let Err(faults) = verify(&kernel, &Caps::ANY) {
            panic!("seed {seed}: {}\n{kernel}", faults[0]);
        }
        let text = kernel.to_string();
        match parse(&text) {
            Ok(back) => assert_eq!(back, kernel, "seed {seed}\n{text}"),
            Err(error) => panic!("seed {seed}: {error}\n{text}"),
        }
    }
}

#[test]
fn random_kernels_together_use_every_instruction() {
    let mut text = String::new();
    for seed in 0..300 {
        text.push_str(&random_kernel(seed).to_string());
    }
    let missing: Vec<&str> = EVERY_WORD.split_whitespace().filter(|word| !text.contains(&format!(" {word}"))).collect();
    assert!(missing.is_empty(), "never made: {missing:?}");
}

const EVERY_WORD: &str = "const arg workgroup_id.x workgroup_count.y local_id.z lane subgroup add sub mul div div_s rem_s \
    min max min_s max_s and or xor shl shr_u shr_s neg not abs sqrt nearest floor exp2 popcount eq ne lt le lt_s le_s \
    lt_u select truncate extend_u extend_s int_to_float_s int_to_float_u float_to_int_s convert bitcast fma vector splat \
    extract swizzle load store barrier for if else yield unpack_u unpack_s dot4_ss dot4_us permute_bytes permute_long shuffle_index \
    shuffle_xor shuffle_down subgroup_add subgroup_max atomic_add unused shared carry";

#[test]
fn mutated_text_never_panics() {
    let mut rng = Rng::with_seed(7);
    let texts: Vec<String> = (0..40).map(|seed| random_kernel(seed).to_string()).collect();
    let (mut parsed, mut verified) = (0, 0);
    for round in 0..24_000 {
        let mut bytes = texts[round % texts.len()].clone().into_bytes();
        for _ in 0..rng.usize(1..4) {
            mutate(&mut bytes, &mut rng);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(kernel) = parse(&text) {
            parsed += 1;
            let printed = kernel.to_string();
            match verify(&kernel, &Caps::ANY) {
                Ok(_) => {
                    verified += 1;
                    assert_eq!(parse(&printed).as_ref(), Ok(&kernel), "from:\n{text}");
                }
                Err(faults) => assert!(faults.iter().all(|fault| !fault.message.is_empty())),
            }
        }
    }
    assert!(
        parsed > 1000 && verified > 100,
        "the mutations are too harsh to test: {parsed} parsed, {verified} verified"
    );
}

#[test]
fn hostile_texts_are_refused_in_bounded_space() {
    let head = "kernel @a() workgroup 1 1 1 { %0: bool = const true ";
    for depth in [MAX_DEPTH + 1, 200_000] {
        let error = parse(&format!("{head}{}", "if %0 { ".repeat(depth))).expect_err("too deep");
        assert!(error.expected.contains("nested"), "{error}");
    }
    let deep = format!("{head}{}{}}}", "if %0 { ".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    let kernel = parse(&deep).expect("just deep enough");
    assert!(verify(&kernel, &Caps::ANY).is_ok());
    assert_eq!(parse(&kernel.to_string()), Ok(kernel));
    for text in ["", "kernel", "%", "@", "-", "0x", "//", "kernel @a(", "\u{feff}", "kernel @a() workgroup 1 1 0x"] {
        assert!(parse(text).is_err(), "{text:?}");
    }
    let far = "kernel @a() workgroup 1 1 1 { %4294967295: i32 = const 1 }";
    assert!(parse(far).expect_err("a hole of four thousand million values").expected.contains("%0"));
    let many = format!("{head} %1: bool = vector [{}%0] }}", "%9, ".repeat(20_000));
    let kernel = parse(&many).expect("it is well formed");
    assert!(verify(&kernel, &Caps::ANY).is_err_and(|faults| faults.len() > 20_000));
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(..bytes.len());
    let word = |bytes: &[u8], at: usize| {
        let blank = |byte: &u8| byte.is_ascii_whitespace();
        let start = bytes[..at].iter().rposition(blank).map_or(0, |i| i + 1);
        let end = bytes[at..].iter().position(blank).map_or(bytes.len(), |i| at + i);
        start..end.max(start)
    };
    match rng.u32(..7) {
        0 => bytes[at] ^= 1 << rng.u32(..8),
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(word(bytes, at))),
        3 => {
            let from = rng.usize(..bytes.len());
            let piece = bytes[word(bytes, from)].to_vec();
            bytes.splice(word(bytes, at), piece);
        }
        4 => bytes[at] = *rng.choice(b"0123456789%x-.[]{}(),:=").unwrap_or(&b'0'),
        5 => {
            // A digit elsewhere: another value, lane, offset or step.
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                bytes[at + digit] = b'0' + rng.u8(..10);
            }
        }
        _ => {
            let line = |byte: &u8| *byte == b'\n';
            let start = bytes[..at].iter().rposition(line).map_or(0, |i| i + 1);
            let end = bytes[at..].iter().position(line).map_or(bytes.len(), |i| at + i);
            bytes.drain(start.min(end)..end);
        }
    }
}

/// Makes random statements from values in scope.
struct Maker {
    rng: Rng,
    memories: [Memory; 4],
    depth: usize,
}

fn random_kernel(seed: u64) -> Kernel {
    let mut b = Builder::new("random_1");
    let mut rng = Rng::with_seed(seed);
    b.workgroup(rng.u32(1..9), rng.u32(1..3), rng.u32(1..3));
    let memories = [
        b.buffer("x", Access::Read, 64),
        b.buffer("load", Access::Write, 16),
        b.buffer("z", Access::ReadWrite, 32),
        b.shared("const", 1024, 64),
    ];
    let mut scope = vec![
        b.scalar("n", Scalar::I32),
        b.scalar("m", Scalar::I64),
        b.scalar("s", Scalar::F32),
        b.int(Scalar::Bool, 1),
    ];
    if rng.bool() {
        b.value(Type::vector(Scalar::E8m0, 2));
    }
    b.barrier();
    let mut maker = Maker { rng, memories, depth: 0 };
    let reduced =
        b.push(Scalar::F32.into(), Inst::SubgroupReduce(maker.pick(&[ReduceOp::Add, ReduceOp::Max]), scope[2]));
    let mode = maker.pick(&[ShuffleMode::Index, ShuffleMode::Xor, ShuffleMode::Down]);
    let moved = b.push(Scalar::I32.into(), Inst::Shuffle { mode, value: scope[0], index: scope[0] });
    scope.extend([reduced, moved]);
    maker.statements(&mut b, &mut scope, 30);
    b.finish()
}

impl Maker {
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.rng.usize(..items.len())]
    }

    fn statements(&mut self, b: &mut Builder, scope: &mut Vec<Value>, count: usize) {
        for _ in 0..count {
            self.statement(b, scope);
        }
    }

    fn constant(&mut self, b: &mut Builder, ty: Type) -> Value {
        let mask = if ty.scalar.bits() == 64 { u64::MAX } else { (1 << ty.scalar.bits()) - 1 };
        let rng = &mut self.rng;
        let mut bits = || rng.u64(..) & mask;
        let splat = Constant::Splat(bits());
        let lanes = Constant::Lanes((0..ty.lanes).map(|_| bits()).collect());
        let constant = if self.rng.bool() { splat } else { lanes };
        b.push(ty, Inst::Const(constant))
    }

    /// A value of this type: one in scope, or a new constant.
    fn of(&mut self, b: &mut Builder, scope: &[Value], ty: Type) -> Value {
        let known: Vec<Value> = scope.iter().copied().filter(|&v| b.ty(v) == ty).collect();
        if known.is_empty() || self.rng.u32(..4) == 0 { self.constant(b, ty) } else { self.pick(&known) }
    }

    fn address(&mut self, b: &mut Builder, scope: &[Value], choices: &[usize], ty: Type) -> (Address, u32) {
        let memory = self.memories[self.pick(choices)];
        let align = self.pick(&[1, 2, 4, 8, 16]);
        let index_type = self.pick(&[Scalar::I32, Scalar::I64]);
        let index = self.rng.bool().then(|| self.of(b, scope, index_type.into()));
        let offset = match index {
            Some(_) => self.rng.i64(-100..100),
            None => self.rng.i64(0..(1024 - ty.bytes() as i64) / 16) * 16,
        };
        (Address { memory, index, offset }, align)
    }

    fn statement(&mut self, b: &mut Builder, scope: &mut Vec<Value>) {
        use Scalar::*;
        let lanes = self.pick(&[1, 2, 4, 8, 16, 32, 64]);
        let int = Type::vector(self.pick(&[I8, I16, I32, I64]), lanes);
        let float = Type::vector(self.pick(&[F16, Bf16, F32]), lanes);
        let stored = Type::vector(self.pick(&[E4m3fn, E4m3fnuz, E5m2, E5m2fnuz, E8m0]), lanes);
        let any = self.pick(&[int, float, stored]);
        let i32 = Type::scalar(I32);
        let value = match self.rng.u32(..25) {
            0 => {
                let ty = self.pick(&[int, float, stored, Type::vector(Bool, lanes)]);
                self.constant(b, ty)
            }
            1 => {
                let axis = self.rng.u8(..3);
                b.builtin(self.pick(&[
                    Builtin::WorkgroupId(axis),
                    Builtin::WorkgroupCount(axis),
                    Builtin::LocalId(axis),
                    Builtin::Lane,
                    Builtin::Subgroup,
                ]))
            }
            2 => {
                let op = self.pick(&[BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Div, BinOp::Min, BinOp::Max]);
                let (x, y) = (self.of(b, scope, float), self.of(b, scope, float));
                b.bin(op, x, y)
            }
            3 => {
                let op = self.pick(&[
                    BinOp::MinS,
                    BinOp::MaxS,
                    BinOp::And,
                    BinOp::Or,
                    BinOp::Xor,
                    BinOp::Shl,
                    BinOp::ShrU,
                    BinOp::ShrS,
                ]);
                let (x, y) = (self.of(b, scope, int), self.of(b, scope, int));
                b.bin(op, x, y)
            }
            4 => {
                let x = self.of(b, scope, int);
                let op = self.pick(&[BinOp::DivS, BinOp::RemS]);
                b.bin_imm(op, x, 7)
            }
            5 => {
                let x = self.of(b, scope, float);
                b.un(self.pick(&[UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Nearest, UnOp::Floor]), x)
            }
            6 => {
                let x = self.of(b, scope, int);
                b.un(self.pick(&[UnOp::Neg, UnOp::Not, UnOp::Popcount]), x)
            }
            7 => {
                let x = self.of(b, scope, Type::vector(F32, lanes));
                b.un(UnOp::Exp2, x)
            }
            8 => {
                let (x, y) = (self.of(b, scope, float), self.of(b, scope, float));
                b.cmp(self.pick(&[CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le]), x, y)
            }
            9 => {
                let (x, y) = (self.of(b, scope, int), self.of(b, scope, int));
                b.cmp(self.pick(&[CmpOp::Eq, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU]), x, y)
            }
            10 => {
                let (x, y) = (self.of(b, scope, any), self.of(b, scope, any));
                let cond = self.pick(&[1, lanes]);
                let cond = self.of(b, scope, Type::vector(Bool, cond));
                b.select(cond, x, y)
            }
            11 => {
                let (op, from, to) = self.pick(&[
                    (CastOp::Truncate, I64, I16),
                    (CastOp::ExtendU, I8, I32),
                    (CastOp::ExtendS, I16, I64),
                    (CastOp::IntToFloatS, I32, F32),
                    (CastOp::IntToFloatU, I8, F32),
                    (CastOp::FloatToIntS, F32, I16),
                    (CastOp::Float, F16, F32),
                    (CastOp::Float, F32, E4m3fnuz),
                ]);
                let x = self.of(b, scope, Type::vector(from, lanes));
                b.cast(op, x, to)
            }
            12 => {
                let x = self.of(b, scope, Type::vector(I8, 16));
                b.bitcast(x, Type::vector(F32, 4))
            }
            13 => {
                let (x, y, z) = (self.of(b, scope, float), self.of(b, scope, float), self.of(b, scope, float));
                b.fma(x, y, z)
            }
            14 => {
                let parts: Vec<Value> = (0..lanes).map(|_| self.of(b, scope, any.scalar.into())).collect();
                b.vector(&parts)
            }
            15 => {
                let x = self.of(b, scope, any.scalar.into());
                b.splat(x, lanes)
            }
            16 => {
                let x = self.of(b, scope, any);
                b.extract(x, self.rng.u8(..lanes))
            }
            17 => {
                let (x, y) = (self.of(b, scope, any), self.of(b, scope, any));
                let count = self.pick(&[1, 2, 4, 8]);
                let picked: Vec<u8> = (0..count).map(|_| self.rng.u8(..2 * lanes)).collect();
                b.swizzle(x, y, &picked)
            }
            18 => {
                let (address, align) = self.address(b, scope, &[0, 2, 3], any);
                b.load(any, address, align)
            }
            19 => {
                let x = self.of(b, scope, any);
                let (address, align) = self.address(b, scope, &[1, 2, 3], any);
                return b.store(address, align, x);
            }
            20 => {
                let x = self.of(b, scope, Type::vector(I8, 64));
                let bits = self.rng.u8(1..9);
                let to = self.pick(&[Type::vector(I8, 64), Type::vector(I32, 16), Type::vector(F32, 16)]);
                let (shift, signed) = (self.rng.u8(..9 - bits), self.rng.bool());
                b.unpack(x, shift, bits, signed, to)
            }
            21 => {
                let count = self.pick(&[1, 2, 4, 8, 16]);
                let bytes = Type::vector(I8, 4 * count);
                let (x, y) = (self.of(b, scope, bytes), self.of(b, scope, bytes));
                let acc = self.of(b, scope, Type::vector(I32, count));
                let (signs, bits) = self.pick(&[
                    (Dot4Signs::SignedSigned, 8),
                    (Dot4Signs::UnsignedSigned, 4),
                    (Dot4Signs::UnsignedSigned, 8),
                ]);
                if self.pick(&[false, false, true]) {
                    let words = Type::vector(I16, 2 * count);
                    let (x, y) = (self.of(b, scope, words), self.of(b, scope, words));
                    b.dot2(x, y, acc)
                } else {
                    b.dot4(signs, bits, x, y, acc)
                }
            }
            22 => {
                let table = self.of(b, scope, Type::vector(I8, 16));
                let count = self.pick(&[16, 32, 64]);
                let index = self.of(b, scope, Type::vector(I8, count));
                if count == 64 && self.pick(&[false, true]) {
                    let [low, high] = [0; 2].map(|_| self.of(b, scope, Type::vector(I8, 64)));
                    b.push(b.ty(index), Inst::PermuteLong { low, high, index })
                } else {
                    b.push(b.ty(index), Inst::PermuteBytes { table, index })
                }
            }
            23 => {
                let value = self.of(b, scope, i32);
                let (mut address, _) = self.address(b, scope, &[2, 3], i32);
                address.offset -= address.offset % 4;
                b.push(i32, Inst::AtomicAdd { address, value })
            }
            _ if self.depth < 3 => return self.control(b, scope),
            _ => return,
        };
        scope.push(value);
    }

    fn control(&mut self, b: &mut Builder, scope: &mut Vec<Value>) {
        let carried: Vec<Value> = (0..self.rng.usize(..3)).map(|_| self.pick(scope)).collect();
        let types: Vec<Type> = carried.iter().map(|&v| b.ty(v)).collect();
        self.depth += 1;
        let count = self.rng.usize(..8);
        let results = if self.rng.bool() {
            let counter = self.pick(&[Scalar::I32, Scalar::I64]).into();
            let (start, end) = (self.of(b, scope, counter), self.of(b, scope, counter));
            let step = self.rng.i64(1..100);
            b.for_loop(start, end, step, &carried, |b, variable, names| {
                let mut inner = scope.clone();
                inner.push(variable);
                inner.extend(names);
                self.statements(b, &mut inner, count);
                types.iter().map(|&ty| self.of(b, &inner, ty)).collect()
            })
        } else {
            let cond = self.of(b, scope, Scalar::Bool.into());
            let (mut then, mut otherwise) = (scope.clone(), scope.clone());
            let yielded = std::cell::RefCell::new(&mut *self);
            b.if_else(
                cond,
                |b| {
                    let mut maker = yielded.borrow_mut();
                    maker.statements(b, &mut then, count);
                    types.iter().map(|&ty| maker.of(b, &then, ty)).collect()
                },
                |b| {
                    let mut maker = yielded.borrow_mut();
                    maker.statements(b, &mut otherwise, count / 2);
                    types.iter().map(|&ty| maker.of(b, &otherwise, ty)).collect()
                },
            )
        };
        self.depth -= 1;
        scope.extend(results);
    }
}

#[test]
fn every_f32_f16_and_bf16_constant_reads_back_bit_for_bit() {
    let mut rng = Rng::with_seed(3);
    let mut patterns: Vec<(Scalar, u64)> = (0..1 << 16).flat_map(|n| [(Scalar::F16, n), (Scalar::Bf16, n)]).collect();
    patterns.extend((0..1 << 16).map(|_| (Scalar::F32, rng.u32(..) as u64)));
    for chunk in patterns.chunks(4096) {
        let mut b = Builder::new("constants");
        for &(scalar, bits) in chunk {
            let result = b.value(scalar.into());
            b.statement(Statement { results: vec![result], inst: Inst::Const(Constant::Splat(bits)) });
        }
        let kernel = b.finish();
        assert_eq!(parse(&kernel.to_string()), Ok(kernel));
    }
}
