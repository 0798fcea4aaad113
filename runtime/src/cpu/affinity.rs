//! Pinning of a thread to a processor, where the system has it.

/// Keeps the calling thread on the `index`-th of the processors that it may use, if there are so many. Gives whether it
/// does.
#[cfg(target_os = "linux")]
pub(super) fn pin(index: usize) -> bool {
    /// As many processors as glibc's `cpu_set_t` has.
    const WORDS: usize = 16;
    unsafe extern "C" {
        fn sched_getaffinity(pid: i32, bytes: usize, mask: *mut u64) -> i32;
        fn sched_setaffinity(pid: i32, bytes: usize, mask: *const u64) -> i32;
    }
    let mut allowed = [0u64; WORDS];
    // SAFETY: process 0 is the calling thread, and the mask has as many bytes as are named.
    if unsafe { sched_getaffinity(0, size_of_val(&allowed), allowed.as_mut_ptr()) } < 0 {
        return false;
    }
    let processors = (0..64 * WORDS).filter(|&bit| allowed[bit / 64] >> (bit % 64) & 1 == 1);
    let Some(chosen) = processors.into_iter().nth(index) else { return false };
    let mut mask = [0u64; WORDS];
    mask[chosen / 64] = 1 << (chosen % 64);
    // SAFETY: as above; the mask is only read.
    unsafe { sched_setaffinity(0, size_of_val(&mask), mask.as_ptr()) == 0 }
}

/// No other system is asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_index: usize) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::pin;

    #[test]
    fn a_thread_is_pinned_to_a_processor_that_exists_and_no_other() {
        std::thread::spawn(|| {
            assert!(pin(0));
            // Now one processor is left, so there is no second.
            assert!(!pin(1));
            assert!(pin(0));
        })
        .join()
        .unwrap();
    }
}
