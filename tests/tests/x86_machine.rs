//! Wide code on the software machine: random kernels, cases of the differential suite and operations on KV caches give the
//! interpreter's bytes, at every wide level, AVX-512 included, whatever this host can run itself.

use bitsmith_autotune::problem::Problem;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, Verified, verify};
use bitsmith_compiler::lower;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{compile, compile_kv};
use bitsmith_tests::random::{Case, Options, kernel};
use bitsmith_tests::x86::Machine;
use bitsmith_tests::{cases, kv, run as interpreter};

const LEVELS: [&str; 5] = ["x86-64-v3", "x86-64-v3+vnni", "x86-64-v4", "x86-64-v4+vnni", "x86-64-v4+vnni+bf16"];

/// Cases per level and suite; `BITSMITH_MACHINE_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_MACHINE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(120)
}

/// Where the first of the cases stands; `BITSMITH_FIRST_SEED` changes it.
fn first() -> u64 {
    std::env::var("BITSMITH_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn proven(kernel: &Kernel) -> Result<Verified<'_>, String> {
    let caps = Caps { subgroup: 1, ..Caps::ANY };
    verify(kernel, &caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// Runs all workgroups of an artifact; gives the bytes of each buffer afterwards (nothing for a scalar).
fn execute(artifact: &Artifact, grid: [u32; 3], args: &[ArgValue]) -> Result<Vec<Vec<u8>>, String> {
    const CODE: u64 = 0x10000;
    const SLOTS: u64 = 0x1000;
    const SCRATCH: u64 = 0x4000_0000;
    let place = |i: usize| 0x1_0000_0000 * (i as u64 + 1);
    let mut machine = Machine::new();
    machine.map(CODE, artifact.payload.bytes().to_vec(), false);
    machine.map(SCRATCH, vec![0xa5; artifact.shared_bytes as usize], true);
    let mut slots = Vec::new();
    for (i, arg) in args.iter().enumerate() {
        slots.push(match arg {
            ArgValue::Buffer(memory) => {
                machine.map(place(i), memory.bytes.clone(), true);
                place(i)
            }
            ArgValue::I32(x) => *x as u32 as u64,
            ArgValue::I64(x) => *x as u64,
            ArgValue::F32(x) => u64::from(x.to_bits()),
        });
    }
    slots.extend(grid.map(u64::from));
    machine.map(SLOTS, slots.iter().flat_map(|slot| slot.to_le_bytes()).collect(), true);
    let total = grid.iter().map(|&n| u64::from(n)).product();
    machine.call(CODE, [SLOTS, SCRATCH, 0, total])?;
    let bytes = |(i, arg): (usize, &ArgValue)| match arg {
        ArgValue::Buffer(_) => machine.mapped(place(i)).to_vec(),
        ArgValue::I32(_) | ArgValue::I64(_) | ArgValue::F32(_) => Vec::new(),
    };
    Ok(args.iter().enumerate().map(bytes).collect())
}

fn random_case(target: &CpuTarget, case: &Case) -> Result<(), String> {
    let legal = target.legalize(&proven(&case.kernel)?).map_err(|error| error.to_string())?;
    let mut expected = case.args.clone();
    let launch = Launch { grid: case.grid, args: &mut expected };
    run(&proven(&legal)?, 1, launch).map_err(|trap| trap.to_string())?;
    let artifact = target.emit(&proven(&legal)?).map_err(|error| error.to_string())?;
    let outputs = execute(&artifact, case.grid, &case.args)?;
    match expected.iter().zip(&outputs).position(|(expected, got)| expected.bytes() != got) {
        Some(i) => Err(format!("argument {i} differs on the machine:\n{}", case.kernel)),
        None => Ok(()),
    }
}

#[test]
fn random_kernels_at_every_wide_level() {
    for level in LEVELS {
        let target = CpuTarget::named(level).unwrap();
        for vector_bytes in [16, 64] {
            let dot2_bf16 = target.caps().features.has(Feature::Dot2Bf16);
            let dot2_bytes = target.caps().features.has(Feature::Dot2);
            let permute_long = vector_bytes == 64 && target.caps().features.has(Feature::PermuteLong);
            let options = Options { vector_bytes, dot2_bf16, dot2_bytes, permute_long, ..Options::CPU };
            for seed in first()..first() + count() {
                if let Err(why) = random_case(&target, &kernel(seed, options)) {
                    panic!("seed {seed}, vectors of {vector_bytes} bytes, {level}: {why}");
                }
            }
        }
    }
}

/// Does something at every level, on a thread each.
fn at_every_level(each: impl Fn(&str, &CpuTarget) + Sync) {
    std::thread::scope(|scope| {
        for level in LEVELS {
            let each = &each;
            scope.spawn(move || each(level, &CpuTarget::named(level).unwrap()));
        }
    });
}

fn family_case(target: &CpuTarget, seed: u64) -> Result<(), String> {
    let case = cases::case(seed, target.caps());
    let problem = Problem::random(&case.op, case.m, seed).map_err(|error| error.to_string())?;
    // The machine takes a microsecond or so per instruction.
    if problem.operations() > 200_000.0 {
        return Ok(());
    }
    let compiled = compile(&case.op, &case.schedule, target).map_err(|error| error.to_string())?;
    let expected = interpreter::interpret(&compiled.legal, target.caps(), &problem, &case.schedule)?;
    let mut args: Vec<ArgValue> = problem.buffers.iter().map(|buffer| ArgValue::filled(buffer.bytes.clone())).collect();
    args.push(ArgValue::I32(problem.m as i32));
    let outputs = execute(&compiled.artifact, lower::grid(&problem.op, &case.schedule, problem.m), &args)?;
    let written = problem.buffers.iter().zip(&outputs).filter(|(buffer, _)| buffer.signature.written);
    let got: Vec<&Vec<u8>> = written.map(|(_, bytes)| bytes).collect();
    if got.iter().zip(&expected).all(|(got, expected)| *got == expected) {
        return Ok(());
    }
    Err(format!("differs from the interpreter: {case:?}"))
}

#[test]
fn families_at_every_wide_level() {
    at_every_level(|level, target| {
        for seed in first()..first() + count() {
            if let Err(why) = family_case(target, seed) {
                panic!("seed {seed}, {level}: {why}");
            }
        }
    });
}

fn cache_case(target: &CpuTarget, seed: u64) -> Result<f64, String> {
    let caps = target.caps();
    kv::play(&kv::case(seed, 4), caps, &mut |op, schedule, work, args| {
        let compiled = compile_kv(op, schedule, target).map_err(|error| error.to_string())?;
        let grid = lower::kv::grid(op, schedule, work);
        let outputs = execute(&compiled.artifact, grid, &args)?;
        let expected = kv::interpret(&compiled.legal, caps, grid, args)?;
        match expected.iter().zip(&outputs).position(|(expected, got)| expected.bytes() != got) {
            Some(i) => Err(format!("{}: argument {i} differs from the interpreter's", op.name())),
            None => Ok(expected),
        }
    })
}

#[test]
fn caches_at_every_wide_level() {
    // A case is several launches over whole caches: a tenth of the others takes as long.
    let count = count().div_ceil(10);
    at_every_level(|level, target| {
        for seed in 80_000 + first()..80_000 + first() + count {
            if let Err(why) = cache_case(target, seed) {
                panic!("seed {seed}, {level}: {why}");
            }
        }
    });
}
