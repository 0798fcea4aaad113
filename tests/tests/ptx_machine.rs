//! reference = interpreter = PTX machine: what is emitted for NVIDIA GPUs runs on the CPU and gives the interpreter's
//! bytes, under every schedule of the machine's warps.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Asynchronous, Block, Inst, Kernel, UnOp, verify};
use bitsmith_compiler::lower::families;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_compiler::{compile, dtype::DType, legalize, lower};
use bitsmith_emulate::Schedule;
use bitsmith_tests::random::{Case, Options, kernel};
use bitsmith_tests::{cases, machine, run as interpreter};
use std::collections::BTreeMap;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The buffers after a launch of a random kernel on the interpreter.
fn interpret(kernel: &Kernel, case: &Case) -> Result<Vec<Vec<u8>>, String> {
    let caps = Caps { subgroup: case.subgroup, ..Caps::ANY };
    let verified = verify(kernel, &caps)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let mut args = case.args.clone();
    run(&verified, case.subgroup, Launch { grid: case.grid, args: &mut args }).map_err(|trap| trap.to_string())?;
    Ok(args.iter().map(|arg: &ArgValue| arg.bytes().to_vec()).collect())
}

/// One random kernel for one device, under one of the schedules.
fn random_kernel(target: &PtxTarget, seed: u64, options: Options) -> Result<(), String> {
    let case = kernel(seed, options);
    let expected = interpret(&case.kernel, &case)?;
    let legal = legalize(&case.kernel, target).map_err(|e| e.to_string())?;
    if interpret(&legal, &case)? != expected {
        return Err("legalized to another kernel".into());
    }
    let verified = verify(&legal, target.caps()).map_err(|faults| format!("{faults:?}"))?;
    let artifact = target.emit(&verified).map_err(|e| e.to_string())?;
    let text = || String::from_utf8_lossy(artifact.payload.bytes()).into_owned();
    let schedules = Schedule::all();
    let schedule = schedules[seed as usize % schedules.len()];
    let found = machine::run(&legal, &artifact, case.grid, &case.args, schedule);
    let found = found.map_err(|fault| format!("{fault} under {schedule:?}\n{}", text()))?;
    match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(argument) => {
            let byte = expected[argument].iter().zip(&found[argument]).position(|(a, b)| a != b);
            Err(format!("argument {argument} differs at byte {byte:?} under {schedule:?}\n{}", text()))
        }
    }
}

fn random_kernels(options: Options) {
    let targets = ["sm_80", "sm_89", "sm_90a"].map(|name| PtxTarget::named(name).unwrap());
    for seed in 0..number("BITSMITH_SEEDS", 300) {
        let target = &targets[seed as usize % targets.len()];
        if let Err(why) = random_kernel(target, seed, options) {
            panic!("seed {seed} for {} of {options:?}: {why}", target.arch().name);
        }
    }
}

#[test]
fn random_kernels_of_two_warps() {
    random_kernels(Options { threads: 64, subgroup: 32, ..Options::SIMT });
}

#[test]
fn random_kernels_of_one_thread() {
    random_kernels(Options { vector_bytes: 64, ..Options::SIMT_ALONE });
}

/// Whether the IR leaves an instruction of a kernel some freedom in the last bits: the matrix instructions' order of float
/// sums, and `exp2`.
fn free(block: &Block) -> bool {
    block.statements.iter().any(|statement| match &statement.inst {
        Inst::Un(UnOp::Exp2, _) => true,
        Inst::Mma { shape, .. } => shape.acc == DType::F32,
        Inst::Asynchronous(inner) => {
            matches!(&**inner, Asynchronous::Mma { shape, .. } if shape.acc == DType::F32)
        }
        Inst::For(inner) => free(&inner.body),
        Inst::If(inner) => free(&inner.then) || free(&inner.otherwise),
        _ => false,
    })
}

