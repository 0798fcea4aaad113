//! Which target a device gets: by its compute capability and by what it calls itself.
//!
//! Always holds: code for an architecture with an `a` runs on that compute capability alone, other PTX on its own and on
//! every later one. Where a device is not the one that its target was made for, a note says so.

use bitsmith_compiler::caps::{Caps, NVIDIA_DEVICES};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::{ARCHES, PtxTarget};
use bitsmith_compiler::{Error, Result};

/// What a driver tells of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Its name: `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Compute capability: 90 for 9.0, 103 for 10.3.
    pub capability: i32,
    /// Multiprocessors.
    pub units: u32,
}

/// The target of a device, and what a user should know about the choice.
#[derive(Debug)]
pub struct Choice {
    /// The target.
    pub target: PtxTarget,
    /// Where the device is not quite the one that the target is for.
    pub notes: Vec<String>,
}

/// Compute capability of an architecture's name, and whether its code runs there alone.
fn parse(arch: &str) -> Option<(i32, bool)> {
    let digits = arch.strip_prefix("sm_")?;
    let alone = digits.ends_with(['a', 'f']);
    digits.trim_end_matches(['a', 'f']).parse().ok().map(|capability| (capability, alone))
}

/// Whether code for an architecture runs on a compute capability.
pub fn runs(arch: &str, capability: i32) -> bool {
    parse(arch).is_some_and(|(own, alone)| if alone { own == capability } else { own <= capability })
}

/// How well code for a target (`h200`, `sm_90a`) serves a device with this target of its own and compute capability: best
/// its own name, then its own architecture, then the newest that runs there.
pub fn rank(target: &str, own: &PtxTarget, capability: i32) -> Option<u32> {
    let made_for = PtxTarget::named(target).ok()?;
    let arch = made_for.arch().name;
    let (of_arch, _) = parse(arch).filter(|_| runs(arch, capability))?;
    Some(match arch == own.arch().name {
        true if target.eq_ignore_ascii_case(own.caps().name) => 10_002,
        true if target.eq_ignore_ascii_case(arch) => 10_001,
        true => 10_000,
        false => of_arch as u32,
    })
}

/// Chooses; refuses devices older than every architecture.
pub fn choose(facts: &Facts) -> Result<Choice> {
    let Facts { model, capability, units } = facts;
    let spelled = format!("{}.{}", capability / 10, capability % 10);
    let own = ARCHES.iter().find(|arch| parse(arch.name).is_some_and(|(own, _)| own == *capability));
    // The newest of those that run there: the table has the oldest first.
    let arch = own.or_else(|| ARCHES.iter().rev().find(|arch| runs(arch.name, *capability))).ok_or_else(|| {
        let known: Vec<&str> = ARCHES.iter().map(|arch| arch.name).collect();
        Error::Unsupported(format!(
            "{model} has compute capability {spelled}, which no target is made for; accepted: {} and later",
            known.join(", ")
        ))
    })?;
    let mut notes = Vec::new();
    if own.is_none() {
        notes.push(format!("{model} has compute capability {spelled}: it takes code for {}, the closest", arch.name));
    }
    let of_arch = || NVIDIA_DEVICES.iter().filter(|caps| caps.gpu.is_some_and(|gpu| gpu.arch == arch.name));
    let named = own.and_then(|_| of_arch().find(|caps| is_called(model, caps)));
    let caps = match named.or_else(|| of_arch().next()) {
        Some(caps) => caps,
        None => return Err(Error::Unsupported(format!("no device of {} is known", arch.name))),
    };
    if own.is_some() && named.is_none() {
        notes.push(format!("{model} is not known by name: schedules are those of {}", caps.name));
    }
    match caps.gpu {
        Some(gpu) if own.is_some() && gpu.units != *units => notes.push(format!(
            "{model} has {units} multiprocessors, {} has {}: schedules are those of {0}",
            caps.name, gpu.units
        )),
        _ => {}
    }
    Ok(Choice { target: PtxTarget::named(caps.name)?, notes })
}

/// Whether a driver's name for a device holds the name of caps as words: `rtx4090` in `NVIDIA GeForce RTX 4090`.
fn is_called(model: &str, caps: &Caps) -> bool {
    let lower = model.to_ascii_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    (0..words.len()).any(|from| {
        let mut joined = String::new();
        words[from..].iter().any(|word| {
            joined += word;
            joined == caps.name
        })
    })
}

/// The version of CUDA that a driver must offer to take what is emitted for an architecture, where this one's is lower.
pub fn needs(arch: &str, version: i32) -> Option<i32> {
    let declared = ARCHES.iter().find(|known| known.name == arch)?.version;
    let (_, least) = PTX_OF_CUDA.iter().find(|(ptx, _)| *ptx == declared)?;
    (version < *least).then_some(*least)
}

