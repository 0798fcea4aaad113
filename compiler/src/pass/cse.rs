//! `cse`: an instruction that was computed before, in the same block or one around it, is not computed again.
//!
//! Pure instructions, and loads from `Read` buffers, which nobody writes during the launch.

use super::rewrite::{Names, rename, take_body};
use crate::ir::{Block, Constant, Inst, Kernel, Statement, Type, Value};
use rustc_hash::FxBuildHasher;
use std::collections::HashMap;

/// Merges equal instructions.
pub fn cse(mut kernel: Kernel) -> Kernel {
    let body = take_body(&mut kernel);
    let mut merger = Merger { kernel, seen: HashMap::default(), names: Names::new() };
    let body = merger.block(body);
    merger.kernel.body = body;
    merger.kernel
}

struct Merger {
    kernel: Kernel,
    /// What an instruction of a type was named; scopes take back what they added.
    seen: HashMap<(Type, Inst), Value, FxBuildHasher>,
    names: Names,
}

impl Merger {
    fn block(&mut self, block: Block) -> Block {
        let mut added = Vec::new();
        let mut out = Vec::with_capacity(block.statements.len());
        for mut statement in block.statements {
            rename(&mut statement.inst, &self.names);
            match statement.inst {
                Inst::For(mut inner) => {
                    inner.body = self.block(inner.body);
                    out.push(Statement { results: statement.results, inst: Inst::For(inner) });
                }
                Inst::If(mut inner) => {
                    inner.then = self.block(inner.then);
                    inner.otherwise = self.block(inner.otherwise);
                    out.push(Statement { results: statement.results, inst: Inst::If(inner) });
                }
                mut inst => {
                    if let (&[result], true) = (statement.results.as_slice(), self.repeatable(&inst)) {
                        normalize(&mut inst);
                        let key = (self.kernel.ty(result), inst.clone());
                        if let Some(&before) = self.seen.get(&key) {
                            self.names.insert(result, before);
                            continue;
                        }
                        self.seen.insert(key.clone(), result);
                        added.push(key);
                    }
                    out.push(Statement { results: statement.results, inst });
                }
            }
        }
        for key in added {
            self.seen.remove(&key);
        }
        Block { statements: out }
    }

    fn repeatable(&self, inst: &Inst) -> bool {
        match inst {
            Inst::Load { address, .. } => self.kernel.is_read_only(address.memory),
            other => other.is_pure(),
        }
    }
}

/// One spelling for constants that are equal.
fn normalize(inst: &mut Inst) {
    if let Inst::Const(Constant::Lanes(lanes)) = inst
        && let Some(&first) = lanes.first()
        && lanes.iter().all(|&lane| lane == first)
    {
        *inst = Inst::Const(Constant::Splat(first));
    }
}
