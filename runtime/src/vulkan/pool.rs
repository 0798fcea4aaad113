//! Device memory in large blocks, cut into pieces: a driver may give out as few as 4096 blocks in all
//! (`maxMemoryAllocationCount`), and each costs a call to the system.
//!
//! Reads sizes and alignments; makes pieces of blocks. Always holds: pieces do not overlap; a piece starts at a multiple
//! of its alignment; a block that the host sees is mapped once, for as long as it lives.

use ash::{Device, vk};

/// Bytes of a block that many pieces share. What is larger than half of it gets a block of its own.
const BLOCK: u64 = 32 << 20;

/// Blocks of all kinds of memory of a device.
#[derive(Default)]
pub(super) struct Pool {
    /// A place in this list names a block; a block that went back leaves a hole.
    blocks: Vec<Option<Block>>,
}

struct Block {
    memory: vk::DeviceMemory,
    /// Index of the memory type.
    kind: u32,
    /// Where the host sees the block, if it does.
    mapped: Option<*mut u8>,
    free: Ranges,
}

// SAFETY: the pointer is an address that the pool gives to the owners of pieces and does not follow itself.
unsafe impl Send for Block {}

/// A piece of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The block.
    pub memory: vk::DeviceMemory,
    /// First byte of the piece in its block.
    pub offset: u64,
    /// Where the host sees the piece, if it does.
    pub mapped: Option<*mut u8>,
    bytes: u64,
    block: usize,
}

impl Pool {
    /// A piece of memory of a type: of a block that has room, else of a new one.
    pub fn take(
        &mut self,
        device: &Device,
        kind: u32,
        sees: bool,
        bytes: u64,
        align: u64,
    ) -> ash::prelude::VkResult<Piece> {
        if bytes <= BLOCK / 2 {
            for (number, block) in self.blocks.iter_mut().enumerate() {
                let Some(block) = block.as_mut().filter(|b| b.kind == kind && b.mapped.is_some() == sees) else {
                    continue;
                };
                if let Some(offset) = block.free.take(bytes, align) {
                    return Ok(block.piece(number, offset, bytes));
                }
            }
        }
        let size = if bytes <= BLOCK / 2 { BLOCK } else { bytes };
        let mut block = Block::new(device, kind, sees, size)?;
        // A fresh block has room at its start, which every alignment divides.
        let offset = block.free.take(bytes, align).unwrap_or_default();
        let number = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        let piece = block.piece(number, offset, bytes);
        if number == self.blocks.len() {
            self.blocks.push(Some(block));
        } else {
            self.blocks[number] = Some(block);
        }
        Ok(piece)
    }

    /// Takes a piece back; nobody may use it any more. A block without pieces goes back to the driver, but for one shared
    /// block of each kind, so that a buffer made and dropped in turn does not ask for one each time.
    pub fn give_back(&mut self, device: &Device, piece: &Piece) {
        let Some(Some(block)) = self.blocks.get_mut(piece.block) else { return };
        block.free.give_back(piece.offset, piece.bytes);
        let (kind, sees, shared) = (block.kind, block.mapped.is_some(), block.free.size == BLOCK);
        if !block.free.is_whole() {
            return;
        }
        let spare = self.blocks.iter().enumerate().any(|(number, other)| {
            let same =
                |b: &Block| b.kind == kind && b.mapped.is_some() == sees && b.free.size == BLOCK && b.free.is_whole();
            number != piece.block && other.as_ref().is_some_and(same)
        });
        if (spare || !shared)
            && let Some(block) = self.blocks[piece.block].take()
        {
            block.free(device);
        }
    }

    /// Gives every block back to the driver; all pieces are gone.
    pub fn clear(&mut self, device: &Device) {
        for block in self.blocks.drain(..).flatten() {
            block.free(device);
        }
    }

    /// Blocks that the driver has given out.
    pub fn count(&self) -> usize {
        self.blocks.iter().flatten().count()
    }
}

