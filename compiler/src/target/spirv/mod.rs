//! SPIR-V for Vulkan 1.2 and later, through `rspirv`.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is the module's words, low byte first. Always holds: the
//! target's name alone decides the bytes; a module uses the capabilities that its kernel needs and no others.
//!
//! What a runtime must know:
//!
//! - The `i`-th buffer among the parameters is the storage buffer at set 0, binding `i`. A binding is below 2 GiB.
//! - Scalars are push constants, in order, each at a multiple of its size.
//! - Where the module declares `GroupNonUniform`, the pipeline must run subgroups of [`Caps::subgroup`] threads, all full,
//!   numbered along x first.
//! - The grid is what is dispatched.

mod arith;
mod emit;
mod group;
mod matrix;
mod memory;
mod module;
mod support;
mod value;

use crate::artifact::{Artifact, Payload};
use crate::caps::vulkan::{DEVICES, Vulkan};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::ir::{Kernel, Verified};
use crate::pass::expand::{Choice, expand_chosen};
use crate::pass::{self, Pass};
use crate::target::{Target, arg};
use rspirv::binary::Disassemble;

/// What a kernel goes through before this target emits it, apart from the expansions that its device needs.
const PASSES: &[Pass] = &[pass::NARROW, pass::FOLD, pass::CSE, pass::HOIST, pass::DCE];

/// A Vulkan device, by name.
#[derive(Debug)]
pub struct SpirvTarget {
    device: Vulkan,
    name: String,
}

impl SpirvTarget {
    /// A device by name, such as `vulkan`; `vulkan@8` runs it with subgroups of 8 threads.
    pub fn named(name: &str) -> Result<SpirvTarget> {
        let (base, width) = name.split_once('@').map_or((name, None), |(base, width)| (base, Some(width)));
        let device = DEVICES.iter().find(|device| device.caps.name == base).ok_or_else(|| {
            let names: Vec<&str> = DEVICES.iter().map(|device| device.caps.name).collect();
            Error::Unsupported(format!("Vulkan device `{name}`; accepted: {}, each with @<subgroup>", names.join(", ")))
        })?;
        match width {
            None => Ok(SpirvTarget::new(*device)),
            Some(width) => {
                let width: u32 = width
                    .parse()
                    .ok()
                    .filter(|width: &u32| width.is_power_of_two() && *width <= 128)
                    .ok_or_else(|| Error::invalid(format!("`{name}`: a subgroup has 1, 2, 4 … 128 threads")))?;
                Ok(SpirvTarget::new(device.with_subgroup(width)))
            }
        }
    }

    /// A device with these facts.
    pub fn new(device: Vulkan) -> SpirvTarget {
        let listed = DEVICES.iter().find(|known| known.caps.name == device.caps.name);
        let usual = listed.is_some_and(|known| known.caps.subgroup == device.caps.subgroup);
        let name =
            if usual { device.caps.name.to_string() } else { format!("{}@{}", device.caps.name, device.caps.subgroup) };
        SpirvTarget { device, name }
    }

    /// The names that [`SpirvTarget::named`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DEVICES.iter().map(|device| device.caps.name)
    }

    /// The name that [`SpirvTarget::named`] takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's facts.
    pub fn device(&self) -> &Vulkan {
        &self.device
    }

    fn expansions(&self) -> Choice {
        let lacks = |feature| !self.device.caps.features.has(feature);
        Choice {
            unpack: true,
            dot4_unsigned_signed: lacks(Feature::Dot4UnsignedSigned),
            dot4_signed_signed: lacks(Feature::Dot4SignedSigned),
            dot2: true,
            permute_bytes: true,
            exp2: true,
            storage_casts: true,
            f16_casts: !self.device.casts_f16,
            bf16_casts: true,
            f16_arithmetic: lacks(Feature::F16Arithmetic),
            f16_fma: !self.device.fuses_f16,
            bf16_arithmetic: true,
            subgroup_of_one: self.device.caps.subgroup == 1,
            ..Choice::NONE
        }
    }

    fn module(&self, kernel: &Kernel) -> Result<rspirv::dr::Module> {
        support::check(kernel, &self.device)?;
        Ok(emit::module(kernel, &self.device))
    }
}

impl Target for SpirvTarget {
    fn caps(&self) -> &Caps {
        &self.device.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel> {
        let folded = pass::fold(kernel.kernel().clone());
        let expanded = expand_chosen(folded, &self.expansions());
        Ok(pass::run_all(expanded, PASSES, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        Ok(Artifact {
            target: self.name.clone(),
            entry: kernel.name.clone(),
            payload: Payload::Binary(module::bytes(&self.module(kernel)?)),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
            preparation: None,
        })
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        matches!(stage, "asm" | "spirv").then(|| self.module(kernel.kernel()).map(|module| module.disassemble()))
    }
}
