//! Memory for what is streamed: pages from the system, large ones where it has them.
//!
//! A prefetch of a page that the processor has no translation of waits for one, and what comes after waits with it. With
//! pages of 4 KiB that is a sixth of the time of attention over a cache, and with matrices of a few MiB, of which one in
//! large pages is only a part, up to a third of a matmul's; with pages of 2 MiB it is nothing.

use memmap2::{MmapMut, MmapRaw};
use std::io::Result;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// From so many bytes on, memory is worth pages of the system's.
pub(crate) const LEAST: usize = 256 << 10;

/// Bytes of a large page.
const LARGE: usize = 2 << 20;

/// Parts of a run start at multiples of the largest page that is a system's smallest.
const SMALL: usize = 64 << 10;

/// Bytes of a run that is shared.
const SHARED: usize = 64 << 20;

/// From so many bytes on, memory is a run of its own: the large page that it ends in is waste of an eighth at most.
const OWN: usize = 16 << 20;

/// Zeroed memory that nobody else has: a run of pages, or a part of one.
pub(crate) struct Zeroed {
    run: Arc<Run>,
    from: usize,
    bytes: usize,
}

/// Large pages side by side; gone with the last part of them.
struct Run {
    map: MmapRaw,
    /// Bytes before the first page that nobody touches, and so cost addresses alone.
    before: usize,
    bytes: usize,
}

impl Run {
    /// A run of at least so many bytes, not 0.
    fn new(bytes: usize) -> Result<Run> {
        // Of the last page too the system makes a large one only where it is whole.
        let whole = bytes.checked_next_multiple_of(LARGE).and_then(|bytes| Some((bytes, bytes.checked_add(LARGE)?)));
        let (bytes, with_start) = whole.ok_or(std::io::ErrorKind::OutOfMemory)?;
        let map = MmapRaw::from(MmapMut::map_anon(with_start)?);
        let before = map.as_mut_ptr().align_offset(LARGE);
        // A wish: without large pages the memory is as good as any other.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, before, bytes);
        Ok(Run { map, before, bytes })
    }
}

/// Zeroed memory of at least 1 byte, in a run of its own. Fails where the system has none left.
pub(crate) fn zeroed(bytes: usize) -> Result<Zeroed> {
    Ok(Zeroed { run: Arc::new(Run::new(bytes)?), from: 0, bytes })
}

/// Where memory of some MiB comes from: runs that many share, so that all of it lies in large pages and none is wasted.
#[derive(Default)]
pub(crate) struct Pages {
    /// The run that parts are cut from, and where the next one starts.
    open: Mutex<Option<(Arc<Run>, usize)>>,
}

impl Pages {
    /// Zeroed memory of at least 1 byte. Fails where the system has none left.
    pub fn zeroed(&self, bytes: usize) -> Result<Zeroed> {
        if bytes >= OWN || !GIVES_BACK {
            return zeroed(bytes);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (run, from) = match open.take() {
            Some((run, from)) if run.bytes - from >= bytes => (run, from),
            _ => match Run::new(SHARED) {
                Ok(run) => (Arc::new(run), 0),
                // So little is left.
                Err(_) => return zeroed(bytes),
            },
        };
        *open = Some((run.clone(), from + bytes.next_multiple_of(SMALL)));
        Ok(Zeroed { run, from, bytes })
    }
}

/// Whether the system takes pages back from the middle of a run. A part is never used again.
const GIVES_BACK: bool = cfg!(target_os = "linux");

impl Drop for Zeroed {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.run) > 1 {
            let (start, bytes) = (self.run.before + self.from, self.bytes.next_multiple_of(SMALL));
            // SAFETY: nobody else has these pages, and nobody reads them again. Where the advice is not taken they stay
            // until the run goes.
            let _ = unsafe { self.run.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes) };
        }
    }
}

impl Zeroed {
    fn start(&self) -> *mut u8 {
        self.run.map.as_mut_ptr().wrapping_add(self.run.before + self.from)
    }
}

impl Deref for Zeroed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie in the run, which lives as long as this, and no other part has them.
        unsafe { std::slice::from_raw_parts(self.start(), self.bytes) }
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_as_long_as_asked_for_and_starts_with_a_page() {
        let pages = Pages::default();
        for bytes in [1, 4096, LEAST, LARGE - 1, LARGE, LARGE + 1, OWN - 1, OWN, OWN + LARGE + 1] {
            for (mut memory, multiple) in [(zeroed(bytes).unwrap(), LARGE), (pages.zeroed(bytes).unwrap(), SMALL)] {
                assert_eq!(memory.len(), bytes);
                assert!(memory.iter().all(|&byte| byte == 0));
                memory.fill(1);
                assert!((memory.as_ptr() as usize).is_multiple_of(multiple), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn parts_of_a_run_do_not_touch_each_other_and_go_one_by_one() {
        let pages = Pages::default();
        let size = |i: usize| LEAST + i * 300_000;
        let mut parts: Vec<Option<Zeroed>> = (0..40).map(|i| Some(pages.zeroed(size(i)).unwrap())).collect();
        for (i, part) in parts.iter_mut().flatten().enumerate() {
            part.fill(i as u8 + 1);
        }
        for i in (0..parts.len()).step_by(2) {
            parts[i] = None;
        }
        for (i, part) in parts.iter().enumerate() {
            let Some(part) = part else { continue };
            assert_eq!(part.len(), size(i));
            assert!(part.iter().all(|&byte| byte == i as u8 + 1), "part {i}");
        }
        let later = pages.zeroed(LEAST).unwrap();
        assert!(later.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn more_than_there_is_fails() {
        assert!(zeroed(usize::MAX).is_err());
        assert!(Pages::default().zeroed(usize::MAX - LARGE).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_part_that_goes_gives_its_pages_back() {
        let pages = Pages::default();
        let mut part = pages.zeroed(3 * LARGE).unwrap();
        part.fill(1);
        let (run, from) = (part.run.clone(), part.from);
        drop(part);
        // Read again, what the system took back is zero.
        let start = run.map.as_mut_ptr().wrapping_add(run.before + from);
        // SAFETY: the run lives, and nobody else reads or writes here.
        assert!(unsafe { std::slice::from_raw_parts(start, 3 * LARGE) }.iter().all(|&byte| byte == 0));
    }
}
