//! This machine's roofs, measured in the same process as the kernels: what memory delivers and what arithmetic peaks at.

pub mod picture;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::cpu::Pool;
use crate::pages::Zeroed;
use crate::timing::{Measurement, interleave, seconds};
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Roofs of a CPU for a number of threads. Zero stands for "this processor cannot".
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roofs {
    /// Threads that ran.
    pub threads: usize,
    /// Bytes read by each measurement of bandwidth.
    pub footprint: usize,
    /// Read bandwidth in the best pass, GB/s.
    pub read_gbs: f64,
    /// In the median pass: what a kernel's median can be held against where others use the memory too.
    #[serde(default)]
    pub read_median_gbs: f64,
    /// `vpdpbusd` on 128-bit registers, GOP/s (two operations per product).
    pub dot128_gops: f64,
    /// `vpdpbusd` on 256-bit registers.
    pub dot256_gops: f64,
    /// `vpdpbusd` on 512-bit registers.
    pub dot512_gops: f64,
    /// `vpmaddubsw`, `vpmaddwd`, `vpaddd` on 128-bit registers: the dot product of processors without VNNI.
    pub maddubs128_gops: f64,
    /// On 256-bit registers.
    pub maddubs256_gops: f64,
    /// The same for codes of at most 4 bits, on 256-bit registers: eight `vpmaddubsw` are added up in 16 bits before one
    /// `vpmaddwd`, since 8 · 2 · 15 · 127 is below 2^15.
    pub maddubs256_int4_gops: f64,
    /// `vdpbf16ps` on 512-bit registers, GFLOP/s.
    pub bf16_512_gflops: f64,
    /// Fused multiply-add on 128-bit registers, GFLOP/s.
    pub fma128_gflops: f64,
    /// On 256-bit registers.
    pub fma256_gflops: f64,
    /// On 512-bit registers.
    pub fma512_gflops: f64,
}

impl Roofs {
    /// The peaks of arithmetic that this processor has, in GOP/s, by name.
    pub fn arithmetic(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let peaks = PEAKS.iter().map(|&kind| (kind.name(), kind.of(self)));
        peaks.filter(|&(_, gops)| gops > 0.0)
    }

    /// Sets the peak of a name; whether there is one of that name.
    pub fn set(&mut self, name: &str, gops: f64) -> bool {
        let kind = PEAKS.iter().find(|kind| kind.name() == name);
        if let Some(kind) = kind {
            *kind.of_mut(self) = gops;
        }
        kind.is_some()
    }

    /// The highest peak for products of bytes with codes of so many bits, and its name; `None` where none was measured.
    pub fn best_dot(&self, bits: u8) -> Option<(&'static str, f64)> {
        self.highest(|name| {
            name.starts_with("dot") || name.starts_with("maddubs") && (bits <= 4 || !name.ends_with("-int4"))
        })
    }

    /// The highest peak for sums in `f32` of products of `f32` numbers, and its name.
    pub fn best_fma(&self) -> Option<(&'static str, f64)> {
        self.highest(|name| name.starts_with("fma"))
    }

    /// The higher of multiply-adds and dot products of bf16, with its name.
    pub fn best_bf16(&self) -> Option<(&'static str, f64)> {
        self.highest(|name| name.starts_with("fma") || name.starts_with("bf16"))
    }

