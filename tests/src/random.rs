//! Seeded random kernels that cannot trap.
//!
//! Reads a seed and options, makes a kernel with its launch. Always holds: addresses are masked into range and
//! aligned, loops are short, divisors are constants, each thread writes bytes of its own, and no output depends on a
//! NaN's payload, so every correct target gives the interpreter's bytes exactly. The same seed and options give the
//! same case on every machine.

use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{
    Access, Address, BinOp, Builder, Builtin, CastOp, CmpOp, Constant, Dot4Signs, Inst, Kernel, Memory, ReduceOp,
    Scalar, ShuffleMode, Type, UnOp, Value,
};
use fastrand::Rng;

/// What a random kernel may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the widest value: 16 fits every CPU, 64 is the widest that caps name.
    pub vector_bytes: u32,
    /// Vectors narrower than 16 bytes too; otherwise values are scalars or at least 16 bytes wide.
    pub narrow_vectors: bool,
    /// Threads per workgroup. More than one brings shared memory, barriers, subgroup operations and atomics.
    pub threads: u32,
    /// Threads per subgroup; a power of two that divides `threads`.
    pub subgroup: u32,
    /// Arithmetic on f16 and bf16, which few devices have; loads, stores and casts of them appear anyway.
    pub small_float_arithmetic: bool,
    /// Extended instructions: `unpack`, `dot4`, `permute_bytes`.
    pub extended: bool,
    /// `dot2` of bf16, which few devices have.
    pub dot2_bf16: bool,
    /// `dot2` of bytes, which processors with AVX2 have.
    pub dot2_bytes: bool,
    /// `permute_long`, which few devices have; with vectors of 64 bytes.
    pub permute_long: bool,
    /// About how many instructions.
    pub size: u32,
}

impl Options {
    /// What every CPU target takes.
    pub const CPU: Options = Options {
        vector_bytes: 16,
        narrow_vectors: true,
        threads: 1,
        subgroup: 1,
        small_float_arithmetic: false,
        extended: true,
        dot2_bf16: false,
        dot2_bytes: false,
        permute_long: false,
        size: 60,
    };

    /// Everything that one thread can do.
    pub const WIDE: Options = Options { vector_bytes: 64, small_float_arithmetic: true, ..Options::CPU };

    /// One thread among the workgroups of a GPU: everything but wide sizes.
    pub const SIMT_ALONE: Options = Options { threads: 1, subgroup: 1, small_float_arithmetic: true, ..Options::CPU };

    /// Workgroups of several threads.
    pub const SIMT: Options = Options { threads: 16, subgroup: 8, small_float_arithmetic: true, ..Options::CPU };
}

/// A kernel with a launch that it cannot trap on.
#[derive(Clone, Debug)]
pub struct Case {
    /// The kernel.
    pub kernel: Kernel,
    /// Threads per subgroup.
    pub subgroup: u32,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Arguments; buffers hold what they hold before the launch.
    pub args: Vec<ArgValue>,
}

/// Bytes of the buffer that every thread reads.
const INPUT: u32 = 1024;
/// Bytes of each thread's part of the read-write buffer.
const SCRATCH: u32 = 256;
/// Bytes of each thread's part of the output, and of one place in it.
const OUT: u32 = 1024;
const PLACE: u32 = 64;
/// Alignment of every buffer.
const ALIGN: u32 = 64;

