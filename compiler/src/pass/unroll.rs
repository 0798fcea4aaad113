//! `unroll`: loops whose bounds are constants become straight code, if it is short enough.

use super::rewrite::{Names, copy, rename, size, take_body, yielded};
use crate::ir::{Block, Constant, For, Inst, Kernel, Scalar, Statement, Type, Value};
use std::collections::HashMap;

/// Fully unrolls loops of constant bounds that make at most `limit` statements, innermost first.
pub fn unroll(mut kernel: Kernel, limit: usize) -> Kernel {
    let body = take_body(&mut kernel);
    let mut unroller = Unroller { types: kernel.types, constants: HashMap::new(), names: Names::new(), limit };
    let body = unroller.block(body);
    Kernel { types: unroller.types, body, ..kernel }
}

struct Unroller {
    types: Vec<Type>,
    constants: HashMap<Value, i64>,
    names: Names,
    limit: usize,
}

impl Unroller {
    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.statements.len());
        for mut statement in block.statements {
            rename(&mut statement.inst, &self.names);
            match statement.inst {
                Inst::For(mut inner) => {
                    inner.body = self.block(inner.body);
                    match self.turns(&inner) {
                        Some(turns) => self.repeat(&inner, &turns, &statement.results, &mut out),
                        None => out.push(Statement { results: statement.results, inst: Inst::For(inner) }),
                    }
                }
                Inst::If(mut inner) => {
                    inner.then = self.block(inner.then);
                    inner.otherwise = self.block(inner.otherwise);
                    out.push(Statement { results: statement.results, inst: Inst::If(inner) });
                }
                inst => {
                    if let (&[result], Inst::Const(constant)) = (statement.results.as_slice(), &inst) {
                        self.note(result, constant);
                    }
                    out.push(Statement { results: statement.results, inst });
                }
            }
        }
        Block { statements: out }
    }

    fn note(&mut self, result: Value, constant: &Constant) {
        let ty = self.types[result.0 as usize];
        let bits = match constant {
            Constant::Splat(bits) => *bits,
            Constant::Lanes(lanes) => lanes.first().copied().unwrap_or(0),
        };
        match ty {
            Type { scalar: Scalar::I32, lanes: 1 } => self.constants.insert(result, bits as i32 as i64),
            Type { scalar: Scalar::I64, lanes: 1 } => self.constants.insert(result, bits as i64),
            _ => None,
        };
    }

    /// The counter's values, if they are known and few enough. A counter that would overflow is left to trap.
    fn turns(&self, inner: &For) -> Option<Vec<i64>> {
        let (&start, &end) = (self.constants.get(&inner.start)?, self.constants.get(&inner.end)?);
        let cost = size(&inner.body).max(1);
        let wide = self.types[inner.variable.0 as usize].scalar == Scalar::I64;
        let mut turns = Vec::new();
        let mut at = start;
        while at < end {
            turns.push(at);
            if turns.len() * cost > self.limit || inner.step <= 0 {
                return None;
            }
            at = at.checked_add(inner.step).filter(|&at| wide || i32::try_from(at).is_ok())?;
        }
        Some(turns)
    }

    fn repeat(&mut self, inner: &For, turns: &[i64], results: &[Value], out: &mut Vec<Statement>) {
        let mut carried: Vec<Value> = inner.carried.iter().map(|&(_, start)| start).collect();
        let ty = self.types[inner.variable.0 as usize];
        for &turn in turns {
            let counter = super::rewrite::fresh(&mut self.types, ty);
            let bits = if ty.scalar == Scalar::I64 { turn as u64 } else { turn as u32 as u64 };
            out.push(Statement { results: vec![counter], inst: Inst::Const(Constant::Splat(bits)) });
            self.constants.insert(counter, turn);
            let mut names = Names::from([(inner.variable, counter)]);
            names.extend(inner.carried.iter().map(|&(name, _)| name).zip(carried.iter().copied()));
            let (last, body) = inner.body.statements.split_last().map_or((None, &[][..]), |(l, b)| (Some(l), b));
            out.extend(body.iter().map(|statement| copy(statement, &mut names, &mut self.types)));
            let next = last.map_or(Vec::new(), |last| yielded(&Block { statements: vec![last.clone()] }));
            carried = next.into_iter().map(|value| names.get(&value).copied().unwrap_or(value)).collect();
        }
        self.names.extend(results.iter().copied().zip(carried));
    }
}
