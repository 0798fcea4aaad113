//! Compiled kernels of a cache's operations, and the small buffers that their launches take.

use crate::{Buffer, Device, Launch, LaunchArg, Program};
use bitsmith_compiler::caps::Feature;
use bitsmith_compiler::lower::kv::{choose, grid};
use bitsmith_compiler::op::kv::KvOp;
use bitsmith_compiler::schedule::KvSchedule;
use bitsmith_compiler::{Result, compile_kv};
use std::collections::HashMap;
use std::sync::Arc;

/// Kernels, made when they are first used, and scratch memory by name.
pub struct Programs {
    device: Arc<dyn Device>,
    made: Vec<(KvOp, KvSchedule, Program)>,
    scratch: HashMap<&'static str, Buffer>,
}

impl Programs {
    /// Nothing yet.
    pub fn new(device: Arc<dyn Device>) -> Programs {
        Programs { device, made: Vec::new(), scratch: HashMap::new() }
    }

    /// Query rows of a work item that a kernel takes well.
    pub fn most_rows(&self) -> usize {
        if self.device.caps().features.has(Feature::Workgroups) { 8 } else { 32 }
    }

    /// Work items that run at a time, about.
    pub fn workers(&self) -> usize {
        match self.device.caps().gpu {
            Some(gpu) => gpu.units as usize,
            None => self.device.info().threads.max(1),
        }
    }

    /// At least so many bytes; contents are undefined.
    pub fn scratch(&mut self, name: &'static str, bytes: usize) -> Result<Buffer> {
        if let Some(buffer) = self.scratch.get(name).filter(|buffer| buffer.bytes() >= bytes) {
            return Ok(buffer.clone());
        }
        let buffer = self.device.allocate(bytes.max(64).next_power_of_two())?;
        self.scratch.insert(name, buffer.clone());
        Ok(buffer)
    }

    /// A work list in device memory.
    pub fn list(&mut self, name: &'static str, fields: &[i32]) -> Result<Buffer> {
        let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        self.filled(name, &bytes)
    }

    /// Numbers in device memory.
    pub fn floats(&mut self, name: &'static str, numbers: &[f32]) -> Result<Buffer> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.filled(name, &bytes)
    }

    fn filled(&mut self, name: &'static str, bytes: &[u8]) -> Result<Buffer> {
        // Launches before this one are done with the list: an upload waits for them.
        let buffer = self.scratch(name, bytes.len())?;
        self.device.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Launches an operation over so many work records.
    pub fn launch(&mut self, op: &KvOp, work: usize, args: Vec<LaunchArg<'_>>) -> Result<()> {
        let found = self.made.iter().position(|(made, ..)| made == op);
        let index = match found {
            Some(index) => index,
            None => {
                let schedule = choose(op, self.device.caps());
                let compiled = compile_kv(op, &schedule, self.device.target())?;
                self.made.push((*op, schedule, self.device.load(&compiled.artifact)?));
                self.made.len() - 1
            }
        };
        let (_, schedule, program) = &self.made[index];
        self.device.launch(&Launch { program, grid: grid(op, schedule, work), args })
    }

    /// Launches an operation that takes the number of its records.
    pub fn flat(&mut self, op: &KvOp, work: usize, mut args: Vec<LaunchArg<'_>>) -> Result<()> {
        if work == 0 {
            return Ok(());
        }
        args.push(LaunchArg::I32(work as i32));
        self.launch(op, work, args)
    }
}
