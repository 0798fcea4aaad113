//! This machine's roofs, measured in the same process as the kernels: what memory delivers and what arithmetic peaks at.

use crate::timing::{Measurement, interleave, seconds};
use serde::Serialize;
use std::time::Duration;

/// Roofs of a CPU for a number of threads. Zero stands for "this processor cannot".
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofs {
    /// Threads that ran.
    pub threads: usize,
    /// Bytes read by each measurement of bandwidth.
    pub footprint: usize,
    /// Read bandwidth, GB/s.
    pub read_gbs: f64,
    /// `vpdpbusd` on 128-bit registers, GOP/s (two operations per product).
    pub dot128_gops: f64,
    /// `vpdpbusd` on 256-bit registers.
    pub dot256_gops: f64,
    /// `vpdpbusd` on 512-bit registers.
    pub dot512_gops: f64,
    /// `vpmaddubsw` + `vpmaddwd` on 128-bit registers: the dot product of processors without VNNI.
    pub maddubs128_gops: f64,
    /// Fused multiply-add on 128-bit registers, GFLOP/s.
    pub fma128_gflops: f64,
    /// On 256-bit registers.
    pub fma256_gflops: f64,
    /// On 512-bit registers.
    pub fma512_gflops: f64,
}

/// Measures all roofs. `footprint` is the number of bytes that are read per sample; it should be far above the caches.
pub fn measure(threads: usize, footprint: usize) -> Roofs {
    let data = vec![1u64; footprint / 8];
    let read = read_seconds(&data, threads).min;
    let peak = |kind: Peak| arithmetic(kind, threads);
    Roofs {
        threads,
        footprint,
        read_gbs: footprint as f64 / read / 1e9,
        dot128_gops: peak(Peak::Dot128),
        dot256_gops: peak(Peak::Dot256),
        dot512_gops: peak(Peak::Dot512),
        maddubs128_gops: peak(Peak::Maddubs128),
        fma128_gflops: peak(Peak::Fma128),
        fma256_gflops: peak(Peak::Fma256),
        fma512_gflops: peak(Peak::Fma512),
    }
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

#[derive(Clone, Copy)]
enum Peak {
    Dot128,
    Dot256,
    Dot512,
    Maddubs128,
    Fma128,
    Fma256,
    Fma512,
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

/// A loop of twelve independent instructions, and the operations that one turn makes.
fn peak_loop(kind: Peak) -> Option<(fn(u64), f64)> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let vnni512 = has!("avx512f") && has!("avx512vnni");
        let vnni = vnni512 && has!("avx512vl");
        let fma = has!("avx") && has!("fma");
        let twelve = |bytes: f64, per_byte: f64| 12.0 * bytes * per_byte;
        match kind {
            Peak::Dot128 if vnni => Some((x86::dot128, twelve(16.0, 2.0))),
            Peak::Dot256 if vnni => Some((x86::dot256, twelve(32.0, 2.0))),
            Peak::Dot512 if vnni512 => Some((x86::dot512, twelve(64.0, 2.0))),
            Peak::Maddubs128 if has!("avx") => Some((x86::maddubs128, twelve(16.0, 2.0))),
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_or_si256, _mm256_setzero_si256,
        _mm512_loadu_si512, _mm512_or_si512, _mm512_reduce_or_epi64, _mm512_setzero_si512,
    };

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn combine512(data: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        let chunks = data.chunks_exact(32);
        let rest = chunks.remainder().iter().fold(0, |a, x| a | x);
        for chunk in chunks {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk holds 32 words, four vectors of eight.
                let x = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(8 * i).cast::<__m512i>()) };
                *sum = _mm512_or_si512(*sum, x);
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_si512(), |a, x| _mm512_or_si512(a, x));
        _mm512_reduce_or_epi64(all) as u64 | rest
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn combine256(data: &[u64]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 4];
        let chunks = data.chunks_exact(16);
        let rest = chunks.remainder().iter().fold(0, |a, x| a | x);
        for chunk in chunks {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk holds 16 words, four vectors of four.
                let x = unsafe { _mm256_loadu_si256(chunk.as_ptr().add(4 * i).cast::<__m256i>()) };
                *sum = _mm256_or_si256(*sum, x);
            }
        }
        let all = sums.into_iter().fold(_mm256_setzero_si256(), |a, x| _mm256_or_si256(a, x));
        let lanes = [
            _mm256_extract_epi64::<0>(all),
            _mm256_extract_epi64::<1>(all),
            _mm256_extract_epi64::<2>(all),
            _mm256_extract_epi64::<3>(all),
        ];
        lanes.iter().fold(rest, |a, &x| a | x as u64)
    }

    /// A loop of twelve instructions with an accumulator each, which the compiler cannot shorten.
    macro_rules! peak {
        ($name:ident, $clear:literal, $op:literal, $r:literal, $tail:literal) => {
            pub(super) fn $name(turns: u64) {
                // SAFETY: the caller has detected the instruction; only the named registers change.
                unsafe {
                    asm!(
                        concat!($clear, " ", $r, "13, ", $r, "13, ", $r, "13"),
                        concat!($clear, " ", $r, "14, ", $r, "14, ", $r, "14"),
                        "2:",
                        concat!($op, " ", $r, "0, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "1, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "2, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "3, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "4, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "5, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "6, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "7, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "8, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "9, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "10, ", $r, "13, ", $r, "14"),
                        concat!($op, " ", $r, "11, ", $r, "13, ", $r, "14"),
                        "dec {turns}",
                        "jnz 2b",
                        $tail,
                        turns = inout(reg) turns => _,
                        out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                        out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                        out("zmm12") _, out("zmm13") _, out("zmm14") _,
                        options(nostack, nomem)
                    );
                }
            }
        };
    }

    peak!(dot128, "vpxor", "vpdpbusd", "xmm", "");
    peak!(dot256, "vpxor", "vpdpbusd", "ymm", "vzeroupper");
    peak!(dot512, "vpxord", "vpdpbusd", "zmm", "vzeroupper");
    peak!(fma128, "vxorps", "vfmadd231ps", "xmm", "");
    peak!(fma256, "vxorps", "vfmadd231ps", "ymm", "vzeroupper");
    peak!(fma512, "vpxord", "vfmadd231ps", "zmm", "vzeroupper");

    /// Twelve byte products with their sums: `vpmaddubsw`, `vpmaddwd` by ones, `vpaddd`.
    pub(super) fn maddubs128(turns: u64) {
        // SAFETY: the caller has detected AVX; only the named registers change.
        unsafe {
            asm!(
                "vpxor xmm13, xmm13, xmm13",
                "vpxor xmm14, xmm14, xmm14",
                "2:",
                ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
                "vpmaddubsw xmm12, xmm13, xmm14",
                "vpmaddwd xmm12, xmm12, xmm14",
                "vpaddd xmm\\r, xmm\\r, xmm12",
                ".endr",
                "dec {turns}",
                "jnz 2b",
                turns = inout(reg) turns => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _,
                options(nostack, nomem)
            );
        }
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
    fn roofs_are_plausible() {
        let roofs = measure(1, 1 << 20);
        assert!(roofs.read_gbs > 0.1, "{roofs:?}");
        // Twice the width is at least as fast.
        assert!(roofs.dot256_gops >= 0.8 * roofs.dot128_gops, "{roofs:?}");
    }
}
