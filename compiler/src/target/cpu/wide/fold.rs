//! What becomes an operand, and what nobody reads.
//!
//! A load is folded into the instruction that uses it where that instruction is the only one, stands in the same block
//! with no write to memory between them, and has a form that reads memory of that width. With AVX-512 a load that a splat
//! puts in every lane is folded as well, where only one instruction reads that.

use std::collections::{HashMap, HashSet};

use super::lower::Facts;
use super::machine::{Arg, Function, Inst as Op};
use crate::ir::{self, CastOp, Dot4Signs, Inst, Scalar, Type};

/// A load seen since the last write to memory.
struct Open {
    /// The values through which it would be read.
    path: Vec<ir::Value>,
    /// Whether one number is read for all lanes.
    broadcast: bool,
}

/// Loads (and bitcasts and splats of them) that are read where they are used.
pub(super) fn folded(kernel: &ir::Kernel, uses: &[u32], facts: Facts) -> HashSet<ir::Value> {
    let mut found = HashSet::new();
    block(kernel, &kernel.body, uses, facts, &mut found);
    found
}

fn block(kernel: &ir::Kernel, body: &ir::Block, uses: &[u32], facts: Facts, found: &mut HashSet<ir::Value>) {
    let mut open: HashMap<ir::Value, Open> = HashMap::new();
    for statement in &body.statements {
        let inst = &statement.inst;
        for value in inst.operands() {
            if let Some(Open { path, broadcast }) = open.remove(&value) {
                let ty = kernel.ty(value);
                let &[result] = statement.results.as_slice() else { continue };
                let (to, once) = (kernel.ty(result), uses[result.0 as usize] == 1);
                if let Inst::Bitcast(_) = inst {
                    if once && ty.lanes > 1 && to.lanes > 1 {
                        open.insert(result, Open { path: [path, vec![result]].concat(), broadcast });
                    }
                    continue;
                }
                if reads_memory(inst, value, ty, to) && (!broadcast || reads_broadcast(inst, ty, facts)) {
                    found.extend(path);
                    if matches!(inst, Inst::Splat(_)) && facts.evex && once && ty.scalar.bits() == 32 {
                        open.insert(result, Open { path: vec![result], broadcast: true });
                    }
                }
            }
        }
        match inst {
            Inst::Load { .. } => {
                if let &[result] = statement.results.as_slice()
                    && uses[result.0 as usize] == 1
                    && kernel.ty(result).scalar != Scalar::Bool
                {
                    open.insert(result, Open { path: vec![result], broadcast: false });
                }
            }
            Inst::Store { .. } | Inst::AtomicAdd { .. } | Inst::Barrier => open.clear(),
            Inst::For(inner) => {
                open.clear();
                block(kernel, &inner.body, uses, facts, found);
            }
            Inst::If(inner) => {
                open.clear();
                block(kernel, &inner.then, uses, facts, found);
                block(kernel, &inner.otherwise, uses, facts, found);
            }
            _ => {}
        }
    }
}

/// Whether the instruction has a form that reads this operand from memory, and lowering uses it.
fn reads_memory(inst: &Inst, value: ir::Value, ty: Type, result: Type) -> bool {
    use ir::BinOp::{Add, And, Div, Mul, Or, Sub, Xor};
    let whole = ty.lanes > 1 && ty.bytes() >= 16;
    match inst {
        Inst::Bin(Add | Mul | And | Or | Xor, a, b) => {
            whole
                && a != b
                && (ty.scalar.bits() >= 16 || !matches!(inst, Inst::Bin(Mul, ..)))
                && !(ty.scalar == Scalar::I64 && matches!(inst, Inst::Bin(Mul, ..)))
        }
        Inst::Bin(Sub | Div, a, b) => whole && a != b && *b == value,
        Inst::Fma(a, b, c) => whole && (*a == value) != (*b == value) && *c != value,
        Inst::Dot4 { b, a, acc, .. } => whole && a != b && *b == value && *acc != value && *a != value,
        Inst::Dot2 { b, a, acc } => whole && a != b && *b == value && *acc != value,
        Inst::Unpack { shift: 0, signed: false, .. } => whole && ty.scalar == result.scalar,
        Inst::Splat(_) => ty.lanes == 1 && ty.scalar != Scalar::Bool && result.lanes > 1 && result.bytes() >= 16,
        Inst::Cast(CastOp::ExtendU | CastOp::ExtendS, _) => ty.lanes > 1 && matches!(result.bytes(), 16 | 32 | 64),
        Inst::Cast(CastOp::Float, _) => {
            ty.lanes > 1
                && ty.scalar == Scalar::F16
                && result.scalar == Scalar::F32
                && matches!(result.bytes(), 16 | 32 | 64)
        }
        _ => false,
    }
}

/// Whether an instruction that reads memory has a form that reads 32 bits of it for all lanes.
fn reads_broadcast(inst: &Inst, ty: Type, facts: Facts) -> bool {
    use ir::BinOp::{Add, Div, Mul, Sub};
    match inst {
        Inst::Bin(Add | Mul | Sub | Div, ..) => ty.scalar.bits() == 32,
        Inst::Fma(..) => true,
        Inst::Dot4 { signs, .. } => facts.vnni && *signs == Dot4Signs::UnsignedSigned,
        _ => false,
    }
}

/// Drops instructions whose results nobody reads.
pub(super) fn remove_unused(f: &mut Function) {
    let mut used = vec![0u32; f.classes.len()];
    for block in &f.blocks {
        for inst in &block.insts {
            inst.each_use(&mut |reg| used[reg.0 as usize] += 1);
        }
    }
    for label in f.order.clone().into_iter().rev() {
        let block = &mut f.blocks[label.0 as usize];
        let mut kept = Vec::with_capacity(block.insts.len());
        for inst in std::mem::take(&mut block.insts).into_iter().rev() {
            let unused = match &inst {
                Op::Op { args, .. } => {
                    let mut defines = false;
                    let mut read = false;
                    inst.each_definition(&mut |reg| {
                        defines = true;
                        read |= used[reg.0 as usize] > 0;
                    });
                    let writes_memory = matches!(args.first(), Some(Arg::Mem(_)));
                    defines && !read && !writes_memory
                }
                Op::Zero(reg) => used[reg.0 as usize] == 0,
                _ => false,
            };
            if unused {
                inst.each_use(&mut |reg| used[reg.0 as usize] -= 1);
            } else {
                kept.push(inst);
            }
        }
        kept.reverse();
        block.insts = kept;
    }
}
