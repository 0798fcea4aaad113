//! Compiled kernels of a cache's operations, and the small buffers that their launches take.

use crate::bundle::Kernels;
use crate::{Buffer, Device, Launch, LaunchArg, Program};
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::lower::kv::{choose, grid};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, KvOp};
use bitsmith_compiler::schedule::KvSchedule;
use bitsmith_compiler::{Result, compile_kv};
use std::collections::HashMap;
use std::sync::Arc;

/// Where kernels come from.
enum Source {
    /// The compiler, when one is first used.
    Compiler,
    /// A bundle, which has what it has.
    Bundle(Arc<Kernels>),
}

/// Query rows of a work item that a kernel takes well.
pub fn most_rows(caps: &Caps) -> usize {
    if caps.features.has(Feature::Workgroups) { 8 } else { 32 }
}

/// Kernels, made or loaded when they are first used, and scratch memory by name.
pub struct Programs {
    device: Arc<dyn Device>,
    source: Source,
    made: Vec<(KvOp, KvSchedule, Program)>,
    scratch: HashMap<&'static str, Buffer>,
    /// What lists in `scratch` hold: the layers of a step share them, and an upload waits for all launches.
    held: HashMap<&'static str, Vec<i32>>,
}

impl Programs {
    /// Kernels of the compiler.
    pub fn new(device: Arc<dyn Device>) -> Programs {
        Programs::of(device, Source::Compiler)
    }

    /// Kernels of a bundle.
    pub fn of_bundle(kernels: Arc<Kernels>) -> Programs {
        Programs::of(Arc::clone(kernels.device()), Source::Bundle(kernels))
    }

    fn of(device: Arc<dyn Device>, source: Source) -> Programs {
        Programs { device, source, made: Vec::new(), scratch: HashMap::new(), held: HashMap::new() }
    }

    /// Query tokens of a work item for requests of up to `longest` new ones; those of `op` do not matter.
    pub fn queries(&self, op: &Attend, longest: usize) -> usize {
        let most = longest.min((most_rows(self.device.caps()) / op.group().max(1)).max(1));
        let Source::Bundle(kernels) = &self.source else { return most };
        let there = kernels.attend_queries(op);
        // The next larger one; where none is there, launching says so.
        there.iter().copied().find(|&queries| queries >= most).or(there.last().copied()).unwrap_or(most)
    }

    /// Work items that keep the device busy with an attention, each of them one for every KV head.
    pub fn items(&self, op: &Attend) -> usize {
        let kv_heads = op.layout.heads;
        match self.device.caps().gpu {
            // Workgroups that have long ranges, and wait for nothing else: some for each of those that a unit holds.
            Some(gpu) if op.arithmetic == Arithmetic::Matrix => (gpu.units as usize * 6).div_ceil(kv_heads.max(1)),
            Some(gpu) => gpu.units as usize * 4,
            // An item has a start and an end that a thread pays for: no more than even out what threads take.
            None => {
                let heads = choose(&KvOp::Attend(*op), self.device.caps()).heads as usize;
                let threads = self.device.info().threads.max(1);
                if heads > 1 { threads * 2 } else { (threads * 8).div_ceil(kv_heads.max(1)) }
            }
        }
    }

    /// At least so many bytes; contents are undefined.
    pub fn scratch(&mut self, name: &'static str, bytes: usize) -> Result<Buffer> {
        if let Some(buffer) = self.scratch.get(name).filter(|buffer| buffer.bytes() >= bytes) {
            return Ok(buffer.clone());
        }
        let buffer = self.device.allocate(bytes.max(64).next_power_of_two())?;
        self.scratch.insert(name, buffer.clone());
        self.held.remove(name);
        Ok(buffer)
    }

    /// A work list in device memory.
    pub fn list(&mut self, name: &'static str, fields: &[i32]) -> Result<Buffer> {
        let buffer = self.scratch(name, 4 * fields.len())?;
        if self.held.get(name).is_some_and(|held| held == fields) {
            return Ok(buffer);
        }
        // Launches before this one are done with the list: an upload waits for them.
        self.held.remove(name);
        let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        self.device.upload(&buffer, 0, &bytes)?;
        self.held.insert(name, fields.to_vec());
        Ok(buffer)
    }

    /// Numbers in device memory.
    pub fn floats(&mut self, name: &'static str, numbers: &[f32]) -> Result<Buffer> {
        let fields: Vec<i32> = numbers.iter().map(|x| x.to_bits() as i32).collect();
        self.list(name, &fields)
    }

    /// Launches an operation over so many work records.
    pub fn launch(&mut self, op: &KvOp, work: usize, args: Vec<LaunchArg<'_>>) -> Result<()> {
        let found = self.made.iter().position(|(made, ..)| made == op);
        let index = match found {
            Some(index) => index,
            None => {
                let (schedule, program) = match &self.source {
                    Source::Compiler => {
                        let schedule = choose(op, self.device.caps());
                        let compiled = compile_kv(op, &schedule, self.device.target())?;
                        (schedule, self.device.load(&compiled.artifact)?)
                    }
                    Source::Bundle(kernels) => kernels.kv(op)?,
                };
                self.made.push((*op, schedule, program));
                self.made.len() - 1
            }
        };
        let (_, schedule, program) = &self.made[index];
        let mut grid = grid(op, schedule, work);
        if let KvOp::Attend(attend) = op
            && work < self.device.info().threads
        {
            // Fewer items than threads: heads apart give more of them something to do.
            grid[1] = attend.layout.heads as u32;
        }
        self.device.launch(&Launch { program, grid, args })
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
