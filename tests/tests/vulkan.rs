//! Vulkan: random kernels, and every family of `lower`, through SPIR-V, `spirv-val` and a driver.
//!
//! The driver is Mesa's for the CPU, at subgroup widths 4, 8 and 16: it takes the width from an environment variable when
//! it is loaded, so that each width is a process of its own. The validation layers run along, and any word of theirs is a
//! failure. The driver gives the interpreter's bytes; of families, these are within the bound of the reference.

use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::compile;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_runtime::Device;
use bitsmith_runtime::vulkan::{Options as Open, VulkanDevice};
use bitsmith_tests::random::{Options, kernel};
use bitsmith_tests::stages::{interpret, on_device, proven};
use bitsmith_tests::vulkan::SpirvVal;
use bitsmith_tests::{cases, poison, run, skip};
use std::collections::BTreeMap;
use std::time::Instant;

/// Random kernels per width and set of options; `BITSMITH_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// Cases of families per width; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// How many cases of each width are left out, from the first on; `BITSMITH_SKIP` changes it.
fn left_out() -> u64 {
    std::env::var("BITSMITH_SKIP").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Random kernels of several threads for a width.
fn options(subgroup: u32) -> Options {
    Options { threads: 32, subgroup, vector_bytes: 64, ..Options::SIMT }
}

#[test]
fn random_kernels_of_every_width_are_valid_modules() {
    let Some(validator) = SpirvVal::find("random_kernels_of_every_width_are_valid_modules") else { return };
    for subgroup in [4, 8, 16, 32] {
        for device in SpirvTarget::names() {
            let target = SpirvTarget::named(&format!("{device}@{subgroup}")).unwrap();
            for seed in 0..seeds().div_ceil(6) {
                let case = kernel(seed, options(subgroup));
                let name = format!("seed {seed} on {}", target.name());
                let legal = target.legalize(&proven(&case.kernel, subgroup).unwrap()).unwrap();
                let artifact = target.emit(&proven(&legal, subgroup).unwrap()).unwrap();
                if let Err(why) = validator.check(artifact.payload.bytes()) {
                    panic!("{name}: {why}\n{legal}");
                }
                let again = target.emit(&proven(&legal, subgroup).unwrap()).unwrap();
                assert_eq!(again.payload, artifact.payload, "{name}: other bytes the second time");
            }
        }
    }
}

/// One random kernel through every stage.
fn random_case(device: &VulkanDevice, seed: u64, options: Options) -> Result<(), String> {
    let case = kernel(seed, options);
    let expected = interpret(&case.kernel, &case)?;
    let target = device.target();
    let legal = target.legalize(&proven(&case.kernel, case.subgroup)?).map_err(|e| e.to_string())?;
    if interpret(&legal, &case)? != expected {
        return Err(format!("legalized to another kernel:\n{}", case.kernel));
    }
    let artifact = target.emit(&proven(&legal, case.subgroup)?).map_err(|e| e.to_string())?;
    let outputs = on_device(device, &artifact, &case).map_err(|e| e.to_string())?;
    for (i, (expected, got)) in expected.iter().zip(&outputs).enumerate() {
        if let Some(byte) = expected.bytes().iter().zip(got).position(|(a, b)| a != b) {
            let from = byte & !15;
            let to = (from + 16).min(got.len());
            return Err(format!(
                "argument {i} differs at byte {byte}: {:02x?} on the interpreter, {:02x?} on {}\n{legal}",
                &expected.bytes()[from..to],
                &got[from..to],
                device.info().model
            ));
        }
    }
    Ok(())
}

/// Runs this test in a process of its own whose driver has vectors of so many bits.
fn in_child(test: &str, bits: u32) {
    let subgroup = bits / 32;
    let name = format!("{test} at width {subgroup}");
    if let Err(error) = VulkanDevice::open(Open { validate: true, ..Open::default() }) {
        return skip("vulkan", &name, &error.to_string());
    }
    let text = bitsmith_tests::in_child(module_path!(), test, |command| {
        command.env("LP_NATIVE_VECTOR_WIDTH", bits.to_string()).env("BITSMITH_WIDTH", subgroup.to_string());
    });
    for line in text.lines().filter(|line| line.starts_with("width") || line.starts_with("skipped")) {
        println!("{line}");
    }
}

/// The device of a child, with the width that its parent asked for.
fn device() -> Option<VulkanDevice> {
    let device = VulkanDevice::open(Open { validate: true, ..Open::default() }).unwrap();
    let wanted: u32 = std::env::var("BITSMITH_WIDTH").ok()?.parse().ok()?;
    let found = device.caps().subgroup;
    if found != wanted {
        // Another driver than the CPU's stands first; its own width is as good.
        println!("width {wanted}: {} runs subgroups of {found}", device.info().model);
    }
    Some(device)
}

fn report(what: &str, device: &VulkanDevice, failures: &[String], total: u64) {
    let shown = failures.iter().take(3).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {total} {what} failed on {}:\n{shown}", failures.len(), device.info().model);
    let complaints = device.complaints();
    assert!(complaints.is_empty(), "the validation layers say: {}", complaints.join("\n"));
    println!("width {}: {total} {what} on {}", device.caps().subgroup, device.info().model);
}

#[test]
#[ignore = "started by the tests that choose its width"]
fn child_random() {
    let device = device().unwrap();
    let options = options(device.caps().subgroup);
    let mut failures = Vec::new();
    for seed in 0..seeds() {
        for options in [options, Options { vector_bytes: 16, ..options }] {
            if let Err(why) = random_case(&device, seed, options) {
                failures.push(format!("seed {seed} of {options:?}: {why}"));
            }
        }
    }
    report("random kernels", &device, &failures, 2 * seeds());
}

#[test]
fn random_kernels_at_width_4() {
    in_child("child_random", 128);
}

#[test]
fn random_kernels_at_width_8() {
    in_child("child_random", 256);
}

#[test]
fn random_kernels_at_width_16() {
    in_child("child_random", 512);
}

/// Seconds by stage, and the slowest case.
#[derive(Default)]
struct Spent {
    stages: BTreeMap<&'static str, f64>,
    slowest: (f64, u64),
}

impl Spent {
    fn during<T>(&mut self, stage: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        *self.stages.entry(stage).or_default() += start.elapsed().as_secs_f64();
        result
    }
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (stage, seconds) in &self.stages {
            write!(f, "{stage} {seconds:.1} s, ")?;
        }
        write!(f, "slowest seed {} with {:.1} s", self.slowest.1, self.slowest.0)
    }
}

