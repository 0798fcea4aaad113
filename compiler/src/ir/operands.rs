//! What an instruction reads, renaming what it reads, and walking over every instruction of a block.
//!
//! Always holds: `each_operand` visits the values that an instruction itself names, in order, and nothing of the
//! bodies inside a `for` or `if`: those are statements of their own.

use super::kernel::{Block, For, Inst, Statement};
use super::types::Value;
use smallvec::SmallVec;

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

/// Shows `$visit` the values that an instruction names, borrowed as `$borrow` says; copies and matrices of a device are not
/// among the instructions that it knows.
macro_rules! visit_operands {
    ($inst:expr, $visit:ident, $each:ident, $($borrow:tt)+) => {
        match $inst {
            Inst::Const(_)
            | Inst::Arg(_)
            | Inst::Builtin(_)
            | Inst::Barrier
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Cooperative(_) => {}
            Inst::Un(_, a)
            | Inst::Cast(_, a)
            | Inst::Bitcast(a)
            | Inst::Splat(a)
            | Inst::SubgroupReduce(_, a)
            | Inst::Extract { vector: a, .. }
            | Inst::Unpack { a, .. } => $visit(a),
            Inst::Bin(_, a, b)
            | Inst::Cmp(_, a, b)
            | Inst::Swizzle { a, b, .. }
            | Inst::PermuteBytes { table: a, index: b }
            | Inst::Shuffle { value: a, index: b, .. } => {
                $visit(a);
                $visit(b);
            }
            Inst::Select { cond: a, a: b, b: c }
            | Inst::Fma(a, b, c)
            | Inst::Dot4 { a, b, acc: c, .. }
            | Inst::Dot2 { a, b, acc: c }
            | Inst::PermuteLong { low: a, high: b, index: c }
            | Inst::Mma { a, b, acc: c, .. } => {
                $visit(a);
                $visit(b);
                $visit(c);
            }
            Inst::Vector(parts) | Inst::Yield(parts) => parts.$each().for_each($visit),
            Inst::Load { address: at, .. } | Inst::Prefetch(at) => at.index.$each().for_each($visit),
            Inst::Store { address: at, value, .. } | Inst::AtomicAdd { address: at, value } => {
                at.index.$each().for_each(&mut $visit);
                $visit(value);
            }
            Inst::AsyncCopy { to, from, .. } => {
                to.index.$each().for_each(&mut $visit);
                from.index.$each().for_each(&mut $visit);
            }
            Inst::For(inner) => {
                let For { start, end, carried, .. } = $($borrow)+ **inner;
                $visit(start);
                $visit(end);
                carried.$each().for_each(|(_, start)| $visit(start));
            }
            Inst::If(inner) => $visit($($borrow)+ inner.cond),
        }
    };
}

impl Inst {
    /// The values that this instruction reads, bodies not counted, in order and with repetitions.
    pub fn operands(&self) -> SmallVec<[Value; 4]> {
        let mut list = SmallVec::new();
        match self {
            // Rare: the visitor wants to change what it sees, so it works on a copy.
            Inst::Asynchronous(inner) => inner.clone().each_operand(&mut |value| list.push(*value)),
            Inst::Cooperative(inner) => inner.clone().each_operand(&mut |value| list.push(*value)),
            inst => {
                let mut visit = |value: &Value| list.push(*value);
                visit_operands!(inst, visit, iter, &);
            }
        }
        list
    }

    /// Calls `visit` with every value that this instruction reads, to be replaced at will.
    pub fn each_operand(&mut self, mut visit: impl FnMut(&mut Value)) {
        match self {
            Inst::Asynchronous(inner) => inner.each_operand(&mut visit),
            Inst::Cooperative(inner) => inner.each_operand(&mut visit),
            inst => visit_operands!(inst, visit, iter_mut, &mut),
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
            | Inst::PermuteBytes { .. }
            | Inst::PermuteLong { .. } => true,
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
