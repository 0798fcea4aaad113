//! The operations on a KV cache where GPUs are: the PTX machine, the HIP host shim, a Vulkan driver. Each gives the bytes that
//! the interpreter gives for the kernel as that target legalized it, and those are within the reference's bounds.

use bitsmith_compiler::caps::Float8;
use bitsmith_compiler::compile_kv;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::lower::kv::{grid, lower};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_emulate::Schedule;
use bitsmith_runtime::Device;
use bitsmith_runtime::vulkan::{Options, VulkanDevice};
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{self, Order, Program, Sanitize};
use bitsmith_tests::kv::{case, interpret, on_device, play};
use bitsmith_tests::{machine, skip};
use std::cell::RefCell;

/// Number of cases per target; `BITSMITH_KV_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_KV_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

fn same(expected: &[ArgValue], got: &[Vec<u8>]) -> Result<(), String> {
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        if let Some(byte) = expected.bytes().iter().zip(got).position(|(a, b)| a != b) {
            return Err(format!("argument {i} differs from the interpreter's at byte {byte}"));
        }
    }
    Ok(())
}

/// Plays cases on two threads; what failed.
fn cases(what: &str, first: u64, one: &(dyn Fn(u64) -> Result<f64, String> + Sync)) {
    let run = |parity: u64| {
        let seeds = (first..first + count()).filter(|seed| seed % 2 == parity);
        seeds.map(|seed| one(seed).map_err(|why| format!("seed {seed}: {why}"))).collect::<Vec<_>>()
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let mut all = run(0);
        all.extend(other.join().expect("the other half panicked"));
        all
    });
    let worst = results.iter().flatten().fold(0.0f64, |a, &b| a.max(b));
    let failures: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    println!("{} cases on {what}, worst error {worst:.3} of its bound", results.len());
    assert!(failures.is_empty(), "{} failed on {what}:\n{:#?}", failures.len(), &failures[..failures.len().min(4)]);
    assert!(worst > 0.0, "{what}: no output was compared");
}

#[test]
fn on_the_ptx_machine() {
    let target = PtxTarget::named("h200").unwrap();
    cases("the PTX machine", 50_000, &|seed| {
        let case = case(seed, 8);
        let caps = target.caps();
        play(&case, caps, &mut |op, schedule, work, args| {
            let compiled = compile_kv(op, schedule, &target).map_err(|e| e.to_string())?;
            let grid = grid(op, schedule, work);
            let got = machine::run(&compiled.legal, &compiled.artifact, grid, &args, Schedule::default())?;
            let expected = interpret(&compiled.legal, caps, grid, args)?;
            let bytes: Vec<Vec<u8>> = got;
            same(&expected, &bytes)?;
            Ok(expected)
        })
    });
}

#[test]
fn on_a_vulkan_driver() {
    let device = match VulkanDevice::open(Options { validate: true, ..Options::default() }) {
        Ok(device) => device,
        Err(error) => return skip("vulkan", "kv on_a_vulkan_driver", &error.to_string()),
    };
    cases(&device.info().model, 60_000, &|seed| {
        let case = case(seed, 8);
        let caps = device.caps();
        play(&case, caps, &mut |op, schedule, work, args| {
            let compiled = compile_kv(op, schedule, device.target()).map_err(|e| e.to_string())?;
            let grid = grid(op, schedule, work);
            let program = device.load(&compiled.artifact).map_err(|e| e.to_string())?;
            let got = on_device(&device, &program, grid, &args).map_err(|e| e.to_string())?;
            let expected = interpret(&compiled.legal, caps, grid, args)?;
            same(&expected, &got)?;
            Ok(expected)
        })
    });
    let complaints = device.complaints();
    assert!(complaints.is_empty(), "the validation layers say: {}", complaints.join("\n"));
}

/// The launches of some cases, with what the interpreter made of them.
fn prepared(target: &HipTarget, seeds: std::ops::Range<u64>) -> (Vec<host::Launch>, Vec<Vec<ArgValue>>) {
    let made = RefCell::new((Vec::new(), Vec::new()));
    for seed in seeds {
        let case = case(seed, 8);
        let caps = target.caps();
        let worst = play(&case, caps, &mut |op, schedule, work, args| {
            let kernel: Kernel = lower(op, schedule, caps).map_err(|e| e.to_string())?;
            let legal = bitsmith_compiler::legalize(&kernel, target).map_err(|e| e.to_string())?;
            let verified = verify(&legal, caps).map_err(|faults| format!("{faults:?}"))?;
            let mut artifact = target.emit(&verified).map_err(|e| e.to_string())?;
            let grid = grid(op, schedule, work);
            let expected = interpret(&legal, caps, grid, args.clone())?;
            let mut made = made.borrow_mut();
            // Batched kernels need names of their own.
            let entry = format!("case_{}", made.0.len());
            let source = clang::source(&artifact).replace(&artifact.entry, &entry);
            artifact.entry = entry;
            made.0.push(host::Launch { artifact, source, wave: caps.subgroup, grid, args });
            made.1.push(expected.clone());
            Ok(expected)
        });
        worst.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    made.into_inner()
}

#[test]
fn on_the_hip_shim() {
    let Some(clang) = clang::find("kv on_the_hip_shim") else { return };
    let target = HipTarget::named("mi300x").unwrap();
    let first = 70_000;
    let starts: Vec<u64> = (first..first + count()).step_by(10).collect();
    let folder = tempfile::tempdir().unwrap();
    for pair in starts.chunks(2) {
        std::thread::scope(|scope| {
            for &start in pair {
                let (clang, target, folder) = (&clang, &target, folder.path());
                scope.spawn(move || {
                    let end = (start + 10).min(first + count());
                    let (launches, expected) = prepared(target, start..end);
                    if start == first && clang::knows(clang, target.arch()) {
                        let text: String = launches.iter().map(|launch| launch.source.as_str()).collect();
                        let resources = clang::compile(clang, target.arch(), &text, &folder.join("kv")).unwrap();
                        assert_eq!(resources.len(), launches.len(), "a remark for every kernel");
                    }
                    let fnuz = target.gpu().float8 == Float8::Fnuz;
                    let program = Program::build(clang, launches, fnuz, Sanitize::Nothing).unwrap();
                    for order in [Order::Forward, Order::Random(1)] {
                        let results = program.run(order).unwrap_or_else(|why| panic!("seeds from {start}: {why}"));
                        for (i, (expected, got)) in expected.iter().zip(&results).enumerate() {
                            same(expected, got).unwrap_or_else(|why| panic!("launch {i} of seeds from {start}: {why}"));
                        }
                    }
                });
            }
        });
    }
    println!("{} cases on the HIP shim", count());
}