/// Makes the case of a seed.
pub fn kernel(seed: u64, options: Options) -> Case {
    let mut rng = Rng::with_seed(seed ^ 0x6b69_7262_6974);
    let grid = [rng.u32(1..4), rng.u32(1..3), 1];
    let all_threads = (grid[0] * grid[1] * options.threads) as usize;

    let mut b = Builder::new("random");
    b.workgroup(options.threads, 1, 1);
    let input = b.buffer("input", Access::Read, ALIGN);
    let scratch = b.buffer("scratch", Access::ReadWrite, ALIGN);
    let out = b.buffer("out", Access::Write, ALIGN);
    let scalars = vec![b.scalar("n", Scalar::I32), b.scalar("wide", Scalar::I64), b.scalar("x", Scalar::F32)];
    let mut args = vec![
        ArgValue::filled(input_bytes(&mut rng)),
        ArgValue::filled((0..all_threads * SCRATCH as usize).map(|_| rng.u8(..)).collect()),
        ArgValue::filled(vec![0; all_threads * OUT as usize]),
        ArgValue::I32(rng.i32(-100..100)),
        ArgValue::I64(rng.i64(..)),
        ArgValue::F32(rng.i32(-1000..1000) as f32 / 16.0),
    ];
    let team = (options.threads > 1).then(|| {
        args.push(ArgValue::filled(vec![0; 64]));
        let counters = b.buffer("counters", Access::ReadWrite, ALIGN);
        Team { shared: b.shared("slots", options.threads * PLACE, ALIGN), counters }
    });
    let thread = global_thread(&mut b, options.threads);
    let scratch_base = b.bin_imm(BinOp::Mul, thread, SCRATCH as i64);
    let out_base = b.bin_imm(BinOp::Mul, thread, OUT as i64);
    let local = b.builtin(Builtin::LocalId(0));
    let mut maker = Maker {
        rng,
        options,
        scope: scalars,
        left: options.size as i32,
        depth: 0,
        uniform: true,
        memory: [input, scratch, out],
        bases: [scratch_base, out_base],
        local,
        team,
    };
    maker.scope.push(thread);
    maker.block(&mut b, options.size as i32);
    for place in 0..OUT / PLACE / 2 {
        let value = maker.any(&mut b);
        maker.store_out(&mut b, place, value);
    }
    Case { kernel: b.finish(), subgroup: options.subgroup, grid, args }
}

/// Half raw bytes, half floats of ordinary size.
fn input_bytes(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..INPUT / 2).map(|_| rng.u8(..)).collect();
    while bytes.len() < INPUT as usize {
        bytes.extend((rng.i32(-4096..4096) as f32 / 64.0).to_le_bytes());
    }
    bytes
}

/// The number of this thread among all of the launch.
fn global_thread(b: &mut Builder, threads: u32) -> Value {
    let (x, y, width) =
        (b.builtin(Builtin::WorkgroupId(0)), b.builtin(Builtin::WorkgroupId(1)), b.builtin(Builtin::WorkgroupCount(0)));
    let row = b.mul(y, width);
    let group = b.add(row, x);
    let first = b.bin_imm(BinOp::Mul, group, threads as i64);
    let (lane, subgroup) = (b.builtin(Builtin::LocalId(0)), b.builtin(Builtin::LocalId(1)));
    let local = b.add(lane, subgroup);
    b.add(first, local)
}

/// What only workgroups of several threads have.
struct Team {
    shared: Memory,
    counters: Memory,
}

struct Maker {
    rng: Rng,
    options: Options,
    /// Values that may be read here.
    scope: Vec<Value>,
    /// Instructions still to be made.
    left: i32,
    depth: u32,
    /// Whether all threads of the workgroup come here together.
    uniform: bool,
    /// Input, scratch, output.
    memory: [Memory; 3],
    /// Where this thread's parts of scratch and output begin.
    bases: [Value; 2],
    local: Value,
    team: Option<Team>,
}

const INTS: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];

impl Maker {
    /// Makes up to `count` instructions; what they define goes out of scope with the caller's.
    fn block(&mut self, b: &mut Builder, count: i32) {
        for _ in 0..count {
            if self.left <= 0 {
                break;
            }
            self.left -= 1;
            if let Some(value) = self.instruction(b) {
                self.scope.push(value);
            }
        }
    }

