//! What this target cannot emit, found before it starts, so that the emitter has no error path.

use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::ir::{self, Inst, Scalar};

/// Refuses a kernel that needs what the CPU lacks, naming all of it. `wide` asks for the wide emitter, which
/// leaves more to expansion.
pub(super) fn check(kernel: &ir::Kernel, caps: &Caps, wide: bool) -> Result<()> {
    let mut lacks = Vec::new();
    if kernel.threads() != 1 {
        lacks.push(format!("a workgroup of {} threads (1 is the most)", kernel.threads()));
    }
    if kernel.shared_bytes() > u64::from(caps.max_shared_bytes) {
        lacks.push(format!("{} bytes of shared memory ({} at most)", kernel.shared_bytes(), caps.max_shared_bytes));
    }
    if let Some(shared) = kernel.shared.iter().find(|shared| shared.align > 64) {
        lacks.push(format!("shared array `{}` aligned to {} (64 is the most)", shared.name, shared.align));
    }
    kernel.body.each(&mut |statement| lacking(kernel, (wide, caps), statement, &mut lacks));
    lacks.dedup();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("kernel `{}` on {}: {}", kernel.name, caps.name, lacks.join("; "))))
}

fn lacking(kernel: &ir::Kernel, (wide, caps): (bool, &Caps), statement: &ir::Statement, lacks: &mut Vec<String>) {
    match &statement.inst {
        Inst::Bin(_, a, _) | Inst::Cmp(_, a, _) | Inst::Fma(a, ..) | Inst::SubgroupReduce(_, a) => {
            arithmetic(kernel.ty(*a).scalar, lacks);
        }
        Inst::Un(op, a) => {
            arithmetic(kernel.ty(*a).scalar, lacks);
            if *op == ir::UnOp::Exp2 || wide && *op == ir::UnOp::Popcount {
                lacks.push(format!("{op:?}, which is to be expanded before"));
            }
        }
        Inst::Cast(ir::CastOp::Float, a) if wide => {
            let from = kernel.ty(*a).scalar;
            let to = statement.results.first().map_or(from, |&result| kernel.ty(result).scalar);
            if ![from, to].iter().all(|scalar| matches!(scalar, Scalar::F16 | Scalar::F32)) {
                lacks.push(format!("a cast of {from} to {to}, which is to be expanded before"));
            }
        }
        Inst::Mma { shape, .. } => lacks.push(format!("the matrix instruction {shape}")),
        Inst::Asynchronous(inner) => lacks.push(inner.name().to_string()),
        Inst::Cooperative(inner) => lacks.push(inner.name().to_string()),
        Inst::AsyncCopy { .. } | Inst::AsyncCommit | Inst::AsyncWait(_) => {
            lacks.push("asynchronous copies".to_string());
        }
        Inst::Dot2 { a, .. } if kernel.ty(*a).scalar == Scalar::Bf16 && !caps.features.has(Feature::Dot2Bf16) => {
            lacks.push("dot2 of bf16".to_string());
        }
        Inst::Dot2 { a, .. } if kernel.ty(*a).scalar == Scalar::I8 && !(wide && caps.features.has(Feature::Dot2)) => {
            lacks.push("dot2 of bytes".to_string());
        }
        Inst::PermuteLong { .. } if !caps.features.has(Feature::PermuteLong) => {
            lacks.push("byte look-ups in tables of 128".to_string());
        }
        Inst::PermuteBytes { index, .. } => {
            if kernel.ty(*index).lanes < 16 {
                lacks.push("byte look-ups of fewer than 16 indices".to_string());
            }
        }
        Inst::For(_)
        | Inst::If(_)
        | Inst::Const(_)
        | Inst::Arg(_)
        | Inst::Builtin(_)
        | Inst::Select { .. }
        | Inst::Cast(..)
        | Inst::Bitcast(_)
        | Inst::Vector(_)
        | Inst::Splat(_)
        | Inst::Extract { .. }
        | Inst::Swizzle { .. }
        | Inst::Load { .. }
        | Inst::Store { .. }
        | Inst::Prefetch(_)
        | Inst::Barrier
        | Inst::Yield(_)
        | Inst::Unpack { .. }
        | Inst::Dot4 { .. }
        | Inst::Dot2 { .. }
        | Inst::PermuteLong { .. }
        | Inst::Shuffle { .. }
        | Inst::AtomicAdd { .. } => {}
    }
}

fn arithmetic(scalar: Scalar, lacks: &mut Vec<String>) {
    if matches!(scalar, Scalar::F16 | Scalar::Bf16) || scalar.is_storage() {
        lacks.push(format!("arithmetic on {scalar}"));
    }
}
