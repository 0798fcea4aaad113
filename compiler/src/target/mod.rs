//! Targets: each takes a verified kernel and makes an artifact. A target has never heard of formats or operations.

pub mod cpu;
pub mod hip;
pub mod ptx;

use crate::artifact::Artifact;
use crate::caps::Caps;
use crate::error::Result;
use crate::ir::{Kernel, Verified};

/// Somewhere kernels can be emitted for.
pub trait Target: std::fmt::Debug + Send + Sync {
    /// What the device behind it can do.
    fn caps(&self) -> &Caps;

    /// Rewrites a kernel into what this target's emitter takes: its pass list, then a new verification.
    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel>;

    /// Emits a legalized kernel. A pure function: the same kernel gives the same bytes.
    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact>;

    /// A stage between kernel and artifact as text for a person, by name (`clif`, `asm`); `None` if it has no such stage.
    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>>;
}
