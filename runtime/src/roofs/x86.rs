//! The loops behind the roofs of x86-64. A caller has detected the instructions of the loop that it calls.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_or_si256,
    _mm256_setzero_si256, _mm512_loadu_si512, _mm512_or_si512, _mm512_reduce_or_epi64, _mm512_setzero_si512,
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

/// Words of a run, and how many neighbouring runs are read in turn, a line of each: on Zen 3 that reads 1.2 to 1.4 times as fast as
/// one run (15.5 for 11.3 GB/s with one thread, 23 for 19.5 with two), with hints that many words ahead.
const RUN: usize = 4096;
const RUNS: usize = 4;
const HINT: usize = 64;

#[target_feature(enable = "avx2")]
pub(super) unsafe fn combine256(data: &[u64]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 2];
    let mut line = |words: &[u64]| {
        _mm_prefetch::<_MM_HINT_T0>(words.as_ptr().wrapping_add(HINT).cast::<i8>());
        for (sum, words) in sums.iter_mut().zip(words.chunks_exact(4)) {
            // SAFETY: these are four words.
            let x = unsafe { _mm256_loadu_si256(words.as_ptr().cast::<__m256i>()) };
            *sum = _mm256_or_si256(*sum, x);
        }
    };
    let blocks = data.chunks_exact(RUNS * RUN);
    let lines = blocks.remainder().chunks_exact(8);
    let rest = lines.remainder().iter().fold(0, |a, x| a | x);
    for block in blocks {
        for at in (0..RUN).step_by(8) {
            (0..RUNS).for_each(|run| line(&block[run * RUN + at..][..8]));
        }
    }
    lines.for_each(line);
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
peak!(vex_dot128, "vpxor", "{{vex}} vpdpbusd", "xmm", "vzeroupper");
peak!(vex_dot256, "vpxor", "{{vex}} vpdpbusd", "ymm", "vzeroupper");
peak!(bf16_512, "vpxord", "vdpbf16ps", "zmm", "vzeroupper");
peak!(fma128, "vxorps", "vfmadd231ps", "xmm", "");
peak!(fma256, "vxorps", "vfmadd231ps", "ymm", "vzeroupper");
peak!(fma512, "vpxord", "vfmadd231ps", "zmm", "vzeroupper");

/// Byte products without VNNI: turns of a block of text, between the same ends.
macro_rules! maddubs {
    ($(#[$doc:meta])* $name:ident, $r:literal, $($line:expr),+) => {
        $(#[$doc])*
        pub(super) fn $name(turns: u64) {
            // SAFETY: the caller has detected the instructions; only the named registers change.
            unsafe {
                asm!(
                    concat!("vpxor ", $r, "13, ", $r, "13, ", $r, "13"),
                    concat!("vpxor ", $r, "14, ", $r, "14, ", $r, "14"),
                    "2:",
                    $($line),+,
                    "dec {turns}",
                    "jnz 2b",
                    "vzeroupper",
                    turns = inout(reg) turns => _,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack, nomem)
                );
            }
        }
    };
}

maddubs!(
    /// Twelve sums of byte products.
    maddubs128, "xmm",
    ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
    "vpmaddubsw xmm12, xmm13, xmm14",
    "vpmaddwd xmm12, xmm12, xmm14",
    "vpaddd xmm\\r, xmm\\r, xmm12",
    ".endr"
);

maddubs!(
    /// Twelve sums of byte products.
    maddubs256, "ymm",
    ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
    "vpmaddubsw ymm12, ymm13, ymm14",
    "vpmaddwd ymm12, ymm12, ymm14",
    "vpaddd ymm\\r, ymm\\r, ymm12",
    ".endr"
);

maddubs!(
    /// Two sums of eight byte products each: the first product starts a 16-bit sum, seven more join it.
    maddubs256_int4, "ymm",
    ".irp r, 0, 1",
    "vpmaddubsw ymm12, ymm13, ymm14",
    ".rept 7",
    "vpmaddubsw ymm15, ymm13, ymm14",
    "vpaddw ymm12, ymm12, ymm15",
    ".endr",
    "vpmaddwd ymm12, ymm12, ymm14",
    "vpaddd ymm\\r, ymm\\r, ymm12",
    ".endr"
);