    fn instruction(&mut self, b: &mut Builder) -> Option<Value> {
        let kinds = if self.depth < 3 { 32 } else { 28 };
        Some(match self.rng.u32(0..kinds) {
            0..=4 => self.int_bin(b),
            5..=7 => self.float_bin(b),
            8 => self.un(b),
            9 => self.bool_bin(b),
            10 => self.compare(b),
            11 | 12 => self.select(b),
            13..=15 => self.cast(b),
            16 => self.bitcast(b),
            17 => {
                let ty = self.float_type();
                let (x, y, z) = (self.value(b, ty), self.value(b, ty), self.value(b, ty));
                b.fma(x, y, z)
            }
            18 | 19 => self.lanes(b),
            20 | 21 => self.load(b),
            22 => {
                self.store(b);
                return None;
            }
            23..=25 if self.options.extended => self.extended(b),
            26 | 27 if self.team.is_some() => return self.team_work(b),
            28 | 29 => self.branch(b),
            30 | 31 => self.repeat(b),
            _ => self.int_bin(b),
        })
    }

    // Types.

    fn fits(&self, ty: Type) -> bool {
        ty.bytes() <= self.options.vector_bytes
            && (ty.lanes == 1 || ty.bytes() >= 16 || self.options.narrow_vectors)
            && ty.lanes.is_power_of_two()
            && ty.lanes <= 64
    }

    fn vector(&mut self, scalar: Scalar) -> Type {
        loop {
            let ty = Type::vector(scalar, 1 << self.rng.u32(0..7));
            if self.fits(ty) {
                return ty;
            }
        }
    }

    fn int_type(&mut self) -> Type {
        let scalar = INTS[self.rng.usize(0..4)];
        self.vector(scalar)
    }

    /// A float with arithmetic here.
    fn float_type(&mut self) -> Type {
        let scalar = match self.rng.u32(0..6) {
            0 if self.options.small_float_arithmetic => Scalar::F16,
            1 if self.options.small_float_arithmetic => Scalar::Bf16,
            _ => Scalar::F32,
        };
        self.vector(scalar)
    }

    /// Any type that lies in memory.
    fn memory_type(&mut self) -> Type {
        let scalar = Scalar::ALL[self.rng.usize(1..Scalar::ALL.len())];
        self.vector(scalar)
    }

    // Values.

    /// A value of this type: one in scope if there is one, else a new one.
    fn value(&mut self, b: &mut Builder, ty: Type) -> Value {
        let known: Vec<Value> = self.scope.iter().copied().filter(|&value| b.ty(value) == ty).collect();
        if !known.is_empty() && self.rng.u32(0..8) > 0 {
            // Late ones more often, so that chains grow.
            let from = if self.rng.bool() { known.len() * 2 / 3 } else { 0 };
            return known[self.rng.usize(from..known.len())];
        }
        if ty.scalar == Scalar::Bool {
            let bytes = ty.with_scalar(Scalar::I8);
            let (x, y) = (self.value(b, bytes), self.value(b, bytes));
            return b.cmp(CmpOp::LtS, x, y);
        }
        if self.rng.u32(0..3) > 0 { self.load_of(b, ty) } else { self.constant(b, ty) }
    }

    /// A value in scope that lies in memory.
    fn any(&mut self, b: &mut Builder) -> Value {
        let known: Vec<Value> = self.scope.iter().copied().filter(|&v| b.ty(v).scalar != Scalar::Bool).collect();
        let from = if self.rng.bool() { known.len() * 2 / 3 } else { 0 };
        known[self.rng.usize(from..known.len())]
    }

    fn constant(&mut self, b: &mut Builder, ty: Type) -> Value {
        let mut lane = || {
            let number = (self.rng.i32(-64..64) as f32) / 8.0;
            let bits = match ty.scalar {
                Scalar::F32 => number.to_bits() as u64,
                Scalar::F16 => half::f16::from_f32(number).to_bits() as u64,
                Scalar::Bf16 => half::bf16::from_f32(number).to_bits() as u64,
                _ => match self.rng.u32(0..4) {
                    0 => self.rng.u64(..),
                    1 => u64::MAX >> self.rng.u32(0..64),
                    2 => 1 << self.rng.u32(0..64),
                    _ => self.rng.u64(0..9),
                },
            };
            if ty.scalar.bits() == 64 { bits } else { bits & ((1 << ty.scalar.bits()) - 1) }
        };
        let lanes: Vec<u64> = (0..ty.lanes).map(|_| lane()).collect();
        if ty.lanes == 1 || lanes[0] & 1 == 0 {
            b.push(ty, Inst::Const(Constant::Splat(lanes[0])))
        } else {
            b.lanes(ty.scalar, &lanes)
        }
    }

