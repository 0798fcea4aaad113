//! Garbage in the padding of packed weights: rows past N, columns past K or past a group's end, gaps between sections.
//!
//! Reads a problem with packed weights; changes every bit of them that belongs to no weight, scale or zero. Always holds:
//! unpacking gives the same matrix as before. So no kernel's answer may change.

use bitsmith_autotune::problem::Problem;
use bitsmith_compiler::format::n16::{N16, ROWS};
use bitsmith_compiler::lower::Role;
use bitsmith_compiler::op::Op;

/// Poisons the weights of a problem; returns how many bits are padding.
pub fn padding(problem: &mut Problem, seed: u64) -> usize {
    let (n, k, format) = match &problem.op {
        Op::Matmul(op) => (op.n, op.k, op.weight),
        Op::Dequant(op) => (op.n, op.k, op.weight),
        Op::Quantize(_) => return 0,
    };
    let layout = N16::of(&format, k).expect("the problem packed its weights in this layout");
    let buffer = problem.buffers.iter_mut().find(|buffer| buffer.signature.role == Role::Weights);
    buffer.map_or(0, |buffer| fill(&layout, n, &mut buffer.bytes, seed))
}

/// Fills the padding of a packed matrix. Of four seeds one gives ones everywhere, which is NaN in every float type; the
/// others give random bits.
pub fn fill(layout: &N16, n: usize, packed: &mut [u8], seed: u64) -> usize {
    assert_eq!(packed.len(), layout.bytes(n));
    let mut rng = fastrand::Rng::with_seed(seed);
    let ones = seed.is_multiple_of(4);
    let mut padding = 0;
    for (byte, used) in packed.iter_mut().zip(used(layout, n)) {
        let garbage = if ones { 0xff } else { rng.u8(..) };
        *byte = *byte & used | garbage & !used;
        padding += used.count_zeros() as usize;
    }
    padding
}

/// The bits of a packed matrix that mean something.
fn used(layout: &N16, n: usize) -> Vec<u8> {
    let mut used = vec![0u8; layout.bytes(n)];
    let sections = [layout.outer, layout.zeros_outer, Some(layout.scales), layout.zeros];
    for row in 0..n {
        let (record, lane) = (row / ROWS * layout.record, row % ROWS);
        for section in sections.into_iter().flatten() {
            let size = section.stride() / ROWS;
            for entry in 0..section.entries {
                let at = record + section.offset + entry * section.stride() + lane * size;
                used[at..at + size].fill(0xff);
            }
        }
        for column in 0..layout.k {
            let (quad, byte) = layout.place(column);
            let (unit, words) = layout.quad(quad);
            let codes = record + layout.codes + unit * layout.unit_bytes() + lane * 4 + byte;
            for ((word, bit), width) in words.into_iter().zip(layout.planes) {
                used[codes + word] |= field(bit, *width);
            }
        }
    }
    used
}

/// `width` ones from bit `bit` on.
fn field(bit: u8, width: u8) -> u8 {
    ((0xffu16 >> (8 - width)) << bit) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_autotune::problem::quantized;

    #[test]
    fn the_matrix_stays_and_the_rest_changes() {
        for (text, n, k) in [
            ("int4-g32", 5, 70),
            ("int3-g50-asym", 17, 101),
            ("int8-channel", 16, 64),
            ("q6_k", 3, 256),
            ("nf4", 1, 64),
        ] {
            let matrix = quantized(&text.parse().unwrap(), n, k, 7).unwrap();
            let (layout, clean) = N16::pack(&matrix).unwrap();
            for seed in 0..3 {
                let mut packed = clean.clone();
                let padding = fill(&layout, n, &mut packed, seed);
                assert_eq!(layout.unpack(n, &packed).unwrap(), layout.unpack(n, &clean).unwrap(), "{text}");
                assert_eq!(padding > 0, packed != clean, "{text}: {padding} bits of padding");
                // Rows past N are most of the padding here, and each of their bits counts.
                let rows = n.next_multiple_of(ROWS) - n;
                assert!(padding >= rows * k * layout.format.code.bits() as usize, "{text}");
            }
        }
    }
}