    fn highest(&self, which: impl Fn(&str) -> bool) -> Option<(&'static str, f64)> {
        self.arithmetic().filter(|(name, _)| which(name)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The higher of each roof: measured before and after kernels, so that a neighbour's burst does not lower them.
    pub fn higher(mut self, other: &Roofs) -> Roofs {
        self.read_gbs = self.read_gbs.max(other.read_gbs);
        self.read_median_gbs = self.read_median_gbs.max(other.read_median_gbs);
        for kind in PEAKS {
            *kind.of_mut(&mut self) = kind.of(&self).max(kind.of(other));
        }
        self
    }
}

/// Measures all roofs. `footprint` is the number of bytes that are read per sample; it should be far above the caches. They lie
/// in large pages, as buffers of the CPU device do.
pub fn measure(threads: usize, footprint: usize) -> Roofs {
    let read = match crate::pages::zeroed(footprint.max(8)) {
        Ok(mut map) => {
            map.fill(1);
            // SAFETY: any bits are whole numbers of 64 bits.
            let (_, data, _) = unsafe { map.align_to::<u64>() };
            read_seconds(data, threads)
        }
        Err(_) => read_seconds(&vec![1u64; footprint / 8], threads),
    };
    let gbs = |seconds: f64| footprint as f64 / seconds / 1e9;
    let (read_gbs, read_median_gbs) = (gbs(read.min), gbs(read.median));
    let mut roofs = Roofs { threads, footprint, read_gbs, read_median_gbs, ..Roofs::default() };
    for kind in PEAKS {
        *kind.of_mut(&mut roofs) = arithmetic(kind, threads);
    }
    roofs
}

/// Seconds to read `data` once, by `threads` threads that each read a contiguous part.
pub fn read_seconds(data: &[u64], threads: usize) -> Measurement {
    let part = data.len().div_ceil(threads.max(1));
    let mut pass = |runs: usize| {
        for _ in 0..runs {
            std::thread::scope(|scope| {
                for part in data.chunks(part) {
                    scope.spawn(|| std::hint::black_box(combine(part)));
                }
            });
        }
    };
    interleave(&mut [&mut pass], Duration::from_millis(1), Duration::from_millis(600)).remove(0)
}

/// Memory that threads read in passes, piece after piece: what a kernel that streams as many bytes is measured beside, sample
/// by sample, where a roof is the best of many passes.
pub struct Reader {
    map: Zeroed,
    pool: Pool,
    /// Bytes of a pass, and where the next one starts.
    piece: usize,
    next: usize,
}

impl Reader {
    /// `footprint` bytes in large pages, of which a pass reads `piece` (at most all of them), by so many threads. Fails where
    /// the system has not that much memory.
    pub fn new(footprint: usize, piece: usize, threads: usize) -> Result<Reader> {
        let piece = piece.clamp(8, footprint.max(8));
        let refuse = |e| Error::invalid(format!("{footprint} bytes of memory to read: {e}"));
        let mut map = crate::pages::zeroed(footprint.max(8)).map_err(refuse)?;
        map.fill(1);
        Ok(Reader { map, pool: Pool::new(threads), piece, next: 0 })
    }

    /// Bytes of a pass from now on, at most all there are.
    pub fn set_piece(&mut self, piece: usize) {
        self.piece = piece.clamp(8, self.map.len());
    }

    /// Bytes of a pass.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Reads the next piece; each thread has a contiguous part of it.
    pub fn pass(&mut self) {
        if self.next + self.piece > self.map.len() {
            self.next = 0;
        }
        // SAFETY: any bits are whole numbers of 64 bits.
        let (_, data, _) = unsafe { self.map[self.next..self.next + self.piece].align_to::<u64>() };
        let threads = self.pool.threads();
        let part = data.len().div_ceil(threads).max(1);
        self.pool.run(threads as u64, &|_, begin, end| {
            for part in data.chunks(part).skip(begin as usize).take((end - begin) as usize) {
                std::hint::black_box(combine(part));
            }
        });
        self.next += self.piece.next_multiple_of(64);
    }
}

/// Reads every word of `data`, with the widest loads there are.
fn combine(data: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            return unsafe { x86::combine512(data) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just detected.
            return unsafe { x86::combine256(data) };
        }
    }
    let mut lanes = [0u64; 8];
    let chunks = data.chunks_exact(8);
    let rest = chunks.remainder().iter().fold(0, |a, x| a | x);
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane |= x;
        }
    }
    lanes.iter().fold(rest, |a, x| a | x)
}

/// A kind of arithmetic.
#[derive(Clone, Copy)]
enum Peak {
    Dot128,
    Dot256,
    Dot512,
    Maddubs128,
    Maddubs256,
    Maddubs256Int4,
    Bf16,
    Fma128,
    Fma256,
    Fma512,
}

const PEAKS: [Peak; 10] = [
    Peak::Dot128,
    Peak::Dot256,
    Peak::Dot512,
    Peak::Maddubs128,
    Peak::Maddubs256,
    Peak::Maddubs256Int4,
    Peak::Bf16,
    Peak::Fma128,
    Peak::Fma256,
    Peak::Fma512,
];

impl Peak {
    fn name(self) -> &'static str {
        match self {
            Peak::Dot128 => "dot128",
            Peak::Dot256 => "dot256",
            Peak::Dot512 => "dot512",
            Peak::Maddubs128 => "maddubs128",
            Peak::Maddubs256 => "maddubs256",
            Peak::Maddubs256Int4 => "maddubs256-int4",
            Peak::Bf16 => "bf16-512",
            Peak::Fma128 => "fma128",
            Peak::Fma256 => "fma256",
            Peak::Fma512 => "fma512",
        }
    }

    fn of(self, roofs: &Roofs) -> f64 {
        *self.of_mut(&mut { *roofs })
    }

    fn of_mut(self, roofs: &mut Roofs) -> &mut f64 {
        match self {
            Peak::Dot128 => &mut roofs.dot128_gops,
            Peak::Dot256 => &mut roofs.dot256_gops,
            Peak::Dot512 => &mut roofs.dot512_gops,
            Peak::Maddubs128 => &mut roofs.maddubs128_gops,
            Peak::Maddubs256 => &mut roofs.maddubs256_gops,
            Peak::Maddubs256Int4 => &mut roofs.maddubs256_int4_gops,
            Peak::Bf16 => &mut roofs.bf16_512_gflops,
            Peak::Fma128 => &mut roofs.fma128_gflops,
            Peak::Fma256 => &mut roofs.fma256_gflops,
            Peak::Fma512 => &mut roofs.fma512_gflops,
        }
    }
}

