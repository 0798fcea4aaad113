//! The kernel: parameters, shared arrays, a tree of blocks, instructions.
//!
//! A kernel says what one thread of a workgroup does. Values are numbered once over the whole kernel; `types[v]` is
//! the type of value `v`. Control flow is structured: `for` carries values, `if` yields values, there is no jump.

use super::asynchronous::Asynchronous;
use super::cooperative::Cooperative;
use super::types::{Memory, Scalar, Type, Value};
use crate::caps::MmaShape;

/// One kernel: a program for each thread of a grid of workgroups.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Entry name: `[A-Za-z_][A-Za-z0-9_]*`.
    pub name: String,
    /// What the caller passes, in order.
    pub params: Vec<Param>,
    /// Memory that the threads of one workgroup share; undefined at the start.
    pub shared: Vec<Shared>,
    /// Threads per workgroup along x, y, z.
    pub workgroup: [u32; 3],
    /// Type of each value; its length is the number of values.
    pub types: Vec<Type>,
    /// The program. It holds no `yield`: only loop and branch bodies do.
    pub body: Block,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name, unique among parameters and shared arrays.
    pub name: String,
    /// Buffer or scalar.
    pub kind: ParamKind,
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParamKind {
    /// A range of device memory, addressed in bytes from its start.
    Buffer {
        /// What the kernel may do with it. Two buffers of one launch do not overlap unless both are `Read`.
        access: Access,
        /// Alignment of its start in bytes; a power of two.
        align: u32,
    },
    /// A number, the same for every thread: `i32`, `i64` or `f32`.
    Scalar(Scalar),
}

/// What a kernel may do with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads only; nobody writes it during the launch.
    Read,
    /// Stores only.
    Write,
    /// Loads, stores and atomics.
    ReadWrite,
}

/// A shared array of a workgroup.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Name, unique among parameters and shared arrays.
    pub name: String,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes; a power of two.
    pub align: u32,
}

/// Statements in order. The last one is a `Yield` for a loop or branch body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Block {
    /// The statements.
    pub statements: Vec<Statement>,
}

/// One instruction and the values it defines (none for a store; several for `for` and `if`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statement {
    /// Values defined, in order.
    pub results: Vec<Value>,
    /// What happens.
    pub inst: Inst,
}

/// A place in memory: bytes `index + offset` from the start of `memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where it starts.
    pub memory: Memory,
    /// A scalar `i32` (sign-extended) or `i64` number of bytes; absent means 0.
    pub index: Option<Value>,
    /// Constant number of bytes added to it.
    pub offset: i64,
}

/// A compile-time number of any type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// Every lane holds this bit pattern (low `scalar.bits()` bits; `Bool` is 0 or 1).
    Splat(u64),
    /// One bit pattern per lane.
    Lanes(Vec<u64>),
}

/// A number that the launch gives to each thread; a scalar `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// Index of the workgroup in the grid along an axis (0 x, 1 y, 2 z).
    WorkgroupId(u8),
    /// Number of workgroups along an axis.
    WorkgroupCount(u8),
    /// Index of the thread in its workgroup along an axis.
    LocalId(u8),
    /// Index of the thread in its subgroup.
    Lane,
    /// Index of the subgroup in its workgroup. Threads are numbered x fastest.
    Subgroup,
}

/// Operations of two operands of one type. Lanes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinOp {
    /// Sum; integers wrap.
    Add,
    /// Difference; integers wrap.
    Sub,
    /// Product; integers wrap (low half).
    Mul,
    /// Quotient of floats.
    Div,
    /// Signed quotient, rounded to zero. Integers only; the divisor is a non-zero constant.
    DivS,
    /// Signed remainder, sign of the dividend. Integers only; the divisor is a non-zero constant.
    RemS,
    /// The smaller: floats as IEEE 754-2019 `minimum` (a NaN in either gives NaN).
    Min,
    /// The larger: floats as `maximum`.
    Max,
    /// Smaller of two signed integers.
    MinS,
    /// Larger of two signed integers.
    MaxS,
    /// Bitwise and; integers and bools.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Shift left; the amount is taken modulo the width.
    Shl,
    /// Logical shift right; the amount is taken modulo the width.
    ShrU,
    /// Arithmetic shift right; the amount is taken modulo the width.
    ShrS,
}

