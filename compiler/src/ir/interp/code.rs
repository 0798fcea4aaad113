//! Flat code: the tree of blocks as an array of operations whose operands are places in a register file.
//!
//! Reads a kernel, makes a [`Program`]. Always holds: each value owns a slot of whole 16-byte chunks (so that
//! lane-wise operations work on chunks and never see a neighbour), constants lie in the first image of the register
//! file and cost nothing, and no operation's result overlaps its operands.

mod flatten;

pub use self::flatten::compile;

use super::asynchronous::Beside;
use super::cooperative::Together;
use crate::caps::MmaShape;
use crate::ir::kernel::{BinOp, Builtin, CastOp, CmpOp, Constant, Dot4Signs, Inst, ReduceOp, ShuffleMode, UnOp};
use crate::ir::types::{Memory, Scalar, Type, Value};

/// Byte offset of a slot in the register file.
pub type Slot = u32;

/// One operation. `d` is the result's slot, `a b c` are operands, `n` counts 16-byte chunks.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Bin {
        op: BinOp,
        scalar: Scalar,
        d: Slot,
        a: Slot,
        b: Slot,
        n: u8,
        lanes: u8,
    },
    Un {
        op: UnOp,
        scalar: Scalar,
        d: Slot,
        a: Slot,
        n: u8,
        lanes: u8,
    },
    Cmp {
        op: CmpOp,
        scalar: Scalar,
        d: Slot,
        a: Slot,
        b: Slot,
        lanes: u8,
    },
    Select {
        d: Slot,
        cond: Slot,
        a: Slot,
        b: Slot,
        n: u8,
        bytes: u8,
    },
    Choose {
        d: Slot,
        cond: Slot,
        a: Slot,
        b: Slot,
        n: u8,
    },
    Cast {
        op: CastOp,
        from: Scalar,
        to: Scalar,
        d: Slot,
        a: Slot,
        lanes: u8,
    },
    Copy {
        d: Slot,
        a: Slot,
        n: u8,
    },
    Fma {
        scalar: Scalar,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        n: u8,
        lanes: u8,
    },
    Splat {
        d: Slot,
        a: Slot,
        n: u8,
        bytes: u8,
    },
    /// Lane `i` of the result is the `bytes` bytes at `tables[first + i]`.
    Gather {
        d: Slot,
        first: u32,
        lanes: u8,
        bytes: u8,
    },
    Unpack {
        d: Slot,
        a: Slot,
        shift: u8,
        bits: u8,
        signed: bool,
        float: bool,
        bytes: u8,
        n: u8,
    },
    Dot4 {
        signs: Dot4Signs,
        a_bits: u8,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        lanes: u8,
    },
    Dot2 {
        sum: Scalar,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        lanes: u8,
    },
    Permute {
        d: Slot,
        a: Slot,
        b: Slot,
        bytes: u8,
    },
    PermuteLong {
        d: Slot,
        low: Slot,
        high: Slot,
        index: Slot,
        bytes: u8,
    },
    Builtin {
        d: Slot,
        builtin: Builtin,
    },
    Load {
        d: Slot,
        place: Place,
        bytes: u16,
    },
    Store {
        a: Slot,
        place: Place,
        bytes: u16,
    },
    Atomic {
        d: Slot,
        a: Slot,
        place: Place,
    },
    Barrier,
    Shuffle {
        mode: ShuffleMode,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Reduce {
        op: ReduceOp,
        scalar: Scalar,
        d: Slot,
        a: Slot,
    },
    Mma {
        shape: &'static MmaShape,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    AsyncCopy {
        to: Place,
        from: Place,
        bytes: u8,
    },
    AsyncCommit,
    AsyncWait {
        pending: u8,
    },
    /// Its number in [`Program::beside`].
    Asynchronous(u32),
    /// Its number in [`Program::together`].
    Cooperative(u32),
    /// Starts counting the turns of a loop in its hidden slot.
    Enter {
        turn: Slot,
    },
    Head {
        variable: Slot,
        end: Slot,
        wide: bool,
        exit: u32,
    },
    Next {
        variable: Slot,
        turn: Slot,
        step: i64,
        wide: bool,
        head: u32,
    },
    Branch {
        cond: Slot,
        otherwise: u32,
    },
    Jump {
        to: u32,
    },
    End,
}

/// An address with its operands resolved.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub memory: Memory,
    pub index: Option<Slot>,
    pub wide: bool,
    pub offset: i64,
    pub align: u32,
}

/// A kernel ready to run.
#[derive(Debug)]
pub struct Program {
    pub ops: Vec<Op>,
    /// For each operation, which statement (in order of appearance) it came from.
    pub origins: Vec<u32>,
    /// For a barrier or subgroup operation, the hidden turn counters of the loops around it.
    pub turns: Vec<Vec<Slot>>,
    /// Source slots of `Gather`.
    pub tables: Vec<Slot>,
    /// What runs beside the threads.
    pub beside: Vec<Beside>,
    /// What subgroups do with matrices.
    pub together: Vec<Together>,
    /// The register file at the start of a thread.
    pub image: Vec<u8>,
    /// Scalar parameters: number and slots that hold it.
    pub args: Vec<(u16, Slot)>,
}
/// Chunks of 16 bytes that hold a value.
fn chunks(ty: Type) -> u8 {
    ty.bytes().div_ceil(16) as u8
}

