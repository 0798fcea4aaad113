//! Runs a PTX artifact on the PTX machine with the interpreter's arguments.

use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{Access, Kernel, ParamKind};
use bitsmith_compiler::target::ptx::STATIC_SHARED;
use bitsmith_emulate::{Argument, Buffer, Launch, Module, Schedule};

/// The buffers after a launch, empty for scalars; or the fault, with the line of the text it names.
pub fn run(
    kernel: &Kernel,
    artifact: &Artifact,
    grid: [u32; 3],
    args: &[ArgValue],
    schedule: Schedule,
) -> Result<Vec<Vec<u8>>, String> {
    let text = std::str::from_utf8(artifact.payload.bytes()).map_err(|e| e.to_string())?;
    let module = Module::load(text).map_err(|e| e.to_string())?;
    let entry = module.kernel(&artifact.entry).map_err(|e| e.to_string())?;
    let mut launch = Launch {
        grid,
        block: artifact.workgroup,
        dynamic_shared: if artifact.shared_bytes > STATIC_SHARED { artifact.shared_bytes as u32 } else { 0 },
        schedule,
        ..Launch::default()
    };
    for (param, arg) in kernel.params.iter().zip(args) {
        let argument = match arg {
            ArgValue::Buffer(memory) => {
                let writable = !matches!(param.kind, ParamKind::Buffer { access: Access::Read, .. });
                let valid = match &memory.written {
                    Some(written) => written.iter().map(|&written| written as u8).collect(),
                    None => vec![1; memory.bytes.len()],
                };
                launch.buffers.push(Buffer { name: param.name.clone(), data: memory.bytes.clone(), valid, writable });
                Argument::buffer(launch.buffers.len() - 1)
            }
            ArgValue::I32(value) => Argument::Bytes(value.to_le_bytes().to_vec()),
            ArgValue::I64(value) => Argument::Bytes(value.to_le_bytes().to_vec()),
            ArgValue::F32(value) => Argument::Bytes(value.to_le_bytes().to_vec()),
        };
        launch.arguments.push(argument);
    }
    let outcome = entry.run(&launch).map_err(|fault| format!("{fault}"))?;
    let mut buffers = outcome.buffers.into_iter();
    Ok(args
        .iter()
        .map(|arg| match arg {
            ArgValue::Buffer(_) => buffers.next().map(|buffer| buffer.data).unwrap_or_default(),
            ArgValue::I32(_) | ArgValue::I64(_) | ArgValue::F32(_) => Vec::new(),
        })
        .collect())
}
