//! A statement with all that it alone needs: what may become a function.
//!
//! Reads a kernel and its facts, makes the cones of its statements. Always holds: what is in a cone may run where its last
//! statement stands.

use super::SIZES;
use super::copy::Copy;
use crate::ir::{Address, Block, Inst, Kernel, Memory, Statement, Value};
use crate::target::hip::facts::Fact;
use smallvec::{SmallVec, smallvec};
use std::collections::{HashMap, HashSet};

/// A statement and all that it alone needs, in the order of the kernel.
pub(super) struct Cone<'k> {
    /// Which one in the order of the kernel.
    pub number: usize,
    /// Each with whether it stands on a line of its own.
    pub members: Vec<(&'k Statement, bool)>,
    /// What it reads from outside, place by place.
    pub leaves: Vec<Value>,
    /// Where its pointers point: memory and index as the first access has them.
    pub places: Vec<Address>,
    /// How far behind its pointer each access is.
    pub steps: Vec<i64>,
}

impl Cone<'_> {
    /// About how many lines it takes.
    pub fn lines(&self) -> usize {
        let inside = |statement: &Statement| {
            let mut lines = 0;
            if let Inst::If(_) = &statement.inst {
                statement.each(&mut |inner| lines += usize::from(!matches!(inner.inst, Inst::Yield(_))));
            }
            lines
        };
        let alone = self.members.iter().filter(|(_, alone)| *alone).count();
        let inside: usize = self.members.iter().map(|&(member, _)| inside(member)).sum();
        // Of what is written where it is read, about three operations fit into a line.
        alone + inside + (self.members.len() - alone) / 3
    }
}

pub(super) struct Finder<'k, 'f> {
    pub kernel: &'k Kernel,
    pub facts: &'f [Fact<'k>],
    pub webs: &'f [Option<Value>],
}