/// Operations of one operand. Lanes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnOp {
    /// Negation: integers wrap, floats flip the sign bit.
    Neg,
    /// Bitwise complement; integers and bools.
    Not,
    /// Absolute value of a float: clears the sign bit.
    Abs,
    /// Square root, correctly rounded. Floats only.
    Sqrt,
    /// Round to the nearest integer, ties to even. Floats only.
    Nearest,
    /// Round down. Floats only.
    Floor,
    /// 2 to the power of x, within 4 units in the last place over normal results. `f32` only.
    Exp2,
    /// Number of set bits. Integers only.
    Popcount,
}

/// Comparisons; the result has `Bool` lanes. Float comparisons with a NaN are false, but `Ne` is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less: floats.
    Lt,
    /// Less or equal: floats.
    Le,
    /// Less: signed integers.
    LtS,
    /// Less or equal: signed integers.
    LeS,
    /// Less: unsigned integers.
    LtU,
}

/// Conversions that change the number's representation, lane by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CastOp {
    /// To a narrower integer, dropping high bits.
    Truncate,
    /// To a wider integer with zeros.
    ExtendU,
    /// To a wider integer with the sign.
    ExtendS,
    /// Signed integer to `f32`, nearest even. From I8, I16, I32.
    IntToFloatS,
    /// Unsigned integer to `f32`, nearest even. From I8, I16, I32.
    IntToFloatU,
    /// `f32` to signed integer, rounded to zero, saturating, NaN to 0. To I8, I16, I32.
    FloatToIntS,
    /// Between floats (F32, F16, Bf16 and the storage floats): exact when widening; nearest even when narrowing;
    /// to fp8 it saturates to the largest finite number and keeps NaN;
    /// to E8m0 it takes the binary exponent of the magnitude, rounded down and clamped (zero gives the least).
    Float,
}

/// How `dot4` reads the bytes of `a` and `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dot4Signs {
    /// `a` signed, `b` signed.
    SignedSigned,
    /// `a` unsigned, `b` signed.
    UnsignedSigned,
}

/// How lanes of a subgroup combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum. Floats add pairwise over lane distance 1, 2, 4 … (a butterfly), so the result is one number everywhere.
    Add,
    /// Largest: floats `Max`, integers `MaxS`.
    Max,
}

/// How a lane of the subgroup picks the lane that it reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShuffleMode {
    /// From the lane with this index.
    Index,
    /// From the lane `own ^ index`.
    Xor,
    /// From the lane `own + index`; own value where that is past the end.
    Down,
}

