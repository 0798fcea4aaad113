//! From the tree of blocks to the array.

use super::super::asynchronous::{Beside, Product};
use super::super::cooperative::{Matrices, Together};
use super::{Op, Place, Program, Slot, chunks, pure_op, write_constant};
use crate::ir::asynchronous::{Asynchronous, Factor};
use crate::ir::cooperative::{Cooperative, Fragment, Lines, Part};
use crate::ir::kernel::{Address, Block, For, If, Inst, Kernel, Statement};
use crate::ir::types::{Scalar, Type, Value};

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