/// The one operation of a pure instruction whose operands and result lie at given slots; its result may not overlap
/// them. `None` for constants, memory, control flow and what asks other threads.
pub fn pure_op(
    inst: &Inst,
    result: Type,
    d: Slot,
    ty: &dyn Fn(Value) -> Type,
    slot: &dyn Fn(Value) -> Slot,
    tables: &mut Vec<Slot>,
) -> Option<Op> {
    let (n, lanes, scalar) = (chunks(result), result.lanes, result.scalar);
    let bytes = scalar.bytes() as u8;
    Some(match inst {
        Inst::Bin(op, a, b) => Op::Bin { op: *op, scalar, d, a: slot(*a), b: slot(*b), n, lanes },
        Inst::Un(op, a) => Op::Un { op: *op, scalar, d, a: slot(*a), n, lanes },
        Inst::Cmp(op, a, b) => Op::Cmp { op: *op, scalar: ty(*a).scalar, d, a: slot(*a), b: slot(*b), lanes },
        Inst::Select { cond, a, b } if ty(*cond).lanes == 1 => {
            Op::Choose { d, cond: slot(*cond), a: slot(*a), b: slot(*b), n }
        }
        Inst::Select { cond, a, b } => Op::Select { d, cond: slot(*cond), a: slot(*a), b: slot(*b), n, bytes },
        Inst::Cast(op, a) => Op::Cast { op: *op, from: ty(*a).scalar, to: scalar, d, a: slot(*a), lanes },
        Inst::Bitcast(a) => Op::Copy { d, a: slot(*a), n },
        Inst::Fma(a, b, c) => Op::Fma { scalar, d, a: slot(*a), b: slot(*b), c: slot(*c), n, lanes },
        Inst::Splat(a) => Op::Splat { d, a: slot(*a), n, bytes },
        Inst::Vector(parts) => {
            let first = tables.len() as u32;
            tables.extend(parts.iter().map(|&part| slot(part)));
            Op::Gather { d, first, lanes, bytes }
        }
        Inst::Extract { vector, lane } => {
            let first = tables.len() as u32;
            tables.push(slot(*vector) + *lane as u32 * bytes as u32);
            Op::Gather { d, first, lanes: 1, bytes }
        }
        Inst::Swizzle { a, b, lanes: picks } => {
            let first = tables.len() as u32;
            let half = ty(*a).lanes;
            tables.extend(picks.iter().map(|&pick| {
                let (from, lane) = if pick < half { (a, pick) } else { (b, pick - half) };
                slot(*from) + lane as u32 * bytes as u32
            }));
            Op::Gather { d, first, lanes, bytes }
        }
        Inst::Unpack { a, shift, bits, signed } => Op::Unpack {
            d,
            a: slot(*a),
            shift: *shift,
            bits: *bits,
            signed: *signed,
            float: scalar == Scalar::F32,
            bytes,
            n,
        },
        Inst::Dot4 { signs, a_bits, a, b, acc } => {
            Op::Dot4 { signs: *signs, a_bits: *a_bits, d, a: slot(*a), b: slot(*b), c: slot(*acc), lanes }
        }
        Inst::Dot2 { a, b, acc } => Op::Dot2 { sum: scalar, d, a: slot(*a), b: slot(*b), c: slot(*acc), lanes },
        Inst::PermuteBytes { table, index } => Op::Permute { d, a: slot(*table), b: slot(*index), bytes: lanes },
        Inst::PermuteLong { low, high, index } => {
            Op::PermuteLong { d, low: slot(*low), high: slot(*high), index: slot(*index), bytes: lanes }
        }
        Inst::Const(_)
        | Inst::Arg(_)
        | Inst::Builtin(_)
        | Inst::Load { .. }
        | Inst::Store { .. }
        | Inst::Prefetch(_)
        | Inst::Barrier
        | Inst::For(_)
        | Inst::If(_)
        | Inst::Yield(_)
        | Inst::Shuffle { .. }
        | Inst::SubgroupReduce(..)
        | Inst::AtomicAdd { .. }
        | Inst::Mma { .. }
        | Inst::AsyncCopy { .. }
        | Inst::AsyncCommit
        | Inst::AsyncWait(_)
        | Inst::Asynchronous(_)
        | Inst::Cooperative(_) => return None,
    })
}

/// Writes a constant's lanes into its place, little end first.
pub fn write_constant(constant: &Constant, ty: Type, place: &mut [u8]) {
    let bytes = ty.scalar.bytes() as usize;
    for (lane, out) in place.chunks_exact_mut(bytes).take(ty.lanes as usize).enumerate() {
        let bits = match constant {
            Constant::Splat(bits) => *bits,
            Constant::Lanes(lanes) => lanes.get(lane).copied().unwrap_or(0),
        };
        out.copy_from_slice(&bits.to_le_bytes()[..bytes]);
    }
}