    /// The value with 0 in place of NaN, since a NaN's payload is anyone's choice.
    fn clean(&mut self, b: &mut Builder, value: Value) -> Value {
        let ty = b.ty(value);
        if !ty.scalar.is_float() {
            return value;
        }
        if ty.scalar != Scalar::F32 && !self.options.small_float_arithmetic {
            // No comparison of small floats here. They come from memory and from clean casts, so their bits are known.
            return value;
        }
        let zero = b.push(ty, Inst::Const(Constant::Splat(0)));
        let is_nan = b.cmp(CmpOp::Ne, value, value);
        b.select(is_nan, zero, value)
    }

    // Instructions.

    fn int_bin(&mut self, b: &mut Builder) -> Value {
        use BinOp::*;
        const OPS: [BinOp; 13] = [Add, Sub, Mul, MinS, MaxS, And, Or, Xor, Shl, ShrU, ShrS, DivS, RemS];
        let ty = self.int_type();
        let op = OPS[self.rng.usize(0..OPS.len())];
        let x = self.value(b, ty);
        let y = match op {
            DivS | RemS => {
                // Neither 0 nor -1 in any width.
                let divisor = [2, 3, 7, -5, 10, 100, -128][self.rng.usize(0..7)];
                b.int(ty, divisor)
            }
            Shl | ShrU | ShrS if self.rng.bool() => {
                let amount = self.rng.i64(0..ty.scalar.bits() as i64);
                b.int(ty, amount)
            }
            _ => self.value(b, ty),
        };
        b.bin(op, x, y)
    }

    fn float_bin(&mut self, b: &mut Builder) -> Value {
        use BinOp::*;
        const OPS: [BinOp; 6] = [Add, Sub, Mul, Div, Min, Max];
        let ty = self.float_type();
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        b.bin(OPS[self.rng.usize(0..OPS.len())], x, y)
    }

    fn bool_bin(&mut self, b: &mut Builder) -> Value {
        let ty = self.vector(Scalar::Bool);
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        match self.rng.u32(0..4) {
            0 => b.bin(BinOp::And, x, y),
            1 => b.bin(BinOp::Or, x, y),
            2 => b.bin(BinOp::Xor, x, y),
            _ => b.un(UnOp::Not, x),
        }
    }

    fn un(&mut self, b: &mut Builder) -> Value {
        if self.rng.bool() {
            let ty = self.int_type();
            let x = self.value(b, ty);
            let popcount = if self.options.extended { UnOp::Popcount } else { UnOp::Not };
            b.un([UnOp::Neg, UnOp::Not, popcount][self.rng.usize(0..3)], x)
        } else {
            let ty = self.float_type();
            let x = self.value(b, ty);
            b.un([UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Nearest, UnOp::Floor][self.rng.usize(0..5)], x)
        }
    }

    fn compare(&mut self, b: &mut Builder) -> Value {
        if self.rng.bool() {
            let ty = self.int_type();
            let (x, y) = (self.value(b, ty), self.value(b, ty));
            b.cmp([CmpOp::Eq, CmpOp::Ne, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU][self.rng.usize(0..5)], x, y)
        } else {
            let ty = self.float_type();
            let (x, y) = (self.value(b, ty), self.value(b, ty));
            b.cmp([CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le][self.rng.usize(0..4)], x, y)
        }
    }

    fn select(&mut self, b: &mut Builder) -> Value {
        let ty = self.memory_type();
        let bools = Type::vector(Scalar::Bool, ty.lanes);
        let cond = if self.fits(bools) && self.rng.bool() { bools } else { Scalar::Bool.into() };
        let cond = self.value(b, cond);
        let (x, y) = (self.value(b, ty), self.value(b, ty));
        b.select(cond, x, y)
    }

