//! Permutations of words that AVX-512 does in one instruction.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Size};
use super::value::Repr;
use crate::ir::Type;

impl Lower<'_> {
    /// AVX-512: words or pairs of words from anywhere in one register or two, by one instruction, where that makes a vector of
    /// more than 16 bytes.
    pub fn permuted(&mut self, ty: Type, [a, b]: [&Repr; 2], lanes: &[u8]) -> Option<Repr> {
        let width = ty.scalar.bytes() as usize;
        let total = width * lanes.len();
        let (one, two) = match width {
            2 => (M::Vpermw, M::Vpermt2w),
            4 => (M::Vpermd, M::Vpermt2d),
            _ => return None,
        };
        if !self.facts.evex || !matches!(total, 32 | 64) || a.regs.len() > 1 || b.regs.len() > 1 {
            return None;
        }
        // Two halves as they are take one insertion.
        if total == 32 && a.size == Size::X && lanes.iter().enumerate().all(|(i, &lane)| lane as usize == i) {
            return None;
        }
        let bytes = a.size.bytes().max(b.size.bytes()).max(total as u32);
        let (size, per) = (Size::vector(bytes), bytes as usize / width);
        let own = ty.lanes as usize;
        let same = a.one() == b.one();
        let picks: Vec<(bool, usize)> = lanes
            .iter()
            .map(|&lane| match (lane as usize).checked_sub(own) {
                Some(lane) => (!same, lane),
                None => (false, lane as usize),
            })
            .collect();
        let source = picks[0].0;
        let alone = picks.iter().all(|pick| pick.0 == source);
        let mut index = vec![0; bytes as usize];
        for (i, &(second, lane)) in picks.iter().enumerate() {
            let number = lane + if second && !alone { per } else { 0 };
            index[i * width..][..2].copy_from_slice(&(number as u16).to_le_bytes());
        }
        let index = Arg::Use(self.constant(size, &index), size);
        let reg = if alone {
            self.vec(one, size, &[index, Arg::Use(if source { b.one() } else { a.one() }, size)])
        } else {
            self.accumulate(two, size, a.one(), &[index, Arg::Use(b.one(), size)])
        };
        Some(Repr::vector(Size::vector(total as u32), vec![reg]))
    }
}