impl Block {
    fn new(device: &Device, kind: u32, sees: bool, size: u64) -> ash::prelude::VkResult<Block> {
        let info = vk::MemoryAllocateInfo::default().allocation_size(size).memory_type_index(kind);
        // SAFETY: the device is alive, and `info` lives through the call.
        let memory = unsafe { device.allocate_memory(&info, None) }?;
        let mut block = Block { memory, kind, mapped: None, free: Ranges::new(size) };
        if sees {
            // SAFETY: host-visible memory that is not mapped yet.
            match unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) } {
                Ok(start) => block.mapped = Some(start.cast()),
                Err(code) => {
                    block.free(device);
                    return Err(code);
                }
            }
        }
        Ok(block)
    }

    fn piece(&self, block: usize, offset: u64, bytes: u64) -> Piece {
        // SAFETY: the piece lies in the block, and the whole block is mapped.
        let mapped = self.mapped.map(|start| unsafe { start.add(offset as usize) });
        Piece { memory: self.memory, offset, mapped, bytes, block }
    }

    /// Back to the driver, which also unmaps it.
    fn free(self, device: &Device) {
        // SAFETY: no buffer is bound to it any more.
        unsafe { device.free_memory(self.memory, None) };
    }
}

/// The free ranges of a block.
#[derive(Debug)]
struct Ranges {
    size: u64,
    /// Start and end, in order, never touching.
    free: Vec<(u64, u64)>,
}

impl Ranges {
    fn new(size: u64) -> Ranges {
        Ranges { size, free: vec![(0, size)] }
    }

    /// Whether nothing is taken.
    fn is_whole(&self) -> bool {
        self.free == [(0, self.size)]
    }

    /// The first place with room for so many bytes at a multiple of a power of two.
    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        for i in 0..self.free.len() {
            let (start, end) = self.free[i];
            let at = start.next_multiple_of(align);
            let Some(stop) = at.checked_add(bytes).filter(|&stop| stop <= end) else { continue };
            let left = [(start, at), (stop, end)].into_iter().filter(|(a, b)| a < b);
            self.free.splice(i..=i, left);
            return Some(at);
        }
        None
    }

    /// Makes a range free that was taken.
    fn give_back(&mut self, start: u64, bytes: u64) {
        let end = start + bytes;
        let i = self.free.partition_point(|&(from, _)| from < start);
        self.free.insert(i, (start, end));
        if i + 1 < self.free.len() && self.free[i + 1].0 == end {
            self.free[i].1 = self.free.remove(i + 1).1;
        }
        if i > 0 && self.free[i - 1].1 == start {
            self.free[i - 1].1 = self.free.remove(i).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn ranges_never_overlap_and_become_whole_again() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut ranges = Ranges::new(1 << 16);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let mut refused = 0;
        for _ in 0..20_000 {
            if rng.u32(..100) < 55 {
                let (bytes, align) = (1 + rng.u64(..4096), 1 << rng.u32(..10));
                match ranges.take(bytes, align) {
                    Some(at) => {
                        assert_eq!(at % align, 0);
                        assert!(at + bytes <= 1 << 16);
                        assert!(taken.iter().all(|&(from, length)| from + length <= at || at + bytes <= from));
                        taken.push((at, bytes));
                    }
                    None => refused += 1,
                }
            } else if !taken.is_empty() {
                let (at, bytes) = taken.swap_remove(rng.usize(..taken.len()));
                ranges.give_back(at, bytes);
            }
            let free: u64 = ranges.free.iter().map(|(from, to)| to - from).sum();
            assert_eq!(free + taken.iter().map(|(_, bytes)| bytes).sum::<u64>(), 1 << 16);
            assert!(ranges.free.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
        assert!(refused > 0, "the block never ran full");
        for (at, bytes) in taken {
            ranges.give_back(at, bytes);
        }
        assert!(ranges.is_whole());
    }
}
