//! reference = interpreter = HIP on the host shim, over a seeded sample of formats, activations, operations and ragged
//! shapes, on waves of 64 and of 32, under every order of waves; and clang takes each kernel for its device.
//!
//! Where a kernel has no matrix instruction on floats (whose sums may be added in any order), the last two agree bit for bit.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::{CPU_LEVELS, Float8};
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::verify;
use bitsmith_compiler::lower;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Family;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_tests::cases::{self, Case};
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{Launch, Order, Program, Sanitize};
use bitsmith_tests::run;
use std::path::Path;

/// Cases per device; `BITSMITH_HIP_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_HIP_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(80)
}

/// Cases that one compilation takes.
const BATCH: u64 = 20;

struct Prepared {
    case: Case,
    problem: Problem,
    launch: Launch,
    /// What the interpreter made of the legalized kernel.
    legal: Vec<Vec<u8>>,
    exact: bool,
}

fn prepare(target: &HipTarget, seed: u64) -> Prepared {
    // The device's own families, matrix instructions often; and sometimes one of a single thread, whose kernels are sound on
    // any device.
    let one_thread = CPU_LEVELS.iter().find(|caps| caps.name == "x86-64-v3").unwrap();
    let families = if seed % 8 == 3 { one_thread } else { target.caps() };
    let mut case = if seed % 8 > 3 { cases::matrix_case_for(seed, families) } else { cases::case(seed, families) };
    // What the interpreter multiplies stays small.
    case.m = case.m.min(20);
    if let Op::Matmul(op) = &mut case.op
        && seed % 8 > 3
    {
        op.n = op.n.min(72);
    }
    let problem = Problem::random(&case.op, case.m, seed).unwrap();
    let kernel = lower::lower(&case.op, &case.schedule, families).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let caps = target.caps();
    let legal_kernel = bitsmith_compiler::legalize(&kernel, target).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let artifact =
        target.emit(&verify(&legal_kernel, caps).unwrap()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let interpret = |kernel| {
        run::interpret(kernel, caps, &problem, &case.schedule)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}\n{case:?}"))
    };
    let legal = interpret(&legal_kernel);
    within(&problem, case.schedule.family, &legal, &format!("seed {seed}, interpreter: {case:?}"));
    let problem = problem.packed_for(&case.schedule, caps).unwrap();
    let mut args: Vec<ArgValue> = problem.buffers.iter().map(|buffer| ArgValue::filled(buffer.bytes.clone())).collect();
    args.push(ArgValue::I32(problem.m as i32));
    // Batched kernels need names of their own.
    let mut artifact = artifact;
    let entry = format!("case_{seed}");
    let source = clang::source(&artifact).replace(&artifact.entry, &entry);
    artifact.entry = entry;
    let grid = lower::grid(&case.op, &case.schedule, case.m);
    let exact = !source.contains("_mfma_f32_") && !source.contains("_wmma_f32_");
    Prepared { case, launch: Launch { artifact, source, wave: caps.subgroup, grid, args }, problem, legal, exact }
}

fn within(problem: &Problem, family: Family, outputs: &[Vec<u8>], name: &str) {
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    let report = problem.check(family, &outputs, Sample::Everything);
    assert!(report.passed(), "{name}: {}", report.first_wrong.unwrap_or_default());
}

fn agree(device: &str, first: u64, sanitize: Sanitize, orders: &[Order]) {
    let Some(clang) = clang::find("hip_differential") else { return };
    let target = HipTarget::named(device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cases = if sanitize == Sanitize::Nothing { count() } else { count() / 8 };
    let firsts: Vec<u64> = (first..first + cases).step_by(BATCH as usize).collect();
    for pair in firsts.chunks(2) {
        std::thread::scope(|scope| {
            for &start in pair {
                let (clang, target, folder) = (&clang, &target, folder.path());
                let end = (start + BATCH).min(first + cases);
                scope.spawn(move || batch(clang, target, start..end, sanitize, orders, folder));
            }
        });
    }
    println!("{cases} cases for {device}, {sanitize:?}, {} orders", orders.len());
}

fn batch(
    clang: &Path,
    target: &HipTarget,
    seeds: std::ops::Range<u64>,
    sanitize: Sanitize,
    orders: &[Order],
    folder: &Path,
) {
    let device = target.caps().name;
    let prepared: Vec<Prepared> = seeds.clone().map(|seed| prepare(target, seed)).collect();
    let launches: Vec<Launch> = prepared.iter().map(|one| one.launch.clone()).collect();
    if sanitize == Sanitize::Nothing && clang::knows(clang, target.arch()) {
        let text: String = launches.iter().map(|launch| launch.source.as_str()).collect();
        let out = folder.join(format!("{device}-{}", seeds.start));
        let resources = clang::compile(clang, target.arch(), &text, &out).unwrap();
        assert_eq!(resources.len(), launches.len(), "{device}: a remark for every kernel");
    }
    let program = Program::build(clang, launches, target.gpu().float8 == Float8::Fnuz, sanitize).unwrap();
    for &order in orders {
        let results = program.run(order).unwrap_or_else(|why| panic!("{device}, seeds from {}: {why}", seeds.start));
        for (one, result) in prepared.iter().zip(results) {
            let name = format!("seed {} for {device}, {order:?}: {:?}", one.case.seed, one.case);
            let written = one.problem.buffers.iter().map(|buffer| buffer.signature.written);
            let outputs: Vec<Vec<u8>> =
                result.into_iter().zip(written).filter(|&(_, written)| written).map(|(bytes, _)| bytes).collect();
            within(&one.problem, one.case.schedule.family, &outputs, &name);
            if one.exact {
                assert!(outputs == one.legal, "{name}: other bytes than the interpreter's\n{}", one.launch.source);
            }
        }
    }
}

const ORDERS: &[Order] = &[Order::Forward, Order::Reversed, Order::Random(1)];

#[test]
fn cdna_3() {
    agree("mi300x", 0, Sanitize::Nothing, ORDERS);
}

#[test]
fn cdna_4() {
    agree("mi350x", 10_000, Sanitize::Nothing, &[Order::Reversed]);
}

#[test]
fn rdna_3() {
    agree("rx7900xtx", 20_000, Sanitize::Nothing, ORDERS);
}

#[test]
fn rdna_4() {
    agree("rx9070xt", 30_000, Sanitize::Nothing, &[Order::Random(2)]);
}

#[test]
fn cdna_2() {
    agree("mi250", 50_000, Sanitize::Nothing, &[Order::Forward, Order::Random(3)]);
}

#[test]
fn under_sanitizers() {
    agree("mi300x", 40_000, Sanitize::AddressAndUndefined, &[Order::Reversed]);
}
