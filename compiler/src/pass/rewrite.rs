//! What passes share: renaming values, copying blocks with fresh values, counting uses.

use crate::ir::{Block, Inst, Kernel, Statement, Type, Value};
use std::collections::HashMap;

/// Values that stand for others.
pub type Names = HashMap<Value, Value>;

/// Renames what an instruction reads; bodies are left alone.
pub fn rename(inst: &mut Inst, names: &Names) {
    if !names.is_empty() {
        inst.each_operand(|value| {
            if let Some(&other) = names.get(value) {
                *value = other;
            }
        });
    }
}

/// The blocks inside a statement.
pub fn bodies(inst: &mut Inst) -> Vec<&mut Block> {
    match inst {
        Inst::For(inner) => vec![&mut inner.body],
        Inst::If(inner) => vec![&mut inner.then, &mut inner.otherwise],
        _ => Vec::new(),
    }
}

/// How often each value is read.
pub fn count_uses(block: &Block, uses: &mut [u32]) {
    for statement in &block.statements {
        for value in statement.inst.operands() {
            uses[value.0 as usize] += 1;
        }
        match &statement.inst {
            Inst::For(inner) => count_uses(&inner.body, uses),
            Inst::If(inner) => {
                count_uses(&inner.then, uses);
                count_uses(&inner.otherwise, uses);
            }
            _ => {}
        }
    }
}

/// Statements of a block, bodies counted.
pub fn size(block: &Block) -> usize {
    let inner = |inst: &Inst| match inst {
        Inst::For(inner) => size(&inner.body),
        Inst::If(inner) => size(&inner.then) + size(&inner.otherwise),
        _ => 0,
    };
    block.statements.iter().map(|statement| 1 + inner(&statement.inst)).sum()
}

/// A new value.
pub fn fresh(types: &mut Vec<Type>, ty: Type) -> Value {
    types.push(ty);
    Value(types.len() as u32 - 1)
}

/// Whether the divisions, dots and look-ups among pure instructions surely keep their promises, so that they may run
/// where they did not before. `known` tells the lanes of constants.
pub fn never_traps(inst: &Inst, known: &dyn Fn(Value) -> Option<Vec<u64>>, types: &[Type]) -> bool {
    use crate::ir::BinOp;
    match inst {
        Inst::Bin(BinOp::DivS | BinOp::RemS, _, divisor) => known(*divisor).is_some_and(|lanes| {
            let bits = types[divisor.0 as usize].scalar.bits();
            let minus_one = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
            lanes.iter().all(|&lane| lane != 0 && lane != minus_one)
        }),
        Inst::Dot4 { a_bits, .. } => *a_bits >= 8,
        Inst::PermuteBytes { .. } => false,
        other => other.is_pure(),
    }
}

/// Copies statements with new names for all that they define; `names` maps what comes from outside and grows.
pub fn copy_block(block: &Block, names: &mut Names, types: &mut Vec<Type>) -> Block {
    Block { statements: block.statements.iter().map(|statement| copy(statement, names, types)).collect() }
}

/// Copies one statement with new names for what it defines.
pub fn copy(statement: &Statement, names: &mut Names, types: &mut Vec<Type>) -> Statement {
    let define = |value: Value, names: &mut Names, types: &mut Vec<Type>| {
        let new = fresh(types, types[value.0 as usize]);
        names.insert(value, new);
        new
    };
    let mut inst = match &statement.inst {
        Inst::For(inner) => {
            let mut inner = inner.clone();
            let known = |value: Value, names: &Names| names.get(&value).copied().unwrap_or(value);
            inner.start = known(inner.start, names);
            inner.end = known(inner.end, names);
            for (_, start) in &mut inner.carried {
                *start = known(*start, names);
            }
            inner.variable = define(inner.variable, names, types);
            for (name, _) in &mut inner.carried {
                *name = define(*name, names, types);
            }
            inner.body = copy_block(&inner.body, names, types);
            let results = statement.results.iter().map(|&value| define(value, names, types)).collect();
            return Statement { results, inst: Inst::For(inner) };
        }
        Inst::If(inner) => {
            let mut inner = inner.clone();
            inner.cond = names.get(&inner.cond).copied().unwrap_or(inner.cond);
            inner.then = copy_block(&inner.then, names, types);
            inner.otherwise = copy_block(&inner.otherwise, names, types);
            let results = statement.results.iter().map(|&value| define(value, names, types)).collect();
            return Statement { results, inst: Inst::If(inner) };
        }
        other => other.clone(),
    };
    rename(&mut inst, names);
    Statement { results: statement.results.iter().map(|&value| define(value, names, types)).collect(), inst }
}

/// The values that a block's yield gives.
pub fn yielded(block: &Block) -> Vec<Value> {
    match block.statements.last().map(|statement| &statement.inst) {
        Some(Inst::Yield(values)) => values.clone(),
        _ => Vec::new(),
    }
}

/// Takes the body out of a kernel to rebuild it.
pub fn take_body(kernel: &mut Kernel) -> Block {
    std::mem::take(&mut kernel.body)
}
