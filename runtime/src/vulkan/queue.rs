//! Launches are recorded into one command buffer and go to the device together, when someone wants their results.
//!
//! Always holds: between two launches stands a barrier, so that each sees what those before it wrote; what a recorded
//! launch uses is held until the device is done with it.

use super::instance::{Context, failed};
use super::memory::Memory;
use super::pipeline::Pipeline;
use ash::vk;
use bitsmith_compiler::Result;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Most launches of a batch.
const BATCH: u32 = 64;
/// Most buffers of a launch that the pool is sized for; a launch with more goes alone.
const BUFFERS: u32 = 16;

/// The queue with what is recorded for it.
pub(super) struct Queue {
    queue: vk::Queue,
    commands: vk::CommandBuffer,
    command_pool: vk::CommandPool,
    sets: vk::DescriptorPool,
    clock: vk::QueryPool,
    fence: vk::Fence,
    recorded: u32,
    held: Vec<Arc<dyn Any + Send + Sync>>,
    /// Time that batches took by the device's own clock.
    pub busy: Duration,
    context: Arc<Context>,
}

impl Queue {
    /// The device's queue.
    pub fn new(context: &Arc<Context>) -> Result<Queue> {
        let device = &context.device;
        let mut made = Queue {
            // SAFETY: the device was made with one queue of this family.
            queue: unsafe { device.get_device_queue(context.queue_family, 0) },
            commands: vk::CommandBuffer::null(),
            command_pool: vk::CommandPool::null(),
            sets: vk::DescriptorPool::null(),
            clock: vk::QueryPool::null(),
            fence: vk::Fence::null(),
            recorded: 0,
            held: Vec::new(),
            busy: Duration::ZERO,
            context: context.clone(),
        };
        let pool = vk::CommandPoolCreateInfo::default()
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER)
            .queue_family_index(context.queue_family);
        let sizes = [vk::DescriptorPoolSize::default()
            .ty(vk::DescriptorType::STORAGE_BUFFER)
            .descriptor_count(BATCH * BUFFERS)];
        let sets = vk::DescriptorPoolCreateInfo::default().max_sets(BATCH).pool_sizes(&sizes);
        let clock = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2);
        // SAFETY: the device is alive, and each description lives through its call.
        unsafe {
            made.command_pool = device.create_command_pool(&pool, None).map_err(failed("make a command pool"))?;
            let one = vk::CommandBufferAllocateInfo::default().command_pool(made.command_pool).command_buffer_count(1);
            made.commands = device.allocate_command_buffers(&one).map_err(failed("make a command buffer"))?[0];
            made.sets = device.create_descriptor_pool(&sets, None).map_err(failed("make a descriptor pool"))?;
            if context.facts.tick > 0.0 {
                made.clock = device.create_query_pool(&clock, None).map_err(failed("read its clock"))?;
            }
            made.fence = device.create_fence(&vk::FenceCreateInfo::default(), None).map_err(failed("make a fence"))?;
        }
        Ok(made)
    }

    /// Opens the command buffer, if it is closed.
    fn begin(&mut self) -> Result<()> {
        if self.recorded > 0 {
            return Ok(());
        }
        let device = &self.context.device;
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: the last batch is done, so the command buffer is free.
        unsafe {
            device.begin_command_buffer(self.commands, &once).map_err(failed("record"))?;
            if self.clock != vk::QueryPool::null() {
                device.cmd_reset_query_pool(self.commands, self.clock, 0, 2);
                device.cmd_write_timestamp(self.commands, vk::PipelineStageFlags::TOP_OF_PIPE, self.clock, 0);
            }
        }
        Ok(())
    }

    /// Records a launch. The ranges are those of the pipeline's buffers, in order.
    pub fn launch(
        &mut self,
        pipeline: &Arc<Pipeline>,
        buffers: &[(Arc<Memory>, u64, u64)],
        scalars: &[u8],
        grid: [u32; 3],
    ) -> Result<()> {
        if self.recorded >= BATCH || buffers.len() as u32 > BUFFERS {
            self.flush()?;
        }
        self.begin()?;
        let device = &self.context.device;
        let layouts = [pipeline.set_layout];
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(self.sets).set_layouts(&layouts);
        // Recorded from here on: whatever fails, the next flush ends the command buffer.
        self.recorded += 1;
        self.held.push(pipeline.clone());
        // SAFETY: the pool and the layout are alive.
        let set = unsafe { device.allocate_descriptor_sets(&info) }.map_err(failed("make a descriptor set"))?[0];
        let ranges: Vec<[vk::DescriptorBufferInfo; 1]> = buffers
            .iter()
            .map(|(memory, offset, bytes)| {
                [vk::DescriptorBufferInfo::default().buffer(memory.buffer).offset(*offset).range(*bytes)]
            })
            .collect();
        let writes: Vec<vk::WriteDescriptorSet<'_>> = ranges
            .iter()
            .enumerate()
            .map(|(i, range)| {
                vk::WriteDescriptorSet::default()
                    .dst_set(set)
                    .dst_binding(i as u32)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .buffer_info(range)
            })
            .collect();
        let after = [barrier(
            vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE,
            vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE,
        )];
        let stage = vk::PipelineStageFlags::COMPUTE_SHADER;
        let compute = vk::PipelineBindPoint::COMPUTE;
        // SAFETY: the command buffer is open; everything bound is alive and held until the fence; the ranges lie in
        // their buffers, and the scalars are as many bytes as the layout says, both checked by the device.
        unsafe {
            device.update_descriptor_sets(&writes, &[]);
            let before = stage | vk::PipelineStageFlags::TRANSFER;
            device.cmd_pipeline_barrier(self.commands, before, stage, vk::DependencyFlags::empty(), &after, &[], &[]);
            device.cmd_bind_pipeline(self.commands, compute, pipeline.pipeline);
            device.cmd_bind_descriptor_sets(self.commands, compute, pipeline.layout, 0, &[set], &[]);
            if !scalars.is_empty() {
                device.cmd_push_constants(self.commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, scalars);
            }
            device.cmd_dispatch(self.commands, grid[0], grid[1], grid[2]);
        }
        self.held.extend(buffers.iter().map(|(memory, ..)| memory.clone() as Arc<dyn Any + Send + Sync>));
        Ok(())
    }

    /// Copies between buffers, and waits.
    pub fn copy(&mut self, from: &Arc<Memory>, to: &Arc<Memory>, copy: vk::BufferCopy) -> Result<()> {
        self.flush()?;
        self.begin()?;
        self.recorded += 1;
        let device = &self.context.device;
        // SAFETY: the command buffer is open; the caller checked the range; `flush` waits, and the caller holds both.
        unsafe { device.cmd_copy_buffer(self.commands, from.buffer, to.buffer, &[copy]) };
        self.flush()
    }

    /// Sends what is recorded, and waits for it.
    pub fn flush(&mut self) -> Result<()> {
        if self.recorded == 0 {
            return Ok(());
        }
        self.recorded = 0;
        let done = self.submit();
        // The device is done with it, or lost.
        self.held.clear();
        // SAFETY: no set of the pool is in use any more.
        let reset =
            unsafe { self.context.device.reset_descriptor_pool(self.sets, vk::DescriptorPoolResetFlags::empty()) };
        done.and(reset.map_err(failed("reset a descriptor pool")))
    }

    fn submit(&mut self) -> Result<()> {
        let device = &self.context.device;
        let (written, any) = (
            vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE,
            vk::AccessFlags::HOST_READ | vk::AccessFlags::TRANSFER_READ,
        );
        let stages = vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER;
        let readers = vk::PipelineStageFlags::HOST | vk::PipelineStageFlags::TRANSFER;
        let commands = [self.commands];
        let batch = [vk::SubmitInfo::default().command_buffers(&commands)];
        let clock = self.clock != vk::QueryPool::null();
        let mut ticks = [0u64; 2];
        // SAFETY: the command buffer is open; everything recorded is held until the fence has come.
        unsafe {
            let end = [barrier(written, any)];
            device.cmd_pipeline_barrier(self.commands, stages, readers, vk::DependencyFlags::empty(), &end, &[], &[]);
            if clock {
                device.cmd_write_timestamp(self.commands, vk::PipelineStageFlags::BOTTOM_OF_PIPE, self.clock, 1);
            }
            device.end_command_buffer(self.commands).map_err(failed("record"))?;
            device.queue_submit(self.queue, &batch, self.fence).map_err(failed("start a launch"))?;
            device.wait_for_fences(&[self.fence], true, u64::MAX).map_err(failed("finish a launch"))?;
            device.reset_fences(&[self.fence]).map_err(failed("reset a fence"))?;
            if clock {
                let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
                device.get_query_pool_results(self.clock, 0, &mut ticks, flags).map_err(failed("read its clock"))?;
                let nanoseconds = ticks[1].wrapping_sub(ticks[0]) as f64 * f64::from(self.context.facts.tick);
                self.busy += Duration::from_nanos(nanoseconds as u64);
            }
        }
        Ok(())
    }
}

fn barrier(from: vk::AccessFlags, to: vk::AccessFlags) -> vk::MemoryBarrier<'static> {
    vk::MemoryBarrier::default().src_access_mask(from).dst_access_mask(to)
}

impl Drop for Queue {
    fn drop(&mut self) {
        let device = &self.context.device;
        // SAFETY: the wait makes sure that nothing is in use; null handles are ignored.
        unsafe {
            let _ = device.device_wait_idle();
            device.destroy_fence(self.fence, None);
            device.destroy_query_pool(self.clock, None);
            device.destroy_descriptor_pool(self.sets, None);
            device.destroy_command_pool(self.command_pool, None);
        }
    }
}