/// An instruction. Core ones every target emits; extended ones expand into core ones where a device lacks them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inst {
    /// A number known now.
    Const(Constant),
    /// Scalar parameter number `.0`.
    Arg(u16),
    /// A number of the launch.
    Builtin(Builtin),
    /// `a op b`.
    Bin(BinOp, Value, Value),
    /// `op a`.
    Un(UnOp, Value),
    /// `a op b` to bools.
    Cmp(CmpOp, Value, Value),
    /// `cond ? a : b`, lane by lane; a scalar `cond` chooses whole vectors.
    Select {
        /// Bool, one lane or as many as `a`.
        cond: Value,
        /// Taken where true.
        a: Value,
        /// Taken where false.
        b: Value,
    },
    /// Change of representation to the result's type.
    Cast(CastOp, Value),
    /// The same bits read as the result's type, lane 0 lowest.
    Bitcast(Value),
    /// `a * b + c` with one rounding. Floats.
    Fma(Value, Value, Value),
    /// A vector of scalars, lane 0 first.
    Vector(Vec<Value>),
    /// A scalar in every lane.
    Splat(Value),
    /// One lane of a vector.
    Extract {
        /// The vector.
        vector: Value,
        /// Which lane.
        lane: u8,
    },
    /// Lanes picked from the concatenation of `a` and `b` (equal types): result lane `i` is `(a ++ b)[lanes[i]]`.
    Swizzle {
        /// Lanes 0..n.
        a: Value,
        /// Lanes n..2n.
        b: Value,
        /// Picked lanes, one per result lane.
        lanes: Vec<u8>,
    },
    /// Reads the result's type from memory.
    Load {
        /// Where.
        address: Address,
        /// What the address is a multiple of, in bytes; a power of two.
        align: u32,
    },
    /// Writes a value to memory.
    Store {
        /// Where.
        address: Address,
        /// What the address is a multiple of, in bytes; a power of two.
        align: u32,
        /// What.
        value: Value,
    },
    /// A hint: the cache line at an address will be read soon. The address may lie outside of its memory.
    Prefetch(Address),
    /// All threads of the workgroup meet; shared and global writes before it are seen after it. Uniform control flow only.
    Barrier,
    /// Counted loop: `variable` runs from `start` by `step` while `variable < end` (signed).
    For(Box<For>),
    /// Two-way branch.
    If(Box<If>),
    /// Ends a loop body (next values of the carried ones) or a branch (its results).
    Yield(Vec<Value>),

    // Extended.
    /// Bit fields: `a` is cut into as many containers as the result has lanes; each result lane is bits
    /// `[shift, shift + bits)` of its container, zero-extended (or sign-extended if `signed`), as an integer of the
    /// container's width or, where the result is `f32`, converted to it (container of 32 bits).
    Unpack {
        /// Integer vector.
        a: Value,
        /// Lowest bit of the field in its container.
        shift: u8,
        /// Width of the field.
        bits: u8,
        /// Two's complement field.
        signed: bool,
    },
    /// Per 32-bit lane: `acc + Σ_{j<4} a.byte[j] * b.byte[j]`, wrapping. `a`, `b`: I8 with 4 lanes per lane of `acc`.
    Dot4 {
        /// How the bytes are read.
        signs: Dot4Signs,
        /// Unsigned `a` bytes are below `2^a_bits` (8 promises nothing); targets may use it, the interpreter checks it.
        a_bits: u8,
        /// First factor.
        a: Value,
        /// Second factor.
        b: Value,
        /// I32 accumulator.
        acc: Value,
    },
    /// Per lane of `acc`: `acc + Σ_{j<2} a.part[j] * b.part[j]`. `a`, `b`: I8, I16 or Bf16 with 2 lanes per lane of `acc`.
    ///
    /// I16 are signed, and sums wrap. Bf16 takes what is gated by [`crate::caps::Feature::Dot2Bf16`], and has one meaning bit
    /// for bit, that of x86: `fma(a.word[0], b.word[0], fma(a.word[1], b.word[1], acc))`, each rounded to nearest even, where
    /// subnormal operands are zeros, and so is what either of the two comes to if it is below the smallest normal number once
    /// rounded to 24 bits.
    ///
    /// I8 takes what is gated by [`crate::caps::Feature::Dot2`], and has x86's meaning too: bytes of `a` are unsigned, those of `b`
    /// signed; the sum of two products saturates to 16 bits, the sum with `acc` wraps.
    Dot2 {
        /// First factor.
        a: Value,
        /// Second factor.
        b: Value,
        /// Accumulator: I32, F32 for Bf16, or I16 for I8.
        acc: Value,
    },
    /// Byte table look-up: result byte `i` is `table[index[i]]`; `table` is I8x16, `index` I8 with at least 4
    /// lanes, each below 16.
    PermuteBytes {
        /// The table.
        table: Value,
        /// The indices.
        index: Value,
    },
    /// Byte table look-up ([`crate::caps::Feature::PermuteLong`]): `low` and `high`, each I8x64, are a table of 128; result
    /// byte `i` is the one whose number the low seven bits of `index[i]` (I8x64) are.
    PermuteLong {
        /// The first 64.
        low: Value,
        /// The rest.
        high: Value,
        /// The indices.
        index: Value,
    },
    /// A value of another lane of the subgroup (scalar, 32 bits).
    Shuffle {
        /// How `index` names the lane.
        mode: ShuffleMode,
        /// What the lanes offer.
        value: Value,
        /// I32.
        index: Value,
    },
    /// All lanes of the subgroup get the combination of all values (scalar).
    SubgroupReduce(ReduceOp, Value),
    /// Adds to a 32-bit integer in memory as one step; the result is what was there before.
    AtomicAdd {
        /// Where; 4-byte aligned.
        address: Address,
        /// I32.
        value: Value,
    },
    /// All lanes of the subgroup multiply two matrices that lie in fragments: `A · B + C`, see [`MmaShape`]. Integers are
    /// exact and wrap; products of floats are exact and are summed with C in any order and in at least `f32`.
    Mma {
        /// Which instruction; one of the device's.
        shape: &'static MmaShape,
        /// This lane's elements of A: a vector of them.
        a: Value,
        /// Of B.
        b: Value,
        /// Of C; the result is alike.
        acc: Value,
    },
    /// Starts to copy from a buffer to shared memory. What it writes is undefined until an `async_wait` of the same thread
    /// has seen it arrive, and is seen by other threads after a barrier behind that.
    AsyncCopy {
        /// In shared memory; a multiple of `bytes`.
        to: Address,
        /// In a buffer; a multiple of `bytes`.
        from: Address,
        /// 4, 8 or 16.
        bytes: u8,
    },
    /// Ends a group of this thread's copies: those since the last commit.
    AsyncCommit,
    /// Waits until no more than this many of this thread's groups are under way.
    AsyncWait(u8),
    /// What runs beside the threads on devices that have it.
    Asynchronous(Box<Asynchronous>),
    /// Matrices that a subgroup holds together, on devices that have them.
    Cooperative(Box<Cooperative>),
}

