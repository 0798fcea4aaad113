//! `dce` drops what nobody reads; `renumber` gives the values that are left dense numbers in order of definition.

use super::rewrite::{bodies, count_uses};
use crate::ir::{Block, Inst, Kernel, Statement, Value};

/// Drops pure instructions and loads whose results nobody reads, and loops and branches that do nothing.
///
/// Loads are dropped too: a kernel that does not trap loses nothing by it. Carried values and results of loops and
/// branches stay, since taking one out changes its shape; what feeds them stays with them.
pub fn dce(mut kernel: Kernel) -> Kernel {
    let mut uses = vec![0; kernel.types.len()];
    count_uses(&kernel.body, &mut uses);
    let mut body = std::mem::take(&mut kernel.body);
    sweep(&mut body, &mut uses);
    kernel.body = body;
    renumber(kernel)
}

/// Walks backwards, so that the last reader is gone before the statement that it read.
fn sweep(block: &mut Block, uses: &mut [u32]) {
    let mut kept = Vec::with_capacity(block.statements.len());
    while let Some(mut statement) = block.statements.pop() {
        if is_dead(&statement, uses) {
            forget(&statement, uses);
            continue;
        }
        for body in bodies(&mut statement.inst) {
            sweep(body, uses);
        }
        if is_dead(&statement, uses) {
            forget(&statement, uses);
        } else {
            kept.push(statement);
        }
    }
    kept.reverse();
    block.statements = kept;
}

fn is_dead(statement: &Statement, uses: &[u32]) -> bool {
    statement.results.iter().all(|result| uses[result.0 as usize] == 0) && idle(&statement.inst)
}

/// Whether an instruction does nothing but define its results.
fn idle(inst: &Inst) -> bool {
    let quiet = |block: &Block| {
        block.statements.iter().all(|statement| matches!(statement.inst, Inst::Yield(_)) || idle(&statement.inst))
    };
    match inst {
        Inst::For(inner) => quiet(&inner.body),
        Inst::If(inner) => quiet(&inner.then) && quiet(&inner.otherwise),
        Inst::Load { .. } => true,
        other => other.is_pure(),
    }
}

/// Takes back the uses of a dropped statement and of all inside it.
fn forget(statement: &Statement, uses: &mut [u32]) {
    for value in statement.inst.operands() {
        uses[value.0 as usize] -= 1;
    }
    let blocks: &[&Block] = match &statement.inst {
        Inst::For(inner) => &[&inner.body],
        Inst::If(inner) => &[&inner.then, &inner.otherwise],
        _ => &[],
    };
    for block in blocks {
        block.statements.iter().for_each(|statement| forget(statement, uses));
    }
}

/// Numbers values densely in order of definition and drops the types of those that are gone.
pub fn renumber(mut kernel: Kernel) -> Kernel {
    let mut numbering = Numbering { new: vec![None; kernel.types.len()], types: Vec::new() };
    let mut body = std::mem::take(&mut kernel.body);
    numbering.block(&mut body, &kernel);
    kernel.body = body;
    kernel.types = numbering.types;
    kernel
}

struct Numbering {
    new: Vec<Option<Value>>,
    types: Vec<crate::ir::Type>,
}

impl Numbering {
    fn define(&mut self, value: &mut Value, kernel: &Kernel) {
        let new = Value(self.types.len() as u32);
        self.types.push(kernel.ty(*value));
        self.new[value.0 as usize] = Some(new);
        *value = new;
    }

    fn block(&mut self, block: &mut Block, kernel: &Kernel) {
        for statement in &mut block.statements {
            let new = &self.new;
            statement.inst.each_operand(|value| *value = new[value.0 as usize].unwrap_or(*value));
            match &mut statement.inst {
                Inst::For(inner) => {
                    self.define(&mut inner.variable, kernel);
                    for (name, _) in &mut inner.carried {
                        self.define(name, kernel);
                    }
                    self.block(&mut inner.body, kernel);
                }
                Inst::If(inner) => {
                    self.block(&mut inner.then, kernel);
                    self.block(&mut inner.otherwise, kernel);
                }
                _ => {}
            }
            for result in &mut statement.results {
                self.define(result, kernel);
            }
        }
    }
}
