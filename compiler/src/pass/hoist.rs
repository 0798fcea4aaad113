//! `hoist`: pure instructions that a loop does not change move in front of it.
//!
//! A loop may run no turn at all, so only instructions that cannot trap move; loads stay.

use super::rewrite::{never_traps, take_body};
use crate::ir::{Block, Constant, Inst, Kernel, Statement, Value};
use std::collections::{HashMap, HashSet};

/// Hoists loop-invariant pure instructions, innermost loops first.
pub fn hoist(mut kernel: Kernel) -> Kernel {
    let body = take_body(&mut kernel);
    let mut hoister = Hoister { kernel, constants: HashMap::new() };
    let body = hoister.block(body);
    hoister.kernel.body = body;
    hoister.kernel
}

struct Hoister {
    kernel: Kernel,
    constants: HashMap<Value, Vec<u64>>,
}

impl Hoister {
    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.statements.len());
        for statement in block.statements {
            match statement.inst {
                Inst::For(mut inner) => {
                    inner.body = self.block(inner.body);
                    let mut inside: HashSet<Value> = HashSet::from([inner.variable]);
                    inside.extend(inner.carried.iter().map(|&(name, _)| name));
                    let mut stay = Vec::with_capacity(inner.body.statements.len());
                    for statement in inner.body.statements {
                        if self.invariant(&statement, &inside) {
                            out.push(statement);
                        } else {
                            // Results of a loop or branch inside, and of what stays, belong to the loop; what they
                            // define deeper in is read in there alone.
                            inside.extend(&statement.results);
                            stay.push(statement);
                        }
                    }
                    inner.body.statements = stay;
                    out.push(Statement { results: statement.results, inst: Inst::For(inner) });
                }
                Inst::If(mut inner) => {
                    inner.then = self.block(inner.then);
                    inner.otherwise = self.block(inner.otherwise);
                    out.push(Statement { results: statement.results, inst: Inst::If(inner) });
                }
                inst => {
                    if let (&[result], Inst::Const(constant)) = (statement.results.as_slice(), &inst) {
                        let lanes = match constant {
                            Constant::Splat(bits) => vec![*bits],
                            Constant::Lanes(lanes) => lanes.clone(),
                        };
                        self.constants.insert(result, lanes);
                    }
                    out.push(Statement { results: statement.results, inst });
                }
            }
        }
        Block { statements: out }
    }

    fn invariant(&self, statement: &Statement, inside: &HashSet<Value>) -> bool {
        never_traps(&statement.inst, &|value| self.constants.get(&value).cloned(), &self.kernel.types)
            && statement.inst.operands().iter().all(|value| !inside.contains(value))
    }
}
