//! Random kernels from stage to stage: proven, on the interpreter, on a device.

use crate::random::Case;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, Verified, verify};
use bitsmith_runtime::{self as runtime, Buffer, Device, LaunchArg};

/// The proof that a kernel is sound on a device with subgroups of so many threads.
pub fn proven(kernel: &Kernel, subgroup: u32) -> Result<Verified<'_>, String> {
    let caps = Caps { subgroup, ..Caps::ANY };
    verify(kernel, &caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// What a random case's buffers hold after the interpreter ran a form of its kernel.
pub fn interpret(kernel: &Kernel, case: &Case) -> Result<Vec<ArgValue>, String> {
    let mut args = case.args.clone();
    let launch = Launch { grid: case.grid, args: &mut args };
    run(&proven(kernel, case.subgroup)?, case.subgroup, launch).map_err(|trap| trap.to_string())?;
    Ok(args)
}

/// What a random case's buffers hold after a device ran an artifact; empty for scalars.
pub fn on_device(device: &dyn Device, artifact: &Artifact, case: &Case) -> bitsmith_compiler::Result<Vec<Vec<u8>>> {
    let program = device.load(artifact)?;
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
