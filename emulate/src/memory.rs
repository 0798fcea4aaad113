//! Device memory: buffers far apart, so that every byte around one is a red zone, and a validity byte beside each byte.
//!
//! ```text
//! generic address   bits 36..   segment number + 1; 0x800 shared, 0x801 local, 0x802 parameters
//!                   bits ..36   offset from the middle of the segment's range
//! ```

use crate::ast::Space;
use crate::fault::{Fault, FaultKind};

/// Bits of an address inside its segment's range.
pub(crate) const SEGMENT_SHIFT: u32 = 36;
/// Where shared memory starts in its window; the bytes before belong to the system, as on sm_90.
pub(crate) const SHARED_START: u64 = 1024;
/// Shared addresses of other blocks of a cluster carry rank + 1 from this bit on.
pub(crate) const RANK_SHIFT: u32 = 24;

const SHARED_WINDOW: u64 = 0x800 << SEGMENT_SHIFT;
const LOCAL_WINDOW: u64 = 0x801 << SEGMENT_SHIFT;
const PARAM_WINDOW: u64 = 0x802 << SEGMENT_SHIFT;
const MIDDLE: u64 = 1 << (SEGMENT_SHIFT - 1);

/// Address of a segment's first byte.
pub(crate) fn segment_base(index: usize) -> u64 {
    ((index as u64 + 1) << SEGMENT_SHIFT) + MIDDLE
}

/// What `cvta` adds to an address of a space.
pub(crate) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space of a generic address, and the address in it.
pub(crate) fn locate(address: u64) -> (Space, u64) {
    match address >> SEGMENT_SHIFT {
        0x800 => (Space::Shared, address - SHARED_WINDOW),
        0x801 => (Space::Local, address - LOCAL_WINDOW),
        0x802 => (Space::Param, address - PARAM_WINDOW),
        _ => (Space::Global, address),
    }
}

/// Bytes, and which of them were written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes {
    pub data: Vec<u8>,
    pub valid: Vec<u8>,
}

/// What unwritten memory reads as.
pub(crate) const POISON: u8 = 0xcb;

impl Bytes {
    pub(crate) fn poisoned(size: usize) -> Bytes {
        Bytes { data: vec![POISON; size], valid: vec![0; size] }
    }

    /// Up to 8 bytes and whether all were written; the caller has checked the range.
    #[inline]
    pub(crate) fn read(&self, at: usize, bytes: usize) -> (u64, bool) {
        match bytes {
            4 => {
                let mut raw = [0; 4];
                raw.copy_from_slice(&self.data[at..at + 4]);
                let valid = self.valid[at..at + 4] == [1; 4];
                (u64::from(u32::from_le_bytes(raw)), valid)
            }
            _ => {
                let mut raw = [0; 8];
                raw[..bytes].copy_from_slice(&self.data[at..at + bytes]);
                (u64::from_le_bytes(raw), self.valid[at..at + bytes].iter().all(|v| *v == 1))
            }
        }
    }

    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: usize, value: u64, valid: bool) {
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.valid[at..at + bytes].fill(u8::from(valid));
    }
}

/// A buffer of device memory.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub name: String,
    pub bytes: Bytes,
    pub writable: bool,
}

/// All buffers of a launch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub segments: Vec<Segment>,
}

impl Memory {
    /// Adds a buffer; its address comes back.
    pub(crate) fn add(&mut self, name: &str, bytes: Bytes, writable: bool) -> u64 {
        self.segments.push(Segment { name: name.to_string(), bytes, writable });
        segment_base(self.segments.len() - 1)
    }

    /// Which segment and where in it, checked.
    #[inline]
    pub(crate) fn find(&self, address: u64, bytes: usize, align: usize) -> Result<(usize, usize), Fault> {
        let index = ((address >> SEGMENT_SHIFT) as usize).wrapping_sub(1);
        let Some(segment) = self.segments.get(index) else {
            return Err(Fault::new(
                FaultKind::OutOfBounds,
                format!("{bytes} bytes at address {address:#x}, where no buffer lies"),
            ));
        };
        let offset = address.wrapping_sub(segment_base(index)) as i64;
        if offset < 0 || offset as usize + bytes > segment.bytes.data.len() {
            return Err(Fault::new(
                FaultKind::OutOfBounds,
                format!(
                    "{bytes} bytes at offset {offset} of `{}`, which has {} bytes",
                    segment.name,
                    segment.bytes.data.len()
                ),
            ));
        }
        if offset as usize & (align - 1) != 0 {
            return Err(Fault::new(
                FaultKind::Misaligned,
                format!("offset {offset} of `{}` is no multiple of {align}", segment.name),
            ));
        }
        Ok((index, offset as usize))
    }

    /// Like `find`, for a write.
    pub(crate) fn find_writable(&self, address: u64, bytes: usize, align: usize) -> Result<(usize, usize), Fault> {
        let found = self.find(address, bytes, align)?;
        if !self.segments[found.0].writable {
            let name = &self.segments[found.0].name;
            return Err(Fault::new(FaultKind::ReadOnly, format!("a write to `{name}`, which is read-only")));
        }
        Ok(found)
    }
}
