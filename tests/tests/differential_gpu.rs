//! Invariant 3 for devices with workgroups of many threads: reference = interpreter over a seeded sample of formats,
//! activations, operations and ragged shapes, in subgroups of 32 and of 64. The interpreter runs every thread, and traps on
//! races, barriers that some threads miss, reads of what nothing wrote, and accesses past the end of a buffer.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::{self, Caps};
use bitsmith_compiler::ir::parse;
use bitsmith_compiler::lower::{MATRIX_FAMILIES, families, lower};
use bitsmith_tests::{cases, run};
use std::collections::BTreeMap;

/// Number of cases; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(800)
}

/// Devices that differ in what families may ask for: with and without matrix instructions, subgroups of 32 and 64.
fn devices() -> Vec<Caps> {
    let gpu = |name: &str| *caps::gpu(name).unwrap();
    let plain = Caps { name: "plain", features: gpu("a100").features.without(caps::Feature::Subgroups), ..gpu("a100") };
    let small = Caps { name: "small", max_workgroup: 256, max_shared_bytes: 16384, matrix: &[], ..plain };
    vec![gpu("a100"), gpu("h200"), small, Caps { name: "wave64", subgroup: 64, ..small }]
}

/// Runs one case of the families that serve everything; returns the family and the largest ratio of an error to its bound.
fn agree(device: &Caps, seed: u64) -> Result<(&'static str, f64), String> {
    let mut case = cases::case(seed, device);
    // Each family that can serve gets its turn, however small its space.
    let able = families(&case.op, device).map_err(|e| e.to_string())?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let space = (able[rng.usize(..able.len())].space)(&case.op, device, case.m);
    case.schedule = space[rng.usize(..space.len())];
    check(device, &case)
}

/// Runs one case; returns its family and the largest ratio of an error to its bound.
fn check(device: &Caps, case: &cases::Case) -> Result<(&'static str, f64), String> {
    let seed = case.seed;
    let at = |stage: &str, why: String| format!("seed {seed} on {}, {stage}: {why}\n  {case:?}", device.name);
    let problem = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    let kernel = lower(&case.op, &case.schedule, device).map_err(|e| at("lower", e.to_string()))?;
    if parse(&kernel.to_string()).map_err(|e| at("parse", e.to_string()))? != kernel {
        return Err(at("parse", "what was printed parses to another kernel".into()));
    }
    let outputs = run::interpret(&kernel, device, &problem, &case.schedule).map_err(|e| at("interpreter", e))?;
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    let report = problem.check(case.schedule.family, &outputs, Sample::Everything);
    if report.passed() {
        Ok((case.schedule.family.name(), report.worst_ratio))
    } else {
        Err(at("reference", report.first_wrong.unwrap_or_default()))
    }
}

#[test]
fn reference_and_interpreter_agree() {
    let (devices, mut failures) = (devices(), Vec::new());
    let mut worst: f64 = 0.0;
    let mut families = BTreeMap::new();
    for seed in 0..count() {
        match agree(&devices[seed as usize % devices.len()], seed) {
            Ok((family, ratio)) => {
                worst = worst.max(ratio);
                *families.entry(family).or_insert(0) += 1;
            }
            Err(why) => failures.push(why),
        }
    }
    println!("{} cases, worst error {worst:.3} of its bound, by family {families:?}", count());
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases failed:\n{shown}", failures.len(), count());
    for family in ["spread", "block", "decode", "rows"] {
        assert!(families.contains_key(family), "no case of family {family}");
    }
}

#[test]
fn reference_and_matrix_families_agree() {
    let device = caps::gpu("a100").unwrap();
    let (mut failures, mut served, mut worst) = (Vec::new(), 0, 0.0f64);
    let total = count() / 4;
    for seed in 0..total {
        let (op, m) = cases::matrix(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        for family in MATRIX_FAMILIES.iter().filter(|family| (family.refuses)(&op, device).is_none()) {
            let space = (family.space)(&op, device, m);
            // Some families are for many rows only.
            if space.is_empty() {
                continue;
            }
            let schedule = space[rng.usize(..space.len())];
            served += 1;
            match check(device, &cases::Case { seed, op, m, schedule }) {
                Ok((_, ratio)) => worst = worst.max(ratio),
                Err(why) => failures.push(why),
            }
        }
    }
    println!("{served} matrix cases, worst error {worst:.3} of its bound");
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {served} cases failed:\n{shown}", failures.len());
    assert!(served * 2 > total, "{served} of {total} cases are served");
}
