//! What this target cannot emit, found before it starts, so that the emitter has no error path.
//!
//! WGSL has no 64-bit integers. Index arithmetic has been narrowed before; whatever else is done in 64 bits is refused.

use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::ir::{CastOp, Inst, Kernel, ParamKind, Scalar, Statement, UnOp};

/// Most storage buffers that every WebGPU device binds.
const MOST_BUFFERS: usize = 8;

/// Refuses a kernel that needs what the device lacks, naming all of it.
pub(super) fn check(kernel: &Kernel, caps: &Caps) -> Result<()> {
    let mut lacks = Vec::new();
    if kernel.threads() > caps.max_workgroup {
        lacks.push(format!("a workgroup of {} threads ({} at most)", kernel.threads(), caps.max_workgroup));
    }
    if kernel.shared_bytes() > u64::from(caps.max_shared_bytes) {
        lacks.push(format!("{} bytes of shared memory ({} at most)", kernel.shared_bytes(), caps.max_shared_bytes));
    }
    let buffers = kernel.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer { .. })).count();
    if buffers > MOST_BUFFERS {
        lacks.push(format!("{buffers} buffers ({MOST_BUFFERS} at most)"));
    }
    if kernel.types.iter().any(|ty| ty.scalar == Scalar::I64) {
        lacks.push("64-bit integers other than index arithmetic".to_string());
    }
    let mut walk = Walk { kernel, lacks };
    kernel.body.each(&mut |statement| walk.statement(statement));
    walk.lacks.sort();
    walk.lacks.dedup();
    if walk.lacks.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("kernel `{}` on {}: {}", kernel.name, caps.name, walk.lacks.join("; "))))
}

struct Walk<'k> {
    kernel: &'k Kernel,
    lacks: Vec<String>,
}

impl Walk<'_> {
    fn lacks(&mut self, what: &str) {
        self.lacks.push(what.to_string());
    }

    fn small_float(&mut self, scalar: Scalar) {
        if matches!(scalar, Scalar::F16 | Scalar::Bf16) || scalar.is_storage() {
            self.lacks(&format!("arithmetic on {scalar}, which is to be expanded before"));
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match &statement.inst {
            Inst::Un(op, a) => {
                self.small_float(self.kernel.ty(*a).scalar);
                if *op == UnOp::Exp2 {
                    self.lacks("exp2, which is to be expanded before");
                }
            }
            Inst::Bin(_, a, _) | Inst::Cmp(_, a, _) | Inst::Fma(a, ..) => self.small_float(self.kernel.ty(*a).scalar),
            Inst::Cast(CastOp::Float, _) => self.lacks("a cast of small floats, which is to be expanded before"),
            Inst::Unpack { .. } => self.lacks("unpack, which is to be expanded before"),
            Inst::Mma { .. } => self.lacks("matrix instructions"),
            Inst::Asynchronous(inner) => self.lacks(inner.name()),
            Inst::Cooperative(inner) => self.lacks(inner.name()),
            Inst::AsyncCopy { .. } | Inst::AsyncCommit | Inst::AsyncWait(_) => self.lacks("asynchronous copies"),
            Inst::Dot2 { .. } => self.lacks("dot2, which is to be expanded before"),
            Inst::PermuteBytes { .. } => self.lacks("permute_bytes, which is to be expanded before"),
            Inst::PermuteLong { .. } => self.lacks("permute_long"),
            Inst::Shuffle { .. } | Inst::SubgroupReduce(..) => self.lacks("subgroups of more than one thread"),
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
            | Inst::Dot4 { .. }
            | Inst::AtomicAdd { .. } => {}
        }
    }
}