    fn cast(&mut self, b: &mut Builder) -> Value {
        let (from, op, to) = loop {
            let from = self.memory_type();
            let to = Scalar::ALL[self.rng.usize(1..Scalar::ALL.len())];
            if !self.fits(from.with_scalar(to)) {
                continue;
            }
            let (narrower, wider) = (to.bits() < from.scalar.bits(), to.bits() > from.scalar.bits());
            let is_any_float = |scalar: Scalar| !scalar.is_int();
            let choose = self.rng.bool();
            let op = match (from.scalar, to) {
                (x, y) if x.is_int() && y.is_int() && narrower => CastOp::Truncate,
                (x, y) if x.is_int() && y.is_int() && wider => {
                    if choose {
                        CastOp::ExtendS
                    } else {
                        CastOp::ExtendU
                    }
                }
                (Scalar::I8 | Scalar::I16 | Scalar::I32, Scalar::F32) => {
                    if choose {
                        CastOp::IntToFloatS
                    } else {
                        CastOp::IntToFloatU
                    }
                }
                (Scalar::F32, Scalar::I8 | Scalar::I16 | Scalar::I32) => CastOp::FloatToIntS,
                (x, y) if is_any_float(x) && is_any_float(y) && x != y => CastOp::Float,
                _ => continue,
            };
            break (from, op, to);
        };
        let x = self.value(b, from);
        if op != CastOp::Float || to == Scalar::F32 {
            return b.cast(op, x, to);
        }
        // A NaN would choose its own bits in the narrow type: pass through f32, where it can be replaced.
        let x = if from.scalar == Scalar::F32 {
            self.clean(b, x)
        } else if self.fits(from.with_scalar(Scalar::F32)) {
            let wide = b.cast(op, x, Scalar::F32);
            self.clean(b, wide)
        } else {
            return x;
        };
        if to == Scalar::E8m0 {
            // It has no sign and no zero.
            let x = b.un(UnOp::Abs, x);
            let lanes = from.lanes;
            let (low, high) = (b.f32(lanes, 2f32.powi(-126)), b.f32(lanes, 2f32.powi(100)));
            let x = b.bin(BinOp::Max, x, low);
            let x = b.bin(BinOp::Min, x, high);
            return b.cast(op, x, to);
        }
        b.cast(op, x, to)
    }

    fn bitcast(&mut self, b: &mut Builder) -> Value {
        let from = self.memory_type();
        let mut to = self.memory_type();
        for _ in 0..50 {
            if to.bytes() == from.bytes() && to != from {
                break;
            }
            to = self.memory_type();
        }
        let x = self.value(b, from);
        if to.bytes() != from.bytes() {
            return x;
        }
        let x = self.clean(b, x);
        b.bitcast(x, to)
    }

    fn lanes(&mut self, b: &mut Builder) -> Value {
        let mut ty = self.memory_type();
        while ty.lanes == 1 {
            ty = self.memory_type();
        }
        match self.rng.u32(0..4) {
            0 => {
                let parts: Vec<Value> = (0..ty.lanes).map(|_| self.value(b, ty.scalar.into())).collect();
                b.vector(&parts)
            }
            1 => {
                let x = self.value(b, ty.scalar.into());
                b.splat(x, ty.lanes)
            }
            2 => {
                let x = self.value(b, ty);
                let lane = self.rng.u8(0..ty.lanes);
                b.extract(x, lane)
            }
            _ => {
                let (x, y) = (self.value(b, ty), self.value(b, ty));
                let mut result = self.vector(ty.scalar);
                while result.lanes == 1 {
                    result = self.vector(ty.scalar);
                }
                let picks: Vec<u8> = (0..result.lanes).map(|_| self.rng.u8(0..2 * ty.lanes)).collect();
                b.swizzle(x, y, &picks)
            }
        }
    }

