//! `narrow`: 64-bit index arithmetic in 32 bits, for devices whose buffers are below 2 GiB.
//!
//! Families compute offsets in `i64`, since a CPU's buffers may be large. Where a buffer is below 2 GiB, every index into
//! it fits `i32`, and GPUs have no 64-bit registers. Always holds: a kernel that does anything else with `i64` (loads,
//! stores, reads its bits, passes it as a parameter, takes a constant of more than 31 bits) stays as it is.

use super::rewrite::{Names, rename, take_body};
use crate::ir::{BinOp, Block, CastOp, Constant, Inst, Kernel, Scalar, Statement, Type, UnOp, Value};
use std::collections::HashMap;

/// Rewrites a kernel whose 64-bit integers are all index arithmetic; leaves any other.
pub fn narrow(mut kernel: Kernel) -> Kernel {
    let mut constants = HashMap::new();
    if !indices_alone(&kernel.body, &kernel.types, &mut constants) {
        return kernel;
    }
    let body = take_body(&mut kernel);
    let body = block(body, &kernel.types, &mut Names::new());
    for ty in kernel.types.iter_mut().filter(|ty| ty.scalar == Scalar::I64) {
        *ty = ty.with_scalar(Scalar::I32);
    }
    kernel.body = body;
    kernel
}

/// Whether all that is done to 64-bit integers gives the same in 32 bits, as long as the numbers fit.
fn indices_alone(block: &Block, types: &[Type], constants: &mut HashMap<Value, i64>) -> bool {
    let wide = |value: Value| types[value.0 as usize].scalar == Scalar::I64;
    block.statements.iter().all(|statement| {
        let result = statement.results.first().copied();
        let makes_wide = result.is_some_and(wide);
        match &statement.inst {
            Inst::For(inner) => i32::try_from(inner.step).is_ok() && indices_alone(&inner.body, types, constants),
            Inst::If(inner) => {
                indices_alone(&inner.then, types, constants) && indices_alone(&inner.otherwise, types, constants)
            }
            Inst::Const(constant) if makes_wide => {
                let list = match constant {
                    Constant::Splat(bits) => std::slice::from_ref(bits),
                    Constant::Lanes(list) => list,
                };
                if let (Some(result), &[bits]) = (result, list) {
                    constants.insert(result, bits as i64);
                }
                list.iter().all(|&bits| i32::try_from(bits as i64).is_ok())
            }
            Inst::Bin(BinOp::Shl | BinOp::ShrU | BinOp::ShrS, _, amount) if makes_wide => {
                constants.get(amount).is_some_and(|amount| (0..31).contains(amount))
            }
            Inst::Un(UnOp::Popcount, _) if makes_wide => false,
            Inst::Cast(CastOp::ExtendU, a) if makes_wide => types[a.0 as usize].scalar != Scalar::I32,
            Inst::Bitcast(a) => !makes_wide && !wide(*a),
            Inst::Unpack { a, .. } => !makes_wide && !wide(*a),
            Inst::Load { .. } | Inst::Arg(_) | Inst::SubgroupReduce(..) => !makes_wide,
            Inst::Store { value, .. } => !wide(*value),
            _ => true,
        }
    })
}

fn block(old: Block, types: &[Type], names: &mut Names) -> Block {
    let scalar = |value: Value| types[value.0 as usize].scalar;
    let mut out = Vec::with_capacity(old.statements.len());
    for mut statement in old.statements {
        rename(&mut statement.inst, names);
        let result = statement.results.first().copied();
        let inst = match (statement.inst, result) {
            (Inst::For(mut inner), _) => {
                inner.body = block(inner.body, types, names);
                Inst::For(inner)
            }
            (Inst::If(mut inner), _) => {
                inner.then = block(inner.then, types, names);
                inner.otherwise = block(inner.otherwise, types, names);
                Inst::If(inner)
            }
            (Inst::Const(constant), Some(result)) if scalar(result) == Scalar::I64 => Inst::Const(match constant {
                Constant::Splat(bits) => Constant::Splat(bits as u32 as u64),
                Constant::Lanes(list) => Constant::Lanes(list.into_iter().map(|bits| bits as u32 as u64).collect()),
            }),
            (Inst::Cast(op, a), Some(result)) => {
                let word = |value: Value| matches!(scalar(value), Scalar::I32 | Scalar::I64);
                let integers = matches!(op, CastOp::Truncate | CastOp::ExtendS | CastOp::ExtendU);
                if integers && word(a) && word(result) {
                    // Between 32 bits and what was 64, nothing is left to do.
                    names.insert(result, a);
                    continue;
                }
                Inst::Cast(op, a)
            }
            (other, _) => other,
        };
        out.push(Statement { results: statement.results, inst });
    }
    Block { statements: out }
}
