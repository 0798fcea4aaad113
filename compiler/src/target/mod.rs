//! Targets: each takes a verified kernel and makes an artifact. A target has never heard of formats or operations.

pub mod cpu;
pub mod hip;
mod pieces;
pub mod ptx;
pub mod spirv;
pub mod wgsl;

use crate::artifact::{Arg, ArgKind, Artifact};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::ir::{self, Kernel, Verified};

/// Somewhere kernels can be emitted for.
pub trait Target: std::fmt::Debug + Send + Sync {
    /// What the device behind it can do.
    fn caps(&self) -> &Caps;

    /// Rewrites a kernel into what this target's emitter takes: its pass list, then a new verification.
    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel>;

    /// Emits a legalized kernel. A pure function: the same kernel gives the same bytes.
    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact>;

    /// An artifact whose launches run another one's kernel first, over this grid.
    fn prepared(&self, first: Artifact, grid: [u32; 3], artifact: Artifact) -> Result<Artifact> {
        let _ = grid;
        Err(Error::Unsupported(format!(
            "{} before {} in a launch on {}: it launches one kernel",
            first.entry,
            artifact.entry,
            self.caps().name
        )))
    }

    /// Writes lines for the reader into an artifact that is source made to be read; others stay as they are.
    fn annotate(&self, artifact: Artifact, lines: &[String]) -> Artifact {
        let _ = lines;
        artifact
    }

    /// A stage between kernel and artifact as text for a person, by name (`clif`, `asm`); `None` if it has no such stage.
    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>>;
}

/// A parameter as the caller of an artifact sees it. Fails for scalars that no caller can pass.
pub fn arg(param: &ir::Param) -> Result<Arg> {
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
