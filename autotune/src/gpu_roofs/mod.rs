//! Roofs of a GPU, measured on the device by kernels of our own: what memory delivers to reads, what each matrix
//! instruction and `f32` arithmetic peak at.
//!
//! Always holds: each kernel's result is compared with what it must be, so that nothing was left out of what was timed.

mod kernels;

use self::kernels::{Arithmetic, GROUP_BYTES, Kind, THREADS, arithmetic_kernel, expected_sums, read_kernel};
use crate::repeat::Repeat;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::{Error, Result, legalize};
use bitsmith_runtime::{Device, Launch, LaunchArg};
use serde::Serialize;

/// Roofs of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuRoofs {
    /// Bytes read by each measurement of bandwidth; far above the caches.
    pub footprint: usize,
    /// Read bandwidth, GB/s.
    pub read_gbs: f64,
    /// Peaks of arithmetic, GOP/s (two operations per product), by name: an instruction's operand type, or `fma`.
    pub arithmetic: Vec<Peak>,
    /// Whether the device's own clock told the time.
    pub by_device_clock: bool,
}

/// The peak of one kind of arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// `mma-f16`, `wgmma-i8`, `fma`.
    pub name: &'static str,
    /// GOP/s.
    pub gops: f64,
}

impl GpuRoofs {
    /// The peak of a name; `None` where the device has none.
    pub fn peak(&self, name: &str) -> Option<&Peak> {
        self.arithmetic.iter().find(|peak| peak.name == name)
    }

    /// The higher of each roof: measured before and after kernels.
    pub fn higher(mut self, other: &GpuRoofs) -> GpuRoofs {
        self.read_gbs = self.read_gbs.max(other.read_gbs);
        for peak in &mut self.arithmetic {
            peak.gops = other.peak(peak.name).map_or(peak.gops, |other| peak.gops.max(other.gops));
        }
        self
    }
}

/// The name of a matrix roof by the type of its first operand; `None` for types that no roof is measured for.
pub fn matrix_roof(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F16 => "mma-f16",
        DType::Bf16 => "mma-bf16",
        DType::I8 => "mma-i8",
        DType::E4m3fn => "mma-e4m3",
        DType::E4m3fnuz => "mma-e4m3fnuz",
        _ => return None,
    })
}

/// The name of the roof of matrix instructions of four subgroups; `None` for types that have none.
pub fn group_roof(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F16 => "wgmma-f16",
        DType::Bf16 => "wgmma-bf16",
        DType::I8 => "wgmma-i8",
        DType::E4m3fn => "wgmma-e4m3",
        _ => return None,
    })
}

/// How much is run for each roof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes to read; rounded up to whole workgroups. Far above the caches.
    pub footprint: usize,
    /// Turns of an arithmetic kernel's loop.
    pub turns: u32,
    /// Workgroups per unit for arithmetic: enough to fill it whatever its limits.
    pub groups_per_unit: u32,
    /// Times that each roof is taken; the best counts.
    pub times: usize,
}

impl Extent {
    /// What a GPU takes milliseconds for, with so many bytes to read.
    pub const fn of(footprint: usize) -> Extent {
        Extent { footprint, turns: 2048, groups_per_unit: 12, times: 12 }
    }
}

/// Measures all roofs.
pub fn measure(device: &dyn Device, extent: Extent) -> Result<GpuRoofs> {
    let footprint = extent.footprint.next_multiple_of(GROUP_BYTES);
    let (seconds, by_device_clock) = read(device, footprint, extent.times)?;
    let mut roofs =
        GpuRoofs { footprint, read_gbs: footprint as f64 / seconds / 1e9, arithmetic: Vec::new(), by_device_clock };
    let groups = device.info().threads.max(1) as u32 * extent.groups_per_unit;
    for (name, kind) in kinds(device.caps()) {
        let kernel = arithmetic_kernel(kind, extent.turns);
        let operations = f64::from(groups) * f64::from(THREADS) * f64::from(extent.turns) * kernel.per_turn;
        let gops = operations / arithmetic(device, &kernel, groups, extent.times)? / 1e9;
        roofs.arithmetic.push(Peak { name, gops });
    }
    Ok(roofs)
}

/// The kinds of arithmetic of a device, by name: `f32`, and for each type that has a roof a matrix instruction of a
/// subgroup, and one of four subgroups where the device has those.
fn kinds(caps: &Caps) -> Vec<(&'static str, Kind)> {
    let mut kinds = vec![("fma", Kind::MultiplyAdd)];
    for shape in caps.matrix.iter().filter(|shape| shape.a == shape.b && shape.lanes == caps.subgroup) {
        if let Some(name) = matrix_roof(shape.a)
            && !kinds.iter().any(|(known, _)| *known == name)
        {
            kinds.push((name, Kind::Matrix(shape)));
            if let Some(name) = group_roof(shape.a).filter(|_| caps.features.has(Feature::WarpgroupMma)) {
                kinds.push((name, Kind::Warpgroup(shape)));
            }
        }
    }
    kinds
}

/// Compiles a kernel for a device.
fn made(device: &dyn Device, kernel: &Kernel) -> Result<Artifact> {
    let target = device.target();
    let legal = legalize(kernel, target)?;
    let proof = verify(&legal, target.caps()).map_err(|faults| Error::Bug {
        message: faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        text: legal.to_string(),
    })?;
    target.emit(&proof)
}

/// Words that are read over and over: as many as some workgroups read.
const PATTERN: usize = 64 * GROUP_BYTES;

