//! Devices, buffers and launches: what an engine links.
//!
//! Reads artifacts; runs them. Always holds: nothing reaches a device before every argument of a launch has been checked
//! against the artifact, so that safe code cannot make a kernel touch memory that is not its own.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod bundle;
pub mod cpu;
pub mod cuda;
mod device;
pub mod hip;
pub mod kv;
pub mod machine;
mod pages;
pub mod roofs;
pub mod timing;
pub mod vulkan;

pub use device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, View, check_launch};

use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// How a device of a backend is opened: by what follows its name on the command line.
type Opener = fn(&str) -> Result<Arc<dyn Device>>;

/// Every backend: its name, how the rest of a device's name is spelled, how it is opened.
const BACKENDS: [(&str, &str, Opener); 6] = [
    ("cpu", "cpu, cpu:<threads>, cpu:<threads>+static+pin", |rest| open_cpu(CpuTarget::host, rest)),
    ("cpu+clif", "cpu+clif:<threads>", |rest| open_cpu(CpuTarget::host_with_cranelift, rest)),
    ("cuda", "cuda:<index>", |rest| Ok(Arc::new(cuda::CudaDevice::open(number(rest, 0)?)?))),
    ("hip", "hip:<index>", |rest| Ok(Arc::new(hip::HipDevice::open(number(rest, 0)?)?))),
    ("ptx", "ptx:<target> (the PTX machine)", open_machine),
    ("vulkan", "vulkan:<index>, vulkan:<index>@<subgroup>", open_vulkan),
];

/// The devices that [`open`] takes, for messages: `cpu, cpu:<threads>, …`.
pub fn device_names() -> String {
    BACKENDS.map(|(_, spelling, _)| spelling).join(", ")
}

/// Most devices of a backend that [`found`] looks for.
const MOST_FOUND: usize = 16;

/// The devices that are here, and of each backend that has none, why.
pub fn found() -> (Vec<DeviceInfo>, Vec<String>) {
    let (mut devices, mut faults) = (Vec::new(), Vec::new());
    match open("cpu") {
        Ok(device) => devices.push(device.info()),
        Err(error) => faults.push(format!("cpu: {error}")),
    }
    for backend in ["cuda", "hip", "vulkan"] {
        for index in 0..MOST_FOUND {
            match open(&format!("{backend}:{index}")) {
                Ok(device) => devices.push(device.info()),
                Err(error) => {
                    if index == 0 {
                        faults.push(format!("{backend}: {error}"));
                    }
                    break;
                }
            }
        }
    }
    (devices, faults)
}

/// Whether a name is one of a device here, rather than of a target to generate for: `cpu`, `cuda:0`, `vulkan@8`.
pub fn names_a_device(name: &str) -> bool {
    split(name).is_some()
}

/// The backend of a name, and the rest of the name.
fn split(name: &str) -> Option<(Opener, &str)> {
    BACKENDS.iter().find_map(|&(backend, _, opener)| {
        let rest = name.strip_prefix(backend)?;
        (rest.is_empty() || rest.starts_with([':', '@'])).then_some((opener, rest))
    })
}

/// Opens a device by name: what [`device_names`] lists. `cpu+clif` takes Cranelift where the wide emitter would serve.
pub fn open(name: &str) -> Result<Arc<dyn Device>> {
    let refuse = || Error::Unsupported(format!("device `{name}`; accepted: {}", device_names()));
    let (opener, rest) = split(name).ok_or_else(refuse)?;
    opener(rest).map_err(|error| match error {
        Error::Invalid(faults) if faults == [MISSPELLED] => refuse(),
        Error::Invalid(faults) => {
            Error::Invalid(faults.iter().map(|fault| format!("device `{name}`: {fault}")).collect())
        }
        other => other,
    })
}

/// Marks a rest that is not spelled as the backend wants it.
const MISSPELLED: &str = "misspelled";

/// `:<number>`, or nothing.
fn number<T: std::str::FromStr>(rest: &str, otherwise: T) -> Result<T> {
    match rest.strip_prefix(':') {
        Some(digits) => digits.parse().map_err(|_| Error::invalid(MISSPELLED)),
        None if rest.is_empty() => Ok(otherwise),
        None => Err(Error::invalid(MISSPELLED)),
    }
}

