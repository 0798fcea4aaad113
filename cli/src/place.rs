//! What `--device` names: a device here, or one to generate for.

use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::{CpuTarget, object};
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_runtime::Device;
use std::sync::Arc;

/// Somewhere kernels are made for, and may be run.
pub(crate) struct Place {
    /// What makes the code.
    pub maker: Maker,
    /// What runs it; `None` where code is made for another machine.
    pub device: Option<Arc<dyn Device>>,
}

/// What makes the code, and the files that hold it.
pub enum Maker {
    /// Object files of machine code.
    Machine(CpuTarget),
    /// Text files that a driver compiles.
    Text {
        /// The target.
        target: Box<dyn Target>,
        /// Its name, as `--device` takes it.
        name: String,
        /// The platform that runs the text.
        platform: &'static str,
        /// How the files' names end.
        extension: &'static str,
    },
}

impl Maker {
    /// The target as the compiler takes it.
    pub fn target(&self) -> &dyn Target {
        match self {
            Maker::Machine(target) => target,
            Maker::Text { target, .. } => &**target,
        }
    }

    /// The name that `--device` takes.
    pub fn name(&self) -> &str {
        match self {
            Maker::Machine(target) => target.name(),
            Maker::Text { name, .. } => name,
        }
    }

    /// The platform that the code is for.
    pub fn platform(&self) -> String {
        match self {
            Maker::Machine(target) => target.triple().to_string(),
            Maker::Text { platform, .. } => platform.to_string(),
        }
    }

    /// What a machine must have to run the files, in words.
    pub fn needs(&self) -> String {
        match self {
            Maker::Machine(target) => {
                let features: Vec<&str> = target.caps().features.iter().map(|feature| feature.name()).collect();
                format!("a processor of level {} ({}); no library", target.name(), features.join(", "))
            }
            Maker::Text { name, platform, .. } => match *platform {
                "nvptx64-nvidia-cuda" => format!("an NVIDIA GPU that runs {name} and its driver; no toolkit"),
                "amdgcn-amd-amdhsa" => format!("an AMD GPU that is {name}, libamdhip64 and libhiprtc; no compiler"),
                platform => format!("a device that takes {platform}"),
            },
        }
    }

    /// Whether a C program can link the files.
    pub fn links(&self) -> bool {
        matches!(self, Maker::Machine(_))
    }

    /// The file of an artifact: its name and content.
    pub fn file(&self, artifact: &Artifact) -> Result<(String, Vec<u8>), Failure> {
        Ok(match self {
            Maker::Machine(target) => (format!("{}.o", artifact.entry), object(&[artifact], target.triple())?),
            Maker::Text { extension, .. } => {
                (format!("{}.{extension}", artifact.entry), artifact.payload.bytes().to_vec())
            }
        })
    }
}

/// PTX for an NVIDIA device.
fn ptx(target: PtxTarget, name: &str) -> Maker {
    let name = name.to_ascii_lowercase();
    Maker::Text { target: Box::new(target), name, platform: "nvptx64-nvidia-cuda", extension: "ptx" }
}

/// HIP source for an AMD device.
fn hip(target: HipTarget) -> Maker {
    let name = target.caps().name.to_string();
    Maker::Text { target: Box::new(target), name, platform: "amdgcn-amd-amdhsa", extension: "hip" }
}

impl Place {
    /// The place of a name: a device here (`cpu`, `cpu:<threads>`, `cpu+clif`, `cuda:<index>`, `hip:<index>`,
    /// `ptx:<target>`), or a CPU level, an NVIDIA or AMD
    /// device or architecture, for which nothing is run.
    pub fn open(name: &str) -> Result<Place, Failure> {
        if let base @ ("cpu" | "cpu+clif") = name.split(':').next().unwrap_or(name) {
            let device = bitsmith_runtime::open(name)?;
            let target = if base == "cpu" { CpuTarget::host()? } else { CpuTarget::host_with_cranelift()? };
            return Ok(Place { maker: Maker::Machine(target), device: Some(device) });
        }
        if let Ok(target) = PtxTarget::named(name) {
            return Ok(Place { maker: ptx(target, name), device: None });
        }
        if name == "cuda" || name.starts_with("cuda:") || name.starts_with("ptx:") {
            let device = bitsmith_runtime::open(name)?;
            let target = device.info().target;
            return Ok(Place { maker: ptx(PtxTarget::named(&target)?, &target), device: Some(device) });
        }
        if name == "hip" || name.starts_with("hip:") {
            let device = bitsmith_runtime::open(name)?;
            let maker = hip(HipTarget::named(&device.info().target)?);
            return Ok(Place { maker, device: Some(device) });
        }
        if let Ok(target) = HipTarget::named(&name.to_ascii_lowercase()) {
            return Ok(Place { maker: hip(target), device: None });
        }
        match CpuTarget::named(name) {
            Ok(target) => Ok(Place { maker: Maker::Machine(target), device: None }),
            Err(Error::Unsupported(why)) if name.contains('@') => {
                Err(Failure::Request(Error::Unsupported(format!("device `{name}`: {why}"))))
            }
            Err(_) => Err(Failure::Request(Error::Unsupported(format!(
                "device `{name}`; accepted: {}, or to generate code only: {}",
                bitsmith_runtime::device_names(),
                CpuTarget::names().chain(PtxTarget::names()).chain(HipTarget::names()).collect::<Vec<_>>().join(", ")
            )))),
        }
    }

    /// A device that runs, for commands that must.
    pub fn running(name: &str) -> Result<Arc<dyn Device>, Failure> {
        Place::open(name)?.device.ok_or_else(|| {
            Failure::Request(Error::Unsupported(format!(
                "device `{name}` is one that kernels can be generated for, nothing to run on; accepted: {}",
                bitsmith_runtime::device_names()
            )))
        })
    }

    /// The target as the compiler takes it.
    pub fn target(&self) -> &dyn Target {
        self.maker.target()
    }
}
