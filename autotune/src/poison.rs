//! Garbage in the padding of packed weights: rows past N, columns past K or past a group's end, gaps between sections.
//!
//! Reads a problem with packed weights; changes every bit of them that belongs to no weight, scale or zero. Always holds:
//! unpacking gives the same matrix as before. So no kernel's answer may change.

use crate::problem::{Problem, quantized};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::format::n16::{N16, ROWS};
use bitsmith_compiler::format::qt16::PANEL;
use bitsmith_compiler::lower::{Packing, Role, packing};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};

/// Poisons the weights of a problem, which lie in N16; returns how many bits are padding: none where there are no weights.
pub fn padding(problem: &mut Problem, seed: u64) -> usize {
    let (n, k, format) = match &problem.op {
        Op::Matmul(op) => (op.n, op.k, op.weight),
        Op::Dequant(op) => (op.n, op.k, op.weight),
        Op::Quantize(_) => return 0,
    };
    let Ok(layout) = N16::of(&format, k) else { return 0 };
    let buffer = problem.buffers.iter_mut().find(|buffer| buffer.signature.role == Role::Weights);
    buffer.map_or(0, |buffer| fill(&layout, n, &mut buffer.bytes, seed))
}

/// A problem as a schedule's kernel takes it, with garbage where its packing has padding: in N16 every bit that means
/// nothing, in QT16 the rows past N, which hold rows of another matrix.
pub fn packed(problem: &Problem, schedule: &Schedule, caps: &Caps, seed: u64) -> Result<Problem> {
    let mut problem = problem.clone();
    let how = packing(&problem.op, schedule, caps);
    if how == Packing::N16 {
        padding(&mut problem, seed);
        return Ok(problem);
    }
    let mut packed = problem.packed_for(schedule, caps)?;
    let Some(weights) = &problem.weights else { return Ok(packed) };
    let mut other = quantized(&weights.format, weights.n.next_multiple_of(PANEL), weights.k, seed ^ 0x0ddba11)?;
    let rows = (weights.n, other.n);
    let taken = take_rows(&mut other.codes, &weights.codes, rows)
        && take_rows(&mut other.scales, &weights.scales, rows)
        && take_rows(&mut other.outer, &weights.outer, rows)
        && take_rows(&mut other.zeros, &weights.zeros, rows)
        && take_rows(&mut other.zeros_outer, &weights.zeros_outer, rows);
    if taken {
        let bytes = how.pack(&other)?;
        for buffer in packed.buffers.iter_mut().filter(|buffer| buffer.signature.role == Role::Weights) {
            if buffer.bytes.len() != bytes.len() {
                return Err(Error::invalid(format!(
                    "{} bytes of packed weights, not {}",
                    bytes.len(),
                    buffer.bytes.len()
                )));
            }
            buffer.bytes.clone_from(&bytes);
        }
    }
    Ok(packed)
}

/// Puts the rows of a smaller array in front; arrays without rows are taken whole. False where neither fits, as with scales
/// that rows share.
fn take_rows<T: Copy>(larger: &mut [T], smaller: &[T], (rows, all): (usize, usize)) -> bool {
    let per_row = larger.len() * rows == smaller.len() * all;
    if per_row || larger.len() == smaller.len() {
        larger[..smaller.len()].copy_from_slice(smaller);
    }
    per_row || larger.len() == smaller.len()
}

/// Fills the padding of a packed matrix. Of four seeds one gives ones everywhere, which is NaN in every float type; the
/// others give random bits. Returns how many bits are padding.
///
/// # Panics
/// If the bytes are not those of a matrix of `n` rows in this layout.
pub fn fill(layout: &N16, n: usize, packed: &mut [u8], seed: u64) -> usize {
    assert_eq!(packed.len(), layout.bytes(n), "the layout is that of the packed matrix");
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
    for row in 0..n {
        let (record, lane) = (row / ROWS * layout.record, row % ROWS);
        for section in layout.sections() {
            for entry in 0..section.entries {
                let (place, bit) = layout.entry_place(&section, entry);
                let at = record + place + lane * section.size();
                let mask = field(bit, section.dtype.bits().min(8) as u8);
                used[at..at + section.size()].iter_mut().for_each(|byte| *byte |= mask);
            }
        }
        for column in 0..layout.k {
            let (quad, byte) = layout.place(column);
            let (unit, words) = layout.quad(quad);
            let codes = record + layout.unit_place(unit) + lane * 4 + byte;
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
    use bitsmith_compiler::caps::gpu;
    use bitsmith_compiler::dtype::DType;
    use bitsmith_compiler::format::qt16::{Class, LaneOrder, Qt16};
    use bitsmith_compiler::op::{Activation, Epilogue, Matmul};
    use bitsmith_compiler::schedule::Family;

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
    #[test]
    fn rows_past_the_last_change_in_qt16_and_the_others_stay() {
        for (text, n) in [("int4-g64", 5), ("uint4-g128-asym", 70), ("int8-channel", 63), ("int8-tensor-f32", 1)] {
            let weight = text.parse().unwrap();
            let activation = Activation::Float(DType::F16);
            let op = Matmul { n, k: 256, weight, activation, out: DType::F32, epilogue: Epilogue::default() };
            let problem = Problem::random(&Op::Matmul(op), 1, 3).unwrap();
            let schedule = Schedule::single(Family::Mma, 8, 16, 1);
            let caps = gpu("a100").unwrap();
            let clean = problem.packed_for(&schedule, caps).unwrap();
            let poisoned = packed(&problem, &schedule, caps, 9).unwrap();
            let of = |problem: &Problem| {
                problem.buffers.iter().find(|b| b.signature.role == Role::Weights).unwrap().bytes.clone()
            };
            assert_ne!(of(&clean), of(&poisoned), "{text}");
            let layout = Qt16::of(&weight, 256, Class::F16, LaneOrder::Gt).unwrap();
            let unpacked = |problem: &Problem| layout.unpack(n, &of(problem)).unwrap();
            assert_eq!(unpacked(&clean), unpacked(&poisoned), "{text}");
        }
    }
}
