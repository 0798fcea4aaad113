//! reference = interpreter = CPU for the operations on a KV cache, over a seeded sample of formats, pages, head shapes and
//! ragged batches. The CPU (wide code and Cranelift's) gives the interpreter's bytes.

use bitsmith_compiler::caps::{self, Caps};
use bitsmith_compiler::compile_kv;
use bitsmith_compiler::lower::kv::{grid, lower};
use bitsmith_compiler::op::kv::KvOp;
use bitsmith_runtime::Device;
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_tests::kv::{KvCase, case, interpret, on_device, play};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of cases; `BITSMITH_KV_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_KV_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(240)
}

fn report(what: &str, results: Vec<(KvCase, Result<f64, String>)>) {
    let total = results.len();
    let mut worst: f64 = 0.0;
    let mut failures = Vec::new();
    for (case, result) in results {
        match result {
            Ok(ratio) => worst = worst.max(ratio),
            Err(why) => failures.push(format!("seed {}: {why}\n  {} {case:?}", case.seed, case.layout.format)),
        }
    }
    println!("{total} cases on {what}, worst error {worst:.3} of its bound");
    let shown = failures.iter().take(4).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {total} cases failed on {what}:\n{shown}", failures.len());
    assert!(worst > 0.0, "{what}: no output was compared");
}

/// Cases on two threads, in order.
fn cases(
    first: u64,
    total: u64,
    rows: usize,
    one: &(dyn Fn(&KvCase) -> Result<f64, String> + Sync),
) -> Vec<(KvCase, Result<f64, String>)> {
    let run = |parity: u64| {
        (first..first + total)
            .filter(|seed| seed % 2 == parity)
            .map(|seed| {
                let case = case(seed, rows);
                let result = one(&case);
                (case, result)
            })
            .collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let mut all = run(0);
        all.extend(other.join().expect("the other half panicked"));
        all
    })
}

#[test]
fn interpreter_and_cpu_agree_with_the_reference() {
    for (i, target) in bitsmith_tests::cpu_levels().into_iter().enumerate().take(3) {
        let name = target.name().to_string();
        let device = CpuDevice::with_target(target, 1).unwrap();
        let total = if i == 0 { count() } else { count() / 4 };
        let together = AtomicUsize::new(0);
        let one = |case: &KvCase| {
            let caps = device.caps();
            play(case, caps, &mut |op, schedule, work, args| {
                let compiled = compile_kv(op, schedule, device.target()).map_err(|e| e.to_string())?;
                let grid = grid(op, schedule, work);
                let program = device.load(&compiled.artifact).map_err(|e| e.to_string())?;
                let got = on_device(&device, &program, grid, &args).map_err(|e| e.to_string())?;
                if let KvOp::Attend(op) = op
                    && schedule.heads > 1
                {
                    // A workgroup of its own for each head gives what one for all of them gives.
                    together.fetch_add(1, Ordering::Relaxed);
                    let apart = [grid[0], op.layout.heads as u32, 1];
                    if on_device(&device, &program, apart, &args).map_err(|e| e.to_string())? != got {
                        return Err("heads apart give other bytes than heads together".into());
                    }
                }
                let expected = interpret(&compiled.legal, caps, grid, args)?;
                for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
                    if let Some(byte) = expected.bytes().iter().zip(got).position(|(a, b)| a != b) {
                        return Err(format!("argument {i} differs from the interpreter's at byte {byte}"));
                    }
                }
                Ok(expected)
            })
        };
        report(&name, cases(1000 * i as u64, total, 16, &one));
        let together = together.into_inner();
        println!("{together} kernels of all heads");
        assert!(device.caps().vector_bytes < 64 || together > 0, "{name}: no kernel took all heads");
    }
}

#[test]
fn the_kernels_of_devices_with_threads_agree_with_the_reference() {
    let gpu = |name: &str| *caps::gpu(name).unwrap();
    let small = Caps { name: "small", max_workgroup: 64, max_shared_bytes: 32768, ..gpu("a100") };
    for (i, caps) in [gpu("h200"), small, gpu("mi300x")].iter().enumerate() {
        let one = |case: &KvCase| {
            play(case, caps, &mut |op, schedule, work, args| {
                let kernel = lower(op, schedule, caps).map_err(|e| e.to_string())?;
                let text = kernel.to_string();
                if bitsmith_compiler::ir::parse(&text).map_err(|e| e.to_string())? != kernel {
                    return Err("what was printed parses to another kernel".into());
                }
                interpret(&kernel, caps, grid(op, schedule, work), args)
            })
        };
        report(caps.name, cases(10_000 * (i as u64 + 1), count() / 8, 8, &one));
    }
}
