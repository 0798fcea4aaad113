//! One product in a graph: its activations are quantized, then multiplied, by whatever threads ggml calls with.
//!
//! Reads activations; writes one tensor. Always holds: threads meet once, between the quantization and the product, and only
//! where there is a quantization to wait for; they take runs of workgroups from a counter, so that one that is held up
//! costs at most one run.

use bitsmith_runtime::cpu::DirectCall;
use half::f16;
use llama_cpp_sys_2 as sys;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Runs per thread: what limits the cost of a thread that is held up.
const RUNS: u64 = 8;

/// A call and the counter that its workgroups are taken from.
struct Shared {
    call: DirectCall,
    next: AtomicU64,
}

impl Shared {
    fn new(call: DirectCall) -> Shared {
        Shared { call, next: AtomicU64::new(0) }
    }

    /// Takes runs of workgroups until none is left.
    fn share(&self, threads: u64, work: impl Fn(&DirectCall, Range<u64>)) {
        let total = self.call.workgroups();
        let run = if threads == 1 { total } else { (total / (threads * RUNS)).max(1) };
        loop {
            let begin = self.next.fetch_add(run.max(1), Ordering::Relaxed);
            if begin >= total {
                return;
            }
            work(&self.call, begin..(begin + run).min(total));
        }
    }
}

/// Rows that do not lie one after another, copied to where they do.
pub struct Gather {
    /// The tensor that they come from.
    pub from: *const sys::ggml_tensor,
    /// Room for all rows.
    pub to: *mut f32,
}

impl Gather {
    /// # Safety
    /// The tensor is of `f32`, alive and written; the room is that of its elements; `rows` are rows of it.
    unsafe fn copy(&self, rows: Range<u64>) {
        // SAFETY: the caller's promise; places follow from the tensor's own strides.
        unsafe {
            let from = &*self.from;
            let [k, n1, n2, _] = from.ne.map(|n| n as usize);
            for row in rows {
                let row = row as usize;
                let (i1, i2, i3) = (row % n1, row / n1 % n2, row / (n1 * n2));
                let start = from.data.cast::<u8>().add(i1 * from.nb[1] + i2 * from.nb[2] + i3 * from.nb[3]);
                for column in 0..k {
                    *self.to.add(row * k + column) = start.add(column * from.nb[0]).cast::<f32>().read();
                }
            }
        }
    }
}

/// Scales of activations that are rounded to `f16`, as ggml's `Q8_0` and `Q8_1` keep them: results then differ from ggml's by
/// the order of sums alone.
pub struct Halves {
    /// The scales of all rows.
    pub scales: *mut f32,
    /// Scales of a row.
    pub per_row: usize,
}

impl Halves {
    /// # Safety
    /// The scales of `rows` have been written, and nobody else touches them.
    unsafe fn round(&self, rows: Range<u64>) {
        // SAFETY: the caller's promise.
        let scales = unsafe {
            let start = self.scales.add(rows.start as usize * self.per_row);
            std::slice::from_raw_parts_mut(start, (rows.end - rows.start) as usize * self.per_row)
        };
        for scale in scales {
            *scale = f16::from_f32(*scale).to_f32();
        }
    }
}

/// A quantization of activations: a call with a workgroup per row, and what is done to rows before and after it.
pub struct Quantization {
    /// The call.
    pub call: DirectCall,
    /// Where rows come from, if they do not lie one after another.
    pub gather: Option<Gather>,
    /// Scales that are rounded.
    pub halves: Option<Halves>,
}

/// A product, ready to run.
pub struct Job {
    quantize: Option<(Shared, Option<Gather>, Option<Halves>)>,
    product: Shared,
    /// Threads that are through with the quantization.
    arrived: AtomicUsize,
    /// Scratch of the first thread; those of the others follow.
    scratch: *mut u8,
    stride: usize,
}

impl Job {
    /// A product whose activations are quantized first, or have been by an earlier job.
    pub fn new(quantize: Option<Quantization>, product: DirectCall) -> Job {
        Job {
            quantize: quantize.map(|q| (Shared::new(q.call), q.gather, q.halves)),
            product: Shared::new(product),
            arrived: AtomicUsize::new(0),
            scratch: std::ptr::null_mut(),
            stride: 0,
        }
    }

    /// Bytes of scratch that each thread needs.
    pub fn scratch_bytes(&self) -> usize {
        self.product.call.scratch_bytes().max(self.quantize.as_ref().map_or(0, |(q, ..)| q.call.scratch_bytes()))
    }

    /// Where the scratch of the first thread is, and how far it is to that of the next.
    pub fn set_scratch(&mut self, start: *mut u8, stride: usize) {
        (self.scratch, self.stride) = (start, stride);
    }

    /// One thread's share of it.
    ///
    /// # Safety
    /// Each of `threads` threads calls this once; all buffers of the calls are valid for their sizes, and what they read has
    /// been written; there is scratch for every thread.
    unsafe fn run(&self, thread: usize, threads: usize) {
        // SAFETY: the caller's promise.
        let scratch = if self.stride > 0 { unsafe { self.scratch.add(thread * self.stride) } } else { self.scratch };
        if let Some((quantize, gather, halves)) = &self.quantize {
            quantize.share(threads as u64, |call, rows| {
                // SAFETY: the caller's promise; a row is one thread's from its copy to its scales.
                unsafe {
                    if let Some(gather) = gather {
                        gather.copy(rows.clone());
                    }
                    call.run(scratch, rows.clone());
                    if let Some(halves) = halves {
                        halves.round(rows);
                    }
                }
            });
            self.meet(threads);
        }
        // SAFETY: the caller's promise; every row has been quantized.
        self.product.share(threads as u64, |call, workgroups| unsafe { call.run(scratch, workgroups) });
    }

    /// Waits until every thread has come here: spinning first, as ggml's own threads do, then giving the processor away.
    fn meet(&self, threads: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut turns = 0u32;
        while self.arrived.load(Ordering::Acquire) < threads {
            turns = turns.saturating_add(1);
            if turns < 10_000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// What ggml calls on each of its threads: the node is a custom one whose user data is a [`Job`].
///
/// # Safety
/// `job` points to a job that outlives the computation of the graph, and each of `threads` threads calls this once.
pub unsafe extern "C" fn run(_node: *mut sys::ggml_tensor, thread: c_int, threads: c_int, job: *mut c_void) {
    // SAFETY: the caller's promise. A panic cannot cross this boundary: it aborts the process.
    unsafe { (*job.cast::<Job>()).run(thread as usize, threads as usize) }
}
