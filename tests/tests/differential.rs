//! Invariant 3: reference = interpreter = CPU over a seeded sample of formats, activations, operations and ragged shapes.
//!
//! The interpreter runs the kernel as lowered and as legalized; the CPU runs the legalized one. Legalized, the two agree bit
//! for bit; with the reference they agree within the operation's bound. Both forms print and parse to themselves. Padding of
//! packed weights holds garbage, and on the CPU the answer is the same, bit for bit, as over zeros.

use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::compile;
use bitsmith_compiler::ir::parse;
use bitsmith_runtime::{Device, cpu::CpuDevice};
use bitsmith_tests::{cases, cpu_levels, poison, run};

/// Number of cases; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

/// Runs one case everywhere; returns the largest ratio of an error to its bound.
fn agree(device: &CpuDevice, seed: u64) -> Result<f64, String> {
    let caps = device.caps();
    let case = cases::case(seed, caps);
    let at = |stage: &str, why: String| format!("seed {seed}, {stage}: {why}\n  {case:?}");
    let clean = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    let mut problem = clean.clone();
    poison::padding(&mut problem, seed);
    let compiled = compile(&case.op, &case.schedule, device.target()).map_err(|e| at("compile", e.to_string()))?;
    for kernel in [&compiled.kernel, &compiled.legal] {
        let again = parse(&kernel.to_string()).map_err(|e| at("parse", e.to_string()))?;
        if again != *kernel {
            return Err(at("parse", "what was printed parses to another kernel".into()));
        }
    }
    let check = |stage: &str, outputs: &[Vec<u8>]| {
        let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
        let report = problem.check(case.schedule.family, &outputs, Sample::Everything);
        if report.passed() { Ok(report.worst_ratio) } else { Err(at(stage, report.first_wrong.unwrap_or_default())) }
    };
    let lowered = run::interpret(&compiled.kernel, caps, &problem, &case.schedule).map_err(|e| at("interpreter", e))?;
    let worst = check("interpreter", &lowered)?;
    let legal = run::interpret(&compiled.legal, caps, &problem, &case.schedule).map_err(|e| at("legalized", e))?;
    let launch = |problem: &Problem| {
        let prepared = Prepared::new(device, problem, &compiled.artifact, &case.schedule, 1)
            .map_err(|e| at("load", e.to_string()))?;
        prepared.launch(0).map_err(|e| at("launch", e.to_string()))?;
        prepared.outputs().map_err(|e| at("outputs", e.to_string()))
    };
    let native = launch(&problem)?;
    if native != launch(&clean)? {
        return Err(at("CPU", "garbage in the padding of the weights changes the answer".into()));
    }
    let worst = worst.max(check("CPU", &native)?);
    if legal != native {
        let byte = legal.iter().flatten().zip(native.iter().flatten()).position(|(a, b)| a != b);
        return Err(at("CPU against interpreter", format!("byte {byte:?} differs")));
    }
    Ok(worst)
}

#[test]
fn reference_interpreter_and_cpu_agree() {
    // All cases on the host's own level, a tenth of them on every other one that runs here.
    for (i, target) in cpu_levels().into_iter().enumerate() {
        let device = CpuDevice::with_target(target, 2).unwrap();
        let cases = if i == 0 { count() } else { count().div_ceil(10) };
        let mut failures = Vec::new();
        let mut worst: f64 = 0.0;
        for seed in 0..cases {
            match agree(&device, seed) {
                Ok(ratio) => worst = worst.max(ratio),
                Err(why) => failures.push(why),
            }
        }
        let name = device.caps().name;
        println!("{cases} cases on {name}, worst error {worst:.3} of its bound");
        let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} of {cases} cases on {name} failed:\n{shown}", failures.len());
    }
}
