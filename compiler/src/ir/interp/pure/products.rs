//! Products of bytes and words, and tables of bytes.

use super::super::code::Slot;
use super::super::number;
use super::{At, bytes, put};
use crate::ir::kernel::Dot4Signs;

pub(super) fn dot4(signs: Dot4Signs, a_bits: u8, at: At, c: Slot, regs: &mut [u8]) -> Result<(), String> {
    for lane in 0..at.lanes as usize {
        let a: [u8; 4] = bytes(regs, at.a as usize + 4 * lane);
        let b: [u8; 4] = bytes(regs, at.b as usize + 4 * lane);
        let mut sum = i32::from_le_bytes(bytes(regs, c as usize + 4 * lane));
        for j in 0..4 {
            let factor = match signs {
                Dot4Signs::SignedSigned => a[j] as i8 as i32,
                Dot4Signs::UnsignedSigned => a[j] as i32,
            };
            if signs == Dot4Signs::UnsignedSigned && a_bits < 8 && a[j] >> a_bits != 0 {
                return Err(format!("byte {} of a is {}, which breaks a_bits = {a_bits}", 4 * lane + j, a[j]));
            }
            sum = sum.wrapping_add(factor * b[j] as i8 as i32);
        }
        put(regs, at.d as usize + 4 * lane, sum.to_le_bytes());
    }
    Ok(())
}

pub(super) fn dot2(at: At, c: Slot, regs: &mut [u8]) {
    for lane in 0..at.lanes as usize {
        let word = |regs: &[u8], slot: Slot, j: usize| {
            i32::from(i16::from_le_bytes(bytes(regs, slot as usize + 4 * lane + 2 * j)))
        };
        let mut sum = i32::from_le_bytes(bytes(regs, c as usize + 4 * lane));
        for j in 0..2 {
            sum = sum.wrapping_add(word(regs, at.a, j).wrapping_mul(word(regs, at.b, j)));
        }
        put(regs, at.d as usize + 4 * lane, sum.to_le_bytes());
    }
}

pub(super) fn dot2_bytes(at: At, c: Slot, regs: &mut [u8]) {
    for lane in 0..at.lanes as usize {
        let a: [u8; 2] = bytes(regs, at.a as usize + 2 * lane);
        let b: [u8; 2] = bytes(regs, at.b as usize + 2 * lane);
        let product = |j: usize| i32::from(a[j]) * i32::from(b[j] as i8);
        let pair = (product(0) + product(1)).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
        let sum = i16::from_le_bytes(bytes(regs, c as usize + 2 * lane)).wrapping_add(pair);
        put(regs, at.d as usize + 2 * lane, sum.to_le_bytes());
    }
}

pub(super) fn dot2_bf16(at: At, c: Slot, regs: &mut [u8]) {
    for lane in 0..at.lanes as usize {
        let word = |regs: &[u8], slot: Slot, j: usize| {
            let word = u16::from_le_bytes(bytes(regs, slot as usize + 4 * lane + 2 * j));
            number::without_subnormals(f32::from_bits(u32::from(word) << 16))
        };
        let mut sum = number::without_subnormals(f32::from_le_bytes(bytes(regs, c as usize + 4 * lane)));
        for j in [1, 0] {
            sum = number::flushing_fma(word(regs, at.a, j), word(regs, at.b, j), sum);
        }
        put(regs, at.d as usize + 4 * lane, sum.to_le_bytes());
    }
}

pub(super) fn permute(d: Slot, table: Slot, index: Slot, count: u8, regs: &mut [u8]) -> Result<(), String> {
    let table: [u8; 16] = bytes(regs, table as usize);
    for i in 0..count as usize {
        let pick = regs[index as usize + i];
        match table.get(pick as usize) {
            Some(&byte) => regs[d as usize + i] = byte,
            None => return Err(format!("index byte {i} is {pick}, past the table of 16")),
        }
    }
    Ok(())
}

pub(super) fn permute_long(d: Slot, halves: [Slot; 2], index: Slot, count: u8, regs: &mut [u8]) {
    let halves: [[u8; 64]; 2] = halves.map(|half| bytes(regs, half as usize));
    for i in 0..count as usize {
        let pick = regs[index as usize + i] as usize;
        regs[d as usize + i] = halves[pick >> 6 & 1][pick & 63];
    }
}