/// One operation for one device; returns its family and the largest ratio of an error to its bound.
fn operation(target: &PtxTarget, seed: u64) -> Result<(&'static str, f64), String> {
    let caps = target.caps();
    let mut case = cases::case(seed, caps);
    // Every other case is one that matrix families know.
    let aligned = seed / 2 % 2 == 1;
    if aligned {
        (case.op, case.m) = cases::matrix_case(seed);
    }
    // Each family that can serve gets its turn, however small its space.
    let mut able = families(&case.op, caps).map_err(|e| e.to_string())?;
    let matrix = lower::matrix_families(&case.op, caps, case.m);
    if aligned && !matrix.is_empty() {
        able.clear();
    }
    able.extend(matrix);
    let mut rng = fastrand::Rng::with_seed(seed);
    let family = able[rng.usize(..able.len())];
    let space = (family.space)(&case.op, caps, case.m);
    if space.is_empty() {
        return Ok((family.family.name(), 0.0));
    }
    case.schedule = space[rng.usize(..space.len())];
    let at = |stage: &str, why: String| format!("seed {seed} on {}, {stage}: {why}\n  {case:?}", caps.name);
    let problem = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    let problem = problem.packed_for(&case.schedule, caps).map_err(|e| at("packing", e.to_string()))?;
    let compiled = compile(&case.op, &case.schedule, target).map_err(|e| at("compile", e.to_string()))?;
    let legal = &compiled.legal;
    let expected = interpreter::interpret(legal, caps, &problem, &case.schedule).map_err(|e| at("interpreter", e))?;
    let check = |stage: &str, outputs: &[Vec<u8>]| {
        let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
        let report = problem.check(case.schedule.family, &outputs, Sample::Everything);
        if report.passed() { Ok(report.worst_ratio) } else { Err(at(stage, report.first_wrong.unwrap_or_default())) }
    };
    let mut worst = check("interpreter against reference", &expected)?;
    let args = interpreter::arguments(&problem);
    let grid = lower::grid(&case.op, &case.schedule, case.m);
    let free = free(&legal.body);
    for schedule in Schedule::all() {
        let stage = format!("PTX machine under {schedule:?}");
        let found = machine::run(legal, &compiled.artifact, grid, &args, schedule);
        let found = found.map_err(|fault| at(&stage, fault))?;
        let written = found.iter().zip(&problem.buffers).filter(|(_, buffer)| buffer.signature.written);
        let outputs: Vec<Vec<u8>> = written.map(|(bytes, _)| bytes.clone()).collect();
        if free {
            worst = worst.max(check(&stage, &outputs)?);
        } else if outputs != expected {
            return Err(at(&stage, "other bytes than the interpreter's".into()));
        }
    }
    Ok((case.schedule.family.name(), worst))
}

/// The suite takes two minutes of two cores; `BITSMITH_CASES` changes the number of cases.
#[test]
fn reference_interpreter_and_machine_agree() {
    let count = number("BITSMITH_CASES", 640);
    let targets = ["sm_80", "sm_89", "sm_90a"].map(|name| PtxTarget::named(name).unwrap());
    let half = |first: u64| {
        let mut results = Vec::new();
        for seed in (first..count).step_by(2) {
            results.push(operation(&targets[(seed / 2) as usize % targets.len()], seed));
        }
        results
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut results = half(0);
        results.extend(other.join().expect("the other half panicked"));
        results
    });
    let mut families = BTreeMap::new();
    let mut worst: f64 = 0.0;
    let mut failures = Vec::new();
    for result in results {
        match result {
            Ok((family, ratio)) => {
                *families.entry(family).or_insert(0) += 1;
                worst = worst.max(ratio);
            }
            Err(why) => failures.push(why),
        }
    }
    println!("{count} cases, worst error {worst:.3} of its bound, by family {families:?}");
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{shown}", failures.len());
    for family in ["spread", "block", "mma", "panel", "dense", "ring", "decode", "rows"] {
        assert!(families.contains_key(family), "no case of family {family}");
    }
}