/// PTX versions and the releases of CUDA that brought them (PTX ISA, "Release Notes").
const PTX_OF_CUDA: [(&str, i32); 11] = [
    ("7.8", 11080),
    ("8.0", 12000),
    ("8.1", 12010),
    ("8.2", 12020),
    ("8.3", 12030),
    ("8.4", 12040),
    ("8.5", 12050),
    ("8.6", 12070),
    ("8.7", 12080),
    ("8.8", 12090),
    ("9.0", 13000),
];

/// Whether a target's caps ask for no more shared memory than a device has.
pub fn fits(target: &PtxTarget, shared_bytes: u32) -> Result<()> {
    let caps = target.caps();
    if caps.max_shared_bytes > shared_bytes {
        return Err(Error::Unsupported(format!(
            "the driver offers {shared_bytes} bytes of shared memory per block; {} is described with {}",
            caps.name, caps.max_shared_bytes
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(model: &str, capability: i32, units: u32) -> (String, Vec<String>) {
        let choice = choose(&Facts { model: model.into(), capability, units }).unwrap();
        (choice.target.caps().name.to_string(), choice.notes)
    }

    #[test]
    fn devices_are_known_by_what_drivers_call_them() {
        for (model, capability, units, name) in [
            ("NVIDIA A100-SXM4-80GB", 80, 108, "a100"),
            ("NVIDIA A100 80GB PCIe", 80, 108, "a100"),
            ("NVIDIA A10", 86, 72, "a10"),
            ("NVIDIA GeForce RTX 3090", 86, 82, "rtx3090"),
            ("NVIDIA L4", 89, 58, "l4"),
            ("NVIDIA L40S", 89, 142, "l40s"),
            ("NVIDIA GeForce RTX 4090", 89, 128, "rtx4090"),
            ("NVIDIA H100 80GB HBM3", 90, 132, "h100"),
            ("NVIDIA H200", 90, 132, "h200"),
            ("NVIDIA B200", 100, 148, "b200"),
            ("NVIDIA GeForce RTX 5090", 120, 170, "rtx5090"),
        ] {
            assert_eq!(of(model, capability, units), (name.to_string(), vec![]), "{model}");
        }
    }

    #[test]
    fn what_is_not_quite_known_is_said() {
        let (name, notes) = of("NVIDIA H100 PCIe", 90, 114);
        assert!(name == "h100" && notes.len() == 1 && notes[0].contains("114"), "{notes:?}");
        let (name, notes) = of("NVIDIA A40", 86, 84);
        assert!(name == "rtx3090" && notes[0].contains("A40"), "{notes:?}");
        // GH200 is no `h200`: its words are other ones.
        assert_eq!(of("NVIDIA GH200 480GB", 90, 132).0, "h100");
        for capability in [103, 110, 121] {
            let (name, notes) = of("NVIDIA Something", capability, 100);
            assert!(notes.len() == 1 && notes[0].contains("sm_89"), "{name}: {notes:?}");
        }
        let error = choose(&Facts { model: "Tesla T4".into(), capability: 75, units: 40 }).unwrap_err().to_string();
        assert!(error.contains("7.5") && error.contains("sm_80") && error.contains("sm_90a"), "{error}");
    }

    #[test]
    fn a_driver_that_is_too_old_for_a_text_is_known() {
        assert_eq!(needs("sm_90a", 12000), None);
        assert_eq!(needs("sm_89", 12000), Some(12040));
        for arch in ARCHES {
            assert!(PTX_OF_CUDA.iter().any(|(ptx, _)| *ptx == arch.version), "{}", arch.name);
        }
    }

    #[test]
    fn a_device_prefers_code_of_its_own() {
        let own = PtxTarget::named("h200").unwrap();
        let ranks = ["h200", "sm_90a", "h100", "l4", "sm_80"].map(|target| rank(target, &own, 90).unwrap());
        assert!(ranks.is_sorted_by(|a, b| a > b), "{ranks:?}");
        assert!(rank("b200", &own, 90).is_none() && rank("x86-64-v3", &own, 90).is_none());
    }

    #[test]
    fn code_with_an_a_runs_on_its_own_capability_alone() {
        assert!(runs("sm_80", 80) && runs("sm_80", 90) && runs("sm_90a", 90));
        assert!(!runs("sm_90a", 100) && !runs("sm_90a", 89) && !runs("sm_89", 86) && !runs("x86", 90));
    }
}