/// A counted loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct For {
    /// The counter, defined in the body: `i32` or `i64`.
    pub variable: Value,
    /// First value of the counter.
    pub start: Value,
    /// The loop ends when the counter reaches or passes this.
    pub end: Value,
    /// Positive constant step.
    pub step: i64,
    /// Values carried from one turn to the next: (name inside the body, value before the first turn).
    pub carried: Vec<(Value, Value)>,
    /// One turn; it ends with `yield` of the carried values' next ones.
    pub body: Block,
}

/// A two-way branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct If {
    /// Scalar bool.
    pub cond: Value,
    /// Taken if true; ends with `yield` of the results.
    pub then: Block,
    /// Taken if false; ends with `yield` of the results. Empty with a bare yield where there is no else.
    pub otherwise: Block,
}

impl Kernel {
    /// The type of a value.
    ///
    /// # Panics
    /// If the value is not of this kernel.
    pub fn ty(&self, value: Value) -> Type {
        self.types[value.0 as usize]
    }

    /// Whether nobody writes this memory during the launch.
    pub fn is_read_only(&self, memory: Memory) -> bool {
        let Memory::Param(number) = memory else { return false };
        let param = self.params.get(number as usize);
        param.is_some_and(|param| matches!(param.kind, ParamKind::Buffer { access: Access::Read, .. }))
    }

    /// Threads per workgroup.
    pub fn threads(&self) -> u32 {
        self.workgroup.iter().product()
    }

    /// Bytes of shared memory, each array placed at its alignment in order.
    pub fn shared_bytes(&self) -> u64 {
        self.shared.iter().fold(0, |at, s| at.div_ceil(s.align as u64) * s.align as u64 + s.bytes as u64)
    }
}
