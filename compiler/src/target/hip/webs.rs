//! Which values a loop's variable holds one after the other, so that sums are added to where a person would add to them.
//!
//! Reads a kernel and its facts; makes, for each value that can be assigned to a carried variable at once, that variable.
//! Always holds: nothing reads the variable's old value once the new one is there, expressions that are written further down
//! included.

use super::facts::Fact;
use crate::ir::{BinOp, Block, For, Inst, Kernel, Statement, Value};
use std::collections::HashMap;

/// For each value, the carried variable that takes it where it is made.
pub(super) fn webs(kernel: &Kernel, facts: &[Fact<'_>]) -> Vec<Option<Value>> {
    let mut webs = vec![None; kernel.types.len()];
    visit(&kernel.body, kernel, facts, &mut webs);
    webs
}

fn visit(block: &Block, kernel: &Kernel, facts: &[Fact<'_>], webs: &mut [Option<Value>]) {
    for statement in &block.statements {
        match &statement.inst {
            Inst::For(inner) => {
                carried(inner, kernel, facts, webs);
                visit(&inner.body, kernel, facts, webs);
            }
            Inst::If(inner) => {
                visit(&inner.then, kernel, facts, webs);
                visit(&inner.otherwise, kernel, facts, webs);
            }
            _ => {}
        }
    }
}

fn carried(inner: &For, kernel: &Kernel, facts: &[Fact<'_>], webs: &mut [Option<Value>]) {
    let statements = &inner.body.statements;
    let Some(Inst::Yield(next)) = statements.last().map(|statement| &statement.inst) else { return };
    let made: HashMap<Value, usize> = statements
        .iter()
        .enumerate()
        .flat_map(|(at, statement)| statement.results.iter().map(move |&result| (result, at)))
        .collect();
    for (&(variable, _), &last) in inner.carried.iter().zip(next) {
        // From the last value of a turn back to the variable itself.
        let (mut chain, mut value): (Vec<(Value, usize)>, Value) = (Vec::new(), last);
        while let Some(&at) = made.get(&value)
            && webs[value.0 as usize].is_none()
            && kernel.ty(value) == kernel.ty(variable)
            && let Some(before) = sum(&statements[at].inst)
        {
            chain.push((value, at));
            let single = |before: &Value| facts[before.0 as usize].uses == 1 && made.contains_key(before);
            let Some(before) = before.into_iter().find(single) else { break };
            value = before;
        }
        let read = last_read(statements, facts, variable, &chain);
        for (value, at) in chain {
            if read.is_some_and(|read| read > at) {
                break;
            }
            webs[value.0 as usize] = Some(variable);
        }
    }
}

/// What an instruction adds to; `None` if it adds nothing up.
fn sum(inst: &Inst) -> Option<Vec<Value>> {
    match *inst {
        Inst::Fma(_, _, sum) | Inst::Mma { acc: sum, .. } | Inst::Dot4 { acc: sum, .. } => Some(vec![sum]),
        Inst::Bin(BinOp::Add, a, b) => Some(vec![a, b]),
        _ => None,
    }
}

/// The last statement of a block whose text reads a value: one that names it, or what that one's expression is written into.
/// Values of a chain are assigned where they are made.
fn last_read(statements: &[Statement], facts: &[Fact<'_>], value: Value, chain: &[(Value, usize)]) -> Option<usize> {
    let reads = |statement: &Statement, value: Value| {
        statement.inst.operands().contains(&value) || inside(&statement.inst, value)
    };
    let mut last = None;
    for (at, statement) in statements.iter().enumerate() {
        if !reads(statement, value) {
            continue;
        }
        let (mut at, mut from) = (at, statement);
        while let [result] = *from.results
            && !chain.iter().any(|&(member, _)| member == result)
            && facts[result.0 as usize].uses == 1
            && facts[result.0 as usize].used_in == Some(facts[result.0 as usize].defined_in)
            && let Some(user) = statements.iter().position(|statement| statement.inst.operands().contains(&result))
        {
            (at, from) = (user, &statements[user]);
        }
        last = last.max(Some(at));
    }
    last
}

fn inside(inst: &Inst, value: Value) -> bool {
    let reads = |block: &Block| {
        block
            .statements
            .iter()
            .any(|statement| statement.inst.operands().contains(&value) || inside(&statement.inst, value))
    };
    match inst {
        Inst::For(inner) => reads(&inner.body),
        Inst::If(inner) => reads(&inner.then) || reads(&inner.otherwise),
        _ => false,
    }
}
