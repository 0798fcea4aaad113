//! interpreter = PTX machine: what is emitted for NVIDIA GPUs runs on the CPU and gives the interpreter's bytes, under
//! every schedule of the machine's warps.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::legalize;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_emulate::Schedule;
use bitsmith_tests::machine;
use bitsmith_tests::random::{Case, Options, kernel};

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
