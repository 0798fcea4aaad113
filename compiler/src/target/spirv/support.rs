//! What this target cannot emit, found before it starts, so that the emitter has no error path.

use crate::caps::Feature;
use crate::caps::vulkan::Vulkan;
use crate::error::{Error, Result};
use crate::ir::{Address, Builtin, CastOp, Cooperative, Inst, Kernel, Memory, ParamKind, Scalar, Statement, UnOp};

/// Most bytes of push constants that every Vulkan device has.
pub(super) const MOST_SCALAR_BYTES: u32 = 128;

/// Refuses a kernel that needs what the device lacks, naming all of it.
pub(super) fn check(kernel: &Kernel, device: &Vulkan) -> Result<()> {
    let caps = &device.caps;
    let mut lacks = Vec::new();
    if kernel.threads() > caps.max_workgroup {
        lacks.push(format!("a workgroup of {} threads ({} at most)", kernel.threads(), caps.max_workgroup));
    }
    if kernel.shared_bytes() > u64::from(caps.max_shared_bytes) {
        lacks.push(format!("{} bytes of shared memory ({} at most)", kernel.shared_bytes(), caps.max_shared_bytes));
    }
    let (_, scalars) = super::memory::scalar_offsets(kernel);
    if scalars > MOST_SCALAR_BYTES {
        lacks.push(format!("{scalars} bytes of scalar parameters ({MOST_SCALAR_BYTES} at most)"));
    }
    if let Some(param) = kernel
        .params
        .iter()
        .find(|p| matches!(p.kind, ParamKind::Scalar(s) if !matches!(s, Scalar::I32 | Scalar::I64 | Scalar::F32)))
    {
        lacks.push(format!("parameter `{}`, which is none of i32, i64, f32", param.name));
    }
    let mut walk = Walk {
        kernel,
        device,
        lacks,
        narrow: vec![false; kernel.shared.len()],
        atomic: Vec::new(),
        matrices: Vec::new(),
        least: vec![u32::MAX; kernel.shared.len()],
        buffer_atomics: false,
    };
    kernel.body.each(&mut |statement| walk.statement(statement));
    for &array in &walk.atomic {
        if walk.narrow[array as usize] {
            let name = &kernel.shared[array as usize].name;
            walk.lacks.push(format!("shared array `{name}` with atomics and with accesses of less than a word"));
        }
    }
    for &(array, bytes, scalar) in &walk.matrices {
        let name = &kernel.shared[array as usize].name;
        if walk.least[array as usize] < bytes {
            walk.lacks.push(format!("shared array `{name}` with matrices and with accesses of less than an element"));
        }
        if walk.matrices.iter().any(|&(other, _, found)| other == array && found != scalar) {
            walk.lacks.push(format!("shared array `{name}` with matrices of different elements"));
        }
        if walk.atomic.contains(&array) {
            walk.lacks.push(format!("shared array `{name}` with matrices and atomics"));
        }
    }
    // Vulkan's memory model, which matrices ask for, has them on the device only where a driver says so.
    if walk.buffer_atomics && !walk.matrices.is_empty() {
        walk.lacks.push("atomics on buffers beside cooperative matrices".to_string());
    }
    walk.lacks.sort();
    walk.lacks.dedup();
    if walk.lacks.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("kernel `{}` on {}: {}", kernel.name, caps.name, walk.lacks.join("; "))))
}

struct Walk<'k> {
    kernel: &'k Kernel,
    device: &'k Vulkan,
    lacks: Vec<String>,
    /// Shared arrays that are not seen as words.
    narrow: Vec<bool>,
    /// Shared arrays with atomics.
    atomic: Vec<u16>,
    /// Shared arrays with matrices: bytes of an element, and its type.
    matrices: Vec<(u16, u32, Option<Scalar>)>,
    /// The least access to each shared array, or what its address is a multiple of.
    least: Vec<u32>,
    buffer_atomics: bool,
}

