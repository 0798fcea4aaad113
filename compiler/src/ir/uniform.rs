//! Static uniformity: which values are the same for every thread that computes them.
//!
//! Reads any kernel, makes one [`Uniform`] per value; the verifier holds barriers and subgroup instructions against it.
//! Always holds: it errs on the side of `Varying`. Memory that the launch may write counts as varying, since nothing
//! here says when a write becomes visible; read-only buffers give what their index gives.

use super::kernel::{Block, Builtin, Inst, Kernel, ReduceOp, ShuffleMode};
use super::types::Value;

/// How widely threads agree on a value, or on reaching a statement. A larger one agrees less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uniform {
    /// All threads of the workgroup.
    Workgroup,
    /// All threads of each subgroup.
    Subgroup,
    /// Perhaps no two threads.
    Varying,
}

/// The uniformity of each value, where a subgroup has this many threads.
pub fn uniformity(kernel: &Kernel, subgroup: u32) -> Vec<Uniform> {
    let [x, y, z] = kernel.workgroup.map(|extent| extent as u64);
    let mut analysis = Analysis {
        kernel,
        levels: vec![Uniform::Workgroup; kernel.types.len()],
        threads: x.saturating_mul(y).saturating_mul(z),
        subgroup: subgroup.max(1) as u64,
        changed: true,
    };
    // Levels only grow, and there are three of them, so this ends; carried values need the further rounds.
    while analysis.changed {
        analysis.changed = false;
        analysis.block(&kernel.body, Uniform::Workgroup, &[]);
    }
    analysis.levels
}

struct Analysis<'k> {
    kernel: &'k Kernel,
    levels: Vec<Uniform>,
    threads: u64,
    subgroup: u64,
    changed: bool,
}

impl Analysis<'_> {
    /// Visits a block; its `yield` feeds `targets`, which also depend on `control`.
    fn block(&mut self, block: &Block, control: Uniform, targets: &[&[Value]]) {
        for statement in &block.statements {
            let results = &statement.results;
            match &statement.inst {
                Inst::Yield(values) => {
                    for targets in targets {
                        for (&target, &value) in targets.iter().zip(values) {
                            self.raise(target, self.of(value));
                        }
                    }
                }
                Inst::For(inst) => {
                    // Threads that turn a different number of times leave with different values.
                    let turns = self.of(inst.start).max(self.of(inst.end));
                    let inside: Vec<Value> = inst.carried.iter().map(|&(name, _)| name).collect();
                    self.raise(inst.variable, self.of(inst.start));
                    for (i, &(name, first)) in inst.carried.iter().enumerate() {
                        self.raise(name, self.of(first));
                        if let Some(&result) = results.get(i) {
                            self.raise(result, self.of(first).max(turns));
                        }
                    }
                    self.block(&inst.body, control.max(turns), &[&inside, results]);
                }
                Inst::If(inst) => {
                    let cond = self.of(inst.cond);
                    results.iter().for_each(|&result| self.raise(result, cond));
                    self.block(&inst.then, control.max(cond), &[results]);
                    self.block(&inst.otherwise, control.max(cond), &[results]);
                }
                inst => {
                    let level = self.inst(inst);
                    results.iter().for_each(|&result| self.raise(result, level));
                }
            }
        }
    }

    fn inst(&self, inst: &Inst) -> Uniform {
        let all = |values: &[Value]| values.iter().map(|&v| self.of(v)).max().unwrap_or(Uniform::Workgroup);
        match inst {
            Inst::Const(_) | Inst::Arg(_) => Uniform::Workgroup,
            Inst::Builtin(builtin) => self.builtin(*builtin),
            Inst::Bin(_, a, b) | Inst::Cmp(_, a, b) => all(&[*a, *b]),
            Inst::Un(_, a) | Inst::Cast(_, a) | Inst::Bitcast(a) | Inst::Splat(a) => self.of(*a),
            Inst::Select { cond, a, b } => all(&[*cond, *a, *b]),
            Inst::Fma(a, b, c) => all(&[*a, *b, *c]),
            Inst::Vector(lanes) => all(lanes),
            Inst::Extract { vector, .. } => self.of(*vector),
            Inst::Swizzle { a, b, .. } => all(&[*a, *b]),
            Inst::Load { address, .. } if self.kernel.is_read_only(address.memory) => {
                address.index.map_or(Uniform::Workgroup, |index| self.of(index))
            }
            Inst::Load { .. } | Inst::AtomicAdd { .. } => Uniform::Varying,
            Inst::Unpack { a, .. } => self.of(*a),
            Inst::Dot2 { a, b, acc } => all(&[*a, *b, *acc]),
            Inst::Dot4 { a, b, acc, .. } => all(&[*a, *b, *acc]),
            Inst::PermuteBytes { table, index } => all(&[*table, *index]),
            Inst::PermuteLong { low, high, index } => all(&[*low, *high, *index]),
            Inst::Shuffle { mode, value, index } => match (self.of(*value), mode) {
                (Uniform::Varying, ShuffleMode::Index) => self.of(*index).max(Uniform::Subgroup),
                (level, _) => level,
            },
            // A last subgroup with fewer threads adds fewer numbers.
            Inst::SubgroupReduce(ReduceOp::Add, _) => Uniform::Subgroup,
            Inst::SubgroupReduce(ReduceOp::Max, value) => self.of(*value).min(Uniform::Subgroup),
            Inst::Mma { .. } | Inst::Asynchronous(_) | Inst::Cooperative(_) => Uniform::Varying,
            Inst::Store { .. }
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::Yield(_)
            | Inst::For(_)
            | Inst::If(_)
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_) => Uniform::Workgroup,
        }
    }

    fn builtin(&self, builtin: Builtin) -> Uniform {
        let [x, y, _] = self.kernel.workgroup.map(|extent| extent as u64);
        match builtin {
            Builtin::WorkgroupId(_) | Builtin::WorkgroupCount(_) => Uniform::Workgroup,
            Builtin::LocalId(axis) => {
                let extent = self.kernel.workgroup.get(axis as usize).copied().unwrap_or(u32::MAX);
                // Threads are numbered x fastest, so rows that are whole subgroups agree on the other axes.
                let period = match axis {
                    0 => 1,
                    1 => x,
                    _ => x.saturating_mul(y),
                };
                match extent {
                    0 | 1 => Uniform::Workgroup,
                    _ if period % self.subgroup == 0 => Uniform::Subgroup,
                    _ => Uniform::Varying,
                }
            }
            Builtin::Lane => Uniform::Varying,
            Builtin::Subgroup => Uniform::Subgroup,
        }
    }

    /// A value's level so far; a value that is not there is a fault of its own, and not one more here.
    fn of(&self, value: Value) -> Uniform {
        self.levels.get(value.0 as usize).copied().unwrap_or(Uniform::Workgroup)
    }

    fn raise(&mut self, value: Value, level: Uniform) {
        let level = match level {
            _ if self.threads <= 1 => Uniform::Workgroup,
            Uniform::Varying if self.subgroup == 1 => Uniform::Subgroup,
            Uniform::Subgroup if self.threads <= self.subgroup => Uniform::Workgroup,
            level => level,
        };
        if let Some(slot) = self.levels.get_mut(value.0 as usize)
            && *slot < level
        {
            *slot = level;
            self.changed = true;
        }
    }
}