/// GOP/s of a loop of independent instructions, best of several samples.
fn arithmetic(kind: Peak, threads: usize) -> f64 {
    let Some((run, per_turn)) = peak_loop(kind) else { return 0.0 };
    const TURNS: u64 = 2_000_000;
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        best = best.min(seconds(|| {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| run(TURNS));
                }
            });
        }));
    }
    threads as f64 * TURNS as f64 * per_turn / best / 1e9
}

/// A loop of independent instructions, and the operations that one turn makes.
fn peak_loop(kind: Peak) -> Option<(fn(u64), f64)> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let vnni512 = has!("avx512f") && has!("avx512vnni");
        let vnni = vnni512 && has!("avx512vl");
        let vex = has!("avxvnni");
        let fma = has!("avx") && has!("fma");
        let twelve = |bytes: f64, per_byte: f64| 12.0 * bytes * per_byte;
        match kind {
            Peak::Dot128 if vnni => Some((x86::dot128, twelve(16.0, 2.0))),
            Peak::Dot256 if vnni => Some((x86::dot256, twelve(32.0, 2.0))),
            Peak::Dot128 if vex => Some((x86::vex_dot128, twelve(16.0, 2.0))),
            Peak::Dot256 if vex => Some((x86::vex_dot256, twelve(32.0, 2.0))),
            Peak::Dot512 if vnni512 => Some((x86::dot512, twelve(64.0, 2.0))),
            Peak::Maddubs128 if has!("avx") => Some((x86::maddubs128, twelve(16.0, 2.0))),
            Peak::Maddubs256 if has!("avx2") => Some((x86::maddubs256, twelve(32.0, 2.0))),
            Peak::Maddubs256Int4 if has!("avx2") => Some((x86::maddubs256_int4, 16.0 * 32.0 * 2.0)),
            Peak::Bf16 if has!("avx512bf16") => Some((x86::bf16_512, twelve(32.0, 2.0))),
            Peak::Fma128 if fma => Some((x86::fma128, twelve(4.0, 2.0))),
            Peak::Fma256 if fma => Some((x86::fma256, twelve(8.0, 2.0))),
            Peak::Fma512 if has!("avx512f") => Some((x86::fma512, twelve(16.0, 2.0))),
            _ => None,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = kind;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for n in [0, 1, 15, 16, 31, 32, 33, 100, 1000] {
            for hot in (0..n).step_by(7) {
                let mut data = vec![0u64; n];
                data[hot] = 0x8000_0000_0000_0001;
                assert_eq!(combine(&data), data[hot], "{n} words, word {hot}");
            }
        }
    }

    #[test]
    fn the_higher_of_each_roof() {
        let a = Roofs { threads: 2, read_gbs: 3.0, fma128_gflops: 5.0, ..Roofs::default() };
        let b = Roofs { threads: 2, read_gbs: 4.0, fma128_gflops: 2.0, dot512_gops: 1.0, ..Roofs::default() };
        let both = Roofs { read_gbs: 4.0, dot512_gops: 1.0, ..a };
        assert_eq!(a.higher(&b), both);
        assert_eq!(both.arithmetic().collect::<Vec<_>>(), [("dot512", 1.0), ("fma128", 5.0)]);
        assert_eq!(both.best_fma(), Some(("fma128", 5.0)));
        assert_eq!(Roofs::default().best_dot(8), None);
        let old = Roofs { maddubs256_gops: 2.0, maddubs256_int4_gops: 3.0, ..Roofs::default() };
        assert_eq!(old.best_dot(8), Some(("maddubs256", 2.0)));
        assert_eq!(old.best_dot(4), Some(("maddubs256-int4", 3.0)));
    }

    #[test]
    fn a_reader_reads_piece_after_piece() {
        let mut reader = Reader::new(1 << 20, 300_000, 2).unwrap();
        let starts: Vec<usize> = (0..5)
            .map(|_| {
                reader.pass();
                reader.next - 300_032
            })
            .collect();
        assert_eq!(starts, [0, 300_032, 600_064, 0, 300_032]);
    }

    #[test]
    fn roofs_are_plausible() {
        let roofs = measure(1, 1 << 20);
        assert!(roofs.read_gbs > 0.1, "{roofs:?}");
        // Twice the width is at least as fast.
        assert!(roofs.dot256_gops >= 0.8 * roofs.dot128_gops, "{roofs:?}");
        assert!(roofs.maddubs256_int4_gops >= 0.8 * roofs.maddubs256_gops, "{roofs:?}");
    }
}
