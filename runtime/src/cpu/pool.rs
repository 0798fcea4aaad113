//! Threads that share the workgroups of a launch.
//!
//! The caller is one of the threads. The others spin for a short while after a launch, since in inference the next one
//! follows at once, then sleep until they are woken. Workgroups are handed out as [`Split`] says: each thread has a
//! contiguous share, so that it streams through neighbours. Threads can be pinned to processors, one each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks out for the next launch before it sleeps.
const SPIN: Duration = Duration::from_micros(60);
/// Runs per share at least: what limits the cost of a thread that is held up. Near its end they are shorter, so that threads
/// end together.
const RUNS: u64 = 8;

/// How workgroups are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// Run after run from the front of a thread's share; whoever has nothing left takes the back half of what another one
    /// has. A thread that was held up costs at most one run.
    #[default]
    Dynamic,
    /// One run per thread, the same in every launch: a thread meets the same weights again, in caches and in memory of its
    /// own node.
    Static,
}

/// How a pool is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolOptions {
    /// How workgroups are shared.
    pub split: Split,
    /// Whether each worker stays on one of the processors that the process may use; the caller's thread is left alone, and
    /// the first processor is left to it.
    pub pin: bool,
}

type Work<'a> = dyn Fn(usize, u64, u64) + Sync + 'a;

/// A pool of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One launch at a time.
    turn: Mutex<()>,
    split: Split,
}

struct Shared {
    /// Number of launches so far; workers wait for it to change.
    launches: AtomicU64,
    /// The work of the present launch.
    job: Mutex<Option<Job>>,
    wake: Condvar,
    sleepers: AtomicUsize,
    /// What each thread has left of the present launch.
    shares: Vec<Share>,
    /// Workers that have not finished the present launch.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    total: u64,
    /// Workgroups that are handed out as one, so that places fit 32 bits.
    unit: u64,
    /// Longest run, in units.
    run: u32,
    split: Split,
}

/// Units that are left of a share, from a first one to an end, both in one word; in a line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Share(AtomicU64);

impl Share {
    fn set(&self, begin: u32, end: u32) {
        self.0.store(Share::word(begin, end), Ordering::Relaxed);
    }

    fn word(begin: u32, end: u32) -> u64 {
        u64::from(begin) << 32 | u64::from(end)
    }

    /// Takes what `part` says of the units that are left, where any are: first a part that is taken, then one that stays.
    fn take(&self, part: impl Fn(u32, u32) -> ((u32, u32), (u32, u32))) -> Option<(u32, u32)> {
        let places = |word: u64| ((word >> 32) as u32, word as u32);
        let rest = |word: u64| {
            let (begin, end) = places(word);
            (begin < end).then(|| part(begin, end).1).map(|(begin, end)| Share::word(begin, end))
        };
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        let (begin, end) = places(before);
        Some(part(begin, end).0)
    }

    /// All that is left.
    fn all(&self) -> Option<(u32, u32)> {
        self.take(|begin, end| ((begin, end), (end, end)))
    }

    /// A run from the front: at most `longest`, at most half of what is left.
    fn front(&self, longest: u32) -> Option<(u32, u32)> {
        self.take(|begin, end| {
            let middle = begin + (end - begin).div_ceil(2).min(longest);
            ((begin, middle), (middle, end))
        })
    }

    /// The back half.
    fn back(&self) -> Option<(u32, u32)> {
        self.take(|begin, end| {
            let middle = begin + (end - begin) / 2;
            ((middle, end), (begin, middle))
        })
    }
}