fn open_cpu(target: fn() -> Result<CpuTarget>, rest: &str) -> Result<Arc<dyn Device>> {
    let mut words = rest.split('+');
    let threads = number(words.next().unwrap_or_default(), cpu::available_threads())?;
    let mut options = cpu::PoolOptions::default();
    for word in words {
        match word {
            "static" => options.split = cpu::Split::Static,
            "pin" => options.pin = true,
            _ => return Err(Error::invalid(MISSPELLED)),
        }
    }
    if !(1..=1024).contains(&threads) {
        return Err(Error::invalid(format!("{threads} threads; accepted: 1 to 1024")));
    }
    Ok(Arc::new(cpu::CpuDevice::with_options(target()?, threads, options)?))
}

fn open_machine(rest: &str) -> Result<Arc<dyn Device>> {
    let target = rest.strip_prefix(':').ok_or_else(|| Error::invalid(MISSPELLED))?;
    Ok(Arc::new(machine::MachineDevice::new(target)?))
}

fn open_vulkan(rest: &str) -> Result<Arc<dyn Device>> {
    let (place, subgroup) = rest.split_once('@').map_or((rest, None), |(place, width)| (place, Some(width)));
    let subgroup = subgroup.map(|width| width.parse().map_err(|_| Error::invalid(MISSPELLED))).transpose()?;
    let options = vulkan::Options { index: number(place, 0)?, subgroup, ..vulkan::Options::default() };
    Ok(Arc::new(vulkan::VulkanDevice::open(options)?))
}

/// A device on a context and a stream of the caller: copies and launches are put into that stream. CUDA devices take both (null
/// for the primary context, null for the default stream), HIP devices a stream; a CPU has neither, and Vulkan does not take them.
///
/// # Safety
/// They belong to the device, and stay valid until the device and all that was made of it are gone.
pub unsafe fn adopt(name: &str, context: *mut c_void, stream: *mut c_void) -> Result<Arc<dyn Device>> {
    let index = |backend: &str| -> Option<Result<u32>> {
        let rest = name.strip_prefix(backend).filter(|rest| rest.is_empty() || rest.starts_with(':'))?;
        let refuse = |_| Error::Unsupported(format!("device `{name}`; accepted: {backend}:<index>"));
        Some(number(rest, 0).map_err(refuse))
    };
    if let Some(index) = index("cuda") {
        // SAFETY: the caller promises what this asks for.
        return Ok(Arc::new(unsafe { cuda::CudaDevice::open_on(index?, context, stream)? }));
    }
    if let Some(index) = index("hip") {
        if !context.is_null() {
            return Err(Error::invalid("a context for a HIP device; accepted: null, and a hipStream_t as the stream"));
        }
        // SAFETY: as above.
        return Ok(Arc::new(unsafe { hip::HipDevice::open_on(index?, stream)? }));
    }
    let given =
        if context.is_null() && stream.is_null() { "no context and no stream" } else { "a context or a stream" };
    Err(Error::Unsupported(format!(
        "adopting {given} on device `{name}`; accepted: cuda:<index>, hip:<index>, or other devices by `open`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for name in ["cpu", "cpu:2", "cpu+clif:1", "cuda:0", "cuda", "hip:3", "ptx:h200", "vulkan@8", "vulkan:0@4"] {
            assert!(names_a_device(name), "{name}");
        }
        for name in ["h200", "sm_90a", "cpux", "cudax:0", "x86-64-v3", "vulkan-amd", ""] {
            assert!(!names_a_device(name), "{name}");
        }
        assert_eq!(open("cpu:1").unwrap().info().threads, 1);
        let (devices, faults) = found();
        assert_eq!(devices[0].name, "cpu");
        let named = |backend: &str| {
            devices.iter().any(|device| device.name.starts_with(backend))
                || faults.iter().any(|fault| fault.starts_with(&format!("{backend}: ")))
        };
        assert!(["cuda", "hip", "vulkan"].iter().all(|backend| named(backend)), "{devices:?} {faults:?}");
        for (name, words) in [
            ("cpu:0", ["0 threads", "1 to 1024"]),
            ("cpu:x", ["cpu:x", "cuda:<index>"]),
            ("cuda:-1", ["cuda:-1", "cuda:<index>"]),
            ("vulkan:0@x", ["vulkan:0@x", "vulkan:<index>@<subgroup>"]),
            ("ptx", ["`ptx`", "ptx:<target>"]),
            ("ptx:z80", ["z80", "sm_90a"]),
            ("nothing", ["nothing", "hip:<index>"]),
        ] {
            let why = open(name).err().unwrap().to_string();
            assert!(words.iter().all(|word| why.contains(word)) && !why.contains(MISSPELLED), "{why}");
        }
    }
}
