//! What `--device` names: a device here, or a CPU level to generate for.

use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_runtime::Device;
use std::sync::Arc;

/// Somewhere kernels are made for, and may be run.
pub(crate) struct Place {
    /// What makes the code.
    pub target: CpuTarget,
    /// What runs it; `None` where code is made for another machine.
    pub device: Option<Arc<dyn Device>>,
}

impl Place {
    /// The place of a name: `cpu`, `cpu:<threads>`, or a CPU level, for which nothing is run.
    pub fn open(name: &str) -> Result<Place, Failure> {
        if name == "cpu" || name.starts_with("cpu:") {
            let device = bitsmith_runtime::open(name)?;
            return Ok(Place { target: CpuTarget::host()?, device: Some(device) });
        }
        match CpuTarget::named(name) {
            Ok(target) => Ok(Place { target, device: None }),
            Err(Error::Unsupported(why)) if name.contains('@') => {
                Err(Failure::Request(Error::Unsupported(format!("device `{name}`: {why}"))))
            }
            Err(_) => Err(Failure::Request(Error::Unsupported(format!(
                "device `{name}`; accepted: cpu, cpu:<threads>, or to generate code only: {}",
                CpuTarget::names().collect::<Vec<_>>().join(", ")
            )))),
        }
    }

    /// A device that runs, for commands that must.
    pub fn running(name: &str) -> Result<Arc<dyn Device>, Failure> {
        Place::open(name)?.device.ok_or_else(|| {
            Failure::Request(Error::Unsupported(format!(
                "device `{name}` is a CPU level that kernels can be generated for, nothing to run on; accepted: cpu, cpu:<threads>"
            )))
        })
    }

    /// The target as the compiler takes it.
    pub fn target(&self) -> &dyn Target {
        &self.target
    }
}
