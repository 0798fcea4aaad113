//! Buffers: mapped where host and device share memory, with a detour over a mapped one where they do not.

use super::instance::{Context, failed};
use super::pool::Piece;
use ash::vk;
use bitsmith_compiler::{Error, Result};
use std::sync::Arc;

/// A storage buffer on a piece of device memory.
pub(super) struct Memory {
    pub buffer: vk::Buffer,
    piece: Piece,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: the mapped piece is only touched under the device's lock, and handles may be used from any thread.
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
        let piece = Memory::place(context, buffer, bytes, mapped).inspect_err(|_| {
            // SAFETY: made above, not used by anyone.
            unsafe { device.destroy_buffer(buffer, None) };
        })?;
        // From here on, dropping it gives back both.
        let made = Memory { buffer, piece, bytes: size, context: context.clone() };
        // SAFETY: the piece has the size and the alignment that the buffer asked for, and nothing else is bound to it.
        unsafe { device.bind_buffer_memory(buffer, piece.memory, piece.offset) }.map_err(failed("bind memory"))?;
        if let Some(start) = piece.mapped {
            // SAFETY: the mapped piece has at least `size` bytes, and nobody else knows it.
            unsafe { std::ptr::write_bytes(start, 0, size) };
        }
        Ok(made)
    }

    /// A piece of memory for a buffer.
    fn place(context: &Context, buffer: vk::Buffer, bytes: usize, mapped: bool) -> Result<Piece> {
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
        let mut pool = context.pool();
        pool.take(device, kind as u32, mapped, needs.size, needs.alignment).map_err(|_| too_much(bytes))
    }

    /// Bytes that a binding may span.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies in; the caller holds the device's lock and no launch is under way. False where the host does not see it.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset + bytes.len() <= self.bytes);
        let Some(start) = self.piece.mapped else { return false };
        // SAFETY: the range lies in the mapping, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(offset), bytes.len()) };
        true
    }

    /// Copies out, on the same terms.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        assert!(offset + bytes.len() <= self.bytes);
        let Some(start) = self.piece.mapped else { return false };
        // SAFETY: the range lies in the mapping, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: launches hold the memory that they use until they are done, so nobody uses it now.
        unsafe { self.context.device.destroy_buffer(self.buffer, None) };
        self.context.pool().give_back(&self.context.device, &self.piece);
    }
}

fn too_much(bytes: usize) -> Error {
    Error::invalid(format!("{bytes} bytes of memory: the device has not that much"))
}
