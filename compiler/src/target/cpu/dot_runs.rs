//! Runs of byte dot products that share 16-bit sums, for processors without a dot instruction.
//!
//! x86's `pmaddubsw` leaves sums of two products in 16 bits, and widening them costs two instructions more. Where one dot
//! product accumulates on another and the promised widths of their unsigned bytes keep every 16-bit sum exact, only the
//! last of a run is widened. Integer addition wraps and may be regrouped, so the result is the same to the bit.

use std::collections::{HashMap, HashSet};

use super::emit::uses;
use crate::ir::{Block, Dot4Signs, Inst, Kernel, Value};

/// Dot products whose results go on in 16 bits: each is used once, as the accumulator of the next of its run.
pub(super) fn continued(kernel: &Kernel) -> HashSet<Value> {
    let mut count: HashMap<Value, u32> = HashMap::new();
    uses(&kernel.body, &mut |_, value| *count.entry(value).or_default() += 1);
    let mut found = HashSet::new();
    search(&kernel.body, kernel, &count, &mut found);
    found
}

fn search(block: &Block, kernel: &Kernel, count: &HashMap<Value, u32>, found: &mut HashSet<Value>) {
    // Largest magnitude that a 16-bit sum can have after each dot product of this block.
    let mut reached: HashMap<Value, u32> = HashMap::new();
    for statement in &block.statements {
        match &statement.inst {
            Inst::Dot4 { signs: Dot4Signs::UnsignedSigned, a_bits, acc, .. } if kernel.ty(*acc).lanes > 1 => {
                let own = pair_magnitude(*a_bits);
                let before = reached.get(acc).copied().filter(|_| count.get(acc) == Some(&1));
                let total = match before {
                    Some(before) if before + own <= i16::MAX as u32 => {
                        found.insert(*acc);
                        before + own
                    }
                    _ => own,
                };
                reached.insert(statement.results[0], total);
            }
            Inst::For(for_) => search(&for_.body, kernel, count, found),
            Inst::If(if_) => {
                search(&if_.then, kernel, count, found);
                search(&if_.otherwise, kernel, count, found);
            }
            _ => {}
        }
    }
}

/// Largest magnitude of two products of an unsigned byte below `2^bits` with a signed byte.
fn pair_magnitude(bits: u8) -> u32 {
    2 * ((1 << bits) - 1) * 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, Scalar, Type};

    /// A chain of `n` dot products on one accumulator.
    fn chain(n: usize, bits: u8) -> (Kernel, Vec<Value>) {
        let mut b = Builder::new("k");
        let bytes = b.int(Type::vector(Scalar::I8, 16), 1);
        let mut acc = b.int(Type::vector(Scalar::I32, 4), 0);
        let mut made = Vec::new();
        for _ in 0..n {
            acc = b.dot4(Dot4Signs::UnsignedSigned, bits, bytes, bytes, acc);
            made.push(acc);
        }
        (b.finish(), made)
    }

    #[test]
    fn a_run_ends_before_sixteen_bits_overflow() {
        for (bits, longest) in [(1, 127), (2, 42), (4, 8), (5, 4), (6, 2), (7, 1), (8, 1)] {
            let (kernel, made) = chain(2 * longest, bits);
            let continued = continued(&kernel);
            for (i, value) in made.iter().enumerate() {
                let last_of_run = i % longest == longest - 1;
                assert_eq!(continued.contains(value), !last_of_run, "{bits} bits, dot product {i}");
            }
        }
    }

    #[test]
    fn a_result_that_is_used_elsewhere_is_widened() {
        let mut b = Builder::new("k");
        let bytes = b.int(Type::vector(Scalar::I8, 16), 1);
        let zero = b.int(Type::vector(Scalar::I32, 4), 0);
        let first = b.dot4(Dot4Signs::UnsignedSigned, 4, bytes, bytes, zero);
        let second = b.dot4(Dot4Signs::UnsignedSigned, 4, bytes, bytes, first);
        let _ = b.add(first, second);
        assert!(continued(&b.finish()).is_empty());
    }
}
