//! Invariant 3: reference = interpreter = CPU over a seeded sample of formats, activations, operations and ragged shapes.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::CPU_LEVELS;
use bitsmith_compiler::lower;
use bitsmith_tests::{cases, run};

/// Number of cases; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

#[test]
fn reference_and_interpreter_agree() {
    let caps = CPU_LEVELS.iter().find(|c| c.name == "x86-64-v4+vnni").unwrap();
    let mut failures = Vec::new();
    let mut worst: f64 = 0.0;
    for seed in 0..count() {
        let case = cases::case(seed, caps);
        let problem = Problem::random(&case.op, case.m, seed).unwrap();
        let outcome = lower::lower(&case.op, &case.schedule, caps).map_err(|e| e.to_string()).and_then(|kernel| {
            let outputs = run::interpret(&kernel, caps, &problem, &case.schedule)?;
            let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
            let report = problem.check(&outputs, Sample::Everything);
            worst = worst.max(report.worst_ratio);
            if report.passed() { Ok(()) } else { Err(report.first_wrong.unwrap_or_default()) }
        });
        if let Err(why) = outcome {
            failures.push(format!("seed {seed}: {why}\n  {case:?}"));
        }
    }
    println!("{} cases, worst error {worst:.3} of its bound", count());
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases failed:\n{shown}", failures.len(), count());
}