impl<'k> Finder<'k, '_> {
    pub fn fact(&self, value: Value) -> &Fact<'k> {
        &self.facts[value.0 as usize]
    }

    pub fn block(&self, block: &'k Block, cones: &mut Vec<Cone<'k>>) {
        for (at, statement) in block.statements.iter().enumerate() {
            if let Some(cone) = self.cone(block, at) {
                cones.push(Cone { number: cones.len(), ..cone });
            }
            match &statement.inst {
                Inst::For(inner) => self.block(&inner.body, cones),
                Inst::If(inner) => {
                    self.block(&inner.then, cones);
                    self.block(&inner.otherwise, cones);
                }
                _ => {}
            }
        }
    }

    /// The cone of a statement, if it is worth a look.
    fn cone(&self, block: &'k Block, root: usize) -> Option<Cone<'k>> {
        let statements = &block.statements;
        if !self.can_end(&statements[root]) {
            return None;
        }
        let mut inside: HashMap<Value, u32> = HashMap::new();
        note_reads(&statements[root], &mut inside);
        let mut members = vec![root];
        for at in (0..root).rev() {
            let statement = &statements[at];
            let &[value] = statement.results.as_slice() else { continue };
            if inside.get(&value) != Some(&self.fact(value).uses) || !self.moves(statements, at, root) {
                continue;
            }
            members.push(at);
            if members.len() > *SIZES.end() {
                return None;
            }
            note_reads(statement, &mut inside);
        }
        members.reverse();
        // A lane of a vector from outside is an operand: which lane it is differs from place to place.
        let defined: HashSet<Value> = members.iter().flat_map(|&at| statements[at].results.iter().copied()).collect();
        members.retain(|&at| {
            at == root || !matches!(statements[at].inst, Inst::Extract { vector, .. } if !defined.contains(&vector))
        });
        if !SIZES.contains(&members.len()) {
            return None;
        }
        let alone = |at: usize| {
            let statement = &statements[at];
            let effect =
                matches!(statement.inst, Inst::Load { .. } | Inst::Store { .. } | Inst::If(_) | Inst::Mma { .. });
            at == root || effect || statement.results.first().is_some_and(|&result| self.fact(result).uses > 1)
        };
        let members = members.into_iter().map(|at| (&statements[at], alone(at))).collect();
        let mut cone = Cone { number: 0, members, leaves: Vec::new(), places: Vec::new(), steps: Vec::new() };
        let mut copy = Copy::new(&cone.members);
        for &(member, _) in &cone.members {
            copy.statement(member, &mut |leaf| cone.leaves.push(leaf));
        }
        (cone.places, cone.steps) = (copy.places, copy.steps);
        Some(cone)
    }

    /// Whether a group may end with this statement.
    fn can_end(&self, statement: &Statement) -> bool {
        match &statement.inst {
            Inst::Const(_) | Inst::Arg(_) | Inst::Builtin(_) | Inst::Extract { .. } | Inst::Load { .. } => false,
            Inst::Store { .. } | Inst::Mma { .. } => true,
            Inst::If(_) => statement.results.is_empty() && self.plain(statement),
            pure => pure.is_pure(),
        }
    }

    /// Whether a branch holds nothing but arithmetic, loads and stores.
    fn plain(&self, statement: &Statement) -> bool {
        let mut plain = true;
        let mut look = |inner: &Statement| {
            // Arguments of the kernel have no name in a function.
            plain &= inner.inst.is_pure() && !matches!(inner.inst, Inst::Arg(_))
                || matches!(inner.inst, Inst::Load { .. } | Inst::Store { .. })
                || matches!(&inner.inst, Inst::Yield(values) if values.is_empty())
                || matches!(inner.inst, Inst::If(_)) && inner.results.is_empty();
        };
        statement.each(&mut look);
        plain
    }

    /// Whether the statement at `at` may run at `root` instead.
    fn moves(&self, statements: &[Statement], at: usize, root: usize) -> bool {
        let statement = &statements[at];
        let kind = match &statement.inst {
            Inst::Const(_) | Inst::Arg(_) | Inst::Builtin(_) => false,
            Inst::Mma { .. } => true,
            Inst::Load { address, .. } => {
                !statements[at + 1..root].iter().any(|between| disturbs(between, address.memory))
            }
            inst => inst.is_pure(),
        };
        kind && statement.results.iter().all(|result| self.webs[result.0 as usize].is_none())
            && !statement.inst.operands().iter().any(|&value| self.changes(value))
    }

    /// Whether a value's text reads a variable that a loop changes.
    fn changes(&self, value: Value) -> bool {
        let fact = self.fact(value);
        if fact.sums || self.webs[value.0 as usize].is_some() {
            return true;
        }
        let inlined = fact.uses == 1 && fact.used_in == Some(fact.defined_in);
        inlined
            && fact.inst.is_some_and(|inst| inst.is_pure() && inst.operands().iter().any(|&value| self.changes(value)))
    }
}

/// Counts what a statement reads as values, branches included; indices of addresses stay outside.
fn note_reads(statement: &Statement, inside: &mut HashMap<Value, u32>) {
    let mut note = |statement: &Statement| {
        for value in reads(&statement.inst) {
            *inside.entry(value).or_insert(0) += 1;
        }
    };
    statement.each(&mut note);
}

fn reads(inst: &Inst) -> SmallVec<[Value; 4]> {
    match inst {
        Inst::Load { .. } => SmallVec::new(),
        Inst::Store { value, .. } => smallvec![*value],
        other => other.operands(),
    }
}

/// Whether what a memory holds may be different after a statement.
fn disturbs(statement: &Statement, memory: Memory) -> bool {
    let mut disturbs = false;
    let mut look = |inner: &Statement| {
        disturbs |= match &inner.inst {
            Inst::Store { address, .. } => address.memory == memory,
            Inst::For(_) | Inst::If(_) | Inst::Load { .. } | Inst::Yield(_) | Inst::Mma { .. } => false,
            Inst::Shuffle { .. } | Inst::SubgroupReduce(..) => false,
            other => !other.is_pure(),
        };
    };
    statement.each(&mut look);
    disturbs
}
