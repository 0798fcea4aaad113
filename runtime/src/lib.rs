//! Devices, buffers and launches: what an engine links.
//!
//! Reads artifacts; runs them. Always holds: nothing reaches a device before every argument of a launch has been checked
//! against the artifact, so that safe code cannot make a kernel touch memory that is not its own.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod bundle;
pub mod cpu;
mod device;
pub mod hip;
pub mod roofs;
pub mod timing;
pub mod vulkan;

pub use device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, View, check_launch};

use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// Opens a device by name: `cpu`, `cpu:<threads>` (`cpu+clif` takes Cranelift where the wide emitter would serve), `hip`, `hip:<index>`, `vulkan:<index>`, `vulkan:<index>@<subgroup>`.
pub fn open(name: &str) -> Result<Arc<dyn Device>> {
    let refuse = || {
        Error::Unsupported(format!(
            "device `{name}`; accepted: cpu, cpu:<threads>, cpu+clif:<threads>, hip, hip:<index>, vulkan:<index>, vulkan:<index>@<subgroup>"
        ))
    };
    if let Some(rest) = name.strip_prefix("vulkan")
        && (rest.is_empty() || rest.starts_with([':', '@']))
    {
        let (place, subgroup) = rest.split_once('@').map_or((rest, None), |(place, width)| (place, Some(width)));
        let index = place.strip_prefix(':').map_or(Ok(0), |index| index.parse().map_err(|_| refuse()))?;
        let subgroup = subgroup.map(|width| width.parse().map_err(|_| refuse())).transpose()?;
        let options = vulkan::Options { index, subgroup, ..vulkan::Options::default() };
        return Ok(Arc::new(vulkan::VulkanDevice::open(options)?));
    }
    let (place, count) = name.split_once(':').map_or((name, None), |(place, count)| (place, Some(count)));
    if let "cpu" | "cpu+clif" = place {
        let threads = count.map_or(Ok(cpu::available_threads()), |count| count.parse().map_err(|_| refuse()))?;
        if !(1..=1024).contains(&threads) {
            return Err(Error::invalid(format!("device `{name}`: {threads} threads; accepted: 1 to 1024")));
        }
        let target = if place == "cpu" { CpuTarget::host()? } else { CpuTarget::host_with_cranelift()? };
        return Ok(Arc::new(cpu::CpuDevice::with_target(target, threads)?));
    }
    match name.split_once(':') {
        None if name == "hip" => Ok(Arc::new(hip::HipDevice::open(0)?)),
        Some(("hip", index)) => Ok(Arc::new(hip::HipDevice::open(index.parse().map_err(|_| refuse())?)?)),
        _ => Err(refuse()),
    }
}

/// A device on a context and a stream of the caller: launches are put into that stream. A CPU has neither, and no GPU backend
/// takes them yet.
///
/// # Safety
/// They must stay valid until the device and all that was made of it are gone.
pub unsafe fn adopt(name: &str, context: *mut c_void, stream: *mut c_void) -> Result<Arc<dyn Device>> {
    let given =
        if context.is_null() && stream.is_null() { "no context and no stream" } else { "a context or a stream" };
    Err(Error::Unsupported(format!(
        "adopting {given} on device `{name}`; accepted: devices that `open` takes, by `open`"
    )))
}