/// One operation by one family through every stage; gives the family and the largest ratio of an error to its bound.
fn family_case(
    device: &VulkanDevice,
    validator: Option<&SpirvVal>,
    seed: u64,
    spent: &mut Spent,
) -> Result<(&'static str, f64), String> {
    let caps = device.caps();
    let case = cases::case(seed, caps);
    let at = |stage: &str, why: String| format!("seed {seed}, {stage}: {why}\n  {case:?}");
    let mut problem = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    poison::padding(&mut problem, seed);
    let compiled = spent.during("compiler", || compile(&case.op, &case.schedule, device.target()));
    let compiled = compiled.map_err(|e| at("compile", e.to_string()))?;
    let check = |stage: &str, outputs: &[Vec<u8>]| {
        let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
        let report = problem.check(case.schedule.family, &outputs, Sample::Everything);
        if report.passed() { Ok(report.worst_ratio) } else { Err(at(stage, report.first_wrong.unwrap_or_default())) }
    };
    let legal = spent.during("interpreter", || run::interpret(&compiled.legal, caps, &problem, &case.schedule));
    let legal = legal.map_err(|e| at("interpreter", e))?;
    let worst = spent.during("reference", || check("interpreter", &legal))?;
    if let Some(validator) = validator {
        let checked = spent.during("spirv-val", || validator.check(compiled.artifact.payload.bytes()));
        checked.map_err(|why| at("spirv-val", why))?;
    }
    let prepared = spent.during("driver", || Prepared::new(device, &problem, &compiled.artifact, &case.schedule, 1));
    let prepared = prepared.map_err(|e| at("load", e.to_string()))?;
    let outputs = spent.during("launch", || prepared.launch(0).and_then(|()| prepared.outputs()));
    let outputs = outputs.map_err(|e| at("launch", e.to_string()))?;
    let worst = worst.max(spent.during("reference", || check("Vulkan", &outputs))?);
    // Quotients and roots of other drivers may be off by some units in the last place.
    if caps.name == "vulkan-lavapipe" {
        for (i, (legal, got)) in legal.iter().zip(&outputs).enumerate() {
            if let Some(byte) = legal.iter().zip(got).position(|(a, b)| a != b) {
                let words = byte & !3..(byte & !3) + 4;
                let (legal, got) = (legal.get(words.clone()), got.get(words));
                let why = format!("output {i} differs at byte {byte}: {legal:02x?} there, {got:02x?} here");
                return Err(at("Vulkan against interpreter", why));
            }
        }
    }
    Ok((case.schedule.family.name(), worst))
}