    /// Bits of any words; half of the time exponents for which products and sums are about the smallest numbers.
    fn dot2_bf16(&mut self, b: &mut Builder, words: Type, sums: Type) -> Value {
        let (x, y) = (self.value(b, words), self.value(b, words));
        let tiny = self.rng.bool();
        let factors = [x, y].map(|words| {
            let words = if tiny {
                let kept = b.bin_imm(BinOp::And, words, 0x83ff);
                b.bin_imm(BinOp::Or, kept, 0x1c00)
            } else {
                words
            };
            let ty = b.ty(words).with_scalar(Scalar::Bf16);
            b.bitcast(words, ty)
        });
        let sum = self.value(b, sums.with_scalar(Scalar::F32));
        let sum = if tiny {
            // Its bits are looked at.
            let sum = self.clean(b, sum);
            let bits = b.bitcast(sum, sums);
            let bits = b.bin_imm(BinOp::And, bits, 0x82ff_ffff_u32 as i32 as i64);
            b.bitcast(bits, sums.with_scalar(Scalar::F32))
        } else {
            sum
        };
        b.dot2(factors[0], factors[1], sum)
    }

    /// Any bytes: half of the time so small that the sum of two products does not saturate.
    fn dot2_bytes(&mut self, b: &mut Builder) -> Value {
        let acc = self.vector(Scalar::I16);
        let bytes = Type::vector(Scalar::I8, 2 * acc.lanes);
        if !self.fits(bytes) {
            return self.int_bin(b);
        }
        let (mut x, y, acc) = (self.value(b, bytes), self.value(b, bytes), self.value(b, acc));
        if self.rng.bool() {
            x = b.bin_imm(BinOp::And, x, 0x7f);
        }
        b.dot2(x, y, acc)
    }

    fn extended(&mut self, b: &mut Builder) -> Value {
        match self.rng.u32(0..4) {
            0 | 1 => {
                let container = self.int_type();
                let width = container.scalar.bits() as u8;
                let widest = if self.rng.bool() { width.min(8) } else { width };
                let bits = self.rng.u8(1..=widest);
                let shift = self.rng.u8(0..=width - bits);
                let float = container.scalar == Scalar::I32 && self.rng.bool();
                let signed = self.rng.bool();
                let x = self.value(b, container);
                b.unpack(x, shift, bits, signed, if float { container.with_scalar(Scalar::F32) } else { container })
            }
            2 => {
                let acc = self.vector(Scalar::I32);
                let words = Type::vector(Scalar::I16, 2 * acc.lanes);
                if self.rng.u8(..4) == 0 && self.fits(words) {
                    let (x, y, acc) = (self.value(b, words), self.value(b, words), self.value(b, acc));
                    return b.dot2(x, y, acc);
                }
                if self.options.dot2_bf16 && self.rng.u8(..2) == 0 && self.fits(words) {
                    return self.dot2_bf16(b, words, acc);
                }
                if self.options.dot2_bytes && self.rng.u8(..3) == 0 {
                    return self.dot2_bytes(b);
                }
                let bytes = Type::vector(Scalar::I8, 4 * acc.lanes);
                if !self.fits(bytes) {
                    return self.int_bin(b);
                }
                let (mut x, y, acc) = (self.value(b, bytes), self.value(b, bytes), self.value(b, acc));
                let bits = [2, 4, 7, 8][self.rng.usize(0..4)];
                if self.rng.bool() {
                    return b.dot4(Dot4Signs::SignedSigned, 8, x, y, acc);
                }
                if bits < 8 {
                    x = b.bin_imm(BinOp::And, x, (1 << bits) - 1);
                }
                b.dot4(Dot4Signs::UnsignedSigned, bits, x, y, acc)
            }
            _ if self.options.permute_long && self.rng.u8(..2) == 0 => {
                let ty = Type::vector(Scalar::I8, 64);
                let [low, high, index] = [0; 3].map(|_| self.value(b, ty));
                b.push(ty, Inst::PermuteLong { low, high, index })
            }
            _ => {
                let table_type = Type::vector(Scalar::I8, 16);
                let index_type = if self.options.vector_bytes > 16 && self.rng.bool() {
                    Type::vector(Scalar::I8, 32)
                } else {
                    table_type
                };
                let (table, index) = (self.value(b, table_type), self.value(b, index_type));
                let index = b.bin_imm(BinOp::And, index, 15);
                b.push(index_type, Inst::PermuteBytes { table, index })
            }
        }
    }

