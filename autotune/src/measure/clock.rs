//! What measures time. A real device is timed by the machine's clock; a simulated one brings its own.

use std::time::Instant;

/// A source of time.
pub trait Clock: Send + Sync {
    /// Tells that a sample begins: the entry that it is for (a hash of its key) and its number within the entry.
    fn begin(&self, entry: u64, ordinal: u64);

    /// Seconds since some moment.
    fn seconds(&self) -> f64;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock {
    start: Instant,
}

impl Default for MachineClock {
    fn default() -> MachineClock {
        MachineClock { start: Instant::now() }
    }
}

impl Clock for MachineClock {
    fn begin(&self, _entry: u64, _ordinal: u64) {}

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
