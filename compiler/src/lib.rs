#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod artifact;
pub mod caps;
pub mod dtype;
pub mod error;
pub mod format;
pub mod ir;
pub mod layout;
pub mod lower;
pub mod op;
pub mod pass;
pub mod schedule;
pub mod target;

pub use error::{Error, Result};

use artifact::Artifact;
use ir::{Kernel, Resources, resources, verify};
use op::Op;
use schedule::Schedule;
use target::Target;

/// Every stage of a compilation, kept for those who want to look.
#[derive(Debug)]
pub struct Compiled {
    /// What the family wrote.
    pub kernel: Kernel,
    /// What the target's passes made of it.
    pub legal: Kernel,
    /// What it takes of a GPU, as far as lowering can tell; `None` for other devices.
    pub resources: Option<Resources>,
    /// What the emitter made of that.
    pub artifact: Artifact,
    /// The stages of the kernel that a launch runs first, whose code `artifact` holds too; `None` where there is none.
    pub preparation: Option<Box<Compiled>>,
}

/// From description to artifact: each line is a stage that `--emit` can show.
pub fn compile(op: &Op, schedule: &Schedule, target: &dyn Target) -> Result<Compiled> {
    let kernel = lower::lower(op, schedule, target.caps())?;
    let legal = legalize(&kernel, target)?;
    let mut artifact = target.annotate(target.emit(&verified(&legal, target)?)?, &lower::describe(op, schedule));
    let mut preparation = None;
    if let Some(lower::Preparation { kernel, grid, .. }) = lower::preparation(op, schedule, target.caps())? {
        let legal = legalize(&kernel, target)?;
        let first = target.emit(&verified(&legal, target)?)?;
        artifact = target.prepared(first.clone(), grid, artifact)?;
        let resources = resources(&legal, target.caps());
        preparation = Some(Box::new(Compiled { kernel, legal, resources, artifact: first, preparation: None }));
    }
    let resources = resources(&legal, target.caps());
    Ok(Compiled { kernel, legal, resources, artifact, preparation })
}

/// From description to artifact for an operation on a KV cache.
pub fn compile_kv(op: &op::kv::KvOp, schedule: &schedule::KvSchedule, target: &dyn Target) -> Result<Compiled> {
    let kernel = lower::kv::lower(op, schedule, target.caps())?;
    let legal = legalize(&kernel, target)?;
    let artifact = target.emit(&verified(&legal, target)?)?;
    let resources = resources(&legal, target.caps());
    Ok(Compiled { kernel, legal, resources, artifact, preparation: None })
}

/// A kernel as a target's emitter takes it.
pub fn legalize(kernel: &Kernel, target: &dyn Target) -> Result<Kernel> {
    target.legalize(&verified(kernel, target)?)
}

/// The proof that a kernel of ours is sound; that it is not, is a bug.
fn verified<'k>(kernel: &'k Kernel, target: &dyn Target) -> Result<ir::Verified<'k>> {
    verify(kernel, target.caps()).map_err(|faults| Error::Bug {
        message: faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        text: kernel.to_string(),
    })
}
