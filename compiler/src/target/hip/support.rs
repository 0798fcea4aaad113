//! What this target cannot emit, found before it starts, so that the emitter has no error path.

use super::matrix;
use super::names::is_taken;
use super::types::Vectors;
use crate::caps::{AmdGpu, MmaShape};
use crate::error::{Error, Result};
use crate::ir::{Builtin, Inst, Kernel};

/// Refuses a kernel that needs what the device lacks, naming all of it.
pub(super) fn check(kernel: &Kernel, gpu: &AmdGpu) -> Result<()> {
    let caps = &gpu.caps;
    let mut lacks = Vec::new();
    if is_taken(&kernel.name) {
        lacks.push(format!("a kernel named `{}`, which C++ or the helpers keep for themselves", kernel.name));
    }
    let (threads, wave) = (kernel.threads(), caps.subgroup);
    if threads > caps.max_workgroup {
        lacks.push(format!("a workgroup of {threads} threads ({} at most)", caps.max_workgroup));
    }
    if kernel.shared_bytes() > u64::from(caps.max_shared_bytes) {
        lacks.push(format!("{} bytes of shared memory ({} at most)", kernel.shared_bytes(), caps.max_shared_bytes));
    }
    let mut asks = Asks::default();
    kernel.body.each(&mut |statement| asks.note(&statement.inst));
    if asks.subgroup && threads > wave && !threads.is_multiple_of(wave) {
        lacks.push(format!("subgroup operations of {threads} threads, which are no whole waves of {wave}"));
    }
    if asks.reduce && !threads.min(wave).is_power_of_two() {
        lacks.push(format!("a reduction over a wave of {} threads (a power of two)", threads.min(wave)));
    }
    if asks.unpack {
        lacks.push("unpack, which is to be expanded before".to_string());
    }
    if asks.async_copy {
        lacks.push("asynchronous copies to shared memory".to_string());
    }
    lacks.extend(asks.beside.iter().map(|name| format!("the instruction {name}")));
    for shape in asks.matrices {
        // The helper of a shape exists exactly where the device has it.
        if matrix::helper(shape, gpu, &mut Vectors::default()).is_none() {
            lacks.push(format!("the matrix instruction {shape}"));
        }
        if !threads.is_multiple_of(wave) {
            lacks.push(format!("a matrix instruction of {threads} threads, which are no whole waves of {wave}"));
        }
    }
    lacks.dedup();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("kernel `{}` on {}: {}", kernel.name, caps.name, lacks.join("; "))))
}

/// What a kernel asks for.
#[derive(Default)]
struct Asks {
    subgroup: bool,
    reduce: bool,
    unpack: bool,
    async_copy: bool,
    beside: Vec<&'static str>,
    matrices: Vec<&'static MmaShape>,
}

impl Asks {
    fn note(&mut self, inst: &Inst) {
        match inst {
            Inst::SubgroupReduce(..) => (self.subgroup, self.reduce) = (true, true),
            Inst::Shuffle { .. } | Inst::Builtin(Builtin::Lane | Builtin::Subgroup) => self.subgroup = true,
            Inst::Unpack { .. } => self.unpack = true,
            Inst::Mma { shape, .. } => {
                self.subgroup = true;
                self.matrices.push(shape);
            }
            Inst::Asynchronous(inner) => self.beside.push(inner.name()),
            Inst::Cooperative(inner) => self.beside.push(inner.name()),
            Inst::Dot2 { .. } => self.beside.push("dot2"),
            Inst::PermuteLong { .. } => self.beside.push("permute_long"),
            Inst::AsyncCopy { .. } | Inst::AsyncCommit | Inst::AsyncWait(_) => self.async_copy = true,
            Inst::For(_)
            | Inst::If(_)
            | Inst::Const(_)
            | Inst::Arg(_)
            | Inst::Builtin(_)
            | Inst::Bin(..)
            | Inst::Un(..)
            | Inst::Cmp(..)
            | Inst::Select { .. }
            | Inst::Cast(..)
            | Inst::Bitcast(_)
            | Inst::Fma(..)
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
            | Inst::PermuteBytes { .. }
            | Inst::AtomicAdd { .. } => {}
        }
    }
}
