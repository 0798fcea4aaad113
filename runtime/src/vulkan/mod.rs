//! Vulkan devices, by a loader that is found at run time.
//!
//! Reads artifacts whose payload is SPIR-V. Always holds: a launch is checked against its artifact and the device's
//! limits before anything is recorded; launches run in order, and whoever copies from a buffer waits for all of them.

mod facts;
mod instance;
mod matrices;
mod memory;
mod pipeline;
mod pool;
mod queue;

use self::instance::Context;
use self::memory::Memory;
use self::pipeline::Pipeline;
use self::queue::Queue;
use crate::device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, check_launch};
use ash::vk;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::caps::vulkan::COOPERATIVE_SUFFIX;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_compiler::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which device, in the loader's order.
    pub index: usize,
    /// Threads per subgroup of the code made for it; the device's best where absent. 1 makes every thread a subgroup of
    /// its own.
    pub subgroup: Option<u32>,
    /// Run the validation layers; [`VulkanDevice::complaints`] tells what they said.
    pub validate: bool,
    /// Keep buffers where the host does not see them, even if it could.
    pub apart: bool,
}

/// A Vulkan device.
pub struct VulkanDevice {
    target: SpirvTarget,
    apart: bool,
    name: String,
    /// Held by whoever touches the queue or device memory.
    queue: Mutex<Queue>,
    context: Arc<Context>,
}

impl VulkanDevice {
    /// Opens a device.
    pub fn open(options: Options) -> Result<VulkanDevice> {
        let context = Arc::new(Context::open(options.index, options.validate)?);
        let mut device = instance::target(&context.facts)?;
        let mut name = format!("vulkan:{}", options.index);
        if let Some(width) = options.subgroup {
            if width != 1 && !context.facts.runs_subgroup(width) {
                return Err(Error::Unsupported(format!("{}: subgroups of {width} threads", context.facts.model)));
            }
            device = device.with_subgroup(width);
            name = format!("{name}@{width}");
        }
        Ok(VulkanDevice {
            target: SpirvTarget::new(device),
            apart: options.apart || !context.facts.shares_memory,
            name,
            queue: Mutex::new(Queue::new(&context)?),
            context,
        })
    }

    /// What the validation layers have said so far.
    pub fn complaints(&self) -> Vec<String> {
        self.context.complaints()
    }

    /// Blocks of device memory that the driver has given out: many buffers share one.
    pub fn blocks(&self) -> usize {
        self.context.pool().count()
    }

    /// Time that the launches up to now took by the device's own clock; waits for them. `None` where it has no clock.
    pub fn busy(&self) -> Result<Option<Duration>> {
        let mut queue = self.lock();
        queue.flush()?;
        Ok((self.context.facts.tick > 0.0).then_some(queue.busy))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic under the lock leaves a batch half recorded at worst, and the next flush ends it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range of a buffer as a binding.
    fn binding(&self, view: &crate::device::View<'_>, name: &str) -> Result<(Arc<Memory>, u64, u64)> {
        let memory = own(view.buffer)?;
        let facts = &self.context.facts;
        if !view.offset.is_multiple_of(facts.offset_align) {
            return Err(Error::Unsupported(format!(
                "argument `{name}` starts at byte {} of its buffer; {} takes multiples of {}",
                view.offset, facts.model, facts.offset_align
            )));
        }
        // Whole words: the buffer has them, and a kernel touches no more than the range.
        let bytes = view.bytes.max(1).next_multiple_of(4).min(memory.bytes() - view.offset) as u64;
        // Indices have 31 bits.
        let most = facts.max_binding.min((1 << 31) - 1);
        if bytes > most {
            return Err(Error::Unsupported(format!(
                "argument `{name}` has {bytes} bytes; {} takes at most {} per buffer",
                facts.model, most
            )));
        }
        Ok((memory, view.offset as u64, bytes))
    }
}

fn own(buffer: &Buffer) -> Result<Arc<Memory>> {
    buffer.memory.clone().downcast().map_err(|_| Error::invalid("the buffer belongs to another device"))
}

impl Device for VulkanDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: self.name.clone(),
            model: self.context.facts.model.clone(),
            target: self.target.name().to_string(),
            threads: 1,
            features: self.target.caps().features.iter().map(|f| f.name().to_string()).collect(),
            notes: Vec::new(),
        }
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn accepts(&self, target: &str) -> Option<u32> {
        let own = self.target.name();
        if target == own {
            return Some(1);
        }
        // What was made for the same kind without cooperative matrices runs here too.
        let kind = |name: &str| name.split('@').next().unwrap_or_default().to_string();
        let device = SpirvTarget::named(target).ok().filter(|_| kind(own) == kind(target) + COOPERATIVE_SUFFIX)?;
        let facts = &self.context.facts;
        let runs = facts.missing(device.device()).is_empty() && facts.runs_subgroup(device.caps().subgroup);
        runs.then_some(0)
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(Memory::new(&self.context, bytes, !self.apart)?), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let mut queue = self.lock();
        queue.flush()?;
        if bytes.is_empty() || memory.write(offset, bytes) {
            return Ok(());
        }
        let detour = Arc::new(Memory::new(&self.context, bytes.len(), true)?);
        detour.write(0, bytes);
        let copy = vk::BufferCopy::default().dst_offset(offset as u64).size(bytes.len() as u64);
        queue.copy(&detour, &memory, copy)
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let mut queue = self.lock();
        queue.flush()?;
        if bytes.is_empty() || memory.read(offset, bytes) {
            return Ok(());
        }
        let detour = Arc::new(Memory::new(&self.context, bytes.len(), true)?);
        let copy = vk::BufferCopy::default().src_offset(offset as u64).size(bytes.len() as u64);
        queue.copy(&memory, &detour, copy)?;
        detour.read(0, bytes);
        Ok(())
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        artifact.alone("Vulkan")?;
        let pipeline = Pipeline::new(&self.context, artifact)?;
        Ok(Program { code: Arc::new(pipeline), artifact: Arc::new(artifact.clone()) })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch)?;
        let code = launch.program.code.clone();
        let pipeline: Arc<Pipeline> =
            code.downcast().map_err(|_| Error::invalid("the program belongs to another device"))?;
        let facts = &self.context.facts;
        if launch.grid.iter().zip(facts.max_grid).any(|(&n, most)| n > most) {
            return Err(Error::Unsupported(format!(
                "a grid of {:?} workgroups; {} takes at most {:?}",
                launch.grid, facts.model, facts.max_grid
            )));
        }
        let mut buffers = Vec::new();
        let mut scalars: Vec<u8> = Vec::new();
        for (arg, declared) in launch.args.iter().zip(&launch.program.artifact.args) {
            match arg {
                LaunchArg::Buffer(view) => buffers.push(self.binding(view, &declared.name)?),
                LaunchArg::I32(x) => scalar(&mut scalars, &x.to_le_bytes()),
                LaunchArg::I64(x) => scalar(&mut scalars, &x.to_le_bytes()),
                LaunchArg::F32(x) => scalar(&mut scalars, &x.to_le_bytes()),
            }
        }
        debug_assert_eq!(scalars.len(), pipeline.scalar_bytes as usize);
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.lock().launch(&pipeline, &buffers, &scalars, launch.grid)
    }

    fn synchronize(&self) -> Result<()> {
        self.lock().flush()
    }
}

/// Appends a scalar at a multiple of its size, as the module's push constants lie.
fn scalar(to: &mut Vec<u8>, bytes: &[u8]) {
    to.resize(to.len().next_multiple_of(bytes.len()), 0);
    to.extend_from_slice(bytes);
}
