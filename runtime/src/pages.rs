//! Memory for what is streamed: whole pages from the system, large ones where it has them.
//!
//! A prefetch of a page that the processor has no translation of waits for one, and what comes after waits with it. With
//! pages of 4 KiB that is a sixth of the time of attention over a cache; with those of 2 MiB it is nothing.

use memmap2::MmapMut;
use std::io::Result;
use std::ops::{Deref, DerefMut};

/// From so many bytes on, memory is worth pages of its own: two large ones.
pub(crate) const LARGE: usize = 4 << 20;

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Zeroed memory that starts with a large page where it is that long.
pub(crate) struct Zeroed {
    map: MmapMut,
    /// Bytes before the memory that nobody touches, and so cost addresses alone.
    before: usize,
    bytes: usize,
}

/// Zeroed memory of at least 1 byte. Fails where the system has none left.
pub(crate) fn zeroed(bytes: usize) -> Result<Zeroed> {
    if bytes < LARGE {
        return Ok(Zeroed { map: MmapMut::map_anon(bytes)?, before: 0, bytes });
    }
    // The end is a large page too where that wastes little: the system makes none of a part.
    let whole = bytes.next_multiple_of(PAGE);
    let taken = if (whole - bytes) * WASTE <= bytes { whole } else { bytes };
    let map = MmapMut::map_anon(taken.checked_add(PAGE).ok_or(std::io::ErrorKind::OutOfMemory)?)?;
    let before = map.as_ptr().align_offset(PAGE);
    // A wish: without large pages the memory is as good as any other.
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::HugePage, before, taken);
    Ok(Zeroed { map, before, bytes })
}

/// At most one part in so many is wasted.
const WASTE: usize = 8;

impl Deref for Zeroed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.before..self.before + self.bytes]
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.before..self.before + self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_as_long_as_asked_for_and_starts_with_a_large_page() {
        for bytes in [1, 4096, LARGE - 1, LARGE, LARGE + 1, LARGE + PAGE - 64, 9 * PAGE + 1] {
            let mut memory = zeroed(bytes).unwrap();
            assert_eq!(memory.len(), bytes);
            assert!(memory.iter().all(|&byte| byte == 0));
            memory.fill(1);
            if bytes >= LARGE {
                assert!((memory.as_ptr() as usize).is_multiple_of(PAGE), "{bytes} bytes");
            }
        }
    }
}