// SAFETY: the pointer is only followed between `run`'s start and its end, while the closure behind it lives, and the
// closure is `Sync`.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of this many threads, the caller's included.
    pub fn new(threads: usize) -> Pool {
        Pool::with_options(threads, PoolOptions::default())
    }

    /// A pool of this many threads, the caller's included. Where the system knows no pinning, or has fewer processors than
    /// threads, threads that find none run anywhere.
    pub fn with_options(threads: usize, options: PoolOptions) -> Pool {
        let shared = Arc::new(Shared {
            launches: AtomicU64::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    if options.pin {
                        super::affinity::pin(index);
                    }
                    shared.serve(index)
                })
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()), split: options.split }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(thread, begin, end)` so that the ranges cover `0..total` once; returns when all are done.
    ///
    /// # Panics
    /// If `work` panicked on any thread.
    pub fn run(&self, total: u64, work: &Work<'_>) {
        let threads = self.threads() as u64;
        if threads == 1 || total <= 1 {
            if total > 0 {
                work(0, 0, total);
            }
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; nobody follows the pointer after this function has returned.
        let work: *const Work<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        let unit = total.div_ceil(u64::from(u32::MAX));
        let units = total.div_ceil(unit);
        // Below 2^32, as all units are.
        let run = (units / (threads * RUNS)).max(1) as u32;
        let job = Job { work, total, unit, run, split: self.split };
        let place = |thread: usize| (u128::from(units) * thread as u128 / u128::from(threads)) as u32;
        for (thread, share) in shared.shares.iter().enumerate() {
            share.set(place(thread), place(thread + 1));
        }
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        shared.launches.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        shared.work(job, 0);
        let mut spins = 0u32;
        while shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins.is_multiple_of(4096) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a workgroup panicked");
    }
}

impl Shared {
    /// Takes runs until none is left.
    fn work(&self, job: Job, thread: usize) {
        // SAFETY: `run` does not return before `busy` is 0, so the closure lives.
        let work = unsafe { &*job.work };
        let done = catch_unwind(AssertUnwindSafe(|| {
            let units = |(begin, end): (u32, u32)| {
                work(thread, u64::from(begin) * job.unit, (u64::from(end) * job.unit).min(job.total));
            };
            match job.split {
                Split::Static => self.shares[thread].all().into_iter().for_each(units),
                Split::Dynamic => while self.runs(thread, job.run, &units) {},
            }
        }));
        if done.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Does a thread's share in runs, then takes another share; whether there was one.
    fn runs(&self, thread: usize, longest: u32, units: &dyn Fn((u32, u32))) -> bool {
        while let Some(run) = self.shares[thread].front(longest) {
            units(run);
        }
        let count = self.shares.len();
        let other = (1..count).find_map(|step| self.shares[(thread + step) % count].back());
        if let Some((begin, end)) = other {
            self.shares[thread].set(begin, end);
        }
        other.is_some()
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            self.await_launch(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            seen += 1;
            let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(job) = job {
                self.work(job, thread);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns when there is a launch past `seen`, or the pool stops.
    fn await_launch(&self, seen: u64) {
        let ready = || self.launches.load(Ordering::SeqCst) != seen || self.stop.load(Ordering::SeqCst);
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..64 {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker that panicked has been reported by `run`.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workgroup_runs_once() {
        let options = [Split::Dynamic, Split::Static].map(|split| [false, true].map(|pin| PoolOptions { split, pin }));
        for (threads, options) in
            [1, 2, 3, 5].into_iter().flat_map(|n| options.as_flattened().iter().map(move |o| (n, o)))
        {
            let pool = Pool::with_options(threads, *options);
            for total in [0u64, 1, 2, 3, 7, 64, 1000, 4099] {
                let hits: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                pool.run(total, &|thread, begin, end| {
                    assert!(thread < threads);
                    (begin..end).for_each(|i| {
                        hits[i as usize].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(
                    hits.iter().all(|h| h.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {options:?}, {total} workgroups"
                );
            }
        }
    }

    #[test]
    fn a_panic_is_reported_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|_, begin, _| assert!(begin < 50, "planted"));
        }));
        assert!(panicked.is_err());
        let count = AtomicUsize::new(0);
        pool.run(100, &|_, begin, end| {
            count.fetch_add((end - begin) as usize, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 100);
    }

    #[test]
    fn launches_from_several_threads_take_turns() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let count = AtomicUsize::new(0);
                        pool.run(37, &|_, begin, end| {
                            count.fetch_add((end - begin) as usize, Ordering::Relaxed);
                        });
                        assert_eq!(count.into_inner(), 37);
                    }
                });
            }
        });
    }
}
