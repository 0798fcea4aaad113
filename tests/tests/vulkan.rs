//! Vulkan: seeded random kernels through SPIR-V, `spirv-val` and a driver.
//!
//! The driver is Mesa's for the CPU, at subgroup widths 4, 8 and 16: it takes the width from an environment variable when
//! it is loaded, so that each width is a process of its own. The validation layers run along, and any word of theirs is a
//! failure. The driver gives the interpreter's bytes.

use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_runtime::Device;
use bitsmith_runtime::vulkan::{Options as Open, VulkanDevice};
use bitsmith_tests::random::{Options, kernel};
use bitsmith_tests::skip;
use bitsmith_tests::vulkan::{SpirvVal, interpret, on_device, proven};
use std::process::Command;

/// Random kernels per width and set of options; `BITSMITH_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
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
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
        .env("BITSMITH_WIDTH", subgroup.to_string())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{name}:\n{text}");
    print!("{}", text.lines().filter(|line| line.starts_with("width")).collect::<Vec<_>>().join("\n"));
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
