//! Seeded random kernels through every stage: print, parse, verify, legalize, interpreter, CPU. The bytes are the same.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, Verified, parse, verify};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_runtime::{self as runtime, Buffer, Device, LaunchArg};
use bitsmith_tests::cpu_levels;
use bitsmith_tests::random::{Case, Options, kernel};

/// Kernels per set of options, 10,000 in all; `BITSMITH_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5000)
}

fn proven(kernel: &Kernel) -> Result<Verified<'_>, String> {
    let caps = Caps { subgroup: 1, ..Caps::ANY };
    verify(kernel, &caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn interpret(kernel: &Kernel, case: &Case) -> Result<Vec<ArgValue>, String> {
    let mut args = case.args.clone();
    let launch = Launch { grid: case.grid, args: &mut args };
    run(&proven(kernel)?, 1, launch).map_err(|trap| trap.to_string())?;
    Ok(args)
}

fn on_cpu(
    device: &CpuDevice,
    target: &dyn Target,
    kernel: &Kernel,
    case: &Case,
) -> bitsmith_compiler::Result<Vec<Vec<u8>>> {
    let verified = proven(kernel).map_err(bitsmith_compiler::Error::invalid)?;
    let program = device.load(&target.emit(&verified)?)?;
    let mut buffers: Vec<Option<Buffer>> = Vec::new();
    for arg in &case.args {
        buffers.push(match arg {
            ArgValue::Buffer(memory) => {
                let buffer = device.allocate(memory.bytes.len())?;
                device.upload(&buffer, 0, &memory.bytes)?;
                Some(buffer)
            }
            ArgValue::I32(_) | ArgValue::I64(_) | ArgValue::F32(_) => None,
        });
    }
    let args = case.args.iter().zip(&buffers).map(|(arg, buffer)| match (arg, buffer) {
        (_, Some(buffer)) => LaunchArg::Buffer(buffer.view()),
        (ArgValue::I32(x), _) => LaunchArg::I32(*x),
        (ArgValue::I64(x), _) => LaunchArg::I64(*x),
        (ArgValue::F32(x), _) => LaunchArg::F32(*x),
        (ArgValue::Buffer(_), None) => unreachable!("every buffer was uploaded"),
    });
    device.launch(&runtime::Launch { program: &program, grid: case.grid, args: args.collect() })?;
    let mut outputs = Vec::new();
    for buffer in &buffers {
        let mut bytes = vec![0; buffer.as_ref().map_or(0, Buffer::bytes)];
        if let Some(buffer) = buffer {
            device.download(buffer, 0, &mut bytes)?;
        }
        outputs.push(bytes);
    }
    Ok(outputs)
}

/// Everything that one kernel goes through.
fn stages(device: &CpuDevice, case: &Case) -> Result<(), String> {
    let text = case.kernel.to_string();
    let again = parse(&text).map_err(|fault| format!("{fault}"))?;
    if again != case.kernel {
        return Err(format!("parsed to another kernel:\n{text}"));
    }
    let expected = interpret(&case.kernel, case)?;
    let legal = device.target().legalize(&proven(&case.kernel)?).map_err(|e| e.to_string())?;
    if interpret(&legal, case)? != expected {
        return Err(format!("legalized to another kernel:\n{text}"));
    }
    let outputs = on_cpu(device, device.target(), &legal, case).map_err(|e| e.to_string())?;
    match expected.iter().zip(&outputs).position(|(expected, got)| expected.bytes() != got) {
        Some(i) => {
            let byte = expected[i].bytes().iter().zip(&outputs[i]).position(|(a, b)| a != b);
            Err(format!("argument {i} differs at byte {byte:?} on the CPU:\n{text}"))
        }
        None => Ok(()),
    }
}

/// All seeds on the host's own level, a fifth of them on every other one that runs here.
fn check(options: Options) {
    for (i, target) in cpu_levels().into_iter().enumerate() {
        if target.caps().vector_bytes >= options.vector_bytes.min(32) {
            check_on(target, options, if i == 0 { seeds() } else { seeds().div_ceil(5) });
        }
    }
}

fn check_on(target: CpuTarget, options: Options, seeds: u64) {
    let device = CpuDevice::with_target(target, 1).unwrap();
    let first: u64 = std::env::var("BITSMITH_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let case = kernel(seed, options);
        if let Err(why) = stages(&device, &case) {
            panic!("seed {seed} of {options:?} on {:?}: {why}", device.target());
        }
    }
}

#[test]
fn kernels_for_the_cpu() {
    check(Options::CPU);
}

#[test]
fn kernels_without_narrow_vectors() {
    check(Options { narrow_vectors: false, ..Options::CPU });
}

#[test]
fn kernels_with_wide_vectors() {
    check(Options { vector_bytes: 64, ..Options::CPU });
}