    // Memory.

    /// An address in `len` bytes from `base`, aligned for the type in some random degree.
    fn address(&mut self, b: &mut Builder, memory: Memory, base: Option<Value>, len: u32, ty: Type) -> (Address, u32) {
        let align = 1 << self.rng.u32(0..=ty.bytes().min(16).trailing_zeros());
        // Half of the room for the index, half for the constant.
        let half = (len / 2) as i64;
        let slack = (half - ty.bytes() as i64) / align as i64;
        let offset = self.rng.i64(0..=slack) * align as i64;
        if self.rng.u32(0..3) == 0 && base.is_none() {
            return (Address { memory, index: None, offset }, align);
        }
        let x = self.value(b, Scalar::I32.into());
        let mut index = b.bin_imm(BinOp::And, x, (half - 1) & !(align as i64 - 1));
        let mut offset = offset;
        if base.is_none() && self.rng.u32(0..4) == 0 {
            let zero = b.int(Scalar::I32, 0);
            index = b.bin(BinOp::Sub, zero, index);
            offset += half;
        }
        if let Some(base) = base {
            index = b.add(base, index);
        }
        if self.rng.bool() {
            index = b.cast(CastOp::ExtendS, index, Scalar::I64);
        }
        (Address { memory, index: Some(index), offset }, align)
    }

    fn load(&mut self, b: &mut Builder) -> Value {
        let ty = self.memory_type();
        self.load_of(b, ty)
    }

    fn load_of(&mut self, b: &mut Builder, ty: Type) -> Value {
        let [input, scratch, _] = self.memory;
        let from_scratch = self.rng.u32(0..4) == 0 && ty.scalar != Scalar::Bool;
        // The base of an address must not lead to another load of its own.
        let scalars = self.scope.iter().any(|&v| b.ty(v) == Scalar::I32.into());
        if !scalars {
            return self.constant(b, ty);
        }
        let (address, align) = if from_scratch {
            let base = self.bases[0];
            self.address(b, scratch, Some(base), SCRATCH, ty)
        } else {
            self.address(b, input, None, INPUT, ty)
        };
        b.load(ty, address, align)
    }

    fn store(&mut self, b: &mut Builder) {
        let value = self.any(b);
        if self.rng.bool() {
            let value = self.clean(b, value);
            let (base, ty) = (self.bases[0], b.ty(value));
            let (address, align) = self.address(b, self.memory[1], Some(base), SCRATCH, ty);
            b.store(address, align, value);
        } else {
            let place = self.rng.u32(OUT / PLACE / 2..OUT / PLACE);
            self.store_out(b, place, value);
        }
    }

    fn store_out(&mut self, b: &mut Builder, place: u32, value: Value) {
        let value = self.clean(b, value);
        let align = b.ty(value).bytes().min(ALIGN);
        let address = Address { memory: self.memory[2], index: Some(self.bases[1]), offset: (place * PLACE) as i64 };
        b.store(address, align, value);
    }

    // Control flow.

    /// Runs `make` one level deeper; what it defines goes out of scope.
    fn inside<T>(&mut self, uniform: bool, make: impl FnOnce(&mut Maker) -> T) -> T {
        let (mark, was) = (self.scope.len(), self.uniform);
        self.depth += 1;
        self.uniform &= uniform;
        let out = make(self);
        self.uniform = was;
        self.depth -= 1;
        self.scope.truncate(mark);
        out
    }

