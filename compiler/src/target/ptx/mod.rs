//! PTX for NVIDIA GPUs: a kernel becomes one module with one entry.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is PTX text. Always holds: the text depends on the
//! kernel and the architecture alone, and `f32` arithmetic in it rounds as the IR says.
//!
//! The launch, as [`Artifact`] describes it:
//!
//! - Parameters in order: a buffer is its 64-bit global address, a scalar is 4 or 8 bytes.
//! - The block has the artifact's `workgroup`, the grid is the caller's.
//! - Where a launch is two kernels, the text has an entry for each ([`Preparation`]).
//! - Up to 48 KB of shared memory are declared in the text. Where `shared_bytes` is more, all of it is dynamic: the
//!   launch asks for that many bytes, after raising the function's limit.

mod arch;
mod arith;
mod asynchronous;
mod cast;
mod emit;
mod extended;
mod group;
mod lanes;
mod matrix;
mod memory;
mod text;

pub use arch::{ARCHES, Arch};
pub use emit::STATIC_SHARED;

use crate::artifact::{Artifact, Payload, Preparation};
use crate::caps::{self, Caps, Feature};
use crate::error::{Error, Result};
use crate::ir::{self, Verified};
use crate::pass::expand::{Choice, expand_chosen};
use crate::pass::{self, Pass};
use crate::target::{Target, arg};

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
    reason: "no instruction converts 8-bit floats before sm_89, and none multiplies words in pairs",
    run: |kernel, _| expand_chosen(kernel, &Choice { dot2: true, storage_casts: true, ..Choice::NONE }),
};

/// E4M3 and E5M2 have instructions; the FNUZ types and E8M0 do not.
const EXPAND_FP8: Pass = Pass {
    name: "expand",
    reason: "no instruction converts the FNUZ types, and none E8M0 on every architecture",
    run: |kernel, _| {
        expand_chosen(kernel, &Choice { dot2: true, storage_casts: true, native_ocp_casts: true, ..Choice::NONE })
    },
};

/// The PTX target of one device.
#[derive(Debug, Clone, Copy)]
pub struct PtxTarget {
    arch: &'static Arch,
    caps: &'static Caps,
}

impl PtxTarget {
    /// A device (`h200`) or an architecture (`sm_90a`, which its first device stands for) by name.
    pub fn named(name: &str) -> Result<PtxTarget> {
        let refuse = || {
            let accepted = PtxTarget::names().collect::<Vec<_>>().join(", ");
            Error::Unsupported(format!("NVIDIA device `{name}`; accepted: {accepted}"))
        };
        let caps = caps::gpu(name).ok_or_else(refuse)?;
        let arch = ARCHES.iter().find(|arch| caps.gpu.is_some_and(|gpu| gpu.arch == arch.name)).ok_or_else(refuse)?;
        Ok(PtxTarget { arch, caps })
    }

    /// The names that [`PtxTarget::named`] takes: architectures, then devices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ARCHES.iter().map(|arch| arch.name).chain(caps::NVIDIA_DEVICES.iter().map(|caps| caps.name))
    }

    /// The architecture.
    pub fn arch(&self) -> &'static Arch {
        self.arch
    }

    /// Whether casts between the OCP 8-bit floats and wider ones are instructions.
    fn fp8_casts(&self) -> bool {
        self.caps.features.has(Feature::Float8Convert)
    }
}

impl Target for PtxTarget {
    fn caps(&self) -> &Caps {
        self.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<ir::Kernel> {
        let passes = if self.fp8_casts() { PASSES_FP8 } else { PASSES };
        Ok(pass::run_all(kernel.kernel().clone(), passes, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        support(kernel, self)?;
        Ok(Artifact {
            target: self.arch.name.to_string(),
            entry: kernel.name.clone(),
            payload: Payload::Text(emit::module(kernel, *self)),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
            preparation: None,
        })
    }

    fn prepared(&self, first: Artifact, grid: [u32; 3], artifact: Artifact) -> Result<Artifact> {
        let refuse = |what: &str| Error::Unsupported(format!("{} before {}: {what}", first.entry, artifact.entry));
        let (Payload::Text(before), Payload::Text(own)) = (&first.payload, &artifact.payload) else {
            return Err(refuse("no PTX text"));
        };
        if first.entry == artifact.entry {
            return Err(refuse("both have one name"));
        }
        // A module declares dynamic shared memory once.
        if first.shared_bytes > STATIC_SHARED {
            return Err(refuse("the first asks for more shared memory than an entry may declare"));
        }
        let entry = before.find(".visible .entry").map(|start| &before[start..]);
        let text = format!("{own}\n{}", entry.ok_or_else(|| refuse("the first has no entry"))?);
        let preparation = Preparation {
            entry: first.entry,
            args: first.args,
            grid,
            workgroup: first.workgroup,
            shared_bytes: first.shared_bytes,
        };
        // What the first kernel writes, the launch writes.
        let mut args = artifact.args;
        for (place, own) in preparation.places(&args)?.into_iter().zip(&preparation.args) {
            if own.kind.writes() {
                args[place].kind = own.kind;
            }
        }
        Ok(Artifact { payload: Payload::Text(text), args, preparation: Some(preparation), ..artifact })
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        (stage == "ptx").then(|| {
            support(kernel.kernel(), self)?;
            Ok(emit::module(kernel.kernel(), *self))
        })
    }
}

/// Refuses what legalizing would have removed.
fn support(kernel: &ir::Kernel, target: &PtxTarget) -> Result<()> {
    let mut faults = Vec::new();
    casts(&kernel.body, kernel, target.fp8_casts(), &mut faults);
    if faults.is_empty() {
        return Ok(());
    }
    faults.dedup();
    Err(Error::Unsupported(format!(
        "{} for {}: {}; legalize the kernel first",
        kernel.name,
        target.arch.name,
        faults.join("; ")
    )))
}

fn casts(block: &ir::Block, kernel: &ir::Kernel, fp8: bool, faults: &mut Vec<String>) {
    use ir::{CastOp, Inst, Scalar};
    for statement in &block.statements {
        match &statement.inst {
            Inst::Cast(CastOp::Float, a) => {
                for scalar in [kernel.ty(*a).scalar, kernel.ty(statement.results[0]).scalar] {
                    let native = matches!(scalar, Scalar::E4m3fn | Scalar::E5m2) && fp8;
                    if scalar.is_storage() && !native {
                        faults.push(format!("a cast from or to {scalar}"));
                    }
                }
            }
            Inst::Cooperative(inner) => faults.push(inner.name().to_string()),
            Inst::Dot2 { .. } => faults.push("dot2".to_string()),
            Inst::PermuteLong { .. } => faults.push("permute_long".to_string()),
            Inst::For(inner) => casts(&inner.body, kernel, fp8, faults),
            Inst::If(inner) => {
                casts(&inner.then, kernel, fp8, faults);
                casts(&inner.otherwise, kernel, fp8, faults);
            }
            _ => {}
        }
    }
}
