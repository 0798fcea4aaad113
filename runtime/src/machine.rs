//! The PTX machine as a device: PTX for NVIDIA GPUs runs on this CPU, lane by lane, slowly and watched.
//!
//! Reads artifacts whose payload is PTX. Always holds: a race, a missing barrier, a read of what nothing wrote and an access
//! beyond an argument's range end a launch with an error that names the line of the text. It stands in for a GPU where there
//! is none: whatever runs on `cuda:0` runs here in the same way, so that both can be compared.

use crate::device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, check_launch};
use bitsmith_compiler::artifact::{Arg, ArgKind, Artifact, Payload};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::{PtxTarget, STATIC_SHARED};
use bitsmith_compiler::{Error, Result};
use bitsmith_emulate as machine;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A PTX machine that stands for one GPU.
#[derive(Debug)]
pub struct MachineDevice {
    target: PtxTarget,
}

/// Bytes of a buffer, and which of them hold something.
struct Memory(Mutex<(Vec<u8>, Vec<u8>)>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, Vec<u8>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that has been parsed.
struct Text(machine::Module);

impl MachineDevice {
    /// The machine of a device (`h200`) or an architecture (`sm_90a`).
    pub fn new(target: &str) -> Result<MachineDevice> {
        Ok(MachineDevice { target: PtxTarget::named(target)? })
    }
}

fn own(buffer: &Buffer) -> Result<&Memory> {
    buffer.memory.downcast_ref().ok_or_else(|| Error::invalid("the buffer belongs to another device"))
}

/// What the machine says of a kernel.
fn fault(artifact: &Artifact, what: impl std::fmt::Display) -> Error {
    Error::Tool {
        command: "the PTX machine".into(),
        stderr: what.to_string(),
        path: format!("the PTX of {} for {}", artifact.entry, artifact.target),
    }
}

impl Device for MachineDevice {
    fn info(&self) -> DeviceInfo {
        let caps = self.target.caps();
        DeviceInfo {
            name: format!("ptx:{}", caps.name),
            model: format!("PTX machine as {}", caps.gpu.map_or(caps.name, |gpu| gpu.model)),
            target: caps.name.into(),
            threads: 1,
            features: caps.features.iter().map(|f| f.name().to_string()).collect(),
            notes: Vec::new(),
        }
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(Memory(Mutex::new((vec![0; bytes], vec![0; bytes])))), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let mut memory = own(buffer)?.lock();
        memory.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        memory.1[offset..offset + bytes.len()].fill(1);
        Ok(())
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        bytes.copy_from_slice(&own(buffer)?.lock().0[offset..offset + bytes.len()]);
        Ok(())
    }

    fn accepts(&self, target: &str) -> Option<u32> {
        let made_for = PtxTarget::named(target).ok()?;
        let same = made_for.arch().name == self.target.arch().name;
        same.then(|| u32::from(target.eq_ignore_ascii_case(self.target.caps().name)))
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        if artifact.target != self.target.arch().name {
            return Err(Error::Unsupported(format!(
                "{} is code for {}; this machine stands for {}",
                artifact.entry,
                artifact.target,
                self.target.arch().name
            )));
        }
        let Payload::Text(text) = &artifact.payload else {
            return Err(Error::invalid(format!("{} is no PTX text", artifact.entry)));
        };
        let module = machine::Module::load(text).map_err(|error| fault(artifact, error))?;
        // Every instruction must be known before anything runs.
        for entry in artifact.preparation.iter().map(|first| &first.entry).chain([&artifact.entry]) {
            module.kernel(entry).map_err(|error| fault(artifact, error))?;
        }
        Ok(Program { code: Arc::new(Text(module)), artifact: Arc::new(artifact.clone()) })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch)?;
        let artifact = &*launch.program.artifact;
        let module = launch.program.code.downcast_ref::<Text>();
        let Text(module) = module.ok_or_else(|| Error::invalid("the program belongs to another device"))?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        if let Some(first) = &artifact.preparation {
            let given: Vec<LaunchArg<'_>> =
                first.places(&artifact.args)?.into_iter().map(|place| launch.args[place]).collect();
            let run = (&*first.entry, first.grid, first.workgroup, first.shared_bytes);
            run_entry(module, artifact, run, first.args.iter().zip(&given))?;
        }
        let run = (&*artifact.entry, launch.grid, artifact.workgroup, artifact.shared_bytes);
        run_entry(module, artifact, run, artifact.args.iter().zip(&launch.args))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// Runs an entry of a module: its name, workgroups, threads and bytes of shared memory.
fn run_entry<'a>(
    module: &machine::Module,
    artifact: &Artifact,
    (entry, grid, block, shared_bytes): (&str, [u32; 3], [u32; 3], u64),
    args: impl Iterator<Item = (&'a Arg, &'a LaunchArg<'a>)> + Clone,
) -> Result<()> {
    let kernel = module.kernel(entry).map_err(|error| fault(artifact, error))?;
    let mut run = machine::Launch {
        grid,
        block,
        dynamic_shared: if shared_bytes > STATIC_SHARED { shared_bytes as u32 } else { 0 },
        ..machine::Launch::default()
    };
    for (arg, given) in args.clone() {
        let argument = match given {
            LaunchArg::Buffer(view) => {
                let range = view.offset..view.offset + view.bytes;
                let memory = own(view.buffer)?.lock();
                run.buffers.push(machine::Buffer {
                    name: arg.name.clone(),
                    data: memory.0[range.clone()].to_vec(),
                    valid: memory.1[range].to_vec(),
                    writable: !matches!(arg.kind, ArgKind::Read { .. }),
                });
                machine::Argument::buffer(run.buffers.len() - 1)
            }
            LaunchArg::I32(x) => machine::Argument::Bytes(x.to_le_bytes().to_vec()),
            LaunchArg::I64(x) => machine::Argument::Bytes(x.to_le_bytes().to_vec()),
            LaunchArg::F32(x) => machine::Argument::Bytes(x.to_le_bytes().to_vec()),
        };
        run.arguments.push(argument);
    }
    let outcome = kernel.run(&run).map_err(|found| fault(artifact, found))?;
    let views = args.filter_map(|(_, arg)| if let LaunchArg::Buffer(view) = arg { Some(view) } else { None });
    for (view, after) in views.zip(outcome.buffers).filter(|(_, after)| after.writable) {
        let mut memory = own(view.buffer)?.lock();
        memory.0[view.offset..view.offset + view.bytes].copy_from_slice(&after.data);
        memory.1[view.offset..view.offset + view.bytes].copy_from_slice(&after.valid);
    }
    Ok(())
}