/// Seconds to read so many bytes once, the best of several times.
fn read(device: &dyn Device, bytes: usize, times: usize) -> Result<(f64, bool)> {
    let caps = device.caps();
    let subgroup = if caps.features.has(Feature::Subgroups) { caps.subgroup } else { 1 };
    let program = device.load(&made(device, &read_kernel(subgroup))?)?;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut pattern = vec![0u8; PATTERN.min(bytes)];
    rng.fill(&mut pattern);
    let data = device.allocate(bytes)?;
    for start in (0..bytes).step_by(pattern.len()) {
        device.upload(&data, start, &pattern[..pattern.len().min(bytes - start)])?;
    }
    let groups = bytes / GROUP_BYTES;
    let sums = groups * (THREADS / subgroup) as usize;
    let out = device.allocate(4 * sums)?;
    device.upload(&out, 0, &vec![0xfb; 4 * sums])?;
    let launch = Launch {
        program: &program,
        grid: [groups as u32, 1, 1],
        args: vec![LaunchArg::Buffer(data.view()), LaunchArg::Buffer(out.view())],
    };
    let mut repeat = Repeat::new(device, vec![launch; 4])?;
    let mut best = f64::INFINITY;
    for _ in 0..times.max(1) {
        best = best.min(repeat.run()? / repeat.count() as f64);
    }
    let mut found = vec![0; 4 * sums];
    device.download(&out, 0, &mut found)?;
    let expected = expected_sums(&pattern, subgroup);
    let wrong = found.chunks_exact(4).zip(expected.iter().cycle()).position(|(got, want)| got != want.to_le_bytes());
    match wrong {
        None => Ok((best, repeat.by_device())),
        Some(at) => Err(wrong_roof(device, "reading", &format!("sum {at} is wrong"))),
    }
}

/// Seconds for one launch of an arithmetic kernel, the best of several times.
fn arithmetic(device: &dyn Device, kernel: &Arithmetic, groups: u32, times: usize) -> Result<f64> {
    let program = device.load(&made(device, &kernel.kernel)?)?;
    let input = device.allocate(kernel.input.len())?;
    device.upload(&input, 0, &kernel.input)?;
    let bytes = 4 * groups as usize * THREADS as usize;
    let out = device.allocate(bytes)?;
    device.upload(&out, 0, &vec![0xfb; bytes])?;
    let launch = Launch {
        program: &program,
        grid: [groups, 1, 1],
        args: vec![LaunchArg::Buffer(input.view()), LaunchArg::Buffer(out.view())],
    };
    let mut repeat = Repeat::new(device, vec![launch])?;
    let mut best = f64::INFINITY;
    for _ in 0..times.max(1) {
        best = best.min(repeat.run()?);
    }
    let mut found = vec![0; bytes];
    device.download(&out, 0, &mut found)?;
    kernel.check(&found).map_err(|why| wrong_roof(device, &kernel.kernel.name, &why))?;
    Ok(best)
}

/// The error for a roof whose kernel computed something else.
fn wrong_roof(device: &dyn Device, what: &str, why: &str) -> Error {
    Error::Bug { message: format!("{what} on {}: {why}", device.info().model), text: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_compiler::caps;
    use bitsmith_compiler::ir::interp::{ArgValue, Launch as Run, run};

    fn interpret(kernel: &Kernel, caps: &Caps, grid: u32, input: &[u8], out: usize) -> Vec<u8> {
        let proof = verify(kernel, caps).unwrap_or_else(|faults| panic!("{faults:?}\n{kernel}"));
        let mut args = vec![ArgValue::filled(input.to_vec()), ArgValue::unwritten(out)];
        run(&proof, caps.subgroup, Run { grid: [grid, 1, 1], args: &mut args }).unwrap();
        args[1].bytes().to_vec()
    }

    #[test]
    fn reading_reads_every_word_and_arithmetic_adds_up() {
        for name in ["a100", "h200", "mi300x"] {
            let caps = caps::gpu(name).unwrap();
            let mut pattern = vec![0u8; 2 * GROUP_BYTES];
            fastrand::Rng::with_seed(4).fill(&mut pattern);
            let expected = expected_sums(&pattern, caps.subgroup);
            let found = interpret(&read_kernel(caps.subgroup), caps, 2, &pattern, 4 * expected.len());
            assert_eq!(found, expected.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>(), "{name}");
            // One word that is not read changes a sum.
            pattern[GROUP_BYTES + 12345] ^= 1;
            assert_ne!(expected_sums(&pattern, caps.subgroup), expected);
            let kinds = kinds(caps);
            assert!(kinds.len() >= 4, "{name}: {kinds:?}");
            for (name_of_kind, kind) in kinds {
                let kernel = arithmetic_kernel(kind, 3);
                let mut found = interpret(&kernel.kernel, caps, 2, &kernel.input, 2 * 4 * THREADS as usize);
                kernel.check(&found).unwrap_or_else(|why| panic!("{name}, {name_of_kind}: {why}"));
                let fewer = arithmetic_kernel(kind, 2);
                assert!(fewer.check(&found).is_err(), "{name}, {name_of_kind}: a turn left out is not seen");
                found[3] ^= 0x40;
                assert!(kernel.check(&found).is_err(), "{name}, {name_of_kind}");
            }
        }
    }

    #[test]
    fn the_higher_of_each_roof() {
        let peak = |gops| vec![Peak { name: "fma", gops }];
        let low = GpuRoofs { read_gbs: 3.0, arithmetic: peak(5.0), ..GpuRoofs::default() };
        let high = GpuRoofs { read_gbs: 2.0, arithmetic: peak(7.0), ..GpuRoofs::default() };
        let both = low.higher(&high);
        assert_eq!((both.read_gbs, both.peak("fma").unwrap().gops), (3.0, 7.0));
        assert!(both.peak("mma-f16").is_none() && matrix_roof(DType::Bf16) == Some("mma-bf16"));
    }
}
