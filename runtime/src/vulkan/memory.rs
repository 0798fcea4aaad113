//! Buffers: mapped where host and device share memory, with a detour over a mapped one where they do not.

use super::instance::{Context, failed};
use ash::vk;
use bitsmith_compiler::{Error, Result};
use std::sync::Arc;

/// A storage buffer with memory of its own.
pub(super) struct Memory {
    pub buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    /// Where the host sees it.
    mapped: Option<*mut u8>,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: the mapped range is only touched under the device's lock, and handles may be used from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Buffers are whole quads of words, so that the last one can be read.
const UNIT: usize = 16;

impl Memory {
    /// Memory for at least so many bytes, which the host sees or only the device.
    pub fn new(context: &Arc<Context>, bytes: usize, mapped: bool) -> Result<Memory> {
        let device = &context.device;
        let size = bytes.max(1).checked_next_multiple_of(UNIT).ok_or_else(|| too_much(bytes))?;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(size as u64).usage(usage);
        // SAFETY: the device is alive, and `info` lives through the call.
        let buffer = unsafe { device.create_buffer(&info, None) }.map_err(failed("make a buffer"))?;
        match Memory::bind(context, buffer, bytes, size, mapped) {
            Ok(memory) => Ok(memory),
            Err(error) => {
                // SAFETY: made above, not used by anyone.
                unsafe { device.destroy_buffer(buffer, None) };
                Err(error)
            }
        }
    }

    fn bind(context: &Arc<Context>, buffer: vk::Buffer, bytes: usize, size: usize, mapped: bool) -> Result<Memory> {
        let device = &context.device;
        // SAFETY: the buffer is alive.
        let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
        // SAFETY: the physical device is of this instance.
        let types = unsafe { context.instance.get_physical_device_memory_properties(context.physical) };
        let host = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let near = vk::MemoryPropertyFlags::DEVICE_LOCAL;
        // Reads by the host are slow where it does not cache.
        let wishes = if mapped {
            vec![host | vk::MemoryPropertyFlags::HOST_CACHED, host]
        } else {
            vec![near, vk::MemoryPropertyFlags::empty()]
        };
        let kind = wishes.into_iter().find_map(|wish| {
            types
                .memory_types_as_slice()
                .iter()
                .enumerate()
                .position(|(i, kind)| needs.memory_type_bits & 1 << i != 0 && kind.property_flags.contains(wish))
        });
        let kind = kind.ok_or_else(|| Error::Unsupported("Vulkan has no memory for storage buffers".into()))?;
        let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind as u32);
        // SAFETY: the device is alive, and `info` lives through the call.
        let memory = unsafe { device.allocate_memory(&info, None) }.map_err(|_| too_much(bytes))?;
        let mut made = Memory { buffer, memory, mapped: None, bytes: size, context: context.clone() };
        // SAFETY: fresh memory of the size that the buffer asked for.
        let bound = unsafe { device.bind_buffer_memory(buffer, memory, 0) };
        let pointer = match bound {
            Ok(()) if mapped => {
                // SAFETY: host-visible memory that is not mapped yet.
                unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) }.map(Some)
            }
            other => other.map(|()| None),
        };
        match pointer {
            Ok(pointer) => made.mapped = pointer.map(|p| p.cast()),
            Err(code) => {
                // The caller destroys the buffer.
                made.buffer = vk::Buffer::null();
                return Err(failed("map memory")(code));
            }
        }
        if let Some(start) = made.mapped {
            // SAFETY: the mapped range has `size` bytes, and nobody else knows it.
            unsafe { std::ptr::write_bytes(start, 0, size) };
        }
        Ok(made)
    }

    /// Bytes that a binding may span.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies in; the caller holds the device's lock and no launch is under way. False where the host does not see it.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset + bytes.len() <= self.bytes);
        let Some(start) = self.mapped else { return false };
        // SAFETY: the range lies in the mapping, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(offset), bytes.len()) };
        true
    }

    /// Copies out, on the same terms.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        assert!(offset + bytes.len() <= self.bytes);
        let Some(start) = self.mapped else { return false };
        // SAFETY: the range lies in the mapping, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: launches hold the memory that they use until they are done, so nobody uses it now.
        unsafe {
            self.context.device.destroy_buffer(self.buffer, None);
            self.context.device.free_memory(self.memory, None);
        }
    }
}

fn too_much(bytes: usize) -> Error {
    Error::invalid(format!("{bytes} bytes of memory: the device has not that much"))
}