impl Walk<'_> {
    fn lacks(&mut self, what: &str) {
        self.lacks.push(what.to_string());
    }

    fn arithmetic(&mut self, scalar: Scalar) {
        let f16 = self.device.caps.features.has(Feature::F16Arithmetic);
        if scalar == Scalar::Bf16 || scalar == Scalar::F16 && !f16 || scalar.is_storage() {
            self.lacks(&format!("arithmetic on {scalar} (of single threads, it is expanded before)"));
        }
    }

    fn access(&mut self, address: &Address, align: u32, bytes: u32) {
        if let Memory::Shared(array) = address.memory {
            self.narrow[array as usize] |= align < 4 || bytes < 4;
            let least = &mut self.least[array as usize];
            *least = (*least).min(align).min(bytes);
        }
    }

    fn subgroups(&mut self) {
        let (threads, width) = (self.kernel.threads(), self.device.caps.subgroup);
        if threads % width != 0 {
            self.lacks(&format!("subgroups of {width} in a workgroup of {threads} threads, which they do not fill"));
        }
    }

    fn cooperative(&mut self, inst: &Cooperative) {
        self.subgroups();
        if !self.device.caps.features.has(Feature::CooperativeMatrix) {
            self.lacks(&format!("{} (cooperative-matrix)", inst.name()));
        }
        if let Some((lines, fragment)) = inst.place()
            && let Memory::Shared(array) = lines.address.memory
        {
            self.matrices.push((array, fragment.dtype().bits() / 8, super::memory::matrix_scalar(&fragment)));
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match &statement.inst {
            Inst::Bin(_, a, _) | Inst::Cmp(_, a, _) | Inst::Fma(a, ..) => {
                self.arithmetic(self.kernel.ty(*a).scalar);
            }
            Inst::SubgroupReduce(_, a) => {
                self.arithmetic(self.kernel.ty(*a).scalar);
                self.subgroups();
            }
            Inst::Shuffle { .. } | Inst::Builtin(Builtin::Lane | Builtin::Subgroup) => self.subgroups(),
            Inst::Un(op, a) => {
                self.arithmetic(self.kernel.ty(*a).scalar);
                if *op == UnOp::Exp2 {
                    self.lacks("exp2, which is to be expanded before");
                }
            }
            Inst::Cast(CastOp::Float, a) => {
                let to = statement.results.first().map(|&value| self.kernel.ty(value).scalar);
                for scalar in [Some(self.kernel.ty(*a).scalar), to].into_iter().flatten() {
                    if scalar == Scalar::Bf16 || scalar.is_storage() {
                        self.lacks(&format!("a cast of {scalar}, which is to be expanded before"));
                    }
                }
            }
            Inst::Load { address, align } => {
                let bytes = statement.results.first().map_or(1, |&value| self.kernel.ty(value).bytes());
                self.access(address, *align, bytes);
            }
            Inst::Store { address, align, value } => self.access(address, *align, self.kernel.ty(*value).bytes()),
            Inst::AtomicAdd { address, .. } => match address.memory {
                Memory::Shared(array) => self.atomic.push(array),
                Memory::Param(_) => self.buffer_atomics = true,
            },
            Inst::Cooperative(inner) => self.cooperative(inner),
            Inst::Unpack { .. } => self.lacks("unpack, which is to be expanded before"),
            Inst::Mma { .. } => self.lacks("matrix instructions by lane (cooperative matrices are opaque)"),
            Inst::Asynchronous(inner) => self.lacks(inner.name()),
            Inst::AsyncCopy { .. } | Inst::AsyncCommit | Inst::AsyncWait(_) => self.lacks("asynchronous copies"),
            Inst::Dot2 { .. } => self.lacks("dot2, which is to be expanded before"),
            Inst::PermuteBytes { .. } => self.lacks("permute_bytes, which is to be expanded before"),
            Inst::PermuteLong { .. } => self.lacks("permute_long"),
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
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::Yield(_)
            | Inst::Dot4 { .. } => {}
        }
    }
}
