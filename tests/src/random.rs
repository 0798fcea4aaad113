//! Seeded random kernels that cannot trap.
//!
//! Reads a seed and options, makes a kernel with its launch. Always holds: addresses are masked into range and
//! aligned, loops are short, divisors are constants, each thread writes bytes of its own, and no output depends on a
//! NaN's payload, so every correct target gives the interpreter's bytes exactly. The same seed and options give the
//! same case on every machine.

mod control;
mod memory;
mod operations;

use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{
    Access, BinOp, Builder, Builtin, CmpOp, Constant, Inst, Kernel, Memory, Scalar, Type, Value,
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
}
