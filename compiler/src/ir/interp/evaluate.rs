//! One pure instruction on constants, for constant folding: the interpreter's own code on a register file of its own.

use super::{code, pure};
use crate::ir::kernel::{Constant, Inst};
use crate::ir::types::{Type, Value};

/// The lanes of a pure instruction's result, from its operands' types and constants. `None` if the instruction is not
/// pure, an operand is not constant, or the interpreter would trap on it.
pub(crate) fn evaluate<'c>(
    inst: &Inst,
    result: Type,
    ty: &dyn Fn(Value) -> Type,
    constant: &dyn Fn(Value) -> Option<&'c Constant>,
) -> Option<Vec<u64>> {
    let operands = inst.operands();
    let mut slots: Vec<(Value, u32)> = Vec::new();
    let mut regs = vec![0u8; padded(result)];
    for value in operands {
        if slots.iter().any(|&(known, _)| known == value) {
            continue;
        }
        let at = regs.len();
        regs.resize(at + padded(ty(value)), 0);
        code::write_constant(constant(value)?, ty(value), &mut regs[at..]);
        slots.push((value, at as u32));
    }
    let slot = |value: Value| slots.iter().find(|&&(known, _)| known == value).map_or(0, |&(_, at)| at);
    let mut tables = Vec::new();
    let op = code::pure_op(inst, result, 0, ty, &slot, &mut tables)?;
    pure::step(&op, &tables, &mut regs).ok()?;
    let bytes = result.scalar.bytes() as usize;
    let lanes = regs.chunks_exact(bytes).take(result.lanes as usize);
    Some(
        lanes
            .map(|lane| {
                let mut bits = [0; 8];
                bits[..bytes].copy_from_slice(lane);
                u64::from_le_bytes(bits)
            })
            .collect(),
    )
}

fn padded(ty: Type) -> usize {
    ty.bytes().next_multiple_of(16) as usize
}
