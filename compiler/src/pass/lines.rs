//! `lines`: a cache line of 64 bytes is asked for once, and read by one load where its halves were read by two.
//!
//! For vectors of 64 bytes, in the straight code of one block. Loads from `Read` buffers, which nobody writes during the launch.

use std::collections::{HashMap, HashSet};

use super::rewrite::{bodies, fresh, take_body};
use crate::ir::{Address, Block, Inst, Kernel, Memory, Scalar, Statement, Type, Value};

/// Bytes of a line.
const LINE: i64 = 64;

/// Joins loads of halves, and drops hints that say nothing new.
pub fn lines(mut kernel: Kernel) -> Kernel {
    let mut body = take_body(&mut kernel);
    block(&mut body, &mut kernel);
    kernel.body = body;
    kernel
}

fn block(body: &mut Block, kernel: &mut Kernel) {
    let pairs = pairs(body, kernel);
    let mut asked = HashSet::new();
    let mut whole: HashMap<Value, Value> = HashMap::new();
    let mut out = Vec::with_capacity(body.statements.len());
    for mut statement in std::mem::take(&mut body.statements) {
        bodies(&mut statement.inst).into_iter().for_each(|inner| block(inner, kernel));
        if let Inst::Prefetch(address) = statement.inst
            && !asked.insert(Address { offset: address.offset.div_euclid(LINE), ..address })
        {
            continue;
        }
        let (Inst::Load { address, align }, &[result]) = (&statement.inst, statement.results.as_slice()) else {
            out.push(statement);
            continue;
        };
        let half = kernel.ty(result);
        if let Some(&upper) = pairs.get(&result) {
            let line = fresh(&mut kernel.types, Type::vector(half.scalar, 2 * half.lanes));
            out.push(Statement { results: vec![line], inst: Inst::Load { address: *address, align: *align } });
            out.push(part(line, 0, half.lanes, result));
            whole.insert(upper, line);
        } else if let Some(line) = whole.remove(&result) {
            out.push(part(line, half.lanes, half.lanes, result));
        } else {
            out.push(statement);
        }
    }
    body.statements = out;
}

/// Lanes of a line from `first` on, as `result`.
fn part(line: Value, first: u8, count: u8, result: Value) -> Statement {
    let lanes = (first..first + count).collect();
    Statement { results: vec![result], inst: Inst::Swizzle { a: line, b: line, lanes } }
}

/// Loads of the first half of a line, and those of the second half that come after them, with other loads in between: where they
/// follow one another, the line is there, and to take it apart costs more than a second load.
fn pairs(body: &Block, kernel: &Kernel) -> HashMap<Value, Value> {
    let mut firsts: HashMap<(Address, Type), Value> = HashMap::new();
    let mut pairs = HashMap::new();
    // The load before, of each memory.
    let mut before: HashMap<Memory, Value> = HashMap::new();
    for statement in &body.statements {
        let (&Inst::Load { address, .. }, &[result]) = (&statement.inst, statement.results.as_slice()) else {
            continue;
        };
        let ty = kernel.ty(result);
        let before = before.insert(address.memory, result);
        if i64::from(ty.bytes()) * 2 != LINE
            || ty.scalar == Scalar::Bool
            || ty.lanes < 2
            || !kernel.is_read_only(address.memory)
        {
            continue;
        }
        match address.offset.rem_euclid(LINE) {
            0 => {
                firsts.entry((address, ty)).or_insert(result);
            }
            32 => {
                let line = Address { offset: address.offset - LINE / 2, ..address };
                if let Some(first) = firsts.remove(&(line, ty))
                    && before != Some(first)
                {
                    pairs.insert(first, result);
                }
            }
            _ => {}
        }
    }
    pairs
}
