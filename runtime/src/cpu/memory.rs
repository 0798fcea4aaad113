//! Aligned host memory that kernels reach by address.

use crate::pages::{self, Pages};
use bitsmith_compiler::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every allocation: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// A range of memory. Its content is only touched under the device's lock.
pub(super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    owner: Owner,
}

/// Who frees it.
enum Owner {
    /// Allocated here.
    Here,
    /// Pages of the system's, given back with this.
    Pages { _pages: pages::Zeroed },
    /// Somebody else.
    Foreign,
}

// SAFETY: the memory is owned, and every access to its content is made under the device's lock.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory, of these pages where it is long; fails where the system has none left.
    pub fn new(bytes: usize, pages: &Pages) -> Result<Memory> {
        let refuse = || Error::invalid(format!("{bytes} bytes of memory: the system has not that much"));
        if bytes >= pages::LEAST {
            let mut pages = pages.zeroed(bytes).map_err(|_| refuse())?;
            let start = NonNull::new(pages.as_mut_ptr()).ok_or_else(refuse)?;
            return Ok(Memory { start, bytes, owner: Owner::Pages { _pages: pages } });
        }
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| refuse())?;
        // SAFETY: the layout's size is at least 1.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refuse)?;
        Ok(Memory { start, bytes, owner: Owner::Here })
    }

    /// Memory of somebody else. Fails where it is null or does not start at a cache line.
    ///
    /// # Safety
    /// It must outlive this, and nobody else may touch it under the device's lock.
    pub unsafe fn foreign(start: *mut u8, bytes: usize) -> Result<Memory> {
        match NonNull::new(start) {
            Some(start) if (start.as_ptr() as usize).is_multiple_of(ALIGN) => {
                Ok(Memory { start, bytes, owner: Owner::Foreign })
            }
            _ => Err(Error::invalid(format!("memory at {start:p}; accepted: a multiple of {ALIGN} bytes"))),
        }
    }

    /// Size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of a byte.
    pub fn address(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.start.as_ptr() as u64 + offset as u64
    }

    /// Copies in. The caller holds the lock and has checked the range.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: the range lies in this allocation, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len()) };
    }

    /// Copies out. The caller holds the lock and has checked the range.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: the range lies in this allocation, and the lock keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Owner::Here = self.owner else { return };
        let layout = Layout::from_size_align(self.bytes.max(1), ALIGN).expect("it was valid when allocated");
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}
