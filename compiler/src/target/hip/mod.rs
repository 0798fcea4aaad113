//! HIP C++ for AMD GPUs: a kernel becomes one source file that `hiprtc` and `hipcc` take without a header.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is text. Always holds: the text is a pure function of the
//! kernel and the device's facts; integers wrap, floats are never contracted, and a NaN goes where the IR says.
//!
//! `facts` gathers who reads each value, `webs` which values share a variable, `outline` what is said again and again,
//! `names` names it all, `expr` spells pure instructions, `emit` writes statements, `flow` loops and branches, `functions`
//! what `outline` found; `frame` puts the file together from `templates/hip`.

mod emit;
mod expr;
mod facts;
mod flow;
mod frame;
mod functions;
mod matrix;
mod names;
mod outline;
mod support;
mod text;
mod types;
mod webs;

use crate::artifact::{Artifact, Payload};
use crate::caps::{AMD_GPUS, AmdGpu, Caps};
use crate::error::{Error, Result};
use crate::ir::{Kernel, Verified};
use crate::pass::expand::{Choice, expand_chosen};
use crate::pass::{self, Pass};
use crate::target::{Target, arg};

/// What a kernel goes through before this target emits it.
const PASSES: &[Pass] = &[pass::FOLD, EXPAND, pass::CSE, pass::HOIST, pass::DCE];

/// Bit fields are shifts and masks in C++, and products of words too; everything else has an instruction or a helper of its name.
const EXPAND: Pass = Pass {
    name: "expand",
    reason: "bit fields are shifts and masks in C++; the rest has instructions or helpers",
    run: |kernel, _| expand_chosen(kernel, &Choice { unpack: true, dot2: true, ..Choice::NONE }),
};

/// The HIP target of one device.
#[derive(Clone, Copy, Debug)]
pub struct HipTarget {
    gpu: &'static AmdGpu,
}

impl HipTarget {
    /// A device by name, such as `mi300x`, or the first one of an instruction set, such as `gfx942`.
    pub fn named(name: &str) -> Result<HipTarget> {
        let found =
            AMD_GPUS.iter().find(|gpu| gpu.caps.name == name).or_else(|| AMD_GPUS.iter().find(|gpu| arch(gpu) == name));
        found.map(|gpu| HipTarget { gpu }).ok_or_else(|| {
            Error::Unsupported(format!(
                "AMD device `{name}`; accepted: {}",
                HipTarget::names().collect::<Vec<_>>().join(", ")
            ))
        })
    }

    /// The names of devices that [`HipTarget::named`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        AMD_GPUS.iter().map(|gpu| gpu.caps.name)
    }

    /// The instruction set, as `--offload-arch` takes it: `gfx942`.
    pub fn arch(&self) -> &'static str {
        arch(self.gpu)
    }

    /// What the device is.
    pub fn gpu(&self) -> &'static AmdGpu {
        self.gpu
    }
}

impl Target for HipTarget {
    fn caps(&self) -> &Caps {
        &self.gpu.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel> {
        Ok(pass::run_all(kernel.kernel().clone(), PASSES, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        support::check(kernel, self.gpu)?;
        Ok(Artifact {
            target: self.gpu.caps.name.to_string(),
            entry: kernel.name.clone(),
            payload: Payload::Text(frame::source(kernel, self.gpu)?),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
            preparation: None,
        })
    }

    fn annotate(&self, artifact: Artifact, lines: &[String]) -> Artifact {
        let payload = match artifact.payload {
            // After the line that names the kernel.
            Payload::Text(text) => {
                let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
                let lines: String = lines.iter().map(|line| format!("// {line}\n")).collect();
                Payload::Text(format!("{head}\n{lines}{rest}"))
            }
            other => other,
        };
        Artifact { payload, ..artifact }
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        (stage == "hip").then(|| {
            support::check(kernel.kernel(), self.gpu)?;
            frame::source(kernel.kernel(), self.gpu)
        })
    }
}

fn arch(gpu: &AmdGpu) -> &'static str {
    gpu.caps.gpu.map_or("", |gpu| gpu.arch)
}
