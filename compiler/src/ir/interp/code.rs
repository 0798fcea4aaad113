//! Flat code: the tree of blocks as an array of operations whose operands are places in a register file.
//!
//! Reads a kernel, makes a [`Program`]. Always holds: each value owns a slot of whole 16-byte chunks (so that
//! lane-wise operations work on chunks and never see a neighbour), constants lie in the first image of the register
//! file and cost nothing, and no operation's result overlaps its operands.

use super::asynchronous::{Beside, Product};
use super::cooperative::{Matrices, Together};
use crate::caps::MmaShape;
use crate::ir::asynchronous::{Asynchronous, Factor};
use crate::ir::cooperative::{Cooperative, Fragment, Lines, Part};
use crate::ir::kernel::{
    Address, BinOp, Block, Builtin, CastOp, CmpOp, Constant, Dot4Signs, For, If, Inst, Kernel, ReduceOp, ShuffleMode,
    Statement, UnOp,
};
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

/// Flattens a kernel.
pub fn compile(kernel: &Kernel) -> Program {
    let mut slots = Vec::with_capacity(kernel.types.len());
    let mut image = 0;
    for ty in &kernel.types {
        slots.push(image as Slot);
        image += 16 * chunks(*ty) as usize;
    }
    let mut flat = Flattener {
        kernel,
        slots,
        loops: Vec::new(),
        statement: 0,
        program: Program {
            ops: Vec::new(),
            origins: Vec::new(),
            turns: Vec::new(),
            tables: Vec::new(),
            beside: Vec::new(),
            together: Vec::new(),
            image: vec![0; image],
            args: Vec::new(),
        },
    };
    flat.block(&kernel.body, &[]);
    flat.push(Op::End);
    flat.program
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

struct Flattener<'k> {
    kernel: &'k Kernel,
    slots: Vec<Slot>,
    /// Turn counters of the open loops.
    loops: Vec<Slot>,
    statement: u32,
    program: Program,
}