    fn branch(&mut self, b: &mut Builder) -> Value {
        let cond = self.value(b, Scalar::Bool.into());
        let types: Vec<Type> = (0..self.rng.usize(1..4)).map(|_| self.memory_type()).collect();
        let count = self.rng.i32(1..8);
        // Two closures want the maker, one after the other.
        let this = std::cell::RefCell::new(self);
        let side = |b: &mut Builder| {
            this.borrow_mut().inside(false, |maker| {
                maker.block(b, count);
                types.iter().map(|&ty| maker.value(b, ty)).collect()
            })
        };
        let results = b.if_else(cond, side, side);
        let maker = this.into_inner();
        maker.scope.extend(&results);
        results[0]
    }

    fn repeat(&mut self, b: &mut Builder) -> Value {
        let scalar = if self.rng.bool() { Scalar::I32 } else { Scalar::I64 };
        let known = self.rng.u32(0..3) > 0;
        let start = self.rng.i64(-2..3);
        let turns = self.rng.i64(0..5);
        let step = self.rng.i64(1..4);
        let start_value = b.int(scalar, start);
        let end = if known {
            b.int(scalar, start + turns)
        } else {
            let x = self.value(b, scalar.into());
            b.bin_imm(BinOp::And, x, 3)
        };
        let types: Vec<Type> = (0..self.rng.usize(1..4)).map(|_| self.memory_type()).collect();
        let init: Vec<Value> = types.iter().map(|&ty| self.value(b, ty)).collect();
        let count = self.rng.i32(1..10);
        let results = b.for_loop(start_value, end, step, &init, |b, variable, carried| {
            self.inside(known, |maker| {
                maker.scope.push(variable);
                maker.scope.extend(carried);
                maker.block(b, count);
                types.iter().map(|&ty| maker.value(b, ty)).collect()
            })
        });
        self.scope.extend(&results);
        results[0]
    }

    // Several threads.

    /// Something that the threads of a workgroup do together, or an atomic addition where they are apart.
    fn team_work(&mut self, b: &mut Builder) -> Option<Value> {
        let team = self.team.as_ref()?;
        let (shared, counters) = (team.shared, team.counters);
        if !self.uniform {
            let value = self.value(b, Scalar::I32.into());
            let offset = 4 * self.rng.i64(0..16);
            // The old value depends on who comes first, so nobody reads it.
            b.push(
                Scalar::I32.into(),
                Inst::AtomicAdd { address: Address { memory: counters, index: None, offset }, value },
            );
            return None;
        }
        let scalar: Type = if self.rng.bool() { Scalar::I32.into() } else { Scalar::F32.into() };
        match self.rng.u32(0..3) {
            0 => {
                let value = self.value(b, scalar);
                let op = if self.rng.bool() { ReduceOp::Add } else { ReduceOp::Max };
                Some(b.push(scalar, Inst::SubgroupReduce(op, value)))
            }
            1 => {
                let value = self.value(b, scalar);
                let mode = [ShuffleMode::Index, ShuffleMode::Xor, ShuffleMode::Down][self.rng.usize(0..3)];
                let index = self.value(b, Scalar::I32.into());
                let index = b.bin_imm(BinOp::And, index, self.options.subgroup as i64 - 1);
                Some(b.push(scalar, Inst::Shuffle { mode, value, index }))
            }
            _ => {
                let ty = self.memory_type();
                let value = self.value(b, ty);
                let align = ty.bytes().min(ALIGN);
                let mine = b.bin_imm(BinOp::Mul, self.local, PLACE as i64);
                b.store(Address { memory: shared, index: Some(mine), offset: 0 }, align, value);
                b.barrier();
                let distance = self.rng.i64(0..self.options.threads as i64);
                let other = b.bin_imm(BinOp::Add, self.local, distance);
                let other = b.bin_imm(BinOp::RemS, other, self.options.threads as i64);
                let theirs = b.bin_imm(BinOp::Mul, other, PLACE as i64);
                let value = b.load(ty, Address { memory: shared, index: Some(theirs), offset: 0 }, align);
                b.barrier();
                Some(value)
            }
        }
    }
}
