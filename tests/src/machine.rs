//! Runs a PTX artifact on the PTX machine with the interpreter's arguments.

use bitsmith_compiler::artifact::{Artifact, Preparation};
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
    let mut args = args.to_vec();
    if let Some(first) = &artifact.preparation {
        prepare(&module, artifact, first, &mut args, schedule)?;
    }
    let args = &args[..];
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

/// Runs the entry that a launch runs first; what it writes, and which bytes of it, goes into the launch's arguments.
fn prepare(
    module: &Module,
    artifact: &Artifact,
    first: &Preparation,
    args: &mut [ArgValue],
    schedule: Schedule,
) -> Result<(), String> {
    let entry = module.kernel(&first.entry).map_err(|e| e.to_string())?;
    let places = first.places(&artifact.args).map_err(|e| e.to_string())?;
    let mut launch = Launch { grid: first.grid, block: first.workgroup, schedule, ..Launch::default() };
    for (own, &place) in first.args.iter().zip(&places) {
        let ArgValue::Buffer(memory) = &args[place] else { return Err(format!("`{}` is no buffer", own.name)) };
        let valid = match &memory.written {
            Some(written) => written.iter().map(|&written| written as u8).collect(),
            None => vec![1; memory.bytes.len()],
        };
        let (name, data, writable) = (own.name.clone(), memory.bytes.clone(), own.kind.writes());
        launch.arguments.push(Argument::buffer(launch.buffers.len()));
        launch.buffers.push(Buffer { name, data, valid, writable });
    }
    let outcome = entry.run(&launch).map_err(|fault| format!("{}: {fault}", first.entry))?;
    for (buffer, place) in outcome.buffers.into_iter().zip(places) {
        if let ArgValue::Buffer(memory) = &mut args[place] {
            memory.bytes = buffer.data;
            if let Some(written) = &mut memory.written {
                *written = buffer.valid.iter().map(|&valid| valid != 0).collect();
            }
        }
    }
    Ok(())
}