impl Flattener<'_> {
    fn slot(&self, value: Value) -> Slot {
        self.slots[value.0 as usize]
    }

    fn push(&mut self, op: Op) -> usize {
        let turns = match op {
            Op::Barrier | Op::Shuffle { .. } | Op::Reduce { .. } | Op::Mma { .. } => self.loops.clone(),
            Op::Asynchronous(_) | Op::Cooperative(_) => self.loops.clone(),
            _ => Vec::new(),
        };
        self.program.ops.push(op);
        self.program.origins.push(self.statement.wrapping_sub(1));
        self.program.turns.push(turns);
        self.program.ops.len() - 1
    }

    fn here(&self) -> u32 {
        self.program.ops.len() as u32
    }

    /// A slot that no value owns.
    fn fresh(&mut self, n: u8) -> Slot {
        let slot = self.program.image.len() as Slot;
        self.program.image.resize(self.program.image.len() + 16 * n as usize, 0);
        slot
    }

    /// Flattens a block; its `yield` copies to `targets`.
    fn block(&mut self, block: &Block, targets: &[Value]) {
        for statement in &block.statements {
            self.statement += 1;
            if let Inst::Yield(values) = &statement.inst {
                self.copies(values, targets);
            } else {
                self.one(statement);
            }
        }
    }

    /// Copies values to others as if all at once: a yield may swap carried values.
    fn copies(&mut self, from: &[Value], to: &[Value]) {
        let mut moves = Vec::new();
        for (i, (&source, &target)) in from.iter().zip(to).enumerate() {
            if source == target {
                continue;
            }
            let n = chunks(self.kernel.ty(target));
            let mut a = self.slot(source);
            if to[..i].contains(&source) {
                let spare = self.fresh(n);
                self.push(Op::Copy { d: spare, a, n });
                a = spare;
            }
            moves.push(Op::Copy { d: self.slot(target), a, n });
        }
        for op in moves {
            self.push(op);
        }
    }

    fn place(&self, address: &Address, align: u32) -> Place {
        Place {
            memory: address.memory,
            index: address.index.map(|index| self.slot(index)),
            wide: address.index.is_some_and(|index| self.kernel.ty(index).scalar == Scalar::I64),
            offset: address.offset,
            align,
        }
    }

    fn one(&mut self, statement: &Statement) {
        let result = statement.results.first().copied();
        let d = result.map_or(0, |value| self.slot(value));
        let ty = result.map_or(Type::scalar(Scalar::I32), |value| self.kernel.ty(value));
        let op = match &statement.inst {
            Inst::Const(constant) => {
                let end = d as usize + 16 * chunks(ty) as usize;
                return write_constant(constant, ty, &mut self.program.image[d as usize..end]);
            }
            // A hint does nothing.
            Inst::Prefetch(_) => return,
            Inst::Arg(number) => return self.program.args.push((*number, d)),
            Inst::Builtin(builtin) => Op::Builtin { d, builtin: *builtin },
            Inst::Load { address, align } => {
                Op::Load { d, place: self.place(address, *align), bytes: ty.bytes() as u16 }
            }
            Inst::Store { address, align, value } => Op::Store {
                a: self.slot(*value),
                place: self.place(address, *align),
                bytes: self.kernel.ty(*value).bytes() as u16,
            },
            Inst::AtomicAdd { address, value } => Op::Atomic { d, a: self.slot(*value), place: self.place(address, 4) },
            Inst::Barrier => Op::Barrier,
            Inst::Shuffle { mode, value, index } => {
                Op::Shuffle { mode: *mode, d, a: self.slot(*value), b: self.slot(*index) }
            }
            Inst::SubgroupReduce(op, value) => Op::Reduce { op: *op, scalar: ty.scalar, d, a: self.slot(*value) },
            Inst::Mma { shape, a, b, acc } => {
                Op::Mma { shape, d, a: self.slot(*a), b: self.slot(*b), c: self.slot(*acc) }
            }
            Inst::AsyncCopy { to, from, bytes } => Op::AsyncCopy {
                to: self.place(to, *bytes as u32),
                from: self.place(from, *bytes as u32),
                bytes: *bytes,
            },
            Inst::AsyncCommit => Op::AsyncCommit,
            Inst::AsyncWait(pending) => Op::AsyncWait { pending: *pending },
            Inst::Asynchronous(inner) => {
                let beside = self.beside(inner, d);
                self.program.beside.push(beside);
                Op::Asynchronous(self.program.beside.len() as u32 - 1)
            }
            Inst::Cooperative(inner) => {
                let together = self.together(inner, d);
                self.program.together.push(together);
                Op::Cooperative(self.program.together.len() as u32 - 1)
            }
            Inst::For(inner) => return self.for_loop(inner, &statement.results),
            Inst::If(inner) => return self.branch(inner, &statement.results),
            pure => {
                let (kernel, slots) = (self.kernel, &self.slots);
                let tables = &mut self.program.tables;
                let op = pure_op(pure, ty, d, &|v| kernel.ty(v), &|v| slots[v.0 as usize], tables);
                match op {
                    Some(op) => op,
                    None => return,
                }
            }
        };
        self.push(op);
    }

    fn together(&self, inst: &Cooperative, d: Slot) -> Together {
        let matrices = |fragment: Fragment, lines: &Lines, slot: Slot| Matrices {
            fragment,
            slot,
            place: self.place(&lines.address, fragment.align(lines.order)),
            order: lines.order,
            stride: lines.stride,
        };
        match inst {
            Cooperative::Fill { fragment, value } => {
                Together::Fill { fragment: *fragment, d, value: self.slot(*value) }
            }
            Cooperative::Load { fragment, from } => Together::Load(matrices(*fragment, from, d)),
            Cooperative::Store { shape, to, sums } => {
                Together::Store(matrices(Fragment { shape, part: Part::Sums }, to, self.slot(*sums)))
            }
            Cooperative::Multiply { shape, a, b, sums } => {
                Together::Multiply { shape, d, a: self.slot(*a), b: self.slot(*b), c: self.slot(*sums) }
            }
            Cooperative::Scale { shape, a, b, sums } => {
                Together::Scale { shape, d, a: self.slot(*a), b: self.slot(*b), c: self.slot(*sums) }
            }
        }
    }

    fn beside(&self, inst: &Asynchronous, d: Slot) -> Beside {
        match inst {
            Asynchronous::BarrierInit { barrier, arrivals } => {
                Beside::Init { barrier: self.place(barrier, 8), arrivals: *arrivals }
            }
            Asynchronous::BarrierArrive { barrier } => Beside::Arrive { barrier: self.place(barrier, 8), bytes: 0 },
            Asynchronous::BarrierExpect { barrier, bytes } => {
                Beside::Arrive { barrier: self.place(barrier, 8), bytes: *bytes }
            }
            Asynchronous::BarrierWait { barrier, parity } => {
                Beside::Wait { barrier: self.place(barrier, 8), parity: self.slot(*parity) }
            }
            Asynchronous::BulkCopy { to, from, bytes, barrier } => Beside::Copy {
                to: self.place(to, 16),
                from: self.place(from, 16),
                bytes: *bytes,
                barrier: self.place(barrier, 8),
            },
            Asynchronous::SubgroupBarrier => Beside::Meet,
            Asynchronous::DeviceFence => Beside::Fence,
            Asynchronous::Mma { shape, columns, a, b, acc, .. } => {
                let (fragments, a_panel) = match a {
                    Factor::Fragments(list) => (list.iter().map(|&value| self.slot(value)).collect(), None),
                    Factor::Panel(panel, _) => (Vec::new(), Some((self.place(&panel.address, 16), *panel))),
                };
                Beside::Mma(Product {
                    shape,
                    columns: *columns,
                    steps: a.steps(),
                    fragments,
                    a: a_panel,
                    b: (self.place(&b.address, 16), *b),
                    acc: self.slot(*acc),
                    d,
                })
            }
            // One launch at a time runs here, registers do not run out, products end at once, and writes are seen at once.
            Asynchronous::Fence
            | Asynchronous::MmaWait(_)
            | Asynchronous::Registers { .. }
            | Asynchronous::LaunchDependents
            | Asynchronous::AwaitDependencies => Beside::Nothing,
        }
    }

    fn for_loop(&mut self, inner: &For, results: &[Value]) {
        let origin = self.statement;
        let turn = self.fresh(1);
        let variable = self.slot(inner.variable);
        let wide = self.kernel.ty(inner.variable).scalar == Scalar::I64;
        let names: Vec<Value> = inner.carried.iter().map(|&(name, _)| name).collect();
        let starts: Vec<Value> = inner.carried.iter().map(|&(_, start)| start).collect();
        self.copies(&starts, &names);
        self.push(Op::Copy { d: variable, a: self.slot(inner.start), n: 1 });
        self.push(Op::Enter { turn });
        let head = self.push(Op::Head { variable, end: self.slot(inner.end), wide, exit: 0 });
        self.loops.push(turn);
        self.block(&inner.body, &names);
        self.loops.pop();
        // A fault of the counter is the loop's, not its last statement's.
        let last = std::mem::replace(&mut self.statement, origin);
        self.push(Op::Next { variable, turn, step: inner.step, wide, head: head as u32 });
        let after = self.here();
        if let Op::Head { exit, .. } = &mut self.program.ops[head] {
            *exit = after;
        }
        self.copies(&names, results);
        self.statement = last;
    }

    fn branch(&mut self, inner: &If, results: &[Value]) {
        let branch = self.push(Op::Branch { cond: self.slot(inner.cond), otherwise: 0 });
        self.block(&inner.then, results);
        let jump = self.push(Op::Jump { to: 0 });
        let here = self.here();
        if let Op::Branch { otherwise, .. } = &mut self.program.ops[branch] {
            *otherwise = here;
        }
        self.block(&inner.otherwise, results);
        let here = self.here();
        if let Op::Jump { to } = &mut self.program.ops[jump] {
            *to = here;
        }
    }
}