#[test]
fn many_buffers_share_blocks_of_memory() {
    let device = match VulkanDevice::open(Open { validate: true, ..Open::default() }) {
        Ok(device) => device,
        Err(error) => return skip("vulkan", "many_buffers_share_blocks_of_memory", &error.to_string()),
    };
    // More than the 4096 blocks that a driver must give out, and more bytes than one block holds.
    let mut rng = fastrand::Rng::with_seed(1);
    let mut kept = Vec::new();
    for i in 0..5000u32 {
        let buffer = device.allocate(1 + rng.usize(..20_000)).unwrap();
        device.upload(&buffer, 0, &i.to_le_bytes()[..buffer.bytes().min(4)]).unwrap();
        kept.push((buffer, i));
        // Some go, so that others take their places.
        if i % 3 == 0 {
            kept.swap_remove(rng.usize(..kept.len()));
        }
    }
    let large = device.allocate(80 << 20).unwrap();
    assert!((2..20).contains(&device.blocks()), "{} blocks", device.blocks());
    for (buffer, i) in &kept {
        let mut bytes = vec![0; buffer.bytes()];
        device.download(buffer, 0, &mut bytes).unwrap();
        let (written, rest) = bytes.split_at(bytes.len().min(4));
        assert_eq!(written, &i.to_le_bytes()[..written.len()]);
        assert!(rest.iter().all(|&byte| byte == 0), "buffer {i} holds what another left");
    }
    drop((kept, large));
    assert!(device.blocks() <= 1, "{} blocks are left", device.blocks());
    assert_eq!(device.complaints(), Vec::<String>::new());
}

#[test]
#[ignore = "started by the tests that choose its width"]
fn child_families() {
    let device = device().unwrap();
    let validator = SpirvVal::find("families on Vulkan");
    let (mut failures, mut families, mut worst) = (Vec::new(), BTreeMap::new(), 0.0f64);
    let mut spent = Spent::default();
    // Other cases at each width.
    let first = 1000 * u64::from(device.caps().subgroup) + left_out();
    for seed in first..first + count() {
        let start = Instant::now();
        match family_case(&device, validator.as_ref(), seed, &mut spent) {
            Ok((family, ratio)) => {
                worst = worst.max(ratio);
                *families.entry(family).or_insert(0) += 1;
            }
            Err(why) => failures.push(why),
        }
        let seconds = start.elapsed().as_secs_f64();
        if seconds > spent.slowest.0 {
            spent.slowest = (seconds, seed);
        }
    }
    println!("width {}: {spent}", device.caps().subgroup);
    report("family cases", &device, &failures, count());
    println!("width {}: worst error {worst:.3} of its bound, by family {families:?}", device.caps().subgroup);
    for family in ["spread", "block", "decode", "rows"] {
        assert!(families.contains_key(family), "no case of family {family}");
    }
}

#[test]
fn families_at_width_4() {
    in_child("child_families", 128);
}

#[test]
fn families_at_width_8() {
    in_child("child_families", 256);
}

#[test]
fn families_at_width_16() {
    in_child("child_families", 512);
}
