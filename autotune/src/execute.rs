//! A problem on a device: uploaded once, launched as often as wanted, its outputs brought back.

use crate::problem::{POISON, Problem, is_workspace, workspace_bytes};
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::lower::{Packing, Role, grid, packing, workspace};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::{Buffer, Device, Launch, LaunchArg, Program};

/// A problem whose buffers lie on a device, with a program loaded for it.
pub struct Prepared<'d> {
    device: &'d dyn Device,
    program: Program,
    family: Family,
    grid: [u32; 3],
    m: i32,
    /// Buffers in the order of parameters; weights may have several copies, to be used in turn.
    buffers: Vec<Vec<Buffer>>,
    written: Vec<bool>,
    /// How many of them are the operation's; the others are the schedule's workspace.
    own: usize,
}

impl<'d> Prepared<'d> {
    /// Uploads a problem; weights in `copies` copies, so that launches in turn find the caches cold.
    pub fn new(
        device: &'d dyn Device,
        problem: &Problem,
        artifact: &Artifact,
        schedule: &Schedule,
        copies: usize,
    ) -> Result<Prepared<'d>> {
        let m = i32::try_from(problem.m)
            .map_err(|_| Error::invalid(format!("M is {}; accepted: below 2^31", problem.m)))?;
        let program = device.load(artifact)?;
        let mut buffers = Vec::new();
        // Most schedules take the weights as they are.
        let repacked = match packing(&problem.op, schedule, device.caps()) {
            Packing::N16 => None,
            Packing::Qt16(..) => Some(problem.packed_for(schedule, device.caps())?),
        };
        for buffer in &repacked.as_ref().unwrap_or(problem).buffers {
            let count = if buffer.signature.role == Role::Weights { copies.max(1) } else { 1 };
            let mut list = Vec::with_capacity(count);
            for _ in 0..count {
                let memory = device.allocate(buffer.bytes.len())?;
                device.upload(&memory, 0, &buffer.bytes)?;
                list.push(memory);
            }
            buffers.push(list);
        }
        let used = &repacked.as_ref().unwrap_or(problem).buffers;
        let written = used.iter().map(|b| b.signature.written).collect();
        let own = used.iter().filter(|buffer| !is_workspace(&buffer.signature)).count();
        let family = schedule.family;
        Ok(Prepared { device, program, family, grid: grid(&problem.op, schedule, problem.m), m, buffers, written, own })
    }

    /// Takes another program for the same problem, and what workspace its schedule needs.
    pub fn with_program(&self, artifact: &Artifact, schedule: &Schedule, problem: &Problem) -> Result<Prepared<'d>> {
        let (mut buffers, mut written) = (self.buffers.clone(), self.written.clone());
        buffers.truncate(self.own);
        written.truncate(self.own);
        if let Some(signature) = workspace(&problem.op, schedule) {
            let bytes = workspace_bytes(&signature, problem.m);
            let memory = self.device.allocate(bytes.len())?;
            self.device.upload(&memory, 0, &bytes)?;
            buffers.push(vec![memory]);
            written.push(signature.written);
        }
        Ok(Prepared {
            device: self.device,
            program: self.device.load(artifact)?,
            family: schedule.family,
            grid: grid(&problem.op, schedule, problem.m),
            m: self.m,
            buffers,
            written,
            own: self.own,
        })
    }

    /// The family of the kernel.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Launches once; `turn` chooses the copy of the weights.
    pub fn launch(&self, turn: usize) -> Result<()> {
        self.device.launch(&self.launch_of(turn))
    }

    /// The launch of a turn, for those who record several.
    pub fn launch_of(&self, turn: usize) -> Launch<'_> {
        let mut args: Vec<LaunchArg<'_>> =
            self.buffers.iter().map(|copies| LaunchArg::Buffer(copies[turn % copies.len()].view())).collect();
        args.push(LaunchArg::I32(self.m));
        Launch { program: &self.program, grid: self.grid, args }
    }

    /// Overwrites the outputs, so that what a launch does not write is seen.
    pub fn poison(&self) -> Result<()> {
        for (copies, _) in self.buffers.iter().zip(&self.written).filter(|(_, written)| **written) {
            self.device.upload(&copies[0], 0, &vec![POISON; copies[0].bytes()])?;
        }
        Ok(())
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> Result<Vec<Vec<u8>>> {
        self.device.synchronize()?;
        let mut outputs = Vec::new();
        for (copies, _) in self.buffers.iter().zip(&self.written).filter(|(_, written)| **written) {
            let mut bytes = vec![0; copies[0].bytes()];
            self.device.download(&copies[0], 0, &mut bytes)?;
            outputs.push(bytes);
        }
        Ok(outputs)
    }
}
