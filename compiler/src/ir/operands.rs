//! What an instruction reads, renaming what it reads, and walking over every instruction of a block.
//!
//! Always holds: `each_operand` visits the values that an instruction itself names, in order, and nothing of the
//! bodies inside a `for` or `if`: those are statements of their own.

use super::kernel::{Address, Block, Inst, Statement};
use super::types::Value;

impl Block {
    /// Calls `visit` with every statement, in order: those of a body come right after the `for` or `if` that holds them.
    pub fn each<'b>(&'b self, visit: &mut dyn FnMut(&'b Statement)) {
        self.statements.iter().for_each(|statement| statement.each(visit));
    }
}

impl Statement {
    /// Calls `visit` with this statement, then with every one of its bodies, in order.
    pub fn each<'s>(&'s self, visit: &mut dyn FnMut(&'s Statement)) {
        visit(self);
        match &self.inst {
            Inst::For(inner) => inner.body.each(visit),
            Inst::If(inner) => {
                inner.then.each(visit);
                inner.otherwise.each(visit);
            }
            _ => {}
        }
    }
}

impl Inst {
    /// The values that this instruction reads, bodies not counted, in order and with repetitions.
    pub fn operands(&self) -> Vec<Value> {
        let mut list = Vec::new();
        // The visitor wants to change what it sees, so it works on a copy; bodies are left out of it.
        match self {
            Inst::For(inner) => {
                list.extend([inner.start, inner.end]);
                list.extend(inner.carried.iter().map(|&(_, start)| start));
            }
            Inst::If(inner) => list.push(inner.cond),
            other => other.clone().each_operand(|value| list.push(*value)),
        }
        list
    }

    /// Calls `visit` with every value that this instruction reads, to be replaced at will.
    pub fn each_operand(&mut self, mut visit: impl FnMut(&mut Value)) {
        let address = |address: &mut Address, visit: &mut dyn FnMut(&mut Value)| {
            if let Some(index) = &mut address.index {
                visit(index);
            }
        };
        match self {
            Inst::Const(_)
            | Inst::Arg(_)
            | Inst::Builtin(_)
            | Inst::Barrier
            | Inst::AsyncCommit
            | Inst::AsyncWait(_) => {}
            Inst::Un(_, a)
            | Inst::Cast(_, a)
            | Inst::Bitcast(a)
            | Inst::Splat(a)
            | Inst::SubgroupReduce(_, a)
            | Inst::Extract { vector: a, .. }
            | Inst::Unpack { a, .. } => visit(a),
            Inst::Bin(_, a, b)
            | Inst::Cmp(_, a, b)
            | Inst::Swizzle { a, b, .. }
            | Inst::PermuteBytes { table: a, index: b }
            | Inst::Shuffle { value: a, index: b, .. } => {
                visit(a);
                visit(b);
            }
            Inst::Select { cond: a, a: b, b: c }
            | Inst::Fma(a, b, c)
            | Inst::Dot4 { a, b, acc: c, .. }
            | Inst::Dot2 { a, b, acc: c }
            | Inst::Mma { a, b, acc: c, .. } => {
                visit(a);
                visit(b);
                visit(c);
            }
            Inst::Vector(parts) | Inst::Yield(parts) => parts.iter_mut().for_each(visit),
            Inst::Load { address: at, .. } | Inst::Prefetch(at) => address(at, &mut visit),
            Inst::Store { address: at, value, .. } | Inst::AtomicAdd { address: at, value } => {
                address(at, &mut visit);
                visit(value);
            }
            Inst::AsyncCopy { to, from, .. } => {
                address(to, &mut visit);
                address(from, &mut visit);
            }
            Inst::Asynchronous(inner) => inner.each_operand(&mut visit),
            Inst::Cooperative(inner) => inner.each_operand(&mut visit),
            Inst::For(inner) => {
                visit(&mut inner.start);
                visit(&mut inner.end);
                inner.carried.iter_mut().for_each(|(_, start)| visit(start));
            }
            Inst::If(inner) => visit(&mut inner.cond),
        }
    }

    /// Whether the result depends on the operands alone and nothing else changes: such an instruction may be merged
    /// with its equal and dropped. `DivS`, `RemS`, `Dot4` and `PermuteBytes` may still break a promise, so moving
    /// them to where they would not have run is for those who know better.
    pub fn is_pure(&self) -> bool {
        match self {
            Inst::Const(_)
            | Inst::Arg(_)
            | Inst::Builtin(_)
            | Inst::Bin(..)
            | Inst::Un(..)
            | Inst::Cmp(..)
            | Inst::Select { .. }
            | Inst::Cast(..)
            | Inst::Bitcast(_)
            | Inst::Fma(..)
            | Inst::Vector(_)
            | Inst::Splat(_)
            | Inst::Extract { .. }
            | Inst::Swizzle { .. }
            | Inst::Unpack { .. }
            | Inst::Dot4 { .. }
            | Inst::Dot2 { .. }
            | Inst::PermuteBytes { .. } => true,
            Inst::Load { .. }
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
            | Inst::Cooperative(_) => false,
        }
    }
}
