//! PTX for NVIDIA GPUs: a kernel becomes one module with one entry.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is PTX text. Always holds: the text depends on the
//! kernel and the architecture alone, and `f32` arithmetic in it rounds as the IR says.
//!
//! The launch, as [`Artifact`] describes it:
//!
//! - Parameters in order: a buffer is its 64-bit global address, a scalar is 4 or 8 bytes.
//! - The block has the artifact's `workgroup`, the grid is the caller's.
//! - Up to 48 KB of shared memory are declared in the text. Where `shared_bytes` is more, all of it is dynamic: the
//!   launch asks for that many bytes, after raising the function's limit.

mod arch;
mod arith;
mod cast;
mod emit;
mod extended;
mod group;
mod lanes;
mod memory;
mod text;

pub use arch::{ARCHES, Arch};
pub use emit::STATIC_SHARED;

use crate::artifact::{Arg, ArgKind, Artifact, Payload};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::ir::{self, Verified};
use crate::pass::expand::{Choice, expand_chosen};
use crate::pass::{self, Pass};
use crate::target::Target;

/// What a kernel goes through before this target emits it.
const PASSES: &[Pass] = &[pass::FOLD, EXPAND, pass::FOLD, pass::CSE, HOIST, pass::DCE];

/// The same for architectures that convert FP8 themselves.
const PASSES_FP8: &[Pass] = &[pass::FOLD, EXPAND_FP8, pass::FOLD, pass::CSE, HOIST, pass::DCE];

/// `ptxas` moves what a loop does not change as it sees fit; addresses it sometimes leaves.
const HOIST: Pass = Pass {
    name: "hoist",
    reason: "addresses are computed outside of loops; what fills many registers stays where it is used",
    run: |kernel, _| pass::hoist_where(kernel, |ty| ty.lanes == 1 && ty.scalar.is_int()),
};

/// The emitter has sequences of its own for every extended instruction and for f16 and bf16.
const EXPAND: Pass = Pass {
    name: "expand",
    reason: "no instruction converts 8-bit floats before sm_89",
    run: |kernel, _| expand_chosen(kernel, &Choice { storage_casts: true, ..Choice::NONE }),
};

/// E4M3 and E5M2 have instructions; the FNUZ types and E8M0 do not.
const EXPAND_FP8: Pass = Pass {
    name: "expand",
    reason: "no instruction converts the FNUZ types, and none E8M0 on every architecture",
    run: |kernel, _| {
        expand_chosen(kernel, &Choice { storage_casts: true, native_ocp_casts: true, ..Choice::NONE })
    },
};

/// The PTX target of one architecture.
#[derive(Debug, Clone, Copy)]
pub struct PtxTarget {
    arch: &'static Arch,
}

impl PtxTarget {
    /// An architecture (`sm_90a`) or a device (`h200`) by name.
    pub fn named(name: &str) -> Result<PtxTarget> {
        let lower = name.to_ascii_lowercase();
        let found = ARCHES.iter().find(|arch| arch.name == lower || arch.devices.contains(&lower.as_str()));
        found.map(|arch| PtxTarget { arch }).ok_or_else(|| {
            Error::Unsupported(format!("NVIDIA device `{name}`; accepted: {}", PtxTarget::names().collect::<Vec<_>>().join(", ")))
        })
    }

    /// The names that [`PtxTarget::named`] takes: each architecture, then its devices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ARCHES.iter().flat_map(|arch| std::iter::once(arch.name).chain(arch.devices.iter().copied()))
    }

    /// The architecture.
    pub fn arch(&self) -> &'static Arch {
        self.arch
    }
}

impl Target for PtxTarget {
    fn caps(&self) -> &Caps {
        &self.arch.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<ir::Kernel> {
        let passes = if self.arch.fp8_casts { PASSES_FP8 } else { PASSES };
        Ok(pass::run_all(kernel.kernel().clone(), passes, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        support(kernel, self.arch)?;
        Ok(Artifact {
            target: self.arch.name.to_string(),
            entry: kernel.name.clone(),
            payload: Payload::Text(emit::module(kernel, self.arch)),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
        })
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        (stage == "ptx").then(|| {
            support(kernel.kernel(), self.arch)?;
            Ok(emit::module(kernel.kernel(), self.arch))
        })
    }
}

/// Refuses what legalizing would have removed.
fn support(kernel: &ir::Kernel, arch: &Arch) -> Result<()> {
    let mut faults = Vec::new();
    casts(&kernel.body, kernel, arch, &mut faults);
    if faults.is_empty() {
        return Ok(());
    }
    faults.dedup();
    Err(Error::Unsupported(format!("{} for {}: {}; legalize the kernel first", kernel.name, arch.name, faults.join("; "))))
}

fn casts(block: &ir::Block, kernel: &ir::Kernel, arch: &Arch, faults: &mut Vec<String>) {
    use ir::{CastOp, Inst, Scalar};
    for statement in &block.statements {
        match &statement.inst {
            Inst::Cast(CastOp::Float, a) => {
                for scalar in [kernel.ty(*a).scalar, kernel.ty(statement.results[0]).scalar] {
                    let native = matches!(scalar, Scalar::E4m3fn | Scalar::E5m2) && arch.fp8_casts;
                    if scalar.is_storage() && !native {
                        faults.push(format!("a cast from or to {scalar}"));
                    }
                }
            }
            Inst::For(inner) => casts(&inner.body, kernel, arch, faults),
            Inst::If(inner) => {
                casts(&inner.then, kernel, arch, faults);
                casts(&inner.otherwise, kernel, arch, faults);
            }
            _ => {}
        }
    }
}

fn arg(param: &ir::Param) -> Result<Arg> {
    use ir::{Access, ParamKind, Scalar};
    let kind = match param.kind {
        ParamKind::Buffer { access: Access::Read, align } => ArgKind::Read { align },
        ParamKind::Buffer { access: Access::Write, align } => ArgKind::Write { align },
        ParamKind::Buffer { access: Access::ReadWrite, align } => ArgKind::ReadWrite { align },
        ParamKind::Scalar(Scalar::I32) => ArgKind::I32,
        ParamKind::Scalar(Scalar::I64) => ArgKind::I64,
        ParamKind::Scalar(Scalar::F32) => ArgKind::F32,
        ParamKind::Scalar(other) => {
            return Err(Error::invalid(format!("parameter `{}` is {other}; a scalar is i32, i64 or f32", param.name)));
        }
    };
    Ok(Arg { name: param.name.clone(), kind })
}
